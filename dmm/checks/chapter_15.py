"""Checks for chapter 15: acting in constant time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import CheckFailed, as_array, call, close, match, passed, require

Array = NDArray[np.float64]
Pasts = list[tuple[int, ...]]
"""The inputs that the output of each step has seen."""


def check_first_seen(answer: Callable[..., Any]) -> None:
    """`answer(t, context, states)` must give the first time step that a staggered action at `t` sees."""
    sizes = [(8, 4), (8, 2), (8, 1), (8, 8), (24, 8), (24, 4), (12, 3)]
    cases = [(t, context, states) for context, states in sizes for t in range(3 * context)]
    got = np.array([float(as_array(call(answer, *case), (), "first_seen")) for case in cases])
    require(bool((got == np.round(got)).all()), "a time step is a whole number: divide with //, not with /")

    def of(rule: Callable[[int, int, int], int]) -> Array:
        return np.array([rule(*case) for case in cases], dtype=np.float64)

    expected = of(_first)
    mistakes = {
        "rounded down: a state that began K steps ago or earlier has just been restarted; the oldest began at the next "
        "multiple of the spacing": of(lambda t, k, m: t // (k // m) * (k // m) - k + 1),
        "that is the window, K steps at every time; fewer states make it vary between K - K/m + 1 and K": of(
            lambda t, k, m: t - k + 1
        ),
        "padding is not counted: behind the first steps lie K - 1 padded ones, -(K - 1) to -1": np.maximum(expected, 0),
        "that is the newest state: the oldest one acts": of(lambda t, k, m: (t + k - 1) // (k // m) * (k // m) - k + 1),
        "the spacing is K / m, the steps between two restarts; yours is m": of(lambda t, k, m: -(-t // m) * m - k + 1),
        "that is a single state, restarted every K steps: the number of states plays no part": of(
            lambda t, k, m: -(-t // k) * k - k + 1
        ),
        "restarts are counted from the first padded step, time step -(K - 1), not from step 0": of(
            lambda t, k, m: -(-(t - k + 1) // (k // m)) * (k // m)
        ),
        "that is a state that is never restarted": of(lambda t, k, m: 1 - k),
        "that is how many steps are seen: asked for is the first of them": of(lambda t, k, m: t - _first(t, k, m) + 1),
        "counted from the first padded step: time step 0 is the first real one": of(
            lambda t, k, m: _first(t, k, m) + k - 1
        ),
        "off by one, one step too early: K steps back from t, itself included, is t - K + 1": expected - 1,
        "off by one, one step too late: K steps back from t, itself included, is t - K + 1": expected + 1,
    }
    wrong = np.flatnonzero(got != expected)
    t, context, states = cases[int(wrong[0])] if len(wrong) else cases[0]
    match(got, expected, mistakes, f"the first wrong answer is for t = {t}, context = {context}, states = {states}")
    passed("each action sees K - K/m + 1 to K steps, padding included.")


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
    generator = torch.Generator().manual_seed(0)
    d, w = 3, 4
    W, old = torch.randn(d, w * d, generator=generator), torch.randn(w - 1, d, generator=generator)
    W, old = W.to(torch.get_default_dtype()), old.to(torch.get_default_dtype())
    a, h = torch.tensor([0.9, 0.5, 0.7]).to(W), torch.tensor([1.0, -2.0, 0.5]).to(W)
    state: Any = (old, h)
    for t in (5, 3, 1, 2, 4):
        x = torch.randn(t, d, generator=generator).to(W)
        state = _check_chunk(answer, x, state, W, a)
    passed("any number of tokens at a time, the outputs of one pass over all of them.")


def _first(t: int, context: int, states: int) -> int:
    spacing = context // states
    return -(-t // spacing) * spacing - context + 1


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
        require(got != wrong, hint)
    t = next(t for t in steps if got[t] != expected[t])
    require(
        False,
        f"context {context}, {states} states: at step {t} the output has seen inputs {got[t]} to {t}, {t - got[t] + 1} "
        f"of them",
    )


# A chunk at a time


def _check_chunk(answer: Callable[..., Any], x: Tensor, state: Any, W: Tensor, a: Tensor) -> Any:
    """Hold outputs and state after one chunk against a pass token by token; returns the right state."""
    (t, d), (tokens, h), w = x.shape, state, W.shape[1] // W.shape[0]
    before = [part.clone() for part in (x, tokens, h)]
    y, new = _pair(_call_chunk(answer, x, state, W, a, w), "y and the new state")
    require(torch.equal(x, before[0]), "your function changed its input x: work on a copy")
    unchanged = torch.equal(tokens, before[1]) and torch.equal(h, before[2])
    require(unchanged, "your function changed the state that it was given: return a new one instead")
    shape = tuple(getattr(y, "shape", ()))
    require(
        shape != (max(0, t - w + 1), d) or t <= w - 1,
        "the first tokens have no output: their windows begin with tokens of the state",
    )
    right = _passed_through(x, tokens, h, W, a)
    out = as_array(y, (t, d), "y")
    wrong = int(np.flatnonzero(np.abs(out - _numbers(right[0])).max(1) > 1e-4)[:1].sum())
    match(out, _numbers(right[0]), _output_mistakes(x, tokens, h, W, a), f"y differs first at token {wrong} of a chunk")
    kept, hidden = _pair(new, "tokens and h as the new state")
    _check_state(kept, hidden, right, x, tokens, h, a)
    return right[1], right[2]


def _call_chunk(answer: Callable[..., Any], x: Tensor, state: Any, W: Tensor, a: Tensor, w: int) -> Any:
    try:
        return call(answer, x, state, W, a)
    except CheckFailed as failed:
        if len(x) < w - 1:
            raise CheckFailed(f"a chunk shorter than w - 1 tokens must work, too; {failed}") from None
        raise


def _check_state(
    kept: Any, hidden: Any, right: tuple[Tensor, Tensor, Tensor], x: Tensor, tokens: Tensor, h: Tensor, a: Tensor
) -> None:
    (w1, d), t = tokens.shape, len(x)
    shape = tuple(getattr(kept, "shape", ()))
    require(shape != (w1 + 1, d), "the state keeps w tokens: w - 1 are enough")
    require(
        shape != (t, d) or t >= w1,
        "a chunk shorter than w - 1 tokens: older tokens have to stay in the state; take the last w - 1 of old and new",
    )
    require(shape != (w1 + t, d), "the state grows with every chunk: of old and new tokens keep the last w - 1")
    now = as_array(kept, (w1, d), "the state's tokens")
    mistakes = {
        "the state's tokens never change: keep the last w - 1 of old and new": tokens,
        "the state keeps outputs: the mixer looks back at its inputs": torch.cat([tokens, right[0]])[t:],
        "the state's tokens are in reverse order: oldest first": right[1].flip(0),
        "the state keeps the first tokens of the chunk: keep the last": torch.cat([tokens, x])[:w1],
    }
    match(now, _numbers(right[1]), {hint: _numbers(wrong) for hint, wrong in mistakes.items()}, "wrong tokens are kept")
    last = as_array(hidden, (d,), "h")
    states = {
        "h never changes: the new state holds the h of the chunk's last token": h,
        "h is the one of the chunk's first token: the next chunk goes on from the last": right[0][0],
        "h is emptied: the next chunk goes on from the last h": torch.zeros_like(h),
        "h has decayed once too often: hand over the h of the last token as it is": a * right[2],
    }
    match(last, _numbers(right[2]), {hint: _numbers(wrong) for hint, wrong in states.items()}, "the new h is wrong")


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


def _output_mistakes(x: Tensor, tokens: Tensor, h: Tensor, W: Tensor, a: Tensor) -> dict[str, Array]:
    right = _passed_through(x, tokens, h, W, a)[0]
    blocks = W.view(len(W), -1, len(W))  # (d, w, d)
    mixed = torch.cat([tokens, x]).unfold(0, len(tokens) + 1, 1).mT.flatten(1) @ W.T
    fast = torch.stack([mixed[: i + 1].sum(0) for i in range(len(x))])
    wrong = {
        "the mixer forgets: windows of the first tokens reach back into the state's tokens, not into zeros": (
            _passed_through(x, torch.zeros_like(tokens), h, W, a)[0]
        ),
        "h is restarted at every chunk: go on from the h of the state": (
            _passed_through(x, tokens, torch.zeros_like(h), W, a)[0]
        ),
        "both memories are empty at every chunk: go on from the state": (
            _passed_through(x, torch.zeros_like(tokens), torch.zeros_like(h), W, a)[0]
        ),
        "the windows are in reverse order: oldest token first": (
            _passed_through(x, tokens, h, blocks.flip(1).flatten(1), a)[0]
        ),
        "y is the h from before its own token: update h first": torch.cat([h[None], right[:-1]]),
        "h decays once per chunk: a acts at every token": a * h + fast,
        "the recurrence is missing: y is h, not what the mixer gives": mixed,
        "h does not decay: multiply it by a at every token": h + fast,
        "h is multiplied by a where the mixer's output belongs: h = a h + u": (
            _passed_through(x, tokens, h, torch.diag(a) @ W, a)[0]
        ),
    }
    return {hint: _numbers(y) for hint, y in wrong.items() if not close(_numbers(y), _numbers(right), 1e-4)}


def _numbers(x: Tensor) -> Array:
    return x.detach().double().numpy()
