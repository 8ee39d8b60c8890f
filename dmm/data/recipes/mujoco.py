"""Hopper, Walker2d and HalfCheetah: recorded by snapshots of training runs, after D4RL's MuJoCo sets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.policies import POLICY_FOLDER, StochasticPolicy, load_policy
from dmm.data.recipes.recipe import Recipe
from dmm.normalize import reference_returns


class RecordedPolicy:
    """A stochastic policy as a behaviour; the same in every episode."""

    def __init__(self, policy: StochasticPolicy):
        self.policy = policy

    @classmethod
    def load(cls, file_name: str) -> RecordedPolicy:
        """The policy whose weights the package keeps under that name."""
        return cls(load_policy(POLICY_FOLDER / file_name))

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        pass

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        return self.policy.sample(observation, rng)


class UniformPolicy:
    """Actions drawn uniformly from [-1, 1]: where a training run begins."""

    def __init__(self, action_size: int):
        self.action_size = action_size

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        pass

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, self.action_size).astype(np.float32)


@dataclass(frozen=True)
class Ladder:
    """Snapshots of one training run, by training step, from random to expert.

    The package keeps each in `policies/<name>/step-<step>.npz`, the run's log in `snapshots.csv` beside them, and the
    command behind it in `policies/kept.sh`.
    """

    name: str
    title: str
    env_id: str
    trainer: str
    action_size: int
    replay: tuple[int, ...]  # up to medium, in the order of training
    medium: int
    expert: int
    replay_transitions: int

    def behaviour(self, step: int) -> Callable[[], RecordedPolicy]:
        """The stochastic policy as it was after `step` training steps."""
        return functools.partial(RecordedPolicy.load, f"{self.name}/step-{step:07d}.npz")

    def recipes(self) -> tuple[Recipe, ...]:
        """The three data sets of the paper."""
        start = functools.partial(UniformPolicy, self.action_size)
        steps = f"after {self.medium:,} steps of {self.trainer}"
        medium = {"behaviour": self.behaviour(self.medium), "transitions": 1_000_000}
        replay = {
            "stages": (start, *map(self.behaviour, self.replay)),
            "transitions": self.replay_transitions,
        }
        expert = {
            "stages": (self.behaviour(self.medium), self.behaviour(self.expert)),
            "transitions": 2_000_000,
        }
        return (
            self._recipe("medium", f"one stochastic policy {steps}", "a mediocre policy", **medium),
            self._recipe(
                "medium-replay",
                f"uniform actions, then {len(self.replay)} snapshots of one run of {self.trainer} up to the medium "
                "policy, in the order of training",
                "a policy while it learns, from uniform actions to mediocre",
                **replay,
            ),
            self._recipe(
                "medium-expert",
                f"first half: the stochastic policy {steps}; second half: the same run after {self.expert:,} steps",
                "a mediocre policy and then a good one",
                **expert,
            ),
        )

    def _recipe(self, kind: str, behaviour_name: str, described: str, **more: Any) -> Recipe:
        return Recipe(
            name=f"dmm/{self.name}/{kind}-v0",
            env_id=self.env_id,
            behaviour_name=behaviour_name,
            description=f"{self.title} run by {described}, after D4RL's {self.name}-{kind}.",
            reference=reference_returns(self.env_id),
            **more,
        )


RECIPES = (
    Recipe(
        name="dmm/hopper/medium-v0",
        env_id="Hopper-v5",
        transitions=1_000_000,
        behaviour=functools.partial(RecordedPolicy.load, "hopper-medium.npz"),
        behaviour_name="one stochastic PPO policy at about a third of the expert's return",
        description="A one-legged hopper run by a mediocre policy, after D4RL's hopper-medium.",
        reference=reference_returns("Hopper-v5"),
    ),
)
