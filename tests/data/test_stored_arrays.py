from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dmm.data import stored_arrays
from dmm.data.stored_arrays import open_arrays
from dmm.errors import InputError

DEFLATE_RATIO = 1000


def outside(group: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(48))
    group.create_dataset("x", (6,), dtype="f8", external=[(str(folder / "secret"), 0, 48)])


def virtual(group: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((6,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "x", shape=(6,))
    group.create_virtual_dataset("x", layout)


def link(target: Any) -> Callable[[Any, Path], None]:
    def put(group: Any, folder: Path) -> None:
        group["x"] = target(folder)

    return put


def dataset(*shape: Any, **more: Any) -> Callable[[Any, Path], None]:
    return lambda group, folder: group.create_dataset("x", *shape, **more)


REFUSED: dict[str, tuple[Callable[[Any, Path], None], str]] = {
    "terabytes": (dataset((10**12, 3), dtype="f8", chunks=(100, 3)), "declares 24,000,000,000,000 bytes"),
    "large chunks": (
        dataset(data=np.zeros((7, 3)), chunks=(4 * 10**6, 3), maxshape=(None, 3), compression="gzip"),
        "has chunks of",
    ),
    "raw data outside": (outside, "lies in other files"),
    "virtual": (virtual, "lies in other files"),
    "external link": (link(lambda folder: h5py.ExternalLink(str(folder / "other.hdf5"), "/x")), "is a link"),
    "circle": (link(lambda folder: h5py.SoftLink("/episode_0/x")), "is a link"),
    "texts": (dataset(data=np.array([b"a"])), "allowed are numbers"),
    "complex": (dataset(data=np.zeros(3, complex)), "allowed are numbers"),
    "compound": (dataset(data=np.zeros(3, [("a", float)])), "allowed are numbers"),
    "lists": (dataset((3,), dtype=h5py.vlen_dtype(float)), "allowed are numbers"),
    "references": (dataset((3,), dtype=h5py.ref_dtype), "allowed are numbers"),
    "a number": (dataset(data=1.0), "is no array"),
    "nothing": (dataset(data=h5py.Empty("f8")), "is no array"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = np.zeros(6)
    return tmp_path / "data.hdf5"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_recording_needs_is_refused(path: Path, kind: str) -> None:
    put, message = REFUSED[kind]
    with h5py.File(path, "w") as file:
        put(file.create_group("episode_0"), path.parent)
    with (
        open_arrays(path) as arrays,
        pytest.raises(InputError, match=f"^episode_0/x .*{message}|^episode_0/x {message}"),
    ):
        arrays.read("episode_0", "x")


def test_an_episode_that_lies_in_another_file_is_refused(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["episode_0"] = h5py.ExternalLink("other.hdf5", "/")
    with open_arrays(path) as arrays, pytest.raises(InputError, match="is a link"):
        arrays.read("episode_0", "x")


@pytest.mark.parametrize(
    "more", [{}, {"chunks": True}, {"compression": "gzip"}, {"chunks": True, "maxshape": (None, 3)}]
)
@pytest.mark.parametrize("dtype", ["f4", "f8", ">f8", "i8", "u1", bool])
def test_numbers_of_any_type_and_layout_come_back(path: Path, more: dict[str, Any], dtype: Any) -> None:
    rows = (np.arange(21).reshape(7, 3) % 2).astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("episode_0/observations/a", data=rows, **more)
    with open_arrays(path) as arrays:
        np.testing.assert_array_equal(arrays.read("episode_0", "observations", "a"), rows)
        np.testing.assert_array_equal(arrays.read("episode_0", "observations/a"), rows)


def test_arrays_may_not_together_take_more_than_the_file_can_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_arrays, "ALLOWANCE", 10**6)
    with h5py.File(path, "w") as file:
        for i in range(20):
            file.create_dataset(f"episode_{i}/x", data=np.zeros(10**6, bool), chunks=(10**6,), compression="gzip")
    assert os.path.getsize(path) * DEFLATE_RATIO > 10**7
    with open_arrays(path) as arrays, pytest.raises(InputError, match="more than the file can hold"):
        for i in range(20):
            arrays.read(f"episode_{i}", "x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(InputError, match="no ordinary file"), open_arrays(path):
        pass
