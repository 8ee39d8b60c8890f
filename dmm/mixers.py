"""Local token mixers, all of one signature: `mixer(d, window, bias)` maps `(b, l, d)` to `(b, l, d)`, causally.

Output `t` sees tokens `t - window + 1 .. t`; tokens before the first count as zero. Each also has `init_state` and
`step`, which takes one token at a time and equals `forward`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import InputError


class _LocalMixer(nn.Module):
    """The window itself: padding, unfolding, and the state that a token-by-token run carries."""

    def __init__(self, d: int, window: int):
        super().__init__()
        for name, value in {"d": d, "window": window}.items():
            if value < 1:
                raise InputError(f"{name}: got {value}, allowed is at least 1")
        self.d, self.window = d, window

    def windows(self, x: Tensor) -> Tensor:
        """The last `window` tokens at each position, oldest first: `(b, l, d) -> (b, l, d, w)`."""
        return F.pad(x, (0, 0, self.window - 1, 0)).unfold(1, self.window, 1)

    def init_state(self, batch: int) -> Tensor:
        """The `window - 1` tokens before the first, all zero: `(b, w - 1, d)`."""
        return next(self.parameters()).new_zeros(batch, self.window - 1, self.d)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token: `x (b, d)`, state `(b, w - 1, d)` -> `(b, d)`, new state."""
        window = torch.cat([state, x[:, None]], dim=1)  # (b, w, d)
        return self.mix(window.mT[:, None])[:, 0], window[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        """`(b, l, d) -> (b, l, d)`."""
        if x.ndim != 3 or x.shape[-1] != self.d:
            raise InputError(f"x: got shape {tuple(x.shape)}, allowed is (b, l, {self.d})")
        return self.mix(self.windows(x))

    def mix(self, windows: Tensor) -> Tensor:
        """`(b, l, d, w) -> (b, l, d)`."""
        raise NotImplementedError


class DenseSequenceMixer(_LocalMixer):
    """DSM: `y_t = W [x_{t-w+1}; ...; x_t] + b`, one linear map of the flattened window, all channels at once.

    Equals a dense (not depth-wise) causal `Conv1d`; `conv1d_weight` gives its kernel.
    Source: DMM paper section 3.3 and figure 2c. The released code has no bias and unfolds across modalities, oldest
    token first, as here.

    Args:
        d: channels.
        window: `w` tokens; 6 in the paper, which is two time steps.
        bias: whether the map is affine.
    """

    def __init__(self, d: int, window: int, bias: bool = False):
        super().__init__(d, window)
        self.linear = nn.Linear(window * d, d, bias=bias)

    def mix(self, windows: Tensor) -> Tensor:
        return self.linear(windows.mT.flatten(-2))  # type: ignore[no-any-return]  # (b, l, w*d) -> (b, l, d)

    def conv1d_weight(self) -> Tensor:
        """The same map as kernel of `F.conv1d` on `(b, d, l)` padded left by `w - 1`: `(d_out, d_in, w)`."""
        return self.linear.weight.view(self.d, self.window, self.d).mT


class DepthwiseConv(_LocalMixer):
    """`y_{t,c} = sum_j K_{c,j} x_{t-w+1+j,c} + b_c`: each channel by itself, Mamba's own local mixer."""

    def __init__(self, d: int, window: int, bias: bool = True):
        super().__init__(d, window)
        self.conv1d = nn.Conv1d(d, d, window, groups=d, bias=bias)

    def mix(self, windows: Tensor) -> Tensor:
        y = (windows * self.conv1d.weight[:, 0]).sum(-1)  # (b, l, d)
        return y if self.conv1d.bias is None else y + self.conv1d.bias
