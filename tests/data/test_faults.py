"""Environments that misbehave end in one line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.faults import CheckedEnv, time_limit
from dmm.errors import RunError
from dmm.evaluation import RandomActor, rollout

SEEN, GOOD = np.zeros(3, np.float32), (np.zeros(3, np.float32), 1.0, False, False, {})


class Scripted(gym.Env):
    """Gives what it was told to, at its second step; three steps make an episode."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, second: Any = GOOD, first: Any = (SEEN, {})):
        self.second, self.first = second, first

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return self._play(self.first)

    def step(self, action: Any) -> Any:
        self.t += 1
        if self.t == 2:
            return self._play(self.second)
        return (*GOOD[:2], self.t == 3, False, {})

    def _play(self, part: Any) -> Any:
        if isinstance(part, BaseException):
            raise part
        return part


def play(env: gym.Env) -> np.ndarray:
    return rollout(RandomActor(2), lambda: env, episodes=1, seed=7).returns


def step(**changes: Any) -> tuple[Any, ...]:
    """What a step of the environment gives, but for these changes."""
    given = {"observation": SEEN, "reward": 1.0, "terminated": False, "truncated": False}
    return *(given | changes).values(), {}


@pytest.mark.parametrize("reward", [1, 1.0, np.float32(1), np.array([1.0]), np.array(1), np.array([[1]]), [1.0], True])
def test_a_reward_of_one_number_counts(reward: Any) -> None:
    assert play(Scripted(step(reward=reward))).tolist() == [3.0]


@pytest.mark.parametrize("over", [True, np.True_, 1, np.array([True]), np.array(1.0)])
def test_flags_of_one_truth_value_count(over: Any) -> None:
    for flag in ("terminated", "truncated"):
        assert play(Scripted(step(**{flag: over}))).tolist() == [2.0]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (RuntimeError("the motor\nburnt"), "RuntimeError: the motor burnt"),
        (SystemExit(0), "SystemExit: 0"),
        (AssertionError(), "AssertionError"),
        (GOOD[:4], r"ValueError: not enough values to unpack \(expected 5, got 4\)"),
        (None, "TypeError: cannot unpack"),
        (step(observation=None), "its observation is None"),
        (step(observation=np.zeros(4)), r"its observation has shape \(4,\), allowed is \(3,\)"),
        (step(observation=np.array(["a", "b", "c"])), "its observation is array"),
        (step(observation=np.array([0, np.nan, 0])), "its observation holds NaN or infinity"),
        (step(observation=np.array([0, np.inf, 0])), "its observation holds NaN or infinity"),
        (step(reward=None), "its reward is None, allowed is a finite number"),
        (step(reward="1"), "its reward is '1'"),
        (step(reward=np.ones(2)), "its reward is array"),
        (step(reward=np.array([])), "its reward is array"),
        (step(reward=1j), "its reward is 1j"),
        (step(reward=float("nan")), "its reward is nan"),
        (step(reward=np.float32("-inf")), "its reward is .*inf"),
        (step(terminated=None), "its `terminated` is None, allowed are True and False"),
        (step(truncated="no"), "its `truncated` is 'no'"),
        (step(truncated=2), "its `truncated` is 2"),
        (step(terminated=np.array([True, False])), "its `terminated` is array"),
    ],
)
def test_faults_of_a_step_are_named(second: Any, said: str) -> None:
    with pytest.raises(RunError, match=rf"^environment: 'Scripted', step 2 of episode 0 \(seed 7\): {said}") as caught:
        play(Scripted(second))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (OSError("no route to the robot"), "OSError: no route to the robot"),
        (SEEN, "ValueError: too many values"),
        ((SEEN[:2], {}), r"its observation has shape \(2,\)"),
        ((np.full(3, np.nan), {}), "its observation holds NaN"),
    ],
)
def test_faults_of_a_reset_are_named(first: Any, said: str) -> None:
    with pytest.raises(RunError, match=rf"^environment: 'Scripted', the reset of episode 0 \(seed 7\): {said}"):
        play(Scripted(first=first))


def test_the_episode_and_its_seed_are_named() -> None:
    class Fourth(Scripted):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.second = KeyError("joint") if seed == 13 else GOOD
            return super().reset(seed=seed)

    with pytest.raises(RunError, match=r"step 2 of episode 3 \(seed 13\): KeyError: 'joint'"):
        rollout(RandomActor(2), Fourth, episodes=5, seed=10)


def test_ctrl_c_goes_on() -> None:
    with pytest.raises(KeyboardInterrupt):
        play(Scripted(KeyboardInterrupt()))


def test_a_last_observation_may_be_broken() -> None:
    """The one of a simulator that noticed that it diverged, and ended the episode; nobody acts on it."""
    assert play(Scripted(step(observation=np.full(3, np.nan), terminated=True))).tolist() == [2.0]


def test_a_bare_environment_is_known_by_its_class() -> None:
    assert CheckedEnv(Scripted()).name == "Scripted"
    assert CheckedEnv(gym.make("CartPole-v1")).name == "CartPole-v1"


def test_time_limits() -> None:
    assert time_limit(gym.make("CartPole-v1")) == 500 and time_limit(Scripted()) is None
    assert time_limit(gym.make("CartPole-v1", max_episode_steps=1_000_000)) is None
