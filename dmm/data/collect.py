"""Makes a recipe's data set on this machine, as an ordinary Minari data set."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace
from minari.storage import get_dataset_path
from tqdm import tqdm

from dmm.data.atomic import replacement_of
from dmm.data.interrupts import interrupts_deferred
from dmm.data.minari_files import dataset_folder
from dmm.data.observations import build_env
from dmm.data.recipes import RECIPES, Recipe, find_recipe
from dmm.data.rollout import RecordedEpisode, record
from dmm.errors import InputError, RunError
from dmm.normalize import normalize

PACKAGES = ("decision-metamamba", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy")
"""Their versions are written into the data set: other versions may give other bytes."""
SMALL = 20_000
"""Transitions below which starting worker processes would take longer than the work."""
EPISODES_PER_WRITE = 64


@dataclass(frozen=True)
class CollectSummary:
    """What `collect` made, or found."""

    dataset_id: str
    transitions: int
    episodes: int
    mean_return: float
    normalized_score: float
    seconds: float
    path: str


def collect(
    name: str,
    *,
    transitions: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> CollectSummary:
    """Make the data set of recipe `name`: whole episodes 0, 1, ... until they hold `transitions` steps.

    Episode i depends on `(seed, i)` alone, so the number of worker processes changes nothing but the time. The data
    set appears under its id only when it is complete. One that is there with the same settings is returned at once.

    Args:
        transitions: at least this many; the recipe's own number by default.
        workers: processes; by default all cores, or one for a small data set.
        force: make the data set even if one of that id is there, and replace it.
        progress: show a bar on stderr.

    Raises:
        InputError: unknown recipe, a number out of range, another data set under that id, or no right to write there.
    """
    begin = time.perf_counter()
    recipe = find_recipe(name)
    wanted = recipe.transitions if transitions is None else _at_least("transitions", transitions, 1)
    settings = {"recipe_version": recipe.version, "seed": _at_least("seed", seed, 0), "transitions": wanted}
    processes = _default_workers(wanted) if workers is None else _at_least("workers", workers, 1)
    folder = dataset_folder(name)
    if not force and folder.exists():
        return _summary(recipe, _require_same(name, folder, settings), folder, begin)
    with replacement_of(folder, overwrite=force) as new:
        _write(recipe, new, settings, processes, progress)
    with suppress(ValueError, OSError):  # there already
        create_namespace(folder.parent.relative_to(get_dataset_path()).as_posix())
    return _summary(recipe, _require_same(name, folder, settings), folder, begin)


def installed() -> list[CollectSummary]:
    """The recipes' data sets that are on this machine."""
    found = []
    for recipe in RECIPES.values():
        folder = dataset_folder(recipe.name)
        metadata = _read_metadata(folder)
        if "mean_return" in metadata.get("dmm", {}):
            found.append(_summary(recipe, metadata, folder, time.perf_counter()))
    return found


def _at_least(argument: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{argument}: got {value!r}; allowed: a whole number, {least} or more")
    return value


def _default_workers(transitions: int) -> int:
    if transitions < SMALL:
        return 1
    # the cores this process may use, where the system tells
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(recipe: Recipe, folder: Path, settings: dict[str, int], workers: int, progress: bool) -> None:
    """Records the episodes and writes them to `folder` as they come."""
    returns: list[float] = []
    bar = tqdm(total=settings["transitions"], unit=" steps", desc=recipe.name, disable=not progress, delay=0.5)
    try:
        with interrupts_deferred():
            storage = _new_storage(recipe, folder)
        with bar, closing(record(recipe, settings["seed"], workers)) as episodes:
            for batch in _batches(episodes, settings["transitions"]):
                with interrupts_deferred():
                    storage.update_episodes([_buffer(episode) for episode in batch])
                returns.extend(float(episode.rewards.sum()) for episode in batch)
                bar.update(sum(len(episode.rewards) for episode in batch))
        storage.update_metadata(_metadata(recipe, settings, returns))
    except OSError as error:
        raise RunError(f"collect: {folder} could not be written ({error})") from error
    except BrokenProcessPool as error:
        raise RunError(f"collect: a worker process died ({error})") from error


def _batches(episodes: Iterator[RecordedEpisode], transitions: int) -> Iterator[list[RecordedEpisode]]:
    """Lists of whole episodes, up to and including the one in which the sum of steps reaches `transitions`."""
    batch: list[RecordedEpisode] = []
    for episode in episodes:
        batch.append(episode)
        transitions -= len(episode.rewards)
        if transitions <= 0 or len(batch) == EPISODES_PER_WRITE:
            yield batch
            batch = []
        if transitions <= 0:
            return


def _buffer(episode: RecordedEpisode) -> EpisodeBuffer:
    ends = np.zeros((2, len(episode.rewards)), dtype=bool)
    ends[:, -1] = episode.terminated, episode.truncated
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.observations,
        actions=episode.actions,  # type: ignore[arg-type]
        rewards=episode.rewards,  # type: ignore[arg-type]
        terminations=ends[0],  # type: ignore[arg-type]
        truncations=ends[1],  # type: ignore[arg-type]
    )


def _new_storage(recipe: Recipe, folder: Path) -> MinariStorage:
    folder.mkdir()
    env = build_env(recipe.env_id, **recipe.env_kwargs)
    storage = MinariStorage.new(folder / "data", env.observation_space, env.action_space, env.spec, "hdf5")
    env.close()
    return storage


def _metadata(recipe: Recipe, settings: dict[str, int], returns: list[float]) -> dict[str, Any]:
    low, high = recipe.reference
    return {
        "dataset_id": recipe.name,
        "minari_version": minari.__version__,
        "author": {"decision-metamamba"},
        "algorithm_name": recipe.behaviour_name,
        "description": f"{recipe.description} Regenerated, not D4RL.",
        "ref_min_score": low,
        "ref_max_score": high,
        "dmm": {
            **settings,
            "observation_keys": list(recipe.observation_keys),
            "behaviour": recipe.behaviour_name,
            "mean_return": float(np.mean(returns)),
            "origin": "regenerated, not D4RL",
            "packages": {name: _version(name) for name in PACKAGES},
        },
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = MinariStorage.read_raw_metadata(folder / "data")
        return metadata
    except (OSError, ValueError):
        return {}


def _require_same(name: str, folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    """The metadata of what lies in `folder`, if it was made with `settings`."""
    metadata = _read_metadata(folder)
    made = {key: metadata.get("dmm", {}).get(key) for key in settings}
    if made == settings:
        return metadata
    there, wanted = (", ".join(f"{key} {value}" for key, value in group.items()) for group in (made, settings))
    there = there if "dmm" in metadata else "something that was not made by a recipe"
    raise InputError(f"name: {name!r} is already at {folder} with {there}; asked for {wanted}; --force replaces it")


def _summary(recipe: Recipe, metadata: dict[str, Any], folder: Path, begin: float) -> CollectSummary:
    mean_return = metadata["dmm"]["mean_return"]
    return CollectSummary(
        dataset_id=recipe.name,
        transitions=metadata["total_steps"],
        episodes=metadata["total_episodes"],
        mean_return=mean_return,
        normalized_score=float(normalize(mean_return, recipe.reference)),
        seconds=time.perf_counter() - begin,
        path=str(folder),
    )
