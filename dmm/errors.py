"""The two ways in which a call can fail on purpose, its warnings, and the checks of plain arguments that raise them."""

from __future__ import annotations

import math
import operator
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
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
        if _is_truth_value(value) or isinstance(value, str | bytes):
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
        if _is_truth_value(value) or isinstance(value, str | bytes):
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
    if not _is_truth_value(value):
        raise InputError(f"{name}: got {_shown(value)}, allowed are True and False")
    return bool(value)


def require_choice(name: str, value: Any, literal: Any) -> None:
    """Passes when `value` is one of the strings of a `Literal`.

    Raises:
        InputError: it is not.
    """
    if value not in get_args(literal):
        raise InputError(f"{name}: got {_shown(value)}, allowed are {', '.join(map(str, get_args(literal)))}")


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "can't start new thread")
"""What torch and the C++ library say in a RuntimeError where Python has MemoryError."""


def outside_reason(error: BaseException) -> str | None:
    """One line on a failure whose cause is the machine, not the program: memory, files, libraries; None for any other.

    Where the memory runs out while a module is imported, that shows as one of many errors; a limit on the address space
    is therefore named.
    """
    chain = list(_causes(error))
    memory = any(isinstance(each, MemoryError) or any(words in str(each) for words in NO_MEMORY) for each in chain)
    if memory:
        return f"memory: there is not enough for this{_limit()}"
    for kind, name in ((ImportError, "import"), (OSError, "system")):
        if found := next((each for each in reversed(chain) if isinstance(each, kind)), None):
            return f"{name}: {_shown_text(found)}{_limit()}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _shown_text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _limit() -> str:
    with suppress(ImportError, ValueError, OSError):  # there is no such module on Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            return f" (this process may have {limit // 2**20:,} MiB of address space, see `ulimit -v`)"
    return ""


def _is_truth_value(value: Any) -> bool:
    """Python's or numpy's, which is not imported for it: `dmm --help` needs no numpy."""
    kind = type(value)
    return isinstance(value, bool) or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def _is_whole_float(value: Any) -> bool:
    return not hasattr(value, "__index__") and hasattr(value, "__float__") and float(value).is_integer()


def _shown(value: Any) -> str:
    """What came, short enough for one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
