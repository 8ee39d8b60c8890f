r"""Linear state space models: continuous time, discretization, recurrence and convolution.

A continuous system with state `h (n,)`, input `u` and output `y`

    h'(t) = A h(t) + B u(t),    y(t) = C h(t) + D u(t)

becomes, at step size `delta`, the discrete system `h_t = A_bar h_{t-1} + B_bar u_t`, `y_t = C h_t + D u_t`
(equations 1 and 2 of the Decision MetaMamba paper). Letters: `l` tokens, `n` state size, `m` inputs.

Everything here is of real numbers, float32 or float64, and computed in float64 if any tensor of a call is of that.
Other dtypes raise InputError: whole numbers would cut off a step size, and complex systems are not this package's.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dmm.dtypes import together
from dmm.errors import InputError, whole_number

Method = Literal["zoh", "bilinear", "euler"]


def discretize(A: Tensor, B: Tensor, delta: Tensor | float, method: Method = "zoh") -> tuple[Tensor, Tensor]:
    r"""Discretize `h' = A h + B u` at step size `delta`.

    | method | `A_bar` | `B_bar` |
    |---|---|---|
    | `zoh` | `exp(delta A)` | `A^{-1} (exp(delta A) - I) B`, the input held constant within a step |
    | `bilinear` | `(I - delta A/2)^{-1} (I + delta A/2)` | `(I - delta A/2)^{-1} delta B` (the trapezoid rule) |
    | `euler` | `I + delta A` | `delta B` (forward Euler) |

    Zero-order hold needs no inverse here: it is read off one matrix exponential of the augmented system, and for a
    diagonal `A` off `expm1`, so a singular `A` is fine.

    Args:
        A: `(n,)` for a diagonal system, `(n, n)` for a dense one, in 1/s.
        B: `(n,)` or `(n, m)`.
        delta: positive step sizes `(...)` in s, a number or a tensor of any shape.
        method: `zoh`, `bilinear` or `euler`.

    Returns:
        `A_bar (..., n)` or `(..., n, n)`, and `B_bar (..., *B.shape)`.

    Raises:
        InputError: shapes or dtypes that do not fit, a step size that is not positive, an unknown method.

    Source: Gu et al. 2022 (S4) section 2.3; Gu & Dao 2024 (Mamba) equation 4. Mamba itself takes `zoh` for `A` and
    `euler` for `B`; see `dmm.scan`.
    """
    A, B = together(A=A, B=B)
    delta = _step_sizes(delta, A)
    _check_system(A, B, delta, method)
    return _discretize_diagonal(A, B, delta, method) if A.ndim == 1 else _discretize_dense(A, B, delta, method)


def _step_sizes(delta: Tensor | float, A: Tensor) -> Tensor:
    if np.iscomplexobj(delta) if not isinstance(delta, Tensor) else delta.is_complex():
        raise InputError("delta: got complex numbers, allowed are positive step sizes")
    try:
        return torch.as_tensor(delta, dtype=A.dtype, device=A.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"delta: got a {type(delta).__name__}, allowed are positive step sizes") from None


def _check_system(A: Tensor, B: Tensor, delta: Tensor, method: str) -> None:
    if method not in get_args(Method):
        raise InputError(f"method: got {method!r}, allowed are {', '.join(get_args(Method))}")
    n = A.shape[0] if A.ndim else 0
    if A.ndim not in (1, 2) or (A.ndim == 2 and A.shape[1] != n) or n == 0:
        raise InputError(f"A: got shape {tuple(A.shape)}, allowed are (n,) for a diagonal and (n, n) for a dense A")
    if B.ndim not in (1, 2) or B.shape[0] != n:
        raise InputError(f"B: got shape {tuple(B.shape)}, allowed are ({n},) and ({n}, m)")
    if not bool((delta > 0).all()):
        raise InputError(f"delta: got {delta.min().item():g}, allowed are positive step sizes")


def _discretize_diagonal(A: Tensor, B: Tensor, delta: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    x = delta[..., None] * A  # (..., n)
    step = delta[..., None].expand_as(x)
    if method == "zoh":
        # (exp(x) - 1) / A without cancellation; the limit at A = 0 is delta
        A_bar, gain = x.exp(), torch.where(A == 0, step, torch.expm1(x) / torch.where(A == 0, torch.ones_like(A), A))
    elif method == "bilinear":
        A_bar, gain = (1 + x / 2) / (1 - x / 2), step / (1 - x / 2)
    else:
        A_bar, gain = 1 + x, step
    return A_bar, gain * B if B.ndim == 1 else gain[..., None] * B


def _discretize_dense(A: Tensor, B: Tensor, delta: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    n, columns = A.shape[0], B[:, None] if B.ndim == 1 else B  # (n, m)
    step, eye = delta[..., None, None], torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
    if method == "zoh":
        m = columns.shape[1]
        augmented = torch.cat([torch.cat([A, columns], 1), A.new_zeros(m, n + m)], 0)  # (n+m, n+m)
        # a batch of one: for a lone float64 matrix torch's result is off by 1e-11 instead of 1e-16
        exponential = torch.linalg.matrix_exp((step * augmented)[None])[0]
        A_bar, B_bar = exponential[..., :n, :n], exponential[..., :n, n:]
    elif method == "bilinear":
        left = eye - step / 2 * A
        A_bar = torch.linalg.solve(left, eye + step / 2 * A)
        B_bar = torch.linalg.solve(left, step * columns)
    else:
        A_bar, B_bar = eye + step * A, step * columns
    return A_bar, B_bar[..., 0] if B.ndim == 1 else B_bar


def recurrence(
    A_bar: Tensor, B_bar: Tensor, C: Tensor, u: Tensor, D: Tensor | float = 0.0, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run `h_t = A_bar h_{t-1} + B_bar u_t`, `y_t = C h_t + D u_t` over a scalar signal, one step after the other.

    Args:
        A_bar: `(n,)` diagonal or `(n, n)` dense.
        B_bar: `(n,)`.
        C: `(n,)`.
        u: `(l,)`.
        D: skip connection, a number.
        initial_state: `(n,)`, zero if not given.

    Returns:
        Outputs `y (l,)` and all states `(l, n)`.

    Raises:
        InputError: shapes or dtypes that do not fit, or an empty signal.
    """
    A_bar, B_bar, C, u, initial_state = together(
        ("initial_state",), A_bar=A_bar, B_bar=B_bar, C=C, u=u, initial_state=initial_state
    )
    n = A_bar.shape[-1]
    if A_bar.shape not in ((n,), (n, n)):
        raise InputError(f"A_bar: got shape {tuple(A_bar.shape)}, allowed are (n,) and (n, n)")
    if initial_state is not None and initial_state.shape != (n,):
        raise InputError(f"initial_state: got shape {tuple(initial_state.shape)}, allowed is ({n},)")
    if u.ndim != 1 or u.shape[0] == 0:
        raise InputError(f"u: got shape {tuple(u.shape)}, allowed is (l,) with at least one step")
    if B_bar.shape != (n,) or C.shape != (n,):
        raise InputError(f"B_bar, C: got shapes {tuple(B_bar.shape)} and {tuple(C.shape)}, allowed is ({n},) for both")
    h = A_bar.new_zeros(n) if initial_state is None else initial_state
    states = []
    for u_t in u:
        h = (A_bar * h if A_bar.ndim == 1 else A_bar @ h) + B_bar * u_t
        states.append(h)
    trajectory = torch.stack(states)  # (l, n)
    return trajectory @ C + D * u, trajectory


def convolution_kernel(A_bar: Tensor, B_bar: Tensor, C: Tensor, length: int) -> Tensor:
    """The impulse response `K_j = C A_bar^j B_bar` for `j = 0 .. length - 1`: `(length,)`.

    A time-invariant system started at zero is the causal convolution of its input with this kernel.

    Raises:
        InputError: `length` below 1, or dtypes that do not fit.
    """
    A_bar, B_bar, C = together(A_bar=A_bar, B_bar=B_bar, C=C)
    length = whole_number("length", length, 1)
    if A_bar.ndim == 1:
        powers = A_bar ** torch.arange(length, dtype=A_bar.dtype, device=A_bar.device)[:, None]  # (l, n)
        return powers @ (C * B_bar)
    kernel, state = [], B_bar
    for _ in range(length):
        kernel.append(C @ state)
        state = A_bar @ state
    return torch.stack(kernel)


def convolve(kernel: Tensor, u: Tensor) -> Tensor:
    """Causal convolution `y_t = sum_j kernel_j u_{t-j}` by FFT, in `O(l log l)`: `(l,), (l,) -> (l,)`.

    Both are zero-padded to twice the length, so that the circular convolution of the FFT does not wrap around.

    Raises:
        InputError: shapes or dtypes that do not fit.
    """
    kernel, u = together(kernel=kernel, u=u)
    if kernel.shape != u.shape:
        raise InputError(f"kernel: got shape {tuple(kernel.shape)}, allowed is that of u, {tuple(u.shape)}")
    size = 2 * u.shape[-1]
    spectrum = torch.fft.rfft(kernel, n=size) * torch.fft.rfft(u, n=size)
    wrapped: Tensor = torch.fft.irfft(spectrum, n=size)
    return wrapped[: u.shape[-1]]


def s4d_real(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """S4D-real: `A = -(1, 2, ..., n)`, shape `(n,)`; Mamba's initial diagonal.

    Source: Gu et al. 2022 (S4D) section 4; `A_log` in `mamba_ssm.modules.mamba_simple`. These are the eigenvalues of
    HiPPO-LegS, whose dense form is `hippo_legs`.
    """
    return -torch.arange(1, n + 1, dtype=dtype)


def hippo_legs(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS, the memory of scaled Legendre polynomials: dense `A (n, n)` and `B (n,)`.

    `A_ij = -sqrt((2i+1)(2j+1))` below the diagonal, `-(i+1)` on it, 0 above; `B_i = sqrt(2i+1)`.
    Source: Gu et al. 2020 (HiPPO) theorem 2.
    """
    root = torch.sqrt(2 * torch.arange(n, dtype=dtype) + 1)
    below = torch.tril(root[:, None] * root[None, :], diagonal=-1)
    return -(below + torch.diag(torch.arange(1, n + 1, dtype=dtype))), root


def random_diagonal(n: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A diagonal without structure: `A ~ -U[1, 2]`, shape `(n,)`.

    The "random" row of the paper's Table 8, as far as the released code lets one tell.
    """
    return -(1 + torch.rand(n, generator=generator, dtype=dtype))
