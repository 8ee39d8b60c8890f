"""Local token mixers, all of one signature: `mixer(d, window, bias)` maps `(b, l, d)` to `(b, l, d)`, causally.

Output `t` sees tokens `t - window + 1 .. t`; tokens before the first count as zero. Each also has `init_state` and
`extend`, which takes the tokens a few at a time and equals `forward`, and `step`, which takes one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import InputError, whole_number
from dmm.tracing import watched


class _PaddedWindows(torch.autograd.Function):
    """`(b, l, d) -> (b, l, d, w)`, a view of the padded tokens; the gradient is summed place by place of the window.

    Same bits as autograd through `unfold`, whose own gradient goes over single numbers and takes longer. The gradient
    can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int) -> Tensor:
        ctx.window = window
        return _padded_windows(x, window)

    @staticmethod
    def backward(ctx: Any, dwindows: Tensor) -> tuple[Tensor, None]:
        length, last = dwindows.shape[1], ctx.window - 1
        dx = dwindows[..., last].clone()
        for age in range(1, min(ctx.window, length)):
            dx[:, : length - age] += dwindows[:, age:, :, last - age]
        return dx, None


def _padded_windows(x: Tensor, window: int) -> Tensor:
    return F.pad(x, (0, 0, window - 1, 0)).unfold(1, window, 1)


class LocalMixer(nn.Module):
    """The window itself: padding, unfolding, and the state that a token-by-token run carries."""

    def __init__(self, d: int, window: int):
        super().__init__()
        self.d, self.window = whole_number("d", d, 1), whole_number("window", window, 1)

    def windows(self, x: Tensor) -> Tensor:
        """The last `window` tokens at each position, oldest first: `(b, l, d) -> (b, l, d, w)`."""
        if watched(x):
            return _padded_windows(x, self.window)
        return _PaddedWindows.apply(x, self.window)  # type: ignore[no-any-return, no-untyped-call]

    def init_state(self, batch: int) -> Any:
        """The `window - 1` tokens before the first, all zero: `(b, w - 1, d)`."""
        return next(self.parameters()).new_zeros(batch, self.window - 1, self.d)

    def extend(self, x: Tensor, state: Any, present: Tensor | None = None) -> tuple[Tensor, Any]:
        """The next `t` tokens: `x (b, t, d)`, state -> `(b, t, d)`, new state.

        Args:
            x: the tokens.
            state: from `init_state` or the previous call; not changed.
            present: `(b, t)`, 0 for tokens that a row begins without, 1 for all others. They must come first in a row
                that is at its initial state; they leave that as it is, and what they map to means nothing.
        """
        tokens = torch.cat([state, x if present is None else x * present[..., None]], dim=1)  # (b, w - 1 + t, d)
        return self.mix(tokens.unfold(1, self.window, 1)), tokens[:, x.shape[1] :]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token: `x (b, d)`, state -> `(b, d)`, new state."""
        y, state = self.extend(x[:, None], state)
        return y[:, 0], state

    def forward(self, x: Tensor) -> Tensor:
        """`(b, l, d) -> (b, l, d)`."""
        if x.ndim != 3 or x.shape[-1] != self.d:
            raise InputError(f"x: got shape {tuple(x.shape)}, allowed is (b, l, {self.d})")
        return self.mix(self.windows(x))

    def mix(self, windows: Tensor) -> Tensor:
        """`(b, l, d, w) -> (b, l, d)`."""
        raise NotImplementedError


class DenseSequenceMixer(LocalMixer):
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
        self.linear = nn.Linear(self.window * self.d, self.d, bias=bias)

    def mix(self, windows: Tensor) -> Tensor:
        flat = windows.mT.flatten(-2).contiguous()  # (b, l, w*d), without overlaps, which matrix products are slow on
        return F.linear(flat, self.linear.weight, self.linear.bias)  # (b, l, d)

    def conv1d_weight(self) -> Tensor:
        """The same map as kernel of `F.conv1d` on `(b, d, l)` padded left by `w - 1`: `(d_out, d_in, w)`."""
        return self.linear.weight.view(self.d, self.window, self.d).mT


class DepthwiseConv(LocalMixer):
    """`y_{t,c} = sum_j K_{c,j} x_{t-w+1+j,c} + b_c`: each channel by itself, Mamba's own local mixer."""

    def __init__(self, d: int, window: int, bias: bool = True):
        super().__init__(d, window)
        self.conv1d = nn.Conv1d(self.d, self.d, self.window, groups=self.d, bias=bias)

    def mix(self, windows: Tensor) -> Tensor:
        y = (windows * self.conv1d.weight[:, 0]).sum(-1)  # (b, l, d)
        return y if self.conv1d.bias is None else y + self.conv1d.bias


class ModalityState(NamedTuple):
    """What a `ModalityMixer` remembers between two tokens."""

    window: Tensor
    """The last `window - 1` tokens: `(b, w - 1, d)`."""
    modality: int
    """Of the token that comes next."""


class ModalityMixer(LocalMixer):
    """`y_t = W_m [x_{t-w+1}; ...; x_t] + b_m` with `m = t mod 3`: a dense mixer of its own for each modality.

    The "multi-modal" mixer of the DMM paper's appendix G and table 9, after Decision Convformer's filter per modality.
    Token 0 must be a return-to-go, as in the windows of this package. An older release of the authors' code slices the
    *channels* (`x[:, :, ::3]`) where this takes every third *token*.

    Args:
        d: channels.
        window: `w` tokens that each output sees, of all modalities.
        bias: whether the maps are affine.
    """

    def __init__(self, d: int, window: int, bias: bool = False):
        super().__init__(d, window)
        self.mixers = nn.ModuleList(DenseSequenceMixer(d, window, bias=bias) for _ in range(3))

    def init_state(self, batch: int) -> ModalityState:
        """The tokens before the first, all zero, and the first token's modality."""
        return ModalityState(super().init_state(batch), 0)

    def extend(self, x: Tensor, state: ModalityState, present: Tensor | None = None) -> tuple[Tensor, ModalityState]:
        """The next `t` tokens, whose first is of modality `state.modality` in every row."""
        tokens = torch.cat([state.window, x if present is None else x * present[..., None]], dim=1)
        y = self.mix(tokens.unfold(1, self.window, 1), state.modality)
        return y, ModalityState(tokens[:, x.shape[1] :], (state.modality + x.shape[1]) % 3)

    def mix(self, windows: Tensor, first: int = 0) -> Tensor:
        """`(b, l, d, w) -> (b, l, d)` for tokens whose first is of modality `first`."""
        y = torch.empty_like(windows[..., 0])  # (b, l, d)
        for place in range(3):
            mixer = cast(DenseSequenceMixer, self.mixers[(first + place) % 3])
            y[:, place::3] = mixer.mix(windows[:, place::3])
        return y
