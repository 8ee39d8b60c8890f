"""Makes a recipe's data set on this machine, as an ordinary Minari data set."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from dmm.data.atomic import replacement_of
from dmm.data.environments import environment_record, package_versions, require_packages
from dmm.data.interrupts import interrupts_deferred
from dmm.data.metadata import read_metadata
from dmm.data.minari_files import dataset_folder, make_namespace
from dmm.data.observations import build_env, require_storable
from dmm.data.recipes import RECIPES, Recipe, find_recipe
from dmm.data.rollout import RecordedEpisode, record
from dmm.data.scores import normalize
from dmm.errors import InputError, RunError, whole_number
from dmm.progress import progress_bar

SMALL = 20_000
"""Transitions below which starting worker processes would take longer than the work."""
EPISODES_PER_WRITE = 64
SPARE_BYTES = 64 * 10**6
"""Free space that must remain: more than any one write takes."""


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
    recipe: str | Recipe,
    *,
    transitions: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> CollectSummary:
    """Make a recipe's data set: whole episodes, in order, until they hold `transitions` steps.

    Every episode (of a recipe with stages: every block of episodes) depends on the seed and its number alone, so the
    number of worker processes changes nothing but the time. The data set appears under its id only when it is complete.
    One that is there with the same settings is returned at once.

    Args:
        recipe: a name that `dmm datasets` lists, or a `Recipe` of your own.
        transitions: at least this many; the recipe's own number by default.
        workers: processes; by default all cores, or one for a small data set.
        force: make the data set even if one of that id is there, and replace it.
        progress: show a bar on stderr.

    Raises:
        InputError: unknown recipe, a number out of range, another data set under that id, or no right to write there.
    """
    begin = time.perf_counter()
    recipe = recipe if isinstance(recipe, Recipe) else find_recipe(recipe)
    wanted = recipe.transitions if transitions is None else whole_number("transitions", transitions, 1)
    settings = {"recipe_version": recipe.version, "seed": whole_number("seed", seed, 0), "transitions": wanted}
    processes = _default_workers(wanted) if workers is None else whole_number("workers", workers, 1)
    folder = dataset_folder(recipe.name)
    if not force and folder.exists():
        return _summary(recipe, _require_same(recipe.name, folder, settings), folder, begin)
    require_packages(recipe.name, recipe.packages)
    with replacement_of(folder, overwrite=force) as new:
        _write(recipe, new, settings, processes, progress)
    make_namespace(folder)
    return _summary(recipe, _require_same(recipe.name, folder, settings), folder, begin)


def installed() -> list[CollectSummary]:
    """The recipes' data sets that are on this machine."""
    found = []
    for recipe in RECIPES.values():
        folder = dataset_folder(recipe.name)
        metadata = _read_metadata(folder)
        if metadata and metadata["dmm"].get("mean_return") is not None:
            found.append(_summary(recipe, metadata, folder, time.perf_counter()))
    return found


def _default_workers(transitions: int) -> int:
    if transitions < SMALL:
        return 1
    # the cores this process may use, where the system tells
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(recipe: Recipe, folder: Path, settings: dict[str, int], workers: int, progress: bool) -> None:
    """Records the episodes and writes them to `folder` as they come."""
    made = _Tally()
    bar = progress_bar(total=settings["transitions"], unit=" steps", desc=recipe.name, disable=not progress, delay=0.5)
    try:
        with interrupts_deferred():
            storage, environment = _new_storage(recipe, folder)
        with bar, closing(record(recipe, settings["seed"], workers, settings["transitions"])) as episodes:
            for batch in _batches(episodes):
                _require_space(folder, made.steps, settings["transitions"])
                with interrupts_deferred():
                    storage.update_episodes([_buffer(episode, recipe.rewards) for episode in batch])
                made.add(batch)
                bar.update(sum(len(episode.rewards) for episode in batch))
        storage.update_metadata(_metadata(recipe, settings, made, environment))
    except OSError as error:
        raise RunError(f"collect: {folder} could not be written ({error})") from error
    except BrokenProcessPool as error:
        raise RunError(f"collect: a worker process died ({error})") from error


class _Tally:
    """What the metadata say about the episodes."""

    def __init__(self) -> None:
        self.steps = 0
        self.returns: list[float] = []
        self.histories: list[int] = []  # episodes per block

    def add(self, episodes: list[RecordedEpisode]) -> None:
        for episode in episodes:
            self.steps += len(episode.rewards)
            self.returns.append(float(episode.rewards.sum()))
            self.histories.extend([0] * (episode.block + 1 - len(self.histories)))
            self.histories[episode.block] += 1


def _require_space(folder: Path, steps: int, wanted: int) -> None:
    """The disk must have room for the steps that are still to come: HDF5 does not survive a disk that is full."""
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    to_come = written * max(wanted - steps, 0) // steps if steps else 0
    free = shutil.disk_usage(folder).free
    if free < to_come + SPARE_BYTES:
        raise RunError(
            f"collect: no room left on the disk of {folder.parent.parent}: {free // 10**6} MB are free, about "
            f"{(to_come + SPARE_BYTES) // 10**6} MB are needed"
        )


def _batches(episodes: Iterator[RecordedEpisode]) -> Iterator[list[RecordedEpisode]]:
    """The episodes in lists of `EPISODES_PER_WRITE`, the last one shorter."""
    while batch := list(islice(episodes, EPISODES_PER_WRITE)):
        yield batch


def _buffer(episode: RecordedEpisode, rewards: str) -> EpisodeBuffer:
    ends = np.zeros((2, len(episode.rewards)), dtype=bool)
    ends[:, -1] = episode.terminated, episode.truncated
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.observations,
        actions=episode.actions,  # type: ignore[arg-type]
        rewards=np.cumsum(episode.rewards) if rewards == "cumulative" else episode.rewards,  # type: ignore[arg-type]
        terminations=ends[0],  # type: ignore[arg-type]
        truncations=ends[1],  # type: ignore[arg-type]
    )


def _new_storage(recipe: Recipe, folder: Path) -> tuple[MinariStorage, dict[str, Any]]:
    """An empty data set for the recipe's environment, and what its metadata say of that environment."""
    env = build_env(recipe.env_id, **recipe.env_kwargs)
    if env.spec:
        require_storable(env.spec)
    folder.mkdir()
    storage = MinariStorage.new(folder / "data", env.observation_space, env.action_space, env.spec, "hdf5")
    own: dict[str, Any] = {"environment": environment_record(env)}
    env.close()
    if not recipe.eval_kwargs:
        return storage, {"dmm": own}
    env = build_env(recipe.env_id, **{**recipe.env_kwargs, **recipe.eval_kwargs})
    own["eval_environment"] = environment_record(env)
    env.close()
    return storage, {"dmm": own, "eval_env_spec": env.spec.to_json() if env.spec else None}


def _metadata(recipe: Recipe, settings: dict[str, int], made: _Tally, environment: dict[str, Any]) -> dict[str, Any]:
    low, high = recipe.reference
    return {
        "dataset_id": recipe.name,
        "minari_version": minari.__version__,
        "author": {"decision-metamamba"},
        "algorithm_name": recipe.behaviour_name,
        "description": f"{recipe.description} Regenerated, not D4RL.",
        "ref_min_score": low,
        "ref_max_score": high,
        **{key: value for key, value in environment.items() if key != "dmm"},
        "dmm": {
            **settings,
            "observation_keys": list(recipe.observation_keys),
            "behaviour": recipe.behaviour_name,
            "rewards": recipe.rewards,
            **({"histories": made.histories} if recipe.histories else {}),
            "mean_return": float(np.mean(made.returns)),
            **environment["dmm"],
            "origin": "regenerated, not D4RL",
            "packages": package_versions(recipe.packages),
        },
    }


def _read_metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata = read_metadata(folder / "data")
    except (OSError, ValueError):
        return {}
    return metadata | {"dmm": metadata.get("dmm") or {}}


def _require_same(name: str, folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    """The metadata of what lies in `folder`, if it was made with `settings`."""
    metadata = _read_metadata(folder)
    made = {key: metadata.get("dmm", {}).get(key) for key in settings}
    if made == settings and metadata["dmm"].get("mean_return") is not None:
        return metadata
    there, wanted = (", ".join(f"{key} {value}" for key, value in group.items()) for group in (made, settings))
    there = there if "seed" in metadata.get("dmm", {}) else "something that was not made by a recipe"
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
