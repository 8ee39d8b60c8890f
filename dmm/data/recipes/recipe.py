"""What a recipe is: a behaviour, an environment and a size, from which a data set is made on the reader's machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from dmm.errors import InputError


class Behaviour(Protocol):
    """What acts while a data set is recorded. All randomness comes from the generators handed in."""

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        """Called once per episode, after `env.reset`."""

    def act(self, observation: Any, rng: np.random.Generator) -> Any:
        """The action to record, within the action space: `(a,)` float32 for a Box, an int for a Discrete space."""


@runtime_checkable
class Learner(Behaviour, Protocol):
    """A behaviour that learns from what it lives through, one task per block of episodes."""

    def options(self, rng: np.random.Generator) -> dict[str, Any]:
        """What every `env.reset` of the block gets as `options`: the task. Called once, before the first episode."""

    def learn(self, observation: Any, action: Any, reward: float, next_observation: Any, terminated: bool) -> None:
        """Called after every step."""


@dataclass(frozen=True)
class Recipe:
    """Everything but the seed and the size that decides the bytes of a data set.

    Either `behaviour` is given, and episode i depends on the seed and i alone. Or `stages` are: they share the
    transitions equally, in order, and each is recorded in blocks of `block` transitions. A block gets a behaviour of
    its own, which lives as long as the block: a snapshot of a training run, or a learner.
    """

    name: str  # Minari id
    env_id: str  # Gymnasium id
    transitions: int  # default size; episodes are kept whole, so a set is slightly larger
    behaviour_name: str  # for the data set's metadata
    description: str
    reference: tuple[float, float]  # (random, expert) returns that a normalised score refers to
    behaviour: Callable[[], Behaviour] | None = None  # picklable: each worker process makes its own
    stages: tuple[Callable[[], Behaviour], ...] = ()
    block: int = 10_000
    env_kwargs: dict[str, Any] = field(default_factory=dict)  # for `gymnasium.make`
    eval_kwargs: dict[str, Any] = field(default_factory=dict)  # changes to those where a policy is to be evaluated
    observation_keys: tuple[str, ...] = ()  # entries of a goal dictionary that make the state vector
    rewards: Literal["per-step", "cumulative"] = "per-step"  # what is stored: each reward, or the sum so far
    packages: tuple[str, ...] = ()  # distributions that the behaviour needs; their versions go into the metadata
    histories: bool = False  # each block is one learner's history, and the data set says where it ends
    version: int = 1  # raised whenever the same seed would give other data

    def __post_init__(self) -> None:
        if (self.behaviour is None) == (not self.stages):
            given = "both" if self.stages else "neither"
            raise InputError(f"recipe: got {given} of behaviour and stages for {self.name!r}; allowed: one of them")
        if self.histories and not self.stages:
            raise InputError(
                f"histories: got True for {self.name!r}, which has no stages; a history is a block of a stage"
            )
        for argument, value in (("transitions", self.transitions), ("block", self.block)):
            if value < 1:
                raise InputError(f"{argument}: got {value} for {self.name!r}; allowed: 1 or more")
        if self.rewards not in ("per-step", "cumulative"):
            raise InputError(f"rewards: got {self.rewards!r}; allowed: 'per-step', 'cumulative'")
