"""Checks for chapter 14: from loop to kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmm.checks import as_array, call, close, match, passed, require

Array = NDArray[np.float64]


def check_intensity(answer: Callable[..., Any]) -> None:
    """`answer(b, l, e, n, size)` must give `7 b l e n` operations over the bytes of all inputs and the output."""
    b, length, e, n, size = 2, 24, 8, 4, 8
    result = as_array(call(answer, b, length, e, n, size), (), "intensity")
    work, sequence, matrix, rates = 7 * b * length * e * n, b * length * e, b * length * n, e * n
    numbers = 3 * sequence + 2 * matrix + rates
    expected = work / (size * numbers)
    mistakes = {
        "that is bytes per operation: divide the operations by the bytes": 1 / expected,
        "that is operations per number: each number has size bytes": work / numbers,
        "that is operations per bit: size is in bytes": expected / 8,
        "size is given: these numbers have 8 bytes, not 4": 2 * expected,
        "the output y moves, too: it is written once": work / (size * (numbers - sequence)),
        "A is read, too": work / (size * (numbers - rates)),
        "B and C are two tensors": work / (size * (numbers - matrix)),
        "u and delta are two tensors, and y is a third": work / (size * (numbers - 2 * sequence)),
        "there is no gate here: z does not move": work / (size * (numbers + sequence)),
        "a fused scan does not move its states": work / (size * (numbers + sequence * n)),
        "a fused scan does not move its states, neither out nor in": work / (size * (numbers + 2 * sequence * n)),
        "every channel has n states: the operations are 7 for each state": expected / n,
        "7 operations for each state, not one": expected / 7,
        "that is the number of operations: divide it by the bytes": float(work),
    }
    match(
        result,
        np.array(expected),
        {hint: np.array(value) for hint, value in mistakes.items()},
        f"for b, l, e, n, size = {b}, {length}, {e}, {n}, {size} it should be {expected:.4f}, got {float(result):.4f}",
    )
    passed("each number that moves serves several operations, and the more states, the more.")


def check_starts(answer: Callable[..., Any]) -> None:
    """`answer(a (l, m), x (l, m), chunk)` must give the last state `(m,)` and those before each chunk `(chunks, m)`."""
    length, m, chunk = 10, 5, 4
    generator = torch.Generator().manual_seed(0)
    a, x = torch.rand(length, m, generator=generator), torch.randn(length, m, generator=generator)
    last, starts = _parts(call(answer, a, x, chunk), 2, "last, starts")
    shape = tuple(getattr(starts, "shape", ()))
    require(
        not (shape == (m,) and tuple(getattr(last, "shape", ())) == (3, m)),
        "the two are swapped: first the last state, then the starts",
    )
    require(shape != (2, m), "the last chunk is shorter, but it has a start, too")
    require(shape != (length, m), "a state is kept for every token: keep one for each chunk")
    require(shape != (chunk, m), "chunk is the number of tokens in a chunk, not the number of chunks")
    require(shape != (m, 3), "the axes are swapped: chunks first")
    kept, end = as_array(starts, (3, m), "starts"), as_array(last, (m,), "last")
    states = _states(a.double().numpy(), x.double().numpy(), np.zeros(m))  # before each token, and after the last
    _match_starts(kept, a.double().numpy(), x.double().numpy(), chunk, states)
    match(
        end,
        states[-1],
        {
            "last is the state before the last chunk: go on to the end of the sequence": states[8],
            "last is the state before the last token": states[-2],
            "last is the state after the last full chunk's first token": states[5],
        },
        "last is not the state after the last token",
    )
    passed("one state in four is kept, and the last one is that of the whole scan.")


def _match_starts(kept: Array, a: Array, x: Array, chunk: int, states: Array) -> None:
    length = len(x)
    places = np.arange(0, length, chunk)
    require(
        not (close(kept[0], kept[-1]) and kept.any()),
        "all kept states are one tensor that was changed later: keep a copy, or make a new h for each token",
    )
    alone = [_states(a[p : p + chunk], x[p : p + chunk], np.zeros_like(x[0])) for p in places]
    inside, h = [np.zeros_like(x[0])], np.zeros_like(x[0])
    for t in range(length):
        h = a[t] * (h + x[t])
        inside.append(h)
    match(
        kept,
        states[places],
        {
            "off by one: these are the states after the first token of each chunk": states[places + 1],
            "off by one: these are the states before the last token of each chunk": states[
                np.minimum(places + chunk, length) - 1
            ],
            "these are the states after each chunk: keep the one before it": states[np.minimum(places + chunk, length)],
            "the state restarts at zero in each chunk: it goes on": np.stack(
                [np.zeros_like(x[0]), *(s[-1] for s in alone[:-1])]
            ),
            "all starts are zero: the state goes on from chunk to chunk": np.zeros_like(kept),
            "the decay takes what was there before the token, not the token's own x": np.stack(inside)[places],
            "the chunks are in reverse order": states[places][::-1],
        },
        "starts are not the states before tokens 0, chunk, 2 chunk, ...",
    )


def check_chunk(answer: Callable[..., Any]) -> None:
    """`answer(a, x, start, dh, g)` must give the gradients of `a` and `x` `(t, m)`, and what reaches `start` `(m,)`."""
    size, m = 6, 3
    generator = torch.Generator().manual_seed(0)
    a, x, dh = torch.rand(size, m, generator=generator), *torch.randn(2, size, m, generator=generator)
    start, g = torch.randn(2, m, generator=generator)
    found = _parts(call(answer, a, x, start, dh, g), 3, "da, dx, g")
    require(
        tuple(getattr(found[0], "shape", ())) != (m,), "the order is da, dx, g: the gradients first, then what is left"
    )
    da, dx = (as_array(part, (size, m), name) for part, name in zip(found, ("da", "dx"), strict=False))
    left = as_array(found[2], (m,), "g")
    numbers = [tensor.double().numpy() for tensor in (a, x, start, dh, g)]
    right = _adjoint(*numbers)
    require(not (close(da, right["dx"], 1e-4) and close(dx, right["da"], 1e-4)), "da and dx are swapped")
    _match_dx(dx, right["dx"], *numbers)
    _match_da(da, right, numbers)
    first = numbers[0][0]
    match(
        left,
        right["g"],
        {
            "the decay of the first token is missing: g_0 passes through a_0 to reach start": right["dx"][0],
            "that is what came in from the chunk behind, not what goes out": numbers[4],
            "the decay of the first token is there twice": first * right["g"],
            "that is what reaches the chunk's second token: go on to the first": right["dx"][1] * numbers[0][1],
        },
        "g is not a_0 times the adjoint of the chunk's first token",
    )
    passed("the states are computed again, and the adjoint goes on to the chunk before.")


def _match_dx(dx: Array, expected: Array, a: Array, x: Array, start: Array, dh: Array, g: Array) -> None:
    nothing = np.zeros_like(g)
    match(
        dx,
        expected,
        {
            "g from the chunk behind is not used: it reaches the last token's state": _adjoint(
                a, x, start, dh, nothing
            )["dx"],
            "dh is not used: each state is blamed for its own output, too": _adjoint(a, x, start, 0 * dh, g)["dx"],
            "g is there already with its decay: do not multiply it by the last token's a again": _adjoint(
                a, x, start, dh, a[-1] * g
            )["dx"],
            "off by one: the adjoint passes from token t + 1 to t through a_(t+1), not a_t": _off_by_one(a, dh, g),
            "x enters a state as it is: dx is the adjoint, without a": a * expected,
            "that runs from the first token to the last; gradients flow from the last to the first": _forward_adjoint(
                a, dh, g
            ),
            "dx is in reverse order: flip it back": expected[::-1],
            "dx is dh itself: nothing flowed back from later tokens": dh,
            "dx is what passes on to the token before: take it before the decay": a * expected,
        },
        "dx_t is not dh_t + a_(t+1) dx_(t+1), with dh + g at the last token",
    )


def _match_da(da: Array, right: dict[str, Array], numbers: list[Array]) -> None:
    a, x, start, *_ = numbers
    states, g = _states(a, x, start), right["dx"]
    from_zero = _states(a, x, np.zeros_like(start))
    match(
        da,
        right["da"],
        {
            "off by one: a_t multiplies the state before token t, not the one after it": g * states[1:],
            "the states begin at zero: begin at start": g * from_zero[:-1],
            "off by one, and the states begin at zero instead of start": g * from_zero[1:],
            "da_0 needs the state before the first token, which is start": g
            * np.concatenate([0 * states[:1], states[1:-1]]),
            "da is in reverse order: flip it back": right["da"][::-1],
            "that has the decay in it: da_t is the adjoint of h_t times the state before": a * right["da"],
            "these are the states themselves: multiply them by the adjoint": states[:-1],
            "that is the adjoint times x: da_t needs the state before token t": g * x,
        },
        "da_t is not the adjoint of h_t times h_(t-1)",
    )


def _parts(result: Any, count: int, names: str) -> Any:
    require(isinstance(result, tuple | list) and len(result) == count, f"return {count} things: {names}")
    require(all(part is not None for part in result), f"return {count} things: {names}; one of them is None")
    return result


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
