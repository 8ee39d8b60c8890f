"""Finding, fetching and reading Minari data sets."""

from __future__ import annotations

import difflib
import functools
import http.client
import os
import sys
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage
from minari.namespace import create_namespace
from minari.storage import get_dataset_path

from dmm.data.atomic import replacement_of
from dmm.data.observations import action_size, flatten_actions, flatten_observation, register_environments
from dmm.data.recipes import RECIPES
from dmm.errors import InputError
from dmm.files import user_path

NETWORK_TIMEOUT = 3.0
"""Seconds to wait for the data server's first answer; Minari itself would retry for half a minute."""
PUBLIC = ("D4RL/", "mujoco/", "atari/", "minigrid/")
"""How the ids of the public data sets begin; of other namespaces only the server knows."""
DATASETS_PATH = "MINARI_DATASETS_PATH"


@dataclass(frozen=True)
class Episode:
    """One stored episode of l transitions."""

    observations: np.ndarray  # (l + 1, s) float32
    actions: np.ndarray  # (l, a) float32, one-hot where they are Discrete
    rewards: np.ndarray  # (l,)
    terminated: bool


def expand_datasets_path() -> None:
    """`~` at the beginning of `MINARI_DATASETS_PATH` is the home folder; Minari would make one of that name."""
    if os.environ.get(DATASETS_PATH, "").startswith("~"):
        os.environ[DATASETS_PATH] = str(user_path(DATASETS_PATH, os.environ[DATASETS_PATH]))


def dataset_folder(minari_id: str) -> Path:
    """Where a data set of that id lies, or would lie.

    Raises:
        InputError: the id is malformed or the folder of all data sets cannot be made.
    """
    try:
        parse_dataset_id(minari_id)
    except (ValueError, TypeError) as error:
        raise InputError(f"dataset: {minari_id!r} is not a Minari id; allowed: NAMESPACE/NAME-vVERSION") from error
    try:
        expand_datasets_path()
        return Path(get_dataset_path(minari_id))
    except OSError as error:
        raise InputError(f"dataset: the folder of Minari data sets cannot be used ({error})") from error


def local_ids() -> list[str]:
    """Ids of the Minari data sets on this machine."""
    expand_datasets_path()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(minari.list_local_datasets())


def open_dataset(minari_id: str, *, download: bool = False) -> minari.MinariDataset:
    """The data set as Minari opens it; with `download` it is fetched first when it is not here.

    Raises:
        InputError: unknown id, no network, or files that Minari cannot read.
    """
    folder = dataset_folder(minari_id)
    if download and not _complete(folder):
        _download(minari_id, folder)
    if not (folder / "data").is_dir():
        raise InputError(_not_here(minari_id))
    try:
        metadata = MinariStorage.read_raw_metadata(folder / "data")
        if metadata["data_format"] != "hdf5":
            raise InputError(f"dataset: {minari_id!r} is stored as {metadata['data_format']}; allowed: hdf5")
        if not {"observation_space", "action_space"} <= metadata.keys():
            register_environments()  # Minari then asks the environment for its spaces
        return minari.load_dataset(minari_id)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AssertionError, NotImplementedError, gym.error.Error) as error:
        raise InputError(f"dataset: {minari_id!r} at {folder} cannot be read ({error})") from error


def read_episodes(dataset: minari.MinariDataset, keys: tuple[str, ...]) -> Iterator[Episode]:
    """The episodes in stored order, observations flattened by `keys`, actions as `flatten_actions` does.

    HDF5 files are read directly: Minari's own iterator also decodes every `info`, which nothing here needs.

    Raises:
        InputError: actions that are not supported, or files that cannot be read.
    """
    action_size(dataset.action_space)
    try:
        with h5py.File(Path(dataset.storage.data_path) / "main_data.hdf5", "r") as file:
            for i in range(dataset.total_episodes):
                yield _episode(functools.partial(_read_array, file.id, f"episode_{i}"), keys, dataset.action_space)
    except (OSError, KeyError) as error:
        raise InputError(f"dataset: {dataset.spec.dataset_id!r} cannot be read ({error})") from error


def _episode(read: Callable[..., Any], keys: tuple[str, ...], actions: gym.Space[Any]) -> Episode:
    observations = {key: read("observations", key) for key in keys} if keys else read("observations")
    terminations = read("terminations")
    return Episode(
        observations=flatten_observation(observations, keys),
        actions=flatten_actions(read("actions"), actions),
        rewards=read("rewards"),
        terminated=bool(len(terminations) and terminations[-1]),
    )


def _read_array(file: h5py.h5f.FileID, *path: str) -> np.ndarray:
    """One stored array. h5py's convenient layer spends ten times as long as the reading itself on arrays this small."""
    stored = h5py.h5d.open(file, "/".join(path).encode())
    array = np.empty(stored.shape, dtype=stored.dtype)
    stored.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def _complete(folder: Path) -> bool:
    """Whether metadata and something beside them are there; a download with Minari's own command can leave less."""
    data = folder / "data"
    return (data / METADATA_FILE_NAME).is_file() and len(list(data.iterdir())) > 1


def _not_here(minari_id: str) -> str:
    if minari_id in RECIPES:
        return f"dataset: {minari_id!r} is not on this machine yet; make it with `dmm collect {minari_id}`"
    here = f"dataset: {minari_id!r} is not on this machine (download not asked for)"
    if minari_id.startswith(PUBLIC):
        return f"{here}; `dmm train {minari_id} --download` or `minari download {minari_id}` fetches it"
    near = difflib.get_close_matches(minari_id, sorted({*local_ids(), *RECIPES}), n=3, cutoff=0.4)
    return f"{here}; " + (f"did you mean {', '.join(near)}?" if near else "`dmm datasets` lists what can be made")


def _download(minari_id: str, folder: Path) -> None:
    """Fetches a data set to a hidden place and moves it to `folder` when it is complete.

    Minari itself writes file after file to the final place, and takes what an interrupted download left for the whole.
    """
    if minari_id in RECIPES:
        raise InputError(f"download: {minari_id!r} is made, not fetched; use `dmm collect {minari_id}`")
    _require_server(minari_id)
    with replacement_of(folder, overwrite=True) as new:
        try:
            with _datasets_below(new.parent), redirect_stdout(sys.stderr):
                minari.download_dataset(minari_id)
                fetched = Path(get_dataset_path(minari_id))
            MinariStorage.read(fetched / "data")
        except Exception as error:  # Minari passes on whatever its network library raises
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"download: {minari_id!r} cannot be fetched ({type(error).__name__}: {reason})") from error
        fetched.rename(new)
    with suppress(ValueError, OSError):  # there already
        create_namespace(folder.parent.relative_to(get_dataset_path()).as_posix())


def _require_server(minari_id: str) -> None:
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise InputError('download: needs huggingface_hub; install it with `pip install "minari[hf]"`') from error
    if not reachable(constants.ENDPOINT, NETWORK_TIMEOUT):
        raise InputError(f"download: {constants.ENDPOINT} does not answer, so {minari_id!r} cannot be fetched")


@contextmanager
def _datasets_below(root: Path) -> Iterator[None]:
    """Inside, Minari finds and puts its data sets below `root`."""
    before = os.environ.get(DATASETS_PATH)
    os.environ[DATASETS_PATH] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ[DATASETS_PATH]
        else:
            os.environ[DATASETS_PATH] = before


def reachable(url: str, timeout: float) -> bool:
    """Whether a server answers HTTP at `url` within `timeout` seconds, whatever it answers."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
            answers.append(True)
        except urllib.error.HTTPError:
            answers.append(True)
        except (OSError, http.client.HTTPException):  # nobody there, or somebody who does not speak HTTP
            answers.append(False)

    # looking up a name has no time limit of its own, hence a thread that may be left behind
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return any(answers)
