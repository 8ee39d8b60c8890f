"""The fused scan: step size, recurrence, skip and gate in one kernel, with a kernel of its own for the gradient.

Two kernels serve it, `dmm.scan.cpp_kernel` on a CPU and `dmm.scan.triton_kernel` on a GPU. Both keep the state where
they compute, write out one state per chunk of tokens instead of `(b, l, e, n)`, and compute the rest again on the way
back (Gu & Dao 2024, section 3.3.2).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from dmm.scan import cpp_kernel
from dmm.scan.parallel import scan_in_blocks
from dmm.scan.plain import differentiable_gradients, plain_scan


class Kernel(Protocol):
    """Shapes: `u, delta, z (b, l, e)`; `A (g, e, n)`; `B, C (b, l, n)`; `D, bias (g, e)`; `start (b, e, n)`.

    Row `i` of the batch belongs to system `i // (b / g)`. All tensors are contiguous, of one dtype and on one device.
    Sums have a fixed order, so that the same inputs give the same bits.
    """

    def forward(
        self,
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
        """`y (b, l, e)`, the last state `(b, e, n)`, and what `backward` needs beside the inputs, in its own form."""

    def backward(
        self,
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
        """The gradients of `u, delta, A, B, C, D, z, bias, start`, None for those that are."""


@functools.cache
def kernels() -> dict[str, Kernel]:
    """The kernels that can be used on this machine, by the name of their backend."""
    found: dict[str, Kernel] = {}
    if cpp_kernel.available():
        found["cpp"] = cpp_kernel
    if torch.cuda.is_available() or interpreted():  # else importing Triton, if it is there, is for nothing
        with contextlib.suppress(ImportError):
            found["triton"] = importlib.import_module("dmm.scan.triton_kernel")
    return found


def missing_triton() -> str:
    """Why the Triton kernel cannot be imported; empty if it can."""
    try:
        importlib.import_module("dmm.scan.triton_kernel")
    except ImportError as error:
        return str(error)
    return ""


def interpreted() -> bool:
    """Whether Triton was asked to run its kernels in Python, on the CPU: slow, and good for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def fused_scan(
    kernel: Kernel,
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
) -> tuple[Tensor, Tensor]:
    """`y (b, l, e)` and the last state `(b, e, n)`, for tensors of one dtype, float32 or float64."""
    tensors = [None if t is None else t.contiguous() for t in (u, delta, A, B, C, D, z, bias, start)]
    y, last = _FusedScan.apply(kernel, softplus, *tensors)  # type: ignore[no-untyped-call]
    return y, last


class _FusedScan(torch.autograd.Function):
    """The kernel's outputs and gradients; gradients of gradients come from the parallel scan."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, softplus: bool, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        *inputs, start = tensors
        y, last, starts = kernel.forward(*inputs, softplus, start)  # type: ignore[arg-type, call-arg, misc]
        ctx.kernel, ctx.softplus = kernel, softplus
        ctx.save_for_backward(*tensors, starts)
        return y, last

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, start, starts = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            return None, None, *differentiable_gradients(partial(_plain, ctx.softplus), (*inputs, start), (dy, dlast))
        return None, None, *ctx.kernel.backward(*inputs, ctx.softplus, starts, dy.contiguous(), dlast.contiguous())


def _plain(softplus: bool, *tensors: Any) -> tuple[Tensor, Tensor]:
    *inputs, start = tensors
    return plain_scan(scan_in_blocks, *inputs, softplus, start)  # type: ignore[call-arg]
