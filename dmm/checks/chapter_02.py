"""Checks for chapter 2: state space models and discretization."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmm.checks import as_array, call, match, passed, require

Array = NDArray[np.float64]
_match = partial(match, tolerance=1e-5)  # its answers are all computed in float64


def check_backward_euler(answer: Callable[..., Any]) -> None:
    """`answer(A (n, n), B (n,), delta)` must give `(I - delta A)^{-1}` and `(I - delta A)^{-1} delta B`."""
    A, B, delta = np.array([[-0.5, 1.0, 0.6], [-4.0, -0.4, 0.3], [0.2, -0.7, -1.0]]), np.array([0.5, 1.0, -2.0]), 0.3
    result = call(answer, *(torch.tensor(matrix, dtype=torch.get_default_dtype()) for matrix in (A, B)), delta)
    require(isinstance(result, tuple | list) and len(result) == 2, "return two things: A_bar and B_bar")
    A_bar, B_bar = as_array(result[0], (3, 3), "A_bar"), as_array(result[1], (3,), "B_bar")
    step: Array = delta * A
    eye, inverse = np.eye(3), _inverse(np.eye(3) - step)
    _match(
        A_bar,
        inverse,
        {
            "A_bar is I + delta A: that is Euler's own rule, with the derivative at the beginning": eye + step,
            "A_bar is I - delta A itself: it multiplies h_t on the left, an inverse is missing": eye - step,
            "A_bar has the wrong sign before delta A: bring delta A h_t to the left side": _inverse(eye + step),
            "A_bar is transposed": inverse.T,
            "A_bar lacks the factor delta": _inverse(eye - A),
            "A_bar took reciprocals entry by entry; use torch.linalg.inv or solve": 1 / (eye - step),
        },
        "A_bar is not (I - delta A)^-1",
    )
    _match(
        B_bar,
        inverse @ (delta * B),
        {
            "B_bar is delta B: dividing by (I - delta A) changes the input term too": delta * B,
            "B_bar lacks the factor delta": inverse @ B,
            "B_bar is multiplied by the transposed inverse": inverse.T @ (delta * B),
        },
        "B_bar is not (I - delta A)^-1 delta B",
    )
    passed("backward Euler, both A_bar and B_bar.")


def check_causal_fft(answer: Callable[..., Any]) -> None:
    """`answer(kernel (l,), u (l,))` must give the causal convolution `(l,)`."""
    length = 12
    rng = np.random.default_rng(0)
    kernel, u = rng.normal(size=length), rng.normal(size=length)
    result = call(answer, *(torch.tensor(signal, dtype=torch.get_default_dtype()) for signal in (kernel, u)))
    size = getattr(result, "shape", (length,))
    require(len(size) != 1 or size[0] <= length, f"y has {tuple(size)} entries: cut it back to the first l = {length}")
    y = as_array(result, (length,), "y")
    full = np.convolve(kernel, u)
    future = np.array([kernel[: length - t] @ u[t:] for t in range(length)])
    _match(
        y,
        full[:length],
        {
            "the end of the signal leaks into its beginning: the FFT works on a circle, so pad with zeros": _circular(
                kernel, u
            ),
            "off by one: output t must contain input t itself": np.concatenate([[0.0], full[: length - 1]]),
            "off by one: output t contains input t + 1": full[1 : length + 1],
            "cut the other end: the first l outputs are the causal ones": full[-length:],
            "this is a correlation: output t looks at later inputs": future,
        },
        "y is not the causal convolution sum_j kernel_j u_(t-j)",
    )
    passed("a causal convolution, without any leak around the circle.")


def check_euler_limit(answer: Callable[..., Any]) -> None:
    """`answer(poles (n,) complex)` must give `min(-2 Re(pole) / |pole|^2)`."""
    # in this order each mistake meets first a system in which no other one gives the same number
    swinging, mixed, stiff = [-0.2 + 1.99j, -0.2 - 1.99j], [-1.0, -16.0, -0.5 + 3j, -0.5 - 3j], [-1.0, -50.0]
    for poles in (np.array(each_pole, dtype=complex) for each_pole in (swinging, mixed, stiff)):
        limit = float(as_array(call(answer, poles), (), "the limit"))
        each = -2 * poles.real / np.abs(poles) ** 2
        _match(
            np.array(limit),
            np.array(each.min()),
            {
                "the factor 2 is missing": np.array(each.min() / 2),
                "the sign is wrong: the real parts are negative, the limit is positive": np.array(-each.min()),
                "that is the slowest pole's limit; a fast one may bind sooner": each[poles.real.argmax()],
                "that is the fastest pole's limit; a slower one that swings may bind sooner": each[
                    np.abs(poles).argmax()
                ],
                "that is the limit of the tamest pole; all must be stable, so the smallest limit counts": np.array(
                    each.max()
                ),
                "that treats the poles as real numbers: |1 + delta pole| needs the real part too": np.array(
                    (2 / np.abs(poles)).min()
                ),
                "divide by the squared absolute value": np.array((-2 * poles.real / np.abs(poles)).min()),
            },
            "the limit is off; solve |1 + delta pole|^2 < 1 for delta",
        )
    passed("the strictest pole sets the limit.")


def _inverse(matrix: Array) -> Array:
    return np.linalg.inv(matrix).astype(np.float64)


def _circular(kernel: Array, u: Array) -> Array:
    return np.fft.irfft(np.fft.rfft(kernel) * np.fft.rfft(u), n=len(u))
