import numpy as np
import pytest
import scipy.fft
import torch

from dmm.checks import CheckFailed, chapter_02


def backward_euler(A, B, delta):
    left = torch.eye(len(A)) - delta * A
    return torch.linalg.inv(left), torch.linalg.solve(left, delta * B)


def A_bar_changed(change):
    return lambda A, B, delta: (change(torch.eye(len(A)), A, delta), backward_euler(A, B, delta)[1])


def B_bar_changed(change):
    return lambda A, B, delta: (backward_euler(A, B, delta)[0], change(torch.eye(len(A)) - delta * A, B, delta))


def convolve(kernel, u, size):
    return torch.fft.irfft(torch.fft.rfft(kernel, n=size) * torch.fft.rfft(u, n=size), n=size)


def causal_fft(kernel, u):
    return convolve(kernel, u, 2 * len(u))[: len(u)]


def odd(kernel, u):
    size = 2 * len(u) - 1
    product = torch.fft.rfft(kernel, n=size) * torch.fft.rfft(u, n=size)
    return torch.fft.irfft(product)[: len(u)] if len(u) > 1 else causal_fft(kernel, u)


def by_hand(kernel, u):
    return torch.stack([(kernel[: t + 1] * u[: t + 1].flip(0)).sum() for t in range(len(u))])


def series(A, B, delta):
    """1 + x + x^2 + ..., which diverges for large steps."""
    power, total = torch.eye(len(A)), torch.zeros_like(A)
    for _ in range(100):
        total, power = total + power, power @ (delta * A)
    return total, total @ (delta * B)


def swinging(poles):
    moving = poles[np.abs(poles.imag) > 0]
    pole = moving[np.abs(moving.imag).argmax()] if len(moving) else poles[np.abs(poles).argmax()]
    return -2 * pole.real / np.abs(pole) ** 2


def with_library(kernel, u, fft):
    size = 2 * len(u)
    return fft.irfft(fft.rfft(kernel.numpy(), size) * fft.rfft(u.numpy(), size), size)[: len(u)]


def euler_limit(poles):
    return np.min(-2 * poles.real / np.abs(poles) ** 2)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_02.check_backward_euler, backward_euler),
        (chapter_02.check_causal_fft, causal_fft),
        (chapter_02.check_causal_fft, lambda kernel, u: with_library(kernel, u, np.fft)),
        (chapter_02.check_causal_fft, lambda kernel, u: with_library(kernel, u, scipy.fft)),
        (chapter_02.check_euler_limit, euler_limit),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


def test_right_answers_pass_in_double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        chapter_02.check_backward_euler(backward_euler)
        chapter_02.check_causal_fft(causal_fft)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (A_bar_changed(lambda eye, A, delta: eye + delta * A), "Euler's own rule"),
        (A_bar_changed(lambda eye, A, delta: eye - delta * A), "an inverse is missing"),
        (A_bar_changed(lambda eye, A, delta: torch.linalg.inv(eye + delta * A)), "wrong sign"),
        (A_bar_changed(lambda eye, A, delta: torch.linalg.inv(eye - delta * A).T), "A_bar is transposed"),
        (A_bar_changed(lambda eye, A, delta: torch.linalg.inv(eye - A)), "A_bar lacks the factor delta"),
        (A_bar_changed(lambda eye, A, delta: 1 / (eye - delta * A)), "reciprocals"),
        (A_bar_changed(lambda eye, A, delta: torch.linalg.matrix_exp(delta * A)), "exact step"),
        (B_bar_changed(lambda left, B, delta: delta * B), "B_bar is delta B"),
        (B_bar_changed(lambda left, B, delta: torch.linalg.solve(left, B)), "B_bar lacks the factor delta"),
        (B_bar_changed(lambda left, B, delta: torch.linalg.solve(left.T, delta * B)), "transposed inverse"),
        (B_bar_changed(lambda left, B, delta: -delta * B), "does not solve"),
        (B_bar_changed(lambda left, B, delta: delta * B[:, None]), "expected shape"),
        (series, "contains NaN"),
        (lambda A, B, delta: backward_euler(A, B, delta)[0], "two things"),
        (lambda A, B, delta: ..., "returned nothing"),
    ],
)
def test_wrong_backward_euler_is_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_02.check_backward_euler(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda kernel, u: convolve(kernel, u, len(u)), "leaks into its beginning"),
        (lambda kernel, u: convolve(kernel, u, 2 * len(u)), "cut it back"),
        (lambda kernel, u: torch.cat([torch.zeros(1), causal_fft(kernel, u)[:-1]]), "must contain input t itself"),
        (lambda kernel, u: convolve(kernel, u, 2 * len(u))[1 : len(u) + 1], r"contains input t \+ 1"),
        (lambda kernel, u: convolve(kernel, u, 2 * len(u) - 1)[-len(u) :], "cut the other end"),
        (lambda kernel, u: causal_fft(kernel, u.flip(0)).flip(0), "correlation"),
        (lambda kernel, u: kernel * u, "none of their spectra"),
        (odd, "irfft takes"),
        (by_hand, "no FFT was used"),
        (lambda kernel, u: None, "returned nothing"),
    ],
)
def test_wrong_convolutions_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_02.check_causal_fft(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda poles: euler_limit(poles) / 2, "factor 2"),
        (lambda poles: -euler_limit(poles), "sign is wrong"),
        (lambda poles: np.max(-2 * poles.real / np.abs(poles) ** 2), "tamest"),
        (lambda poles: euler_limit(poles[poles.real.argmax()]), "slowest pole's limit"),
        (lambda poles: euler_limit(poles[np.abs(poles).argmin()]), "nearest to zero"),
        (lambda poles: euler_limit(poles[np.abs(poles).argmax()]), "fastest pole's limit"),
        (lambda poles: euler_limit(poles[poles.real.argmin()]), "dies out first"),
        (lambda poles: np.min(2 / np.abs(poles)), "real part"),
        (lambda poles: np.min(-2 * poles.real / np.abs(poles)), "squared"),
        (lambda poles: swinging(poles), "swings fastest"),
        (lambda poles: 0.07, "the limit is off"),
        (lambda poles: -2 * poles.real / np.abs(poles) ** 2, "own limit"),
        (lambda poles: None, "returned nothing"),
    ],
)
def test_wrong_limits_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_02.check_euler_limit(answer)
