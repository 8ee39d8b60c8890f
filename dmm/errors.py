"""The two ways in which a call can fail on purpose, and the checks of plain arguments that raise them."""

from __future__ import annotations

import math
import operator
from typing import Any, get_args

import numpy as np


class InputError(ValueError):
    """What the caller passed is wrong: names the argument, what came and what is allowed. The command exits with 2."""


class RunError(RuntimeError):
    """The input was fine and the run failed all the same, as on a non-finite loss. The command exits with 1."""


LARGEST_SEED = 2**63 - 1
"""The most that a seed of torch's generators may be here."""


def whole_number(name: str, value: Any, least: int | None, most: int | None = None) -> int:
    """`value` as an int: numpy's integers and floats such as 1e3 are whole numbers, truth values and 10.5 are not.

    Raises:
        InputError: no whole number, or not within `least` to `most`, where these are given.
    """
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    allowed = f"a whole number{bounds}"
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = int(value) if _is_whole_float(value) else operator.index(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name}: got {_shown(value)}, allowed is {allowed}") from None
    if (least is not None and number < least) or (most is not None and number > most):
        raise InputError(f"{name}: got {number}, allowed is {allowed}")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` as a float: any number of Python's or numpy's but NaN and the infinities; text is none.

    Raises:
        InputError: something else.
    """
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: got {_shown(value)}, allowed is a finite number")
    return number


def true_or_false(name: str, value: Any) -> bool:
    """`value` as a bool: a truth value of Python's or numpy's, not a number that could pass for one.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name}: got {_shown(value)}, allowed are True and False")
    return bool(value)


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
