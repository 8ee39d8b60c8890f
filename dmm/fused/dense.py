r"""The branch of a Dense Sequence Mixer as one function, `y = r + U W^T + b` with `n = LN(x)`, `U_t = [n_{t-w+1}; ...; n_t]`.

The residual `r` is `x` or `n`, which is the last part of `U`. Backward, with the gradient `dy`:

    dW = dy^T U,    db = sum dy,    dU = dy W,    dn_t = sum_j dU_{t+j} (part w-1-j) (+ dy_t if r is n)

and LayerNorm's own gradient of `dn` (see `norm.h`), to which `dy` is added if `r` is `x`. Three matrix products; what is
between them goes over memory once.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.fused.derivatives import differentiable_gradients
from dmm.fused.kernel import Sizes, call
from dmm.mixers import DenseSequenceMixer


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
        eps, window, normalized = settings
        (b, l, d), tokens = x.shape, x.contiguous()
        windows = x.new_empty(b * l, window * d)
        call("norm", _sizes(x, settings), tokens, gain.contiguous(), shift.contiguous(), windows)
        residual = windows[:, -d:] if normalized else tokens.view(b * l, d)
        y = torch.addmm(residual, windows, weight.T)
        ctx.settings = settings
        ctx.save_for_backward(x, gain, shift, weight, bias, windows)
        return (y if bias is None else y.add_(bias)).view(b, l, d)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, windows = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, ctx.settings)
            return None, *differentiable_gradients(formula, inputs, wanted, dy)
        x, gain, _, weight, _ = inputs
        dy = dy.contiguous()
        flat = dy.view(-1, dy.shape[-1])
        dx, dnorm = torch.empty_like(dy), x.new_empty(len(x), 2, x.shape[-1])
        sizes, dwindows = _sizes(x, ctx.settings), flat @ weight
        call("norm_backward", sizes, x.contiguous(), gain.contiguous(), dwindows, dy, dx, dnorm)
        dweight = flat.T @ windows if wanted[3] else None
        return None, dx, *dnorm.sum(0), dweight, flat.sum(0) if wanted[4] else None


def _sizes(x: Tensor, settings: tuple[float, int, bool]) -> Sizes:
    (b, l, d), (eps, window, normalized) = x.shape, settings
    return Sizes(b=b, l=l, d=d, w=window, normalized=normalized, eps=eps)
