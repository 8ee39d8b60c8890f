"""The wrong answers of tests/checks, for the grader: they are written down once, where the checks are tested."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

Answer = Callable[..., Any]

# What a check says of any answer that is no answer at all; such a message names no mistake.
NAMELESS = re.compile(
    r"expected shape|expected numbers|expected a number|returned nothing|raised \w+Error|NaN|no function"
)


def wrong_answers(chapter: str) -> dict[str, list[tuple[Answer, str]]]:
    """Check's name -> its wrong answers, each with a pattern that the message must match.

    They are the cases of the tests in `tests/checks/test_chapter_NN.py` that take `(answer, hint)`; each such test
    calls one check.
    """
    found: dict[str, list[tuple[Answer, str]]] = defaultdict(list)
    for test in vars(importlib.import_module(f"tests.checks.test_chapter_{chapter}")).values():
        for mark in getattr(test, "pytestmark", []):
            if mark.name == "parametrize" and _names(mark.args[0]) == ["answer", "hint"]:
                check = re.findall(r"\bcheck_\w+", inspect.getsource(inspect.unwrap(test)).split("def ", 1)[1])[0]
                found[check] += [tuple(getattr(case, "values", case)) for case in mark.args[1]]
    return found


def _names(argument: Any) -> list[str]:
    return re.findall(r"\w+", argument) if isinstance(argument, str) else list(argument)
