from __future__ import annotations

import numpy as np
import pytest

from dmm.data.sub_goals import GoalRule, steps_ahead, sub_goals
from dmm.errors import InputError

TEN = np.array([0, 1, 0, 0, 4, 0, 0, 0, 2, 1], dtype=np.float32)
"""Rewards of ten steps, worked out by hand with groups of five."""


@pytest.mark.parametrize(("rule", "expected"), [("formula", [5, 9]), ("literal", [4, 9]), ("released", [5, 9])])
def test_ten_steps_by_hand(rule: GoalRule, expected: list[int]) -> None:
    begins, goals = sub_goals(TEN, np.array([10]), 5, rule)
    assert begins.tolist() == [0, 5] and goals.tolist() == expected


def best_by_definition(rewards: np.ndarray, rule: str) -> int:
    """The letters of the module's docstring."""
    last, values = len(rewards) - 1, {}
    for j in range(1, len(rewards) + (rule != "literal")):
        paid = rewards[1 : j + 1] if rule == "literal" else rewards[:j]
        values[j] = float(np.sum(paid)) / j
    if not values:
        return 0
    best = max(values, key=lambda j: (values[j], -j))
    if rule == "released" and values[best] <= 0:
        best = 1
    return min(best, last)


@pytest.mark.parametrize("rule", ["formula", "literal", "released"])
def test_every_group_of_several_episodes_is_the_definition(rule: GoalRule) -> None:
    rng, lengths = np.random.default_rng(0), np.array([7, 1, 12, 7, 3])
    rewards = rng.integers(-3, 3, size=lengths.sum()).astype(np.float32)
    begins, goals = sub_goals(rewards, lengths, 4, rule)
    expected = []
    for start, length in zip(lengths.cumsum() - lengths, lengths, strict=True):
        for step in range(start, start + length, 4):
            expected.append((step, step + best_by_definition(rewards[step : start + length], rule)))
    assert list(zip(begins.tolist(), goals.tolist(), strict=True)) == expected


def test_nothing_paid_is_the_next_state_as_released_and_the_largest_by_formula() -> None:
    lost = -np.array([[3.0, 1.0, 0.5]])
    assert steps_ahead(lost, "released").tolist() == [1]
    assert steps_ahead(lost, "formula").tolist() == [2]  # the mean rises to the end, and the last state stands for it
    assert steps_ahead(np.zeros((2, 3)), "formula").tolist() == [1, 1]


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"^rule: got 'paper', allowed are formula, literal, released"):
        sub_goals(TEN, np.array([10]), 5, "paper")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^interval: "):
        sub_goals(TEN, np.array([10]), 0)
    with pytest.raises(InputError, match=r"^lengths: got 9 steps in all, allowed are those of 10 rewards"):
        sub_goals(TEN, np.array([9]), 5)
