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
from minari.dataset._storages import get_minari_storage
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage
from minari.namespace import create_namespace
from minari.serialization import deserialize_space
from minari.storage import get_dataset_path

from dmm.data.atomic import replacement_of
from dmm.data.observations import action_size, stored_spaces
from dmm.data.recipes import RECIPES
from dmm.errors import InputError

NETWORK_TIMEOUT = 3.0
"""Seconds to wait for the data server's first answer; Minari itself would retry for half a minute."""
PUBLIC = ("D4RL/", "mujoco/", "atari/", "minigrid/")
"""How the ids of the public data sets begin; of other namespaces only the server knows."""
DATASETS_PATH = "MINARI_DATASETS_PATH"


@dataclass(frozen=True)
class Episode:
    """One stored episode of l transitions, in the types in which they are stored."""

    index: int  # in the files
    observations: Any  # (l + 1, s), or a dictionary of such arrays
    actions: np.ndarray  # (l, a), or (l,) where they are Discrete
    rewards: np.ndarray  # (l,), or a column (l, 1)
    terminations: np.ndarray  # (l,)
    truncations: np.ndarray  # (l,)


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
        return Path(get_dataset_path(minari_id))
    except OSError as error:
        raise InputError(f"dataset: the folder of Minari data sets cannot be used ({error})") from error


def local_ids() -> list[str]:
    """Ids of the Minari data sets on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sorted(minari.list_local_datasets())


def open_dataset(
    dataset: str | minari.MinariDataset, *, download: bool = False, trust_environment: bool = False
) -> minari.MinariDataset:
    """The data set as Minari opens it; with `download` it is fetched first when it is not here.

    One that is open already, such as a selection of episodes made with Minari's functions, is given back. Spaces that
    it does not store are those of its environment, which is made as `build_env` does.

    Raises:
        InputError: unknown id, no network, or files that Minari cannot read.
    """
    if isinstance(dataset, minari.MinariDataset):
        _require_hdf5(dataset.spec.dataset_id, dataset.storage.metadata)
        return dataset
    if not isinstance(dataset, str):
        kind = type(dataset).__name__
        raise InputError(f"dataset: got a {kind}; allowed: the id of a Minari data set, or one that Minari opened")
    minari_id = dataset
    folder = dataset_folder(minari_id)
    if download and not _complete(folder):
        _download(minari_id, folder)
    if not (folder / "data").is_dir():
        raise InputError(_not_here(minari_id))
    try:
        metadata = MinariStorage.read_raw_metadata(folder / "data")
        _require_hdf5(minari_id, metadata)
        return minari.MinariDataset(_storage(folder / "data", metadata, trust_environment))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AssertionError, NotImplementedError, gym.error.Error) as error:
        raise InputError(f"dataset: {minari_id!r} at {folder} cannot be read ({error})") from error


def _require_hdf5(minari_id: str, metadata: dict[str, Any]) -> None:
    if metadata["data_format"] != "hdf5":
        raise InputError(f"dataset: {minari_id!r} is stored as {metadata['data_format']}; allowed: hdf5")


def _storage(data: Path, metadata: dict[str, Any], trust_environment: bool = False) -> MinariStorage:
    """Minari's own reader would call whatever the metadata name to find spaces that are not stored."""
    names = {"observation_space", "action_space"}
    if names <= metadata.keys():
        return MinariStorage.read(data)
    spaces = stored_spaces(metadata, trust_environment=trust_environment)
    spaces |= {name: deserialize_space(metadata[name]) for name in names & metadata.keys()}
    jpeg = bool(metadata.get("jpeg_encoding", True))
    return get_minari_storage(metadata["data_format"])(data, **spaces, jpeg_encoding=jpeg)


def read_episodes(dataset: minari.MinariDataset, keys: tuple[str, ...]) -> Iterator[Episode]:
    """The episodes that `dataset` selects, in its order, with the entries `keys` of their observations.

    HDF5 files are read directly: Minari's own iterator also decodes every `info`, which nothing here needs.

    Raises:
        InputError: actions that are not supported, or files that cannot be read.
    """
    action_size(dataset.action_space)
    try:
        with h5py.File(Path(dataset.storage.data_path) / "main_data.hdf5", "r") as file:
            for i in map(int, dataset.episode_indices):
                yield _episode(i, functools.partial(_read_array, file.id, f"episode_{i}"), keys)
    except (OSError, KeyError) as error:
        raise InputError(f"dataset: {dataset.spec.dataset_id!r} cannot be read ({error})") from error


def _episode(index: int, read: Callable[..., Any], keys: tuple[str, ...]) -> Episode:
    return Episode(
        index=index,
        observations={key: read("observations", key) for key in keys} if keys else read("observations"),
        actions=read("actions"),
        rewards=read("rewards"),
        terminations=read("terminations"),
        truncations=read("truncations"),
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
            _storage(fetched / "data", MinariStorage.read_raw_metadata(fetched / "data"))
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
