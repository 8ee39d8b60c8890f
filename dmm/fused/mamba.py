r"""The branch of a Mamba block as one function: `y = r + W_out g` with `n = LN(x)` and, for each token,

    [x', z] = W_in n,   s = silu(conv(x')),   [low, B, C] = W_x s,   delta = softplus(W_dt low + b)
    h_t = exp(delta A) h_{t-1} + delta s B,   g = (C h + D s) silu(z)

The residual `r` is `x` or `n`. Backward, from `dy`, product by product:

    dg = dy W_out                dW_out = dy^T g
    ds, dz, [dlow, dB, dC]       the scan's adjoint (see `selection.h`), with dW_dt, db, dA, dD; dA_log = dA A
    ds += [dlow, dB, dC] W_x     dW_x = [dlow, dB, dC]^T s
    dx' from ds                  through SiLU and convolution
    dn = [dx', dz] W_in          dW_in = [dx', dz]^T n

and LayerNorm's gradient of `dn`. All stages go through one row of the batch before the next (`branches.cpp`).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.fused.derivatives import differentiable_gradients
from dmm.fused.kernel import SPARE, Sizes, call
from dmm.layers.mamba import MambaBlock
from dmm.scan import selective_scan


class _Weights(NamedTuple):
    gain: Tensor
    shift: Tensor
    in_proj: Tensor
    conv: Tensor | None
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_proj: Tensor


def mamba_branch(norm: nn.LayerNorm, block: MambaBlock, x: Tensor, normalized: bool) -> Tensor:
    """`(LN(x) if normalized else x) + Mamba(LN(x))`: `(b, l, d) -> (b, l, d)`."""
    conv, conv_bias = (None, None) if block.conv1d is None else (block.conv1d.weight, block.conv1d.bias)
    weights = _Weights(
        gain=norm.weight,
        shift=norm.bias,
        in_proj=block.in_proj.weight,
        conv=conv,
        conv_bias=conv_bias,
        x_proj=block.x_proj.weight,
        dt_proj=block.dt_proj.weight,
        dt_bias=block.dt_proj.bias,
        A_log=block.A_log,
        D=block.D,
        out_proj=block.out_proj.weight,
    )
    return _MambaBranch.apply((norm.eps, normalized), x, *weights)  # type: ignore[no-any-return, no-untyped-call]


def _formula(settings: tuple[float, bool], x: Tensor, *weights: Tensor | None) -> Tensor:
    w, (eps, normalized) = _Weights(*weights), settings  # type: ignore[arg-type]
    n = F.layer_norm(x, (x.shape[-1],), w.gain, w.shift, eps)
    s, z = F.linear(n, w.in_proj).chunk(2, dim=-1)
    if w.conv is not None:
        s = F.conv1d(F.pad(s.mT, (w.conv.shape[-1] - 1, 0)), w.conv, w.conv_bias, groups=len(w.conv)).mT
    s, rank, states = F.silu(s), w.dt_proj.shape[1], w.A_log.shape[1]
    low, B, C = F.linear(s, w.x_proj).split([rank, states, states], dim=-1)  # type: ignore[no-untyped-call]
    options: dict[str, Any] = {"delta_bias": w.dt_bias, "delta_softplus": True, "backend": "sequential"}
    y = selective_scan(s, F.linear(low, w.dt_proj), -torch.exp(w.A_log), B, C, w.D, z, **options)
    assert isinstance(y, Tensor)
    return (n if normalized else x) + F.linear(y, w.out_proj)


class _MambaBranch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: tuple[float, bool], x: Tensor, *weights: Tensor | None) -> Tensor:
        w, sizes = _Weights(*weights), _sizes(settings, x, *weights)  # type: ignore[arg-type]
        rows, A = x.shape[0] * x.shape[1], -torch.exp(w.A_log)
        widths = (sizes.d, 2 * sizes.e, sizes.e, sizes.r + 2 * sizes.n, sizes.e)
        kept = [x.new_empty(rows * width + SPARE) for width in widths]  # n, [x', z], s, [low, B, C], g
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        call("mamba", sizes, x.contiguous(), *_contiguous(w.gain, w.shift, *_inner(w, A)), *kept, y)
        ctx.settings = settings
        ctx.save_for_backward(x, *weights, A, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        weights, kept = rest[: len(_Weights._fields)], rest[len(_Weights._fields) :]
        if torch.is_grad_enabled():
            formula = functools.partial(_formula, ctx.settings)
            return None, *differentiable_gradients(formula, (x, *weights), ctx.needs_input_grad[1:], dy)
        sizes, dy = _sizes(ctx.settings, x, *weights), dy.contiguous()
        return None, *_backward(sizes, x.contiguous(), _Weights(*weights), dy, *kept)


def _backward(sizes: Sizes, x: Tensor, w: _Weights, dy: Tensor, A: Tensor, *kept: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x and of the weights, in their order; `kept` is what the forward pass wrote down."""
    rows = x.shape[0] * x.shape[1]
    dxz, dp = (x.new_empty(rows * width) for width in (2 * sizes.e, sizes.r + 2 * sizes.n))
    dx, dnorm = torch.empty_like(x), x.new_empty(len(x), 2, sizes.d)
    dconv = None if w.conv is None else x.new_empty(len(x), sizes.k + 1, sizes.e)
    dscan = x.new_empty(len(x), sizes.n + sizes.r + 2, sizes.e)
    din, dselect, dout = (x.new_empty(each.shape) for each in (w.in_proj, w.x_proj, w.out_proj))
    weights = _contiguous(w.gain, *_inner(w, A))
    call("mamba_backward", sizes, x, *weights, *kept, dy, dxz, dp, dx, dnorm, din, dconv, dselect, dscan, dout)
    dA, dt, (dbias, dD) = dscan.sum(0).split([sizes.n, sizes.r, 2])  # type: ignore[no-untyped-call]
    taps, dconv_bias = (None, None) if dconv is None else dconv.sum(0).split([sizes.k, 1])  # type: ignore[no-untyped-call]
    return (
        dx,
        *dnorm.sum(0),
        din,
        None if taps is None else taps.T[:, None],
        None if dconv_bias is None else dconv_bias[0],
        dselect,
        dt.T,
        dbias,
        dA.T * A,
        dD,
        dout,
    )


def _inner(w: _Weights, A: Tensor) -> tuple[Tensor | None, ...]:
    """The weights behind the norm, in the kernel's order."""
    return w.in_proj, w.conv, w.conv_bias, w.x_proj, w.dt_proj, w.dt_bias, A, w.D, w.out_proj


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _sizes(settings: tuple[float, bool], x: Tensor, *weights: Tensor | None) -> Sizes:
    w, (b, tokens, d), (eps, normalized) = _Weights(*weights), x.shape, settings  # type: ignore[arg-type]
    (e, n), r, k = w.A_log.shape, w.dt_proj.shape[1], 1 if w.conv is None else w.conv.shape[-1]
    return Sizes(b=b, l=tokens, d=d, w=1, e=e, n=n, r=r, k=k, normalized=normalized, eps=eps)
