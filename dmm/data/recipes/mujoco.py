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
from dmm.data.scores import reference_returns


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
class Rung:
    """A snapshot of a training run: weights that the package keeps in `policies/weights/<run>/step-<step>.npz`."""

    run: str
    step: int

    def behaviour(self) -> Callable[[], RecordedPolicy]:
        """The stochastic policy as it then was."""
        return functools.partial(RecordedPolicy.load, f"{self.run}/step-{self.step:07d}.npz")


@dataclass(frozen=True)
class Ladder:
    """Snapshots from random to expert; each run's log and command are beside its weights."""

    name: str
    title: str
    env_id: str
    trainer: str
    action_size: int
    replay: tuple[Rung, ...]  # of one run, up to the medium level, in the order of training
    medium: Rung
    expert: Rung
    replay_transitions: int

    def recipes(self) -> tuple[Recipe, ...]:
        """The three data sets of the paper."""
        start = functools.partial(UniformPolicy, self.action_size)
        medium = f"one stochastic policy after {self.medium.step:,} steps of {self.trainer}"
        medium_policy = self.medium.behaviour()
        return (
            self._recipe("medium", medium, "a mediocre policy", transitions=1_000_000, behaviour=medium_policy),
            self._recipe(
                "medium-replay",
                f"uniform actions, then {len(self.replay)} snapshots of one run of {self.trainer} up to medium level, "
                "in the order of training",
                "a policy while it learns, from uniform actions to mediocre",
                transitions=self.replay_transitions,
                stages=(start, *(rung.behaviour() for rung in self.replay)),
            ),
            self._recipe(
                "medium-expert",
                f"first half: {medium}; second half: one after {self.expert.step:,} steps",
                "a mediocre policy and then a good one",
                transitions=2_000_000,
                stages=(medium_policy, self.expert.behaviour()),
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


def _rungs(run: str, *steps: int) -> tuple[Rung, ...]:
    return tuple(Rung(run, step) for step in steps)


LADDERS = (
    Ladder(
        name="hopper",
        title="A one-legged hopper",
        env_id="Hopper-v5",
        trainer="PPO",
        action_size=3,
        replay=_rungs("hopper", 20480, 40960, 61440, 81920, 100352, 120832, 141312, 161792, 180224, 200704, 221184),
        # of an earlier run: the book's results on Hopper are on its data
        medium=Rung("hopper-first", 301_056),
        expert=Rung("hopper", 761_856),
        replay_transitions=400_000,
    ),
    Ladder(
        name="walker2d",
        title="A two-legged walker in the plane",
        env_id="Walker2d-v5",
        trainer="CrossQ",
        action_size=6,
        replay=_rungs("walker2d", *range(10_000, 90_001, 10_000)),
        medium=Rung("walker2d", 90_000),
        expert=Rung("walker2d", 210_000),
        replay_transitions=300_000,
    ),
    Ladder(
        name="halfcheetah",
        title="A two-legged runner in the plane",
        env_id="HalfCheetah-v5",
        trainer="CrossQ",
        action_size=6,
        replay=_rungs("halfcheetah", *range(6_000, 22_001, 2_000)),
        medium=Rung("halfcheetah", 22_000),
        expert=Rung("halfcheetah", 202_000),
        replay_transitions=200_000,
    ),
)
"""The training runs that the MuJoCo data sets come from."""

RECIPES = tuple(recipe for ladder in LADDERS for recipe in ladder.recipes())
