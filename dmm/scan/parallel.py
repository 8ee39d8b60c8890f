"""The scan in plain torch, blocks of tokens at once: the states by an associative scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmm.dtypes import precision
from dmm.tracing import watched

PARALLEL_BLOCK = 64
"""Tokens that the parallel scan holds at once: its doubling steps stay within a block, blocks follow one another."""


def scan_in_blocks(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """`y = C h (b, l, e)` and the last state `(b, e, n)`; `A` is `(1, e, n)`, or `(b, e, n)` with one for each row."""
    decay = torch.exp(delta[..., None] * A[:, None])  # (b, l, e, n)
    drive = (delta * u)[..., None] * B[:, :, None, :]  # (b, l, e, n)
    states = parallel_scan(decay, drive, start)
    return torch.einsum("b l e n, b l n -> b l e", states, C), states[:, -1]


def parallel_scan(a: Tensor, x: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """All states of `h_t = a_t h_{t-1} + x_t` by an associative scan: `a, x (b, l, ...) -> (b, l, ...)`.

    A token is the map `h -> a h + x`; two of them in a row are `(a2 a1, a2 x1 + x2)`, which is associative. Within a
    block of `PARALLEL_BLOCK` tokens, round `j` combines each prefix with the one `2^j` tokens earlier (Hillis & Steele
    1986), so a block takes `log2` rounds; blocks are chained through their last state.

    Half precision is computed in float32; the states have the dtype of `x`.

    Raises:
        InputError: complex or whole numbers.
    """
    dtype = precision({"a": a, "x": x, "initial_state": initial_state}, ("initial_state",))
    returned = x.dtype
    a, x = a.to(dtype), x.to(dtype)
    start = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state.to(dtype)
    function = _states_by_doubling if watched(a, x, start) else _ParallelScan.apply
    return function(a, x, start).to(returned)  # type: ignore[no-any-return]


class _ParallelScan(torch.autograd.Function):
    """Its adjoint `g_t = a_{t+1} g_{t+1} + dL/dh_t` is the same scan in reverse time.

    Then `dL/dx_t = g_t`, `dL/da_t = g_t h_{t-1}` and `dL/dh_0 = a_1 g_1`, all in operations that torch can
    differentiate again.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor, start: Tensor) -> Tensor:
        states = _states_by_doubling(a, x, start)
        ctx.save_for_backward(a, start, states)
        return states

    @staticmethod
    def backward(ctx: Any, dstates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, start, states = ctx.saved_tensors
        later = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1).flip(1)  # a_{t+1}, latest first
        adjoint = _states_by_doubling(later, dstates.flip(1), torch.zeros_like(start)).flip(1)
        previous = torch.cat([start[:, None], states[:, :-1]], 1)
        return adjoint * previous, adjoint, a[:, 0] * adjoint[:, 0]


def _states_by_doubling(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
    blocks, h = [], start
    for first in range(0, x.shape[1], PARALLEL_BLOCK):
        decay, state = _prefixes(a[:, first : first + PARALLEL_BLOCK], x[:, first : first + PARALLEL_BLOCK])
        blocks.append(torch.addcmul(state, decay, h[:, None]))
        h = blocks[-1][:, -1]
    return torch.cat(blocks, 1)


def _prefixes(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The composed maps of tokens `0..t` for every `t` of a block, each `(b, block, ...)`."""
    distance, length = 1, x.shape[1]
    while distance < length:
        x = torch.cat([x[:, :distance], torch.addcmul(x[:, distance:], a[:, distance:], x[:, :-distance])], 1)
        a = torch.cat([a[:, :distance], a[:, distance:] * a[:, :-distance]], 1)
        distance *= 2
    return a, x
