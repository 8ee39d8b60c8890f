"""What is told apart when numbers of two processors are compared."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.close import assert_same_but_for_rounding, differences


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"a": [1, 2.0, None, "x", True]}, {"a": [1, 2.0 * (1 + 1e-9), None, "x", True]}),
        ([3314.75705071765], [3314.7570507176497]),
        ([0.0, float("nan")], [1e-17, float("nan")]),
    ],
)
def test_rounding_is_let_pass(found: Any, expected: Any) -> None:
    assert_same_but_for_rounding(found, expected)


@pytest.mark.parametrize(
    ("found", "expected", "line"),
    [
        ({"a": {"b": [1.0, 2.0]}}, {"a": {"b": [1.0, 2.1]}}, ".a.b[1]: 2.0 and 2.1"),
        ({"a": 1}, {"b": 1}, ".: keys ['a'] and ['b']"),
        ({"a": [1]}, {"a": [1, 2]}, ".a: 1 and 2 values"),
        ([10**9], [10**9 + 1], "[0]: 1000000000 and 1000000001"),  # counts are exact
        ([1], [1.0], "[0]: 1 and 1.0"),
        ([True], [1], "[0]: True and 1"),
        ([0.0], [1e-9], "[0]: 0.0 and 1e-09"),
        ([float("nan")], [1.0], "[0]: nan and 1.0"),
        ({"a": None}, {"a": 0.0}, ".a: None and 0.0"),
        (["x"], ["y"], "[0]: 'x' and 'y'"),
    ],
)
def test_all_else_is_named(found: Any, expected: Any, line: str) -> None:
    assert differences(found, expected) == [line]
    with pytest.raises(AssertionError, match=re.escape(line)):
        assert_same_but_for_rounding(found, expected)
