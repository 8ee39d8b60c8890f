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

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from dmm.dtypes import full_precision, precision
from dmm.errors import InputError
from dmm.scan import official
from dmm.scan.fused import fused_scan, interpreted, kernels
from dmm.scan.parallel import PARALLEL_BLOCK, parallel_scan, scan_in_blocks
from dmm.scan.plain import output, plain_scan, positive_step
from dmm.scan.sequential import sequential_scan
from dmm.tracing import watched

__all__ = ["PARALLEL_BLOCK", "parallel_scan", "preferred_backends", "scan_backends", "selective_scan", "selective_step"]

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
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
            `sequential`; on a GPU `triton`, else `mamba-ssm` where it can, else `parallel`. Where torch itself watches
            the operations (export, compile, trace, transforms of `torch.func`, forward mode), `auto` and the two plain
            ones are `parallel` without a gradient of its own, and the kernels are refused.

    All tensors are of real numbers: half precision (float16, bfloat16), float32 or float64, in any mixture. If any is
    of float64 all is computed in float64, else all in float32, half precision too, and under autocast. (`mamba-ssm`
    takes half precision as it is.)

    Returns:
        `y (b, l, e)` in the dtype of `u`, or `(y, last_state (b, e, n))`, where the last state has the dtype of
        `initial_state` if that is given, else of `u`.

    Raises:
        InputError: shapes that do not fit, no tokens, complex or whole numbers, tensors on several devices, or a
            backend that cannot serve this call.

    Gradients can be differentiated again, as often as asked, with `create_graph`. They cost what those of `parallel`
    do then. `mamba-ssm` has first gradients only, and raises InputError when asked for others.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    dtype = precision(tensors | {"initial_state": initial_state}, OPTIONAL)
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, initial_state)
    name = _choose(backend, tensors, initial_state, return_last_state)
    if name == "mamba-ssm":
        y, last = official.mamba_ssm_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    else:
        start = u.new_zeros(u.shape[0], *A.shape[-2:]) if initial_state is None else initial_state  # (b, e, n)
        with full_precision(u.device):
            y, last = _scan(name, *(_cast(t, dtype) for t in tensors.values()), delta_softplus, start.to(dtype))  # type: ignore[call-arg]
    like = u if initial_state is None else initial_state
    return (y.to(u.dtype), last.to(like.dtype)) if return_last_state else y.to(u.dtype)


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

    `A` is `(e, n)`, `D` and `delta_bias` are `(e,)`. The precision is that of `selective_scan`; `y` has the dtype of
    `u`, the new state that of `state`. Equals `mamba_ssm.ops.triton.selective_state_update`, except that the state is
    returned and not written in place.

    Raises:
        InputError: complex or whole numbers.
    """
    tensors = {"state": state, "u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    dtype = precision(tensors, OPTIONAL)
    h, x, raw, A, B, C, D, z, bias = (_cast(t, dtype) for t in tensors.values())
    with full_precision(u.device):
        step = positive_step(raw, bias, delta_softplus)
        h = torch.exp(step[..., None] * A) * h + (step * x)[..., None] * B[:, None, :]  # (b, e, n)
        y = output(torch.einsum("b e n, b n -> b e", h, C), x, D, z)
    return y.to(u.dtype), h.to(state.dtype)


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
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    A, D, bias = (t if t is None or A.ndim == 3 else t[None] for t in (A, D, bias))  # type: ignore[assignment]  # (g, ...)
    if name in _PLAIN:
        return plain_scan(_PLAIN[name], u, delta, A, B, C, D, z, bias, softplus, start)
    return fused_scan(kernels()[name], u, delta, A, B, C, D, z, bias, softplus, start)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype)


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


def _choose(
    backend: str, tensors: Mapping[str, Tensor | None], initial_state: Tensor | None, return_last_state: bool
) -> str:
    if watched(*tensors.values(), initial_state) and backend in ("auto", *_PLAIN):
        return "parallel"
    u, here = tensors["u"], scan_backends()
    assert u is not None
    if backend not in ("auto", *here):
        raise InputError(f"backend: got {backend!r}, allowed here are auto, {', '.join(here)}")
    if watched(*tensors.values(), initial_state):
        raise InputError(
            f"backend: got {backend!r} where torch watches the operations (export, compile, trace, torch.func, forward "
            f"mode), allowed are auto, {', '.join(_PLAIN)}"
        )
    device = "cuda" if u.is_cuda else u.device.type
    serves = dict.fromkeys(here, True)
    serves["cpp"] = "cpp" in here and device == "cpu"
    serves["triton"] = "triton" in here and device == ("cpu" if interpreted() else "cuda")
    serves["mamba-ssm"] = "mamba-ssm" in here and _official_serves(tensors, initial_state, return_last_state)
    if backend == "mamba-ssm" and not serves[backend]:
        raise InputError(
            f"backend: got 'mamba-ssm' with {u.dtype} on {u.device}, allowed are CUDA tensors below float64, A (e, n) "
            f"in float32 with at most {official.KERNEL_STATES} states, D and delta_bias in float32, all others in one "
            "dtype, no initial_state and no gradient through the last state"
        )
    if backend != "auto" and not serves[backend]:
        raise InputError(f"backend: got {backend!r} with tensors on {u.device}, allowed is {_HOMES[backend]}")
    return backend if backend != "auto" else next(name for name in preferred_backends(device) if serves[name])


_HOMES = {"cpp": "the CPU", "triton": "a GPU (or the CPU when TRITON_INTERPRET is 1)"}


def _official_serves(
    tensors: Mapping[str, Tensor | None], initial_state: Tensor | None, return_last_state: bool
) -> bool:
    u, A = cast(Tensor, tensors["u"]), cast(Tensor, tensors["A"])
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    of_weights = ("A", "D", "delta_bias")
    fits = all(t.dtype == (torch.float32 if name in of_weights else u.dtype) for name, t in given.items())
    fits = fits and u.is_cuda and u.dtype != torch.float64 and A.ndim == 2 and A.shape[-1] <= official.KERNEL_STATES
    lost = return_last_state and torch.is_grad_enabled() and any(t.requires_grad for t in given.values())
    return fits and initial_state is None and not lost
