"""Checks for the exercises of the book, one file per chapter: each says what is wrong, not only that something is.

What they are made of: this module's helpers; `check.Check`, which compares an answer with a reference on several cases
and names a mistake only if that very mistake gives the same numbers on all of them; `calls.Calls`, which sees what an
answer calls; and `randomness`, for answers that draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class CheckFailed(AssertionError):
    """An exercise's answer is not right yet; the message is one line that says what is wrong.

    Attributes:
        mistake: the known mistake that was made again and gave what the answer gave; empty if none did.
    """

    def __init__(self, message: str, mistake: str = "") -> None:
        super().__init__(message)
        self.mistake = mistake


def require(condition: bool, hint: str) -> None:
    """Raises `CheckFailed(hint)` unless the condition holds."""
    if not condition:
        raise CheckFailed(hint)


def mistaken(hint: str) -> CheckFailed:
    """The failure of an answer that does what a known mistake does."""
    return CheckFailed(hint, mistake=hint)


def passed(what: str) -> None:
    """Prints the one line that a right answer earns."""
    print(f"Correct: {what}")


def call(answer: Callable[..., Any], *arguments: Any) -> Any:
    """What `answer(*arguments)` returns, with an empty answer or an exception turned into `CheckFailed`."""
    require(callable(answer), "there is no function to check: run the cell that defines it")
    name = getattr(answer, "__name__", "your function")
    try:
        result = answer(*arguments)
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"{name} raised {_in_one_line(error)}") from error
    require(
        result is not None and result is not ..., f"{name} returned nothing: no answer yet, or is its return missing?"
    )
    return result


def _in_one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def numbers(value: Any) -> np.ndarray:
    """A tensor, an array, or a list or dict of them, as float64, of whatever shape; NaN and infinity stay as they are.

    Raises:
        TypeError: there are none in it, or not of one shape.
    """
    array = np.asarray(_plain(value))
    if np.iscomplexobj(array) and np.allclose(array.imag, 0, atol=1e-6 * (1 + np.abs(array).max(initial=0))):
        array = array.real
    if array.dtype.kind not in "biuf":
        raise TypeError(f"no real numbers: {type(value).__name__}")
    return array.astype(np.float64)


def _plain(value: Any) -> Any:
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).resolve_conj().numpy()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        try:
            return np.array([_plain(each) for each in value])
        except ValueError as error:
            raise TypeError("parts of unlike shapes") from error
    return value


def as_array(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """`value`, a tensor, array or list, as a float64 array of `shape`; `CheckFailed` if it is not one."""
    try:
        array = numbers(value)
    except TypeError as error:
        raise CheckFailed(f"{name}: expected numbers of shape {shape}, got {type(value).__name__}") from error
    require(array.shape == shape, f"{name}: expected shape {shape}, got {array.shape}")
    require(bool(np.isfinite(array).all()), f"{name}: contains NaN or infinity")
    return array


def close(left: Any, right: Any, tolerance: float = 1e-5) -> bool:
    """Same shape and equal up to `tolerance`, absolute and relative; NaN is equal to NaN."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def match(
    got: np.ndarray, expected: np.ndarray, mistakes: Mapping[str, np.ndarray], otherwise: str, tolerance: float = 1e-4
) -> None:
    """Says which known mistake `got` is, or `otherwise`, unless it equals `expected`."""
    if close(got, expected, tolerance):
        return
    for hint, wrong in mistakes.items():
        if close(got, wrong, tolerance):
            raise mistaken(hint)
    require(False, otherwise)
