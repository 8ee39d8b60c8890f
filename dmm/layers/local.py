"""Local token mixers, all of one signature: `mixer(d, window, bias)` maps `(b, l, d)` to `(b, l, d)`, causally.

Output `t` sees tokens `t - window + 1 .. t`; tokens before the first count as zero. Each also has `init_state` and
`extend`, which takes the tokens a few at a time and equals `forward`, and `step`, which takes one.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    """What a mixer with weights of its own for each modality remembers between two tokens."""

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


class ModalityConv(LocalMixer):
    """`y_t = b^m + sum_j W^m_j x_{t-w+1+j}`, `m = t mod M`: a depth-wise convolution for each modality of the output.

    The token mixer of Decision ConvFormer. Its code runs every convolution over all tokens and keeps every M-th output;
    here each is computed where its modality is and nowhere else. Token 0 must be of the first modality. It starts as
    `torch.nn.Conv1d` does, biases included.

    Args:
        d: channels.
        window: `w` tokens that each output sees, of all modalities.
        modalities: `M`, 3 for return-to-go, state and action.
    """

    def __init__(self, d: int, window: int, modalities: int = 3):
        super().__init__(d, window)
        self.modalities = whole_number("modalities", modalities, 1)
        convs = (nn.Conv1d(self.d, self.d, self.window, groups=self.d) for _ in range(self.modalities))
        self.convs = nn.ModuleList(convs)

    def init_state(self, batch: int) -> ModalityState:
        """The tokens before the first, all zero, and the first token's modality."""
        return ModalityState(super().init_state(batch), 0)

    def extend(self, x: Tensor, state: ModalityState, present: Tensor | None = None) -> tuple[Tensor, ModalityState]:
        """The next `t` tokens, whose first is of modality `state.modality` in every row."""
        tokens = torch.cat([state.window, x if present is None else x * present[..., None]], dim=1)
        after = (state.modality + x.shape[1]) % self.modalities
        return self._convolve(tokens, state.modality), ModalityState(tokens[:, x.shape[1] :], after)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, l, d) -> (b, l, d)`."""
        return self.at(x, None)

    def at(self, x: Tensor, modality: int | None) -> Tensor:
        """`forward`, at the tokens of one modality alone: `(b, M k, d) -> (b, k, d)`; None is all."""
        if x.ndim != 3 or x.shape[-1] != self.d:
            raise InputError(f"x: got shape {tuple(x.shape)}, allowed is (b, l, {self.d})")
        return self._convolve(F.pad(x, (0, 0, self.window - 1, 0)), 0, modality)

    def weights(self, first: int = 0) -> tuple[Tensor, Tensor]:
        """Taps `(..., M, w, d)` and biases `(..., M, d)`, those of modality `first` in front."""
        layers = [cast(nn.Conv1d, layer) for layer in self.convs]
        layers = layers[first:] + layers[:first]
        taps = torch.stack([layer.weight[..., 0, :].mT for layer in layers], dim=-3)
        return taps, torch.stack([cast(Tensor, layer.bias) for layer in layers], dim=-2)

    def _convolve(self, tokens: Tensor, first: int, only: int | None = None) -> Tensor:
        """`(b, w - 1 + l, d) -> (b, l, d)`, whose first output is of modality `first`; or those of one modality alone.

        Of several seeds that are stacked, the weights have an axis in front, and each has its part of the batch.
        """
        weight, bias = self.weights(first)
        if weight.ndim == 3:
            return _modality_conv(tokens[None], weight[None], bias[None], only)[0]
        apart = tokens.reshape(len(weight), -1, *tokens.shape[1:])  # (S, b, w - 1 + l, d)
        return _modality_conv(apart, weight, bias, only).flatten(0, 1)


def _modality_conv(tokens: Tensor, weight: Tensor, bias: Tensor, only: int | None) -> Tensor:
    """`tokens (S, b, w - 1 + l, d)`, `weight (S, M, w, d)`, `bias (S, M, d)` -> `(S, b, l, d)`."""
    if not watched(tokens, weight, bias):
        return _ModalityConv.apply(tokens, weight, bias, only)  # type: ignore[no-any-return, no-untyped-call]
    modalities, window = weight.shape[1:3]
    windows = tokens.unfold(2, window, 1)  # (S, b, l, d, w)
    kind = torch.arange(windows.shape[2], device=tokens.device) % modalities
    if only is not None:
        windows, kind = windows[:, :, only::modalities], kind[only::modalities]
    return (windows * weight.mT[:, None, kind]).sum(-1) + bias[:, None, kind]


class _ModalityConv(torch.autograd.Function):
    """The convolution tap by tap, on slices of the tokens, forward and backward; nothing is unfolded or transposed.

    The gradients can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor, only: int | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        (seeds, b, length, d), (modalities, window) = tokens.shape, weight.shape[1:3]
        ctx.only, ctx.length = only, length - window + 1
        y = tokens.new_empty(seeds, b, len(range(only or 0, ctx.length, 1 if only is None else modalities)), d)
        for kind, tap, into, seen in _taps(ctx.length, weight.shape, only):
            if tap == 0:
                y[:, :, into] = bias[:, kind, None, None]
            y[:, :, into].addcmul_(tokens[:, :, seen], weight[:, kind, tap, None, None])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        tokens, weight = ctx.saved_tensors
        dtokens, dweight, dbias = torch.zeros_like(tokens), torch.zeros_like(weight), torch.zeros_like(weight[:, :, 0])
        for kind, tap, into, seen in _taps(ctx.length, weight.shape, ctx.only):
            part = dy[:, :, into]
            if tap == 0:
                dbias[:, kind] = part.sum((1, 2))
            dtokens[:, :, seen].addcmul_(part, weight[:, kind, tap, None, None])
            dweight[:, kind, tap] = (part * tokens[:, :, seen]).sum((1, 2))
        return dtokens, dweight, dbias, None


def _taps(length: int, weight: torch.Size, only: int | None) -> Iterator[tuple[int, int, slice, slice]]:
    """Each modality (or one), each tap, where its outputs are and which of the padded tokens it sees there."""
    modalities, window = weight[1:3]
    for kind in range(min(modalities, length)):
        if only in (None, kind):
            into = slice(kind, None, modalities) if only is None else slice(None)
            for tap in range(window):
                yield kind, tap, into, slice(kind + tap, length + tap, modalities)
