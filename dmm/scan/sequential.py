"""The scan in plain torch, one token after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmm.scan.parallel import scan_in_blocks
from dmm.scan.plain import differentiable_gradients
from dmm.tracing import watched


def sequential_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """`y = C h (b, l, e)` and the last state `(b, e, n)`; `A` is `(1, e, n)`, or `(b, e, n)` with one for each row.

    Where torch watches the operations, and for gradients of gradients, the parallel scan stands in: this one writes
    into tensors of its own.
    """
    if watched(u, delta, A, B, C, start):
        return scan_in_blocks(u, delta, A, B, C, start)
    return _SequentialScan.apply(u, delta, A, B, C, start)  # type: ignore[no-any-return, no-untyped-call]


class _SequentialScan(torch.autograd.Function):
    """One token after the other, with the adjoint recurrence as gradient.

    Tokens come first and channels last, so that one token's decay and drive `(b, n, e)` lie together and stay in the
    processor's cache while they are used; decays and states `(l, b, n, e)` are kept for the backward pass. With
    `g_t = dL/dh_t` the adjoint is `g_t = C_t dL/dy_t + exp(delta_{t+1} A) g_{t+1}`, and every gradient is a product of
    `g_t` with something at hand.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = (u, delta, A, B, C, start)
        A, start = A.mT.contiguous(), start.mT.contiguous()  # (1 or b, n, e), (b, n, e)
        u, delta, B, C = (x.transpose(0, 1).contiguous() for x in (u, delta, B, C))  # (l, b, ...)
        drive, y, h = delta * u, torch.empty_like(u), start
        decays, states = (u.new_empty(u.shape[0], *start.shape) for _ in range(2))
        for t in range(u.shape[0]):
            torch.mul(delta[t, :, None], A, out=decays[t]).exp_()
            torch.mul(drive[t, :, None], B[t, :, :, None], out=states[t])
            h = states[t].addcmul_(decays[t], h)
            torch.bmm(C[t, :, None], h, out=y[t, :, None])
        ctx.save_for_backward(*inputs, u, delta, A, B, C, start, decays, states)
        return y.transpose(0, 1), h.mT.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (u, delta, A, B, C, start, decays, states) = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        if torch.is_grad_enabled():  # create_graph
            return differentiable_gradients(scan_in_blocks, inputs, (dy, dlast))
        drive, dy = delta * u, dy.transpose(0, 1).contiguous()
        g = dlast.mT.clone(memory_format=torch.contiguous_format)  # (b, n, e)
        ddrive, ddelta, dA, dlog = torch.empty_like(u), torch.empty_like(u), torch.zeros_like(g), torch.empty_like(g)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        for t in reversed(range(u.shape[0])):
            g.addcmul_(dy[t, :, None], C[t, :, :, None])  # dL/dh_t (b, n, e)
            torch.bmm(states[t], dy[t, :, :, None], out=dC[t, :, :, None])
            torch.bmm(g, drive[t, :, :, None], out=dB[t, :, :, None])
            torch.bmm(B[t, :, None], g, out=ddrive[t, :, None])
            g *= decays[t]  # what reaches h_{t-1}
            torch.mul(g, states[t - 1] if t else start, out=dlog)  # dL/d(delta_t A)
            dA.addcmul_(dlog, delta[t, :, None])
            torch.sum(dlog.mul_(A), 1, out=ddelta[t])
        tokens_last = (ddrive * delta, ddelta + ddrive * u, dB, dC)
        du, ddelta, dB, dC = (x.transpose(0, 1) for x in tokens_last)
        return du, ddelta, dA.sum_to_size(A.shape).mT, dB, dC, g.mT
