"""Checks for chapter 2: state space models and discretization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from dmm.checks.calls import Calls
from dmm.checks.cases import plain, tensor
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Poles = NDArray[np.complex128]


def check_backward_euler(answer: Callable[..., Any]) -> None:
    """`answer(A (n, n), B (n,), delta)` must give `(I - delta A)^{-1}` and `(I - delta A)^{-1} delta B`."""
    _BACKWARD_EULER(answer)


def check_causal_fft(answer: Callable[..., Any]) -> None:
    """`answer(kernel (l,), u (l,))` must give the causal convolution `(l,)`, by the FFT."""
    _CAUSAL_FFT(answer)


def check_euler_limit(answer: Callable[..., Any]) -> None:
    """`answer(poles (n,) complex)` must give `min(-2 Re(pole) / |pole|^2)`."""
    _EULER_LIMIT(answer)


# Backward Euler


def _systems() -> list[Case]:
    draw = np.random.default_rng(2)
    mild = [[-0.5, 1.0, 0.6], [-4.0, -0.4, 0.3], [0.2, -0.7, -1.0]]
    spring = [[0.0, 1.0], [-4.0, 0.0]]
    stiff = draw.normal(size=(4, 4)) - 30 * np.eye(4)  # I + delta A, and its powers, grow without bound
    systems = [
        (mild, [0.5, 1.0, -2.0], 0.3),
        (spring, [0, 1], 2.0),
        (stiff, draw.normal(size=4), 0.7),
        ([[-3.0]], [2], 1.5),
    ]
    return [(tensor(A), tensor(B), delta) for A, B, delta in systems]


def _backward_euler(A: Tensor, B: Tensor, delta: float) -> tuple[Array, Array]:
    step, force = delta * plain(A), delta * plain(B)
    inverse: Array = np.linalg.inv(np.eye(len(step)) - step).astype(np.float64)
    return inverse, inverse @ force


def _backward_euler_mistakes(A: Tensor, B: Tensor, delta: float) -> dict[str, tuple[Array, Array]]:
    step, force = delta * plain(A), delta * plain(B)
    eye, inverse = np.eye(len(step)), np.linalg.inv(np.eye(len(step)) - step)
    half = np.linalg.inv(eye - step / 2)
    right = inverse @ force
    with np.errstate(divide="ignore"):
        entries = 1 / (eye - step)
    wrong_A = {
        "A_bar is I + delta A: that is Euler's own rule, with the derivative at the beginning": eye + step,
        "A_bar is I - delta A itself: it multiplies h_t on the left, an inverse is missing": eye - step,
        "A_bar has the wrong sign before delta A: bring delta A h_t to the left side": np.linalg.pinv(eye + step),
        "A_bar is transposed": inverse.T,
        "A_bar lacks the factor delta": np.linalg.inv(eye - step / delta),
        "A_bar took reciprocals entry by entry; use torch.linalg.inv or solve": entries,
        "A_bar is exp(delta A): that is the exact step, not one of Euler's": expm(step),
    }
    wrong_B = {
        "B_bar is delta B: dividing by (I - delta A) changes the input term too": force,
        "B_bar lacks the factor delta": right / delta,
        "B_bar is multiplied by the transposed inverse": inverse.T @ force,
        "B_bar takes A_bar for 1: it is A_bar times delta B, a product of matrix and vector": inverse.sum(1) * force,
        "B_bar is multiplied by A_bar twice: the input enters at the end of the step": inverse @ right,
    }
    return {
        "that is the bilinear rule, which takes the mean of both ends: take the end alone": (
            half @ (eye + step / 2),
            half @ force,
        ),
        **{hint: (wrong, right) for hint, wrong in wrong_A.items()},
        **{hint: (inverse, wrong) for hint, wrong in wrong_B.items()},
    }


_BACKWARD_EULER = Check(
    reference=_backward_euler,
    cases=_systems,
    mistakes=_backward_euler_mistakes,
    parts=("A_bar", "B_bar"),
    praise="backward Euler, both A_bar and B_bar.",
    otherwise="h_t = A_bar h_(t-1) + B_bar u_t does not solve h_t = h_(t-1) + delta (A h_t + B u_t)",
    tolerance=1e-5,
)


# A convolution that does not leak


def _signals() -> list[Case]:
    draw = np.random.default_rng(0)
    skewed = np.exp(draw.normal(size=17)) * np.append(np.zeros(9), np.ones(8))  # zero at first, then large
    pairs = [
        (draw.normal(size=12), draw.normal(size=12)),
        (draw.normal(size=7), draw.integers(-3, 4, size=7)),
        (np.linspace(1, 0.2, 17), -skewed),
        ([2.0], [-1.5]),
        ([1.0, -0.5], [3.0, 4.0]),
    ]
    return [(tensor(kernel), tensor(u)) for kernel, u in pairs]


def _causal(kernel: Tensor, u: Tensor) -> Array:
    return np.convolve(plain(kernel), plain(u))[: len(u)]


def _convolution_mistakes(kernel: Tensor, u: Tensor) -> dict[str, Array]:
    k, signal = plain(kernel), plain(u)
    length, full = len(signal), np.convolve(k, signal)
    odd = np.fft.rfft(k, n=2 * length - 1) * np.fft.rfft(signal, n=2 * length - 1)
    wrong = {
        "the end of the signal leaks into its beginning: the FFT works on a circle, so pad with zeros": (
            np.fft.irfft(np.fft.rfft(k) * np.fft.rfft(signal), n=length)
        ),
        "off by one: output t must contain input t itself": np.append(0.0, full[: length - 1]),
        "off by one: output t contains input t + 1": np.append(full, 0.0)[1 : length + 1],
        "cut the other end: the first l outputs are the causal ones": full[-length:],
        "cut the middle: the first l outputs are the causal ones": np.convolve(k, signal, "same"),
        "this is a correlation: output t looks at later inputs": np.array(
            [k[: length - t] @ signal[t:] for t in range(length)]
        ),
        "y has 2 l entries: cut it back to the first l": np.append(full, 0.0),
        "y has 2 l - 1 entries: cut it back to the first l": full,
        "the product of two signals is none of their spectra: multiply after rfft, then go back": k * signal,
    }
    if length > 1:
        hint = "irfft takes the length for even unless it is told: give it the n of rfft"
        wrong[hint] = np.fft.irfft(odd)[:length]
    return wrong


_CAUSAL_FFT = Check(
    reference=_causal,
    cases=_signals,
    mistakes=_convolution_mistakes,
    parts=("y",),
    praise="a causal convolution, without any leak around the circle.",
    otherwise="y is not the causal convolution sum_j kernel_j u_(t-j)",
    tolerance=1e-5,
    required=[
        (
            lambda: Calls(np.fft.rfft, np.fft.fft, builtins=("fft_rfft", "fft_fft", "r2c", "c2c")),
            "the numbers are right, but no FFT was used, which is what makes long kernels cheap: take torch.fft.rfft",
        )
    ],
)


# Euler's limit


def _poles() -> list[Case]:
    return [
        (np.array(poles, dtype=complex),)
        for poles in (
            [-0.2 + 1.99j, -0.2 - 1.99j],
            [-1.0, -16.0, -0.5 + 3j, -0.5 - 3j],
            [-1.0, -50.0],
            [-100.0, -0.5 + 3j, -0.5 - 3j],  # one swings, and the fast one binds
            [-7.0 - 2j, -0.25],
            [-3.0 + 4j, -3.0 - 4j, -20.0, -0.02 + 1j, -0.02 - 1j],  # the slowest binds, because it swings
            [-5.0, -1.0 + 20j, -1.0 - 20j],
            [-2.5],
        )
    ]


def _euler_limit(poles: Poles) -> float:
    return float(np.min(_limits(poles)))


def _limits(poles: Poles) -> Array:
    return np.asarray(-2 * poles.real / np.abs(poles) ** 2)


def _swinging_first(poles: Poles) -> float:
    swinging = poles[np.abs(poles.imag) > 0]
    chosen = swinging[np.abs(swinging.imag).argmax()] if len(swinging) else poles[np.abs(poles).argmax()]
    return _euler_limit(np.array([chosen]))


_EULER_LIMIT = Check(
    reference=_euler_limit,
    cases=_poles,
    mistakes={
        "the factor 2 is missing": lambda poles: _euler_limit(poles) / 2,
        "the sign is wrong: the real parts are negative, the limit is positive": lambda poles: -_euler_limit(poles),
        "that is the slowest pole's limit; another one may bind sooner": (
            lambda poles: _limits(poles)[poles.real.argmax()]
        ),
        "that is the limit of the pole nearest to zero; another one may bind sooner": (
            lambda poles: _limits(poles)[np.abs(poles).argmin()]
        ),
        "that is the fastest pole's limit; another one may bind sooner": lambda poles: _limits(poles)[
            np.abs(poles).argmax()
        ],
        "that is the limit of the pole that dies out first; another one may bind sooner": (
            lambda poles: _limits(poles)[poles.real.argmin()]
        ),
        "that is the limit of the pole that swings fastest; one that only decays may bind sooner": _swinging_first,
        "that is the limit of the tamest pole; all must be stable, so the smallest limit counts": (
            lambda poles: np.max(_limits(poles))
        ),
        "that treats the poles as real numbers: |1 + delta pole| needs the real part too": (
            lambda poles: np.min(2 / np.abs(poles))
        ),
        "that leaves out how fast a pole swings: |1 + delta pole| needs the imaginary part too": (
            lambda poles: np.min(-2 / poles.real)
        ),
        "divide by the squared absolute value": lambda poles: np.min(-2 * poles.real / np.abs(poles)),
        "that is the mean of the limits: all poles must be stable, so the smallest counts": (
            lambda poles: np.mean(_limits(poles))
        ),
        "that is each pole's own limit: all must be stable, so return the smallest": _limits,
    },
    parts=("the limit",),
    praise="the strictest pole sets the limit.",
    otherwise="the limit is off; solve |1 + delta pole|^2 < 1 for delta",
    tolerance=1e-5,
)
