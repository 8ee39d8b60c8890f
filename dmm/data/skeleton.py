"""Environments as stick figures: a few points of the body and the lines between them, walls and named places.

A figure says where things are with some twenty numbers, where a picture takes a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from dmm.errors import InputError

Limits = tuple[tuple[float, float], tuple[float, float]]
"""Left and right, bottom and top."""

CAPSULE, SPHERE = 3, 2  # MuJoCo's mjtGeom
NEAR = 0.06
"""Metres below which the ends of two limbs of one chain are the same joint."""
NAME = 0.25
"""Share of a room's width left free to its right, for the name of a place at the edge."""


class View(Protocol):
    """What is drawn of one environment; lengths in metres, or in cells."""

    segments: list[tuple[int, int]]
    """Pairs of points that a line joins."""
    walls: np.ndarray
    """`(m, 4)`: rectangles (x, y, width, height)."""

    def points(self) -> np.ndarray:
        """Where the points of the body are now, `(p, 2)`."""

    def places(self) -> dict[str, tuple[float, float]]:
        """Where named things are now; one that is gone is left out."""

    def limits(self) -> Limits:
        """What the picture shows now."""


def view(env: gym.Env) -> View:
    """The view of an environment that has been reset once.

    Hopper, Walker2d and HalfCheetah are seen from the side, mazes and grid worlds from above, the kitchen from where
    the robot stands.

    Raises:
        InputError: nobody has said how to draw this environment.
    """
    base: Any = env.unwrapped
    for kind in type(base).__mro__:
        if kind.__name__ in _VIEWS:
            return _VIEWS[kind.__name__](base)
    raise InputError(f"env: got {type(base).__name__}; allowed: {', '.join(_VIEWS)}")


def body_points(env: gym.Env) -> np.ndarray:
    """Where the points of an environment's body are now: `(p, 2)` float64, of which `view(env)` knows the meaning."""
    return view(env).points()


class Watcher(gym.Wrapper):
    """Notes what is to be seen after `reset` and after each step; one episode at a time.

    `points` holds an array `(p, 2)` for each observation, `places` a dictionary, `limits` the picture's limits.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        self.view = view(self.env)
        self.points: list[np.ndarray] = []
        self.places: list[dict[str, tuple[float, float]]] = []
        self.limits: list[Limits] = []
        self._note()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._note()
        return result

    def _note(self) -> None:
        self.points.append(self.view.points())
        self.places.append(self.view.places())
        self.limits.append(self.view.limits())


class _Limbs:
    """The capsules and spheres of a MuJoCo model, joined where a limb begins at its parent's end."""

    def __init__(self, model: Any, data: Any, axes: tuple[int, int]):
        self.data, self.axes = data, list(axes)
        kinds, sizes = model.geom_type, model.geom_size
        self.geoms = [g for g in range(model.ngeom) if kinds[g] in (CAPSULE, SPHERE) and model.geom_bodyid[g] > 0]
        self.halves = np.array([sizes[g, 1] if kinds[g] == CAPSULE else 0.0 for g in self.geoms])
        ends = self._ends()  # (limbs, 2, 3)
        self.kept: list[tuple[int, int]] = []  # (limb, end) of each point
        owners: list[int] = []
        self.segments: list[tuple[int, int]] = []
        for limb, geom in enumerate(self.geoms):
            body = int(model.geom_bodyid[geom])
            family = (body, int(model.body_parentid[body]))
            pair = []
            for end in (0, 1):
                near = [
                    point
                    for point, (other, side) in enumerate(self.kept)
                    if owners[point] in family and np.linalg.norm(ends[other, side] - ends[limb, end]) < NEAR
                ]
                if not near:
                    near = [len(self.kept)]
                    self.kept.append((limb, end))
                    owners.append(body)
                pair.append(near[0])
            if pair[0] != pair[1]:
                self.segments.append((pair[0], pair[1]))

    def points(self) -> np.ndarray:
        limbs, ends = np.array(self.kept).T
        places: np.ndarray = self._ends()[limbs, ends][:, self.axes]
        return places

    def _ends(self) -> np.ndarray:
        directions = self.data.geom_xmat[self.geoms].reshape(-1, 3, 3)[:, :, 2] * self.halves[:, None]
        middles = self.data.geom_xpos[self.geoms]
        return np.stack([middles - directions, middles + directions], axis=1)


class _Side:
    """A walking body from the side; the picture goes with it."""

    HALF_WIDTH, BOTTOM, TOP = 1.4, -0.3, 2.0

    def __init__(self, base: Any):
        self.base = base
        self.limbs = _Limbs(base.model, base.data, (0, 2))
        self.segments = self.limbs.segments
        self.walls = np.array([[-1000.0, self.BOTTOM, 2000.0, -self.BOTTOM]])  # the ground

    def points(self) -> np.ndarray:
        return self.limbs.points()

    def places(self) -> dict[str, tuple[float, float]]:
        return {}

    def limits(self) -> Limits:
        x = float(self.base.data.qpos[0])
        return (x - self.HALF_WIDTH, x + self.HALF_WIDTH), (self.BOTTOM, self.TOP)


class _Maze:
    """A maze of Gymnasium-Robotics from above, with a point mass in it."""

    def __init__(self, base: Any):
        self.segments: list[tuple[int, int]] = []
        self.base, maze = base, base.maze
        size = float(maze.maze_size_scaling)
        cells = [(i, j) for i, row in enumerate(maze.maze_map) for j, cell in enumerate(row) if cell == 1]
        corners = [maze.cell_rowcol_to_xy(np.array(cell)) - size / 2 for cell in cells]
        self.walls = np.array([[x, y, size, size] for x, y in corners])
        width, height = maze.map_width * size / 2, maze.map_length * size / 2
        self._limits = (-width, width), (-height, height)

    def points(self) -> np.ndarray:
        return np.array([self.base.data.qpos[:2]])

    def places(self) -> dict[str, tuple[float, float]]:
        x, y = self.base.goal
        return {"goal": (float(x), float(y))}

    def limits(self) -> Limits:
        return self._limits


class _AntMaze(_Maze):
    """The same with an ant."""

    def __init__(self, base: Any):
        super().__init__(base)
        self.limbs = _Limbs(base.model, base.data, (0, 1))
        self.segments = self.limbs.segments

    def points(self) -> np.ndarray:
        return self.limbs.points()


class _Kitchen:
    """The robot's arm, and what it can move, seen from where the robot stands: right and up."""

    LINKS = (0, 1, 3, 5, 7)
    SITES: ClassVar[dict[str, str]] = {
        "microwave": "microhandle_site",
        "kettle": "kettle_site",
        "burner": "knob2_site",
        "switch": "light_site",
        "cabinet": "slide_site",
    }

    def __init__(self, base: Any):
        self.model, self.data = base.model, base.data
        names = [f"panda0_link{i}" for i in self.LINKS] + ["panda0_leftfinger", "panda0_rightfinger"]
        self.bodies = [self.model.body(name).id for name in names]
        self.segments = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 6)]
        self.sites = {name: self.model.site(site).id for name, site in self.SITES.items()}
        self.walls = np.array([[-2.0, 1.0, 4.0, 0.6]])  # the counter

    def points(self) -> np.ndarray:
        seen: np.ndarray = self.data.xpos[self.bodies][:, [0, 2]]
        return seen

    def places(self) -> dict[str, tuple[float, float]]:
        spots = {name: self.data.site_xpos[site] for name, site in self.sites.items()}
        return {name: (float(x), float(z)) for name, (x, _, z) in spots.items()}

    def limits(self) -> Limits:
        return (-1.1, 0.5), (1.5, 2.8)


class _Room:
    """A dark room from above; an agent stands in the middle of a cell."""

    def __init__(self, base: Any):
        self.segments: list[tuple[int, int]] = []
        self.base = base
        self.edge = edge = base.size / 45
        low, long = -0.5 - edge, base.size + 2 * edge
        high = base.size - 0.5
        self.walls = np.array(
            [[low, low, edge, long], [high, low, edge, long], [low, low, long, edge], [low, high, long, edge]]
        )

    def points(self) -> np.ndarray:
        return np.array([[self.base.x, self.base.y]], dtype=np.float64)

    def places(self) -> dict[str, tuple[float, float]]:
        found = {"key"} if getattr(self.base, "has_key", False) else set()
        return {name: (float(x), float(y)) for name, (x, y) in self.base.task.items() if name not in found}

    def limits(self) -> Limits:
        low, high = -0.5 - self.edge, self.base.size - 0.5 + self.edge
        return (low, high + NAME * self.base.size), (low, high)


class _Corridor:
    """A T-maze from above; the goal is the end that the cue names."""

    def __init__(self, base: Any):
        self.segments: list[tuple[int, int]] = []
        self.base = base
        self.walls = np.array([[-0.5, y, base.length, 1.0] for y in (-1.5, 0.5)])

    def points(self) -> np.ndarray:
        return np.array([[self.base.x, self.base.y]], dtype=np.float64)

    def places(self) -> dict[str, tuple[float, float]]:
        return {"goal": (float(self.base.length), float(self.base.cue))}

    def limits(self) -> Limits:
        half = (self.base.length + 1) / 2
        return (-0.5, self.base.length + 0.5 + NAME * self.base.length), (-half, half)


# by name, so that no simulator is imported that nobody uses
_VIEWS: dict[str, Callable[[Any], View]] = {
    "HopperEnv": _Side,
    "Walker2dEnv": _Side,
    "HalfCheetahEnv": _Side,
    "AntMaze": _AntMaze,
    "PointMazeEnv": _Maze,
    "Kitchen": _Kitchen,
    "GridWorld": _Room,
    "TMaze": _Corridor,
}
