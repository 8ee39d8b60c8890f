"""The passive T-maze: a cue at the start says which way to turn at the far end (Ni et al., 2023; DM-H)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dmm.envs.drawing import BLUE, ORANGE, disc, draw, square
from dmm.envs.grid import METADATA, require_action, require_at_least, require_render_mode
from dmm.errors import InputError

ACTIONS = ("up", "down", "left", "right")


class TMaze(gym.Env[np.ndarray, int]):
    """Walk along a corridor of `length` steps, then turn to the side that the first observation named.

    Observation: `(x, y, cue)` float32. `x` runs from 0 to `length`, `y` is 1 or -1 in the upper or lower arm and 0 in
    the corridor, `cue` is 1 (up) or -1 (down) in the first observation and 0 ever after. Action: one of `ACTIONS`; a
    move into a wall changes nothing. Episodes take `length + 1` steps, just enough, so one step wasted is the reward
    lost: 1 at the last step in the arm that was named, else 0.

    `reset(options={"cue": 1})` fixes the cue; else it is drawn. Info of `reset`: `cue`.

    Departures from Ni et al.: the position is seen, so that only the cue has to be remembered, and a wasted step has no
    penalty of its own.

    Raises:
        InputError: a length, action, option or cue that is not allowed.
    """

    metadata = METADATA

    def __init__(self, length: int = 20, render_mode: str | None = None):
        self.length = require_at_least("length", length, 1)
        self.observation_space = tmaze_observations(length)
        self.action_space: Any = gym.spaces.Discrete(len(ACTIONS))
        self.render_mode = require_render_mode(render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        cue = require_cue(options or {})
        self.cue = int(self.np_random.choice((-1, 1))) if cue is None else cue
        self.x = self.y = self.steps = 0
        return np.array((0, 0, self.cue), dtype=np.float32), {"cue": self.cue}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        name = ACTIONS[require_action(action, ACTIONS)]
        if name in ("left", "right") and self.y == 0:
            self.x = min(max(self.x + (1 if name == "right" else -1), 0), self.length)
        elif self.x == self.length and self.y == 0:
            self.y = 1 if name == "up" else -1
        self.steps += 1
        over = self.steps == self.length + 1
        reward = float(over and self.y == self.cue)
        return np.array((self.x, self.y, 0), dtype=np.float32), reward, over, False, {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """A picture `(height, width, 3)` uint8, for `render_mode="rgb_array"`; the right arm is marked."""
        if self.render_mode is None:
            return None
        walls = {(x, y) for x in range(self.length) for y in (0, 2)}
        marks = [((self.length, 1 + self.cue), square, ORANGE), ((self.x, 1 + self.y), disc, BLUE)]
        return draw(self.length + 1, 3, marks, walls)


def tmaze_observations(length: int) -> gym.spaces.Box:
    """The space of `(x, y, cue)`."""
    low, high = np.array((0, -1, -1), dtype=np.float32), np.array((length, 1, 1), dtype=np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


def require_cue(options: dict[str, Any]) -> int | None:
    """The cue among the options of `reset`, if there is one."""
    if set(options) - {"cue"} or options.get("cue", 1) not in (-1, 1):
        raise InputError(f"options: got {options}; allowed: 'cue', 1 (up) or -1 (down)")
    return int(options["cue"]) if "cue" in options else None
