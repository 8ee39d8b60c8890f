"""The two ways in which a call of this package can fail on purpose, its warnings, and checks of plain arguments."""

from __future__ import annotations

import math
import operator
import warnings
from typing import Any, get_args


class InputError(ValueError):
    """What the caller passed is wrong: names the argument, what came and what is allowed. The command exits with 2."""


class DataWarning(UserWarning):
    """The data can be used, though not all that is in them: names what, and what helps. The command goes on."""


def warn(message: str) -> None:
    """A `DataWarning` of one line."""
    warnings.warn(" ".join(message.split()), DataWarning, stacklevel=3)


class RunError(RuntimeError):
    """The input was fine and the run failed all the same, as on a non-finite loss. The command exits with 1."""


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` as an int: numpy's integers and floats such as 1e3 are whole numbers, truth values and 10.5 are not.

    Raises:
        InputError: no whole number, or not within `least` to `most`.
    """
    allowed = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most}"
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = int(value) if _is_whole_float(value) else operator.index(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: got {_shown(value)}, allowed is {allowed}") from None
    if number < least or (most is not None and number > most):
        raise InputError(f"{name}: got {number}, allowed is {allowed}")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` as a float: any number of Python's or numpy's but NaN and the infinities; text is none.

    Raises:
        InputError: something else.
    """
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: got {_shown(value)}, allowed is a finite number")
    return number


def require_choice(name: str, value: Any, literal: Any) -> None:
    """Passes when `value` is one of the strings of a `Literal`.

    Raises:
        InputError: it is not.
    """
    if value not in get_args(literal):
        raise InputError(f"{name}: got {_shown(value)}, allowed are {', '.join(map(str, get_args(literal)))}")


def _is_whole_float(value: Any) -> bool:
    return not hasattr(value, "__index__") and hasattr(value, "__float__") and float(value).is_integer()


def _shown(value: Any) -> str:
    """What came, short enough for one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
