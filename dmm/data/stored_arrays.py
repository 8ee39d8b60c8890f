"""Reading the arrays of an HDF5 file from elsewhere: what they declare is looked at before memory is taken."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s

from dmm.errors import InputError

RATIO = 200
"""Bytes in memory that one byte of the file may stand for: what compression of real recordings stays far below."""
ALLOWANCE = 16 * 2**20
"""Bytes in memory that any file may take."""
CHUNK_LIMIT = 64 * 2**20
"""Bytes of one chunk, all of which is unpacked when any of it is read."""
GROUPS_KEPT = 4
UNPLAIN = 1 << 7 | 1 << 11
"""Messages of an array's header, by their numbers in the format: external files, filters. Without them, and with all
its bytes in this file, it is neither virtual nor has to be unpacked."""
SMALLEST_EPISODE = 100
"""Bytes that an episode's group takes at least."""


class StoredArrays:
    """The arrays of an open HDF5 file.

    Args:
        file: h5py's.
        size: bytes of the file.
    """

    def __init__(self, file: h5py.File, size: int):
        self._root = h5g.open(file.id, b"/")
        self._groups: dict[tuple[str, ...], h5g.GroupID] = {(): self._root}
        self._memory = min(RATIO * size + ALLOWANCE, _physical_memory())  # bytes that may still be taken
        self.most_episodes = min(self._root.get_num_objs(), size // SMALLEST_EPISODE)

    def read(self, *path: str) -> np.ndarray:
        """One array of numbers, `(l,)`, `(l, size)` or more, by the names that lead to it.

        h5py's convenient layer spends ten times as long as the reading itself on arrays this small.

        Raises:
            InputError: links, files, types or sizes that no recorded array needs.
            KeyError, OSError: it is missing or damaged.
        """
        *groups, last = "/".join(path).split("/")
        group = self._group(tuple(groups), path)
        _require_own(group, last, path)
        stored = h5d.open(group, last.encode())
        shape, dtype = stored.shape, stored.dtype
        if dtype.kind not in "fiub" or dtype.itemsize > 8:
            raise InputError(f"{'/'.join(path)} holds {dtype}, allowed are numbers")
        if not shape:
            raise InputError(f"{'/'.join(path)} is no array")
        size = math.prod(shape) * dtype.itemsize
        self._take(size, path)
        # the properties of an array take longer to ask for than all else, and most arrays have nothing to hide
        if h5o.get_info(stored).hdr.mesg.present & UNPLAIN or stored.get_storage_size() < size:
            _require_plain(stored, dtype.itemsize, path)
        array = np.empty(shape, dtype=dtype)
        stored.read(h5s.ALL, h5s.ALL, array)
        return array

    def _group(self, names: tuple[str, ...], path: tuple[str, ...]) -> h5g.GroupID:
        """The group of that path, which the next array probably needs again."""
        if names not in self._groups:
            parent = self._group(names[:-1], path)
            _require_own(parent, names[-1], path)
            if len(self._groups) > GROUPS_KEPT:
                self._groups = {(): self._root}
            self._groups[names] = h5g.open(parent, names[-1].encode())
        return self._groups[names]

    def _take(self, size: int, path: tuple[str, ...]) -> None:
        self._memory -= size
        if self._memory < 0:
            raise InputError(f"{'/'.join(path)} declares {size:,} bytes, more than the file can hold or this machine")


@contextmanager
def open_arrays(path: Path) -> Iterator[StoredArrays]:
    """The arrays of a file, which must be an ordinary one: a pipe would be waited for.

    Raises:
        InputError: it is none.
        OSError: it is missing or damaged.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path.name} is no ordinary file")
    with h5py.File(path, "r") as file:
        yield StoredArrays(file, status.st_size)


def _require_own(group: h5g.GroupID, name: str, path: tuple[str, ...]) -> None:
    """Passes for what lies in this file at this place; soft and external links lead elsewhere, or in a circle."""
    if group.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise InputError(f"{'/'.join(path)} is a link, allowed are arrays in the file itself")


def _require_plain(stored: h5d.DatasetID, itemsize: int, path: tuple[str, ...]) -> None:
    """Passes where the array's numbers lie in this file, in pieces that can be unpacked."""
    plan = stored.get_create_plist()
    layout = plan.get_layout()
    if layout == h5d.CHUNKED:
        if math.prod(plan.get_chunk()) * itemsize > CHUNK_LIMIT:
            raise InputError(
                f"{'/'.join(path)} has chunks of {plan.get_chunk()} numbers, allowed are {CHUNK_LIMIT:,} bytes"
            )
    elif layout not in (h5d.CONTIGUOUS, h5d.COMPACT) or plan.get_external_count():
        raise InputError(f"{'/'.join(path)} lies in other files, allowed are arrays in the file itself")


def _physical_memory() -> int:
    """Bytes, or a large number where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**62
