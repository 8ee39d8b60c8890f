"""Valuable sub-goals: for the first step of every group of c steps, the later state that pays the most per step.

Of an episode with states `s_0 .. s_(T-1)` and rewards `r_t`, each for the action taken in `s_t`, the state `s_j` of the
largest value is the sub-goal of step i, the earliest one where several have it:

    formula    v(j) = (r_i + ... + r_(j-1)) / (j - i),  i < j <= T     a reward belongs to the state that it led to
    literal    v(j) = (r_(i+1) + ... + r_j) / (j - i),  i < j < T      the letters of the paper with this r_t
    released   as formula, where some v(j) is above 0, else j = i + 1

`s_T` is not known, and s_(T-1) stands for it. `released` is but half of what the released code does: an earlier episode
of the context comes first, see `dmm.data.contexts`.

Source: Huang et al. 2024, arXiv 2406.00079, section 4.2; `desired_states` in `experiment.py` of
SiliHuang-ai/hybrid_mamba.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dmm.errors import InputError, require_choice, whole_number

GoalRule = Literal["formula", "literal", "released"]


def steps_ahead(rewards: np.ndarray, rule: GoalRule) -> np.ndarray:
    """How many steps ahead the sub-goal of the first of m steps lies, in several episodes: `(e, m) -> (e,)` int64.

    0 where there is no later state.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    last = rewards.shape[1] - 1
    if not last:
        return np.zeros(len(rewards), dtype=np.int64)
    paid = rewards[:, 1:] if rule == "literal" else rewards
    means = paid.cumsum(axis=1) / np.arange(1, paid.shape[1] + 1)
    best: np.ndarray = means.argmax(axis=1)
    if rule == "released":
        best[means.max(axis=1) <= 0] = 0
    ahead: np.ndarray = np.minimum(best + 1, last)
    return ahead


def sub_goals(
    rewards: np.ndarray, lengths: np.ndarray, interval: int, rule: GoalRule = "formula"
) -> tuple[np.ndarray, np.ndarray]:
    """The sub-goal of every group of every episode.

    Args:
        rewards: of all steps, episodes one after another, `(N,)`.
        lengths: steps of each episode, `(E,)`.
        interval: `c`, steps of a group; the last group of an episode may be shorter.
        rule: see the module.

    Returns:
        The row of each group's first step and that of its sub-goal, `(G,)` int64 each, episodes one after another.

    Raises:
        InputError: an unknown rule, an interval below 1, or lengths that do not add up to the rewards.
    """
    require_choice("rule", rule, GoalRule)
    c, lengths = whole_number("interval", interval, 1), np.asarray(lengths, dtype=np.int64)
    if lengths.sum() != len(rewards):
        raise InputError(f"lengths: got {int(lengths.sum())} steps in all, allowed are those of {len(rewards)} rewards")
    starts, groups = lengths.cumsum() - lengths, -(-lengths // c)
    first = groups.cumsum() - groups  # group of each episode
    begins, goals = (np.empty(int(groups.sum()), dtype=np.int64) for _ in range(2))
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        paid = np.asarray(rewards)[starts[alike, None] + np.arange(length)]  # (e, length)
        for group, step in enumerate(range(0, int(length), c)):
            begins[first[alike] + group] = starts[alike] + step
            goals[first[alike] + group] = starts[alike] + step + steps_ahead(paid[:, step:], rule)
    return begins, goals
