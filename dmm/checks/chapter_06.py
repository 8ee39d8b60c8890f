"""Checks for chapter 6: the Dense Sequence Mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import CheckFailed, as_array, call, close, match, passed, require

Array = NDArray[np.float64]


def check_modality_mixer(answer: Callable[..., Any]) -> None:
    """`answer(x (b, l, d), W (3, d, w d))` must give `y_t = W_(t mod 3) [x_{t-w+1}; ...; x_t]`, `(b, l, d)`."""
    b, length, d, w = 2, 12, 6, 3
    generator = torch.Generator().manual_seed(0)
    x, W = _random(generator, (b, length, d), (3, d, w * d))
    kept = x.clone()
    try:
        result = call(answer, x, W)
    except CheckFailed:
        hard_coded = [other for other in (6, 2, 4, 5) if _mixes(answer, other)]
        require(
            not hard_coded, f"the window is hard-coded as {sum(hard_coded[:1])}: w follows from the shapes of x and W"
        )
        raise
    shape = tuple(getattr(result, "shape", ()))
    require(
        shape != (b, length - w + 1, d),
        f"forgotten padding: {length} tokens in, {length - w + 1} out; w - 1 zeros belong before the first",
    )
    require(shape != (b, length + 1, d), "off by one: pad w - 1 tokens, not w; one output too many came back")
    require(
        shape != (b, length + w - 1, d),
        "padded on both sides: only the left end needs w - 1 zeros, the right needs none",
    )
    y = as_array(result, (b, length, d), "y")
    require(torch.equal(x, kept), "your function changed its input x: work on a copy")
    match(y, _numbers(_by_modality(_windows(x, w), W)), _modality_mistakes(x, W, w), _first_wrong_token(x, W, w, y))
    require(
        _mixes(answer, 2) and _mixes(answer, 4), "the window is hard-coded as 3: w follows from the shapes of x and W"
    )
    passed("each modality has a mixer of its own, and each sees the last w tokens of all modalities.")


def check_to_linear(answer: Callable[..., Any]) -> None:
    """`answer(kernel (d_out, d_in, w))` must give the linear weight `(d_out, w d_in)`, oldest token first."""
    d_out, d_in, w = 3, 4, 5
    kernel = torch.arange(1.0, 1 + d_out * d_in * w).view(d_out, d_in, w)
    result = call(answer, kernel.to(torch.get_default_dtype()))
    shape = tuple(getattr(result, "shape", ()))
    hints = {
        (w * d_in, d_out): "transposed: rows are output channels, so the shape is (d_out, w * d_in)",
        (d_in, w * d_out): "the channel axes are swapped: the first axis of a kernel is its output",
        (d_out, w, d_in): "not flattened yet: the token and the channel axis become one of w * d_in",
        (d_out, d_in): "only one of the w taps is left: all of them belong side by side",
        (w, d_out, d_in): "these are the w blocks: lay them side by side, (d_out, w * d_in)",
    }
    for wrong, hint in hints.items():
        require(shape != wrong, hint)
    weight = as_array(result, (d_out, w * d_in), "weight")
    expected = kernel.mT.flatten(1)
    mistakes = {
        "channel for token: the columns run token by token, each with all its channels; "
        "yours run channel by channel, so swap the last two axes before flattening": kernel.flatten(1),
        "newest token first: a kernel's tap 0 meets the oldest token of the window, so nothing has to be reversed": (
            kernel.flip(2).mT.flatten(1)
        ),
        "channels within a token are in reverse order: nothing has to be reversed": kernel.flip(1).mT.flatten(1),
        "the whole row is in reverse order: nothing has to be reversed": expected.flip(1),
        "rows and columns got mixed: the axis of the output channels has to stay in front": kernel.permute(
            1, 2, 0
        ).reshape(d_out, -1),
        "reshaping does not swap axes: use a transposition, then flatten": kernel.reshape(d_out, w, d_in).mT.flatten(1),
    }
    columns = np.flatnonzero(np.abs(weight - _numbers(expected)).max(0) > 1e-4)
    token, channel = divmod(int(columns[0]), d_in) if len(columns) else (0, 0)
    match(
        weight,
        _numbers(expected),
        {hint: _numbers(wrong) for hint, wrong in mistakes.items()},
        f"the first wrong column is that of token {token} of the window (0 is the oldest), channel {channel}",
    )
    passed("the kernel's numbers, token by token; not one of them changed.")


def check_step(answer: Callable[..., Any]) -> None:
    """`answer(x (b, d), state (b, w - 1, d), W (d, w d))` must give `y (b, d)` and the new state."""
    b, length, d = 2, 7, 3
    generator = torch.Generator().manual_seed(0)
    for w in (4, 1):
        x, state, W = _random(generator, (b, length, d), (b, w - 1, d), (d, w * d))
        _run_steps(answer, x, state, W)
    passed("one token at a time, w - 1 tokens of memory, the same outputs.")


def _mixes(answer: Callable[..., Any], w: int) -> bool:
    """Whether `answer` is right for windows of `w` tokens."""
    x, W = _random(torch.Generator().manual_seed(w), (2, 12, 6), (3, 6, w * 6))
    expected = _numbers(_by_modality(_windows(x, w), W))
    try:
        return close(as_array(call(answer, x, W), (2, 12, 6), "y"), expected, 1e-4)
    except CheckFailed:
        return False


def _random(generator: torch.Generator, *shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, generator=generator, dtype=torch.get_default_dtype()) for shape in shapes]


def _run_steps(answer: Callable[..., Any], x: Tensor, state: Tensor, W: Tensor) -> None:
    """Steps on from some state and holds output and state after each token against the parallel form."""
    (b, length, d), w = x.shape, state.shape[1] + 1
    tokens = torch.cat([state, x], 1)  # the state is not zero at the start, so that no two mistakes look alike
    expected = _numbers(tokens.unfold(1, w, 1).mT.flatten(-2) @ W.T)
    for t in range(length):
        before = state.clone()
        y, new = _pair(_call_step(answer, x[:, t], state, W, w))
        require(
            torch.equal(state, before), "your function changed the state that it was given: return a new tensor instead"
        )
        shape = tuple(getattr(new, "shape", ()))
        require(shape != (b, w, d), "the state keeps w tokens: w - 1 are enough, the oldest leaves")
        now = as_array(new, (b, w - 1, d), "new state")
        require(tuple(getattr(y, "shape", ())) != (b, 1, d), "y has a token axis: its shape is (b, d)")
        out = as_array(y, (b, d), "y")
        match(out, expected[:, t], _step_mistakes(x[:, t], before, W), f"y is wrong at token {t}")
        right = _numbers(tokens[:, t + 1 : t + w])
        match(now, right, _state_mistakes(before, x[:, t], y, t), f"the state after token {t} is wrong")
        state = new


def _call_step(answer: Callable[..., Any], x: Tensor, state: Tensor, W: Tensor, w: int) -> Any:
    try:
        return call(answer, x, state, W)
    except CheckFailed as failed:
        if w == 1:
            raise CheckFailed(
                f"a window of one token has an empty state (b, 0, d), and must work too; {failed}"
            ) from None
        raise


def _pair(result: Any) -> tuple[Any, Any]:
    require(isinstance(result, tuple) and len(result) == 2, "return two things: y and the new state")
    return result[0], result[1]


def _step_mistakes(x: Tensor, state: Tensor, W: Tensor) -> dict[str, Array]:
    window = torch.cat([state, x[:, None]], 1)  # (b, w, d)
    late = torch.cat([torch.zeros_like(x)[:, None], state], 1)
    other = torch.cat([state.flip(0), x[:, None]], 1)
    wrong = {
        "newest token first: the window is the state, oldest first, and then x": torch.cat([x[:, None], state], 1),
        "the whole window is in reverse order: the oldest token comes first": window.flip(1),
        "off by one: this output does not see its own token; x belongs at the window's end": late,
        "the state is not used: the window is the state and then x": torch.cat(
            [torch.zeros_like(state), x[:, None]], 1
        ),
        "the sequences of the batch are mixed: each has a state of its own": other,
        "channel for token: flatten the window token by token, (b, w, d) to (b, w * d)": window.mT.reshape(
            window.shape
        ),
    }
    return {hint: _numbers(tokens.flatten(1) @ W.T) for hint, tokens in wrong.items()}


def _state_mistakes(state: Tensor, x: Tensor, y: Tensor, t: int) -> dict[str, Array]:
    def after(new: Tensor, old: Tensor = state) -> Array:
        return _numbers(torch.cat([old[:, 1:], new[:, None]], 1))

    return {
        "the state never changes: the oldest token leaves it, and x enters": _numbers(state),
        "the state keeps outputs: the mixer looks back at its inputs, so x enters": after(y.to(x)),
        "newest token first: x enters at the end of the state, the oldest token leaves at its beginning": _numbers(
            torch.cat([x[:, None], state[:, :-1]], 1)
        ),
        "the state is reversed: oldest token first": after(x)[:, ::-1],
        "the state is emptied: the tokens before x have to stay": after(x, torch.zeros_like(state)),
        "x replaces the newest token: the oldest one has to go": _numbers(torch.cat([state[:, :-1], x[:, None]], 1)),
    }


def _windows(x: Tensor, w: int, future: int = 0) -> Tensor:
    """The window of each token, flattened oldest first; `future` of its w tokens lie after it. `(b, l, w d)`."""
    padded = F.pad(x, (0, 0, w - 1 - future, future))
    return padded.unfold(1, w, 1).mT.flatten(-2)


def _by_modality(windows: Tensor, W: Tensor, first: int = 0) -> Tensor:
    """Each token's window through the mixer of its modality; `first` is that of token 0."""
    y = torch.stack([windows @ mixer.T for mixer in W])  # (3, b, l, d)
    return torch.stack([y[(t + first) % 3, :, t] for t in range(windows.shape[1])], 1)


def _modality_mistakes(x: Tensor, W: Tensor, w: int) -> dict[str, Array]:
    tokens = _windows(x, w)
    late = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    split = tokens.view(*x.shape[:2], w, x.shape[2])  # (b, l, w, d)
    windows = {
        "leak of the future: the zeros stand after the last token; pad before the first": _windows(x, w, w - 1),
        "leak of the future: the window is centred on its token; all w - 1 zeros go before the first": _windows(
            x, w, 1
        ),
        "off by one: the windows end one token too early; output t sees token t": _windows(late, w),
        "newest token first: the window is flattened oldest first": split.flip(2).flatten(2),
        "channels before tokens: flatten (w, d), so that each token's channels stay together": split.mT.flatten(2),
    }
    wrong = {hint: _by_modality(flat, W) for hint, flat in windows.items()} | _choice_mistakes(x, W, w)
    return {hint: _numbers(y) for hint, y in wrong.items()}


def _choice_mistakes(x: Tensor, W: Tensor, w: int) -> dict[str, Tensor]:
    """The windows are right, and meet the wrong mixer."""
    tokens, (length, d) = _windows(x, w), x.shape[1:]
    each = [tokens @ mixer.T for mixer in W]
    third, own = length // 3, torch.empty_like(x)
    for m in range(3):
        own[:, m::3] = _windows(x[:, m::3], w) @ W[m].T
    return {
        "channel for token: y[:, :, m::3] takes every third channel, y[:, m::3] every third token": torch.stack(
            [each[c % 3][..., c] for c in range(d)], -1
        ),
        "each mixer sees tokens of its own modality only: cut the windows first, choose the mixer afterwards": own,
        "the mixers are shifted: W[0] is for tokens 0, 3, 6, ..., the returns-to-go": _by_modality(tokens, W, 1),
        "the mixers are shifted: W[0] is for tokens 0, 3, 6, ..., not W[2]": _by_modality(tokens, W, 2),
        "the mixers follow blocks of tokens: the modality changes from token to token, t mod 3": torch.cat(
            [each[m][:, m * third : (m + 1) * third] for m in range(3)], 1
        ),
        "the outputs are sorted by modality: put them back where their tokens stand": torch.cat(
            [each[m][:, m::3] for m in range(3)], 1
        ),
        "the three mixers are added up: each token needs the one of its modality": each[0] + each[1] + each[2],
        "all tokens go through W[0]: each modality has its own": each[0],
    }


def _first_wrong_token(x: Tensor, W: Tensor, w: int, y: Array) -> str:
    difference = np.abs(y - _numbers(_by_modality(_windows(x, w), W))).max((0, 2))
    wrong = np.flatnonzero(difference > 1e-4)
    token = int(wrong[0]) if len(wrong) else 0
    return f"y differs first at token {token}, a {('return-to-go', 'state', 'action')[token % 3]}"


def _numbers(x: Tensor) -> Array:
    return x.detach().double().numpy()
