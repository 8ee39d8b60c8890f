"""Plain arrays in D4RL's flat layout, written as an ordinary Minari data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from dmm.data.atomic import replacement_of
from dmm.data.interrupts import interrupts_deferred
from dmm.data.minari_files import dataset_folder, make_namespace
from dmm.data.observations import action_size, build_env, build_flat_env, require_storable
from dmm.data.precision import not_finite, real_array
from dmm.data.rewards import StoredRewards
from dmm.errors import InputError, RunError
from dmm.progress import progress_bar

EPISODES_PER_WRITE = 256


def write_dataset(
    minari_id: str,
    observations: Any,
    actions: Any,
    rewards: Any,
    terminations: Any,
    truncations: Any,
    *,
    next_observations: Any = None,
    env_id: str | None = None,
    env_kwargs: dict[str, Any] | None = None,
    observation_keys: tuple[str, ...] = (),
    reference: tuple[float, float] | None = None,
    reward_kind: StoredRewards = "per-step",
    description: str = "",
    force: bool = False,
    progress: bool = True,
) -> Path:
    """Write N transitions, episodes one after another, as the Minari data set `minari_id`; returns its folder.

    An episode ends where `terminations` or `truncations` is true. Rows after the last such mark are one more episode,
    stored as truncated. The layout lacks what was seen after an episode's last action: it is the last row of
    `next_observations` if they are given, else the last observation once more. Training never reads it.

    The data set appears under its id only when it is complete, and `load_trajectories` gives the rows back, as float32
    (actions scaled to -1 to 1 where their bounds are others).

    Args:
        observations: `(N, s)`, what was seen before each action; stored in the precision in which they come.
        actions: `(N, a)` floats in the environment's units, or `(N,)` whole numbers for Discrete actions. Without an
            environment their bounds are -1 and 1, or the data's own extremes where those lie beyond.
        rewards: `(N,)` or `(N, 1)`.
        terminations: `(N,)` of 0 and 1: the environment ended the episode. D4RL's `terminals`.
        truncations: `(N,)` of 0 and 1: a time limit or the recording ended it. D4RL's `timeouts`.
        next_observations: `(N, s)`, what was seen after each action.
        env_id: the Gymnasium environment that the policies trained on the set are evaluated in. Without it they can be
            trained only.
        env_kwargs: for `gymnasium.make`.
        observation_keys: where the environment gives a dictionary, the entries that the columns hold, in order.
        reference: (random, expert) returns for the normalised score.
        reward_kind: `cumulative` if `rewards` hold the sum so far; `load_trajectories` then undoes it. The first sum of
            each episode must be 0: Algorithm 1 takes the first reward as 0.
        description: for the data set's metadata.
        force: replace a data set of that id.
        progress: show a bar on stderr.

    Raises:
        InputError: arrays that do not fit together, NaN or infinity, no end marked, an environment of other sizes,
            or a data set of that id that is already there.
    """
    folder = dataset_folder(minari_id)
    if folder.exists() and not force:
        raise InputError(f"minari_id: {minari_id!r} is already at {folder}; force=True replaces it")
    rows = _checked(observations, actions, rewards, terminations, truncations, next_observations)
    _require_sums_from_zero(rows, reward_kind)
    about = {"observation_keys": list(observation_keys), "rewards": reward_kind}
    metadata = {"dataset_id": minari_id, "description": description, "dmm": about, **_scores(reference)}
    spaces = _spaces(rows, env_id, env_kwargs or {}, observation_keys)
    bar = progress_bar(total=len(rows["rewards"]), unit=" steps", desc=minari_id, disable=not progress, delay=0.5)
    try:
        with replacement_of(folder, overwrite=force) as new:
            new.mkdir()
            storage = MinariStorage.new(new / "data", *spaces, "hdf5")
            _write(storage, rows, bar)
            storage.update_metadata({"minari_version": minari.__version__, **metadata})
    except OSError as error:
        raise RunError(f"write_dataset: {folder} could not be written ({error})") from error
    make_namespace(folder)
    return folder


def _require_sums_from_zero(rows: dict[str, np.ndarray], reward_kind: str) -> None:
    if reward_kind not in get_args(StoredRewards):
        allowed = ", ".join(map(repr, get_args(StoredRewards)))
        raise InputError(f"reward_kind: got {reward_kind!r}; allowed: {allowed}")
    if reward_kind == "per-step":
        return
    ends = np.flatnonzero(rows["terminations"] | rows["truncations"])
    first = rows["rewards"][np.append(0, ends[:-1] + 1)]
    if first.any():
        episode = int(np.flatnonzero(first)[0])
        raise InputError(
            f"rewards: the first sum of episode {episode} is {first[episode]:g}; allowed: 0, because Algorithm 1 takes "
            "the first reward of an episode as 0"
        )


def _scores(reference: tuple[float, float] | None) -> dict[str, float]:
    if reference is None:
        return {}
    low, high = map(float, reference)
    if not np.isfinite([low, high]).all() or low >= high:
        raise InputError(f"reference: got {reference}; allowed: two numbers (random, expert), the second larger")
    return {"ref_min_score": low, "ref_max_score": high}


def _checked(
    observations: Any, actions: Any, rewards: Any, terminations: Any, truncations: Any, next_observations: Any
) -> dict[str, np.ndarray]:
    rows = {
        "observations": _floats(_numbers("observations", observations, (2,))),
        "actions": _actions(actions),
        "rewards": _rewards(rewards),
        "terminations": _marks("terminations", terminations),
        "truncations": _marks("truncations", truncations),
    }
    if next_observations is not None:
        rows["next_observations"] = _floats(_numbers("next_observations", next_observations, (2,)))
    n = len(rows["observations"])
    wrong = {name: len(array) for name, array in rows.items() if len(array) != n}
    if wrong or n == 0:
        given = ", ".join(f"{name} {length}" for name, length in wrong.items())
        raise InputError(f"observations: got {n} rows{', but ' * bool(given)}{given}; allowed: one row per transition")
    ends = rows["terminations"] | rows["truncations"]
    if not ends.any():
        raise InputError("truncations: no row ends an episode; allowed: at least one mark here or in terminations")
    if not ends[-1]:
        rows["truncations"] = rows["truncations"].copy()
        rows["truncations"][-1] = True
    if next_observations is not None:
        _require_continuous(rows, ends)
    return rows


def _numbers(name: str, values: Any, dimensions: tuple[int, ...]) -> np.ndarray:
    array = real_array(name, values)
    if array.ndim not in dimensions or array.dtype.kind == "b":
        shapes = " or ".join("(N,)" if count == 1 else "(N, size)" for count in dimensions)
        raise InputError(f"{name}: got shape {array.shape} of {array.dtype}; allowed: numbers of shape {shapes}")
    if wrong := not_finite(array):
        raise InputError(f"{name}: {wrong[1]} in row {wrong[0]}")
    return array


def _floats(array: np.ndarray) -> np.ndarray:
    """Whole numbers as float32 where it holds them all, else as float64, or as they are if that does not either."""
    if array.dtype.kind == "f":
        return array.astype(np.float64) if array.dtype.itemsize > 8 else array
    for kind, digits in ((np.float32, 24), (np.float64, 53)):
        if not array.size or (-(2**digits) <= int(array.min()) and int(array.max()) <= 2**digits):
            return array.astype(kind)
    return array


def _rewards(values: Any) -> np.ndarray:
    """`(N,)`, which may also come as a column; those of True and False are 1 and 0."""
    array = real_array("rewards", values)
    array = array.astype(np.float64) if array.dtype.kind == "b" else array
    return _numbers("rewards", array.reshape(-1) if array.shape[1:] == (1,) else array, (1,))


def _actions(values: Any) -> np.ndarray:
    """`(N, a)` floats, or `(N,)` int64 for Discrete actions, which may also come as a column."""
    array = _numbers("actions", values, (1, 2))
    if array.dtype.kind in "iu" and array.shape[1:] in ((), (1,)):
        return array.reshape(-1).astype(np.int64)
    if array.ndim == 1:
        raise InputError(f"actions: got shape (N,) of {array.dtype}; allowed: (N, a), or whole numbers (N,)")
    return _floats(array)


def _marks(name: str, values: Any) -> np.ndarray:
    array = real_array(name, values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise InputError(f"{name}: got shape {array.shape} of {array.dtype}; allowed: (N,) of 0 and 1, or bool")
    return array.astype(bool)


def _require_continuous(rows: dict[str, np.ndarray], ends: np.ndarray) -> None:
    """Within an episode, what follows an action is what precedes the next: not so in shuffled rows."""
    after, before = rows["next_observations"], rows["observations"]
    if after.shape != before.shape:
        raise InputError(f"next_observations: got shape {after.shape}; allowed: {before.shape}, as the observations")
    same = np.isclose(after[:-1], before[1:], rtol=1e-4, atol=1e-6).all(axis=1) | ends[:-1]
    if not same.all():
        row = int(np.argmin(same))
        raise InputError(
            f"next_observations: row {row} differs from observations row {row + 1}, though no episode ends between "
            "them; allowed: the rows of each episode in the order in which they happened"
        )


def _spaces(
    rows: dict[str, np.ndarray], env_id: str | None, kwargs: dict[str, Any], keys: tuple[str, ...]
) -> tuple[gym.Space[Any], gym.Space[Any], EnvSpec | None]:
    """Spaces of the rows' observations and actions, and the environment's specification, with which they must agree."""
    states, actions = rows["observations"], rows["actions"]
    low, high = (0, np.iinfo(states.dtype).max) if states.dtype.kind == "u" else (-np.inf, np.inf)
    seen = gym.spaces.Box(low, high, states.shape[1:], states.dtype.type)
    if env_id is None:
        if actions.ndim == 1:
            return seen, gym.spaces.Discrete(_largest(actions, 0) + 1), None
        return seen, gym.spaces.Box(-np.inf, np.inf, actions.shape[1:], actions.dtype.type), None
    env = build_env(env_id, **kwargs)
    spec, played = env.spec, env.action_space
    env.close()
    assert spec is not None
    require_storable(spec)
    if isinstance(played, gym.spaces.Discrete) != (actions.ndim == 1):
        raise InputError(f"actions: got shape {actions.shape} of {actions.dtype}; {env_id!r} has {played}")
    if isinstance(played, gym.spaces.Discrete):
        size, first = action_size(played), int(played.start)
        if _largest(actions, first) >= first + size:
            raise InputError(f"actions: {int(actions.max())} is no action of {env_id!r}, which has {played}")
    else:
        size = actions.shape[1]
    build_flat_env(spec, keys, states.shape[1], size).close()
    return seen, played, spec


def _largest(actions: np.ndarray, first: int) -> int:
    if actions.min() < first:
        raise InputError(f"actions: got {int(actions.min())}; allowed: whole numbers from {first}")
    return int(actions.max())


def _write(storage: MinariStorage, rows: dict[str, np.ndarray], bar: Any) -> None:
    batch: list[EpisodeBuffer] = []
    with bar:
        for episode in _episodes(rows):
            batch.append(episode)
            if len(batch) == EPISODES_PER_WRITE:
                _put(storage, batch)
                batch = []
            bar.update(len(episode.rewards))
        _put(storage, batch)


def _put(storage: MinariStorage, batch: list[EpisodeBuffer]) -> None:
    with interrupts_deferred():
        storage.update_episodes(batch)


def _episodes(rows: dict[str, np.ndarray]) -> Iterator[EpisodeBuffer]:
    ends = np.flatnonzero(rows["terminations"] | rows["truncations"]) + 1
    last = rows.get("next_observations", rows["observations"])
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part: dict[str, Any] = {name: array[start:end] for name, array in rows.items() if name != "next_observations"}
        part["observations"] = np.concatenate([part["observations"], last[end - 1 : end]])
        yield EpisodeBuffer(**part)
