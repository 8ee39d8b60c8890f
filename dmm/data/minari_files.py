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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.dataset._storages import get_minari_storage
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.serialization import deserialize_space
from minari.storage import get_dataset_path

from dmm.data.atomic import replacement_of
from dmm.data.metadata import read_metadata
from dmm.data.observations import action_size, stored_spaces
from dmm.data.recipes import RECIPES
from dmm.data.stored_arrays import open_arrays
from dmm.errors import InputError
from dmm.files import user_path

NETWORK_TIMEOUT = 3.0
"""Seconds to wait for the data server's first answer; Minari itself would retry for half a minute."""
PUBLIC = ("D4RL/", "mujoco/", "atari/", "minigrid/")
"""How the ids of the public data sets begin; of other namespaces only the server knows."""
DATASETS_PATH = "MINARI_DATASETS_PATH"
DATA_FILE_NAME = "main_data.hdf5"
NAMESPACE_DEPTH = 16
"""Folders in one another that are looked into for data sets."""
ENTRY_LIMIT = 200_000
"""Files and folders that are looked at to list data sets; a second's work."""
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError, OverflowError),
    *(RuntimeError, NotImplementedError, MemoryError, gym.error.Error),
)
"""What Minari, h5py and Gymnasium raise on files that are damaged, or made to look so."""


@dataclass(frozen=True)
class Episode:
    """One stored episode of l transitions, in the types in which they are stored."""

    index: int  # in the files
    observations: Any  # (l + 1, s), or a dictionary of such arrays
    actions: np.ndarray  # (l, a), or (l,) where they are Discrete
    rewards: np.ndarray  # (l,), or a column (l, 1)
    terminations: np.ndarray  # (l,)
    truncations: np.ndarray  # (l,)


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
    return local_sets()[0]


def local_sets() -> tuple[list[str], list[str]]:
    """Ids of the Minari data sets on this machine, and a line for each folder that looks like one and is none.

    Folders that cannot be a namespace or a data set by their names are passed over: one neighbour is no reason not to
    list the others.
    """
    root = dataset_folder("a-v0").parent
    found: list[str] = []
    wrong: list[str] = []
    for folder in _candidates(root, wrong):
        minari_id = folder.relative_to(root).as_posix()
        try:
            parse_dataset_id(minari_id)
            said = read_metadata(folder / "data")["dataset_id"]
            if said != minari_id:
                raise InputError(f"it says that it is {said!r}")
            found.append(minari_id)
        except (ValueError, TypeError, OSError) as error:
            wrong.append(f"{minari_id!r} is no data set ({_one_line(error)})")
    return sorted(found), sorted(wrong)


def _candidates(root: Path, wrong: list[str]) -> Iterator[Path]:
    """The folders below `root` that have something called `data` in them, links to folders followed once."""
    waiting, seen, looked = [(root, 0)], set(), 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen or depth > NAMESPACE_DEPTH:
                continue
            seen.add((status.st_dev, status.st_ino))
            if depth and (folder / "data").exists():
                yield folder
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    looked += 1
                    if not entry.name.startswith(".") and entry.is_dir():
                        waiting.append((folder / entry.name, depth + 1))
                    if looked > ENTRY_LIMIT:
                        wrong.append(f"{str(root)!r} has more than {ENTRY_LIMIT:,} entries; the rest is not looked at")
                        return
        except OSError as error:
            wrong.append(f"{folder.relative_to(root).as_posix()!r} cannot be looked into ({_one_line(error)})")


def _one_line(error: BaseException) -> str:
    """The message of an error, or its name, short and without line breaks."""
    text = " ".join((error.strerror if isinstance(error, OSError) and error.strerror else str(error)).split())
    return text[:300] or type(error).__name__


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
    if not _is_there(folder):
        raise InputError(_not_here(minari_id))
    try:
        metadata = read_metadata(folder / "data")
        _require_hdf5(minari_id, metadata)
        _require_episodes(folder / "data", metadata)
        return minari.MinariDataset(_storage(folder / "data", metadata, trust_environment))
    except UNREADABLE as error:
        raise InputError(f"dataset: {minari_id!r} at {folder} cannot be read ({_one_line(error)})") from error


def _require_episodes(data: Path, metadata: dict[str, Any]) -> None:
    """Passes when the file can hold as many episodes as the metadata say: Minari lists their numbers in memory."""
    with open_arrays(data / DATA_FILE_NAME) as arrays:
        if metadata["total_episodes"] > arrays.most_episodes:
            raise InputError(
                f"total_episodes: the metadata say {metadata['total_episodes']}, the file holds {arrays.most_episodes}"
            )


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
        with open_arrays(Path(dataset.storage.data_path) / DATA_FILE_NAME) as arrays:
            for i in map(int, dataset.episode_indices):
                yield _episode(i, functools.partial(arrays.read, f"episode_{i}"), keys)
    except UNREADABLE as error:
        raise InputError(f"dataset: {dataset.spec.dataset_id!r} cannot be read ({_one_line(error)})") from error


def _episode(index: int, read: Callable[..., Any], keys: tuple[str, ...]) -> Episode:
    return Episode(
        index=index,
        observations={key: read("observations", key) for key in keys} if keys else read("observations"),
        actions=read("actions"),
        rewards=read("rewards"),
        terminations=read("terminations"),
        truncations=read("truncations"),
    )


def _complete(folder: Path) -> bool:
    """Whether metadata and something beside them are there; a download with Minari's own command can leave less."""
    data = folder / "data"
    try:
        return (data / METADATA_FILE_NAME).is_file() and len(list(islice(data.iterdir(), 2))) > 1
    except OSError as error:
        raise InputError(f"dataset: {folder} cannot be read ({_one_line(error)})") from error


def _is_there(folder: Path) -> bool:
    try:
        return (folder / "data").is_dir()
    except OSError as error:  # it is forbidden, or the name is too long
        raise InputError(f"dataset: {folder} cannot be looked into ({_one_line(error)})") from error


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
            _storage(fetched / "data", read_metadata(fetched / "data"))
        except Exception as error:  # Minari passes on whatever its network library raises
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"download: {minari_id!r} cannot be fetched ({type(error).__name__}: {reason})") from error
        fetched.rename(new)
    make_namespace(folder)


def make_namespace(folder: Path) -> None:
    """Marks what lies between a data set and the folder of all as namespaces, as Minari does.

    Minari's own function looks through all neighbours first, and loses its way in links that lead in a circle.
    """
    root = dataset_folder("a-v0").parent
    for place in folder.parents:
        if place == root or root not in place.parents:
            break
        with suppress(OSError), (place / NAMESPACE_METADATA_FILENAME).open("x") as file:  # there already
            file.write("{}")


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
