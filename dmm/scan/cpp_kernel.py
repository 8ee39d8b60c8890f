"""The CPU kernel `scan.cpp`: compiled when it is first used, kept in a cache folder, called through a C interface.

Where there is no compiler, or it fails, the kernel is simply not offered; `status()` says why. `dmm.cpp` says where the
library lies and when it is trusted.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import warnings
from pathlib import Path

import torch
from torch import Tensor

from dmm import cpp
from dmm.cpp import FLAGS, VARIANTS, Status

__all__ = ["DTYPES", "FLAGS", "SOURCE", "VARIANTS", "Status", "available", "backward", "build", "forward", "status"]

SOURCE = Path(__file__).with_name("scan.cpp")
_BUILDING = threading.Lock()
DTYPES = {torch.float32: "float", torch.float64: "double"}

SYMBOLS = (
    *(f"dmm_{name}_{kind}" for name in ("forward", "backward") for kind in DTYPES.values()),
    *("dmm_chunk", "dmm_group"),
)
"""What the library holds."""

_SIZES = ("b", "l", "e", "n", "g", "positive")
_TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "bias", "start")
_GRADIENTS = ("starts", "dy", "dlast", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias", "dstart")


class _Scan(ctypes.Structure):
    """`struct Scan` of the source."""

    _fields_ = [(name, ctypes.c_int64) for name in _SIZES] + [(name, ctypes.c_void_p) for name in _TENSORS]  # type: ignore[list-item]


class _Gradients(ctypes.Structure):
    """`struct Gradients` of the source."""

    _fields_ = [(name, ctypes.c_void_p) for name in _GRADIENTS]


def available() -> bool:
    """Whether the kernel can be used here; builds it if need be."""
    return status().library is not None


def status() -> Status:
    """The compiled kernel, or why there is none, as found out once."""
    with _BUILDING:  # threads that use it for the first time at once
        return _build_once()


@functools.cache
def _build_once() -> Status:
    found = build()
    if found.library is None and cpp.compiler() is not None:
        warnings.warn(f"the scan runs in plain torch, which takes longer: {found.reason}", RuntimeWarning, stacklevel=2)
    return found


def build() -> Status:
    """Find the kernel or compile it; says which, and where it is, or why there is none."""
    return cpp.build(SOURCE, SYMBOLS)


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
