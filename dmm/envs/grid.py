"""Dark rooms: grid worlds whose goal cannot be seen, only found and remembered (Algorithm Distillation's, and DM-H's).

An agent sees where it stands and what reward it gets, and nothing of the task. One episode is too short to find out
much, so what is measured is whether an agent gets better from episode to episode of the same task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.envs.drawing import BLUE, GREEN, ORANGE, Mark, disc, draw, square, triangle
from dmm.errors import InputError

Cell = tuple[int, int]

METADATA = {"render_modes": ["rgb_array"], "render_fps": 10}
ACTIONS = ("noop", "up", "down", "left", "right")
MOVES = ((0, 0), (0, 1), (0, -1), (-1, 0), (1, 0))
"""What each action adds to (x, y); y grows upwards."""


class GridWorld(gym.Env[np.ndarray, int], ABC):
    """What the dark rooms share: a square grid, five moves, and a task made of hidden cells.

    Observation: `(x, y)`, `Box(0, size - 1, (2,))`, whole numbers as float32. Action: one of `ACTIONS`; a move into a
    wall changes nothing. The reward depends on the cell that the move led to. Episodes never end by themselves; the
    registered time limit cuts them.

    `reset` takes the hidden cells in its options, such as `{"goal": (x, y)}`, and draws the others; `"start"` likewise.
    Its info names them as arrays `(2,)`.

    Args:
        size: cells along each side, 2 or more.

    Raises:
        InputError: a size, action, option or cell that is not allowed.
    """

    metadata = METADATA
    TASK: tuple[str, ...] = ("goal",)  # names of the hidden cells, all different

    def __init__(self, size: int = 9, render_mode: str | None = None):
        self.size = require_at_least("size", size, 2)
        self.observation_space = gym.spaces.Box(0, size - 1, (2,), np.float32)
        self.action_space: Any = gym.spaces.Discrete(len(ACTIONS))
        self.render_mode = require_render_mode(render_mode)
        self.task: dict[str, Cell] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        given = require_cells(options or {}, (*self.TASK, "start"), self.size)
        start = given.pop("start", None)
        self.task = draw_task(self.np_random, self.TASK, self.size, given)
        self.x, self.y = self._draw_start() if start is None else start
        return self._observation(), {name: np.array(cell) for name, cell in self.task.items()}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        right, up = MOVES[require_action(action, ACTIONS)]
        last = self.size - 1
        self.x, self.y = min(max(self.x + right, 0), last), min(max(self.y + up, 0), last)
        return self._observation(), self._reward((self.x, self.y)), False, False, self._info()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """A picture `(height, width, 3)` uint8, for `render_mode="rgb_array"`."""
        if self.render_mode is None:
            return None
        return draw(self.size, self.size, [*self._marks(), ((self.x, self.y), disc, BLUE)])

    def _draw_start(self) -> Cell:
        return centre(self.size)

    @abstractmethod
    def _reward(self, cell: Cell) -> float:
        """What arriving in a cell pays."""

    def _info(self) -> dict[str, Any]:
        return {}

    def _marks(self) -> list[Mark]:
        return [(self.task["goal"], square, ORANGE)]

    def _observation(self) -> np.ndarray:
        return np.array((self.x, self.y), dtype=np.float32)


class Darkroom(GridWorld):
    """Reward 1 on each step that ends on the goal. Starts in the centre; 20 steps (registered)."""

    def _reward(self, cell: Cell) -> float:
        return float(cell == self.task["goal"])


class LargeDarkroom(Darkroom):
    """`Darkroom` of 40 x 40 cells and ten times the steps, 200 (registered)."""

    def __init__(self, size: int = 40, render_mode: str | None = None):
        super().__init__(size, render_mode)


class DarkroomHard(GridWorld):
    """Reward 1 the first time a step ends on the goal, then nothing. Starts in the centre; 20 steps (registered).

    Algorithm Distillation's room of this name is 17 x 17 and its episodes end at the goal; DM-H's is 9 x 9.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.found = False
        return super().reset(seed=seed, options=options)

    def _reward(self, cell: Cell) -> float:
        if self.found or cell != self.task["goal"]:
            return 0.0
        self.found = True
        return 1.0


class LargeDarkroomHard(DarkroomHard):
    """`DarkroomHard` of 40 x 40 cells; 200 steps (registered)."""

    def __init__(self, size: int = 40, render_mode: str | None = None):
        super().__init__(size, render_mode)


class KeyToDoor(GridWorld):
    """Reward 1 for the first step onto the key, then 1 for the first step onto the door. 50 steps (registered).

    The start is drawn anew in every episode, as in Algorithm Distillation. Info: `has_key`, after each step; it is not
    part of the observation, so an agent has to remember it from the reward.
    """

    TASK = ("key", "door")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.has_key = self.opened = False
        return super().reset(seed=seed, options=options)

    def _draw_start(self) -> Cell:
        return draw_cell(self.np_random, self.size)

    def _reward(self, cell: Cell) -> float:
        if not self.has_key:
            self.has_key = cell == self.task["key"]
            return float(self.has_key)
        if self.opened or cell != self.task["door"]:
            return 0.0
        self.opened = True
        return 1.0

    def _info(self) -> dict[str, Any]:
        return {"has_key": self.has_key}

    def _marks(self) -> list[Mark]:
        key: list[Mark] = [] if self.has_key else [(self.task["key"], triangle, GREEN)]
        return [(self.task["door"], square, ORANGE), *key]


class LargeKeyToDoor(KeyToDoor):
    """`KeyToDoor` of 40 x 40 cells and ten times the steps, 500 (registered)."""

    def __init__(self, size: int = 40, render_mode: str | None = None):
        super().__init__(size, render_mode)


class DarkroomDynamic(Darkroom):
    """`Darkroom` whose goal is the upper right corner and whose actions mean other moves in every task; 20 steps.

    What is hidden is `permutation`: action `i` makes the move that `ACTIONS[permutation[i]]` makes elsewhere. It is
    drawn from all 120, or taken from the options of `reset` as five whole numbers; info of `reset`: `permutation` (5,).

    DM-H's Table 4 names this room and does not describe it; the fixed corner and the permuted actions are those of the
    same group's In-context Decision Transformer (arXiv 2405.20692). Which corner is not said: this one is as far from
    the centre as any.
    """

    TASK = ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rest, given = split_permutation(options or {}, (len(ACTIONS),))
        observation, _ = super().reset(seed=seed, options=rest)
        self.task = {"goal": (self.size - 1, self.size - 1)}
        self.permutation = self.np_random.permutation(len(ACTIONS)) if given is None else given
        return observation, {"permutation": self.permutation.copy()}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return super().step(self.permutation[require_action(action, ACTIONS)])


class LargeDarkroomDynamic(DarkroomDynamic):
    """`DarkroomDynamic` of 40 x 40 cells and ten times the steps, 200 (registered)."""

    def __init__(self, size: int = 40, render_mode: str | None = None):
        super().__init__(size, render_mode)


def centre(size: int) -> Cell:
    """The cell that dark rooms start from."""
    return size // 2, size // 2


def draw_cell(rng: np.random.Generator, size: int) -> Cell:
    """A uniformly drawn cell."""
    x, y = rng.integers(size, size=2).tolist()
    return x, y


def draw_task(
    rng: np.random.Generator, names: Iterable[str], size: int, given: Mapping[str, Cell] | None = None
) -> dict[str, Cell]:
    """A cell for each name, all different: the given ones, the others uniform over the cells that are left.

    Raises:
        InputError: two given cells are the same.
    """
    task = dict(given or {})
    if len(set(task.values())) < len(task):
        raise InputError(f"options: got {task}; allowed: cells that differ")
    for name in names:
        while name not in task:
            cell = draw_cell(rng, size)
            if cell not in task.values():
                task[name] = cell
    return task


def require_cells(options: Mapping[str, Any], names: tuple[str, ...], size: int) -> dict[str, Cell]:
    """The cells among the options of `reset`, as pairs of int."""
    cells = {}
    for name, value in options.items():
        array = np.asarray(value) if name in names else np.empty(0)
        if array.shape != (2,) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= size:
            allowed = f"{', '.join(names)}, each (x, y) of whole numbers from 0 to {size - 1}"
            raise InputError(f"options: got {name!r}: {value!r}; allowed: {allowed}")
        cells[name] = (int(array[0]), int(array[1]))
    return cells


def split_permutation(options: Mapping[str, Any], *shapes: tuple[int, ...]) -> tuple[dict[str, Any], np.ndarray | None]:
    """The options of `reset` without `permutation`, and that one in an array of one of the shapes, None if not there.

    Raises:
        InputError: another shape, or a row that is no permutation of the five actions.
    """
    rest = dict(options)
    if "permutation" not in rest:
        return rest, None
    value = rest.pop("permutation")
    array = np.asarray(value)
    right = array.shape in shapes and array.dtype.kind in "iu"
    if not right or not np.array_equal(np.sort(array), np.broadcast_to(np.arange(len(ACTIONS)), array.shape)):
        allowed = f"the whole numbers 0 to {len(ACTIONS) - 1}, each once, of shape {' or '.join(map(str, shapes))}"
        raise InputError(f"options: got 'permutation': {value!r}; allowed: {allowed}")
    return rest, array.astype(np.int64)


def require_action(action: Any, names: tuple[str, ...]) -> int:
    """The action as an int, if there is one of that number."""
    try:
        number = int(action)
    except (TypeError, ValueError):
        number = -1
    if number != action or not 0 <= number < len(names):
        raise InputError(f"action: got {action!r}; allowed: 0 to {len(names) - 1} ({', '.join(names)})")
    return number


def require_at_least(name: str, value: Any, least: int) -> int:
    """The argument as it came, if it is a whole number that large."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: got {value!r}; allowed: a whole number, {least} or more")
    return value


def require_render_mode(mode: str | None) -> str | None:
    """The argument as it came, if it is a mode of these environments."""
    if mode not in (None, "rgb_array"):
        raise InputError(f"render_mode: got {mode!r}; allowed: None, 'rgb_array'")
    return mode
