"""Paths as people write them, files that may be anything, and JSON that every parser reads."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

from dmm.errors import InputError

JSON_LIMIT = 16 * 2**20
"""Bytes of JSON that are read from one file; what this package writes stays far below."""


def user_path(name: str, value: str | os.PathLike[str]) -> Path:
    """The path that `value` means: `~` and `~name` at its beginning are home folders, wherever the shell left them.

    Raises:
        InputError: no text or path, an empty one, or one that no file can have.
    """
    if not isinstance(value, str | os.PathLike) or not (text := os.fspath(value)) or "\0" in str(text):
        raise InputError(f"{name}: got {value!r}, allowed is a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{name}: got {str(value)!r}, but there is no such home folder here") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a reader or a crash sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where this package keeps what it can make or fetch anew: `$DMM_CACHE_DIR`, else `$XDG_CACHE_HOME/dmm`, else
    `~/.cache/dmm`; it need not be there yet."""
    own, base = os.environ.get("DMM_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    return user_path("DMM_CACHE_DIR", own) if own else Path(base or Path.home() / ".cache") / "dmm"


def read_file(path: Path, limit: int) -> bytes:
    """The content of an ordinary file of at most `limit` bytes; never waits, as a pipe would make it.

    Raises:
        InputError: a pipe, device or folder, or more bytes than that.
        OSError: it is missing or cannot be read.
    """
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is no ordinary file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise InputError(f"{path} has {status.st_size:,} bytes, allowed are {limit:,}")
    return content


def read_json(path: Path, limit: int = JSON_LIMIT) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: as `read_file`, or it is no JSON.
        OSError: it is missing or cannot be read.
    """
    try:
        return json.loads(read_file(path, limit), object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON ({error})") from error


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Parsers differ in which of two values of one name they take."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)[:40]!r} comes twice")
    return entries


def strict_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every parser reads: numpy's numbers and arrays as plain ones, NaN and infinities as null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
