"""Checks for the exercises of chapter 9: which score is reported, choosing honestly, counting weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks import as_array, call, close, passed, require
from dmm.models.dmm import DecisionMetaMamba, DMMConfig

Array = NDArray[np.float64]


def check_report(answer: Callable[[Array], Any]) -> None:
    """`answer(returns (c, t, e))` must give the last checkpoint's score at the first target, and the best of all."""
    returns = np.random.default_rng(9).normal(60.0, 20.0, size=(5, 3, 8))
    returns[1, 2] += 30.0  # neither the last checkpoint nor the first target is the best
    scores = returns.mean(-1)
    last, best = as_array(call(answer, returns), (2,), "report(...)")
    require(
        not (close(last, scores.max()) and close(best, scores[-1, 0])), "the two are swapped: last first, then best"
    )
    _name_mistake(last, _wrong_last(returns))
    require(close(last, scores[-1, 0]), f"last: expected {scores[-1, 0]:.2f}, got {last:.2f}")
    _name_mistake(best, _wrong_best(returns))
    require(close(best, scores.max()), f"best: expected {scores.max():.2f}, got {best:.2f}")
    passed("the last checkpoint's score and the best of all are two quantities.")


def _wrong_last(returns: Array) -> dict[str, Any]:
    scores = returns.mean(-1)
    return {
        "last: take the mean over the episodes of one target; this is the mean over all targets": returns[-1].mean(),
        "last: this is the last target; the headline is the first one": scores[-1, -1],
        "last: this is the first checkpoint; the last one is returns[-1]": scores[0, 0],
        "last: this is the best target of the last checkpoint; no choosing here": scores[-1].max(),
        "last: this is the mean over everything; only the last checkpoint counts": returns.mean(),
        "last: this is a single episode; take the mean over the last axis": returns[-1, 0, -1],
    }


def _wrong_best(returns: Array) -> dict[str, Any]:
    scores, largest = returns.mean(-1), returns.max((0, 1))
    return {
        "best: this is the best single episode; take the mean over episodes first, then the maximum": returns.max(),
        "best: take the mean over episodes first; this is a mean over episodes of each one's best": largest.mean(),
        "best: this looks at the first target only; the released code takes the best target too": scores[:, 0].max(),
        "best: this looks at the last checkpoint only; the released code takes the best of all": scores[-1].max(),
        "best: this is the best checkpoint's mean over targets; the best target is chosen too": scores.mean(1).max(),
        "best: this is the mean of all scores, not the largest": scores.mean(),
    }


def check_fresh(answer: Callable[[Array], Any]) -> None:
    """`answer(returns (c, e))` must choose a checkpoint by episodes 0, 2, ... and score it by 1, 3, ..."""
    returns = np.random.default_rng(90).normal(50.0, 10.0, size=(12, 40))
    returns[3, ::2] += 40.0  # wins on the half that chooses
    returns[7, 1::2] += 40.0  # wins on the other half
    returns[5] += 30.0  # wins on all episodes
    got = float(as_array(call(answer, returns), (), "fresh_score(...)"))
    _name_mistake(got, _wrong_choices(returns))
    expected = returns[3, 1::2].mean()
    require(close(got, expected), f"expected {expected:.2f}, got {got:.2f}")
    passed("a checkpoint that is scored by other episodes than those that chose it.")


def _wrong_choices(returns: Array) -> dict[str, Any]:
    even, odd, whole = returns[:, ::2].mean(1), returns[:, 1::2].mean(1), returns.mean(1)
    first, exchanged = returns[:, :20].mean(1).argmax(), returns[::2].mean(0).argmax()
    return {
        "this is the score on the half that chose the checkpoint: report the other half": even.max(),
        "the checkpoint was chosen by the half that is reported: choose by episodes 0, 2, 4, ...": odd.max(),
        "the halves are swapped: choose by episodes 0, 2, 4, ..., report 1, 3, 5, ...": even[odd.argmax()],
        "chosen and reported on all episodes: that is the best-of-all score again": whole.max(),
        "the checkpoint was chosen by all episodes: choose by episodes 0, 2, 4, ... only": odd[whole.argmax()],
        "chosen well, but reported on all episodes: leave out those that chose": whole[even.argmax()],
        "that is the number of the checkpoint: return its score": float(even.argmax()),
        "this is the last checkpoint: choose one by its mean over episodes 0, 2, 4, ...": odd[-1],
        "the halves are first and second: take every other episode, returns[:, ::2]": returns[first, 20:].mean(),
        "the axes are exchanged: rows are checkpoints, columns episodes": returns[1::2, exchanged].mean(),
    }


def check_count(answer: Callable[[int, int, int, int], Any]) -> None:
    """`answer(s, a, d, layers)` must count the weights of table 4's DMM."""
    for s, a, d, layers in ((5, 2, 40, 5), (11, 3, 64, 3), (17, 6, 32, 3)):
        got = float(as_array(call(answer, s, a, d, layers), (), "count(...)"))
        config = DMMConfig.released(s, a, share_dsm=True, width=d, layers=layers)
        expected, size = DecisionMetaMamba(config).parameter_count(), f"count({s}, {a}, {d}, {layers}): "
        off = got - expected
        for hint, error in _miscounts(a, d, layers).items():
            require(not (error and off == error), size + hint)
        way = "many" if off > 0 else "few"
        require(off == 0, f"{size}expected {expected:,}, got {got:,.0f}, which is {abs(off):,.0f} too {way}")
    passed("74,435 for Hopper at width 64, and 21,862 is Walker2d at width 32.")


def _miscounts(a: int, d: int, layers: int) -> dict[str, int]:
    """By how much a typical slip is off; sizes are checked first that tell most of them apart."""
    rank = -(-d // 16)
    mamba = 3 * d * d + d * (rank + 32) + rank * d + d + 17 * d  # each term is linear in the inner channels
    return {
        "a DSM for each layer: table 4's model has one for all layers": (layers - 1) * 6 * d * d,
        "a pair of LayerNorms for each layer: here one pair serves all": (layers - 1) * 4 * d,
        "the DSM has no bias here": d,
        "the window counts tokens, not steps: the DSM maps 6 d numbers to d": -4 * d * d,
        "d numbers are missing in each layer: Mamba's D, or the bias of dt_proj": -layers * d,
        "Mamba's convolution is still counted, 5 d numbers in each layer: the released code leaves it out": (
            layers * 5 * d
        ),
        "Mamba's convolution is still counted, 4 d weights in each layer: the released code leaves it out": (
            layers * 4 * d
        ),
        "the rank is d / 16 rounded up, not always 4": layers * 2 * d * (4 - rank),
        "16 numbers per channel and layer are missing: those of A, or of B and C, which are two": -layers * 16 * d,
        "A and D are missing: 16 + 1 numbers per channel and layer": -layers * 17 * d,
        "this is expand 2: the released code has as many inner channels as channels": layers * mamba,
        "in_proj makes two branches, d to 2 d": -layers * d * d,
        "the rank of the step size is d / 16 rounded up, not down": -layers * 2 * d * (d % 16 > 0),
        "the embeddings have a bias each": -3 * d,
        "2 d numbers are missing: a LayerNorm (after the embeddings, at the end) or the return's embedding": -2 * d,
        "the head has a bias, one number per action entry": -a,
        "the head is missing: d to a, with bias": -(d * a + a),
        "only one layer's Mamba is counted": -(layers - 1) * mamba,
    }


def _name_mistake(got: float, mistakes: dict[str, Any]) -> None:
    """Fail with the hint of the mistake that gives `got`."""
    for hint, wrong in mistakes.items():
        require(not close(got, wrong, 1e-6), hint)
