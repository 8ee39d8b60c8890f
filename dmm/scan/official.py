"""The CUDA kernel of mamba-ssm, where that package and a GPU are there."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmm.errors import InputError

KERNEL_STATES = 256
"""Largest state size of mamba-ssm's kernel."""


@functools.cache
def mamba_ssm_kernel() -> Callable[..., Any] | None:
    """The official CUDA kernel, or None where mamba-ssm or a GPU is missing."""
    if not torch.cuda.is_available():
        return None
    try:
        importlib.import_module("selective_scan_cuda")
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn  # type: ignore[no-any-return]
    except ImportError:
        return None


def mamba_ssm_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The official kernel on its own layout: `(b, e, l)` for tokens, `(b, n, l)` for `B` and `C`.

    Raises:
        InputError: in the backward pass, under `create_graph`.
    """
    kernel = mamba_ssm_kernel()
    assert kernel is not None, "the kernel's presence is checked when the backend is chosen"
    channels_first = [None if t is None else t.transpose(1, 2).contiguous() for t in (u, delta, B, C, z)]
    u_, delta_, B_, C_, z_ = channels_first
    y, last = kernel(u_, delta_, A, B_, C_, D, z_, delta_bias, delta_softplus, return_last_state=True)
    return _FirstGradients.apply(y.transpose(1, 2), last)  # type: ignore[no-any-return, no-untyped-call]


class _FirstGradients(torch.autograd.Function):
    """What passes through can be differentiated once: the kernel's gradients are constants to torch."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        return y.view_as(y), last.view_as(last)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            raise InputError("backend: got 'mamba-ssm' with create_graph=True, allowed is parallel, or triton on a GPU")
        return dy, dlast
