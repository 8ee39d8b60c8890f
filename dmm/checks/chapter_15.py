"""Checks for chapter 15: acting in constant time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import call, mistaken, passed, require
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Pasts = list[tuple[int, ...]]
"""The inputs that the output of each step has seen."""


def check_first_seen(answer: Callable[..., Any]) -> None:
    """`answer(t, context, states)` must give the first time step that a staggered action at `t` sees."""
    _FIRST_SEEN(answer)


def check_staggered(answer: Callable[..., Any]) -> None:
    """`answer(step, start, context, states)` must make an object whose `act(x)` gives the oldest state's output."""
    for context, states in ((8, 4), (6, 3), (5, 1), (4, 4), (6, 2)):
        length = 3 * context + 1
        actor, other = (call(answer, _remember, (), context, states) for _ in range(2))
        require(hasattr(actor, "act"), "there is no method act(self, x)")
        pasts = []
        for t in range(length):
            pasts.append(_past(call(actor.act, t), t))
            call(other.act, -1 - t)  # a second one between the steps of the first
        _name_wrong_pasts(pasts, context, states)
    passed("every action is a pass over the last K - K/m + 1 to K inputs, and every state takes in every input.")


def check_extend(answer: Callable[..., Any]) -> None:
    """`answer(x (t, d), (tokens (w - 1, d), h (d,)), W (d, w d), a (d,))` must give `y (t, d)` and the new state."""

    @functools.wraps(answer)
    def flat(*given: Any) -> Any:
        y, state = _pair(call(answer, *given), "y and the new state")
        return y, *_pair(state, "tokens and h as the new state")

    _EXTEND(flat if callable(answer) else answer)


# What an action sees


def _first(t: int, context: int, states: int) -> int:
    spacing = context // states
    return -(-t // spacing) * spacing - context + 1


def _moments() -> list[Case]:
    sizes = [(8, 4), (8, 2), (8, 1), (8, 8), (24, 8), (24, 4), (12, 3), (15, 5)]
    return [(t, context, states) for context, states in sizes for t in range(3 * context)]


def _not_whole(case: Case, got: Array, right: Array) -> str:
    if got != np.round(got):
        return "a time step is a whole number: divide with //, not with /"
    return "the first wrong answer is here"


_FIRST_SEEN = Check(
    reference=lambda t, context, states: _first(t, context, states),
    cases=_moments,
    mistakes={
        "rounded down: a state that began K steps ago or earlier has just been restarted; the oldest began at the next "
        "multiple of the spacing": lambda t, k, m: t // (k // m) * (k // m) - k + 1,
        "that is the window, K steps at every time; fewer states make it vary between K - K/m + 1 and K": (
            lambda t, k, m: t - k + 1
        ),
        "padding is not counted: behind the first steps lie K - 1 padded ones, -(K - 1) to -1": (
            lambda t, k, m: max(0, _first(t, k, m))
        ),
        "that is the newest state: the oldest one acts": lambda t, k, m: (t + k - 1) // (k // m) * (k // m) - k + 1,
        "the spacing is K / m, the steps between two restarts; yours is m": lambda t, k, m: -(-t // m) * m - k + 1,
        "that is a single state, restarted every K steps: the number of states plays no part": (
            lambda t, k, m: -(-t // k) * k - k + 1
        ),
        "restarts are counted from the first padded step, time step -(K - 1), not from step 0": (
            lambda t, k, m: -(-(t - k + 1) // (k // m)) * (k // m)
        ),
        "that is a state that is never restarted": lambda t, k, m: 1 - k,
        "that is how many steps are seen: asked for is the first of them": lambda t, k, m: t - _first(t, k, m) + 1,
        "counted from the first padded step: time step 0 is the first real one": lambda t, k, m: (
            _first(t, k, m) + k - 1
        ),
        "off by one, one step too early: K steps back from t, itself included, is t - K + 1": (
            lambda t, k, m: _first(t, k, m) - 1
        ),
        "off by one, one step too late: K steps back from t, itself included, is t - K + 1": (
            lambda t, k, m: _first(t, k, m) + 1
        ),
    },
    parts=("first_seen(...)",),
    praise="each action sees K - K/m + 1 to K steps, padding included.",
    otherwise=_not_whole,
    tolerance=1e-9,
)


# Staggered states


def _remember(x: int, h: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A recurrence that forgets nothing, and whose output is all that it has seen."""
    return (*h, x), (*h, x)


def _past(y: Any, t: int) -> tuple[int, ...]:
    pair = isinstance(y, tuple) and len(y) == 2 and isinstance(y[0], tuple)
    require(not pair, "act returns two things: the output y is enough, the states stay inside")
    require(
        not isinstance(y, list), "act returns the outputs of all states: asked for is the one of the oldest state alone"
    )
    require(isinstance(y, tuple) and len(y) > 0, f"step {t}: act has to return an output y of step(x, h)")
    require(
        min(y) >= 0, "two actors share their states: make the states in __init__ as self.something, not in the class"
    )
    require(y[-1] == t, f"step {t}: the output has not seen the input of its own step")
    gaps = any(later - earlier != 1 for earlier, later in pairwise(y))
    repeats = len(set(y)) < len(y)
    require(not repeats, "an input was taken in twice: every state takes one step per input")
    require(not gaps, "a state has missed inputs: all states take in every input, not only the one that acts")
    return tuple(y)


def _name_wrong_pasts(pasts: Pasts, context: int, states: int) -> None:
    got, spacing = [past[0] for past in pasts], context // states
    steps = range(len(pasts))
    expected = [max(0, -(-(t - context + 1) // spacing) * spacing) for t in steps]
    if got == expected:
        return
    late = [0 if (i := max(0, (t - 1) // spacing - states + 1)) == 0 else spacing * i + 1 for t in steps]
    mistakes = {
        "no state is ever restarted: one of them begins anew every K / m steps": [0 for _ in steps],
        "no action has seen more than K / m inputs: the newest state acts, or all states are restarted at once; "
        "restart one at a time, in turn, and act with the oldest": [t // spacing * spacing for t in steps],
        "everything is forgotten every K steps: the same state acts at every step, or all are restarted together; "
        "restart them K / m apart and act with the oldest": [t // context * context for t in steps],
        "restarted too late: a state that begins anew at a step takes in the input of this very step": late,
        "that is the window of the last K inputs: it would take K states": [max(0, t - context + 1) for t in steps],
        "the spacing between restarts is K / m; yours is m": [
            max(0, -(-(t - context + 1) // states) * states) for t in steps
        ],
        "the oldest state has seen too much: of m + 1 states the oldest has to go before it acts again": [
            max(0, t // spacing - states) * spacing for t in steps
        ],
        "only the state that acts takes in inputs: the others must, too, or they know nothing when their turn comes": [
            0 if t < context else t // spacing * spacing for t in steps
        ],
    }
    for hint, wrong in mistakes.items():
        if got == wrong:
            raise mistaken(hint)
    t = next(t for t in steps if got[t] != expected[t])
    require(
        False,
        f"context {context}, {states} states: at step {t} the output has seen inputs {got[t]} to {t}, {t - got[t] + 1} "
        f"of them",
    )


# A chunk at a time


def _pair(result: Any, what: str) -> tuple[Any, Any]:
    require(isinstance(result, tuple | list) and len(result) == 2, f"return two things: {what}")
    return result[0], result[1]


def _passed_through(x: Tensor, tokens: Tensor, h: Tensor, W: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token by token: the outputs, the tokens to keep, and the last hidden state."""
    outputs = []
    for token in x:
        window = torch.cat([tokens, token[None]])
        h = a * h + W @ window.flatten()
        tokens = window[1:]
        outputs.append(h)
    return torch.stack(outputs), tokens, h


def _chunks() -> list[Case]:
    """Chunks longer and shorter than the window, from states that are not zero; also windows of one and two tokens."""
    cases = []
    for seed, (t, d, w) in enumerate([(5, 3, 4), (3, 3, 4), (1, 2, 4), (2, 4, 6), (4, 5, 2), (7, 2, 3), (3, 2, 1)]):
        generator = torch.Generator().manual_seed(seed)
        x, tokens, W, h, raw = (
            torch.randn(shape, generator=generator) for shape in ((t, d), (w - 1, d), (d, w * d), (d,), (d,))
        )
        cases.append((x, (tokens, h), W, raw.sigmoid()))
    return cases


def _right_chunk(x: Tensor, state: tuple[Tensor, Tensor], W: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _passed_through(x, *state, W, a)


def _chunk_mistakes(x: Tensor, state: tuple[Tensor, Tensor], W: Tensor, a: Tensor) -> dict[str, Any]:
    (tokens, h), w, t = state, len(state[0]) + 1, len(x)
    y, kept, last = _passed_through(x, tokens, h, W, a)
    blocks, nothing = W.view(len(W), -1, len(W)), torch.zeros_like(h)
    seen = torch.cat([tokens, x])
    mixed = seen.unfold(0, w, 1).mT.flatten(1) @ W.T
    summed = mixed.cumsum(0)
    from_here = _passed_through(x, torch.zeros_like(tokens), h, W, a)
    wrong_y = {
        "the first tokens have no output: their windows begin with tokens of the state": y[w - 1 :],
        "the windows are in reverse order: oldest token first": (
            _passed_through(x, tokens, h, blocks.flip(1).flatten(1), a)[0]
        ),
        "y is the h from before its own token: update h first": torch.cat([h[None], y[:-1]]),
        "the recurrence is missing: y is h, not what the mixer gives": mixed,
        "h decays once per chunk: a acts at every token": a * h + summed,
        "h does not decay: multiply it by a at every token": h + summed,
        "h is multiplied by a where the mixer's output belongs: h = a h + u": (
            _passed_through(x, tokens, h, torch.diag(a) @ W, a)[0]
        ),
    }
    wrong_tokens = {
        "the state's tokens never change: keep the last w - 1 of old and new": tokens,
        "the state keeps outputs: the mixer looks back at its inputs": torch.cat([tokens, y])[t:],
        "the state's tokens are in reverse order: oldest first": kept.flip(0),
        "the state keeps w tokens: w - 1 are enough": torch.cat([tokens[:1], seen])[-w:] if w > 1 else seen[-1:],
        "a chunk shorter than w - 1 tokens: older tokens stay in the state; take the last w - 1 of old and new": (
            x[max(0, t - w + 1) :]
        ),
        "the state grows with every chunk: of old and new tokens keep the last w - 1": seen,
    }
    wrong_h = {
        "h never changes: the new state holds the h of the chunk's last token": h,
        "h is the one of the chunk's first token: the next chunk goes on from the last": y[0],
        "h is emptied: the next chunk goes on from the last h": nothing,
        "h has decayed once too often: hand over the h of the last token as it is": a * last,
    }
    return {
        "the mixer forgets: windows of the first tokens reach back into the state's tokens, not into zeros": (
            from_here[0],
            kept,
            from_here[2],
        ),
        "h is restarted at every chunk: go on from the h of the state": _passed_through(x, tokens, nothing, W, a),
        "both memories are empty at every chunk: go on from the state": (
            _passed_through(x, torch.zeros_like(tokens), nothing, W, a)
        ),
        **{hint: (wrong, kept, last) for hint, wrong in wrong_y.items()},
        **{hint: (y, wrong, last) for hint, wrong in wrong_tokens.items()},
        **{hint: (y, kept, wrong) for hint, wrong in wrong_h.items()},
    }


def _first_wrong(case: Case, got: Array, right: Array) -> str:
    if got.shape != case[0].shape:
        return "the new state is wrong"
    token = int(np.flatnonzero(np.abs(got - right).max(1) > 1e-4)[0])
    return f"y differs first at token {token} of a chunk"


_EXTEND = Check(
    reference=_right_chunk,
    cases=_chunks,
    mistakes=_chunk_mistakes,
    parts=("y", "the state's tokens", "h"),
    praise="any number of tokens at a time, the outputs of one pass over all of them.",
    otherwise=_first_wrong,
)
