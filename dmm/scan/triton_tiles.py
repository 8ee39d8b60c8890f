"""What the Triton kernels of the scan are made of: a tile of tokens, and the recurrence within it.

A tile has `T` tokens, `E` channels and `N` states, all powers of two, so that parts of it may lie outside the tensors.
Threads lie along channels and states, never along tokens. So the rows of a tile cost nothing to take apart, and a
recurrence along them is a row of multiply-adds in each thread, as `nvdisasm` shows.
"""
# A kernel's arguments are pointers and blocks, which Python's types do not describe.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
# mypy: disable-error-code=assignment

from __future__ import annotations

import triton
import triton.language as tl

OLDEST = (3, 5)
"""Before, Triton's compiler could not take a function that calls itself, as `split_rows` does."""

if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
    raise ImportError(f"triton: found {triton.__version__}, allowed is {OLDEST[0]}.{OLDEST[1]} or newer")

LOG2E = tl.constexpr(1.4426950408889634)
"""The GPU's exponential has base 2."""


@triton.jit
def split_rows(tile):
    """The rows `(1, E, N)` of a tile `(T, E, N)`."""
    if tile.shape[0] == 1:
        return (tile,)
    else:
        halves = tl.reshape(tile, [2, tile.shape[0] // 2, tile.shape[1], tile.shape[2]])
        first, second = tl.split(tl.permute(halves, (1, 2, 3, 0)))
        return split_rows(first) + split_rows(second)


@triton.jit
def join_rows(rows):
    """The inverse of `split_rows`."""
    if len(rows) == 1:
        return rows[0]
    else:
        half: tl.constexpr = len(rows) // 2
        halves = tl.permute(tl.join(join_rows(rows[:half]), join_rows(rows[half:])), (3, 0, 1, 2))
        return tl.reshape(halves, [2 * halves.shape[1], halves.shape[2], halves.shape[3]])


@triton.jit
def states(h, decay, drive):
    """`h_t = decay_t h_{t-1} + drive_t`: the states before each token, those after it, and the last."""
    decays, drives, before, after = split_rows(decay), split_rows(drive), (), ()
    for t in tl.static_range(decay.shape[0]):
        before += (h,)
        h = decays[t] * h + drives[t]
        after += (h,)
    return join_rows(before), join_rows(after), h


@triton.jit
def adjoints(r, decay, direct):
    """`g_t = direct_t + r_{t+1}`, `r_t = decay_t g_t`: both for each token, and the first `r`.

    With `direct_t = C_t dy_t` these are the gradients with respect to the state after token `t`, and before it.
    """
    decays, directs, after, before = split_rows(decay), split_rows(direct), (), ()
    for t in tl.static_range(decay.shape[0] - 1, -1, -1):
        g = directs[t] + r
        r = decays[t] * g
        after += (g,)
        before += (r,)
    return join_rows(after[::-1]), join_rows(before[::-1]), r


@triton.jit
def load(pointer, base, index, ok, F: tl.constexpr):
    """A block from `pointer + base + index`: zero where not `ok`, and everywhere if there is no such tensor."""
    if pointer is None:
        return tl.zeros(index.shape, F)
    else:
        return tl.load(pointer + base + index, mask=ok, other=0.0).to(F)


@triton.jit
def step_size(raw, ok, SOFTPLUS: tl.constexpr):
    """Step sizes; where not `ok`, as past the last token, zero, which leaves a state as it is.

    Softplus is `max(x, 0) + log(1 + exp(-|x|))`, its logarithm `2 atanh(s)` as a series, accurate for tiny steps too.
    """
    step = raw
    if SOFTPLUS:
        small = tl.exp(-tl.abs(raw))
        s = small / (2.0 + small)
        terms: tl.constexpr = 18 if raw.dtype == tl.float64 else 8
        series = tl.zeros(raw.shape, raw.dtype)
        for i in tl.static_range(terms):
            series = series * (s * s) + 1.0 / (2 * (terms - i) - 1)
        step = tl.where(raw > 20.0, raw, tl.maximum(raw, 0.0) + 2.0 * s * series)
    return tl.where(ok, step, 0.0)


@triton.jit
def place(e, n: tl.constexpr, T: tl.constexpr, E: tl.constexpr, N: tl.constexpr):
    """Row and channels of this program, and where its values lie in a tile's `(T, e)`, `(T, n)` and in a state."""
    row, group = (tl.program_id(0) // tl.cdiv(e, E)).to(tl.int64), tl.program_id(0) % tl.cdiv(e, E)
    t, c, k = tl.arange(0, T), group * E + tl.arange(0, E), tl.arange(0, N)
    in_h, ok_h = c[None, :, None] * n + k[None, None, :], (c < e)[None, :, None] & (k < n)[None, None, :]
    return row, group, t, c, k, t[:, None] * e + c[None, :], t[:, None] * n + k[None, :], in_h, ok_h
