"""One flat vector per observation, the same from a stored data set and from a live environment."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmm.errors import InputError

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
"""Entries of a goal dictionary, in the order in which they are concatenated."""


def choose_keys(space: gym.Space[Any], wanted: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The entries of `space` that make the state vector: `()` for a 1-D Box, else keys of the goal dictionary.

    `wanted` fixes keys and order; by default they are those of `GOAL_KEYS` that exist and are 1-D boxes.

    Raises:
        InputError: the observations are images, or neither a 1-D Box nor a dictionary of them.
    """
    if isinstance(space, gym.spaces.Box):
        _require_vector("observations", space)
        return ()
    if not isinstance(space, gym.spaces.Dict):
        kind = type(space).__name__
        raise InputError(f"observations: {kind} is not supported; allowed: a 1-D Box or a goal dictionary")
    if wanted is None:
        wanted = tuple(key for key in GOAL_KEYS if key in space.spaces and _is_vector(space[key]))
    missing = [key for key in wanted if key not in space.spaces]
    if missing or not wanted:
        raise InputError(
            f"observations: keys {missing or list(GOAL_KEYS)} not found as 1-D Box entries; "
            f"the dictionary has {sorted(space.spaces)}"
        )
    for key in wanted:
        _require_vector(f"observations[{key!r}]", space[key])
    return wanted


def flatten_observation(observation: Any, keys: tuple[str, ...]) -> np.ndarray:
    """`concat(observation[key] for key in keys)`, `(..., s)` float32; no keys: the observation is an array already."""
    if not keys:
        return np.asarray(observation, dtype=np.float32)
    return np.concatenate([observation[key] for key in keys], axis=-1, dtype=np.float32, casting="unsafe")


class FlatObservation(gym.ObservationWrapper):
    """Makes an environment return `flatten_observation(observation, keys)`, a float32 vector `(s,)`."""

    def __init__(self, env: gym.Env, keys: tuple[str, ...] | None = None):
        super().__init__(env)
        self.keys = choose_keys(env.observation_space, keys or None)
        space: Any = env.observation_space
        low = flatten_observation(_bounds(space, "low"), self.keys)
        high = flatten_observation(_bounds(space, "high"), self.keys)
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        return flatten_observation(observation, self.keys)


def build_env(spec: str | EnvSpec, **kwargs: Any) -> gym.Env:
    """`gymnasium.make` for an id or a stored spec, gymnasium-robotics included.

    Raises:
        InputError: no such environment, or it cannot be made with what is installed.
    """
    name = spec if isinstance(spec, str) else spec.id
    try:
        if name not in gym.registry:
            _register_robotics()
        with _private_tempdir():
            return gym.make(spec, disable_env_checker=True, **kwargs)
    except (gym.error.Error, ImportError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"environment: {name!r} cannot be made here ({type(error).__name__}: {reason})") from error


def build_flat_env(
    spec: str | EnvSpec, keys: tuple[str, ...], state_size: int, action_size: int, **kwargs: Any
) -> FlatObservation:
    """`build_env` with flat observations, whose sizes must be those of the data.

    Raises:
        InputError: as `build_env`, or other sizes.
    """
    env = FlatObservation(build_env(spec, **kwargs), keys)
    sizes, expected = (env.observation_space.shape, env.action_space.shape), ((state_size,), (action_size,))
    if sizes != expected:
        env.close()
        name = spec if isinstance(spec, str) else spec.id
        raise InputError(f"environment: {name!r} has (observation, action) shapes {sizes}, the data set has {expected}")
    return env


def parse_env_spec(text: str) -> EnvSpec:
    """The environment specification a data set stores; fields dropped by Gymnasium 1.0 are ignored, as in Minari."""
    for old in ('"order_enforce": true,', '"apply_api_compatibility": false,', '"autoreset": false, '):
        text = text.replace(old, "")
    try:
        return EnvSpec.from_json(text)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"environment: the stored specification cannot be read ({error})") from error


def _register_robotics() -> None:
    """Imports gymnasium-robotics without the news about other environments that it prints."""
    with redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)


@contextmanager
def _private_tempdir() -> Iterator[None]:
    """Point mazes write their model to a file named by the clock: alone in a folder, two processes cannot collide."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        # gymnasium-robotics writes to the parent of a temporary directory, hence one level more
        tempfile.tempdir = os.path.join(folder, "models")
        os.mkdir(tempfile.tempdir)
        try:
            yield
        finally:
            tempfile.tempdir = before


def _bounds(space: Any, side: str) -> Any:
    if isinstance(space, gym.spaces.Dict):
        return {key: getattr(entry, side) for key, entry in space.spaces.items() if isinstance(entry, gym.spaces.Box)}
    return getattr(space, side)


def _is_vector(space: gym.Space[Any]) -> bool:
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1


def _require_vector(name: str, space: gym.Space[Any]) -> None:
    if _is_vector(space):
        return
    if isinstance(space, gym.spaces.Box):
        kind = "images" if space.dtype == np.uint8 else "arrays"
        raise InputError(f"{name}: {kind} of shape {space.shape} are not supported; allowed: vectors (s,)")
    raise InputError(f"{name}: {type(space).__name__} is not supported; allowed: a 1-D Box")
