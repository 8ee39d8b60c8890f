"""Checks for chapter 3: the selective scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import mistaken, require
from dmm.checks.calls import Calls
from dmm.checks.cases import normal, plain, tensor
from dmm.checks.check import Case, Check
from dmm.scan import parallel_scan, selective_scan

Array = NDArray[np.float64]


def check_kept(answer: Callable[..., Any]) -> None:
    """`answer(delta (l,), A (n,))` must give `exp(A_n sum_{s < r <= t} delta_r)` for s <= t, else 0: `(l, l, n)`."""
    _KEPT(answer)


def check_chunks(answer: Callable[..., Any]) -> None:
    """`answer(u, delta, A, B, C, chunk)` must equal the scan of the whole sequence, `(b, l, e)`, made in chunks."""
    _CHUNKS(answer)


def check_adjoint(answer: Callable[..., Any]) -> None:
    """`answer(a (b, l, n), dh (b, l, n))` must give `g_t = dh_t + a_{t+1} g_{t+1}`, by `parallel_scan`."""
    _ADJOINT(answer)


# What is kept


def _steps() -> list[Case]:
    draw = np.random.default_rng(3)
    cases = [
        ([0.1, 0.7, 0.0, 0.4, 1.1], [-1.0, -2.0, -0.5]),
        (np.exp(draw.normal(size=7)), -np.exp(draw.normal(size=2))),
        ([0.3], [-1.0, -4.0]),
        (np.full(6, 1000.0), [-1.0]),  # little of this is left: 0 for a computer, and one over it is infinite
    ]
    return [tuple(map(tensor, case)) for case in cases]


def _kept(delta: Tensor, A: Tensor, own: int = 0) -> Array:
    """For each token t and each one s before it: the decay by `delta` of tokens s + 1 - own to t."""
    summed = np.append(0.0, plain(delta).cumsum())  # of all before token t
    between = np.minimum(
        0, summed[None, 1 - own : len(summed) - own] - summed[1:, None]
    )  # (t, s), 0 above the diagonal
    earlier = np.tril(np.ones((len(delta), len(delta))))
    return np.asarray(earlier[..., None] * np.exp(-between[..., None] * plain(A)))


def _kept_mistakes(delta: Tensor, A: Tensor) -> dict[str, Array]:
    right, rates, step = _kept(delta, A), plain(A), plain(delta)
    earlier, summed = np.tril(np.ones((len(step), len(step))))[..., None], step.cumsum()
    between = (summed[:, None] - summed)[..., None]  # (t, s, 1), negative where s is the later one

    def masked(shares: Array) -> Array:
        return np.where(earlier > 0, shares, 0.0)

    with np.errstate(all="ignore"):
        everywhere, fading = np.exp(between * rates), np.exp(summed[:, None] * rates)
        quotient, product, growing = (
            masked(fading[:, None] / fading),
            earlier * everywhere,
            masked(np.exp(-between * rates)),
        )
    return {
        "the first two axes are swapped: first the token after which it is asked, then the one that is left": (
            right.swapaxes(0, 1)
        ),
        "the axes are swapped: both tokens first, states last": np.moveaxis(right, -1, 0),
        "off by one: a token's own delta lets it in, it does not fade it; only later tokens do": _kept(delta, A, own=1),
        "a token has left nothing in states before it: the share is 0 there": everywhere,
        "only the shares after the last token are here: asked for are those after every token": right[-1],
        "this is only the decay of one token: multiply over all later ones": masked(
            np.where(np.eye(len(step))[..., None] > 0, 1.0, np.exp(step[:, None, None] * rates))
        ),
        "the exponential is missing": masked(between * rates),
        "the sign is wrong: A is negative, shares lie between 0 and 1": growing,
        "the quotient of two decays may be 0 / 0: subtract sums first, then take the exponential": quotient,
        "infinity times 0 is NaN: keep the sums of later tokens at 0 before the exponential": product,
        "A has no effect: each state fades at its own rate": masked(
            np.exp(-np.maximum(0, between) * np.ones_like(rates))
        ),
    }


_KEPT = Check(
    reference=_kept,
    cases=_steps,
    mistakes=_kept_mistakes,
    parts=("kept",),
    praise="each token is kept whole at first, and then as far as later ones let it.",
    otherwise="kept[t, s] is not exp(A sum of the deltas of tokens s + 1 to t)",
)


# A long sequence in chunks


def _sequences() -> list[Case]:
    cases = []
    for seed, (b, length, e, n, chunk) in enumerate(
        [(2, 11, 3, 4, 4), (3, 7, 5, 2, 3), (1, 5, 2, 3, 9), (2, 6, 1, 3, 1), (1, 10, 2, 1, 5)]
    ):
        u, B, C, raw, rates = normal(seed, (b, length, e), (b, length, n), (b, length, n), (b, length, e), (e, n))
        cases.append((u, raw.abs(), -rates.exp(), B, C, chunk))
    return cases


def _whole(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    y = selective_scan(u, delta, A, B, C)
    assert isinstance(y, Tensor)
    return y


def _wrong_chunks(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> dict[str, Any]:
    """What the usual mistakes make of the chunks."""
    length, tensors = u.shape[1], (u, delta, B, C)

    def scan(
        keep: Callable[[int], bool] = lambda i: True, order: int = 1, longer: int = 0, gap: int = 0, size: int = chunk
    ) -> list[Tensor]:
        """Outputs of the chunks in this order, with the state replaced after those that `keep` names."""
        firsts = list(range(0, length, size + gap))
        state, outputs = None, {}
        for i in range(len(firsts))[::order]:
            x, step, B_, C_ = (tensor[:, firsts[i] : firsts[i] + size + longer] for tensor in tensors)
            y, last = selective_scan(x, step, A, B_, C_, initial_state=state, return_last_state=True)
            state, outputs[i] = (last if keep(i) else state), y
        return [outputs[i] for i in range(len(firsts))]

    right = scan()
    full = length // chunk * chunk
    return {
        "the state restarts at zero in each chunk: pass the last state on as initial_state": torch.cat(
            scan(lambda i: False), 1
        ),
        "every later chunk starts from the state after the first one: keep the newest state": torch.cat(
            scan(lambda i: i == 0), 1
        ),
        "a leak of the future: the chunks are scanned from the last to the first": torch.cat(scan(order=-1), 1),
        "the chunks are joined in reverse order": torch.cat(right[::-1], 1),
        "the last chunk is missing: the length need not be a multiple of the chunk": torch.cat(right, 1)[:, :full],
        "only the last chunk came back: collect all of them and join them along axis 1": right[-1],
        "only the first chunk came back: collect all of them and join them along axis 1": right[0],
        "off by one: the chunks overlap, y is too long": torch.cat(scan(longer=1), 1),
        "off by one: tokens between two chunks are left out": torch.cat(scan(gap=1), 1),
        "chunk is the number of tokens in a chunk, not of chunks, and the state restarts in each": torch.cat(
            scan(lambda i: False, size=-(-length // chunk)), 1
        ),
    }


def _require_chunks(answer: Callable[..., Any]) -> None:
    """The output does not show how it was made, so what the scan is called with is looked at."""
    for case in _sequences():
        watched, length, chunk = Calls(selective_scan), case[0].shape[1], case[-1]
        with Calls.seen_by([watched]):
            answer(*case)
        lengths = [made.arguments["u"].shape[1] for made in watched.made]
        full, rest = divmod(length, chunk)
        wanted = [chunk] * full + [rest] * (rest > 0)
        if lengths == [length] != wanted:
            raise mistaken("the whole sequence is scanned at once: call dmm.selective_scan on chunk tokens at a time")
        if lengths == [chunk, length - chunk] != wanted:
            raise mistaken("after the first chunk all the rest is scanned at once: go on with chunk tokens at a time")
        asked = (
            f"chunks of {chunk} tokens in {length}: dmm.selective_scan has to be called on {wanted}, was on {lengths}"
        )
        require(sorted(lengths) == sorted(wanted), asked)


def _first_difference(case: Case, got: Array, expected: Array) -> str:
    wrong = np.flatnonzero(np.abs(got - expected).max((0, 2)) > 1e-4)
    token, chunk = int(wrong[0]), case[-1]
    return f"y differs first at token {token}, which is token {token % chunk} of chunk {token // chunk}"


_CHUNKS = Check(
    reference=_whole,
    cases=_sequences,
    mistakes=_wrong_chunks,
    parts=("y",),
    praise="chunks of any size give the output of the whole sequence.",
    otherwise=_first_difference,
    also=_require_chunks,
)


# The gradient is a scan


def _adjoint_cases() -> list[Case]:
    cases = []
    for seed, shape in enumerate([(2, 6, 3), (3, 4, 5), (1, 1, 2), (1, 7, 1), (4, 2, 3)]):
        raw, dh = normal(10 + seed, shape, shape)
        cases.append((torch.sigmoid(raw) if seed % 2 == 0 else raw, dh))  # decays, and negative factors
    return cases


def _adjoint(a: Tensor, dh: Tensor) -> Array:
    return _reversed(plain(a), plain(dh), shift=1)


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


def _adjoint_mistakes(a_given: Tensor, dh_given: Tensor) -> dict[str, Array]:
    a, dh = plain(a_given), plain(dh_given)
    right = _reversed(a, dh, shift=1)
    wrong = {
        "off by one: g_t is multiplied by a of the next token, a_(t+1), not a_t": _reversed(a, dh, shift=0),
        "that runs from the first token to the last; gradients flow from the last to the first": _forward(a, dh),
        "the result is in reverse order: flip it back": right[:, ::-1],
        "g is dh itself: nothing flowed back from later tokens": dh,
        "off by one: a is shifted by one token too many": _reversed(a, dh, shift=2),
        "a has no effect: g_t = dh_t + a_(t+1) g_(t+1)": _reversed(np.ones_like(a), dh, shift=1),
    }
    # what fills the gap of a shifted a is left open by whoever shifts it: nothing, one, or what falls out at the end
    for gap, word in ((0.0, "0"), (1.0, "1"), (None, "its other end")):
        earlier, later = np.roll(a, 1, axis=1), np.roll(a, -1, axis=1)
        if gap is not None:
            earlier[:, 0], later[:, -1] = gap, gap
        backward = _forward(earlier[:, ::-1], dh[:, ::-1])[:, ::-1]
        wrong[f"a is shifted the wrong way (its gap is {word}): token t needs a_(t+1), not a_(t-1)"] = backward
        hint = f"a is shifted (its gap is {word}), but the scan runs from first to last: flip both along axis 1"
        wrong[hint] = _forward(later, dh)
    return wrong


_ADJOINT = Check(
    reference=_adjoint,
    cases=_adjoint_cases,
    mistakes=_adjoint_mistakes,
    parts=("g",),
    praise="the gradient of a scan is a scan in reverse time.",
    otherwise="g_t is not dh_t + a_(t+1) g_(t+1)",
    required=[
        (
            lambda: Calls(parallel_scan),
            "the numbers are right, but token by token: parallel_scan takes log2(l) rounds, and is asked for",
        )
    ],
)
