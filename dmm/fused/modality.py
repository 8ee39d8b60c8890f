r"""The branch of a `ModalityConv` as one function: `y_t = x_t + b^m + sum_j W^m_j n_{t-w+1+j}` with `n = LN(x)`.

`m = t mod M` is the modality of the output; outputs are at all tokens or at those of one modality. Backward, from `dy`:

    dW^m_j = sum_t dy_t n_{t-w+1+j},  db^m = sum_t dy_t          over the outputs t of modality m
    dn_s = sum_j W^m_j dy_t  with  t = s + w - 1 - j             and LayerNorm's gradient of dn, to which dy is added
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm import cpp
from dmm.fused.derivatives import differentiable_gradients
from dmm.layers.local import ModalityConv
from dmm.scan.cpp_kernel import DTYPES

KERNEL = cpp.Kernel(Path(__file__).with_name("modality.cpp"))


class _Sizes(ctypes.Structure):
    names = ("b", "l", "d", "w", "modalities", "first", "step")
    _fields_ = [*((name, ctypes.c_int64) for name in names), ("eps", ctypes.c_double)]


status = KERNEL.status


def modality_branch(
    norm: nn.LayerNorm, conv: ModalityConv, x: Tensor, normalized: bool, only: int | None = None
) -> Tensor:
    """`x + conv(LN(x))` at all tokens, or at those of modality `only`: `(b, l, d) -> (b, l, d)` or `(b, k, d)`.

    `normalized`, what the residual adds to, must be false.
    """
    assert not normalized
    taps, bias = conv.weights()
    return _ModalityBranch.apply((norm.eps, only), x, norm.weight, norm.bias, taps, bias)  # type: ignore[no-any-return, no-untyped-call]


def _formula(
    settings: tuple[float, int | None], x: Tensor, gain: Tensor, shift: Tensor, taps: Tensor, bias: Tensor
) -> Tensor:
    (eps, only), (modalities, window) = settings, taps.shape[:2]
    n = F.layer_norm(x, (x.shape[-1],), gain, shift, eps)
    windows = F.pad(n, (0, 0, window - 1, 0)).unfold(1, window, 1)  # (b, l, d, w)
    kind = torch.arange(x.shape[1], device=x.device) % modalities
    y = x + (windows * taps.mT[kind]).sum(-1) + bias[kind]
    return y if only is None else y[:, only::modalities]


class _ModalityBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[float, int | None], x: Tensor, *weights: Tensor) -> Tensor:
        sizes = _sizes(settings, x, weights[2])
        n = torch.empty_like(x, memory_format=torch.contiguous_format)
        y = x.new_empty(sizes.b, len(range(sizes.first, sizes.l, sizes.step)), sizes.d)
        _call("modality", sizes, x, *weights, n, y)
        ctx.settings = settings
        ctx.save_for_backward(x, *weights, n)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights, n = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, ctx.settings)
            return None, *differentiable_gradients(formula, (x, *weights), ctx.needs_input_grad[1:], dy)
        gain, _, taps, _ = weights
        sizes = _sizes(ctx.settings, x, taps)
        dx, dnorm = torch.empty_like(n), x.new_empty(sizes.b, 2, sizes.d)
        dtaps = x.new_empty(sizes.b, sizes.modalities, sizes.w + 1, sizes.d)
        _call("modality_backward", sizes, x, gain, taps, n, dy, dx, dnorm, dtaps)
        sums = dtaps.sum(0)
        return None, dx, *dnorm.sum(0), sums[:, :-1], sums[:, -1]


def _sizes(settings: tuple[float, int | None], x: Tensor, taps: Tensor) -> _Sizes:
    (eps, only), (b, length, d), (modalities, window) = settings, x.shape, taps.shape[:2]
    first, step = (0, 1) if only is None else (only, modalities)
    return _Sizes(b=b, l=length, d=d, w=window, modalities=modalities, first=first, step=step, eps=eps)


def _call(name: str, sizes: _Sizes, *tensors: Tensor) -> None:
    library = status().library
    assert library is not None, "the kernel's presence is checked when the branch is chosen"
    given = [tensor.contiguous() for tensor in tensors]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in given]
    function = getattr(library, f"dmm_{name}_{DTYPES[tensors[0].dtype]}")
    function(ctypes.byref(sizes), ctypes.c_int64(torch.get_num_threads()), *pointers)
