"""Numbers that were computed on two processors: the same but for rounding."""

from __future__ import annotations

import math
from typing import Any

ROUNDING = 1e-6
"""Of what is computed in double precision from the same numbers: sums and powers round otherwise elsewhere."""


def differences(found: Any, expected: Any, rel: float = ROUNDING, where: str = "") -> list[str]:
    """Where two JSON values differ: in kind, keys, length, text, or a float by more than `rel` of it (1e-12 at 0)."""
    here = where or "."
    if isinstance(found, dict) and isinstance(expected, dict):
        if found.keys() != expected.keys():
            return [f"{here}: keys {list(found)} and {list(expected)}"]
        return [line for key in found for line in differences(found[key], expected[key], rel, f"{where}.{key}")]
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{here}: {len(found)} and {len(expected)} values"]
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, rel, f"{where}[{i}]")]
    if isinstance(found, float) and isinstance(expected, float):
        alike = math.isclose(found, expected, rel_tol=rel, abs_tol=1e-12) or (
            math.isnan(found) and math.isnan(expected)
        )
    else:
        alike = type(found) is type(expected) and found == expected
    return [] if alike else [f"{here}: {found!r} and {expected!r}"]


def assert_same_but_for_rounding(found: Any, expected: Any, rel: float = ROUNDING) -> None:
    wrong = differences(found, expected, rel)
    if wrong:
        raise AssertionError("\n".join(wrong))
