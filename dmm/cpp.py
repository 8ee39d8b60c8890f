"""C++ files as libraries with a C interface: compiled when they are first used, and kept for the next time.

A compiler (`$CXX`, `c++`, `g++` or `clang++`) takes a few seconds over a file, once for each version of the file,
compiler and processor. The library lies in `$DMM_CACHE_DIR`, else `$XDG_CACHE_HOME/dmm`, else `~/.cache/dmm`.

What lies there is executed. So a library is loaded only if it is an ordinary file of this user (or of root) that nobody
else can write, in a folder that nobody else can write, rename or put another one in the place of. Where there is no
such folder, or it is full, the library is built in a folder of this process, which goes when the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from dmm.files import cache_folder

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Further flags, the first that the compiler takes: some know no OpenMP (then one thread works), some no `native`."""
COMPILE_SECONDS = 180.0
"""For one file, all variants together: what takes longer hangs."""
VERSION_SECONDS = 10.0
LIBRARY_LIMIT = 64 * 2**20
"""Bytes of a library that are read to see whether it is whole; ours have less than one of these mebibytes."""
MESSAGE_LIMIT = 64 * 2**10
"""Bytes that a compiler may say; what says more is cut off."""


class Status(NamedTuple):
    """Whether a library can be used here, and why or why not."""

    library: ctypes.CDLL | None
    reason: str


class Kernel:
    """A C++ file that is built when its status is first asked for, by whichever thread, and then remembered.

    Args:
        source, symbols: see `build`.
    """

    def __init__(self, source: Path, symbols: tuple[str, ...] = ()):
        self.source, self.symbols = source, symbols
        self._building = threading.Lock()
        self._status: Status | None = None

    def status(self) -> Status:
        """The compiled library, or why there is none."""
        with self._building:
            if self._status is None:
                self._status = build(self.source, self.symbols)
            return self._status


def build(source: Path, symbols: tuple[str, ...] = ()) -> Status:
    """Find the library of a C++ file or compile it; says which, and where it is, or why there is none. Never raises.

    Args:
        source: the file. What it includes by a path (`#include "..."`) is part of it: a change makes another library.
        symbols: functions that the library must hold.
    """
    command = compiler()
    if command is None:
        return Status(None, "no C++ compiler found ($CXX, c++, g++, clang++)")
    try:
        found = _load(command, source)
        missing = [name for name in symbols if not hasattr(found.library, name)]
        return Status(None, f"{command[0]} left out {', '.join(missing)}") if missing else found
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        return Status(None, f"{command[0]} could not build it: {_in_a_line(error)}")


def _in_a_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        text = str(error.output).strip() or f"exit status {error.returncode}"
    elif isinstance(error, subprocess.TimeoutExpired):
        text = f"timed out after {error.timeout:.0f} s"
    return (text.strip() or repr(error)).splitlines()[0][:200]


def compiler() -> list[str] | None:
    """The command that compiles, such as `["g++"]`, or `["ccache", "g++"]` from `$CXX`; None where there is none."""
    try:
        asked = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # a quotation mark without its partner
        asked = []
    candidates = filter(None, (asked, ["c++"], ["g++"], ["clang++"]))
    return next(([found, *more] for name, *more in candidates if (found := shutil.which(name))), None)


def _load(command: list[str], source: Path) -> Status:
    """The library, built if it is not kept or is not what was built."""
    name = f"{source.stem}-{_fingerprint(command, source)}.so"
    folder, doubt = _cache_folder()
    if folder is not None:
        try:
            return _from(folder / name, command, source)
        except OSError as error:  # the folder is full, or nothing may be executed in it
            doubt = f"{folder}: {error.strerror or error}"
    found = _from(_private_folder() / name, command, source)
    return found._replace(reason=f"{found.reason}, not kept ({doubt})")


def _from(path: Path, command: list[str], source: Path) -> Status:
    if _is_whole(path):
        with contextlib.suppress(OSError):  # whole, and no library: a compiler may have left anything
            return Status(ctypes.CDLL(str(path)), f"found, {path}")
    _compile(command, source, path)
    return Status(ctypes.CDLL(str(path)), f"built with {Path(command[0]).name}, {path}")


# What may be loaded


def _cache_folder() -> tuple[Path | None, str]:
    """The folder where libraries are kept, or None and why it is not used."""
    try:
        named = cache_folder()
        named.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = named.resolve(strict=True)
        doubt = _doubt(folder)
    except (OSError, RuntimeError, ValueError) as error:  # it cannot be made, or there is no home
        return None, str(error)
    return (None, doubt) if doubt else (folder, "")


def _doubt(folder: Path) -> str:
    """Why others could decide what lies in a folder, given without links; empty if they cannot."""
    if not hasattr(os, "geteuid"):  # no such permissions here
        return ""
    for place in (folder, *folder.parents):
        status, leaf = place.lstat(), place == folder
        if status.st_uid not in _owners(leaf):
            return f"{place} belongs to another user"
        # In a folder with the sticky bit, as /tmp has it, others may add something but rename only what is theirs.
        kept_apart = not leaf and (status.st_mode & stat.S_ISVTX or _is_group_of_one(status))
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not kept_apart:
            return f"{place} can be written by other users"
    return ""


def _owners(leaf: bool) -> set[int]:
    """Users who may own what is loaded and what it lies in: this one and root.

    A container without privileges may have no number for root; what lies outside belongs to a stand-in then.
    """
    owners = {os.geteuid(), 0}
    if not leaf:
        with contextlib.suppress(OSError, ValueError):
            first = int(Path("/proc/self/uid_map").read_text().split()[0])
            owners |= {int(Path("/proc/sys/fs/overflowuid").read_text())} if first > 0 else set()
    return owners


def _is_group_of_one(status: os.stat_result) -> bool:
    """Whether a folder can be written by its owner's own group alone, as the usual umask of some systems makes it."""
    if status.st_mode & stat.S_IWOTH or os.geteuid() == 0:
        return False
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return (user.pw_gid, user.pw_name) == (group.gr_gid, group.gr_name) and set(group.gr_mem) <= {user.pw_name}


def _private_folder() -> Path:
    """A folder of this process.

    Raises:
        OSError: there is no place where others could not exchange it.
    """
    return Path(_made_private_folder().name)


@functools.cache
def _made_private_folder() -> tempfile.TemporaryDirectory[str]:
    places = filter(None, (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/var/tmp"))
    for place in map(Path, places):
        with contextlib.suppress(OSError):
            made = tempfile.TemporaryDirectory(prefix="dmm-", dir=place.resolve(), ignore_cleanup_errors=True)
            if not _doubt(Path(made.name)):
                return made
            made.cleanup()
    raise OSError("no temporary folder that other users cannot write to")


def _is_whole(path: Path) -> bool:
    """Whether the library is what was built: to load half of one, left by a crash or a full disk, ends the process."""
    try:
        return _own_bytes(_checksum(path), 64) == hashlib.sha256(_own_bytes(path, LIBRARY_LIMIT)).hexdigest().encode()
    except OSError:
        return False


def _own_bytes(path: Path, limit: int) -> bytes:
    """The content of an ordinary file that nobody else can write; follows no link, and never waits as a pipe would.

    Raises:
        OSError: it is something else, has more bytes than that, or cannot be read.
    """
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))
    with open(os.open(path, functools.reduce(int.__or__, flags, os.O_RDONLY)), "rb") as file:
        status = os.fstat(file.fileno())
        foreign = hasattr(os, "geteuid") and (
            status.st_uid not in _owners(leaf=True) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
        if foreign or not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise OSError(f"{path} is no ordinary file of this user's own")
        return file.read()


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


# Building


def _fingerprint(command: list[str], source: Path) -> str:
    """Of all that decides what the library holds: a folder may be shared by machines and outlive an update."""
    version = _run([*command, "--version"], VERSION_SECONDS).stdout
    parts = (*_texts(source, {}).values(), repr((FLAGS, VARIANTS, command[1:])), version, _processor())
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def _texts(source: Path, read: dict[Path, str]) -> dict[Path, str]:
    """The text of a file and, in the order of their first mention, of the files it includes by a path."""
    if source not in read:
        read[source] = source.read_text(encoding="utf-8")
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', read[source], re.MULTILINE):
            _texts((source.parent / name).resolve(), read)
    return read


def _processor() -> str:
    """What `-march=native` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.platform() + platform.processor()


def _compile(command: list[str], source: Path, path: Path) -> None:
    """Compile into a file beside `path` and move it there with its checksum, so that nobody loads half a library."""
    unfinished, checksum = _new_file(path.parent), _new_file(path.parent)
    end = time.monotonic() + COMPILE_SECONDS
    try:
        for further in VARIANTS:
            done = _run([*command, *FLAGS, *further, "-o", str(unfinished), str(source)], end - time.monotonic())
            if done.returncode == 0:
                break
        done.check_returncode()
        checksum.write_text(hashlib.sha256(unfinished.read_bytes()).hexdigest())
        unfinished.chmod(0o700)
        os.replace(checksum, _checksum(path))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
        checksum.unlink(missing_ok=True)


def _new_file(folder: Path) -> Path:
    handle, name = tempfile.mkstemp(prefix="build-", suffix=".so", dir=folder)
    os.close(handle)
    return Path(name)


def _run(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """What a command says in its time. Then it is ended with all that it has started, as a script in its place does.

    Raises:
        OSError: it cannot be started.
        TimeoutExpired: it takes longer.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    said: list[bytes] = []
    reader = threading.Thread(target=_read_start, args=(process, said), daemon=True)
    reader.start()
    try:
        process.wait(max(0.0, seconds))
    finally:
        if process.poll() is None:
            _end(process)
    reader.join(1.0)  # whoever still holds the other end of the pipe is not waited for
    return subprocess.CompletedProcess(command, process.returncode, b"".join(said).decode(errors="replace"))


def _read_start(process: subprocess.Popen[bytes], said: list[bytes]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        said.append(stream.read(MESSAGE_LIMIT))
        while stream.read(MESSAGE_LIMIT):  # a full pipe would stop the compiler
            pass


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
