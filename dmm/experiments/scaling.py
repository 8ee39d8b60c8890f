"""What a queue of jobs costs on many workers, what failures take away, and what a core-hour buys in certainty.

Source: Graham, "Bounds on multiprocessing timing anomalies" (1969), for jobs in a list; Young, "A first order
approximation to the optimum checkpoint interval" (1974), and Daly (2006), for checkpoints; the rest is the variance of
a mean over seeds, each of which is a mean over episodes.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dmm.errors import InputError, whole_number
from dmm.experiments.grid import Job
from dmm.experiments.queue import outcome
from dmm.experiments.reproduce import episode_scores, find_scale, make_job, make_jobs
from dmm.experiments.standings import ROWS
from dmm.experiments.tables import find_cells, make_tables

Array = NDArray[np.float64]
STATES = ("open", "done", "a table above wants it, too; open", "a table above wants it, too; done")
"""Of a job in a table: the numbers of `progress_map` are places in this list."""


# Jobs and their parts


def progress_map(scale: str, rows: Path = ROWS) -> dict[str, NDArray[np.int64]]:
    """By table: `(seeds, cells)` of places in `STATES`, from the outcomes there are.

    Args:
        scale: a name of `dmm.experiments.reproduce.SCALES`.
        rows: folder of the outcomes; the committed ones if not given.
    """
    done = {job.row_file: outcome(job) is not None for job in make_jobs(find_cells(), scale, Path("runs"), rows)}
    seen, found = set[Path](), {}
    for name, table in make_tables().items():
        states = np.zeros((find_scale(scale).seeds, len(table.cells())), dtype=np.int64)
        for seed in range(len(states)):
            for i, cell in enumerate(table.cells()):
                file = make_job(cell, scale, seed, Path("runs"), rows).row_file
                states[seed, i] = done[file] + 2 * (file in seen)
                seen.add(file)
        found[name] = states
    return found


def map_rows(states: Mapping[str, NDArray[np.int64]]) -> Array:
    """`progress_map` as one array: the rows of each table, then an empty one; NaN where there is no cell."""
    widest = max(table.shape[1] for table in states.values())
    padded = [
        np.pad(table.astype(np.float64), ((0, 1), (0, widest - table.shape[1])), constant_values=np.nan)
        for table in states.values()
    ]
    for table in padded:
        table[-1] = np.nan
    return np.concatenate(padded)


# Many workers


@dataclass(frozen=True)
class Turn:
    """When a job is worked on, and by which worker."""

    worker: int
    begin: float
    end: float


def timeline(hours: Sequence[float], workers: int) -> list[Turn]:
    """List scheduling: each job begins, in order, on the worker that is free first; the lowest number of several."""
    free = [(0.0, worker) for worker in range(whole_number("workers", workers, 1))]
    turns = []
    for each in hours:
        begin, worker = free[0]
        heapq.heapreplace(free, (begin + each, worker))
        turns.append(Turn(worker, begin, begin + each))
    return turns


def busy(turns: Sequence[Turn], times: ArrayLike) -> Array:
    """How many workers are at work at each of these times."""
    at = np.asarray(times, dtype=np.float64)
    begins = np.sort([turn.begin for turn in turns])
    ends = np.sort([turn.end for turn in turns])
    return (np.searchsorted(begins, at, side="right") - np.searchsorted(ends, at, side="right")).astype(np.float64)


def power(x: ArrayLike, y: ArrayLike) -> float:
    """The exponent p of `y = c x^p`, by least squares in logarithms.

    Raises:
        InputError: fewer than two different x, or numbers that are not positive.
    """
    across, up = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if across.shape != up.shape or across.ndim != 1 or len(np.unique(across)) < 2:
        raise InputError(f"x: got shape {across.shape} for y of {up.shape}, allowed are lists with two different x")
    if not (across.min() > 0 and up.min() > 0):
        raise InputError("x and y: allowed are positive numbers")
    return float(np.polyfit(np.log(across), np.log(up), 1)[0])


def update_seconds(
    models: Sequence[str], contexts: Sequence[int], *, time_steps: int = 512, repeats: int = 5, **changes: Any
) -> dict[str, list[float]]:
    """Median seconds of an update of each model at each context, on this machine, timed in turn.

    Data are random numbers of Hopper's sizes. Every batch has as many time steps, so that a model whose work grows in
    proportion to the length takes as long at every context.

    Args:
        models: names of `dmm.models.registry.MODELS`.
        contexts: time steps of a window.
        time_steps: of a batch.
        repeats: rounds.
        changes: to the models' configs.
    """
    import torch

    from dmm.bench import interleaved
    from dmm.bench.train import ACTION_SIZE, STATE_SIZE, TrainingStep, random_trajectories
    from dmm.models.registry import find_model
    from dmm.training import TrainConfig

    data, candidates = random_trajectories(), {}
    with torch.random.fork_rng(), torch.enable_grad():
        for model in models:
            for context in contexts:
                entry = find_model(model)
                config = entry.make_config(STATE_SIZE, ACTION_SIZE, "Hopper-v5", context=context, **changes)
                torch.manual_seed(0)
                how = TrainConfig(batch_size=max(1, time_steps // context))
                step = TrainingStep([entry.policy(config)], data, torch.device("cpu"), config=how)
                candidates[f"{model} {context}"] = step
        taken = interleaved(candidates, repeats=repeats)
    return {model: [taken[f"{model} {context}"]["median"] for context in contexts] for model in models}


# Failures


def young(write: float, between: float) -> float:
    """The work between checkpoints that costs least, to first order: sqrt(2 * write * between).

    Args:
        write: time that a checkpoint takes.
        between: mean time between failures, in the same unit.
    """
    return math.sqrt(2 * write * between)


def expected_stretch(every: ArrayLike, write: float, between: float) -> Array:
    """Expected time over work, of a job with a checkpoint after each `every` of work; failures come at random.

    A stretch of `every + write` has to pass without a failure. With exponential waiting times of mean `between`, and
    nothing lost but what was done since the last checkpoint, it takes `between * (exp(stretch / between) - 1)`.
    """
    work = np.asarray(every, dtype=np.float64)
    found: Array = between * np.expm1((work + write) / between) / work
    return found


def interrupted(
    stretches: int, every: float, write: float, between: float, runs: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Time that `runs` jobs of so many stretches really take, and the work that each failure of all of them lost."""
    taken, lost = np.zeros(runs), []
    length = every + write
    for run in range(runs):
        waiting = rng.exponential(between)
        for _ in range(stretches):
            while waiting < length:
                lost.append(min(waiting, every))
                taken[run] += waiting
                waiting = rng.exponential(between)
            taken[run] += length
            waiting -= length
    return taken, np.array(lost)


# What a core-hour buys


@dataclass(frozen=True)
class Scatter:
    """Standard deviations of a score, in its own unit: of policies that differ in their seed, and of their episodes."""

    between: float  # of true means over seeds; 0 where seeds differ no more than their episodes explain
    within: float  # of the episodes of one policy
    low: float  # interval of `between` at 95 %
    high: float
    freedom: int  # seeds less cells


def scatter(means: Sequence[Sequence[float]], variances: Sequence[Sequence[float]], episodes: int) -> Scatter | None:
    """What differs between seeds beyond what their episodes explain, pooled over cells; None without two seeds.

    Args:
        means: of each cell's seeds, over their episodes.
        variances: of each cell's seeds: of single episodes.
        episodes: of each seed.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in means]
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    if not freedom:
        return None
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups if len(group) > 1)
    within = float(np.mean([value for group in variances for value in group]))
    noise = within / whole_number("episodes", episodes, 1)
    ends = stats.chi2.ppf([0.975, 0.025], freedom)
    between, low, high = (math.sqrt(max(0.0, squares / f - noise)) for f in (freedom, *ends))
    return Scatter(between, math.sqrt(within), low, high, freedom)


def scatter_of_outcomes(scale: str, rows: Path = ROWS) -> dict[str, tuple[Scatter, int]]:
    """By data set: what its outcomes scatter, and how many cells with two seeds and more that is from.

    Of each seed the last checkpoint counts, at the first target.
    """
    found: dict[str, dict[str, list[Array]]] = {}
    episodes: dict[str, int] = {}
    for job in make_jobs(find_cells(), scale, Path("runs"), rows):
        if (row := outcome(job)) is not None:
            last: Array = episode_scores(row)[-1][0]
            found.setdefault(job.dataset, {}).setdefault(job.name, []).append(last)
            episodes[job.dataset] = job.episodes
    scatters = {}
    for dataset, cells in found.items():
        several = [seeds for seeds in cells.values() if len(seeds) > 1]
        made = scatter(
            [[float(each.mean()) for each in seeds] for seeds in several],
            [[float(each.var(ddof=1)) for each in seeds] for seeds in several],
            episodes[dataset],
        )
        if made is not None:
            scatters[dataset] = made, len(several)
    return scatters


def standard_error(between: float, within: float, seeds: ArrayLike, episodes: ArrayLike) -> Array:
    """Of a mean over `seeds` policies that play `episodes` each: sqrt(between² / s + within² / (s e))."""
    s, e = np.asarray(seeds, dtype=np.float64), np.asarray(episodes, dtype=np.float64)
    found: Array = np.sqrt(between**2 / s + within**2 / (s * e))
    return found


def best_episodes(train: float, episode: float, between: float, within: float) -> float:
    """Episodes of each seed for which a budget buys the smallest standard error; infinite where seeds do not differ.

    Args:
        train: what a seed's training costs.
        episode: what one of its episodes costs, in the same unit.
        between, within: standard deviations.
    """
    return math.inf if between == 0 else math.sqrt(train / episode) * within / between


@dataclass(frozen=True)
class Split:
    """How well a budget makes a mean known: that of `seeds` policies of `episodes` each, spent in another way."""

    errors: Array  # standard errors at each number of episodes that was asked for
    episodes: float  # the best number of each seed
    seeds: float  # that the budget buys with these, not a whole number
    least: float  # standard error there
    given: float  # standard error of the budget's own seeds and episodes


def split(
    price: Mapping[str, float], between: float, within: float, seeds: int, episodes: int, at: ArrayLike = ()
) -> Split:
    """What the money for `seeds` policies of `episodes` each could buy, where seeds differ at all.

    Args:
        price: of `describe_mean`.
        between, within: standard deviations.
        seeds, episodes: what the budget pays for.
        at: numbers of episodes for which to say the standard error.
    """
    budget = seeds * (price["train"] + episodes * price["episode"])

    def error(each: Any) -> Array:
        return standard_error(between, within, budget / (price["train"] + each * price["episode"]), each)

    best = best_episodes(price["train"], price["episode"], between, within)
    bought = budget / (price["train"] + best * price["episode"])
    curve = error(np.asarray(at, dtype=np.float64))
    return Split(curve, best, bought, float(error(best)), float(error(episodes)))


def describe_mean(job: Job, parts: Mapping[str, float], all_checkpoints: bool = True) -> dict[str, Any]:
    """What a seed's training and one more of its episodes cost, in core-seconds.

    Args:
        job: of a policy.
        parts: its hours, of `job_parts`.
        all_checkpoints: whether an episode more is one at every checkpoint and target, or one at the last alone.
    """
    trained = 3600 * (parts["updates"] + parts["earlier models"])
    played = 3600 * (parts["actions"] + parts["simulator"]) / job.episodes
    return {"train": trained, "episode": played if all_checkpoints else played / job.checkpoints / len(job.targets)}
