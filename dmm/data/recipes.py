"""Recipes: data sets that are made on the reader's machine from a behaviour, an environment and a seed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from dmm.data.policies import GaussianPolicy
from dmm.data.policies.waypoints import MazeWalker
from dmm.errors import InputError
from dmm.normalize import reference_returns

POLICY_FOLDER = Path(__file__).parent / "policies"


class Behaviour(Protocol):
    """What acts while a data set is recorded. All randomness comes from the generators handed in."""

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        """Called once per episode, after `env.reset`."""

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        """The action to record `(a,)` float32, within the action space."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the seed and the size that decides the bytes of a data set."""

    name: str  # Minari id
    env_id: str  # Gymnasium id
    transitions: int  # default size; episodes are kept whole, so a set is slightly larger
    behaviour: Callable[[], Behaviour]  # picklable: each worker process makes its own
    behaviour_name: str  # for the data set's metadata
    description: str
    reference: tuple[float, float]  # (random, expert) returns that a normalised score refers to
    env_kwargs: dict[str, Any] = field(default_factory=dict)  # for `gymnasium.make`
    observation_keys: tuple[str, ...] = ()  # entries of a goal dictionary that make the state vector
    version: int = 1  # raised whenever the same seed would give other data


class RecordedPolicy:
    """A stochastic Gaussian policy as a behaviour; the same in every episode."""

    def __init__(self, policy: GaussianPolicy):
        self.policy = policy

    @classmethod
    def load(cls, file_name: str) -> RecordedPolicy:
        """The policy whose weights the package keeps under that name."""
        return cls(GaussianPolicy.load(POLICY_FOLDER / file_name))

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        pass

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        return self.policy.sample(observation, rng)


_ALL = (
    Recipe(
        name="dmm/pointmaze/umaze-v0",
        env_id="PointMaze_UMaze-v3",
        env_kwargs={"continuing_task": False, "reward_type": "sparse", "max_episode_steps": 150},
        transitions=100_000,
        behaviour=functools.partial(MazeWalker, seek_probability=0.3, noise=0.5),
        behaviour_name="waypoints to the goal in 30 % of the episodes, else a random walk over cells; action noise 0.5",
        description="A point mass in a U-shaped maze; reward 1 at the goal, which ends the episode; 150 steps at most.",
        observation_keys=("observation", "desired_goal"),
        reference=(0.0, 1.0),  # the score is the share of episodes that arrive
    ),
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

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
"""Every recipe by its Minari id."""


def find_recipe(name: str) -> Recipe:
    """The recipe of that Minari id.

    Raises:
        InputError: no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"name: no recipe {name!r}; recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
