"""Actions of a Box, whatever its bounds, as the numbers from -1 to 1 that policies give."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.precision import real_array
from dmm.errors import InputError, warn

Bounds = tuple[np.ndarray, np.ndarray]
"""What -1 and what 1 stand for, each `(a,)` float64."""
ROUNDING = 1e-6
"""So far beyond -1 and 1 an action may lie by rounding alone."""
SLIGHTLY = 0.02
"""So far beyond, 1 % of the width, actions are brought back with a warning: a last bit of noise, not another unit."""


def bounds_of(space: gym.spaces.Box, actions: np.ndarray) -> Bounds | None:
    """The bounds of a Box `(a,)`; None where they are -1 and 1 everywhere.

    A side that has no bound gets -1 or 1, or the data's own extreme `actions (N, a)` where that lies beyond.
    """
    low, high = (np.asarray(side, dtype=np.float64) for side in (space.low, space.high))
    low = np.where(np.isfinite(low), low, np.minimum(-1.0, actions.min(axis=0)))
    high = np.where(np.isfinite(high), high, np.maximum(1.0, actions.max(axis=0)))
    return None if (low == -1).all() and (high == 1).all() else (low, high)


def unit_actions(actions: np.ndarray, space: gym.spaces.Box, dataset_id: str) -> tuple[np.ndarray, Bounds | None]:
    """Actions `(N, a)` of a Box as float32 from -1 to 1, and its bounds if those are others.

    Those up to 1 % of the width beyond their bounds are brought back, with a warning; others stay, for the training to
    refuse.
    """
    bounds = bounds_of(space, actions)
    if bounds is not None:
        low, high = bounds
        width = np.where(high > low, high - low, np.inf)  # one action alone: always 0
        actions = 2 * ((actions - low) / width) - np.where(high > low, 1.0, 0.0)
    largest = float(np.abs(actions).max())
    if ROUNDING < largest - 1 <= SLIGHTLY:
        count = int((np.abs(actions) > 1 + ROUNDING).any(axis=1).sum())
        warn(
            f"actions: {count} of {dataset_id!r} lie up to {50 * (largest - 1):.2g} % of the width beyond {space}; "
            "brought back to its bounds"
        )
    if largest <= 1 + SLIGHTLY and (bounds is not None or largest > 1 + ROUNDING):
        actions = np.clip(actions, -1, 1)
    return actions.astype(np.float32, copy=False), bounds


def require_unit(actions: np.ndarray, bounds: Bounds | None, dataset_id: str) -> None:
    """Passes when actions `(N, a)` lie from -1 to 1.

    Raises:
        InputError: they do not.
    """
    largest = float(np.abs(actions).max())
    if largest > 1 + ROUNDING:
        unit = "" if bounds is None else ", where -1 and 1 stand for the bounds of the action space"
        raise InputError(
            f"dataset: actions of {dataset_id!r} reach {largest:g}, allowed is -1 to 1{unit}; an action space (a Box) "
            "with the bounds that the actions have is stored by Minari, or by write_dataset from its env_id"
        )


def checked_bounds(bounds: Any, size: int) -> Bounds:
    """A pair of bounds `(a,)` in float64.

    Raises:
        InputError: no such pair of `size` finite numbers each, or a low above its high.
    """
    try:
        low, high = (np.asarray(real_array("action_bounds", side), dtype=np.float64) for side in bounds)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"action_bounds: got {bounds!r}, allowed is a pair (low, high)") from None
    if low.shape != (size,) or high.shape != (size,) or not (np.isfinite([low, high]).all() and (low <= high).all()):
        raise InputError(f"action_bounds: got {low} and {high}, allowed are {size} finite numbers each, low first")
    return low, high


def with_unit_actions(env: gym.Env, bounds: Any) -> gym.Env:
    """The environment, taking actions from -1 to 1 for what lies between `bounds`, and playing none beyond its own.

    Without bounds an action is played as it is, as far as the environment's own bounds reach.

    Raises:
        InputError: bounds of another size than the environment's actions, or none (`checked_bounds`).
    """
    space = env.action_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        return env
    if bounds is None:
        whole = (space.low <= -1).all() and (space.high >= 1).all() and space.dtype.kind == "f"
        return env if whole else UnitAction(env, None)
    try:
        return UnitAction(env, checked_bounds(bounds, space.shape[0]))
    except InputError:
        env.close()
        raise


class UnitAction(gym.ActionWrapper):
    """`low + (action + 1) / 2 (high - low)`, within the environment's own bounds and of its type."""

    def __init__(self, env: gym.Env, bounds: Bounds | None):
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        self.bounds, self.own = bounds, space
        self.action_space = gym.spaces.Box(-1.0, 1.0, space.shape, np.float32)

    def action(self, action: np.ndarray) -> np.ndarray:
        played = np.asarray(action, dtype=np.float64)
        if self.bounds is not None:
            low, high = self.bounds
            played = low + (played + 1) / 2 * (high - low)
        within = np.clip(played, self.own.low, self.own.high)
        return (np.rint(within) if self.own.dtype.kind in "iu" else within).astype(self.own.dtype)
