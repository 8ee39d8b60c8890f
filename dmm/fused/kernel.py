"""What of the fused branches is C++: `branches.cpp`, compiled and kept as `dmm.cpp` says."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from dmm import cpp
from dmm.scan.cpp_kernel import DTYPES

KERNEL = cpp.Kernel(Path(__file__).with_name("branches.cpp"))
SPARE = 64
"""Numbers behind the last token, which the kernel may read and does not use."""


class Sizes(ctypes.Structure):
    """`struct Sizes` of `steps.h`: those of the batch, and of the one branch or the other."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("b", "l", "d", "w", "e", "n", "r", "k", "normalized")),
        *((name, ctypes.c_int64) for name in ("packed", "newest", "first", "rows")),
        ("eps", ctypes.c_double),
    ]


status = KERNEL.status


def call(name: str, sizes: Sizes, *tensors: Tensor | ctypes.c_void_p | None) -> None:
    """The function of this name in the source, on contiguous tensors of one dtype, or pointers to some of them."""
    library, first = status().library, tensors[0]
    assert library is not None and isinstance(first, Tensor), "that is checked when the branch is chosen"
    function = getattr(library, f"dmm_{name}_{DTYPES[first.dtype]}")
    function(ctypes.byref(sizes), ctypes.c_int64(torch.get_num_threads()), *map(pointer, tensors))


def pointer(tensor: Tensor | ctypes.c_void_p | None) -> ctypes.c_void_p:
    """Where a tensor lies, null for None; it must go on living."""
    if isinstance(tensor, ctypes.c_void_p):
        return tensor
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def packed(weight: Tensor) -> Tensor:
    """A factor `(outer, inner)` in the panels of `product.h`, in which the kernel takes it where `Sizes` says so."""
    library = status().library
    assert library is not None, "the kernel's presence is checked when the branch is chosen"
    kind, (outer, inner) = DTYPES[weight.dtype], map(ctypes.c_int64, weight.shape)
    size = getattr(library, f"dmm_panels_{kind}")
    size.restype = ctypes.c_int64
    weight, panels = weight.contiguous(), weight.new_zeros(size(inner, outer))
    pointers = (ctypes.c_void_p(each.data_ptr()) for each in (weight, panels))
    getattr(library, f"dmm_pack_{kind}")(inner, outer, *pointers)
    return panels
