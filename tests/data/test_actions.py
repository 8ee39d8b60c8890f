"""Action spaces of any bounds, from a data set through training to what the environment is given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from dmm.data.actions import unit_actions, with_unit_actions
from dmm.data.observations import FlatObservation
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.errors import DataWarning, InputError
from dmm.evaluation import make_env, rollout
from dmm.training import load_run, train

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
SMALL: dict[str, Any] = {"width": 8, "layers": 1, "context": 2, "batch_size": 4}


def box(low: Any, high: Any, dtype: Any = np.float32) -> gym.spaces.Box:
    return gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


class Echo(gym.Env):
    """Keeps the actions that it is given, and writes over them."""

    observation_space = BOX
    given: ClassVar[list[np.ndarray]] = []

    def __init__(self, space: gym.spaces.Box):
        self.action_space = space

    def reset(self, **options: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(3), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.given.append(action.copy())
        action[:] = 0
        return np.zeros(3), 0.0, False, False, {}


@pytest.mark.parametrize(
    "space",
    [
        box([0, 0], [1, 1]),
        box([-2, -2], [2, 2]),
        box([-0.4, -0.4], [0.4, 0.4]),
        box([-1, 10], [0.5, 30]),
        box([0, 0], [255, 7], np.int64),
        box([-np.inf, 0], [np.inf, np.inf]),
        box([3, -1], [3, 1]),
    ],
    ids=str,
)
def test_there_and_back(space: gym.spaces.Box) -> None:
    rng = np.random.default_rng(0)
    finite = [np.where(np.isfinite(side), side, extreme) for side, extreme in ((space.low, -5), (space.high, 9))]
    actions = rng.uniform(*finite, (50, 2)).astype(space.dtype)
    unit, bounds = unit_actions(actions, space, "mine/x-v0")
    assert bounds is not None and unit.dtype == np.float32 and np.abs(unit).max() <= 1
    env = with_unit_actions(Echo(space), bounds)
    Echo.given.clear()
    env.reset()
    for action in np.concatenate([unit, [[-1, -1], [1, 1]]]).astype(np.float32):
        env.step(action)
    assert all(space.contains(action) for action in Echo.given)
    np.testing.assert_allclose(Echo.given[:50], actions, rtol=1e-5, atol=1e-5)


def test_minus_one_to_one_stays_bit_for_bit() -> None:
    space, actions = box([-1, -1], [1, 1]), np.array([[0.1, -1], [1, 0.3]], np.float32)
    unit, bounds = unit_actions(actions, space, "mine/x-v0")
    assert bounds is None and unit is actions
    assert unit_actions(actions, box([-np.inf] * 2, [np.inf] * 2), "mine/x-v0")[1] is None
    env = Echo(space)
    assert with_unit_actions(env, None) is env


def test_actions_a_little_outside_are_brought_back_aloud() -> None:
    actions = np.array([[0.0, 0.5], [1.005, 1]], np.float32)
    with pytest.warns(DataWarning, match=r"actions: 1 of 'mine/x-v0' lie up to 0\.5 % of the width beyond"):
        unit, _ = unit_actions(actions, box([0, 0], [1, 1]), "mine/x-v0")
    assert np.abs(unit).max() == 1


def test_nothing_beyond_its_bounds_is_played_without_a_scale_either() -> None:
    Echo.given.clear()
    env = with_unit_actions(Echo(box([-0.4, -0.4], [0.4, 0.4])), None)
    env.step(np.array([0.9, -0.2], np.float32))
    np.testing.assert_allclose(Echo.given[0], [0.4, -0.2], rtol=1e-6)


class SharedBuffer(gym.Env):
    """All environments of this class fill one array, and write over the action that they are given."""

    observation_space = BOX
    action_space = box([-1, -1], [1, 1])
    seen: ClassVar[np.ndarray] = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.steps, self.start = 0, float(seed or 0)
        self.seen[:] = self.start
        return self.seen, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        self.seen[:] = self.start + 10 * self.steps
        paid = float(action[0])
        action[:] = 9
        return self.seen, paid, self.steps == 3, False, {}


class Halver:
    """Plays half of what it remembers having played, and remembers the very tensor that it plays."""

    def init_state(self, n: int, target: Any) -> torch.Tensor:
        return torch.ones(n, 2)

    def act(self, state: torch.Tensor, observation: Any, reward: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        halved = state / 2
        return halved, halved

    def select(self, state: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return state[rows]


def test_evaluation_keeps_what_environments_write_over() -> None:
    done = rollout(Halver(), lambda: FlatObservation(SharedBuffer()), episodes=2, seed=1)
    assert [course[:, 0].tolist() for course in done.observations] == [[1, 11, 21, 31], [2, 12, 22, 32]]
    assert done.returns.tolist() == [0.875, 0.875]


@pytest.fixture
def stored(make_dataset, monkeypatch: pytest.MonkeyPatch) -> Trajectories:
    """Ten steps in an environment whose actions go from 0 to 4."""
    space = box([0, 0], [4, 4])
    monkeypatch.setitem(gym.registry, "Echo-v0", EnvSpec("Echo-v0", entry_point=f"{__name__}:Echo"))
    rng = np.random.default_rng(0)
    actions = rng.uniform(0, 4, (10, 2)).astype(np.float32)
    make_dataset("mine/x-v0", [(rng.normal(size=(11, 3)), actions, np.ones(10))], BOX, space)
    data = load_trajectories("mine/x-v0")
    np.testing.assert_allclose(data.actions, actions / 2 - 1, atol=1e-6)
    return dataclasses.replace(data, env_id="Echo-v0")


def test_a_run_remembers_the_bounds(stored: Trajectories, tmp_path: Path) -> None:
    run = train(stored, steps=1, out=tmp_path / "run", changes=SMALL, device="cpu", progress=False)
    said = json.loads((tmp_path / "run" / "run.json").read_text())["dataset"]
    assert said["action_bounds"] == [[0.0, 0.0], [4.0, 4.0]] and said["observation_offset"] is None
    for env in (
        make_env(load_run(run.path).info, space=box([0, 0], [4, 4])),
        stored.make_env(space=box([0, 0], [4, 4])),
    ):
        Echo.given.clear()
        env.reset()
        env.step(np.array([-1.0, 0.5], np.float32))
        assert Echo.given[0].tolist() == [0, 3]


def test_bounds_take_part_in_the_fingerprint_and_are_checked(stored: Trajectories) -> None:
    other = dataclasses.replace(stored, action_bounds=(np.zeros(2), np.full(2, 5.0)))
    assert other.fingerprint() != stored.fingerprint() != dataclasses.replace(stored, action_bounds=None).fingerprint()
    for wrong in ((np.zeros(3), np.ones(3)), (np.ones(2), np.zeros(2)), 7, (np.zeros(2), [np.inf, 1])):
        with pytest.raises(InputError, match=r"^action_bounds: got"):
            dataclasses.replace(stored, action_bounds=wrong)


def test_far_outside_the_bounds_is_refused_before_training(make_dataset, tmp_path: Path) -> None:
    episode = (np.zeros((3, 3)), np.array([[9.0], [1.0]], np.float32), np.ones(2))
    make_dataset("mine/x-v0", [episode], BOX, box([0], [4]))
    with pytest.raises(
        InputError, match=r"actions of 'mine/x-v0' reach 3\.5, allowed is -1 to 1, where -1 and 1 stand"
    ):
        train("mine/x-v0", steps=1, out=tmp_path / "run", changes=SMALL, progress=False)
