r"""The branch of a GPT-2 MLP as one function: `y = x + m (W_2 gelu(W_1 n + b_1) + b_2)` with `n = LN(x)`.

`m` is what dropout keeps, over the part that it keeps. Backward, from `dy`, with `h = W_1 n + b_1` and `g = gelu(h)`:

    dz = m dy                      dW_2 = dz^T g,  db_2 = sum dz
    dh = (dz W_2) gelu'(h)         dW_1 = dh^T n,  db_1 = sum dh
    dn = dh W_1                    and LayerNorm's gradient of dn, to which dy is added

Forward and the left column go through some tokens at a time (`mlp.cpp`); the right column is torch's.
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
from dmm.layers.mlp import GeluMLP

KERNEL = cpp.Kernel(Path(__file__).with_name("mlp.cpp"))
GROUP = 96
"""Tokens at a time: a multiple of what the products take at once, few enough that their channels stay in cache."""
GAP = 16
"""Numbers between the rows of `4 d` channels: rows a power of two apart would meet in the same places of a cache."""


class _Sizes(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("tokens", "d", "f", "jump", "group")), ("eps", ctypes.c_double)]


status = KERNEL.status


def mlp_branch(norm: nn.LayerNorm, mlp: GeluMLP, x: Tensor, normalized: bool, kept: Tensor | None = None) -> Tensor:
    """`x + kept * MLP(LN(x))`: `(b, l, d) -> (b, l, d)`; `normalized`, what the residual adds to, must be false."""
    assert not normalized
    up, down = mlp[0], mlp[2]
    weights = (norm.weight, norm.bias, up.weight, up.bias, down.weight, down.bias)
    return _MLPBranch.apply(norm.eps, kept, x, *weights)  # type: ignore[no-any-return, no-untyped-call]


def _formula(eps: float, kept: Tensor | None, x: Tensor, *weights: Tensor) -> Tensor:
    gain, shift, up, up_bias, down, down_bias = weights
    n = F.layer_norm(x, (x.shape[-1],), gain, shift, eps)
    z = F.linear(F.gelu(F.linear(n, up, up_bias)), down, down_bias)
    return x + (z if kept is None else z * kept)


class _MLPBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, kept: Tensor | None, x: Tensor, *weights: Tensor) -> Tensor:
        sizes = _sizes(eps, x, weights[2])
        n, y = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
        h = x.new_empty(sizes.tokens, sizes.jump)
        _call("mlp", sizes, x, *weights, kept, n, h, y)
        ctx.eps = eps
        ctx.save_for_backward(kept, x, *weights, n, h)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, x, *weights, n, h = ctx.saved_tensors
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, ctx.eps, kept)
            return None, None, *differentiable_gradients(formula, (x, *weights), ctx.needs_input_grad[2:], dy)
        gain, _, up, _, down, _ = weights
        sizes, dy = _sizes(ctx.eps, x, up), dy.contiguous()
        dz, dx = (x.new_empty(sizes.tokens, sizes.d) for _ in range(2))
        g, dh = torch.empty_like(h), torch.empty_like(h)
        dnorm = x.new_empty(-(-sizes.tokens // sizes.group), 2, sizes.d)
        _call("mlp_backward", sizes, x, gain, up, down, kept, h, dy, dz, g, dh, dx, dnorm)
        dgain, dshift = dnorm.sum(0)
        g, dh = g[:, : sizes.f], dh[:, : sizes.f]
        dup, ddown = dh.T @ n.view(sizes.tokens, -1), dz.T @ g
        return None, None, dx.view(x.shape), dgain, dshift, dup, dh.sum(0), ddown, dz.sum(0)


def _sizes(eps: float, x: Tensor, up: Tensor) -> _Sizes:
    f = up.shape[0]
    return _Sizes(tokens=x.shape[0] * x.shape[1], d=x.shape[2], f=f, jump=f + GAP, group=GROUP, eps=eps)


def _call(name: str, sizes: _Sizes, *tensors: Tensor | None) -> None:
    library = status().library
    assert library is not None, "the kernel's presence is checked when the branch is chosen"
    given = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in given]
    getattr(library, f"dmm_{name}_float")(ctypes.byref(sizes), ctypes.c_int64(torch.get_num_threads()), *pointers)
