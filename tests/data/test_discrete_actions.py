"""Discrete actions from a data set through training to evaluation, and through the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from dmm.cli import main
from dmm.data.arrays import write_dataset
from dmm.data.trajectories import load_trajectories
from dmm.errors import InputError
from dmm.evaluation import RandomActor, evaluate, rollout
from dmm.training import Run, load_run, train

ENV_ID = "FollowTheSign-v0"
NAME = "mine/signs-v0"
CHANGES = {"width": 16, "layers": 1, "context": 2, "batch_size": 32, "learning_rate": 3e-3, "dropout": 0.0}


class FollowTheSign(gym.Env):
    """Shows which of the actions 1, 2, 3 earns 1 now; ten steps."""

    observation_space = gym.spaces.Box(0, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(3, start=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.steps += 1
        reward = float(action == self.sign)
        return self._show(), reward, False, self.steps == 10, {}

    def _show(self) -> np.ndarray:
        self.sign = int(self.np_random.integers(1, 4))
        return np.eye(3, dtype=np.float32)[self.sign - 1]


@pytest.fixture(scope="module")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Thirty episodes in which the sign is followed."""
    gym.register(ENV_ID, entry_point=f"{__name__}:FollowTheSign")
    rng = np.random.default_rng(0)
    actions = rng.integers(1, 4, 300)
    ends = np.arange(300) % 10 == 9
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        write_dataset(
            NAME, np.eye(3, dtype=np.float32)[actions - 1], actions, np.ones(300), np.zeros(300), ends, env_id=ENV_ID
        )
        yield NAME
    del gym.registry[ENV_ID]


@pytest.fixture(scope="module")
def run(signs: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("run")
    return train(signs, steps=150, out=path, changes=CHANGES, device="cpu", progress=False)


def test_a_policy_learns_to_follow_the_sign(run: Run) -> None:
    done = evaluate(run, episodes=4, targets=[10.0], progress=False)
    assert done.scores[0].returns.tolist() == [10.0] * 4
    data = load_trajectories(NAME)
    chance = rollout(RandomActor(data.action_size), data.make_env, episodes=40).returns.mean()
    assert 2 < chance < 5  # uniform over three actions


def test_what_is_played_is_remembered_as_in_the_data(run: Run) -> None:
    policy = run.policy
    action, state = policy.act(policy.init_state(3, 10.0), torch.eye(3))
    assert torch.equal(action, torch.eye(3)) and action.dtype == torch.float32
    assert torch.equal(state.actions[:, -1], action)


def test_a_run_that_is_read_again_knows_that_actions_are_discrete(run: Run) -> None:
    again = load_run(run.path)
    assert again.policy.discrete_actions
    there = (evaluate(each, episodes=2, targets=[10.0], progress=False).to_json() for each in (run, again))
    assert next(there) == next(there)


def test_a_run_that_does_not_say_has_continuous_ones(run: Run, tmp_path: Path) -> None:
    earlier = shutil.copytree(run.path, tmp_path / "run")
    info = json.loads((earlier / "run.json").read_text())
    del info["dataset"]["discrete_actions"]
    (earlier / "run.json").write_text(json.dumps(info))
    assert not load_run(earlier).policy.discrete_actions


def test_from_the_command_line(signs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [word for name, value in CHANGES.items() for word in ("--set", f"{name}={value}")]
    for words in (
        ["train", signs, "--steps", "20", "--out", str(tmp_path / "run"), "--device", "cpu", *sets],
        ["evaluate", str(tmp_path / "run"), "--episodes", "2"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--json"])
        assert stopped.value.code == 0
        result = json.loads(capsys.readouterr().out)
    assert result["episodes"] == 2 and result["targets"] == [10.0]


def test_evaluation_needs_the_run_alone(run: Run, datasets_path: Path) -> None:
    with pytest.raises(InputError, match="is not on this machine"):
        load_trajectories(NAME)
    assert len(evaluate(run.path, episodes=1, progress=False).scores[0].returns) == 1
