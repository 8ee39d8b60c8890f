"""Reporting protocols: how one number is made of a run that was scored at many checkpoints, for many targets.

What comes in is `scores[checkpoint][target]`, an array `(episodes,)` of normalised returns, with the first target as
the headline. A pair of checkpoint and target is called an arm here, and its score the mean over its episodes.

**The maximum of noisy means is biased upward.** An arm's mean is its true value plus an error, and who picks the
largest mean picks a large error with it. Where `k` independent arms are equally good and each mean has standard error
`s` (nearly normal, by the central limit theorem), the maximum exceeds their common value on average by

    s E[max(z_1, ..., z_k)],  z_i ~ N(0, 1) independent,

which is `s * expected_maximum(k)`: 2.16 standard errors for the best of 40, though nothing differs. Arms whose errors
correlate by `rho`, as those of neighbouring checkpoints on the same start states do, have `sqrt(1 - rho)` of that.
Where arms truly differ, less of the maximum is bias, and none if one of them is far ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from dmm.errors import InputError, whole_number
from dmm.experiments.statistics import finite_numbers, require_list

RunScores = Sequence[Sequence[np.ndarray]] | np.ndarray
"""`scores[checkpoint][target]` is `(episodes,)`, with as many targets at each checkpoint and episodes in each arm."""

ProtocolName = Literal["last", "best of checkpoints", "best of all", "split"]

HALVINGS = 100
"""Random halvings of the episodes that `split_selection` averages over."""


@dataclass(frozen=True)
class Protocol:
    """A rule that makes a run's one number."""

    score: Callable[[RunScores], float]
    description: str  # one line


def last_checkpoint(scores: RunScores) -> float:
    """The mean over episodes at the last checkpoint, for the first target: nothing is selected, so nothing is biased.

    Raises:
        InputError: no checkpoints, targets or episodes, unequal numbers of them, or scores that are not finite; so do
            all protocols.
    """
    return float(_arms(scores)[-1, 0].mean())


def best_of_checkpoints(scores: RunScores) -> float:
    """The maximum over checkpoints of the mean over episodes, for the first target."""
    return float(_arms(scores)[:, 0].mean(axis=-1).max())


def best_of_all(scores: RunScores) -> float:
    """The maximum over checkpoints and targets of the mean over episodes, as DMM's released code reports it."""
    return float(_arms(scores).mean(axis=-1).max())


def split_selection(scores: RunScores, seed: int = 0) -> float:
    """The best arm on one half of the episodes, scored on the other half.

    Episodes of the two halves are independent, so the score of the chosen arm is unbiased: its error had no part in the
    choice. What it estimates is the value of an arm that was selected on half as many episodes, which is at most that
    of the best arm. Each half serves once for the choice and once for the score, the result is averaged over `HALVINGS`
    random halvings, and arms that tie for best share the choice evenly. All arms are halved alike, because episode `i`
    may begin from the same state in all of them. Of an odd number of episodes, one half has one more.

    Raises:
        InputError: see `last_checkpoint`; or fewer than two episodes.
    """
    arms, seed = _arms(scores), whole_number("seed", seed, 0)
    episodes = arms.shape[-1]
    if episodes < 2:
        raise InputError(f"scores: got {episodes} episode of each arm, allowed are at least 2 to split")
    generator, flat, cut = np.random.default_rng(seed), arms.reshape(-1, episodes), (episodes + 1) // 2
    orders = np.stack([generator.permutation(episodes) for _ in range(HALVINGS)])
    half, other = (flat[:, part].mean(axis=-1) for part in (orders[:, :cut], orders[:, cut:]))  # (arms, halvings)
    found = []
    for choice, score in ((half, other), (other, half)):
        best = choice == choice.max(axis=0)
        found.append(np.sum(score, axis=0, where=best) / best.sum(axis=0))
    return float(np.mean(found))


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "last": Protocol(last_checkpoint, "last checkpoint, first target: fixed beforehand, nothing is selected"),
    "best of checkpoints": Protocol(best_of_checkpoints, "maximum over checkpoints, first target: biased upward"),
    "best of all": Protocol(
        best_of_all, "maximum over checkpoints and targets, as DMM's release reports: biased upward"
    ),
    "split": Protocol(
        split_selection, "checkpoint and target chosen on half of the episodes and scored on the other half: unbiased"
    ),
}


def expected_maximum(k: int) -> float:
    """The expected maximum of `k` independent standard normal numbers, by which the best of `k` equals flatters.

    It is the integral of `x k phi(x) Phi(x)^(k - 1)`. The sum over an even grid is exact to rounding, since the
    integrand is smooth and vanishes at both ends.

    Raises:
        InputError: `k` is no whole number from 1 to a million.
    """
    k = whole_number("k", k, 1, 10**6)
    x, step = np.linspace(-40, 40, 16_001, retstep=True)
    density = np.exp(math.log(k) + stats.norm.logpdf(x) + (k - 1) * special.log_ndtr(x))
    return float(step * (x * density).sum())


def flattery_of_equals(scores: RunScores) -> float:
    """By how much the best of all would exceed the arms' true value if all arms of a run were equally good.

    It is `s sqrt(1 - rho) expected_maximum(arms)`, with the mean variance of the arms' means for `s^2` and the mean
    correlation of two arms' episodes for `rho`: both are in the variance of what is left of a score when the mean of
    its episode over all arms is taken away. Episodes of one number must begin alike in all arms, if in any.

    Raises:
        InputError: see `last_checkpoint`; or fewer than two episodes.
    """
    arms = _arms(scores)
    k, episodes = arms.shape[0] * arms.shape[1], arms.shape[-1]
    if episodes < 2:
        raise InputError(f"scores: got {episodes} episode of each arm, allowed are at least 2, to see how they scatter")
    if k == 1:
        return 0.0
    flat = arms.reshape(k, episodes)
    own = (flat - flat.mean(axis=0)).var(axis=1, ddof=1).mean() * k / (k - 1)
    return float(math.sqrt(own / episodes) * expected_maximum(k))


def _arms(scores: RunScores) -> np.ndarray:
    """As one array `(checkpoints, targets, episodes)` of finite numbers."""
    require_list("scores", scores, "checkpoints")
    rows: list[list[np.ndarray]] = []
    for i, checkpoint in enumerate(scores):
        require_list(f"scores[{i}]", checkpoint, "targets", like=scores[0])
        rows.append([_episodes(f"scores[{i}][{j}]", arm) for j, arm in enumerate(checkpoint)])
        for j, arm in enumerate(rows[-1]):
            require_list(f"scores[{i}][{j}]", arm, "episodes", like=rows[0][0])
    return np.array(rows)


def _episodes(name: str, arm: np.ndarray) -> np.ndarray:
    allowed = "an array (episodes,)"
    numbers = finite_numbers(name, arm, allowed)
    if numbers.ndim != 1:
        raise InputError(f"{name}: got shape {numbers.shape}, allowed is {allowed}")
    return numbers
