"""Checks for the exercises of the book, one file per chapter: each says what is wrong, not only that something is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


class CheckFailed(AssertionError):
    """An exercise's answer is not right yet; the message is one line that names the likely mistake."""


def require(condition: bool, hint: str) -> None:
    """Raises `CheckFailed(hint)` unless the condition holds."""
    if not condition:
        raise CheckFailed(hint)


def passed(what: str) -> None:
    """Prints the one line that a right answer earns."""
    print(f"Correct: {what}")


def call(answer: Callable[..., Any], *arguments: Any) -> Any:
    """What `answer(*arguments)` returns, with an empty answer or an exception turned into `CheckFailed`."""
    require(callable(answer), "there is no function to check: run the cell that defines it")
    name = getattr(answer, "__name__", "your function")
    try:
        result = answer(*arguments)
    except Exception as error:
        raise CheckFailed(f"{name} raised {_in_one_line(error)}") from error
    require(
        result is not None and result is not ..., f"{name} returned nothing: no answer yet, or is its return missing?"
    )
    return result


def _in_one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def as_array(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """`value`, a tensor, array or list, as a float64 array of `shape`; `CheckFailed` if it is not one."""
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"{name}: expected numbers of shape {shape}, got {type(value).__name__}") from error
    require(array.shape == shape, f"{name}: expected shape {shape}, got {array.shape}")
    require(bool(np.isfinite(array).all()), f"{name}: contains NaN or infinity")
    return array


def close(left: Any, right: Any, tolerance: float = 1e-5) -> bool:
    """Same shape and equal up to `tolerance`, absolute and relative."""
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance))


def match(
    got: np.ndarray, expected: np.ndarray, mistakes: Mapping[str, np.ndarray], otherwise: str, tolerance: float = 1e-4
) -> None:
    """Says which known mistake `got` is, or `otherwise`, unless it equals `expected`."""
    if close(got, expected, tolerance):
        return
    for hint, wrong in mistakes.items():
        require(not close(got, wrong, tolerance), hint)
    require(False, otherwise)
