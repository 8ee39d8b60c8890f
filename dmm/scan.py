r"""The selective scan: a diagonal state space model whose step size, input and output matrices depend on the token.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t,    out_t = y_t silu(z_t)

`A` is discretized by zero-order hold and `B` by Euler, as in Mamba (Gu & Dao 2024, section 3.5 and
`mamba_ssm.ops.selective_scan_interface.selective_scan_ref`). Axes: `b` batch, `l` tokens, `e` inner channels, `n`
state. Departures from the official function: axes are ordered `(b, l, e)` instead of `(b, e, l)`, `A` is real, `B` and
`C` always depend on the token, and an initial state may be given.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmm.errors import InputError

PARALLEL_BLOCK = 64
"""Tokens that the parallel scan holds at once: its doubling steps stay within a block, blocks follow one another."""

KERNEL_STATES = 256
"""Largest state size of mamba-ssm's kernel."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`, `y_t = C_t h_t + D u_t`, gated by `silu(z_t)`.

    Args:
        u: input `(b, l, e)`.
        delta: step sizes `(b, l, e)`, before `delta_bias` and softplus if those are asked for.
        A: continuous decay `(e, n)`, negative for a stable system.
        B: input matrices `(b, l, n)`.
        C: output matrices `(b, l, n)`.
        D: skip connection `(e,)`.
        z: gate `(b, l, e)`.
        delta_bias: `(e,)`, added to `delta`.
        delta_softplus: whether to pass `delta + delta_bias` through softplus.
        initial_state: `(b, e, n)`, zero if not given.
        return_last_state: also return the state after the last token.
        backend: `auto`, or one of `scan_backends()`. `sequential` takes one token after the other, `parallel` combines
            blocks of tokens by doubling, `mamba-ssm` is the official CUDA kernel (float32 or half precision, no initial
            state, no gradient through the last state). `auto` takes the kernel where it can, else `sequential` on a CPU
            and `parallel` on other devices.

    Returns:
        `y (b, l, e)`, or `(y, last_state (b, e, n))`.

    Raises:
        InputError: shapes that do not fit, no tokens, or a backend that cannot serve this call.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state)
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    last_needs_grad = (
        return_last_state and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    )
    name = _choose(backend, u, A, initial_state, last_needs_grad)
    if name == "mamba-ssm":
        y, last = _mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return (y, last) if return_last_state else y
    delta = _positive_step(delta, delta_bias, delta_softplus)
    start = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state  # (b, e, n)
    y, last = _SCANS[name](u, delta, A, B, C, start)
    y = _output(y, u, D, z)
    return (y, last) if return_last_state else y


def selective_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token of `selective_scan`: `state (b, e, n)`, `u, delta, z (b, e)`, `B, C (b, n)` -> `y (b, e)`, new state.

    Equals `mamba_ssm.ops.triton.selective_state_update`, except that the state is returned and not written in place.
    """
    delta = _positive_step(delta, delta_bias, delta_softplus)
    state = torch.exp(delta[..., None] * A) * state + (delta * u)[..., None] * B[:, None, :]  # (b, e, n)
    return _output(torch.einsum("b e n, b n -> b e", state, C), u, D, z), state


def scan_backends() -> list[str]:
    """Names that `selective_scan(backend=...)` takes on this machine."""
    return [*_SCANS, "mamba-ssm"] if _mamba_ssm_kernel() else list(_SCANS)


def _positive_step(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    delta = delta if bias is None else delta + bias
    return F.softplus(delta) if softplus else delta


def _output(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D is None else y + D * u
    return y if z is None else y * F.silu(z)


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.ndim != 3 or u.shape[1] == 0:
        raise InputError(f"u: got shape {tuple(u.shape)}, allowed is (b, l, e) with at least one token")
    if A.ndim != 2 or A.shape[0] != u.shape[2]:
        raise InputError(f"A: got shape {tuple(A.shape)}, allowed is (e, n) with e = {u.shape[2]}")
    (b, length, e), n = u.shape, A.shape[1]
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "delta": (delta, (b, length, e)),
        "B": (B, (b, length, n)),
        "C": (C, (b, length, n)),
        "D": (D, (e,)),
        "z": (z, (b, length, e)),
        "delta_bias": (delta_bias, (e,)),
        "initial_state": (initial_state, (b, e, n)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(f"{name}: got shape {tuple(tensor.shape)}, allowed is {shape} for u {tuple(u.shape)}")


def _choose(backend: str, u: Tensor, A: Tensor, initial_state: Tensor | None, last_needs_grad: bool) -> str:
    if backend not in ("auto", *scan_backends()):
        raise InputError(f"backend: got {backend!r}, allowed here are auto, {', '.join(scan_backends())}")
    fits = u.is_cuda and u.dtype != torch.float64 and A.dtype == torch.float32 and A.shape[1] <= KERNEL_STATES
    kernel_serves = fits and initial_state is None and not last_needs_grad
    if backend == "mamba-ssm" and not kernel_serves:
        raise InputError(
            f"backend: got 'mamba-ssm' with {u.dtype} on {u.device}, allowed are CUDA tensors below float64, A in "
            f"float32 with at most {KERNEL_STATES} states, no initial_state and no gradient through the last state"
        )
    if backend != "auto":
        return backend
    if kernel_serves and "mamba-ssm" in scan_backends():
        return "mamba-ssm"
    return "sequential" if u.device.type == "cpu" else "parallel"


def _scan_sequential(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    return _SequentialScan.apply(u, delta, A, B, C, start)  # type: ignore[no-any-return, no-untyped-call]


def _scan_parallel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    decay = torch.exp(delta[..., None] * A)  # (b, l, e, n)
    drive = (delta * u)[..., None] * B[:, :, None, :]  # (b, l, e, n)
    states = parallel_scan(decay, drive, start)
    return torch.einsum("b l e n, b l n -> b l e", states, C.to(states)).to(u), states[:, -1]


_SCANS = {"sequential": _scan_sequential, "parallel": _scan_parallel}


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
        A, start = A.mT.contiguous(), start.mT.contiguous()  # (n, e), (b, n, e)
        u, delta, B, C = (x.transpose(0, 1).contiguous() for x in (u, delta, B, C))  # (l, b, ...)
        drive, y, h = delta * u, torch.empty_like(u), start
        decays, states = (u.new_empty(u.shape[0], *start.shape) for _ in range(2))
        for t in range(u.shape[0]):
            torch.mul(delta[t, :, None], A, out=decays[t]).exp_()
            torch.mul(drive[t, :, None], B[t, :, :, None], out=states[t])
            h = states[t].addcmul_(decays[t], h)
            torch.bmm(C[t, :, None], h, out=y[t, :, None])
        ctx.save_for_backward(u, delta, A, B, C, start, decays, states)
        return y.transpose(0, 1), h.mT.clone()

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, start, decays, states = ctx.saved_tensors
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
        return du, ddelta, dA.sum(0).mT, dB, dC, g.mT


def parallel_scan(a: Tensor, x: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """All states of `h_t = a_t h_{t-1} + x_t` by an associative scan: `a, x (b, l, ...) -> (b, l, ...)`.

    A token is the map `h -> a h + x`; two of them in a row are `(a2 a1, a2 x1 + x2)`, which is associative. Within a
    block of `PARALLEL_BLOCK` tokens, round `j` combines each prefix with the one `2^j` tokens earlier (Hillis & Steele
    1986), so a block takes `log2` rounds; blocks are chained through their last state.
    """
    start = torch.zeros_like(x[:, 0]) if initial_state is None else initial_state
    return _ParallelScan.apply(a, x, start)  # type: ignore[no-any-return, no-untyped-call]


class _ParallelScan(torch.autograd.Function):
    """Its adjoint `g_t = a_{t+1} g_{t+1} + dL/dh_t` is the same scan in reverse time.

    Then `dL/dx_t = g_t`, `dL/da_t = g_t h_{t-1}` and `dL/dh_0 = a_1 g_1`.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor, start: Tensor) -> Tensor:
        states = _states_by_doubling(a, x, start)
        ctx.save_for_backward(a, start, states)
        return states

    @staticmethod
    @once_differentiable  # type: ignore[misc, untyped-decorator]
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


@functools.cache
def _mamba_ssm_kernel() -> Callable[..., Any] | None:
    """The official CUDA kernel, or None where mamba-ssm or a GPU is missing."""
    if not torch.cuda.is_available():
        return None
    try:
        importlib.import_module("selective_scan_cuda")
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn  # type: ignore[no-any-return]
    except ImportError:
        return None


def _mamba_ssm_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The official kernel on its own layout: `(b, e, l)` for tokens, `(b, n, l)` for `B` and `C`."""
    kernel = _mamba_ssm_kernel()
    assert kernel is not None, "the kernel's presence is checked when the backend is chosen"
    channels_first = [None if t is None else t.transpose(1, 2).contiguous() for t in (u, delta, B, C, z)]
    u_, delta_, B_, C_, z_ = channels_first
    y, last = kernel(u_, delta_, A, B_, C_, D, z_, delta_bias, delta_softplus, return_last_state=True)
    return y.transpose(1, 2), last
