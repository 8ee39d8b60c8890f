"""Statistics over many tasks with few runs of each, as rliable defines them.

A run's score is its one number on a task, such as a training seed's normalised score. What a method is worth is read
from all runs of all tasks together: the interquartile mean and its companions, with intervals from a bootstrap that
resamples runs within each task.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (sections 4.1 to
4.3), and their library rliable, whose scores go to 1 where ours go to 100. rliable takes matrices alone; where tasks
have unequal numbers of runs we count each task alike, except in the interquartile mean.

An interval is None where a task has a single run: what another seed would do there is unknown. With few runs it is too
narrow, because resamples of `n` runs have but `(n - 1) / n` of the variance: of 95 % asked for, five runs of each of
very many tasks leave the mean with 92 %, three runs with 89 %, and fewer tasks with a little less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from dmm.errors import InputError, finite_number, require_choice, whole_number

Scores = np.ndarray | Sequence[np.ndarray]
"""One method's: an array `(runs, tasks)`, or a list with one array `(runs,)` for each task, whose runs may be unequally
many. Nested lists are refused, since they could be read either way round."""
Ties = Literal["mean", "min"]
"""The rank of those that tie: the mean of the places that they take up, or the best of these (1, 2, 2, 4)."""

GAMMA = 100.0
"""The score from which on nothing is missing: an expert's."""
CONFIDENCE = 0.95
RESAMPLES = 10_000
TRIMMED = 0.25
"""The share that the interquartile mean leaves out at either end, rounded down to whole runs."""
NUMBERS_AT_ONCE = 2**21
"""Of so many resampled numbers or fewer, 16 MB in float64, a statistic is taken at once."""

_Statistic = Callable[[list[np.ndarray]], np.ndarray]
"""Of tasks `(..., runs)`, one array each: `(..., *)`."""


@dataclass(frozen=True)
class Estimate:
    """A statistic of the runs there are, and how far it could move with others."""

    value: float
    ci95: tuple[float, float] | None  # None where a task has a single run


@dataclass(frozen=True)
class Profile:
    """Shares of runs above thresholds, with point-wise bands."""

    thresholds: np.ndarray  # (thresholds,)
    shares: np.ndarray  # (thresholds,), from 0 to 1
    ci95: tuple[np.ndarray, np.ndarray] | None  # low and high, (thresholds,) each; None where a task has a single run


def interquartile_mean(scores: Scores) -> float:
    """IQM: the mean of the middle half of all runs of all tasks.

    It forgives a few outliers, as the median does, and wavers less. All runs go into one pool, so a task with more runs
    weighs more. A pool of fewer than four runs has none to leave out.

    Raises:
        InputError: no runs, numbers that are not finite, or a wrong shape; so do all functions below.
    """
    return float(_interquartile_mean(_tasks("scores", scores)))


def mean_score(scores: Scores) -> float:
    """The mean over tasks of their runs' means."""
    return float(_mean(_tasks("scores", scores)))


def median_score(scores: Scores) -> float:
    """The median over tasks of their runs' means: half of the tasks could drop to nothing without any effect on it."""
    return float(_median(_tasks("scores", scores)))


def optimality_gap(scores: Scores, gamma: float = GAMMA) -> float:
    """By how much runs fall short of `gamma` on average; a run beyond it makes up for no other. Less is better."""
    return float(_optimality_gap(_tasks("scores", scores), finite_number("gamma", gamma)))


def aggregates(
    scores: Scores, *, gamma: float = GAMMA, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """All four of the above as `iqm`, `mean`, `median` and `optimality_gap`, with intervals.

    Args:
        scores: one method's.
        gamma: of the optimality gap.
        seed: of the resamples.
        resamples: how many; each draws every task's runs anew, with replacement and within the task.
    """
    tasks, gamma = _tasks("scores", scores), finite_number("gamma", gamma)

    def statistic(tasks: list[np.ndarray]) -> np.ndarray:
        found = _interquartile_mean(tasks), _mean(tasks), _median(tasks), _optimality_gap(tasks, gamma)
        return np.stack(found, axis=-1)

    names = "iqm", "mean", "median", "optimality_gap"
    return dict(zip(names, _estimates(tasks, statistic, seed=seed, resamples=resamples), strict=True))


def probability_of_improvement(a: Scores, b: Scores, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """How likely a run of `a` is to score higher than a run of `b` on a task drawn at random; a tie counts as half.

    Per task it is the Mann-Whitney U statistic divided by the number of pairs. Only which of two runs is better counts,
    not by how much. The numbers of runs may differ.

    Raises:
        InputError: see `interquartile_mean`; or unequal numbers of tasks.
    """
    ours, theirs = _tasks("a", a), _tasks("b", b)
    if len(ours) != len(theirs):
        raise InputError(f"b: got {len(theirs)} tasks, allowed are as many as a has, {len(ours)}")

    def statistic(tasks: list[np.ndarray]) -> np.ndarray:
        shares = [
            ((x[..., :, None] > y[..., None, :]) + 0.5 * (x[..., :, None] == y[..., None, :])).mean(axis=(-2, -1))
            for x, y in zip(tasks[: len(ours)], tasks[len(ours) :], strict=True)
        ]
        return np.asarray(np.mean(shares, axis=0))[..., None]

    pairs = max(len(x) * len(y) for x, y in zip(ours, theirs, strict=True))
    (found,) = _estimates(ours + theirs, statistic, seed=seed, resamples=resamples, size=pairs)
    return found


def performance_profile(
    scores: Scores, thresholds: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Profile:
    """The share of runs that score above each threshold, in the mean over tasks.

    A method whose curve is nowhere below another's is better in every respect (stochastic dominance); curves that cross
    show where each has its strength. The bands hold for one threshold at a time, not for the curve as a whole.

    Raises:
        InputError: see `interquartile_mean`; or thresholds that are none, not finite or no list.
    """
    tasks, levels = _tasks("scores", scores), finite_numbers("thresholds", thresholds, "a list of numbers")
    if levels.ndim != 1 or not len(levels):
        raise InputError(f"thresholds: got shape {levels.shape}, allowed is a list of at least one number")

    def statistic(tasks: list[np.ndarray]) -> np.ndarray:
        return np.asarray(np.mean([(task[..., None] > levels).mean(axis=-2) for task in tasks], axis=0))

    shares = statistic(tasks)
    draws = _bootstrap(tasks, statistic, seed=seed, resamples=resamples, size=max(map(len, tasks)) * len(levels))
    return Profile(levels, shares, None if draws is None else _interval(draws))


def average_ranks(table: np.ndarray | Sequence[Sequence[float]], *, ties: Ties = "mean") -> np.ndarray:
    """Each method's rank on a task in the mean over tasks: `(methods, tasks)` -> `(methods,)`. Rank 1 is best.

    NaN (or None) marks a missing cell: that method is left out of the task's ranking, and its average is over the tasks
    that it has. Ranks among fewer methods are lower, so averages compare well only where the same cells are filled in.

    Args:
        table: the methods' mean scores, more is better.
        ties: which rank those that tie get. DMM's table 1 uses "min", which flatters whoever ties often.

    Raises:
        InputError: a table of a wrong shape or without rows, infinite scores, or a method without any task.
    """
    require_choice("ties", ties, Ties)
    cells = finite_numbers("table", table, "an array (methods, tasks)", missing=True)
    if cells.ndim != 2 or not cells.size:
        raise InputError(f"table: got shape {cells.shape}, allowed is (methods, tasks) with at least one of each")
    _require_tasks("table", ~np.isnan(cells))
    return _average_ranks(cells, ties)


def average_ranks_of_runs(
    runs: Sequence[np.ndarray | Sequence[np.ndarray | None]],
    *,
    ties: Ties = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """`average_ranks` of the runs' means, with intervals; each method's runs are `Scores`, or None for a missing task.

    An interval tells by how much a method's rank moves with its own seeds and with those of all others. Where any cell
    has a single run, no method has one.

    Raises:
        InputError: see `interquartile_mean`; or no methods, unequal numbers of tasks, or a method without any task.
    """
    require_choice("ties", ties, Ties)
    require_list("runs", runs, "methods")
    methods: list[list[np.ndarray | None]] = []
    for i, method in enumerate(runs):
        methods.append(_cells(f"runs[{i}]", method))
        require_list(f"runs[{i}]", methods[-1], "tasks", like=methods[0])
    there = np.array([[cell is not None for cell in method] for method in methods])
    _require_tasks("runs", there)
    cells = [cell for method in methods for cell in method if cell is not None]

    def statistic(cells: list[np.ndarray]) -> np.ndarray:
        means = np.full((*cells[0].shape[:-1], *there.shape), np.nan)
        means[..., there] = np.stack([cell.mean(axis=-1) for cell in cells], axis=-1)
        return _average_ranks(means, ties)

    return _estimates(cells, statistic, seed=seed, resamples=resamples, size=there.size * len(there))


def _interquartile_mean(tasks: list[np.ndarray]) -> np.ndarray:
    pool = np.concatenate(tasks, axis=-1)
    return np.asarray(stats.trim_mean(pool, TRIMMED, axis=-1))


def _mean(tasks: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean([task.mean(axis=-1) for task in tasks], axis=0))


def _median(tasks: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.median([task.mean(axis=-1) for task in tasks], axis=0))


def _optimality_gap(tasks: list[np.ndarray], gamma: float) -> np.ndarray:
    return gamma - _mean([np.minimum(task, gamma) for task in tasks])


def _average_ranks(table: np.ndarray, ties: Ties) -> np.ndarray:
    """`(..., methods, tasks)` -> `(..., methods)`; nothing compares with NaN."""
    ours, theirs = table[..., :, None, :], table[..., None, :, :]
    ranks = 1.0 + (theirs > ours).sum(axis=-2)
    if ties == "mean":
        ranks += 0.5 * ((theirs == ours).sum(axis=-2) - 1)
    there = ~np.isnan(table)
    average: np.ndarray = np.sum(ranks, axis=-1, where=there) / there.sum(axis=-1)
    return average


def _estimates(
    tasks: list[np.ndarray], statistic: _Statistic, *, seed: int, resamples: int, size: int = 0
) -> list[Estimate]:
    """Of a statistic `(..., values)`: one estimate for each value."""
    values, draws = statistic(tasks), _bootstrap(tasks, statistic, seed=seed, resamples=resamples, size=size)
    if draws is None:
        return [Estimate(float(value), None) for value in values]
    low, high = _interval(draws)
    return [Estimate(float(value), (float(a), float(b))) for value, a, b in zip(values, low, high, strict=True)]


def _bootstrap(
    tasks: list[np.ndarray], statistic: _Statistic, *, seed: int, resamples: int, size: int
) -> np.ndarray | None:
    """`statistic` of each resample, `(resamples, values)`; None where a task has a single run.

    Every task draws from a stream of its own, so that how many resamples are taken at once changes no number. `size` is
    how many numbers the statistic makes of one resample at a time.
    """
    seed, resamples = whole_number("seed", seed, 0), whole_number("resamples", resamples, 1)
    if min(map(len, tasks)) < 2:
        return None
    streams = np.random.default_rng(seed).spawn(len(tasks))
    step = max(1, NUMBERS_AT_ONCE // max(size, sum(map(len, tasks))))
    found = []
    for begin in range(0, resamples, step):
        count = min(step, resamples - begin)
        drawn = [
            task[stream.integers(len(task), size=(count, len(task)))]
            for task, stream in zip(tasks, streams, strict=True)
        ]
        found.append(statistic(drawn))
    return np.concatenate(found)


def _interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of `(resamples, values)`: low and high, `(values,)` each."""
    low, high = np.quantile(draws, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    return low, high


def _tasks(name: str, scores: Scores) -> list[np.ndarray]:
    """One array `(runs,)` for each task, float64."""
    allowed = "an array (runs, tasks) or a list of one array (runs,) per task"
    if isinstance(scores, np.ndarray):
        matrix = finite_numbers(name, scores, allowed)
        if matrix.ndim != 2 or not matrix.size:
            raise InputError(f"{name}: got shape {matrix.shape}, allowed is {allowed}, with at least one of each")
        return list(np.ascontiguousarray(matrix.T))
    require_list(name, scores, "tasks")
    return [_runs(f"{name}[{i}]", task) for i, task in enumerate(scores)]


def _cells(name: str, scores: np.ndarray | Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    """`_tasks`, of which some may be missing."""
    if isinstance(scores, np.ndarray):
        return list(_tasks(name, scores))
    require_list(name, scores, "tasks")
    return [None if task is None else _runs(f"{name}[{i}]", task) for i, task in enumerate(scores)]


def _runs(name: str, runs: Any) -> np.ndarray:
    """One task's, `(runs,)` float64."""
    allowed = "an array (runs,) with at least one run"
    if not isinstance(runs, np.ndarray):
        raise InputError(f"{name}: got {type(runs).__name__}, allowed is {allowed}")
    numbers = finite_numbers(name, runs, allowed)
    if numbers.ndim != 1 or not len(numbers):
        raise InputError(f"{name}: got shape {numbers.shape}, allowed is {allowed}")
    return numbers


def finite_numbers(name: str, values: Any, allowed: str, missing: bool = False) -> np.ndarray:
    """`values` as a float64 array of finite numbers; with `missing`, of NaN too, which None becomes.

    Raises:
        InputError: something else; the message says what is `allowed`.
    """
    try:
        raw = np.asarray(values)
        if raw.dtype.kind not in "biufO":
            raise TypeError
        numbers = raw.astype(np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: got something else than numbers in equal rows, allowed is {allowed}") from None
    bad = np.isinf(numbers) if missing else ~np.isfinite(numbers)
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        shown = "NaN" if math.isnan(numbers[tuple(where)]) else "infinity"
        also = ", or NaN for a missing cell" if missing else ""
        raise InputError(f"{name}: got {shown} at {where}, allowed are finite numbers{also}")
    return numbers


def require_list(name: str, value: Any, of: str, like: Any = None) -> None:
    """Passes when `value` is a list, a tuple or an array with at least one entry, or as many as `like` has.

    Raises:
        InputError: it is not.
    """
    if (
        not isinstance(value, Sequence | np.ndarray)
        or isinstance(value, str | bytes)
        or getattr(value, "shape", None) == ()
    ):
        raise InputError(f"{name}: got {type(value).__name__}, allowed is a list of {of}")
    if not len(value):
        raise InputError(f"{name}: got no {of}, allowed is a list of at least one")
    if like is not None and len(value) != len(like):
        raise InputError(f"{name}: got {len(value)} {of}, allowed are as many as the first has, {len(like)}")


def _require_tasks(name: str, there: np.ndarray) -> None:
    """Of `(methods, tasks)`, whether a cell is there: at least one in each row."""
    if not there.any(axis=1).all():
        bare = int(np.argmin(there.any(axis=1)))
        raise InputError(f"{name}[{bare}]: got a method without any task, allowed is at least one")
