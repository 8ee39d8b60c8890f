"""The grid worlds in numpy, many at a time: one array operation where Gymnasium's own vector environments loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dmm.envs import grid, tmaze
from dmm.errors import InputError


class LockstepVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray], ABC):
    """n environments whose episodes all have the same length, so that one step counter serves them all.

    As `SyncVectorEnv` in its next-step mode: the step after an episode's last one ignores its actions, gives reward 0
    and returns the first observation of the next episode, whose task is drawn. All randomness comes from one generator,
    so a seed draws other tasks than it does in n single environments; with the tasks in the options of `reset`, n
    single environments behave the same.

    Raises:
        InputError: a number, action or option that is not allowed.
    """

    def __init__(self, num_envs: int, space: gym.spaces.Box, actions: tuple[str, ...], max_episode_steps: int):
        self.num_envs = grid.require_at_least("num_envs", num_envs, 1)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space: gym.Space[Any] = space
        self.single_action_space: gym.Space[Any] = gym.spaces.Discrete(len(actions))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.action_names = actions
        self.max_episode_steps = grid.require_at_least("max_episode_steps", max_episode_steps, 1)
        self.steps: int | None = None

    def reset(  # type: ignore[override]
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As `reset` of one environment; what its options take can be given once for all or once for each."""
        super().reset(seed=seed)
        info = self._begin(options or {})
        self.steps = 0
        return self._observations(), self._masked(info)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self.steps is None:
            raise gym.error.ResetNeeded("step: call reset first")
        never = np.zeros(self.num_envs, dtype=np.bool_)
        if self.steps == self.max_episode_steps:
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs), never, never.copy(), info
        info = self._advance(self._require_actions(actions))
        self.steps += 1
        over = np.full(self.num_envs, self.steps == self.max_episode_steps)
        terminated, truncated = self._ends(over, never)
        return self._observations(), self._rewards(over), terminated, truncated, self._masked(info)

    def _require_actions(self, actions: Any) -> np.ndarray:
        array, count = np.asarray(actions), len(self.action_names)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= count:
            raise InputError(f"actions: got {actions!r}; allowed: {self.num_envs} whole numbers from 0 to {count - 1}")
        return array

    def _masked(self, info: dict[str, np.ndarray]) -> dict[str, Any]:
        """Gymnasium's convention: beside each entry, which environments have it."""
        return info | {f"_{name}": np.ones(self.num_envs, dtype=np.bool_) for name in info}

    def _ends(self, over: np.ndarray, never: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Terminated and truncated."""
        return never, over

    @abstractmethod
    def _begin(self, options: dict[str, Any]) -> dict[str, np.ndarray]:
        """Draws the tasks, or takes them from the options; returns the infos."""

    @abstractmethod
    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        """Moves all of them by one step; returns the infos."""

    @abstractmethod
    def _rewards(self, over: np.ndarray) -> np.ndarray:
        """What the step paid, `(n,)`."""

    @abstractmethod
    def _observations(self) -> np.ndarray:
        """What is seen, `(n, s)`."""


class VectorGridWorld(LockstepVectorEnv):
    """What the vector versions share; see `grid.GridWorld`. Cells are kept as `x * size + y`, arrays `(n,)`."""

    TASK: tuple[str, ...] = ("goal",)

    def __init__(self, num_envs: int, max_episode_steps: int, size: int = 9):
        self.size = grid.require_at_least("size", size, 2)
        space = gym.spaces.Box(0, size - 1, (2,), np.float32)
        super().__init__(num_envs, space, grid.ACTIONS, max_episode_steps)
        self.next_cells, self.coordinates = _tables(size)

    def _begin(self, options: dict[str, Any]) -> dict[str, np.ndarray]:
        given = {name: self._cells(name, value) for name, value in options.items()}
        start = given.pop("start", None)
        self.cells = self._draw_starts() if start is None else start
        self.task = self._draw_task(given)
        return {name: np.stack(np.divmod(cells, self.size), axis=1) for name, cells in self.task.items()}

    def _cells(self, name: str, value: Any) -> np.ndarray:
        """Flat cells `(n,)` of an option, `(x, y)` for all or `(n, 2)`."""
        rows = np.asarray(value)
        for row in np.atleast_2d(rows):
            grid.require_cells({name: row}, (*self.TASK, "start"), self.size)
        if rows.shape not in ((2,), (self.num_envs, 2)):
            raise InputError(f"options: got {name!r} of shape {rows.shape}; allowed: (2,) or ({self.num_envs}, 2)")
        return np.full(self.num_envs, rows @ (self.size, 1))

    def _draw_task(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"goal": self._uniform(), **given}

    def _draw_starts(self) -> np.ndarray:
        x, y = grid.centre(self.size)
        return np.full(self.num_envs, x * self.size + y)

    def _uniform(self) -> np.ndarray:
        cells: np.ndarray = self.np_random.integers(self.size**2, size=self.num_envs)
        return cells

    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        self.cells = self.next_cells[self.cells, actions]
        return {}

    def _observations(self) -> np.ndarray:
        observations: np.ndarray = self.coordinates[self.cells]
        return observations


class VectorDarkroom(VectorGridWorld):
    """n times `grid.Darkroom`."""

    def _rewards(self, over: np.ndarray) -> np.ndarray:
        rewards: np.ndarray = np.equal(self.cells, self.task["goal"]).astype(np.float64)
        return rewards


class VectorLargeDarkroom(VectorDarkroom):
    """n times `grid.LargeDarkroom`."""

    def __init__(self, num_envs: int, max_episode_steps: int, size: int = 40):
        super().__init__(num_envs, max_episode_steps, size)


class VectorDarkroomHard(VectorGridWorld):
    """n times `grid.DarkroomHard`."""

    def _begin(self, options: dict[str, Any]) -> dict[str, np.ndarray]:
        self.found = np.zeros(self.num_envs, dtype=np.bool_)
        return super()._begin(options)

    def _rewards(self, over: np.ndarray) -> np.ndarray:
        new = (self.cells == self.task["goal"]) & ~self.found
        self.found |= new
        rewards: np.ndarray = new.astype(np.float64)
        return rewards


class VectorLargeDarkroomHard(VectorDarkroomHard):
    """n times `grid.LargeDarkroomHard`."""

    def __init__(self, num_envs: int, max_episode_steps: int, size: int = 40):
        super().__init__(num_envs, max_episode_steps, size)


class VectorKeyToDoor(VectorGridWorld):
    """n times `grid.KeyToDoor`."""

    TASK = ("key", "door")

    def _begin(self, options: dict[str, Any]) -> dict[str, np.ndarray]:
        self.has_key, self.opened = np.zeros((2, self.num_envs), dtype=np.bool_)
        return super()._begin(options)

    def _draw_starts(self) -> np.ndarray:
        return self._uniform()

    def _draw_task(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = self.size**2
        other = self.np_random.integers(1, count, size=self.num_envs)  # so that the drawn cell differs
        if "key" in given:
            task = {"door": (given["key"] + other) % count, **given}
        else:
            door = given.get("door", self._uniform())
            task = {"key": (door + other) % count, "door": door}
        if (task["key"] == task["door"]).any():
            raise InputError("options: got the same cell for 'key' and 'door'; allowed: cells that differ")
        return {name: task[name] for name in self.TASK}

    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        super()._advance(actions)
        opens = self.has_key & ~self.opened & (self.cells == self.task["door"])
        takes = ~self.has_key & (self.cells == self.task["key"])
        self.opened, self.has_key, self.gains = self.opened | opens, self.has_key | takes, opens | takes
        return {"has_key": self.has_key}

    def _rewards(self, over: np.ndarray) -> np.ndarray:
        rewards: np.ndarray = self.gains.astype(np.float64)
        return rewards


class VectorLargeKeyToDoor(VectorKeyToDoor):
    """n times `grid.LargeKeyToDoor`."""

    def __init__(self, num_envs: int, max_episode_steps: int, size: int = 40):
        super().__init__(num_envs, max_episode_steps, size)


class VectorDarkroomDynamic(VectorDarkroom):
    """n times `grid.DarkroomDynamic`. `permutation` is one for all or `(n, 5)`."""

    TASK = ()

    def _begin(self, options: dict[str, Any]) -> dict[str, np.ndarray]:
        count = len(grid.ACTIONS)
        rest, given = grid.split_permutation(options, (count,), (self.num_envs, count))
        if given is None:
            given = self.np_random.permuted(np.tile(np.arange(count), (self.num_envs, 1)), axis=1)
        super()._begin(rest)
        self.permutations = np.broadcast_to(given, (self.num_envs, count)).copy()
        return {"permutation": self.permutations.copy()}

    def _draw_task(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"goal": np.full(self.num_envs, self.size**2 - 1)}

    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        return super()._advance(self.permutations[np.arange(self.num_envs), actions])


class VectorLargeDarkroomDynamic(VectorDarkroomDynamic):
    """n times `grid.LargeDarkroomDynamic`."""

    def __init__(self, num_envs: int, max_episode_steps: int, size: int = 40):
        super().__init__(num_envs, max_episode_steps, size)


class VectorTMaze(LockstepVectorEnv):
    """n times `tmaze.TMaze`. The option is `cue`, one for all or `(n,)`."""

    def __init__(self, num_envs: int, length: int = 20):
        self.length = grid.require_at_least("length", length, 1)
        super().__init__(num_envs, tmaze.tmaze_observations(length), tmaze.ACTIONS, length + 1)

    def _begin(self, options: dict[str, Any]) -> dict[str, np.ndarray]:
        cues = np.asarray(options.get("cue", 1))
        for cue in cues.ravel():
            tmaze.require_cue({**options, "cue": cue})
        if cues.shape not in ((), (self.num_envs,)):
            raise InputError(f"options: got 'cue' of shape {cues.shape}; allowed: () or ({self.num_envs},)")
        drawn = self.np_random.choice((-1, 1), size=self.num_envs)
        self.cues = np.broadcast_to(cues, self.num_envs).copy() if "cue" in options else drawn
        self.x, self.y = np.zeros((2, self.num_envs), dtype=np.int64)
        return {"cue": self.cues}

    def _advance(self, actions: np.ndarray) -> dict[str, np.ndarray]:
        right, up = _TMAZE_MOVES[actions].T
        turns = (self.x == self.length) & (self.y == 0)
        self.x = np.clip(self.x + right * (self.y == 0), 0, self.length)
        self.y = np.where(turns, up, self.y)
        return {}

    def _rewards(self, over: np.ndarray) -> np.ndarray:
        rewards: np.ndarray = np.logical_and(over, self.y == self.cues).astype(np.float64)
        return rewards

    def _ends(self, over: np.ndarray, never: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return over, never

    def _observations(self) -> np.ndarray:
        cues = self.cues if self.steps == 0 else np.zeros_like(self.cues)
        observations: np.ndarray = np.stack((self.x, self.y, cues), axis=1).astype(np.float32)
        return observations


_TMAZE_MOVES = np.array([grid.MOVES[grid.ACTIONS.index(name)] for name in tmaze.ACTIONS])


def _tables(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each action leads from each cell `(size ** 2, 5)`, and each cell's observation `(size ** 2, 2)`."""
    cells = np.stack(np.divmod(np.arange(size**2), size), axis=1)
    moved = np.clip(cells[:, None] + np.array(grid.MOVES), 0, size - 1)
    return moved @ (size, 1), cells.astype(np.float32)
