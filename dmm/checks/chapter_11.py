"""Checks for the exercises of chapter 11: ranks with ties and gaps, a score chosen apart, how likely a win is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks import as_array, call, close, match, passed, require

Array = NDArray[np.float64]
Runs = list[Array]


def check_ranks(answer: Callable[..., Any]) -> None:
    """`answer(scores (m, t))` must give each model's mean rank over the tasks that it has, `(m,)`."""
    cases = _rank_cases()
    found = []
    for scores in cases:
        given = scores.copy()
        found.append(as_array(call(answer, scores), (len(scores),), "ranks(...)"))
        require(np.array_equal(scores, given, equal_nan=True), "your function changed its input scores: work on a copy")
    right = [ranks(scores) for scores in cases]
    wrong = [_rank_mistakes(scores) for scores in cases]
    first = next((i for i, (got, best) in enumerate(zip(found, right, strict=True)) if not close(got, best)), 0)
    hint = "the average ranks of {} models on {} tasks, {} cells of them missing, are others".format(
        *cases[first].shape, int(np.isnan(cases[first]).sum())
    )
    match(np.concatenate(found), np.concatenate(right), _joined(wrong), hint)
    passed("ties share their places, and gaps take none.")


def check_split_score(answer: Callable[..., Any]) -> None:
    """`answer(arms (k, e), half (e,))` must give the mean of two scores, each chosen on the other half."""
    cases = _split_cases()
    found = []
    for arms, half in cases:
        given = arms.copy(), half.copy()
        found.append(float(as_array(call(answer, arms, half), (), "split_score(...)")))
        unchanged = np.array_equal(arms, given[0]) and np.array_equal(half, given[1])
        require(unchanged, "your function changed its input: work on a copy")
    right = [split_score(*case) for case in cases]
    wrong = [_split_mistakes(*case) for case in cases]
    first = next((i for i, (got, best) in enumerate(zip(found, right, strict=True)) if not close(got, best)), 0)
    hint = "{} arms with {} episodes, {} of them in the first half, have another score".format(
        *cases[first][0].shape, int(cases[first][1].sum())
    )
    match(np.array(found), np.array(right), _joined(wrong), hint)
    passed("no arm is scored by the episodes that chose it.")


def check_improvement(answer: Callable[..., Any]) -> None:
    """`answer(ours, theirs)` must give how likely a run of ours beats one of theirs, in the mean over tasks."""
    cases = _improvement_cases()
    found = []
    for ours, theirs in cases:
        given = [[runs.copy() for runs in side] for side in (ours, theirs)]
        found.append(float(as_array(call(answer, ours, theirs), (), "improvement(...)")))
        same = [len(a) == len(b) and all(map(np.array_equal, a, b)) for a, b in zip((ours, theirs), given, strict=True)]
        require(all(same), "your function changed its input: work on a copy")
    right = [improvement(*case) for case in cases]
    wrong = [_improvement_mistakes(*case) for case in cases]
    first = next((i for i, (got, best) in enumerate(zip(found, right, strict=True)) if not close(got, best)), 0)
    counts = [[len(runs) for runs in side] for side in cases[first]]
    hint = f"with {counts[0]} runs of ours and {counts[1]} of theirs, task by task, it is another probability"
    match(np.array(found), np.array(right), _joined(wrong), hint)
    passed("every run has met every run, and every task counts alike.")


def _joined(wrong: Sequence[dict[str, Any]]) -> dict[str, Array]:
    """The same mistake made in all cases, as one array."""
    return {hint: np.concatenate([np.atleast_1d(each[hint]) for each in wrong]) for hint in wrong[0]}


# Ranks


def _rank_cases() -> list[Array]:
    draw = np.random.default_rng(11)
    whole = draw.integers(-3, 3, size=(5, 7)).astype(np.float64)  # few values: many ties
    whole[[0, 3, 3], [2, 2, 5]] = np.nan
    skewed = -np.exp(draw.normal(size=(4, 3)))
    skewed[1, 0] = skewed[2, 0]
    skewed[3, 1] = np.nan
    skewed[0, 2] = np.nan
    return [whole, skewed, np.array([[2.0, 9.0, 4.0, 4.0], [2.0, 8.0, 4.0, 5.0], [1.0, 8.0, 4.0, np.nan]])]


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


# A score chosen apart


def _split_cases() -> list[tuple[Array, NDArray[np.bool_]]]:
    draw = np.random.default_rng(12)
    skewed = np.exp(draw.normal(size=(5, 9))) * 10
    whole = np.array([[3.0, 1, 0, 2, 8, 1, 4], [1, 3, 2, 0, 0, 1, 1], [0, 2, 1, 1, 5, 9, 2]])
    signed = draw.normal(-20, 5, size=(4, 11))
    return [
        (skewed, np.arange(9) % 2 == 0),
        (whole, np.array([True, True, False, False, True, True, False])),
        (np.array([[2.0, 2, 0, 1], [1, 3, 5, 1], [0, 2, 1, 1]]), np.arange(4) < 2),  # two arms tie on the first half
        (signed, np.arange(11) >= 7),
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


# How likely a win is


def _improvement_cases() -> list[tuple[Runs, Runs]]:
    draw = np.random.default_rng(13)
    whole = [draw.integers(-2, 3, size=n).astype(np.float64) for n in (5, 2, 3, 4, 1, 2)]
    skewed = [np.exp(draw.normal(size=n)) for n in (3, 5, 7)]
    others = [np.exp(draw.normal(0.3, 1, size=n)) - 0.2 for n in (4, 2, 5)]
    return [
        (whole[:3], whole[3:]),
        (skewed, others),
        ([np.array([1.0, 2.0])], [np.array([2.0, 0.0, 3.0])]),  # 2 1/2 of 6 pairs
        ([np.array([-5.0, -1.0, -1.0]), np.array([7.0])], [np.array([-1.0]), np.array([7.0, 9.0])]),
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
