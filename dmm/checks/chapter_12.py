"""Checks for the exercises of chapter 12: a paired difference, what a stack of local mixers sees, how many seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dmm.checks import close
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Scores = Mapping[int, float]
STACKS = (
    (1, 6, 8),
    (3, 6, 30),
    (3, 6, 4),
    (2, 5, 11),
    (4, 2, 7),
    (1, 1, 5),
    (3, 1, 2),
    (5, 4, 3),
    (2, 3, 9),
    (1, 2, 1),
)
"""Layers, window and context that `check_tokens_seen` tries."""
CASES = ((5.0, 8.5, 0.8), (12.0, 7.0, 0.9), (1.7, 3.1, 0.5), (-9.0, 11.0, 0.95), (40.0, 3.0, 0.8))
"""Difference, deviation and power that `check_seeds_for` tries."""


def check_paired_difference(answer: Callable[..., Any]) -> None:
    """`answer(changed, base)` must give mean, low and high of the difference over the seeds that both dicts have."""
    _PAIRED(answer)


def check_tokens_seen(answer: Callable[..., Any]) -> None:
    """`answer(layers, window, context)` must give how many returns-to-go, states and actions the action depends on."""
    _TOKENS_SEEN(answer)


def check_seeds_for(answer: Callable[..., Any]) -> None:
    """`answer(difference, deviation, power)` must give the smallest number of seeds of each entry."""
    _SEEDS_FOR(answer)


# A difference, paired


def _pairs() -> list[Case]:
    """Seeds in other orders, some of them on one side only; few and many; whole numbers; a large common scatter."""
    return [
        ({0: 70.0, 1: 81.5, 2: 66.0}, {0: 75.0, 1: 78.0, 2: 72.5}),
        ({3: 12.0, 1: -4.5, 7: 30.0, 0: 8.0, 2: 19.0}, {0: 11.0, 2: 3.0, 5: 90.0, 1: -6.0, 7: 21.5}),
        ({4: 91.0, 0: 88.0, 9: 60.0}, {9: 55.0, 4: 97.0}),
        ({8: 1.0, 6: 2.0, 5: 4.0, 3: 8.0, 2: 16.0, 1: 32.0, 0: 64.0}, {0: -3, 1: 5, 2: -7, 3: 11, 5: 13, 6: 17, 8: 19}),
        ({10: 5, 11: -200, 12: 300, 13: 47}, {13: 48, 12: 300, 11: -198, 10: 5, 9: 0}),
    ]


def _differences(changed: Scores, base: Scores) -> Array:
    return np.array([changed[seed] - base[seed] for seed in changed if seed in base])


def _interval(mean: float, half: float) -> Array:
    return np.array([mean, mean - half, mean + half])


def _paired(changed: Scores, base: Scores, quantile: float = 0.975, ddof: int = 1, lost: int = 1) -> Array:
    apart = _differences(changed, base)
    n = len(apart)
    half = float(stats.t.ppf(quantile, n - lost) * apart.std(ddof=ddof) / math.sqrt(n))
    return _interval(float(apart.mean()), half)


def _normal(changed: Scores, base: Scores) -> Array:
    apart = _differences(changed, base)
    return _interval(float(apart.mean()), float(1.96 * apart.std(ddof=1) / math.sqrt(len(apart))))


def _of_single(changed: Scores, base: Scores) -> Array:
    apart = _differences(changed, base)
    return _interval(float(apart.mean()), float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1)))


def _exact_normal(changed: Scores, base: Scores) -> Array:
    apart = _differences(changed, base)
    return _interval(float(apart.mean()), float(stats.norm.ppf(0.975) * apart.std(ddof=1) / math.sqrt(len(apart))))


def _in_order(changed: Scores, base: Scores) -> Array:
    pairs = list(zip(changed.values(), base.values(), strict=False))
    return _paired(dict(enumerate(a for a, _ in pairs)), dict(enumerate(b for _, b in pairs)))


def _with_zeros(changed: Scores, base: Scores) -> Array:
    seeds = sorted({*changed, *base})
    return _paired({s: changed.get(s, 0.0) for s in seeds}, {s: base.get(s, 0.0) for s in seeds})


def _unpaired(changed: Scores, base: Scores, common: bool, equal: bool) -> Array:
    a = np.array([value for seed, value in changed.items() if seed in base or not common], dtype=np.float64)
    b = np.array([value for seed, value in base.items() if seed in changed or not common], dtype=np.float64)
    apart = float(a.mean() - b.mean())
    low, _ = stats.ttest_ind(a, b, equal_var=equal).confidence_interval()
    return _interval(apart, apart - float(low))


def _means_of_all(changed: Scores, base: Scores) -> Array:
    mean = float(np.mean(list(changed.values())) - np.mean(list(base.values())))
    right = _paired(changed, base)
    return _interval(mean, float(right[2] - right[0]))


_PAIRED_MISTAKES: dict[str, Callable[[Scores, Scores], Array]] = {
    "base minus changed: a change that helps has a positive difference": lambda c, b: _paired(b, c),
    "seeds are paired by their place in the dicts: pair them by their key": _in_order,
    "a seed that one side lacks counts as zero there: leave it out": _with_zeros,
    "seeds that only one side has are in the mean: leave them out": _means_of_all,
    "that is the interval of two separate groups: take the differences first, then their spread": (
        lambda c, b: _unpaired(c, b, common=True, equal=False)
    ),
    "that is the interval of two separate groups with one spread: take the differences first": (
        lambda c, b: _unpaired(c, b, common=True, equal=True)
    ),
    "two separate groups of all seeds: take the seeds that both have, and their differences": (
        lambda c, b: _unpaired(c, b, common=False, equal=False)
    ),
    "1.96 is for many seeds: with few, Student's t is wider": _normal,
    "a normal quantile is for many seeds: with few, Student's t is wider": _exact_normal,
    "the deviation has n in place of n - 1 (ddof=1)": lambda c, b: _paired(c, b, ddof=0),
    "Student's t has n - 1 degrees of freedom here, not n": lambda c, b: _paired(c, b, lost=0),
    "0.95 leaves 5 % on either side: the quantile of a 95 % interval is 0.975": lambda c, b: _paired(c, b, 0.95),
    "that is how far one seed scatters: the mean's error is smaller by the root of n": _of_single,
    "the ends are the other way round: low, then high": lambda c, b: _paired(c, b)[[0, 2, 1]],
    "the order is mean, low, high": lambda c, b: _paired(c, b)[[1, 0, 2]],
}


def _complaint(case: Case, got: Array, right: Array) -> str:
    mean_is_right = close(got[0], right[0], 1e-6)
    return "the mean is right, the interval is not" if mean_is_right else "the mean over the common seeds is another"


_PAIRED = Check(
    reference=lambda changed, base: _paired(changed, base),
    cases=_pairs,
    mistakes=_PAIRED_MISTAKES,
    parts=("paired_difference(...)",),
    praise="seed by seed, over those that both have.",
    otherwise=_complaint,
    tolerance=1e-6,
)


# What a stack of local mixers sees


def _counts(first: int, last: int) -> tuple[int, int, int]:
    kinds = [token % 3 for token in range(first, last + 1)]
    return kinds.count(0), kinds.count(1), kinds.count(2)


def _seen(layers: int, window: int, context: int) -> tuple[int, int, int]:
    last = 3 * context - 2
    return _counts(max(0, last - layers * (window - 1)), last)


def _from(last: Callable[[int], int], back: Callable[[int, int], int]) -> Callable[[int, int, int], tuple[int, ...]]:
    return lambda n, w, k: _counts(max(0, last(k) - back(n, w)), last(k))


def _state(k: int) -> int:
    return 3 * k - 2


def _endless(layers: int, window: int, context: int) -> tuple[int, int, int]:
    del context
    back = layers * (window - 1)  # tokens before the newest state, which is at 0
    return 1 + (back - 1) // 3 if back else 0, 1 + back // 3, 1 + (back - 2) // 3 if back > 1 else 0


def _in_steps(layers: int, window: int, context: int) -> tuple[int, int, int]:
    steps = min(context, 1 + layers * (window - 1))
    return steps, steps, steps - 1


_SEEN_MISTAKES: dict[str, Callable[[int, int, int], Sequence[int]]] = {
    "every layer adds window - 1 tokens, not window: two windows share one": _from(_state, lambda n, w: n * w - 1),
    "layers add up, they do not multiply: window ** layers is for layers with gaps": (
        _from(_state, lambda n, w: w**n - 1)
    ),
    "that is one layer: each further one adds window - 1 tokens": _from(_state, lambda n, w: w - 1),
    "the action is read from the newest state token; the action token behind it is not seen": (
        _from(lambda k: 3 * k - 1, lambda n, w: n * (w - 1))
    ),
    "the action is read from the newest state token, not from the return-to-go before it": (
        _from(lambda k: 3 * k - 3, lambda n, w: n * (w - 1))
    ),
    "the newest state token itself is seen, too": (
        lambda n, w, k: _counts(max(0, _state(k) - n * (w - 1)), _state(k) - 1)
    ),
    "nothing is seen before the context begins": _endless,
    "a window counts tokens, of which a time step has three": _in_steps,
    "the order is returns-to-go, states, actions": lambda n, w, k: (_seen(n, w, k)[1], *_seen(n, w, k)[::2]),
    "every modality gets the states' number: count each by itself": lambda n, w, k: (_seen(n, w, k)[1],) * 3,
}


_TOKENS_SEEN = Check(
    reference=_seen,
    cases=lambda: list(STACKS),
    mistakes=_SEEN_MISTAKES,
    parts=("tokens_seen(...)",),
    praise="each layer adds window - 1 tokens, and the context is where it ends.",
    otherwise="another number of tokens is seen",
)


# How many seeds


def _seeds(difference: float, deviation: float, power: float, quantile: float = 0.975, twice: float = 2.0) -> float:
    reach = stats.norm.ppf(quantile) + stats.norm.ppf(power)
    return float(twice * (reach * deviation / difference) ** 2)


_SEEDS_MISTAKES: dict[str, Callable[[float, float, float], float]] = {
    "both entries scatter: the variance of a difference is twice that of a mean": (
        lambda d, s, p: math.ceil(_seeds(d, s, p, twice=1.0))
    ),
    "that is the total over both entries: asked for is the number of each": lambda d, s, p: math.ceil(
        _seeds(d, s, p, twice=4.0)
    ),
    "that finds it half of the time: power adds a quantile of its own": lambda d, s, p: math.ceil(_seeds(d, s, 0.5)),
    "found is more than z of 0.975, not of 0.95": lambda d, s, p: math.ceil(_seeds(d, s, p, 0.95)),
    "rounded down: the smallest number that is enough is the next one up": lambda d, s, p: math.floor(_seeds(d, s, p)),
    "rounded to the nearest: the smallest number that is enough is the next one up": lambda d, s, p: round(
        _seeds(d, s, p)
    ),
    "a number of seeds is a whole number: round up": _seeds,
    "the quantile of 1 - power has the other sign": lambda d, s, p: math.ceil(_seeds(d, s, 1 - p)),
    "the number goes with the square of deviation over difference": lambda d, s, p: math.ceil(
        2 * (stats.norm.ppf(0.975) + stats.norm.ppf(p)) * s / abs(d)
    ),
    "deviation and difference have changed places": lambda d, s, p: math.ceil(_seeds(s, d, p)),
}

_SEEDS_FOR = Check(
    reference=lambda difference, deviation, power: math.ceil(_seeds(difference, deviation, power)),
    cases=lambda: list(CASES),
    mistakes=_SEEDS_MISTAKES,
    parts=("seeds_for(...)",),
    praise="twice as small a difference takes four times as many.",
    otherwise="another number of seeds is the smallest that is enough",
    tolerance=1e-9,
)
