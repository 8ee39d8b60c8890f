from __future__ import annotations

import warnings

import numpy as np
import pytest

from dmm.data.return_scale import require_returns_in_range, scale_of, warn_of_close_returns
from dmm.errors import DataWarning, InputError


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        *((0, 1), (1e-3, 1e-3), (0.02, 0.1), (1, 1), (4, 1), (20, 1), (90, 100)),
        *((193, 1e3), (3377, 1e3), (12_000, 1e3), (9e4, 1e5), (9e6, 1e7)),
    ],
)
def test_scale_follows_the_largest_return_to_go(largest: float, expected: float) -> None:
    for sign in (1, -1):
        assert scale_of(sign * np.array([0.0, largest / 3, largest])) == pytest.approx(expected)


@pytest.mark.parametrize(("to_go", "scale"), [(np.inf, 1.0), (-1e30, 1e30), (1e15, 1e-6), (np.nan, 1.0)])
def test_what_squares_cannot_hold_is_refused(to_go: float, scale: float) -> None:
    with pytest.raises(InputError, match=r"^rewards: the returns-to-go of 'mine/x-v0' reach") as caught:
        require_returns_in_range(np.array([1.0, to_go]), scale, "mine/x-v0")
    assert "\n" not in str(caught.value)


def spread(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, 200)


@pytest.mark.parametrize(
    ("returns", "warned"),
    [
        (spread(1e6, 1.01e6), True),
        (-spread(1e6, 1.01e6), True),
        (np.r_[spread(1, 5), -1e6], True),  # one catastrophe sets the scale
        (spread(700, 3300), False),
        (np.repeat([0.0, 1.0], [190, 10]), False),  # sparse rewards
        (np.full(9, 4.0), False),  # nothing to tell apart
        (np.array([3.0]), False),
    ],
)
def test_returns_too_close_for_their_size_are_named(returns: np.ndarray, warned: bool) -> None:
    largest = float(np.abs(returns).max())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        warn_of_close_returns(returns, largest, "mine/x-v0")
    assert [issubclass(warning.category, DataWarning) for warning in heard] == [True] * warned
