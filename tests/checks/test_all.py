"""What holds for every exercise's check: right answers by any road pass, every known mistake is called by its name."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dmm.checks
from dmm.checks import CheckFailed
from dmm.checks.check import Check
from dmm.data.windows import Windows
from tests.classroom.wrong_answers import wrong_answers

CHAPTERS = [f"{number:02}" for number in range(1, 18)]


def _module(chapter: str) -> Any:
    return importlib.import_module(f"dmm.checks.chapter_{chapter}")


def _checks() -> Iterator[Any]:
    for chapter in CHAPTERS:
        for name, value in vars(_module(chapter)).items():
            if isinstance(value, Check):
                yield pytest.param(value, id=f"{chapter}{name.lower()}")


ALL = list(_checks())


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _numbers_only(check: Check) -> Check:
    """Without what looks at how an answer came by its numbers: references are free in that."""
    return replace(check, forbidden=(), required=(), also=None)


def _answers(check: Check) -> dict[str, Callable[..., Any]]:
    """A function for each known mistake."""
    if isinstance(check.mistakes, Mapping):
        return dict(check.mistakes)
    made, cases = check.mistakes, check.cases()
    hints = dict.fromkeys(hint for case in cases for hint in made(*copy.deepcopy(case)))

    def does(hint: str) -> Callable[..., Any]:
        def answer(*given: Any) -> Any:
            wrong = made(*given)
            return wrong[hint] if hint in wrong else check.reference(*given)

        return answer

    return {hint: does(hint) for hint in hints}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("check", ALL)
class TestEveryCheck:
    def test_the_reference_passes(self, check: Check, dtype: torch.dtype, capsys: pytest.CaptureFixture) -> None:
        with _default(dtype), torch.no_grad():
            _numbers_only(check)(check.reference)
        printed = capsys.readouterr().out
        assert printed.startswith("Correct") and printed.count("\n") == 1

    def test_every_known_mistake_is_called_by_its_name(self, check: Check, dtype: torch.dtype) -> None:
        with _default(dtype):
            answers = _answers(check)
            assert len(answers) >= 8
            for hint, answer in answers.items():
                with pytest.raises(CheckFailed) as caught:
                    check(answer)
                assert caught.value.mistake == hint == str(caught.value)
                assert "\n" not in hint


def _wide(check: Check) -> list[int]:
    """The parts of an answer that have axes in some case."""
    right = [check.expected(case) for case in check.cases()]
    return [part for part in range(len(check.parts)) if any(each[part].ndim for each in right)]


def _disorders(axes: int) -> Iterator[Callable[[Any], Any]]:
    for axis in range(axes):
        yield lambda x, axis=axis: np.flip(x, axis)
        yield lambda x, axis=axis: np.roll(x, 1, axis)
        yield lambda x, axis=axis: np.delete(x, 0, axis)
        yield lambda x, axis=axis: np.delete(x, -1, axis)
    for one, other in itertools.pairwise(range(axes)):
        yield lambda x, one=one, other=other: x.swapaxes(one, other)


@pytest.mark.parametrize("check", ALL)
class TestEveryAnswer:
    def test_may_return_lists(self, check: Check) -> None:
        def as_lists(*given: Any) -> Any:
            result = check.reference(*given)
            parts = result if len(check.parts) > 1 else [result]
            lists = [
                part.tolist() if isinstance(part, Tensor | np.ndarray) and all(part.shape) else part for part in parts
            ]
            return lists if len(check.parts) > 1 else lists[0]

        with torch.no_grad():
            _numbers_only(check)(as_lists)

    def test_leaves_its_input_as_it_is(self, check: Check) -> None:
        def writes(value: Any) -> bool:
            if isinstance(value, Tensor | np.ndarray) and np.prod(value.shape):
                value[...] = ~value if value.dtype in (bool, torch.bool) else value + 1
                return True
            if isinstance(value, list):
                value.reverse()
                value.append(value[0])
                return True
            if isinstance(value, dict):
                value.pop(next(iter(value)))
                return True
            return False

        def writing(*given: Any) -> Any:
            result = copy.deepcopy(check.reference(*given))
            any(map(writes, given))
            return result

        holds_something = any(map(writes, copy.deepcopy(check.cases()[0])))
        if holds_something:
            with pytest.raises(CheckFailed, match="your function changed its input"), torch.no_grad():
                check(writing)

    def test_keeps_nothing_between_calls(self, check: Check) -> None:
        seen: list[Any] = []

        def forgetful(*given: Any) -> Any:
            seen.append(given)
            right = check.expected(given)
            parts = right if len(seen) <= len(check.cases()) else [part + 1 for part in right]
            return parts if len(check.parts) > 1 else parts[0]

        with pytest.raises(CheckFailed, match="another result the second time"):
            _numbers_only(check)(forgetful)

    def test_looks_at_every_number_that_it_is_given(self, check: Check) -> None:
        cases = check.cases()
        for place in range(max(map(len, cases))):
            values = {case[place] for case in cases if len(case) > place and isinstance(case[place], int | float)}
            for value in values if len(values) > 1 else ():

                def stubborn(*given: Any, place: int = place, value: Any = value) -> Any:
                    return check.reference(*given[:place], value, *given[place + 1 :])

                with pytest.raises(CheckFailed), torch.no_grad():
                    replace(check, forbidden=(), required=(), mistakes={}, probe=None)(stubborn)

    @pytest.mark.parametrize("change", [lambda x: -x - 1, lambda x: x + 1, lambda x: 1.1 * x + 0.1, np.zeros_like])
    def test_is_right_in_all_of_its_numbers(self, check: Check, change: Callable[[Any], Any]) -> None:
        for part in range(len(check.parts)):
            if not any(each[part].any() for each in map(check.expected, check.cases())) and change is np.zeros_like:
                continue  # what is 0 throughout, is

            def changed(*given: Any, part: int = part) -> Any:
                right = check.expected(given)
                right[part] = change(right[part])
                return right if len(right) > 1 else right[0]

            with pytest.raises(CheckFailed), torch.no_grad():
                replace(_numbers_only(check), mistakes={}, probe=None)(changed)

    def test_has_its_axes_in_order(self, check: Check) -> None:
        """No axis may be reversed, moved on by one, cut short at either end, or exchanged for another."""
        several = {part: max(right[part].ndim for right in map(check.expected, check.cases())) for part in _wide(check)}
        for part, axes in several.items():
            for change in _disorders(axes):

                def changed(*given: Any, part: int = part, change: Callable[[Any], Any] = change) -> Any:
                    right = check.expected(given)
                    right[part] = change(right[part])
                    return right if len(right) > 1 else right[0]

                with pytest.raises(CheckFailed), torch.no_grad():
                    replace(_numbers_only(check), mistakes={}, probe=None)(changed)

    def test_meets_cases_of_unlike_sizes(self, check: Check) -> None:
        def size(value: Any) -> Any:
            if isinstance(value, Tensor | np.ndarray):
                return tuple(value.shape)
            if isinstance(value, Windows):
                return tuple(value.states.shape)
            return len(value) if isinstance(value, list | dict) else value if isinstance(value, int | float) else None

        sizes = {tuple(map(size, case)) for case in check.cases()}
        assert len(sizes) >= 3


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_enough_wrong_answers_are_kept(chapter: str) -> None:
    """Eight for each check, and three of them misconceptions that it knows, rather than numbers that are off."""
    kept = wrong_answers(chapter)
    names = {name for name, value in vars(_module(chapter)).items() if name.startswith("check_") and callable(value)}
    assert set(kept) == names
    for name in names:
        known = set()
        for answer, _ in kept[name]:
            with pytest.raises(CheckFailed) as caught:
                getattr(_module(chapter), name)(answer)
            known.add(caught.value.mistake)
        assert len(kept[name]) >= 8 and len(known - {""}) >= 3, name


def test_every_check_says_what_it_asks_for() -> None:
    for chapter in CHAPTERS:
        for name, value in vars(_module(chapter)).items():
            if name.startswith("check_") and inspect.isfunction(value):
                assert "answer" in (inspect.getdoc(value) or "")


@pytest.mark.parametrize("answer", [None, ..., 3, lambda *given: None, lambda *given: ...])
@pytest.mark.parametrize("check", ALL[:3])
def test_no_answer_yet_is_told_so(check: Check, answer: Any) -> None:
    with pytest.raises(CheckFailed, match=r"no function to check|returned nothing"):
        check(answer)


def test_an_answer_that_fails_later_is_told_where() -> None:
    check = Check(
        reference=lambda a, b: a / (b + 1), cases=lambda: [(4, 1), (3, -0.5)], mistakes={}, praise="", parts=("it",)
    )
    with pytest.raises(CheckFailed, match=r"raised ZeroDivisionError: .*, for a = 3, b = -0.5"):
        check(lambda a, b: a / (b + 1) if b == 1 else a / 0)


def test_a_mistake_is_not_named_where_it_explains_only_some_cases() -> None:
    check = Check(
        reference=lambda a: a + 1, cases=lambda: [(2,), (5,)], mistakes={"doubled": lambda a: 2 * a}, praise=""
    )
    with pytest.raises(CheckFailed, match=r"^doubled$"):
        check(lambda a: 2 * a)
    with pytest.raises(CheckFailed, match="the result: not right yet, for a = 2: expected 3, got 4") as caught:
        check(lambda a: 4)
    assert not caught.value.mistake


def test_a_part_may_be_explained_alone() -> None:
    check = Check(
        reference=lambda a: (a, a + 1),
        cases=lambda: [(2,), (5,)],
        mistakes={"first doubled": lambda a: (2 * a, a + 1)},
        praise="",
        parts=("one", "two"),
    )
    with pytest.raises(CheckFailed, match=r"^first doubled$"):
        check(lambda a: (2 * a, 77))
    with pytest.raises(CheckFailed, match="two: not right yet"):
        check(lambda a: [a, 77])
    with pytest.raises(CheckFailed, match="return two things: one and two"):
        check(lambda a: a)


def test_numbers_of_many_kinds() -> None:
    expected = [[1.0, 2.0]]
    for given in (torch.tensor([[1, 2]]), np.array(expected), [torch.tensor([1.0, 2.0])], ((1, 2),), {"a": [1, 2]}):
        assert np.array_equal(np.squeeze(dmm.checks.numbers(given)), np.squeeze(expected))
    assert dmm.checks.numbers(torch.tensor([1.5], dtype=torch.bfloat16)).tolist() == [1.5]
    assert dmm.checks.numbers(torch.tensor([1 + 0j])).tolist() == [1]
    for wrong in ("text", [[1], [1, 2]], object(), np.array([1j])):
        with pytest.raises(TypeError):
            dmm.checks.numbers(wrong)
