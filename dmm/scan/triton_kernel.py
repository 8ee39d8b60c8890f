r"""The selective scan on a GPU: one fused Triton kernel for the outputs, one for the gradients.

A program walks along the tokens of one row of the batch, for a few channels. A tile of tokens is loaded at once; its
decays `exp(delta_t A)` and drives `delta_t u_t B_t`, of shape `(tile, channels, n)`, exist in registers only, and one
state in `CHUNK` tokens is written out, from which the backward pass starts again:

    h_t = decay_t h_{t-1} + drive_t,    g_t = C_t dy_t + decay_{t+1} g_{t+1}    with  g_t = dL/dh_t

Only sums over `n` (for `y`, `du`, `ddelta`) and over channels (for `dB`, `dC`) cross threads. The forward kernel has
four warps to a program, which read whole cache lines, and loads the next tile while it computes; the backward kernel
has one warp, which needs no barrier for its many sums. Sums over programs are left to torch, without atomics, so that
the same inputs give the same bits.

Importing this file needs Triton. With `TRITON_INTERPRET=1` set before, it runs on the CPU, slowly, for tests.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm.scan.triton_segments import CHUNK, ENOUGH_STATES, cut, past_segment, segment_ends
from dmm.scan.triton_tiles import LOG2E, adjoints, load, place, states, step_size

WAYS_BACK = {"few": {"tiles": 2, "each": 4}, "many": {"tiles": 4, "each": 8}}
"""Tiles to a chunk and states to a thread in the backward kernel, whose tokens need more registers than forward."""

MANY_STATES = 4 * ENOUGH_STATES
"""From here on there are threads enough with eight states each, which halves the traffic for `dB` and `dC`."""


@triton.jit
def forward_kernel(
    u, delta, A, B, C, D, z, bias, start, y, last, starts, ends, steps, length, e, rows, walk,
    n: tl.constexpr, SOFTPLUS: tl.constexpr, T: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    F: tl.constexpr = starts.dtype.element_ty
    row, _group, t, c, k, in_e, in_n, in_h, ok_h = place(e, n, T, E, N)
    segment, segments, chunks, system = tl.program_id(1), tl.num_programs(1), tl.cdiv(length, T), row // rows
    rate = load(A, system * e * n, in_h, ok_h, F) * LOG2E
    skip, shift = load(D, system * e, c, c < e, F)[None, :], load(bias, system * e, c, c < e, F)[None, :]
    h = load(start, row * e * n, in_h, ok_h, F)
    if ends is not None:
        for s in tl.range(segment, num_stages=3):
            h = past_segment(h, row * segments + s, rate, ends, steps, e, n, c, in_h, ok_h, F)
    for i in tl.range(segment * walk, min(segment * walk + walk, chunks), num_stages=2):
        tl.store(starts + (row * chunks + i) * e * n + in_h, h, mask=ok_h)
        at, ok = row * length + i * T, (i * T + t < length)[:, None]
        ok_e, ok_n = ok & (c < e)[None, :], ok & (k < n)[None, :]
        u_t, B_t = load(u, at * e, in_e, ok_e, F), load(B, at * n, in_n, ok_n, F)[:, None, :]
        raw, C_t = load(delta, at * e, in_e, ok_e, F) + shift, load(C, at * n, in_n, ok_n, F)[:, None, :]
        step = step_size(raw, ok_e, SOFTPLUS)
        _before, after, h = states(h, tl.exp2(step[:, :, None] * rate), (step * u_t)[:, :, None] * B_t)
        out = tl.sum(after * C_t, 2) + skip * u_t
        if z is not None:
            gate = load(z, at * e, in_e, ok_e, F)
            out *= gate * tl.sigmoid(gate)
        tl.store(y + at * e + in_e, out, mask=ok_e)
    if segment == segments - 1:
        tl.store(last + row * e * n + in_h, h, mask=ok_h)


@triton.jit
def backward_kernel(
    u, delta, A, B, C, D, z, bias, starts, dy, dlast, du, ddelta, dA, dB, dC, dD, dz, dbias, dstart, ends, steps,
    length, e, rows, walk,
    n: tl.constexpr, SOFTPLUS: tl.constexpr, T: tl.constexpr, E: tl.constexpr, N: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    F: tl.constexpr = starts.dtype.element_ty
    row, group, t, c, k, in_e, in_n, in_h, ok_h = place(e, n, T, E, N)
    segment, segments, chunks, system = tl.program_id(1), tl.num_programs(1), tl.cdiv(length, T * TILES), row // rows
    rate = load(A, system * e * n, in_h, ok_h, F) * LOG2E
    skip, shift = load(D, system * e, c, c < e, F)[None, :], load(bias, system * e, c, c < e, F)[None, :]
    sum_A, sum_D, sum_bias = tl.zeros([1, E, N], F), tl.zeros([E], F), tl.zeros([E], F)
    r = load(dlast, row * e * n, in_h, ok_h, F)
    if ends is not None:
        for s in tl.range(segments - 1, segment, -1, num_stages=3):
            r = past_segment(r, row * segments + s, rate, ends, steps, e, n, c, in_h, ok_h, F)
    for i in range(min((segment + 1) * walk * TILES, tl.cdiv(length, T)) - 1, segment * walk * TILES - 1, -1):
        at, ok = row * length + i * T, (i * T + t < length)[:, None]
        ok_e, ok_n = ok & (c < e)[None, :], ok & (k < n)[None, :]
        u_t, B_t = load(u, at * e, in_e, ok_e, F), load(B, at * n, in_n, ok_n, F)[:, None, :]
        raw, C_t = load(delta, at * e, in_e, ok_e, F) + shift, load(C, at * n, in_n, ok_n, F)[:, None, :]
        dout, gate = load(dy, at * e, in_e, ok_e, F), load(z, at * e, in_e, ok_e, F)
        h = load(starts, (row * chunks + i // TILES) * e * n, in_h, ok_h, F)
        for j in range(i // TILES * TILES, i):  # from the start of the chunk to that of the tile
            past, whole = row * length + j * T, (c < e)[None, :]
            step = step_size(load(delta, past * e, in_e, whole, F) + shift, whole, SOFTPLUS)
            drive = (step * load(u, past * e, in_e, whole, F))[:, :, None]
            drive *= load(B, past * n, in_n, (k < n)[None, :], F)[:, None, :]
            h = states(h, tl.exp2(step[:, :, None] * rate), drive)[2]
        step = step_size(raw, ok_e, SOFTPLUS)
        decay = tl.exp2(step[:, :, None] * rate)
        before, after, h = states(h, decay, (step * u_t)[:, :, None] * B_t)
        if z is not None:
            out, sigmoid = tl.sum(after * C_t, 2) + skip * u_t, tl.sigmoid(gate)
            tl.store(dz + at * e + in_e, dout * out * sigmoid * (1.0 + gate * (1.0 - sigmoid)), mask=ok_e)
            dout *= gate * sigmoid
        g, reaching, r = adjoints(r, decay, C_t * dout[:, :, None])
        of_group = (group.to(tl.int64) * (tl.num_programs(0) // tl.cdiv(e, E)) * length + at) * n + in_n
        tl.store(dB + of_group, tl.sum(g * (step * u_t)[:, :, None], 1), mask=ok_n)
        tl.store(dC + of_group, tl.sum(after * dout[:, :, None], 1), mask=ok_n)
        g_B, slope = tl.sum(g * B_t, 2), reaching * before  # slope: the gradient with respect to delta_t A
        draw = tl.sum(slope * rate, 2) / LOG2E + g_B * u_t
        if SOFTPLUS:
            draw *= tl.where(raw > 20.0, 1.0, tl.sigmoid(raw))
        tl.store(du + at * e + in_e, g_B * step + skip * dout, mask=ok_e)
        tl.store(ddelta + at * e + in_e, draw, mask=ok_e)
        sum_A += tl.sum(slope * step[:, :, None], 0, keep_dims=True)
        sum_D += tl.sum(dout * u_t, 0)
        sum_bias += tl.sum(tl.where(ok_e, draw, 0.0), 0)
    part = row * segments + segment
    tl.store(dA + part * e * n + in_h, sum_A, mask=ok_h)
    if segment == 0:
        tl.store(dstart + row * e * n + in_h, r, mask=ok_h)
    if D is not None:
        tl.store(dD + part * e + c, sum_D, mask=c < e)
    if bias is not None:
        tl.store(dbias + part * e + c, sum_bias, mask=c < e)


def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    softplus: bool, start: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`(y, last, starts)`, see `dmm.scan.fused.Kernel`; `starts (b, chunks, e, n)` are the states before each chunk."""
    grid, sizes = cut(u, A, warps=4)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    y, last = torch.empty_like(u), torch.empty_like(start)
    starts = u.new_empty(len(u), triton.cdiv(u.shape[1], CHUNK), *A.shape[1:], dtype=dtype)
    with torch.cuda.device_of(u):
        ends = segment_ends(u, delta, A, B, None, bias, softplus=softplus, back=False)
        forward_kernel[grid](u, delta, A, B, C, D, z, bias, start, y, last, starts, *ends, SOFTPLUS=softplus, **sizes)
    return y, last, starts


def backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None,
    softplus: bool, starts: Tensor, dy: Tensor, dlast: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of `u, delta, A, B, C, D, z, bias, start`."""
    (b, _, e), (g, _, n) = u.shape, A.shape
    way = WAYS_BACK["many" if b * e * n >= MANY_STATES else "few"]
    grid, sizes = cut(u, A, warps=1, **way)
    du, ddelta, dstart = torch.empty_like(u), torch.empty_like(u), torch.empty_like(dlast)
    dz = None if z is None else torch.empty_like(z)
    dA = starts.new_empty(b, grid[1], e, n)
    dD, dbias = (None if t is None else starts.new_empty(b, grid[1], e) for t in (D, bias))
    dB, dC = dBC = starts.new_empty(2, triton.cdiv(e, sizes["E"]), *B.shape)
    with torch.cuda.device_of(u):
        ends = segment_ends(dy, delta, A, C, z, bias, softplus=softplus, back=True)
        inputs, gradients = (u, delta, A, B, C, D, z, bias), (du, ddelta, dA, dB, dC, dD, dz, dbias, dstart)
        sizes |= {"SOFTPLUS": softplus, "TILES": way["tiles"]}
        backward_kernel[grid](*inputs, starts, dy, dlast, *gradients, *ends, **sizes)
    dB, dC = dBC.sum(1).to(B)
    of_systems = [None if t is None else t.unflatten(0, (g, b // g)).sum((1, 2)).to(A) for t in (dA, dD, dbias)]
    return du, ddelta, of_systems[0], dB, dC, of_systems[1], dz, of_systems[2], dstart
