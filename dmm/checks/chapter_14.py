"""Checks for chapter 14: from loop to kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks.cases import normal, plain
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]


def check_intensity(answer: Callable[..., Any]) -> None:
    """`answer(b, l, e, n, size)` must give `7 b l e n` operations over the bytes of all inputs and the output."""
    _INTENSITY(answer)


def check_starts(answer: Callable[..., Any]) -> None:
    """`answer(a (l, m), x (l, m), chunk)` must give the last state `(m,)` and those before each chunk `(chunks, m)`."""
    _STARTS(answer)


def check_chunk(answer: Callable[..., Any]) -> None:
    """`answer(a, x, start, dh, g)` must give the gradients of `a` and `x` `(t, m)`, and what reaches `start` `(m,)`."""
    _CHUNK(answer)


# Operations per byte


def _sizes() -> list[Case]:
    return [(2, 24, 8, 4, 8), (64, 24, 64, 16, 4), (3, 5, 7, 2, 2), (1, 11, 3, 13, 4), (5, 1, 2, 9, 1)]


def _intensity(b: int, l: int, e: int, n: int, size: int) -> float:  # noqa: E741 the page's names
    return 7 * b * l * e * n / (size * (3 * b * l * e + 2 * b * l * n + e * n))


def _wrong_intensities(b: int, length: int, e: int, n: int, size: int) -> dict[str, float]:
    work, sequence, matrix, rates = 7 * b * length * e * n, b * length * e, b * length * n, e * n
    moved, right = 3 * sequence + 2 * matrix + rates, _intensity(b, length, e, n, size)
    return {
        "that is bytes per operation: divide the operations by the bytes": 1 / right,
        "that is operations per number: each number has size bytes": work / moved,
        "that is operations per bit: size is in bytes": right / 8,
        "size is given: numbers have not always 4 bytes": work / (4 * moved),
        "size is given: numbers have not always 8 bytes": work / (8 * moved),
        "the output y moves, too: it is written once": work / (size * (moved - sequence)),
        "A is read, too": work / (size * (moved - rates)),
        "A is read once, not for each sequence of the batch": work / (size * (moved + (b - 1) * rates)),
        "A is read once, not for each token": work / (size * (moved + (b * length - 1) * rates)),
        "B and C are two tensors": work / (size * (moved - matrix)),
        "u and delta are two tensors, and y is a third": work / (size * (moved - 2 * sequence)),
        "there is no gate here: z does not move": work / (size * (moved + sequence)),
        "a fused scan does not move its states": work / (size * (moved + sequence * n)),
        "a fused scan does not move its states, neither out nor in": work / (size * (moved + 2 * sequence * n)),
        "B and C have no axis of channels": work / (size * (3 * sequence + 2 * sequence * n + rates)),
        "every channel has n states: the operations are 7 for each state": right / n,
        "7 operations for each state, not one": right / 7,
        "that is the number of operations: divide it by the bytes": float(work),
    }


_INTENSITY = Check(
    reference=_intensity,
    cases=_sizes,
    mistakes=_wrong_intensities,
    parts=("the intensity",),
    praise="each number that moves serves several operations, and the more states, the more.",
    otherwise="it should be 7 operations for each state over the bytes of u, delta, A, B, C and y",
    tolerance=1e-6,
)


# States before the chunks


def _scans() -> list[Case]:
    """Also with chunks that fit, a chunk longer than the sequence, and chunks of one token; also factors below 0."""
    cases = []
    for seed, (length, m, chunk) in enumerate([(10, 5, 4), (6, 2, 3), (7, 3, 9), (5, 1, 1), (11, 4, 2)]):
        a, x = normal(seed, (length, m), (length, m))
        cases.append((a.sigmoid() if seed % 2 == 0 else a, x, chunk))
    return cases


def _keeping(a: Tensor, x: Tensor, chunk: int) -> tuple[Array, Array]:
    states = _states(plain(a), plain(x), np.zeros(x.shape[1]))
    return states[-1], states[np.arange(0, len(x), chunk)]


def _keeping_mistakes(a_given: Tensor, x_given: Tensor, chunk: int) -> dict[str, Any]:
    a, x = plain(a_given), plain(x_given)
    nothing, length = np.zeros_like(x[0]), len(x)
    states, places = _states(a, x, nothing), np.arange(0, length, chunk)
    last, starts = states[-1], states[places]
    alone = [_states(a[p : p + chunk], x[p : p + chunk], nothing) for p in places]
    inside = [nothing]
    for decay, drive in zip(a, x, strict=True):
        inside.append(decay * (inside[-1] + drive))
    behind = np.minimum(places + chunk, length)
    by_number = states[np.arange(0, length, max(1, -(-length // chunk)))]
    wrong_starts = {
        "off by one: these are the states after the first token of each chunk": states[places + 1],
        "off by one: these are the states before the last token of each chunk": states[behind - 1],
        "these are the states after each chunk: keep the one before it": states[behind],
        "all starts are zero: the state goes on from chunk to chunk": np.zeros_like(starts),
        "the chunks are in reverse order": starts[::-1],
        "the last chunk is shorter, but it has a start, too": starts[: length // chunk],
        "a state is kept for every token: keep one for each chunk": states[:-1],
        "chunk is the number of tokens in a chunk, not the number of chunks": by_number,
        "the axes are swapped: chunks first": starts.T,
        "the first start is missing: it is zero, the state before any token": starts[1:],
        "all kept states are one tensor that was changed later: keep a copy, or make a new h for each token": (
            np.repeat(last[None], len(starts), axis=0)
        ),
    }
    return {
        "the state restarts at zero in each chunk: it goes on": (
            alone[-1][-1],
            np.stack([nothing, *(each[-1] for each in alone[:-1])]),
        ),
        "the state restarts at zero in each chunk, and so do the starts: it goes on": (
            alone[-1][-1],
            np.zeros_like(starts),
        ),
        "the decay takes what was there before the token, not the token's own x": (
            inside[-1],
            np.stack(inside)[places],
        ),
        "the two are swapped: first the last state, then the starts": (starts, last),
        **{hint: (last, wrong) for hint, wrong in wrong_starts.items()},
        "last is the state before the last chunk: go on to the end of the sequence": (starts[-1], starts),
        "last is the state before the last token": (states[-2], starts),
        "last is the last token's x alone": (x[-1], starts),
    }


_STARTS = Check(
    reference=_keeping,
    cases=_scans,
    mistakes=_keeping_mistakes,
    parts=("last", "starts"),
    praise="one state is kept for each chunk, and the last one is that of the whole scan.",
    otherwise="last is the state after the last token, starts are those before tokens 0, chunk, 2 chunk, ...",
)


# One chunk backwards


def _chunks() -> list[Case]:
    cases = []
    for seed, (size, m) in enumerate([(6, 3), (1, 4), (5, 2), (2, 7), (8, 1)]):
        a, x, dh, start, g = normal(seed, *[(size, m)] * 3, (m,), (m,))
        cases.append((a.sigmoid() if seed % 2 == 0 else a, x, start, dh, g))
    return cases


def _backwards(a: Tensor, x: Tensor, start: Tensor, dh: Tensor, g: Tensor) -> tuple[Array, Array, Array]:
    found = _adjoint(*map(plain, (a, x, start, dh, g)))
    return found["da"], found["dx"], found["g"]


def _backwards_mistakes(*given: Tensor) -> dict[str, Any]:
    a, x, start, dh, g = map(plain, given)
    right, states = _adjoint(a, x, start, dh, g), _states(a, x, start)
    da, dx, left = right["da"], right["dx"], right["g"]
    from_zero, nothing = _states(a, x, np.zeros_like(start)), np.zeros_like(g)

    def whole(**changes: Array) -> tuple[Array, Array, Array]:
        found = _adjoint(**({"a": a, "x": x, "start": start, "dh": dh, "g": g} | changes))
        return found["da"], found["dx"], found["g"]

    wrong_da = {
        "off by one: a_t multiplies the state before token t, not the one after it": dx * states[1:],
        "the states begin at zero: begin at start": dx * from_zero[:-1],
        "off by one, and the states begin at zero instead of start": dx * from_zero[1:],
        "da_0 needs the state before the first token, which is start": dx
        * np.concatenate([0 * states[:1], states[1:-1]]),
        "da is in reverse order: flip it back": da[::-1],
        "that has the decay in it: da_t is the adjoint of h_t times the state before": a * da,
        "these are the states themselves: multiply them by the adjoint": states[:-1],
        "that is the adjoint times x: da_t needs the state before token t": dx * x,
    }
    wrong_dx = {
        "x enters a state as it is: dx is the adjoint, without a": a * dx,
        "dx is in reverse order: flip it back": dx[::-1],
        "dx is dh itself: nothing flowed back from later tokens": dh,
    }
    wrong_g = {
        "the decay of the first token is missing: g_0 passes through a_0 to reach start": dx[0],
        "that is what came in from the chunk behind, not what goes out": g,
        "the decay of the first token is there twice": a[0] * left,
        "nothing is handed on: the chunk before needs what reaches start": nothing,
    }
    off, forward = _off_by_one(a, dh, g), _forward_adjoint(a, dh, g)
    return {
        "da and dx are swapped": (dx, da, left),
        "the order is da, dx, g: the gradients first, then what is left": (left, dx, da),
        "g from the chunk behind is not used: it reaches the last token's state": whole(g=nothing),
        "dh is not used: each state is blamed for its own output, too": whole(dh=0 * dh),
        "g is there already with its decay: do not multiply it by the last token's a again": whole(g=a[-1] * g),
        "off by one: the adjoint passes from token t + 1 to t through a_(t+1), not a_t": (
            off * states[:-1],
            off,
            off[0],
        ),
        "that runs from the first token to the last; gradients flow from the last to the first": (
            forward * states[:-1],
            forward,
            a[-1] * forward[-1],
        ),
        **{hint: (wrong, dx, left) for hint, wrong in wrong_da.items()},
        **{hint: (da, wrong, left) for hint, wrong in wrong_dx.items()},
        **{hint: (da, dx, wrong) for hint, wrong in wrong_g.items()},
    }


_CHUNK = Check(
    reference=_backwards,
    cases=_chunks,
    mistakes=_backwards_mistakes,
    parts=("da", "dx", "g"),
    praise="the states are computed again, and the adjoint goes on to the chunk before.",
    otherwise="with the adjoint g_t = dh_t + a_(t+1) g_(t+1): dx_t = g_t, da_t = g_t h_(t-1), and a_0 g_0 goes on",
)


def _states(a: Array, x: Array, start: Array) -> Array:
    """The state before each token and after the last, `(l + 1, m)`."""
    states = [start]
    for decay, drive in zip(a, x, strict=True):
        states.append(decay * states[-1] + drive)
    return np.stack(states)


def _adjoint(a: Array, x: Array, start: Array, dh: Array, g: Array) -> dict[str, Array]:
    before, dx = _states(a, x, start)[:-1], np.zeros_like(x)
    for t in reversed(range(len(a))):
        dx[t] = dh[t] + g
        g = a[t] * dx[t]
    return {"da": dx * before, "dx": dx, "g": g}


def _off_by_one(a: Array, dh: Array, g: Array) -> Array:
    dx = np.zeros_like(dh)
    for t in reversed(range(len(a))):
        dx[t] = g = dh[t] + (g if t == len(a) - 1 else a[t] * g)
    return dx


def _forward_adjoint(a: Array, dh: Array, g: Array) -> Array:
    dx = np.zeros_like(dh)
    for t in range(len(a)):
        dx[t] = dh[t] + g
        g = a[t] * dx[t]
    return dx
