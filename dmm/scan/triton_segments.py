"""How the scan is cut into programs for a GPU: rows, groups of channels and, where those are few, segments of tokens.

A segment maps the state before it to `exp(A sum_t delta_t) h + end`, where `end` is what it reaches from zero. So a
first pass, which needs no outputs, makes `end` and the sum of the steps for all segments at once, and in the second
pass each program finds its own start by going past the segments before it. Backward in time the same holds for the
adjoint.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmm.scan.triton_tiles import LOG2E, adjoints, load, place, states, step_size

CHUNK = 16
"""Tokens between two states that are written out: at `n = 16` these weigh as much as `u`."""

ENOUGH_STATES = 512 * 128
"""States `b e n` that keep a GPU busy: a warp with 128 of them for each scheduler of an H100. Below, tokens are cut."""

MOST_SEGMENTS = 64
"""Each program goes past those before it one by one."""


def cut(u: Tensor, A: Tensor, warps: int, tiles: int = 1, each: int = 4) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs and segments for `u (b, l, e)`, `A (g, e, n)`, and what a kernel is told about sizes.

    A program walks along `walk` chunks of `tiles` tiles each, with at most `each` states to a thread; so with four to a
    thread and four warps it has 32 channels at `n = 16`.
    """
    (b, length, e), (g, _, n) = u.shape, A.shape
    warp = 32 * each // (2 if u.dtype == torch.float64 else 1)
    N, chunks = triton.next_power_of_2(n), triton.cdiv(length, CHUNK)
    E = min(triton.next_power_of_2(e), max(1, warp * warps // N))
    segments = max(1, min(MOST_SEGMENTS, ENOUGH_STATES // max(1, b * e * n), chunks // 4))
    walk = triton.cdiv(chunks, segments)
    sizes = {"length": length, "e": e, "n": n, "rows": b // g, "walk": walk, "T": CHUNK // tiles, "E": E, "N": N}
    options = {"num_warps": max(1, min(8, E * N // warp)), "enable_fp_fusion": True}
    return (b * triton.cdiv(e, E), triton.cdiv(chunks, walk)), sizes | options


def segment_ends(
    x: Tensor, delta: Tensor, A: Tensor, M: Tensor, z: Tensor | None, bias: Tensor | None, *, softplus: bool, back: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Ends `(b, segments, e, n)` and sums of steps `(b, segments, e)`, if there is more than one segment.

    `x, M` are `u, B`, or `dy, C` on the way back, where `z` gates `dy`.
    """
    grid, sizes = cut(x, A, warps=4)
    if grid[1] == 1:
        return None, None
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    ends = x.new_empty(len(x), grid[1], *A.shape[1:], dtype=dtype)
    steps = x.new_empty(ends.shape[:3], dtype=dtype)
    segment_ends_kernel[grid](x, delta, A, M, z, bias, ends, steps, SOFTPLUS=softplus, BACK=back, **sizes)
    return ends, steps


@triton.jit
def segment_ends_kernel(
    x, delta, A, M, z, bias, ends, steps, length, e, rows, walk,
    n: tl.constexpr, SOFTPLUS: tl.constexpr, BACK: tl.constexpr, T: tl.constexpr, E: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    F: tl.constexpr = ends.dtype.element_ty
    row, _group, t, c, k, in_e, in_n, in_h, ok_h = place(e, n, T, E, N)
    rate = load(A, row // rows * e * n, in_h, ok_h, F) * LOG2E
    shift = load(bias, row // rows * e, c, c < e, F)[None, :]
    h, total = tl.zeros([1, E, N], F), tl.zeros([E], F)
    first, stop = tl.program_id(1) * walk, min(tl.program_id(1) * walk + walk, tl.cdiv(length, T))
    for j in tl.range(0, stop - first, num_stages=2):
        i = stop - 1 - j if BACK else first + j
        at, ok = row * length + i * T, (i * T + t < length)[:, None]
        ok_e, ok_n = ok & (c < e)[None, :], ok & (k < n)[None, :]
        x_t, M_t = load(x, at * e, in_e, ok_e, F), load(M, at * n, in_n, ok_n, F)[:, None, :]
        step = step_size(load(delta, at * e, in_e, ok_e, F) + shift, ok_e, SOFTPLUS)
        decay, total = tl.exp2(step[:, :, None] * rate), total + tl.sum(step, 0)
        if z is not None:
            gate = load(z, at * e, in_e, ok_e, F)
            x_t *= gate * tl.sigmoid(gate)
        if BACK:
            h = adjoints(h, decay, x_t[:, :, None] * M_t)[2]
        else:
            h = states(h, decay, (step * x_t)[:, :, None] * M_t)[2]
    part = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(ends + part * e * n + in_h, h, mask=ok_h)
    tl.store(steps + part * e + c, total, mask=c < e)


@triton.jit
def past_segment(h, part, rate, ends, steps, e, n: tl.constexpr, c, in_h, ok_h, F: tl.constexpr):
    """The state, or the adjoint, on the other side of segment `part`."""
    step = load(steps, part * e, c, c < e, F)[None, :, None]
    return tl.exp2(step * rate) * h + load(ends, part * e * n, in_h, ok_h, F)
