"""The CPU kernel `scan.cpp`: compiled when it is first used, kept in a cache folder, called through a C interface.

A compiler (`$CXX`, `c++`, `g++` or `clang++`) takes a few seconds over it, once for each version of the file, compiler
and processor. Where there is none, or it fails, the kernel is simply not offered; `status()` says why. The library lies
in `$DMM_CACHE_DIR`, else `$XDG_CACHE_HOME/dmm`, else `~/.cache/dmm`, or in a folder of this process if that cannot be
written.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("scan.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
VARIANTS = (("-march=native", "-fopenmp"), ("-march=native",), ())
"""Further flags, the first that the compiler takes: some know no OpenMP (then one thread works), some no `native`."""
COMPILE_SECONDS = 120
_BUILDING = threading.Lock()
DTYPES = {torch.float32: "float", torch.float64: "double"}

_SIZES = ("b", "l", "e", "n", "g", "positive")
_TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "bias", "start")
_GRADIENTS = ("starts", "dy", "dlast", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias", "dstart")


class _Scan(ctypes.Structure):
    """`struct Scan` of the source."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _TENSORS]  # type: ignore[list-item]


class _Gradients(ctypes.Structure):
    """`struct Gradients` of the source."""

    _fields_ = [(name, ctypes.c_void_p) for name in _GRADIENTS]


class Status(NamedTuple):
    """Whether the kernel can be used here, and why or why not."""

    library: ctypes.CDLL | None
    reason: str


def available() -> bool:
    """Whether the kernel can be used here; builds it if need be."""
    return status().library is not None


def status() -> Status:
    """The compiled kernel, or why there is none, as found out once."""
    with _BUILDING:  # threads that use it for the first time at once
        return _build_once()


@functools.cache
def _build_once() -> Status:
    return build()


def build(source: Path = SOURCE) -> Status:
    """Find the kernel or compile it; says which, and where it is, or why there is none."""
    command = _compiler()
    if command is None:
        return Status(None, "no C++ compiler found ($CXX, c++, g++, clang++)")
    try:
        return _load(command, _folder(), source)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = (str(getattr(error, "stderr", None) or error).strip() or repr(error)).splitlines()
        return Status(None, f"{command[0]} could not build it: {said[0]}")


def _load(command: list[str], folder: Path, source: Path) -> Status:
    """The library of this folder, built if it is not there or is not what was built."""
    path = folder / f"{source.stem}-{_fingerprint(command, source)}.so"
    try:
        if _is_whole(path):
            return Status(ctypes.CDLL(str(path)), f"found, {path}")
        _compile(command, path, source)
        return Status(ctypes.CDLL(str(path)), f"built with {Path(command[0]).name}, {path}")
    except OSError:
        private = Path(_private_folder().name)
        if folder == private:
            raise
        return _load(command, private, source)  # the folder is full, or nothing may be executed in it


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`(y, last, starts)`, see `dmm.scan.fused.Kernel`; `starts (b, chunks, n, e)` are the states before each chunk."""
    library = _library()
    y, last = torch.empty_like(u), torch.empty_like(start)
    starts = u.new_empty(u.shape[0], -(-u.shape[1] // library.dmm_chunk()), A.shape[2], u.shape[2])
    scan = _scan(u, delta, A, B, C, D, z, bias, softplus, start)
    function = getattr(library, f"dmm_forward_{DTYPES[u.dtype]}")
    function(ctypes.byref(scan), ctypes.c_int64(torch.get_num_threads()), *map(_pointer, (y, last, starts)))
    return y, last, starts


def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    starts: Tensor,
    dy: Tensor,
    dlast: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of `u, delta, A, B, C, D, z, bias, start`. Sums over rows and channels have a fixed order, whatever
    the number of threads."""
    library = _library()
    (b, _, e), (g, _, n) = u.shape, A.shape
    groups = -(-e // library.dmm_group())
    du, ddelta, dstart, dA = torch.empty_like(u), torch.empty_like(u), torch.empty_like(dlast), u.new_empty(b, e, n)
    dB, dC = (B.new_empty(groups, *B.shape) for _ in range(2))
    dz = None if z is None else torch.empty_like(z)
    dD, dbias = (None if t is None else u.new_empty(b, e) for t in (D, bias))
    scan = _scan(u, delta, A, B, C, D, z, bias, softplus, None)
    tensors = (starts, dy, dlast, du, ddelta, dA, dB, dC, dD, dz, dbias, dstart)
    gradients = _Gradients(*map(_pointer, tensors))
    function = getattr(library, f"dmm_backward_{DTYPES[u.dtype]}")
    function(ctypes.byref(scan), ctypes.c_int64(torch.get_num_threads()), ctypes.byref(gradients))
    of_systems = (None if t is None else t.view(g, b // g, *t.shape[1:]).sum(1) for t in (dA, dD, dbias))
    dA_, dD_, dbias_ = of_systems
    return du, ddelta, dA_, dB.sum(0), dC.sum(0), dD_, dz, dbias_, dstart


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    start: Tensor | None,
) -> _Scan:
    return _Scan(*u.shape, A.shape[2], A.shape[0], softplus, *map(_pointer, (u, delta, A, B, C, D, z, bias, start)))


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _library() -> ctypes.CDLL:
    library = status().library
    assert library is not None, "the kernel's presence is checked when the backend is chosen"
    return library


def _compiler() -> list[str] | None:
    """The command that compiles, such as `["g++"]`, or `["ccache", "g++"]` from `$CXX`."""
    candidates = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]
    return next(([found, *more] for name, *more in filter(None, candidates) if (found := shutil.which(name))), None)


def _folder() -> Path:
    """A folder that belongs to this user and can be written, since what lies in it is executed."""
    try:
        own = os.environ.get("DMM_CACHE_DIR")
        folder = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmm"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        foreign = hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid()
        with tempfile.TemporaryFile(dir=folder):
            return Path(_private_folder().name) if foreign else folder
    except (OSError, RuntimeError):  # it cannot be written, or there is no home
        return Path(_private_folder().name)


@functools.cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dmm-", ignore_cleanup_errors=True)


def _fingerprint(command: list[str], source: Path) -> str:
    """Of all that decides what the library holds: a folder may be shared by machines and outlive an update."""
    version = _run([*command, "--version"]).stdout
    parts = (_text(source), repr((FLAGS, VARIANTS, command[1:])), version, _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _text(source: Path) -> str:
    """The file and all that it includes of ours."""
    own = source.read_text()
    included = re.findall(r'^#include "(.+)"$', own, re.MULTILINE)
    return "\0".join([own, *(_text(source.parent / name) for name in included)])


def _processor() -> str:
    """What `-march=native` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.platform() + platform.processor()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS)


def _compile(command: list[str], path: Path, source: Path) -> None:
    """Compile into a file beside `path` and move it there with its checksum, so that nobody loads half a library."""
    handle, unfinished = tempfile.mkstemp(prefix="build-", suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        for further in VARIANTS:
            done = _run([*command, *FLAGS, *further, "-o", unfinished, str(source)])
            if done.returncode == 0:
                break
        done.check_returncode()
        _checksum(path).write_text(hashlib.sha256(Path(unfinished).read_bytes()).hexdigest())
        os.chmod(unfinished, 0o700)
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    """Whether the library is what was built: to load half of one, left by a crash or a full disk, ends the process."""
    try:
        return _checksum(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return False
