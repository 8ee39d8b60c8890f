from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pytest
import torch

from dmm.errors import InputError, finite_number, require_choice, whole_number

WHOLE = [3, np.int64(3), np.uint8(3), 3.0, np.float32(3), torch.tensor(3), np.array(3)]
NOT_WHOLE = [3.5, np.float64("nan"), float("inf"), "3", b"3", True, None, [3], Fraction(7, 2), 3 + 0j, np.arange(2)]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_numbers_of_numpy_and_torch_are_whole_numbers(value: Any) -> None:
    number = whole_number("steps", value, 1)
    assert type(number) is int and number == 3


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_what_is_no_whole_number_is_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"^steps: got .*, allowed is a whole number of at least 1$"):
        whole_number("steps", value, 1)


def test_a_whole_number_is_within_its_bounds() -> None:
    assert whole_number("seed", 2**31 - 1, 0, 2**31 - 1) == 2**31 - 1
    for value in (-1, 2**31):
        with pytest.raises(InputError, match=f"got {value}, allowed is a whole number from 0 to 2147483647"):
            whole_number("seed", value, 0, 2**31 - 1)


@pytest.mark.parametrize("value", [0, -2.5, np.float32(1.5), np.int8(3), torch.tensor(0.5), Fraction(1, 2)], ids=repr)
def test_finite_numbers(value: Any) -> None:
    assert type(finite_number("target", value)) is float
    assert finite_number("target", value) == float(value)


@pytest.mark.parametrize(
    "value", [np.nan, -np.inf, "5", None, True, [1.0, 2.0], 10**400, 1j], ids=lambda v: repr(v)[:9]
)
def test_what_is_no_finite_number_is_named_in_one_short_line(value: Any) -> None:
    with pytest.raises(InputError, match=r"^target: got .*, allowed is a finite number$") as caught:
        finite_number("target", value)
    assert len(str(caught.value)) < 150 and "\n" not in str(caught.value)


def test_choices() -> None:
    require_choice("padding", "zeros", Literal["zeros", "released"])
    with pytest.raises(InputError, match="padding: got 'ones', allowed are zeros, released"):
        require_choice("padding", "ones", Literal["zeros", "released"])
