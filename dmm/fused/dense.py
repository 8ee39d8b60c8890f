r"""The branch of a Dense Sequence Mixer as one function: `y = r + U W^T + b` with `n = LN(x)` and, for each token,
`U_t = [n_{t-w+1}; ...; n_t]`.

The residual `r` is `x` or `n`. Backward, with the gradient `dy`:

    dW = dy^T U,    db = sum dy,    dn_t = sum_j W_j^T dy_{t+j} (+ dy_t if r is n)

where `W_j` are the columns of `W` that see a token `j` steps later, and LayerNorm's own gradient of `dn` (see
`norm.h`), to which `dy` is added if `r` is `x`. The windows `U` are never written down: one token lies behind the
other, and a product reads each window where it lies (`product.h`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.fused.derivatives import differentiable_gradients
from dmm.fused.kernel import SPARE, Sizes, call
from dmm.layers.local import DenseSequenceMixer


def dense_branch(norm: nn.LayerNorm, mixer: DenseSequenceMixer, x: Tensor, normalized: bool) -> Tensor:
    """`(LN(x) if normalized else x) + DSM(LN(x))`: `(b, l, d) -> (b, l, d)`."""
    settings = (norm.eps, mixer.window, normalized)
    return _DenseBranch.apply(settings, x, norm.weight, norm.bias, mixer.linear.weight, mixer.linear.bias)  # type: ignore[no-any-return, no-untyped-call]


def _formula(
    settings: tuple[float, int, bool], x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    eps, window, normalized = settings
    n = F.layer_norm(x, (x.shape[-1],), gain, shift, eps)
    windows = F.pad(n, (0, 0, window - 1, 0)).unfold(1, window, 1).mT.flatten(-2)  # (b, l, w*d)
    return (n if normalized else x) + F.linear(windows, weight, bias)


class _DenseBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        settings: tuple[float, int, bool],
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        (b, length, d), window = x.shape, settings[1]
        tokens = x.new_empty(b * (window - 1 + length) * d + SPARE)
        y, given = torch.empty_like(x, memory_format=torch.contiguous_format), (x, gain, shift, weight, bias)
        call("dense", _sizes(x, settings), *(None if each is None else each.contiguous() for each in given), tokens, y)
        ctx.settings = settings
        ctx.save_for_backward(x, gain, shift, weight, bias, tokens)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, tokens = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, ctx.settings)
            return None, *differentiable_gradients(formula, inputs, wanted, dy)
        x, gain, _, weight, _ = inputs
        dy = dy.contiguous()
        dx, dnorm = torch.empty_like(dy), x.new_empty(len(x), 2, x.shape[-1])
        dweight = torch.empty_like(weight, memory_format=torch.contiguous_format) if wanted[3] else None
        given = (each.contiguous() for each in (x, gain, weight))
        call("dense_backward", _sizes(x, ctx.settings), *given, tokens, dy, dx, dnorm, dweight)
        return None, dx, *dnorm.sum(0), dweight, dy.sum((0, 1)) if wanted[4] else None


def _sizes(x: Tensor, settings: tuple[float, int, bool]) -> Sizes:
    (b, length, d), (eps, window, normalized) = x.shape, settings
    return Sizes(b=b, l=length, d=d, w=window, normalized=normalized, eps=eps)
