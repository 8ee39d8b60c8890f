"""What float32 would lose of large numbers, from the arrays to the policy."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.arrays import write_dataset
from dmm.data.observations import FlatObservation
from dmm.data.precision import not_finite, real_array, subtract
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.errors import DataWarning, InputError

STEPS, EPISODES = 10, 6
N = STEPS * EPISODES
ENDS = np.tile([0] * (STEPS - 1) + [1], EPISODES)
COLUMNS = {
    "seconds since 1970": 1.7e9 + 0.5 * np.arange(N),
    "latitude": 52.52 + np.tile(np.arange(STEPS), EPISODES) * 1e-6,
    "nanoseconds": 1_700_000_000_000_000_000 + np.arange(N) * 500_000_000,
    "large identifiers": 2**60 + np.arange(N),
    "beyond int64": np.arange(N, dtype=np.uint64) + np.uint64(2**63),
    "negative": -3e8 - 0.25 * np.arange(N),
    "that begins with a gap": np.r_[0.0, 1.7e9 + 0.5 * np.arange(1, N)],
}


def states(column: np.ndarray) -> np.ndarray:
    """`(N, 3)` of the column's type, the column last."""
    small = np.arange(2 * N).reshape(N, 2) % 7
    return np.concatenate([small.astype(column.dtype), column[:, None]], axis=1)


def by_hand(observations: Any) -> Trajectories:
    lengths = np.full(EPISODES, STEPS)
    ends = np.cumsum(lengths)
    actions = np.zeros((N, 1), np.float32)
    return Trajectories(observations, actions, np.ones(N), ends - lengths, lengths, [1] * EPISODES, "mine/x-v0", "")


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("way", ["stored", "by hand"])
def test_what_differs_still_differs(name: str, way: str, datasets_path: object) -> None:
    rows = states(COLUMNS[name])
    if way == "stored":
        write_dataset("mine/x-v0", rows, np.zeros((N, 1)), np.ones(N), ENDS, 0 * ENDS, progress=False)
    data = load_trajectories("mine/x-v0") if way == "stored" else by_hand(rows)
    assert data.observations.dtype == np.float32 and data.observation_offset is not None
    assert len(np.unique(data.observations[:, 2])) == len(np.unique(rows[:, 2]))
    np.testing.assert_array_equal(data.observations[:, :2], rows[:, :2])
    assert data.observation_offset[:2].tolist() == [0, 0]
    exact = [int(value) if rows.dtype.kind in "iu" else value for value in rows[:, 2].tolist()]
    expected = [value - int(data.observation_offset[2]) for value in exact]
    np.testing.assert_allclose(data.observations[:, 2], expected, rtol=1e-6, atol=1e-7)


def test_dictionaries_and_live_environments_lose_as_little(make_dataset) -> None:
    time = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    count = gym.spaces.Box(0, 2**62, (1,), np.int64)
    space = gym.spaces.Dict({"time": time, "count": count})
    seen = {"time": 1.7e9 + 0.5 * np.arange(11)[:, None], "count": 2**60 + np.arange(11)[:, None]}
    make_dataset("mine/x-v0", [(seen, np.zeros((10, 2), np.float32), np.ones(10))], space)
    data = load_trajectories("mine/x-v0")
    assert [len(np.unique(column)) for column in data.observations.T] == [10, 10]

    class Clock(gym.Env):
        observation_space = space
        action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, **options: Any) -> tuple[Any, dict]:
            return {key: values[0] for key, values in seen.items()}, {}

        def step(self, action: Any) -> Any:
            return {key: values[1] for key, values in seen.items()}, 0.0, False, False, {}

    env = FlatObservation(Clock(), data.observation_keys, data.observation_offset)
    live = np.stack([env.reset()[0], env.step(np.zeros(2))[0]])
    np.testing.assert_array_equal(live, data.observations[:2])
    assert env.observation_space.shape == (2,)


def test_ordinary_numbers_are_left_as_they_are() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(N, 3)) * [1e-6, 1.0, 1e3] + [0.3, 5.0, -2e4]
    data = by_hand(rows)
    assert data.observation_offset is None
    np.testing.assert_array_equal(data.observations, rows.astype(np.float32))
    resting = np.repeat(rows[:1], N, axis=0) + 1e-9 * rng.normal(size=(N, 3))  # a simulator's noise
    assert by_hand(resting).observation_offset is None


def test_a_range_that_float32_cannot_hold_is_named() -> None:
    years = np.linspace(0, 1e9, EPISODES).repeat(STEPS) + 1.7e9 + 0.5 * np.arange(N)
    with pytest.warns(DataWarning, match="column 2 of observations: most changes .* too small for float32"):
        by_hand(states(years))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_hand(states(COLUMNS["seconds since 1970"]))


def test_offset_takes_part_in_the_fingerprint() -> None:
    first, second = (by_hand(states(COLUMNS["large identifiers"] + shift)) for shift in (0, 4096))
    assert np.array_equal(first.observations, second.observations) and first.fingerprint() != second.fingerprint()


def test_differences_of_unsigned_numbers_go_below_zero() -> None:
    rows = np.array([[2**63, 3]], dtype=np.uint64)
    assert subtract(rows, np.array([2.0**63 + 4096, 5.0])).tolist() == [[-4096, -2]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.array([[1.0, 2.0], [3.0, np.nan]]), (1, "NaN or infinity")),
        (np.array([1.0, -np.inf]), (1, "NaN or infinity")),
        (np.array([[-1e39]]), (0, "-1e+39, more than float32 holds,")),
        (np.array([[2**60]]), None),
        (np.zeros((0, 3)), None),
    ],
)
def test_what_is_not_finite_is_found(rows: np.ndarray, expected: tuple[int, str] | None) -> None:
    assert not_finite(rows) == expected


@pytest.mark.parametrize("values", ["abc", [1j], [[1], [1, 2]], [None], np.array(["2020-01-01"], "datetime64[D]")])
def test_only_real_numbers_are_numbers(values: Any) -> None:
    with pytest.raises(InputError, match=r"^rewards: .*real numbers") as caught:
        real_array("rewards", values)
    assert "\n" not in str(caught.value)
