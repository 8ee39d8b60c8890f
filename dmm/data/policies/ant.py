"""An ant that walks to its goal: breadth-first waypoints, and a trained policy that walks in a given direction."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.policies import POLICY_FOLDER, SquashedGaussianPolicy
from dmm.data.policies.waypoints import Cell, breadth_first, free_cells
from dmm.envs.ant import egocentric
from dmm.errors import InputError

Point = tuple[float, float]
WALK = POLICY_FOLDER / "ant/step-0070000.npz"


class AntWalker:
    """Walks towards the next cell on a shortest way to the goal, in the goal's cell towards the goal itself.

    As in D4RL's collection the next cell is looked up anew at every step, so an ant that strays takes the shortest way
    from where it is. It cuts corners, and now and then one ends up on its back.

    Args:
        noise: standard deviation of the Gaussian noise added to the policy's actions, which lie in [-1, 1].
        policy: the walking policy, which sees `dmm.envs.ant.egocentric`; by default the one kept in the package.

    Raises:
        InputError: noise below 0 or not finite.
    """

    def __init__(self, noise: float, policy: SquashedGaussianPolicy | None = None):
        if not (math.isfinite(noise) and noise >= 0):
            raise InputError(f"noise: got {noise!r}; allowed: 0 or more")
        self.noise = noise
        self.policy = SquashedGaussianPolicy.load(WALK) if policy is None else policy

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        centres, goal = free_cells(env), observation["desired_goal"]
        self.centres = {cell: (float(x), float(y)) for cell, (x, y) in centres.items()}
        self.goal = (float(goal[0]), float(goal[1]))
        target = self._cell(self.goal)
        others = self.centres.keys() - {target}
        self.waypoints = {cell: self.centres[breadth_first(self.centres, cell, target)[0]] for cell in others}

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        position, rest = observation["achieved_goal"], observation["observation"]
        qpos, qvel = np.concatenate((position, rest[:13])), rest[13:]
        action = self.policy.mean(egocentric(qpos, qvel, self._direction((float(position[0]), float(position[1])))))
        action += self.noise * rng.standard_normal(len(action))
        bounded: np.ndarray = np.minimum(np.maximum(action, -1.0), 1.0).astype(np.float32)
        return bounded

    def _direction(self, position: Point) -> np.ndarray:
        """Unit vector `(2,)` to the waypoint of the ant's cell."""
        x, y = self.waypoints.get(self._cell(position), self.goal)
        dx, dy = x - position[0], y - position[1]
        length = math.hypot(dx, dy) or 1.0
        return np.array([dx / length, dy / length])

    def _cell(self, position: Point) -> Cell:
        """The free cell nearest to a position; a hard bounce may put the ant slightly into a wall."""
        return min(self.centres, key=lambda cell: math.dist(self.centres[cell], position))
