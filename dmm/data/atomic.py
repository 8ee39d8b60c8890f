"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmm.errors import InputError

if sys.platform != "win32":
    import fcntl


@contextmanager
def replacement_of(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a path to fill; once the block ends well, what was put there is moved to `folder` in one step.

    The work happens in a hidden folder beside it, which Minari does not list. Should this process be killed, the next
    call removes what is left. Should another process put its `folder` there first, that one stays unless `overwrite`.

    Raises:
        InputError: the place cannot be written to.
    """
    prefix = f".{folder.name}.partial-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f"{prefix}*"):
            _remove_if_abandoned(leftover)
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    except OSError as error:
        raise InputError(f"path: no data set can be written at {folder} ({error.strerror or error})") from error
    lock = _lock(partial)
    try:
        yield partial / "new"
        _move(partial / "new", folder, partial / "old", overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _move(new: Path, folder: Path, old: Path, overwrite: bool) -> None:
    if overwrite and folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if not folder.exists():
            raise


def _remove_if_abandoned(leftover: Path) -> None:
    # a folder is locked before anything is put in it, so an empty one may be brand new and in use
    if any(leftover.iterdir()):
        lock = _lock(leftover)
        if lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """An open handle holding the folder's lock until its process ends; None when that cannot be had."""
    if sys.platform == "win32":  # no such locks there: leftovers stay
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
