"""A scripted point mass for mazes: breadth-first waypoints, followed by a noisy spring and damper."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import gymnasium as gym
import numpy as np

Cell = tuple[int, int]


class MazeWalker:
    """Heads for the goal in some episodes and wanders from cell to random neighbouring cell in the others.

    Both kinds of episode use one controller, `clip(gain (waypoint - position) - damping velocity + noise N(0, 1))`, so
    that a single step does not tell which kind it belongs to. The defaults cross a cell in about ten steps of
    `PointMaze_UMaze-v3`: a seeker always arrives within 150 steps, a wanderer in a third of the episodes.

    Args:
        seek_probability: share of the episodes that head for the goal.
        noise: standard deviation of the action noise; actions lie in [-1, 1].
        gain, damping: of the spring and the damper.
        reach: distance at which a waypoint counts as reached; a cell is 1 wide.
    """

    def __init__(
        self, seek_probability: float, noise: float, gain: float = 3.0, damping: float = 0.4, reach: float = 0.3
    ):
        self.seek_probability, self.noise = seek_probability, noise
        self.gain, self.damping, self.reach = gain, damping, reach

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        self.centres = free_cells(env)
        self.goal = np.array(observation["desired_goal"])
        self.seeks = bool(rng.random() < self.seek_probability)
        self.path: list[np.ndarray] = []

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        position, velocity = observation["observation"][:2], observation["observation"][2:]
        if self.path and np.hypot(*(self.path[0] - position)) < self.reach:
            self.path.pop(0)
        if not self.path:
            self.path = self._plan(position, rng)
        action = self.gain * (self.path[0] - position) - self.damping * velocity
        action += self.noise * rng.standard_normal(2)
        clipped: np.ndarray = np.clip(action, -1.0, 1.0).astype(np.float32)
        return clipped

    def _plan(self, position: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Waypoints all the way to the goal, or one random cell next to this one."""
        here = self._cell(position)
        if self.seeks:
            route = breadth_first(self.centres, here, self._cell(self.goal))
            return [self.centres[cell] for cell in route] + [self.goal]
        near = neighbours(self.centres, here)
        return [self.centres[near[int(rng.integers(len(near)))]]]

    def _cell(self, position: np.ndarray) -> Cell:
        """The free cell nearest to a position, which a hard bounce may put slightly into a wall."""
        return min(self.centres, key=lambda cell: float(np.hypot(*(self.centres[cell] - position))))


def free_cells(env: gym.Env) -> dict[Cell, np.ndarray]:
    """`(row, column)` of each cell of a Gymnasium-Robotics maze that is not a wall, and its centre `(x, y)`."""
    maze: Any = env.unwrapped.maze  # type: ignore[attr-defined]
    rows, columns = np.nonzero([[cell != 1 for cell in row] for row in maze.maze_map])
    return {(int(i), int(j)): maze.cell_rowcol_to_xy(np.array([i, j])) for i, j in zip(rows, columns, strict=True)}


def neighbours(cells: Container[Cell], cell: Cell) -> list[Cell]:
    """The free cells above, below, left and right of a cell."""
    i, j = cell
    return [near for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)) if near in cells]


def breadth_first(cells: Container[Cell], start: Cell, target: Cell) -> list[Cell]:
    """A shortest path over `cells` from `start` (left out) to `target`; empty when they are the same."""
    came_from: dict[Cell, Cell | None] = {start: None}
    queue = [start]
    for cell in queue:
        for near in neighbours(cells, cell):
            if near not in came_from:
                came_from[near] = cell
                queue.append(near)
    path: list[Cell] = []
    step: Cell | None = target
    while step is not None and step != start:
        path.append(step)
        step = came_from[step]
    return path[::-1]
