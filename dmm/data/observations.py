"""One flat vector per observation and per action, the same from a stored data set and from a live environment."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmm.data.actions import with_unit_actions
from dmm.data.environments import require_same_environment
from dmm.data.faults import FAULTS, reason
from dmm.data.precision import real_array, subtract
from dmm.data.specifications import find_registered, registered_spec, rewrap, without_recorders
from dmm.data.specifications import parse_env_spec as parse_env_spec
from dmm.data.specifications import require_storable as require_storable
from dmm.data.textures import textures_to_render
from dmm.errors import InputError, warn

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
"""Entries of a goal dictionary, in the order in which they are concatenated."""
MOST_CHOICES = 10_000
"""Of a Discrete space: each becomes a number of every observation or action."""


def choose_keys(space: gym.Space[Any], wanted: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The entries of `space` that make the state vector: `()` where it is no dictionary, else keys of the dictionary.

    `wanted` fixes keys and order. By default a goal dictionary gives those of `GOAL_KEYS` that are vectors. So the
    goals of FrankaKitchen, dictionaries themselves, stay out: one never changes, the other is part of the observation.
    Any other dictionary gives all entries that `entry_size` knows, in its own order, and a warning names the rest.

    Raises:
        InputError: nothing that can be flattened (`entry_size`), or a key that is not there.
    """
    if not isinstance(space, gym.spaces.Dict):
        entry_size("observations", space)
        return ()
    if wanted is None:
        wanted = _default_keys(space)
    missing = [key for key in wanted if key not in space.spaces]
    if missing or not wanted:
        there = ", ".join(f"{key!r} ({_kind(entry)})" for key, entry in space.spaces.items())
        raise InputError(f"observations: keys {missing or list(GOAL_KEYS)} not found; the dictionary has {there}")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"observation_keys: got {', '.join(map(repr, wanted))}; allowed: each key once")
    for key in wanted:
        entry_size(f"observations[{key!r}]", space[key])
    return wanted


def entry_size(name: str, space: gym.Space[Any]) -> int:
    """How many numbers an observation, or an entry of a dictionary of them, becomes.

    A Box `(s,)` gives its numbers and one of shape `()` its one, MultiBinary and MultiDiscrete `(s,)` their whole
    numbers as they are, Discrete a one-hot vector.

    Raises:
        InputError: another kind of space, such as images.
    """
    if isinstance(space, gym.spaces.Discrete):
        return _choices(name, space)
    if isinstance(space, gym.spaces.Box) and len(space.shape) < 2:
        return int(np.prod(space.shape))
    if isinstance(space, gym.spaces.MultiBinary | gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return int(space.shape[0])
    if isinstance(space, gym.spaces.Box):
        raise InputError(f"{name}: {_kind(space)} are not supported; allowed: vectors (s,)")
    raise InputError(
        f"{name}: {_kind(space)} is not supported; allowed: a 1-D Box, Discrete, MultiBinary, MultiDiscrete, or a "
        "dictionary of them"
    )


def flatten_observation(
    observation: Any,
    keys: tuple[str, ...],
    space: gym.Space[Any] | None = None,
    offset: np.ndarray | None = None,
) -> np.ndarray:
    """`concat(observation[key] for key in keys)`, a new array `(..., s)` of float32; no keys: there is one entry alone.

    Args:
        observation: of one step, or of many with leading axes.
        keys: of `choose_keys`.
        space: of one step; says which entries are Discrete. Without it all are taken as vectors of numbers.
        offset: `(s,)` whole numbers in float64, taken off before rounding to float32 (`dmm.data.precision`).

    Raises:
        InputError: what is there is no array of real numbers, or a number that is no choice of a Discrete entry.
    """
    parts = observation_parts(observation, keys, space)
    if offset is not None:
        parts = without_offset(parts, offset)
    if len(parts) == 1 and parts[0].ndim:
        return parts[0].astype(
            np.float32
        )  # as below, in a third of the time, which counts in every step that is played
    return np.concatenate(parts, axis=-1, dtype=np.float32, casting="unsafe")


def without_offset(parts: list[np.ndarray], offset: np.ndarray) -> list[np.ndarray]:
    """Entries `(..., size)` of a state vector, less their part of `offset (s,)`."""
    places = np.cumsum([part.shape[-1] for part in parts])[:-1]
    return [subtract(part, each) for part, each in zip(parts, np.split(offset, places), strict=True)]


def observation_parts(observation: Any, keys: tuple[str, ...], space: gym.Space[Any] | None) -> list[np.ndarray]:
    """The entries that make the state vector, each `(..., size)` of the type that it comes in."""
    if not keys:
        return [_numbers("observations", observation, space)]
    spaces: dict[str, Any] = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {}
    return [_numbers(f"observations[{key!r}]", observation[key], spaces.get(key)) for key in keys]


def _numbers(name: str, values: Any, space: gym.Space[Any] | None) -> np.ndarray:
    if isinstance(space, gym.spaces.Discrete):
        return one_hot(name, values, space)
    array = real_array(name, values)
    return array[..., None] if isinstance(space, gym.spaces.Box) and not space.shape else array


def one_hot(name: str, values: Any, space: gym.spaces.Discrete) -> np.ndarray:
    """Choices of a Discrete space, `(...)` whole numbers from its `start`, as float32 vectors `(..., n)`.

    Raises:
        InputError: a number that is none of its choices.
    """
    array, n, start = real_array(name, values), _choices(name, space), int(space.start)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise InputError(f"{name}: got numbers that are not whole, allowed are those of {space}")
    index = array.astype(np.int64) - start
    if index.size and (index.min() < 0 or index.max() >= n):
        wrong = start + int(index.min() if index.min() < 0 else index.max())
        raise InputError(f"{name}: {wrong} is no {'action' if name == 'actions' else 'choice'} of {space}")
    vectors = np.zeros((*index.shape, n), dtype=np.float32)
    np.put_along_axis(vectors, index[..., None], 1, axis=-1)
    return vectors


def action_size(space: gym.Space[Any]) -> int:
    """How many numbers an action becomes: a of a Box `(a,)`, n of a Discrete space with n actions.

    Raises:
        InputError: another kind of space.
    """
    if isinstance(space, gym.spaces.Discrete):
        return _choices("actions", space)
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return int(space.shape[0])
    raise InputError(f"actions: {space} is not supported; allowed: a 1-D Box or a Discrete space")


def flatten_actions(actions: Any, space: gym.Space[Any]) -> np.ndarray:
    """Actions of a Box `(l, a)` as they are; those of a Discrete space `(l,)` as one-hot float32 vectors `(l, n)`.

    The first action of a Discrete space is its `start`, which need not be 0. Squared error on one-hot vectors
    estimates the probability of each action, so that the largest entry of a prediction is the most likely action.

    Raises:
        InputError: a number that is no action of the Discrete space, no array of real numbers, or a kind of space as
            in `action_size`.
    """
    size = action_size(space)
    if isinstance(space, gym.spaces.Discrete):
        return one_hot("actions", np.asarray(actions).reshape(-1), space)
    array = real_array("actions", actions)
    if array.shape[1:] != (size,):
        raise InputError(f"actions: got shape {array.shape}; allowed: (l, {size}), as {space} says")
    return array


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
    """Makes an environment return `flatten_observation(observation, keys)`, a new float32 vector `(s,)` at each step.

    Args:
        env: any whose observations `choose_keys` takes.
        keys: of its dictionary; the default ones if there are none.
        offset: `(s,)`, what is taken off every observation before rounding to float32, or nothing.
    """

    def __init__(self, env: gym.Env, keys: tuple[str, ...] | None = None, offset: Any = None):
        super().__init__(env)
        self.goal: Any = None  # the `desired_goal` of the last observation, where the environment has one
        self.keys = choose_keys(env.observation_space, keys or None)
        self.offset = None if offset is None else np.asarray(offset, dtype=np.float64)
        low, high = (_flat_bounds(env.observation_space, side, self.keys) for side in ("low", "high"))
        if self.offset is not None and self.offset.shape == low.shape:
            low, high = low - self.offset, high - self.offset
        with np.errstate(over="ignore"):  # what float32 does not hold has no bound
            self.observation_space = gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        if isinstance(observation, dict) and "desired_goal" in observation:
            self.goal = observation["desired_goal"]
        return flatten_observation(observation, self.keys, self.env.observation_space, self.offset)


def build_env(spec: str | EnvSpec, *, trust_environment: bool = False, **kwargs: Any) -> gym.Env:
    """`gymnasium.make` for an id or a stored spec, this project's and gymnasium-robotics' environments included.

    An id is the caller's own word, as in `gymnasium.make`. A specification may come from a file: what it names is made
    by its id as `dmm.data.specifications` says, or called as it stands with `trust_environment`.
    A MuJoCo model keeps its textures only where a `render_mode` is asked for; see `dmm.data.textures`.

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
        with _tempdir_for(spec), textures_to_render(spec, kwargs):
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
    action_bounds: Any = None,
    observation_offset: Any = None,
    trust_environment: bool = False,
    **kwargs: Any,
) -> FlatObservation:
    """`build_env` with flat observations `(s,)` and actions `(a,)`, whose sizes must be those of the data.

    With Discrete actions, the action is a score for each, and the largest is played. Others are numbers from -1 to 1,
    which stand for what lies between `action_bounds` (of `Trajectories`); nothing beyond the environment's own bounds
    is played. `observation_offset` is that of `Trajectories`, too. With a `record` of `environment_record`, the
    environment must be that one, unless `kwargs` ask for another than the specification's.

    Raises:
        InputError: as `build_env`, other sizes, or not the recorded environment.
    """
    name = spec if isinstance(spec, str) else spec.id
    plain = build_env(spec, trust_environment=trust_environment, **kwargs)
    try:
        if record and not kwargs.keys() - {"render_mode"}:
            require_same_environment(plain, record)
        return _flat_env(plain, name, keys, (state_size, action_size), action_bounds, observation_offset)
    except FAULTS as error:
        with suppress(*FAULTS):
            plain.close()
        if isinstance(error, InputError):
            raise
        raise InputError(f"environment: {name!r} cannot be made here ({reason(error)})") from error


def _flat_env(
    plain: gym.Env,
    name: str,
    keys: tuple[str, ...],
    sizes: tuple[int, int],
    action_bounds: Any,
    observation_offset: Any,
) -> FlatObservation:
    if isinstance(plain.action_space, gym.spaces.Discrete):
        plain = LargestScore(plain)
    else:
        plain = with_unit_actions(plain, action_bounds)
    env = FlatObservation(plain, keys, observation_offset)
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


def _tempdir_for(spec: str | EnvSpec) -> AbstractContextManager[None]:
    """`private_tempdir` around `gymnasium.make(spec)`, unless that is one of Gymnasium's own environments: they write
    nothing, and a folder for each of a hundred would take a while."""
    known = gym.registry.get(spec) if isinstance(spec, str) else spec
    quiet = known is not None and str(known.entry_point).startswith("gymnasium.envs.")
    return nullcontext() if quiet else private_tempdir()


@contextmanager
def private_tempdir() -> Iterator[None]:
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


def _default_keys(space: gym.spaces.Dict) -> tuple[str, ...]:
    goals = tuple(key for key in GOAL_KEYS if key in space.spaces and _is_vector(space[key]))
    if goals:
        return goals
    usable = tuple(key for key, entry in space.spaces.items() if _is_flat(entry))
    left = [f"{key!r} ({_kind(entry)})" for key, entry in space.spaces.items() if key not in usable]
    if left and not any(_is_vector(space[key]) for key in usable):
        return ()  # the state would be what is left beside pictures or text
    if left:
        warn(f"observations: {', '.join(left)} left out; observation_keys names the entries to take")
    return usable


def _flat_bounds(space: Any, side: str, keys: tuple[str, ...]) -> np.ndarray:
    """One side of the bounds of the flat vector, `(s,)` float64."""
    entries = [space[key] for key in keys] if keys else [space]
    return np.concatenate([_bound(entry, side) for entry in entries])


def _bound(space: gym.Space[Any], side: str) -> np.ndarray:
    if isinstance(space, gym.spaces.Box):
        return np.atleast_1d(np.asarray(getattr(space, side), dtype=np.float64))
    if isinstance(space, gym.spaces.MultiDiscrete):
        start = np.asarray(space.start, dtype=np.float64)
        return start if side == "low" else start + space.nvec - 1
    return np.full(entry_size("observations", space), float(side == "high"))  # 0 and 1


def _choices(name: str, space: gym.spaces.Discrete) -> int:
    if space.n > MOST_CHOICES:
        raise InputError(f"{name}: {space} is not supported; allowed: Discrete with at most {MOST_CHOICES} choices")
    return int(space.n)


def _is_vector(space: gym.Space[Any]) -> bool:
    return isinstance(space, gym.spaces.Box) and len(space.shape) == 1


def _is_flat(space: gym.Space[Any]) -> bool:
    try:
        entry_size("", space)
    except InputError:
        return False
    return True


def _kind(space: gym.Space[Any]) -> str:
    if not isinstance(space, gym.spaces.Box):
        return type(space).__name__
    return f"{'images' if space.dtype == np.uint8 else 'arrays'} of shape {space.shape}"
