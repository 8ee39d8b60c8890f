"""Checks for the exercises of chapter 9: which score is reported, choosing honestly, what a published count says."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks import CheckFailed
from dmm.checks.check import Case, Check
from dmm.models.dmm import DecisionMetaMamba, DMMConfig

Array = NDArray[np.float64]
Reading = tuple[bool, bool, int]


def check_report(answer: Callable[..., Any]) -> None:
    """`answer(returns (c, t, e))` must give the last checkpoint's score at the first target, and the best of all."""
    _REPORT(answer)


def check_fresh(answer: Callable[..., Any]) -> None:
    """`answer(returns (c, e))` must choose a checkpoint by episodes 0, 2, ... and score it by 1, 3, ..."""
    _FRESH(answer)


def check_readings(answer: Callable[..., Any]) -> None:
    """`answer(total, s, a, d, layers)` must list every `(share_dsm, share_norms, expand)` with so many weights."""

    @functools.wraps(answer)
    def in_order(*sizes: int) -> Any:
        found = answer(*sizes)
        if found is None or found is ...:
            return found
        try:
            return sorted(tuple(reading) for reading in found)
        except TypeError as error:
            raise CheckFailed("return a list of (share_dsm, share_norms, expand)") from error

    _READINGS(in_order if callable(answer) else answer)


# Two scores from one run


def _runs() -> list[Case]:
    """The best of all is in turn at another target, at the last checkpoint, at the first target, and the only one."""
    draw = np.random.default_rng(9)
    usual = draw.normal(60.0, 20.0, size=(5, 3, 8))
    usual[1, 2] += 30.0
    late = draw.normal(-5.0, 3.0, size=(3, 4, 7))
    late[-1, 1] += 20.0
    skewed = np.exp(draw.normal(1.0, 1.5, size=(4, 2, 5)))
    skewed[2, 0] += 40.0
    one_target = draw.integers(-3, 9, size=(7, 1, 2))
    first = draw.normal(10.0, 1.0, size=(2, 5, 3))
    first[0, -1] += 10.0
    return [(returns,) for returns in (usual, late, skewed, one_target, first, np.array([[[4.0, -1.0]]]))]


def _report(returns: Array) -> tuple[Any, Any]:
    scores = returns.mean(-1)
    return scores[-1, 0], scores.max()


def _report_mistakes(returns: Array) -> dict[str, tuple[Any, Any]]:
    scores = returns.mean(-1)
    last, best = _report(returns)
    wrong_last = {
        "last: take the mean over the episodes of one target; this is the mean over all targets": returns[-1].mean(),
        "last: this is the last target; the headline is the first one": scores[-1, -1],
        "last: this is the first checkpoint; the last one is returns[-1]": scores[0, 0],
        "last: this is the best target of the last checkpoint; no choosing here": scores[-1].max(),
        "last: this is the mean over everything; only the last checkpoint counts": returns.mean(),
        "last: this is a single episode; take the mean over the last axis": returns[-1, 0, -1],
        "last: this is the median over the episodes; take the mean": np.median(returns, axis=-1)[-1, 0],
        "last: this is the best checkpoint at the first target; the last one counts": scores[:, 0].max(),
    }
    wrong_best = {
        "best: this is the best single episode; take the mean over episodes first, then the maximum": returns.max(),
        "best: take the mean over episodes first; this is a mean over episodes of each one's best": (
            returns.max((0, 1)).mean()
        ),
        "best: this looks at the first target only; the released code takes the best target too": scores[:, 0].max(),
        "best: this looks at the last checkpoint only; the released code takes the best of all": scores[-1].max(),
        "best: this is the best checkpoint's mean over targets; the best target is chosen too": scores.mean(1).max(),
        "best: this is the best target's mean over checkpoints; the best checkpoint is chosen too": scores.mean(
            0
        ).max(),
        "best: this is the mean of all scores, not the largest": scores.mean(),
        "best: this leaves the last checkpoint out; it is one of them": (
            scores[:-1].max() if len(scores) > 1 else scores.max()
        ),
        "best: this is the best of the last targets; the released code takes the best target too": scores[:, -1].max(),
    }
    return {
        "the two are swapped: last first, then best": (best, last),
        **{hint: (wrong, best) for hint, wrong in wrong_last.items()},
        **{hint: (last, wrong) for hint, wrong in wrong_best.items()},
    }


_REPORT = Check(
    reference=_report,
    cases=_runs,
    mistakes=_report_mistakes,
    parts=("last", "best"),
    praise="the last checkpoint's score and the best of all are two quantities.",
    otherwise="not the score that was asked for",
    tolerance=1e-6,
)


# Choose on one half, report on the other


def _checkpoints() -> list[Case]:
    draw = np.random.default_rng(90)
    returns = draw.normal(50.0, 10.0, size=(12, 40))
    returns[3, ::2] += 40.0  # wins on the half that chooses
    returns[7, 1::2] += 40.0  # wins on the other half
    returns[5] += 30.0  # wins on all episodes
    skewed = np.exp(draw.normal(0.0, 2.0, size=(9, 11)))  # means, medians and best episodes disagree
    negative = -np.exp(draw.normal(1.0, 2.0, size=(7, 13)))
    small = np.array([[0.0, 1, 100, 1], [60, 2, 60, 2]])  # the best episode is not in the best mean
    whole = draw.integers(-9, 10, size=(6, 5))
    return [(cases,) for cases in (returns, skewed, negative, small, whole, np.array([[1.0, 5.0, 3.0]]))]


def _fresh(returns: Array, of: Callable[..., Array] = np.mean) -> Any:
    return returns[of(returns[:, ::2], axis=1).argmax(), 1::2].mean()


def _split_checkpoints(returns: Array) -> Any:
    return returns[1::2][returns[::2].mean(1).argmax()].mean()


_FRESH = Check(
    reference=_fresh,
    cases=_checkpoints,
    mistakes={
        "this is the score on the half that chose the checkpoint: report the other half": (
            lambda r: r[:, ::2].mean(1).max()
        ),
        "the checkpoint was chosen by the half that is reported: choose by episodes 0, 2, 4, ...": (
            lambda r: r[:, 1::2].mean(1).max()
        ),
        "the halves are swapped: choose by episodes 0, 2, 4, ..., report 1, 3, 5, ...": (
            lambda r: r[r[:, 1::2].mean(1).argmax(), ::2].mean()
        ),
        "chosen and reported on all episodes: that is the best-of-all score again": lambda r: r.mean(1).max(),
        "the checkpoint was chosen by all episodes: choose by episodes 0, 2, 4, ... only": (
            lambda r: r[r.mean(1).argmax(), 1::2].mean()
        ),
        "chosen well, but reported on all episodes: leave out those that chose": (
            lambda r: r[r[:, ::2].mean(1).argmax()].mean()
        ),
        "that is the number of the checkpoint: return its score": lambda r: float(r[:, ::2].mean(1).argmax()),
        "this is the last checkpoint: choose one by its mean over episodes 0, 2, 4, ...": lambda r: r[-1, 1::2].mean(),
        "the halves are first and second: take every other episode, returns[:, ::2]": (
            lambda r: r[r[:, : r.shape[1] // 2].mean(1).argmax(), r.shape[1] // 2 :].mean()
        ),
        "the axes are exchanged: rows are checkpoints, columns episodes": lambda r: _fresh(r.T),
        "chosen by the best episode: choose by the mean over episodes 0, 2, 4, ...": lambda r: _fresh(r, np.max),
        "chosen by the worst episode: choose by the mean over episodes 0, 2, 4, ...": lambda r: _fresh(r, np.min),
        "chosen by the median: choose by the mean over episodes 0, 2, 4, ...": lambda r: _fresh(r, np.median),
        "the checkpoints are split in two: split the episodes, returns[:, ::2]": _split_checkpoints,
        "the best episode of the other half is reported: take their mean": (
            lambda r: r[r[:, ::2].mean(1).argmax(), 1::2].max()
        ),
        "the checkpoint with the smallest mean was chosen: take the largest": (
            lambda r: r[r[:, ::2].mean(1).argmin(), 1::2].mean()
        ),
    },
    parts=("the score",),
    praise="a checkpoint that is scored by other episodes than those that chose it.",
    otherwise="another score",
    tolerance=1e-6,
)


# What a published count says


def _weights(s: int, a: int, d: int, layers: int, share_dsm: bool, share_norms: bool, expand: int) -> int:
    config = DMMConfig.released(
        s, a, width=d, layers=layers, share_dsm=share_dsm, share_norms=share_norms, expand=expand
    )
    return DecisionMetaMamba(config).parameter_count()


def _counts() -> list[Case]:
    """Counts of one reading, of two and of four (with one layer nothing is shared), and of none."""
    return [
        (74_435, 11, 3, 64, 3),
        (_weights(5, 2, 24, 2, False, False, 2), 5, 2, 24, 2),
        (_weights(17, 6, 20, 4, True, True, 1), 17, 6, 20, 4),
        (_weights(3, 1, 16, 1, True, False, 2), 3, 1, 16, 1),
        (_weights(5, 2, 24, 2, False, True, 1) + 1, 5, 2, 24, 2),
        (_weights(7, 4, 36, 5, True, False, 1), 7, 4, 36, 5),
    ]


def _all_readings() -> Sequence[Reading]:
    return list(itertools.product((False, True), (False, True), (1, 2)))


def _readings(total: int, s: int, a: int, d: int, layers: int) -> list[Reading]:
    return [reading for reading in _all_readings() if _weights(s, a, d, layers, *reading) == total]


def _readings_mistakes(total: int, s: int, a: int, d: int, layers: int) -> dict[str, Any]:
    counts = {reading: _weights(s, a, d, layers, *reading) for reading in _all_readings()}
    found = _readings(total, s, a, d, layers)

    def only(holds: Callable[[Reading], bool]) -> list[Reading]:
        return [reading for reading in found if holds(reading)]

    nearest = min(abs(count - total) for count in counts.values())
    return {
        "only the first reading is listed: a count may have several": found[:1],
        "only the last reading is listed: a count may have several": found[-1:],
        "expand is taken for 1: Mamba's own is 2": only(lambda reading: reading[2] == 1),
        "expand is taken for 2: the released code's is 1": only(lambda reading: reading[2] == 2),
        "a DSM for each layer is never considered": only(lambda reading: reading[0]),
        "a shared DSM is never considered": only(lambda reading: not reading[0]),
        "a shared pair of norms is never considered": only(lambda reading: not reading[1]),
        "norms of each layer's own are never considered": only(lambda reading: reading[1]),
        "share_dsm and share_norms are swapped": sorted((norms, dsm, expand) for dsm, norms, expand in found),
        "the nearest counts are listed: a reading has exactly as many weights, or it is none": [
            reading for reading, count in counts.items() if abs(count - total) == nearest
        ],
        "every reading with at most so many weights is listed: it has to be exactly as many": [
            reading for reading, count in counts.items() if count <= total
        ],
        "True and False are swapped": sorted((not dsm, not norms, expand) for dsm, norms, expand in found),
    }


_READINGS = Check(
    reference=_readings,
    cases=_counts,
    mistakes=_readings_mistakes,
    parts=("the readings",),
    praise="74,435 has one reading, and a count that none gives counts something else.",
    otherwise="other readings have this many weights",
)
