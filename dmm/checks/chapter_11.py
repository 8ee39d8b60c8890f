"""Checks for the exercises of chapter 11: ranks with ties and gaps, a score chosen apart, how likely a win is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Runs = list[Array]


def check_ranks(answer: Callable[..., Any]) -> None:
    """`answer(scores (m, t))` must give each model's mean rank over the tasks that it has, `(m,)`."""
    _RANKS(answer)


def check_split_score(answer: Callable[..., Any]) -> None:
    """`answer(arms (k, e), half (e,))` must give the mean of two scores, each chosen on the other half."""
    _SPLIT_SCORE(answer)


def check_improvement(answer: Callable[..., Any]) -> None:
    """`answer(ours, theirs)` must give how likely a run of ours beats one of theirs, in the mean over tasks."""
    _IMPROVEMENT(answer)


# Ranks


def _rank_cases() -> list[Case]:
    draw = np.random.default_rng(11)
    whole = draw.integers(-3, 3, size=(5, 7)).astype(np.float64)  # few values: many ties
    whole[[0, 3, 3], [2, 2, 5]] = np.nan
    skewed = -np.exp(draw.normal(size=(4, 3)))
    skewed[1, 0] = skewed[2, 0]
    skewed[3, 1] = np.nan
    skewed[0, 2] = np.nan
    small = np.array([[2.0, 9.0, 4.0, 4.0], [2.0, 8.0, 4.0, 5.0], [1.0, 8.0, 4.0, np.nan]])
    return [(scores,) for scores in (whole, skewed, small, draw.integers(0, 3, size=(6, 5)), np.array([[7.0, -1.0]]))]


def ranks(scores: Array, ties: str = "mean") -> Array:
    """The right answer, and those with other rules for ties."""
    found: Array = np.nanmean(_places(scores, ties), axis=1)
    return found


def _places(scores: Array, ties: str = "mean") -> Array:
    better = (scores[None] > scores[:, None]).sum(axis=1)
    alike = (scores[None] == scores[:, None]).sum(axis=1)
    before = np.array([(scores[:i] == row).sum(axis=0) for i, row in enumerate(scores)])
    rule = {"mean": (alike + 1) / 2, "min": 1, "max": alike, "order": before + 1}[ties]
    return np.where(np.isnan(scores), np.nan, better + rule)


def _rank_mistakes(scores: Array) -> dict[str, Array]:
    here = ~np.isnan(scores)
    last = np.where(here, scores, -1e9)
    all_places = _places(scores)
    return {
        "ties have the best of their places: they share the mean, (1 + 2) / 2 for two at the top": ranks(scores, "min"),
        "ties have the worst of their places: they share the mean": ranks(scores, "max"),
        "ties are broken by the order of the models: they share the mean of their places": ranks(scores, "order"),
        "the order is reversed: the largest score has rank 1": ranks(-scores),
        "ranks are counted from 0: the best has 1": ranks(scores) - 1,
        "a missing result has the last place: the model is left out of that task": ranks(last),
        "a missing result counts as a score of 0: the model is left out of that task": ranks(np.nan_to_num(scores)),
        "the sum is divided by all tasks: a model has as many as it has results": np.nansum(all_places, axis=1)
        / scores.shape[1],
        "these are medians of the ranks: the mean is asked for": np.nanmedian(all_places, axis=1),
        "the mean scores are ranked: rank each task, then take the mean": _places(np.nanmean(scores, axis=1)[:, None])[
            :, 0
        ],
        "these are mean scores, not ranks": np.nanmean(scores, axis=1),
    }


_RANKS = Check(
    reference=lambda scores: ranks(scores),
    cases=_rank_cases,
    mistakes=_rank_mistakes,
    parts=("ranks(...)",),
    praise="ties share their places, and gaps take none.",
    otherwise=lambda case, got, right: (
        "the average ranks of {} models on {} tasks, {} cells of them missing, are others".format(
            *case[0].shape, int(np.isnan(case[0]).sum())
        )
    ),
)


# A score chosen apart


def _split_cases() -> list[Case]:
    draw = np.random.default_rng(12)
    skewed = np.exp(draw.normal(size=(5, 9))) * 10
    whole = np.array([[3.0, 1, 0, 2, 8, 1, 4], [1, 3, 2, 0, 0, 1, 1], [0, 2, 1, 1, 5, 9, 2]])
    signed = draw.normal(-20, 5, size=(4, 11))
    return [
        (skewed, np.arange(9) % 2 == 0),
        (whole, np.array([True, True, False, False, True, True, False])),
        (np.array([[2.0, 2, 0, 1], [1, 3, 5, 1], [0, 2, 1, 1]]), np.arange(4) < 2),  # two arms tie on the first half
        (signed, np.arange(11) >= 7),
        (draw.integers(-4, 5, size=(6, 8)), np.arange(8) % 3 == 1),
    ]


def split_score(arms: Array, half: NDArray[np.bool_]) -> float:
    """The right answer."""
    return float(np.mean(_both(arms, half)))


def _both(arms: Array, half: NDArray[np.bool_], of_ties: Callable[[Array], Any] = np.mean) -> list[float]:
    """What is chosen on the first half and scored on the second, and the other way round."""
    found = []
    for here, there in ((half, ~half), (~half, half)):
        choice, score = arms[:, here].mean(axis=1), arms[:, there].mean(axis=1)
        found.append(float(of_ties(score[choice == choice.max()])))
    return found


def _split_mistakes(arms: Array, half: NDArray[np.bool_]) -> dict[str, float]:
    pairs = [(arms[:, part].mean(axis=1), arms[:, ~part].mean(axis=1)) for part in (half, ~half)]
    means = arms.mean(axis=1)
    one, other = _both(arms, half)
    chosen = [means[choice == choice.max()].mean() for choice, _ in pairs]
    best = means == means.max()
    return {
        "the winner is scored on the half that chose it: take its mean on the other": np.mean(
            [choice.max() for choice, _ in pairs]
        ),
        "the winner is scored on all episodes, and half of them chose it: take the other half alone": np.mean(chosen),
        "that is the best of all: nothing is set apart": means.max(),
        "chosen on all episodes: choose on one half": np.mean([score[best].mean() for _, score in pairs]),
        "chosen on the first half alone: do it both ways round, and take the mean": one,
        "chosen on the second half alone: do it both ways round, and take the mean": other,
        "the largest of the two numbers: their mean is asked for": max(one, other),
        "the smallest mean is chosen: take the arm with the largest": split_score(-arms, half) * -1,
        "of arms that tie for the choice the first is taken: take the mean over all of them": np.mean(
            [score[choice.argmax()] for choice, score in pairs]
        ),
        "of arms that tie for the choice the best on the other half is taken: that is a choice, too": np.mean(
            _both(arms, half, np.max)
        ),
        "the two numbers are weighted by their episodes: take their plain mean": (
            one * (~half).sum() + other * half.sum()
        )
        / half.size,
        "the two numbers are added: take their mean": one + other,
        "that is the mean of all arms: one is to be chosen": arms.mean(),
    }


_SPLIT_SCORE = Check(
    reference=split_score,
    cases=_split_cases,
    mistakes=_split_mistakes,
    parts=("split_score(...)",),
    praise="no arm is scored by the episodes that chose it.",
    otherwise=lambda case, got, right: (
        "{} arms with {} episodes, {} of them in the first half, have another score".format(
            *case[0].shape, int(case[1].sum())
        )
    ),
)


# How likely a win is


def _improvement_cases() -> list[Case]:
    draw = np.random.default_rng(13)
    whole = [draw.integers(-2, 3, size=n).astype(np.float64) for n in (5, 2, 3, 4, 1, 2)]
    skewed = [np.exp(draw.normal(size=n)) for n in (3, 5, 7)]
    others = [np.exp(draw.normal(0.3, 1, size=n)) - 0.2 for n in (4, 2, 5)]
    return [
        (whole[:3], whole[3:]),
        (skewed, others),
        ([np.array([1.0, 2.0])], [np.array([2.0, 0.0, 3.0])]),  # 2 1/2 of 6 pairs
        ([np.array([-5.0, -1.0, -1.0]), np.array([7.0])], [np.array([-1.0]), np.array([7.0, 9.0])]),
        ([np.array([3, 1, 2])], [np.array([2, 2, 0, 3, 1])]),
    ]


def improvement(ours: Runs, theirs: Runs, tie: float = 0.5) -> float:
    """The right answer, and those that count ties otherwise."""
    return float(np.mean([_won(x, y, tie).mean() for x, y in zip(ours, theirs, strict=True)]))


def _won(x: Array, y: Array, tie: float = 0.5) -> Array:
    won: Array = (x[:, None] > y) + tie * (x[:, None] == y)
    return won


def _improvement_mistakes(ours: Runs, theirs: Runs) -> dict[str, float]:
    pairs = list(zip(ours, theirs, strict=True))
    short = [(x[: len(y)], y[: len(x)]) for x, y in pairs]
    means = [np.sign(x.mean() - y.mean()) for x, y in pairs]
    right = improvement(ours, theirs)
    return {
        "ties do not count: each is half a win": improvement(ours, theirs, 0),
        "ties count as wins: each is half a win": improvement(ours, theirs, 1),
        "runs of the same number are compared: every run of ours meets every run of theirs": float(
            np.mean([((x > y) + 0.5 * (x == y)).mean() for x, y in short])
        ),
        "all pairs of all tasks are pooled: take the share of each task, then the mean over tasks": float(
            np.concatenate([_won(x, y).ravel() for x, y in pairs]).mean()
        ),
        "runs of different tasks are compared: compare within a task": float(
            _won(np.concatenate(ours), np.concatenate(theirs)).mean()
        ),
        "means are compared: one run of each is drawn": float((np.mean(means) + 1) / 2),
        "each run is compared with the mean of the other side: it meets every single run": float(
            np.mean([(np.sign(x - y.mean()).mean() + 1) / 2 for x, y in pairs])
        ),
        "ours and theirs are swapped: ours are to win": 1 - right,
        "that is wins less losses, from -1 to 1: a probability is asked for": 2 * right - 1,
        "that is a percentage: a probability lies between 0 and 1": 100 * right,
        "that is by how much ours are ahead: only who wins counts": float(
            np.mean([x.mean() - y.mean() for x, y in pairs])
        ),
        "wins are counted: divide by the number of pairs of a task": float(sum(_won(x, y).sum() for x, y in pairs)),
    }


def _counts_of_runs(case: Case) -> str:
    ours, theirs = ([len(runs) for runs in side] for side in case)
    return f"with {ours} runs of ours and {theirs} of theirs, task by task, it is another probability"


_IMPROVEMENT = Check(
    reference=lambda ours, theirs: improvement(ours, theirs),
    cases=_improvement_cases,
    mistakes=_improvement_mistakes,
    parts=("improvement(...)",),
    praise="every run has met every run, and every task counts alike.",
    otherwise=lambda case, got, right: _counts_of_runs(case),
)
