"""Checks for chapter 15: acting in constant time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import CheckFailed, call, numbers, require
from dmm.checks.cases import normal
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A recurrence: input and state to output and state."""


def check_first_seen(answer: Callable[..., Any]) -> None:
    """`answer(t, context, states)` must give the first time step that a staggered action at `t` sees."""
    _FIRST_SEEN(answer)


def check_staggered(answer: Callable[..., Any]) -> None:
    """`answer(step, start, context, states)` must make an object whose `act(x)` gives the oldest state's output."""

    @functools.wraps(answer, updated=())
    def outputs(step: Step, start: Tensor, context: int, states: int, inputs: Tensor) -> list[Any]:
        actor, other = (call(answer, step, start, context, states) for _ in range(2))
        require(hasattr(actor, "act"), "there is no method act(self, x)")
        found = []
        for x in inputs:
            found.append(_one_output(call(actor.act, x)))
            call(other.act, x + OTHERS)  # a second one between the steps of the first
        return found

    _STAGGERED(outputs if callable(answer) else answer)


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


OTHERS = 0.5**7
"""What the inputs of a second actor have more; so little that all of it is less than 1, and that it can be told."""


@dataclass(frozen=True)
class _Recurrence:
    """`h = a h + B x`, `y = C h`: of d inputs, n states and e outputs, which fades slowly."""

    a: Tensor
    B: Tensor
    C: Tensor

    def __call__(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a * h + self.B @ x
        return self.C @ h, h


@dataclass
class _Counted:
    """A recurrence that counts its steps."""

    step: Step
    taken: int = 0

    def __call__(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        self.taken += 1
        return self.step(x, h)


def _recurrences() -> list[Case]:
    """Also a context that is one state's, a state for each step, fewer inputs than a restart takes, and d = n = e."""
    cases = []
    sizes = [(8, 4, 25, 2, 3, 5), (6, 3, 19, 1, 4, 2), (5, 1, 17, 3, 2, 1), (4, 4, 13, 4, 5, 3), (6, 2, 20, 3, 3, 3)]
    for seed, (context, states, inputs, d, n, e) in enumerate([*sizes, (15, 3, 4, 5, 2, 4)]):
        raw, B, C, start, x = normal(seed, (n,), (n, d), (e, n), (n,), (inputs, d))
        cases.append((_Recurrence(0.8 + 0.2 * raw.sigmoid(), B, C), start, context, states, x))
    return cases


def _oldest(t: int, context: int, states: int) -> int:
    """The first input that the oldest state has seen at step t, where nothing is padded."""
    spacing = context // states
    return max(0, -(-(t - context + 1) // spacing) * spacing)


def _passes(
    begin: Callable[[int, int, int], int],
    output: Callable[[Tensor, Tensor], Tensor] = lambda y, h: y,
    initial: Callable[[Tensor], Tensor] = lambda start: start,
) -> Callable[..., list[Tensor]]:
    """At each step a pass over the inputs from `begin(t, context, states)` on, and what is told of its last."""

    def outputs(step: Step, start: Tensor, context: int, states: int, inputs: Tensor) -> list[Tensor]:
        found = []
        for t in range(len(inputs)):
            y, h = start, initial(start)
            for x in inputs[begin(t, context, states) : t + 1]:
                y, h = step(x, h)
            found.append(output(y, h))
        return found

    return outputs


def _late(t: int, context: int, states: int) -> int:
    """States that begin with the input behind the one at which they should."""
    spacing = context // states
    restarts = (t - 1) // spacing - states + 1
    return spacing * restarts + 1 if restarts > 0 else 0


def _restarted_each(spacing: Callable[[int, int], int]) -> Callable[..., list[Tensor]]:
    """One state, or all of them, forget everything every `spacing(context, states)` steps."""
    return _passes(lambda t, k, m: t // spacing(k, m) * spacing(k, m))


def _averaged(step: Step, start: Tensor, context: int, states: int, inputs: Tensor) -> list[Tensor]:
    """The mean over all states that are held."""
    spacing, each = context // states, []
    for age in range(states):
        of_age = _passes(lambda t, k, m, age=age: max(0, t // (k // m) - age) * (k // m))  # type: ignore[misc]
        each.append(of_age(step, start, context, states, inputs))
    held = [min(states, t // spacing + 1) for t in range(len(inputs))]
    return [torch.stack([each[age][t] for age in range(n)]).mean(0) for t, n in enumerate(held)]


def _one_output(y: Any) -> Any:
    if isinstance(y, tuple | list) and y and all(isinstance(part, Tensor) for part in y) and y[0].ndim:
        alike = len({part.shape for part in y}) == 1
        require(alike, "act returns more than one thing: the output y is enough, the states stay inside")
        require(False, "act returns the outputs of all states: asked for is the one of the oldest state alone")
    return y


def _told_apart(outputs: Callable[..., Any], case: Case) -> str:
    """Which inputs a wrong actor's outputs have seen, found with a recurrence that adds up and inputs that tell."""
    _, _, context, states, inputs = case
    context, states = (context, states) if len(inputs) <= MOST else (6, 3)
    powers = torch.tensor([4.0**t for t in range(min(len(inputs), MOST))], dtype=torch.float64)
    try:
        sums = outputs(lambda x, h: (h + x, h + x), torch.zeros((), dtype=torch.float64), context, states, powers)
        totals = [float(numbers(each)) for each in sums]
    except (CheckFailed, TypeError) as failed:
        return "" if failed.__cause__ or isinstance(failed, TypeError) else str(failed)
    for t, total in enumerate(totals):
        if total != math.floor(total):
            return "two actors share their states: make the states in __init__ as self.something, not in the class"
        times = [int(total) // 4**i % 4 for i in range(len(totals))]
        noticed = _noticed(times, t)
        if noticed:
            return noticed
        seen, right = times.index(1), _oldest(t, context, states)
        if seen != right:
            return (
                f"context {context}, {states} states: at step {t} the output has seen inputs {seen} to {t}, "
                f"{t - seen + 1} of them, not {right} to {t}"
            )
    return ""


MOST = 20
"""Inputs of which a float can say, and of the second actor's share beside them, how often each was taken in."""


def _noticed(times: list[int], t: int) -> str:
    """What is wrong about how often each input was taken in by the output of step `t`."""
    if not times[t]:
        return f"step {t}: the output has not seen the input of its own step"
    if max(times) > 1:
        return "an input was taken in twice: every state takes one step per input"
    if 0 in times[times.index(1) : t + 1]:
        return "a state has missed inputs: all states take in every input, not only the one that acts"
    return ""


def _require_few_steps(outputs: Callable[..., Any]) -> None:
    """Whether as many states are held as there may be: an actor that steps more of them costs more."""
    for recurrence, start, context, states, inputs in _recurrences():
        counted, long = _Counted(recurrence), torch.ones(10 * context, inputs.shape[1]).to(inputs)
        outputs(counted, start, context, states, long)
        each = counted.taken / 2 / len(long)  # of two actors
        require(
            each <= states,
            f"the outputs are right, but with a context of {context} and {states} states an action takes {each:.1f} "
            f"steps, and {states} are enough: hold no more states than that",
        )


_STAGGERED = Check(
    reference=_passes(_oldest),
    cases=_recurrences,
    mistakes={
        "no state is ever restarted: one of them begins anew every K / m steps": _passes(lambda t, k, m: 0),
        "no action has seen more than K / m inputs: the newest state acts, or all states are restarted at once; "
        "restart one at a time, in turn, and act with the oldest": _restarted_each(lambda k, m: k // m),
        "everything is forgotten every K steps: the same state acts at every step, or all are restarted together; "
        "restart them K / m apart and act with the oldest": _restarted_each(lambda k, m: k),
        "restarted too late: a state that begins anew at a step takes in the input of this very step": _passes(_late),
        "that is the window of the last K inputs: it would take K states": _passes(lambda t, k, m: max(0, t - k + 1)),
        "the spacing between restarts is K / m; yours is m": _passes(lambda t, k, m: max(0, -(-(t - k + 1) // m) * m)),
        "the oldest state has seen too much: of m + 1 states the oldest has to go before it acts again": _passes(
            lambda t, k, m: max(0, t // (k // m) - m) * (k // m)
        ),
        "only the state that acts takes in inputs: the others must, too, or they know nothing when their turn comes": (
            _passes(lambda t, k, m: 0 if t < k else t // (k // m) * (k // m))
        ),
        "context and states are hard-coded as 8 and 4: take those that are given": _passes(
            lambda t, k, m: _oldest(t, 8, 4)
        ),
        "states begin at zero: each begins, and begins anew, from the start that is given": _passes(
            _oldest, initial=torch.zeros_like
        ),
        "act returns the state: asked for is the output y, the first of what step returns": _passes(
            _oldest, output=lambda y, h: h
        ),
        "the outputs of all states are averaged: asked for is the one of the oldest state alone": _averaged,
    },
    parts=("the outputs",),
    praise="every action is a pass over the last K - K/m + 1 to K inputs, and every state takes in every input.",
    otherwise="the outputs are not those of the oldest state",
    probe=_told_apart,
    also=_require_few_steps,
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


def _recurred(mixed: Tensor, h: Tensor, a: Tensor) -> Tensor:
    """The recurrence over what the mixer gives."""
    outputs = []
    for u in mixed:
        h = a * h + u
        outputs.append(h)
    return torch.stack(outputs)


def _chunks() -> list[Case]:
    """Chunks longer and shorter than the window, from states that are not zero; also windows of one and two tokens."""
    cases = []
    for seed, (t, d, w) in enumerate([(5, 3, 4), (3, 3, 4), (1, 2, 4), (2, 4, 6), (4, 5, 2), (7, 2, 3), (3, 2, 1)]):
        x, tokens, W, h, raw = normal(seed, (t, d), (w - 1, d), (d, w * d), (d,), (d,))
        cases.append((x, (tokens, h), W, raw.sigmoid()))
    return cases


def _right_chunk(x: Tensor, state: tuple[Tensor, Tensor], W: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _passed_through(x, *state, W, a)


def _chunk_mistakes(x: Tensor, state: tuple[Tensor, Tensor], W: Tensor, a: Tensor) -> dict[str, Any]:
    (tokens, h), w, t = state, len(state[0]) + 1, len(x)
    y, kept, last = _passed_through(x, tokens, h, W, a)
    blocks, nothing = W.view(len(W), -1, len(W)), torch.zeros_like(h)
    seen = torch.cat([tokens, x])
    windows = seen.unfold(0, w, 1).mT
    mixed = windows.flatten(1) @ W.T
    summed = mixed.cumsum(0)
    from_here = _passed_through(x, torch.zeros_like(tokens), h, W, a)
    wrong_y = {
        "the first tokens have no output: their windows begin with tokens of the state": y[w - 1 :],
        "the windows are in reverse order: oldest token first": (
            _passed_through(x, tokens, h, blocks.flip(1).flatten(1), a)[0]
        ),
        "channel for token: a window is flattened token by token, each with all its channels": (
            _recurred(windows.mT.flatten(1) @ W.T, h, a)
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
        "the new state is in the wrong order: first the tokens, then h": (y, last, kept),
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
