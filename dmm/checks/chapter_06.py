"""Checks for chapter 6: the Dense Sequence Mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks.calls import package
from dmm.checks.cases import normal, tensor
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]


def check_modality_mixer(answer: Callable[..., Any]) -> None:
    """`answer(x (b, l, d), W (3, d, w d))` must give `y_t = W_(t mod 3) [x_{t-w+1}; ...; x_t]`, `(b, l, d)`."""
    _MODALITY_MIXER(answer)


def check_to_linear(answer: Callable[..., Any]) -> None:
    """`answer(kernel (d_out, d_in, w))` must give the linear weight `(d_out, w d_in)`, oldest token first."""
    _TO_LINEAR(answer)


def check_step(answer: Callable[..., Any]) -> None:
    """`answer(x (b, d), state (b, w - 1, d), W (d, w d))` must give `y (b, d)` and the new state."""
    _STEP(answer)


# A mixer for each modality


def _sequences() -> list[Case]:
    """Also with a last time step that is cut off, a sequence shorter than the window, and a window of one token."""
    sizes = [(2, 12, 6, 3), (3, 7, 4, 5), (1, 4, 5, 6), (4, 9, 2, 1), (2, 1, 3, 2)]
    return [tuple(normal(seed, (b, length, d), (3, d, w * d))) for seed, (b, length, d, w) in enumerate(sizes)]


def _window(x: Tensor, W: Tensor) -> int:
    return W.shape[-1] // x.shape[-1]


def _windows(x: Tensor, left: int, right: int, w: int) -> Tensor:
    """Windows of w tokens, flattened oldest first, with so many zeros on either side: `(b, ..., w d)`."""
    return F.pad(x, (0, 0, left, right)).unfold(1, w, 1).mT.flatten(-2)


def _mixed(flat: Tensor, W: Tensor, first: int = 0) -> Tensor:
    """Each window through the mixer of its token's modality; `first` is that of token 0."""
    y = torch.stack([flat @ mixer.T for mixer in W])  # (3, b, l, d)
    return torch.stack([y[(t + first) % 3, :, t] for t in range(flat.shape[1])], 1)


def _modality_mixer(x: Tensor, W: Tensor) -> Tensor:
    w = _window(x, W)
    return _mixed(_windows(x, w - 1, 0, w), W)


def _with_windows(cut: Callable[[Tensor, int], Tensor], first: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """The right mixers on windows that `cut(x, w)` makes."""
    return lambda x, W: _mixed(cut(x, _window(x, W)), W, first)


def _rearranged(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The right mixers on right windows, whose `(b, l, w, d)` are changed before they are flattened."""
    return _with_windows(lambda x, w: change(_windows(x, w - 1, 0, w).reshape(*x.shape[:2], w, -1)).flatten(-2))


def _of_each(x: Tensor, W: Tensor) -> list[Tensor]:
    w = _window(x, W)
    return [_windows(x, w - 1, 0, w) @ mixer.T for mixer in W]


def _every_third_channel(x: Tensor, W: Tensor) -> Tensor:
    each = _of_each(x, W)
    return torch.stack([each[c % 3][..., c] for c in range(x.shape[2])], -1)


def _own_modality_only(x: Tensor, W: Tensor) -> Tensor:
    y, w = torch.empty_like(x), _window(x, W)
    for m in range(min(3, x.shape[1])):
        y[:, m::3] = _windows(x[:, m::3], w - 1, 0, w) @ W[m].T
    return y


def _in_blocks(x: Tensor, W: Tensor) -> Tensor:
    each, third = _of_each(x, W), -(-x.shape[1] // 3)
    return torch.cat([each[m][:, m * third : (m + 1) * third] for m in range(3)], 1)


def _hard_coded(w: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, W: _mixed(_windows(x, w - 1, 0, w), W)


_MODALITY_MIXER = Check(
    reference=_modality_mixer,
    cases=_sequences,
    mistakes={
        "channel for token: y[:, :, m::3] is every third channel, y[:, m::3] every third token": _every_third_channel,
        "each mixer sees tokens of its own modality only: cut the windows first, choose the mixer afterwards": (
            _own_modality_only
        ),
        "forgotten padding: w - 1 outputs are missing, and w - 1 zeros belong before the first token": _with_windows(
            lambda x, w: _windows(x, 0, 0, w)
        ),
        "off by one: pad w - 1 tokens, not w; one output too many came back": _with_windows(
            lambda x, w: _windows(x, w, 0, w)
        ),
        "padded on both sides: only the left end needs w - 1 zeros, the right needs none": _with_windows(
            lambda x, w: _windows(x, w - 1, w - 1, w)
        ),
        "leak of the future: the zeros stand after the last token; pad before the first": _with_windows(
            lambda x, w: _windows(x, 0, w - 1, w)
        ),
        "leak of the future: the window is centred on its token; all w - 1 zeros go before the first": _with_windows(
            lambda x, w: _windows(x, w // 2, (w - 1) // 2, w)
        ),
        "off by one: the windows end one token too early; output t sees token t": _with_windows(
            lambda x, w: _windows(x, w, 0, w)[:, :-1]
        ),
        "newest token first: the window is flattened oldest first": _rearranged(lambda tokens: tokens.flip(2)),
        "channels before tokens: flatten (w, d), so that each token's channels stay together": _rearranged(
            lambda tokens: tokens.mT
        ),
        "the mixers are shifted: W[0] is for tokens 0, 3, 6, ..., the returns-to-go": _with_windows(
            lambda x, w: _windows(x, w - 1, 0, w), first=1
        ),
        "the mixers are shifted: W[0] is for tokens 0, 3, 6, ..., not W[2]": _with_windows(
            lambda x, w: _windows(x, w - 1, 0, w), first=2
        ),
        "the mixers follow blocks of tokens: the modality changes from token to token, t mod 3": _in_blocks,
        "the outputs are sorted by modality: put them back where their tokens stand": (
            lambda x, W: torch.cat([y[:, m::3] for m, y in enumerate(_of_each(x, W))], 1)
        ),
        "the three mixers are added up: each token needs the one of its modality": lambda x, W: sum(_of_each(x, W)),
        "all tokens go through W[0]: each modality has its own": lambda x, W: _of_each(x, W)[0],
        **{
            f"the window is hard-coded as {w}: w follows from the shapes of x and W": _hard_coded(w)
            for w in (1, 2, 3, 5, 6)
        },
    },
    parts=("y",),
    praise="each modality has a mixer of its own, and each sees the last w tokens of all modalities.",
    otherwise=lambda case, got, right: _first_wrong_token(got, right),
    forbidden=[(package, "the numbers are right, but the package made them: pad, cut windows and mix yourself")],
)


def _first_wrong_token(got: Array, right: Array) -> str:
    token = int(np.flatnonzero(np.abs(got - right).max((0, 2)) > 1e-4)[0])
    return f"y differs first at token {token}, a {('return-to-go', 'state', 'action')[token % 3]}"


# From a convolution to a mixer


def _kernels() -> list[Case]:
    counted = np.arange(1.0, 1 + 3 * 4 * 5).reshape(3, 4, 5)
    return [
        (tensor(counted),),
        *((kernel,) for kernel in normal(0, (5, 2, 3), (2, 7, 1), (1, 3, 4))),
    ]


def _to_linear(kernel: Tensor) -> Tensor:
    return kernel.mT.flatten(1)


def _first_wrong_column(case: Case, got: Array, right: Array) -> str:
    column = int(np.flatnonzero(np.abs(got - right).max(0) > 1e-4)[0])
    token, channel = divmod(column, case[0].shape[1])
    return f"the first wrong column is that of token {token} of the window (0 is the oldest), channel {channel}"


_TO_LINEAR = Check(
    reference=_to_linear,
    cases=_kernels,
    mistakes={
        "channel for token: the columns run token by token, each with all its channels; "
        "yours run channel by channel, so swap the last two axes before flattening": lambda kernel: kernel.flatten(1),
        "newest token first: a kernel's tap 0 meets the oldest token of the window, so nothing has to be reversed": (
            lambda kernel: _to_linear(kernel.flip(2))
        ),
        "channels within a token are in reverse order: nothing has to be reversed": (
            lambda kernel: _to_linear(kernel.flip(1))
        ),
        "the whole row is in reverse order: nothing has to be reversed": lambda kernel: _to_linear(kernel).flip(1),
        "rows and columns got mixed: the axis of the output channels has to stay in front": (
            lambda kernel: kernel.permute(1, 2, 0).reshape(kernel.shape[0], -1)
        ),
        "rows and columns got mixed: the output channels stay in front, tokens come before channels": (
            lambda kernel: kernel.permute(2, 0, 1).reshape(kernel.shape[0], -1)
        ),
        "reshaping does not swap axes: use a transposition, then flatten": (
            lambda kernel: kernel.reshape(kernel.shape[0], kernel.shape[2], kernel.shape[1]).mT.flatten(1)
        ),
        "transposed: rows are output channels, so the shape is (d_out, w * d_in)": lambda kernel: _to_linear(kernel).T,
        "the channel axes are swapped: the first axis of a kernel is its output": (
            lambda kernel: _to_linear(kernel.transpose(0, 1))
        ),
        "not flattened yet: the token and the channel axis become one of w * d_in": lambda kernel: kernel.mT,
        "only one of the w taps is left: all of them belong side by side": lambda kernel: kernel[..., -1],
        "these are the w blocks: lay them side by side, (d_out, w * d_in)": lambda kernel: kernel.permute(2, 0, 1),
    },
    parts=("weight",),
    praise="the kernel's numbers, token by token; not one of them changed.",
    otherwise=_first_wrong_column,
)


# One token at a time


def _states() -> list[Case]:
    """Steps from states that are not zero, so that no two mistakes look alike, and from one that is."""
    cases = []
    for seed, (b, d, w) in enumerate([(2, 3, 4), (3, 4, 2), (1, 5, 3), (5, 2, 6), (4, 3, 1)]):
        x, state, W = normal(seed, (b, d), (b, w - 1, d), (d, w * d))
        cases.append((x, state, W))
    x, state, W = cases[0]
    return [*cases, (-x, torch.zeros_like(state), W)]


def _step(x: Tensor, state: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    window = torch.cat([state, x[:, None]], 1)
    return window.flatten(1) @ W.T, window[:, 1:]


def _output(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A step whose window `(b, w, d)` is changed before it is mixed; its new state is right."""

    def wrong(x: Tensor, state: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        return change(torch.cat([state, x[:, None]], 1)).flatten(1) @ W.T, _step(x, state, W)[1]

    return wrong


def _memory(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A step whose output is right, and whose new state is `change(x, state, y)`."""

    def wrong(x: Tensor, state: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = _step(x, state, W)
        return y, change(x[:, None], state, y[:, None])

    return wrong


def _newest_first(x: Tensor, state: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    y, new = _step(x, state.flip(1), W)
    return y, new.flip(1)


def _zeros_before(window: Tensor) -> Tensor:
    return F.pad(window[:, -1:], (0, 0, window.shape[1] - 1, 0))


_STEP = Check(
    reference=_step,
    cases=_states,
    mistakes={
        "newest token first: the window is the state, oldest first, and then x": _output(
            lambda window: torch.cat([window[:, -1:], window[:, :-1]], 1)
        ),
        "the whole window is in reverse order: the oldest token comes first": _output(lambda window: window.flip(1)),
        "off by one: this output does not see its own token; x belongs at the window's end": _output(
            lambda window: F.pad(window, (0, 0, 1, 0))[:, :-1]
        ),
        "the state is not used: the window is the state and then x": _output(_zeros_before),
        "the sequences of the batch are mixed: each has a state of its own": _output(
            lambda window: torch.cat([window[:, :-1].flip(0), window[:, -1:]], 1)
        ),
        "channel for token: flatten the window token by token, (b, w, d) to (b, w * d)": _output(
            lambda window: window.mT.reshape(window.shape)
        ),
        "the state is kept newest first: oldest first, both in what is given and in what comes back": _newest_first,
        "the state never changes: the oldest token leaves it, and x enters": _memory(lambda x, state, y: state),
        "the state keeps outputs: the mixer looks back at its inputs, so x enters": _memory(
            lambda x, state, y: torch.cat([state, y], 1)[:, 1:]
        ),
        "newest token first: x enters at the end of the state, the oldest token leaves at its beginning": _memory(
            lambda x, state, y: torch.cat([x, state], 1)[:, : state.shape[1]]
        ),
        "the state is reversed: oldest token first": _memory(
            lambda x, state, y: torch.cat([state, x], 1)[:, 1:].flip(1)
        ),
        "the state is emptied: the tokens before x have to stay": _memory(
            lambda x, state, y: torch.cat([0 * state, x], 1)[:, 1:]
        ),
        "x replaces the newest token: the oldest one has to go": _memory(
            lambda x, state, y: torch.cat([state[:, :-1], x], 1)[:, : state.shape[1]]
        ),
        "the state keeps w tokens: w - 1 are enough, the oldest leaves": _memory(
            lambda x, state, y: torch.cat([state, x], 1)
        ),
        "y has a token axis: its shape is (b, d)": (
            lambda x, state, W: (_step(x, state, W)[0][:, None], _step(x, state, W)[1])
        ),
        "a window of one token has an empty state, (b, 0, d), and must work too": (
            lambda x, state, W: _step(x, state, W) if state.shape[1] else 1 // 0
        ),
        "the last w - 1 tokens are not state[:, -(w - 1):] if w is 1: that slice is everything": (
            lambda x, state, W: (_step(x, state, W)[0], torch.cat([state, x[:, None]], 1)[:, -state.shape[1] :])
        ),
    },
    parts=("y", "the new state"),
    praise="one token at a time, w - 1 tokens of memory, the same outputs.",
    otherwise="the step is not that of the window that ends at x",
)
