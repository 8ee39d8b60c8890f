"""One flat vector per observation and per action, the same from a stored data set and from a live environment."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmm.data.environments import require_same_environment
from dmm.data.faults import FAULTS, reason
from dmm.data.specifications import find_registered, registered_spec, rewrap, without_recorders
from dmm.data.specifications import parse_env_spec as parse_env_spec
from dmm.data.specifications import require_storable as require_storable
from dmm.errors import InputError

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
"""Entries of a goal dictionary, in the order in which they are concatenated."""


def choose_keys(space: gym.Space[Any], wanted: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The entries of `space` that make the state vector: `()` for a 1-D Box, else keys of the goal dictionary.

    `wanted` fixes keys and order; by default they are those of `GOAL_KEYS` that exist and are 1-D boxes. So the goals
    of FrankaKitchen, dictionaries themselves, stay out: one never changes, the other is part of the observation.

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
        there = ", ".join(f"{key!r} ({_kind(entry)})" for key, entry in space.spaces.items())
        raise InputError(
            f"observations: keys {missing or list(GOAL_KEYS)} not found as 1-D Box entries; the dictionary has {there}"
        )
    for key in wanted:
        _require_vector(f"observations[{key!r}]", space[key])
    return wanted


def flatten_observation(observation: Any, keys: tuple[str, ...]) -> np.ndarray:
    """`concat(observation[key] for key in keys)`, `(..., s)` float32; no keys: the observation is an array already."""
    if not keys:
        return np.asarray(observation, dtype=np.float32)
    return np.concatenate([observation[key] for key in keys], axis=-1, dtype=np.float32, casting="unsafe")


def action_size(space: gym.Space[Any]) -> int:
    """How many numbers an action becomes: a of a Box `(a,)`, n of a Discrete space with n actions.

    Raises:
        InputError: another kind of space.
    """
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return int(space.shape[0])
    raise InputError(f"actions: {space} is not supported; allowed: a 1-D Box or a Discrete space")


def flatten_actions(actions: Any, space: gym.Space[Any]) -> np.ndarray:
    """Actions of a Box `(l, a)` as float32; those of a Discrete space `(l,)` as one-hot float32 vectors `(l, n)`.

    The first action of a Discrete space is its `start`, which need not be 0. Squared error on one-hot vectors
    estimates the probability of each action, so that the largest entry of a prediction is the most likely action.

    Raises:
        InputError: a number that is no action of the Discrete space, or a kind of space as in `action_size`.
    """
    n = action_size(space)
    if not isinstance(space, gym.spaces.Discrete):
        return np.asarray(actions, dtype=np.float32)
    index = np.asarray(actions).reshape(-1).astype(np.int64) - int(space.start)
    if len(index) and (index.min() < 0 or index.max() >= n):
        wrong = int(space.start) + int(index.min() if index.min() < 0 else index.max())
        raise InputError(f"actions: {wrong} is no action of {space}")
    return np.eye(n, dtype=np.float32)[index]


class LargestScore(gym.ActionWrapper):
    """Makes an environment with n Discrete actions take one score per action, `(n,)`, and play the largest."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        space = env.action_space
        assert isinstance(space, gym.spaces.Discrete)
        self.start = int(space.start)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (int(space.n),), np.float32)

    def action(self, action: np.ndarray) -> int:
        return self.start + int(np.argmax(action))


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


def build_env(spec: str | EnvSpec, *, trust_environment: bool = False, **kwargs: Any) -> gym.Env:
    """`gymnasium.make` for an id or a stored spec, this project's and gymnasium-robotics' environments included.

    An id is the caller's own word, as in `gymnasium.make`. A specification may come from a file: what it names is made
    by its id as `dmm.data.specifications` says, or called as it stands with `trust_environment`.

    Raises:
        InputError: no such environment, it cannot be made with what is installed, or more would have to be believed.
    """
    name, wrappers = (spec, ()) if isinstance(spec, str) else (spec.id, spec.additional_wrappers)
    if name not in gym.registry:
        register_environments()
    if trust_environment and isinstance(spec, EnvSpec):
        spec, wrappers = without_recorders(spec), ()
    elif isinstance(spec, EnvSpec):
        spec = registered_spec(spec)
    try:
        with _private_tempdir():
            env: gym.Env = gym.make(spec, disable_env_checker=True, **kwargs)
    except FAULTS as error:
        raise InputError(f"environment: {name!r} cannot be made here ({reason(error)})") from error
    return rewrap(env, wrappers)


def build_flat_env(
    spec: str | EnvSpec,
    keys: tuple[str, ...],
    state_size: int,
    action_size: int,
    *,
    record: dict[str, Any] | None = None,
    trust_environment: bool = False,
    **kwargs: Any,
) -> FlatObservation:
    """`build_env` with flat observations `(s,)` and actions `(a,)`, whose sizes must be those of the data.

    With Discrete actions, the action is a score for each, and the largest is played. With a `record` of
    `environment_record`, the environment must be that one, unless `kwargs` ask for another than the specification's.

    Raises:
        InputError: as `build_env`, other sizes, or not the recorded environment.
    """
    name = spec if isinstance(spec, str) else spec.id
    plain = build_env(spec, trust_environment=trust_environment, **kwargs)
    try:
        if record and not kwargs.keys() - {"render_mode"}:
            require_same_environment(plain, record)
        return _flat_env(plain, name, keys, (state_size, action_size))
    except FAULTS as error:
        with suppress(*FAULTS):
            plain.close()
        if isinstance(error, InputError):
            raise
        raise InputError(f"environment: {name!r} cannot be made here ({reason(error)})") from error


def _flat_env(plain: gym.Env, name: str, keys: tuple[str, ...], sizes: tuple[int, int]) -> FlatObservation:
    if isinstance(plain.action_space, gym.spaces.Discrete):
        plain = LargestScore(plain)
    env = FlatObservation(plain, keys)
    shapes, expected = (env.observation_space.shape, env.action_space.shape), ((sizes[0],), (sizes[1],))
    if shapes != expected:
        raise InputError(
            f"environment: {name!r} has (observation, action) shapes {shapes}, the data set has {expected}"
        )
    return env


def stored_env(spec: str | None, env_id: str, *, trust_environment: bool = False) -> str | EnvSpec:
    """What to give to `build_env` for an environment that a file describes, by a specification or by its id alone.

    Raises:
        InputError: no specification, or an id that nothing registers here.
    """
    if spec:
        return parse_env_spec(spec)
    if trust_environment:
        return env_id
    register_environments()
    return find_registered(env_id)


def stored_spaces(metadata: dict[str, Any], *, trust_environment: bool = False) -> dict[str, gym.Space[Any]]:
    """`observation_space` and `action_space` of a data set that does not store them: those of its environment.

    Raises:
        ValueError: it names no environment.
        InputError: that cannot be made (`build_env`).
    """
    if not metadata.get("env_spec"):
        raise ValueError("it stores neither its spaces nor an environment that has them")
    env = build_env(parse_env_spec(metadata["env_spec"]), trust_environment=trust_environment)
    env.close()
    return {"observation_space": env.observation_space, "action_space": env.action_space}


def register_environments() -> None:
    """Makes this project's and gymnasium-robotics' ids known, without the news that the latter prints."""
    import dmm.envs  # noqa: F401

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
        raise InputError(f"{name}: {_kind(space)} are not supported; allowed: vectors (s,)")
    raise InputError(f"{name}: {_kind(space)} is not supported; allowed: a 1-D Box")


def _kind(space: gym.Space[Any]) -> str:
    if not isinstance(space, gym.spaces.Box):
        return type(space).__name__
    return f"{'images' if space.dtype == np.uint8 else 'arrays'} of shape {space.shape}"
