r"""The selective scan: a diagonal state space model whose step size, input and output matrices depend on the token.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t,    out_t = y_t silu(z_t)

`A` is discretized by zero-order hold and `B` by Euler, as in Mamba (Gu & Dao 2024, section 3.5 and
`mamba_ssm.ops.selective_scan_interface.selective_scan_ref`). Axes: `b` batch, `l` tokens, `e` inner channels, `n`
state, `g` systems. Departures from the official function: axes are ordered `(b, l, e)` instead of `(b, e, l)`, `A` is
real, `B` and `C` always depend on the token, an initial state may be given, and several systems may share a batch.

One function, five ways to compute it: `sequential` and `parallel` in plain torch, the fused kernels `cpp` (CPU) and
`triton` (GPU), and `mamba-ssm`, the official CUDA kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.errors import InputError
from dmm.scan import official
from dmm.scan.fused import fused_scan, interpreted, kernels
from dmm.scan.parallel import PARALLEL_BLOCK, parallel_scan, scan_in_blocks
from dmm.scan.sequential import sequential_scan

__all__ = ["PARALLEL_BLOCK", "parallel_scan", "preferred_backends", "scan_backends", "selective_scan", "selective_step"]

_PLAIN = {"sequential": sequential_scan, "parallel": scan_in_blocks}


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
        A: continuous decay `(e, n)`, negative for a stable system; or `(g, e, n)`, `g` systems side by side: the batch
            is then `g` runs of `b / g` rows, one for each system, and `D` and `delta_bias` are `(g, e)`.
        B: input matrices `(b, l, n)`.
        C: output matrices `(b, l, n)`.
        D: skip connection `(e,)`.
        z: gate `(b, l, e)`.
        delta_bias: `(e,)`, added to `delta`.
        delta_softplus: whether to pass `delta + delta_bias` through softplus.
        initial_state: `(b, e, n)`, zero if not given.
        return_last_state: also return the state after the last token.
        backend: `auto`, or one of `scan_backends()`. `sequential` takes one token after the other and `parallel`
            combines blocks of tokens by doubling, both in plain torch. `cpp` and `triton` are fused kernels for CPU and
            GPU, which keep nothing of size `(b, l, e, n)`. `mamba-ssm` is the official CUDA kernel (one system, float32
            or half precision, no initial state, no gradient through the last state). `auto` takes `cpp` on a CPU, else
            `sequential`; on a GPU `triton`, else `mamba-ssm` where it can, else `parallel`.

    Returns:
        `y (b, l, e)`, or `(y, last_state (b, e, n))`.

    Raises:
        InputError: shapes that do not fit, no tokens, tensors on several devices, or a backend that cannot serve this
            call.

    Gradients are first ones only: a gradient of a gradient, with `create_graph`, takes the first as a constant.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state)
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    last_needs_grad = (
        return_last_state and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    )
    name = _choose(backend, u, A, initial_state, last_needs_grad)
    if name == "mamba-ssm":
        y, last = official.mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return (y, last) if return_last_state else y
    systems = [t if t is None or A.ndim == 3 else t[None] for t in (A, D, delta_bias)]  # (g, ...)
    start = u.new_zeros(u.shape[0], *A.shape[-2:]) if initial_state is None else initial_state  # (b, e, n)
    y, last = _scan(name, u, delta, systems, B, C, z, delta_softplus, start)
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
    return [*_PLAIN, *kernels(), *(["mamba-ssm"] if official.mamba_ssm_kernel() else [])]


def preferred_backends(device: str) -> tuple[str, ...]:
    """What `auto` tries on a type of device (`cpu`, `cuda`, ...), in this order; the last is always there."""
    return ("cpp", "sequential") if device == "cpu" else ("triton", "mamba-ssm", "parallel")


def _scan(
    name: str,
    u: Tensor,
    delta: Tensor,
    systems: list[Tensor | None],
    B: Tensor,
    C: Tensor,
    z: Tensor | None,
    softplus: bool,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    A, D, bias = systems
    assert A is not None
    if name not in _PLAIN:
        return fused_scan(kernels()[name], u, delta, A, B, C, D, z, bias, softplus, start)
    rows = u.shape[0] // A.shape[0]
    if A.shape[0] > 1:  # one system for each row
        A, D, bias = (None if t is None else t.repeat_interleave(rows, dim=0) for t in systems)
    D, bias = (None if t is None else t[:, None] for t in (D, bias))  # (1 or b, 1, e)
    delta = _positive_step(delta, bias, softplus)
    y, last = _PLAIN[name](u, delta, A, B, C, start)  # type: ignore[arg-type]
    return _output(y, u, D, z), last


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
    if A.ndim not in (2, 3) or A.shape[-2] != u.shape[2]:
        raise InputError(f"A: got shape {tuple(A.shape)}, allowed is (e, n) or (g, e, n) with e = {u.shape[2]}")
    (b, length, e), (*g, _, n) = u.shape, A.shape
    if e == 0 or n == 0:
        raise InputError(f"A: got shape {tuple(A.shape)}, allowed is at least one channel and one state")
    if g and (g[0] == 0 or b % g[0]):
        raise InputError(f"A: got {g[0]} systems, allowed are divisors of the batch size {b}")
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "A": (A, tuple(A.shape)),
        "delta": (delta, (b, length, e)),
        "B": (B, (b, length, n)),
        "C": (C, (b, length, n)),
        "D": (D, (*g, e)),
        "z": (z, (b, length, e)),
        "delta_bias": (delta_bias, (*g, e)),
        "initial_state": (initial_state, (b, e, n)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(f"{name}: got shape {tuple(tensor.shape)}, allowed is {shape} for u {tuple(u.shape)}")
        if tensor is not None and tensor.device != u.device:
            raise InputError(f"{name}: got a tensor on {tensor.device}, allowed is u's device, {u.device}")


def _choose(backend: str, u: Tensor, A: Tensor, initial_state: Tensor | None, last_needs_grad: bool) -> str:
    here = scan_backends()
    if backend not in ("auto", *here):
        raise InputError(f"backend: got {backend!r}, allowed here are auto, {', '.join(here)}")
    serves = dict.fromkeys(here, True)
    device = "cuda" if u.is_cuda else u.device.type
    serves["cpp"] = "cpp" in here and device == "cpu"
    serves["triton"] = "triton" in here and device == ("cpu" if interpreted() else "cuda")
    serves["mamba-ssm"] = "mamba-ssm" in here and _official_serves(u, A, initial_state, last_needs_grad)
    if backend == "mamba-ssm" and not serves[backend]:
        raise InputError(
            f"backend: got 'mamba-ssm' with {u.dtype} on {u.device}, allowed are CUDA tensors below float64, A (e, n) "
            f"in float32 with at most {official.KERNEL_STATES} states, no initial_state and no gradient through the "
            "last state"
        )
    if backend != "auto" and not serves[backend]:
        raise InputError(f"backend: got {backend!r} with tensors on {u.device}, allowed is {_HOMES[backend]}")
    if backend != "auto":
        return backend
    return next(name for name in preferred_backends(device) if serves[name])


_HOMES = {"cpp": "the CPU", "triton": "a GPU (or the CPU when TRITON_INTERPRET is 1)"}


def _official_serves(u: Tensor, A: Tensor, initial_state: Tensor | None, last_needs_grad: bool) -> bool:
    fits = u.is_cuda and u.dtype != torch.float64 and A.dtype == torch.float32 and A.shape[-1] <= official.KERNEL_STATES
    return fits and A.ndim == 2 and initial_state is None and not last_needs_grad
