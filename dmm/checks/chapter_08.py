"""Checks for chapter 8: the loss of real steps, the learning rate, how sure a score is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from dmm.checks import as_array, call, mistaken, passed, require
from dmm.checks.check import Case, Check, described
from dmm.checks.randomness import require_own_generator

Array = NDArray[np.float64]
Part = tuple[Tensor, Tensor, Tensor]
Interval = Callable[[Array, np.random.Generator], Any]


def check_loss(answer: Callable[..., Any]) -> None:
    """Exercise 8.1: `answer(parts)`, each `(predicted (b, k, a), actions (b, k, a), mask (b, k))`: one mean."""
    _LOSS(answer)


def check_warmup(answer: Callable[..., Any]) -> None:
    """Exercise 8.2: `answer(step, warmup, total, peak)` after `step` finished updates: up, then down to 0."""
    _WARMUP(answer)


def check_interval(answer: Callable[..., Any]) -> None:
    """Exercise 8.3: `answer(values, rng)` is the 95 % percentile bootstrap interval of the mean, of 4,000 resamples."""
    data = _scores()
    found = [_several(answer, values) for values in data]  # (calls, 2) each
    right = [_several(_bootstrap, values, calls=24) for values in data]
    fits = [_near(got, best) for got, best in zip(found, right, strict=True)]
    if not all(fits):
        for hint, wrong in _WRONG_INTERVALS.items():
            if _explains(wrong, found, data):
                raise mistaken(hint)
        first = fits.index(False)
        (low, high), best = found[first].mean(0), right[first].mean(0)
        where = described(["values"], (data[first],))
        require(False, f"for {where} expected about {best[0]:.3g} to {best[1]:.3g}, got {low:.3g} to {high:.3g}")
    require_own_generator(answer, lambda rng: (data[-1].copy(), rng), "ends")
    few = "the ends differ more from call to call than those of 4,000 resamples do: draw as many as that"
    require(_scatter(found, data) < 2 * _scatter(right, data), few)
    passed("the interval of the mean")


# The loss of real steps, of a batch in parts


def _batches() -> list[Case]:
    """Parts of unlike sizes, real steps and errors; one part without any real step; masks with gaps."""
    cases = []
    for seed, (a, k, sizes) in enumerate([(2, 5, (4, 1, 3)), (3, 4, (2, 5)), (7, 3, (1,)), (1, 6, (3, 2, 2, 5))]):
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for i, b in enumerate(sizes):
            predicted, actions = torch.randn(2, b, k, a, generator=generator)
            chance = 0.0 if seed == 3 and i == 1 else (0.3, 0.9, 0.6, 0.5)[i]
            mask = torch.rand(b, k, generator=generator) < chance
            mask[0, -1] |= chance > 0
            if seed == 0:
                mask = torch.arange(k) >= torch.tensor([0, 1, 3, 4])[:b, None] - i  # left padding
            parts.append(((1 + i) * predicted, actions, mask))
        cases.append((parts,))
    return cases


def _whole(parts: Sequence[Part]) -> Part:
    predicted, actions, mask = (torch.cat([part[i] for part in parts]) for i in range(3))
    return predicted, actions, mask


def _loss(parts: Sequence[Part]) -> Tensor:
    predicted, actions, mask = _whole(parts)
    return (predicted - actions)[mask].square().mean()


def _loss_mistakes(parts: Sequence[Part]) -> dict[str, Tensor]:
    predicted, actions, mask = _whole(parts)
    squared = (predicted - actions).square()
    sums = [(p - a)[m].square().sum() for p, a, m in parts]
    means = torch.stack([(p - a)[m].square().mean() for p, a, m in parts])
    windows = torch.stack([one[real].mean() for one, real in zip(squared, mask, strict=True)])
    rows = torch.tensor([len(m) for *_, m in parts]).to(squared)
    real = squared[mask]
    return {
        "a mean of means: parts with few real steps count as much as the others; add sums and counts, divide once": (
            means.mean()
        ),
        "a mean of means, and a part without real steps is left out: add sums and counts, divide once": means.nanmean(),
        "the parts' means are weighted by their windows: weight by real steps, or add sums and counts": (
            (means * rows).sum() / rows.sum()
        ),
        "the parts' means are added: one mean over all real steps is asked for": means.sum(),
        "only the last part is there: go through all of them": means[-1],
        "only the first part is there: go through all of them": means[0],
        "the mean runs over padded steps too: keep only the entries where mask is True": squared.mean(),
        "the sum is right, but it is divided by all steps: count only the entries where mask is True": (
            real.sum() / squared.numel()
        ),
        "divide by the number of action entries, not by the number of steps": real.sum() / mask.sum(),
        "an action has not always two entries: count them": real.sum() / (2 * mask.sum()),
        "an action has not always three entries: count them": real.sum() / (3 * mask.sum()),
        "the sum is divided by the number of parts: count entries of real steps": sum(sums, torch.zeros(()))
        / len(parts),
        "that is the sum: divide it by the number of entries": real.sum(),
        "the mask is upside down: True marks a real step": squared[~mask].mean(),
        "windows count alike, however many real steps they have: take one mean over all real steps": windows.nanmean(),
        "square the difference; this is the absolute error": real.sqrt().mean(),
        "take no root: the mean squared error is asked for": real.mean().sqrt(),
        "one number per action entry: take the mean over these, too": (predicted - actions)[mask].square().mean(0),
    }


_LOSS = Check(
    reference=_loss,
    cases=_batches,
    mistakes=_loss_mistakes,
    parts=("the loss",),
    praise="the loss sees real steps only, and does not notice that the batch came in parts",
    otherwise="that is not the mean squared error over the action entries of all real steps",
    tolerance=1e-5,
)


# The learning rate


def _updates() -> list[Case]:
    """Every update of a run and some after it: with whole numbers, a warm-up of one, and one that nearly ends it."""
    runs = [(10, 30, 1e-3), (7, 20, 3.0), (1, 13, 0.25), (13, 14, 2)]
    return [(step, warmup, total, peak) for warmup, total, peak in runs for step in range(total + 3)]


def _rate(step: int, warmup: int, total: int, peak: float) -> float:
    return peak * max(0.0, min((step + 1) / warmup, (total - step) / (total - warmup + 1)))


def _fallen(step: int, warmup: int, total: int, line: Callable[[float], float]) -> float:
    """The right rise, and behind it `line` of the share of the fall that is done."""
    if step < warmup:
        return (step + 1) / warmup
    return line(min(1.0, (step + 1 - warmup) / (total - warmup + 1)))


def _up(share: float) -> float:
    return min(1.0, share)


_WARMUP = Check(
    reference=_rate,
    cases=_updates,
    mistakes={
        "the factor peak is missing: this is the share of the peak": lambda step, w, n, peak: _rate(step, w, n, 1.0),
        "the first update has learning rate 0 and is wasted: count from step + 1": (
            lambda step, w, n, peak: peak * max(0.0, min(step / w, (n - step) / (n - w)))
        ),
        "it stays at the peak after the warm-up: it has to fall from there": (
            lambda step, w, n, peak: peak * _up((step + 1) / w)
        ),
        "it stays at the peak after the warm-up, and the first update is wasted: count from step + 1, let it fall": (
            lambda step, w, n, peak: peak * _up(step / w)
        ),
        "it goes on rising after the warm-up: let it fall from the peak": lambda step, w, n, peak: (
            peak * (step + 1) / w
        ),
        "it is constant: let it rise over the first `warmup` updates": lambda step, w, n, peak: peak,
        "off by one: the peak is reached an update too early; the first update gets peak / warmup": (
            lambda step, w, n, peak: peak * max(0.0, min((step + 2) / w, (n - step) / (n - w + 1)))
        ),
        "the last update has learning rate 0 and is wasted: 0 is reached at step = total": (
            lambda step, w, n, peak: peak * max(0.0, min((step + 1) / w, (n - 1 - step) / (n - w)))
        ),
        "the fall begins an update late: the update at the peak is the one after warmup - 1 finished ones": (
            lambda step, w, n, peak: peak * max(0.0, min((step + 1) / w, (n - step) / (n - w)))
        ),
        "it is negative after the end: there it is 0": (
            lambda step, w, n, peak: peak * min((step + 1) / w, (n - step) / (n - w + 1))
        ),
        "it falls from the first update on, and the warm-up is multiplied onto it: from the peak it falls to 0": (
            lambda step, w, n, peak: peak * _up((step + 1) / w) * max(0.0, 1 - step / n)
        ),
        "there is no warm-up: it falls from the first update": lambda step, w, n, peak: peak * max(0.0, 1 - step / n),
        "the warm-up is always 10 updates long: it has warmup of them": (
            lambda step, w, n, peak: _rate(step, 10, n, peak)
        ),
        "the run is always 30 updates long: it has total of them": lambda step, w, n, peak: _rate(step, w, 30, peak),
        "the first update has learning rate 0 and is wasted: count from step + 1; the fall is right": (
            lambda step, w, n, peak: peak * max(0.0, min(step / w, (n - step) / (n - w + 1)))
        ),
        "it falls along a cosine: the fall is a straight line": lambda step, w, n, peak: (
            peak * _fallen(step, w, n, lambda share: (1 + math.cos(math.pi * share)) / 2)
        ),
        "it falls with the root of the step, and never to 0: the fall is a straight line": (
            lambda step, w, n, peak: peak * min((step + 1) / w, (w / (step + 1)) ** 0.5)
        ),
        "the fall takes total updates, counted from the peak: it has to end where training does": (
            lambda step, w, n, peak: peak * min((step + 1) / w, max(0.0, 1 - (step - w + 1) / n))
        ),
        "the fall takes total updates, counted from the end of the warm-up: it has to end where training does": (
            lambda step, w, n, peak: peak * min((step + 1) / w, max(0.0, 1 - (step - w) / n))
        ),
        "behind the warm-up it jumps to a line that fell from the first update on: it falls from the peak": (
            lambda step, w, n, peak: peak * ((step + 1) / w if step < w else max(0.0, 1 - step / n))
        ),
        "behind the end it stays at its last value: there it is 0": (
            lambda step, w, n, peak: _rate(min(step, n - 1), w, n, peak)
        ),
        "a whole-number division: use / and not //": lambda step, w, n, peak: (
            peak * max(0, min((step + 1) // w, (n - step) // (n - w + 1)))
        ),
        "the peak is always 0.001: it is the one that is given": lambda step, w, n, peak: _rate(step, w, n, 1e-3),
    },
    parts=("the learning rate",),
    praise="linear up to the peak, and linear down to 0 where training ends",
    otherwise="another learning rate",
    tolerance=1e-9,
)


# How sure are we?


def _scores() -> list[Array]:
    """Many and few; skewed both ways, with the interval at the end of what can be; negative; an odd number of them."""
    draw = np.random.default_rng(3)
    return [
        np.repeat([0.0, 1.0], [9, 1]),
        np.repeat([1.0, 0.0], [9, 1]),
        np.array([0.0, 0, 0, 0, 5]),
        -np.exp(draw.normal(1.0, 1.2, size=23)),
        np.array([3, -1, 4, 1, -5, 9, 2]),
        draw.normal(50.0, 20.0, size=40),
    ]


def _several(answer: Interval, values: Array, calls: int = 6) -> Array:
    """The ends that so many calls give, each with another seed, `(calls, 2)`."""
    found = []
    for seed in range(calls):
        given = values.copy()
        found.append(as_array(call(answer, given, np.random.default_rng([8, seed])), (2,), "interval(...)"))
        require(np.array_equal(given, values), "your function changed its input values: work on a copy")
    return np.stack(found)


def _near(got: Array, right: Array) -> bool:
    """Whether the ends of a few calls come from where those of the right answer do, as far as chance can tell."""
    spread = right.std(0) * np.sqrt(1 / len(got) + 1 / len(right))
    return bool(np.all(np.abs(got.mean(0) - right.mean(0)) <= 6 * spread + 1e-9))


def _explains(wrong: Interval, found: Sequence[Array], data: Sequence[Array]) -> bool:
    """Whether a mistake's ends come from the same places and scatter alike, as far as chance can tell."""
    made = []
    for got, values in zip(found, data, strict=True):
        made.append(_several(wrong, values, calls=16))
        if not _placed(got, made[-1]):
            return False
    one, other = sorted([_scatter(found, data) + 1e-9, _scatter(made, data) + 1e-9])
    return other < 4 * one


def _placed(got: Array, wrong: Array) -> bool:
    apart = np.abs(got.mean(0) - wrong.mean(0))
    spread = np.sqrt(got.var(0) + wrong.var(0)) * np.sqrt(1 / len(got) + 1 / len(wrong))
    return bool(np.all(apart <= 4 * spread + 1e-9))


def _scatter(found: Sequence[Array], data: Sequence[Array]) -> float:
    """How far the ends differ from call to call, as a share of the range of the values, in the mean over data."""
    return float(np.mean([ends.std(0).mean() / np.ptp(values) for ends, values in zip(found, data, strict=True)]))


def _means(values: Array, rng: np.random.Generator, size: int | None = None, resamples: int = 4000) -> Array:
    return np.asarray(rng.choice(values, size=(resamples, size or len(values))).mean(axis=1))


def _bootstrap(
    values: Array, rng: np.random.Generator, tail: float = 0.025, size: int | None = None, resamples: int = 4000
) -> Array:
    return np.asarray(np.quantile(_means(values, rng, size, resamples), [tail, 1 - tail]))


def _symmetric(middle: float, half: float) -> tuple[float, float]:
    return middle - half, middle + half


def _normal(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    return _symmetric(float(values.mean()), float(1.96 * _means(values, rng).std()))


def _half_width(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    return float(values.mean()), float(np.ptp(_bootstrap(values, rng)) / 2)


def _halves(values: Array, rng: np.random.Generator) -> Array:
    chosen = rng.random((4000, len(values))).argsort(axis=1)[:, : len(values) // 2]
    halves = values[chosen].mean(axis=1)
    return np.asarray(np.quantile(halves, [0.025, 0.975]))


def _extremes(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    means = _means(values, rng)
    return float(means.min()), float(means.max())


def _error(values: Array, ddof: int = 1) -> float:
    """The standard error of the mean."""
    return float(values.std(ddof=ddof) / np.sqrt(len(values)))


def _student(values: Array, rng: np.random.Generator) -> tuple[float, float]:
    return _symmetric(float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1)) * _error(values))


def _across(values: Array, rng: np.random.Generator) -> Array:
    return np.asarray(np.quantile(rng.choice(values, size=(4000, len(values))).mean(axis=0), [0.025, 0.975]))


_WRONG_INTERVALS: dict[str, Interval] = {
    "return (low, high), not the mean and a half-width": _half_width,
    "no spread at all: draw with replacement, and take the mean of each resample by itself": (
        lambda values, rng: np.repeat(values.mean(), 2)
    ),
    "the lower end must come first": lambda values, rng: _bootstrap(values, rng)[::-1],
    "np.percentile wants per cent, 2.5 and 97.5; np.quantile wants 0.025 and 0.975": (
        lambda values, rng: np.percentile(_means(values, rng), [0.025, 0.975])
    ),
    "each mean is of thousands of values, by a wrong axis or a wrong size: a resample has as many as the data, and "
    "its own mean; 4,000 is how many resamples": _across,
    "this is the spread of single episodes: resample, take the mean of each resample, then quantiles": (
        lambda values, rng: np.quantile(values, [0.025, 0.975])
    ),
    "each resample has half as many values as there are: draw as many as there are": (
        lambda values, rng: _bootstrap(values, rng, size=len(values) // 2)
    ),
    "each resample is a half of the values without replacement: draw as many as there are, with replacement": _halves,
    "each resample has 25 values: draw as many as there are": lambda values, rng: _bootstrap(values, rng, size=25),
    "this is the 90 % interval: cut off 2.5 % on each side": lambda values, rng: _bootstrap(values, rng, tail=0.05),
    "5 % are cut off on one side only: cut off 2.5 % on each side": (
        lambda values, rng: np.quantile(_means(values, rng), [0.0, 0.95])
    ),
    "5 % are cut off below and nothing above: cut off 2.5 % on each side": (
        lambda values, rng: np.quantile(_means(values, rng), [0.05, 1.0])
    ),
    "this is one standard error on each side, 68 %: cut off 2.5 % on each side": (
        lambda values, rng: _bootstrap(values, rng, tail=0.1587)
    ),
    "these are the smallest and the largest mean: cut off 2.5 % on each side": _extremes,
    "this is the mean ± 1.96 standard deviations of the means: take their quantiles, which need not be symmetric": (
        _normal
    ),
    "this is the mean ± 1.96 standard deviations, cut off at 0: quantiles of the means stay in range by themselves": (
        lambda values, rng: np.maximum(0.0, _normal(values, rng))
    ),
    "this is the mean ± 1.96 standard errors of the values: resample, and take quantiles of the means": (
        lambda values, rng: _symmetric(values.mean(), 1.96 * _error(values))
    ),
    "this is the mean ± 1.96 standard errors of the values, by n and not n - 1: resample, and take quantiles": (
        lambda values, rng: _symmetric(values.mean(), 1.96 * _error(values, ddof=0))
    ),
    "this is Student's interval: resample, and take quantiles of the means, which need not be symmetric": _student,
    "this is the mean ± 1.96 deviations of single episodes: the mean of many scatters less": (
        lambda values, rng: _symmetric(values.mean(), 1.96 * values.std())
    ),
    "this is the mean ± one standard deviation of the means, 68 %: take quantiles of the means": (
        lambda values, rng: _symmetric(values.mean(), _means(values, rng).std())
    ),
    "the quantiles are mirrored at the mean, the basic bootstrap: a percentile interval takes them as they are": (
        lambda values, rng: 2 * values.mean() - _bootstrap(values, rng)[::-1]
    ),
    "each resample has a single value: draw as many as there are, and take their mean": (
        lambda values, rng: _bootstrap(values, rng, size=1)
    ),
    "too few resamples: the ends differ from call to call as those of a hundred do; draw 4,000": (
        lambda values, rng: _bootstrap(values, rng, resamples=100)
    ),
    "too few resamples: the ends differ from call to call as if there were one for each value; draw 4,000": (
        lambda values, rng: _bootstrap(values, rng, resamples=len(values))
    ),
    "medians of the resamples were taken: take the mean of each": (
        lambda values, rng: np.quantile(np.median(rng.choice(values, size=(4000, len(values))), axis=1), [0.025, 0.975])
    ),
}
