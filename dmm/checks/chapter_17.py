"""Checks for the exercises of chapter 17: jobs in a list, a job that is killed, seeds and episodes for a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks.check import Case, Check

Array = NDArray[np.float64]


def check_starts(answer: Callable[..., Any]) -> None:
    """`answer(hours (j,), workers)` must give when each job of the list begins, `(j,)`."""
    _STARTS(answer)


def check_finish(answer: Callable[..., Any]) -> None:
    """`answer(work, every, kills)` must give the time at which a job is done that is killed at these times."""
    _FINISH(answer)


def check_best_split(answer: Callable[..., Any]) -> None:
    """`answer(budget, train, episode, between, within)` must give the best whole `(seeds, episodes)`."""
    _BEST_SPLIT(answer)


# Jobs in a list


def _lists() -> list[Case]:
    draw = np.random.default_rng(17)
    return [
        (np.array([5.0, 2, 2.5, 6, 1, 3, 4]), 3),
        (np.round(draw.exponential(3.0, size=11), 2), 2),
        (np.round(draw.uniform(0.1, 9.0, size=17), 2), 5),
        (np.array([2.0, 3.0, 1.0]), 4),
        (np.array([3, 1, 1, 2, 1, 0, 5]), 2),
        (np.array([4.0, 0.5]), 1),
    ]


def starts(hours: Sequence[float] | Array, workers: int) -> Array:
    """The right answer."""
    return _listed(hours, workers, lambda free, i: int(free.argmin()))


def _listed(hours: Sequence[float] | Array, workers: int, choose: Callable[[Array, int], int]) -> Array:
    free, found = np.zeros(workers), np.zeros(len(hours))
    for i, each in enumerate(hours):
        worker = choose(free, i)
        found[i] = free[worker]
        free[worker] += each
    return found


def _reordered(hours: Array, workers: int, order: NDArray[np.intp]) -> Array:
    found = np.zeros(len(hours))
    found[order] = starts(hours[order], workers)
    return found


def _wrong_starts(hours: Array, workers: int) -> dict[str, Array]:
    right = starts(hours, workers)
    share = -(-len(hours) // workers)
    waves = np.concatenate([[0.0], np.cumsum([hours[i : i + workers].max() for i in range(0, len(hours), workers)])])
    return {
        "jobs are dealt out in turn, job i to worker i mod n: a job goes to the worker that is free first": (
            _listed(hours, workers, lambda free, i: i % workers)
        ),
        "each worker has an equal part of the list: a job goes to the worker that is free first": (
            _listed(hours, workers, lambda free, i: i // share)
        ),
        "jobs go in rounds: a worker that is done does not wait for the others": (
            np.repeat(waves, workers)[: len(hours)]
        ),
        "longest first: the jobs begin in the order of the list": _reordered(
            hours, workers, np.argsort(-hours, kind="stable")
        ),
        "shortest first: the jobs begin in the order of the list": _reordered(
            hours, workers, np.argsort(hours, kind="stable")
        ),
        "these are the times at which jobs end": right + hours,
        "one after the other, as if there were one worker": starts(hours, 1),
        "all jobs begin at once, as if there were a worker for each": np.zeros(len(hours)),
    }


_STARTS = Check(
    reference=starts,
    cases=_lists,
    mistakes=_wrong_starts,
    parts=("starts(...)",),
    praise="each job begins on the worker that is free first.",
    otherwise=lambda case, got, right: f"{len(case[0])} jobs on {case[1]} workers begin at other times",
    tolerance=1e-6,
)


# A job that is killed


def _jobs() -> list[Case]:
    draw = np.random.default_rng(71)
    return [
        (10.0, 3.0, np.array([4.0, 5.5, 20.0])),
        (7.0, 2.0, np.array([])),
        (23.0, 1.5, np.sort(np.round(draw.uniform(0, 25, size=5), 2))),
        (31.0, 4.0, np.array([9.1, 17.3, 18.2, 29.9, 33.7, 60.0, 61.5])),
        (5.0, 8.0, np.array([2.2, 4.1, 30.0])),
        (12, 5, np.array([7, 11, 40])),
    ]


def finish(work: float, every: float, kills: Sequence[float] | Array) -> float:
    """The right answer."""
    return _finished(work, every, kills, lambda kept, done: kept + every * math.floor(done / every))


def _finished(
    work: float, every: float, kills: Sequence[float] | Array, keep: Callable[[float, float], float]
) -> float:
    """`keep(kept, done)` is what is kept after a kill, of what was kept and what has been done since."""
    clock, kept = 0.0, 0.0
    for kill in kills:
        if clock + work - kept <= kill:
            break
        kept, clock = keep(kept, float(kill) - clock), float(kill)
    return clock + work - kept


def _wrong_finishes(work: float, every: float, kills: Array) -> dict[str, float]:
    early = kills[kills < finish(work, every, kills)]
    clock, kept = 0.0, 0.0
    for kill in early:
        kept, clock = kept + max(0.0, every * math.floor(kill / every) - clock), float(kill)
    by_the_clock = clock + work - kept
    clock, kept = 0.0, 0.0
    for kill in kills:
        kept, clock = kept + every * math.floor((kill - clock) / every), float(kill)
    after_the_end = clock + work - kept
    return {
        "the job begins anew after a kill: it goes on from its last checkpoint": (
            _finished(work, every, kills, lambda kept, done: 0.0)
        ),
        "no work is lost: what was done since the last checkpoint is done again": work,
        "a kill costs half an interval on average, and what it really lost here": work + every / 2 * len(early),
        "a kill costs a whole interval at most, and what it really lost here": work + every * len(early),
        "checkpoints of before the last kill are forgotten: add them up": (
            _finished(work, every, kills, lambda kept, done: every * math.floor(done / every))
        ),
        "the next checkpoint counts, which was not reached: round down": (
            _finished(work, every, kills, lambda kept, done: kept + every * math.ceil(done / every))
        ),
        "checkpoints go by the clock: they are due after so much work since the job went on": by_the_clock,
        "a kill after the job is done changes nothing": after_the_end,
        "only the first kill counts": finish(work, every, kills[:1]),
        "only the last kill counts": finish(work, every, early[-1:]),
    }


def _killed_at(case: Case, got: Array, right: Array) -> str:
    work, every, kills = case
    return f"{work:g} hours of work, kept every {every:g}, killed at {kills.tolist()}, are done at another time"


_FINISH = Check(
    reference=finish,
    cases=_jobs,
    mistakes=_wrong_finishes,
    parts=("finish(...)",),
    praise="a kill costs what was done since the last checkpoint.",
    otherwise=_killed_at,
    tolerance=1e-6,
)


# Seeds and episodes


def _budgets() -> list[Case]:
    return [
        (100.0, 7.0, 0.3, 2.0, 9.0),
        (1000.0, 31.0, 0.02, 5.0, 40.0),
        (64.0, 3.0, 1.0, 0.5, 0.25),
        (37.0, 5.0, 0.5, 2.0, 30.0),
        (50, 4, 2, 3, 7),
    ]


def best_split(budget: float, train: float, episode: float, between: float, within: float) -> tuple[int, int]:
    """The right answer: for each number of seeds all episodes that there is money for."""
    return _searched(budget, train, episode, lambda s, e: between**2 / s + within**2 / (s * e))


def _searched(budget: float, train: float, episode: float, variance: Callable[[int, int], float]) -> tuple[int, int]:
    choices = []
    for seeds in range(1, int(budget / (train + episode) + 1e-9) + 1):
        episodes = math.floor((budget / seeds - train) / episode + 1e-9)
        choices.append((variance(seeds, episodes), seeds, episodes))
    return min(choices)[1:]


def _wrong_splits(
    budget: float, train: float, episode: float, between: float, within: float
) -> dict[str, tuple[float, float]]:
    seeds, episodes = best_split(budget, train, episode, between, within)
    many = int(budget / (train + episode) + 1e-9)
    ideal = max(1, round(math.sqrt(train / episode) * within / between))
    rounded = int(budget / (train + ideal * episode) + 1e-9), ideal
    return {
        "deviations are added as they are: variances add, so square them": (
            _searched(budget, train, episode, lambda s, e: between / s + within / (s * e))
        ),
        "the episodes of all seeds count: within² is divided by seeds times episodes": (
            _searched(budget, train, episode, lambda s, e: between**2 / s + within**2 / e)
        ),
        "more seeds lower both parts: between² is divided by the number of seeds": (
            _searched(budget, train, episode, lambda s, e: between**2 + within**2 / (s * e))
        ),
        "as many seeds as there is money for, of one episode each": (many, 1),
        "training costs nothing here: every seed has to be trained": (int(budget / episode + 1e-9), 1),
        "the closed form, rounded: whole seeds leave money over, so try each number of them": rounded,
        "episodes first: the seeds come first": (episodes, seeds),
        "seeds times episodes: the second number is the episodes of each seed": (seeds, seeds * episodes),
    }


def _judged(case: Case, got: Array, right: Array) -> str:
    budget, train, episode = case[:3]
    seeds, episodes = got
    if not (seeds >= 1 and episodes >= 1 and seeds == int(seeds) and episodes == int(episodes)):
        return f"seeds and episodes are whole numbers from 1; got {seeds:g} and {episodes:g}"
    cost = seeds * (train + episodes * episode)
    if cost > budget * (1 + 1e-9):
        return f"{seeds:g} seeds of {episodes:g} episodes cost {cost:g}, and the budget is {budget:g}"
    return f"for a budget of {budget:g} there is a better choice than {seeds:g} seeds of {episodes:g} episodes"


_BEST_SPLIT = Check(
    reference=best_split,
    cases=_budgets,
    mistakes=_wrong_splits,
    parts=("best_split(...)",),
    praise="seeds and episodes share the budget so that the mean is known best.",
    otherwise=_judged,
    tolerance=1e-9,
)
