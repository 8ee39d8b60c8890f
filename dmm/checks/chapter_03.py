"""Checks for chapter 3: the selective scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmm.checks import as_array, call, close, match, passed, require
from dmm.scan import selective_scan

Array = NDArray[np.float64]


def check_kept(answer: Callable[..., Any]) -> None:
    """`answer(delta (l,), A (n,))` must give `exp(A_n sum_{r > t} delta_r)`, shape `(l, n)`."""
    delta, A = np.array([0.1, 0.7, 0.0, 0.4, 1.1]), np.array([-1.0, -2.0, -0.5])
    result = call(answer, *(torch.tensor(numbers, dtype=torch.get_default_dtype()) for numbers in (delta, A)))
    require(tuple(getattr(result, "shape", ())) != (3, 5), "the axes are swapped: tokens first, states second")
    kept = as_array(result, (5, 3), "kept")
    later = delta.sum() - delta.cumsum()
    expected = np.exp(later[:, None] * A)
    match(
        kept,
        expected,
        {
            "off by one: a token's own delta lets it in, it does not fade it; only later tokens do": np.exp(
                (later + delta)[:, None] * A
            ),
            "that is the fading before the token: sum the deltas of the tokens after it": np.exp(
                (delta.cumsum() - delta)[:, None] * A
            ),
            "that is the fading up to the token: sum the deltas of the tokens after it": np.exp(
                delta.cumsum()[:, None] * A
            ),
            "this is only the decay of one token: multiply over all later ones": np.exp(delta[:, None] * A),
            "the exponential is missing": later[:, None] * A,
            "the sign is wrong: A is negative, shares lie between 0 and 1": 1 / expected,
        },
        "kept is not exp(A sum of later deltas)",
    )
    passed("the last token is kept whole, and each earlier one as far as the later ones let it.")


def check_chunks(answer: Callable[..., Any]) -> None:
    """`answer(u, delta, A, B, C, chunk)` must equal the scan over the whole sequence, `(b, l, e)`."""
    b, length, e, n, chunk = 2, 11, 3, 4, 4
    generator = torch.Generator().manual_seed(0)
    u, B, C = (torch.randn(b, length, size, generator=generator) for size in (e, n, n))
    delta, A = torch.rand(b, length, e, generator=generator), -1 - torch.rand(e, n, generator=generator)
    result = call(answer, u, delta, A, B, C, chunk)
    shape = tuple(getattr(result, "shape", ()))
    require(shape != (b, 8, e), "the last chunk is missing: the length need not be a multiple of the chunk")
    require(
        shape not in ((b, chunk, e), (b, 3, e)),
        "only one chunk came back: collect all of them and join them along axis 1",
    )
    require(shape[:1] + shape[2:] != (b, e) or shape[1] <= length, "off by one: the chunks overlap, y is too long")
    require(shape[:1] + shape[2:] != (b, e) or shape[1] >= length, "off by one: tokens between two chunks are left out")
    y = as_array(result, (b, length, e), "y")
    parts = [tuple(x[:, first : first + chunk] for x in (u, delta, B, C)) for first in range(0, length, chunk)]
    expected = _scan(u, delta, A, B, C).double().numpy()
    match(y, expected, _wrong_chunks(parts, A), _first_difference(y, expected, chunk))
    passed("chunks of any size give the output of the whole sequence.")


def check_adjoint(answer: Callable[..., Any]) -> None:
    """`answer(a (b, l, n), dh (b, l, n))` must give `g_t = dh_t + a_{t+1} g_{t+1}`."""
    generator = torch.Generator().manual_seed(0)
    a, dh = torch.rand(2, 6, 3, generator=generator), torch.randn(2, 6, 3, generator=generator)
    g = as_array(call(answer, a, dh), (2, 6, 3), "g")
    forward, backward = a.double().numpy(), dh.double().numpy()
    expected = _reversed(forward, backward, shift=1)
    # these two leave open what fills the gap at the end of the shifted a, so the token that it meets is not compared
    earlier, later = np.roll(forward, 1, axis=1), np.roll(forward, -1, axis=1)
    wrong_way = _reversed(earlier, backward, shift=0)
    require(
        not close(g[:, 1:], wrong_way[:, 1:], 1e-4), "a is shifted the wrong way: token t needs a_(t+1), not a_(t-1)"
    )
    require(
        not close(g[:, :-1], _forward(later, backward)[:, :-1], 1e-4),
        "a is shifted, but the scan still runs from first to last: flip a and dh, and flip the result back",
    )
    match(
        g,
        expected,
        {
            "off by one: g_t is multiplied by a of the next token, a_(t+1), not a_t": _reversed(
                forward, backward, shift=0
            ),
            "that runs from the first token to the last; gradients flow from the last to the first": _forward(
                forward, backward
            ),
            "the result is in reverse order: flip it back": expected[:, ::-1],
            "g is dh itself: nothing flowed back from later tokens": backward,
            "off by one: a is shifted by one token too many": _reversed(forward, backward, shift=2),
        },
        "g_t is not dh_t + a_(t+1) g_(t+1)",
    )
    passed("the gradient of a scan is a scan in reverse time.")


def _wrong_chunks(parts: list[tuple[torch.Tensor, ...]], A: torch.Tensor) -> dict[str, Array]:
    """What the usual mistakes make of the chunks `(u, delta, B, C)`."""

    def scan(order: list[int], keep: Callable[[int], bool]) -> dict[int, Array]:
        """Outputs of the chunks, scanned in this order; the state is replaced after those that `keep` names."""
        state, outputs = None, {}
        for i in order:
            u, delta, B, C = parts[i]
            y, last = selective_scan(u, delta, A, B, C, initial_state=state, return_last_state=True)
            state, outputs[i] = (last if keep(i) else state), y.double().numpy()
        return outputs

    def join(outputs: dict[int, Array]) -> Array:
        return np.concatenate([outputs[i] for i in range(len(parts))], 1)

    order = list(range(len(parts)))
    right = scan(order, lambda i: True)
    return {
        "the state restarts at zero in each chunk: pass the last state on as initial_state": join(
            scan(order, lambda i: False)
        ),
        "every later chunk starts from the state after the first one: keep the newest state": join(
            scan(order, lambda i: i == 0)
        ),
        "a leak of the future: the chunks are scanned from the last to the first": join(
            scan(order[::-1], lambda i: True)
        ),
        "the chunks are joined in reverse order": np.concatenate([right[i] for i in order[::-1]], 1),
    }


def _scan(u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    y = selective_scan(u, delta, A, B, C)
    assert isinstance(y, torch.Tensor)
    return y


def _first_difference(got: Array, expected: Array, chunk: int) -> str:
    wrong = np.flatnonzero(np.abs(got - expected).max((0, 2)) > 1e-4)
    token = int(wrong[0]) if len(wrong) else 0
    return f"y differs first at token {token}, which is token {token % chunk} of chunk {token // chunk}"


def _forward(a: Array, x: Array) -> Array:
    g, rows = np.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        g = x[:, t] + a[:, t] * g
        rows.append(g)
    return np.stack(rows, 1)


def _reversed(a: Array, x: Array, shift: int) -> Array:
    """`g_t = x_t + a_{t+shift} g_{t+1}`, from the last token to the first; `a` is 0 beyond the end."""
    later = np.concatenate([a[:, shift:], np.zeros_like(a[:, :shift])], 1)
    return _forward(later[:, ::-1], x[:, ::-1])[:, ::-1]
