"""A scripted agent for the T-maze that forgets, guesses and stumbles."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dmm.envs.tmaze import ACTIONS


class CorridorWalker:
    """Walks to the junction and turns as the cue said if it remembers it, to a random side if not.

    It arrives at the goal with probability `(1 - 3/4 noise)^length ((1 - noise) (1 + recall) / 2 + noise / 4)`: the
    episode has no step to spare, and one random action in four is the right one.

    Args:
        recall: share of the episodes in which the cue is remembered.
        noise: share of the steps whose action is drawn from all four.
    """

    def __init__(self, recall: float, noise: float):
        self.recall, self.noise = recall, noise

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        space: Any = env.observation_space
        self.junction = space.high[0]
        remembers, guess = rng.random() < self.recall, rng.choice((-1, 1))
        side = observation[2] if remembers else guess
        self.turn = ACTIONS.index("up" if side > 0 else "down")

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        if rng.random() < self.noise:
            return int(rng.integers(len(ACTIONS)))
        return self.turn if observation[0] == self.junction else ACTIONS.index("right")
