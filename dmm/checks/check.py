"""One exercise's check: an answer against a reference, on cases of unlike sizes and unlike data.

What is asked of every answer, whatever the exercise: it is right on all cases, gives the same when it is called again,
leaves its input as it was, and calls nothing that the exercise forbids. What it is told: a known mistake's name, but
only if that mistake, made here on the same cases, gives what the answer gave on every one of them.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dmm.checks import CheckFailed, call, close, mistaken, numbers, passed, require
from dmm.checks.calls import Calls

Array = NDArray[np.float64]
Function = Callable[..., Any]
Case = tuple[Any, ...]
"""The arguments of one call."""
Outcome = list[Array] | CheckFailed
"""What a call gave, part by part, or how it failed."""
Rule = tuple[Callable[[], Calls], str]
"""What is watched, and what is said to an answer that is right but calls it, or does not where it has to."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Compares answers with a reference. An instance is called with the answer and raises `CheckFailed`, or prints.

    Attributes:
        reference: the right function.
        cases: makes the cases, anew for every check, in torch's default precision; of several sizes, no two of them
            alike, so that no axis can stand in for another.
        mistakes: by what is said about each: the function that makes it. Or one function of a case, which returns what
            each mistake gives there; a mistake that it leaves out is right in this case.
        praise: what a right answer is told.
        parts: names of what is returned; several are a tuple or a list, or the rows of one array.
        otherwise: what a wrong answer is told that no known mistake explains; or a function of the case, what came and
            what is right, in the first part that differs.
        tolerance: absolute and relative.
        probe: tries a wrong answer, which no known mistake explains, on changed input, and says what it finds; or "".
        forbidden: ways that the exercise rules out; looked at last, when the numbers are right.
        required: ways of which it asks for this very one, looked at then, too.
        also: what else is asked of an answer whose numbers are right.
    """

    reference: Function
    cases: Callable[[], Sequence[Case]]
    mistakes: Mapping[str, Function] | Callable[..., Mapping[str, Any]]
    praise: str
    parts: tuple[str, ...] = ("the result",)
    otherwise: str | Callable[[Case, Array, Array], str] = ""
    tolerance: float = 1e-4
    probe: Callable[[Function, Case], str] | None = None
    forbidden: Sequence[Rule] = ()
    required: Sequence[Rule] = ()
    also: Callable[[Function], None] | None = None

    def __call__(self, answer: Function) -> None:
        """Raises `CheckFailed` with what is wrong about the answer, or prints one line of praise."""
        cases = self.cases()
        watched = [watch() for watch, _ in (*self.forbidden, *self.required)]
        found = [self._outcome(answer, case, watched) for case in cases]
        right = [self.expected(case) for case in cases]
        if not all(map(self._same, found, right)):
            raise self._diagnosis(answer, cases, found, right)
        again = self._outcome(answer, cases[0], [])
        stays = self._same(again, right[0])
        require(stays, "the same input gives another result the second time: keep nothing from one call to the next")
        for (_, complaint), calls in zip(self.forbidden, watched, strict=False):
            require(not calls.made, complaint)
        for (_, complaint), calls in zip(self.required, watched[len(self.forbidden) :], strict=True):
            require(bool(calls.made), complaint)
        if self.also is not None:
            call(functools.wraps(answer, updated=())(functools.partial(_looked_at, self.also, answer)))
        passed(self.praise)

    def expected(self, case: Case) -> list[Array]:
        """What is right in a case, part by part."""
        return self._split(self.reference(*copy.deepcopy(case)))

    def mistakes_in(self, cases: Sequence[Case]) -> dict[str, list[Outcome]]:
        """By its name, what each known mistake gives in each of the cases."""
        if isinstance(self.mistakes, Mapping):
            return {hint: [self._made(wrong, case) for case in cases] for hint, wrong in self.mistakes.items()}
        each = [self.mistakes(*copy.deepcopy(case)) for case in cases]
        hints = dict.fromkeys(hint for made in each for hint in made)
        return {
            hint: [
                self._split(made[hint]) if hint in made else self.expected(case)
                for made, case in zip(each, cases, strict=True)
            ]
            for hint in hints
        }

    def _outcome(self, answer: Function, case: Case, watched: Sequence[Calls]) -> Outcome:
        given = copy.deepcopy(case)
        try:
            with Calls.seen_by(watched):
                result = call(answer, *given)
        except CheckFailed as failed:
            require(callable(answer) and failed.__cause__ is not None, str(failed))
            return failed
        for name, before, after in zip(self._names(len(case)), case, given, strict=True):
            require(_alike(before, after), f"your function changed its input {name}: work on a copy")
        try:
            return self._split(result)
        except TypeError as error:
            raise CheckFailed(str(error)) from None

    def _made(self, wrong: Function, case: Case) -> Outcome:
        try:
            return self._split(wrong(*copy.deepcopy(case)))
        except Exception as error:
            return CheckFailed(type(error).__name__)

    def _split(self, result: Any) -> list[Array]:
        if len(self.parts) == 1:
            try:
                return [numbers(result)]
            except TypeError:
                raise TypeError(f"{self.parts[0]}: expected numbers, got {type(result).__name__}") from None
        names, count = _listed(self.parts), len(self.parts)
        if isinstance(result, Tensor | np.ndarray) and result.ndim:
            result = list(result)
        if not isinstance(result, tuple | list) or len(result) != count:
            raise TypeError(f"return {_COUNTS.get(count, count)} things: {names}")
        found = []
        for name, part in zip(self.parts, result, strict=True):
            try:
                found.append(numbers(part))
            except TypeError:
                raise TypeError(f"{name}: expected numbers, got {type(part).__name__}") from None
        return found

    def _same(self, one: Outcome, other: Outcome) -> bool:
        if isinstance(one, CheckFailed) or isinstance(other, CheckFailed):
            return isinstance(one, CheckFailed) and isinstance(other, CheckFailed)
        return all(close(a, b, self.tolerance) for a, b in zip(one, other, strict=True))

    def _diagnosis(
        self, answer: Function, cases: Sequence[Case], found: Sequence[Outcome], right: Sequence[list[Array]]
    ) -> CheckFailed:
        known = self.mistakes_in(cases)
        whole = range(len(self.parts))
        part = self._first_wrong_part(found, right)
        for chosen in (whole, [part]) if len(self.parts) > 1 and part is not None else (whole,):
            for hint, made in known.items():
                if self._explains(made, found, right, chosen):
                    return mistaken(hint)
        first = next(i for i in range(len(cases)) if not self._same(found[i], right[i]))
        got, shapes = found[first], [part.shape for part in right[first]]
        if self.probe and not isinstance(got, CheckFailed) and [part.shape for part in got] == shapes:
            noticed = self.probe(answer, cases[first])
            if noticed:
                return CheckFailed(noticed)
        return self._unexplained(cases[first], found[first], right[first])

    def _explains(
        self, made: Sequence[Outcome], found: Sequence[Outcome], right: Sequence[Outcome], parts: Sequence[int]
    ) -> bool:
        """Whether a mistake gives these parts as the answer does, in all cases, and not as the reference does."""
        if all(isinstance(each, CheckFailed) for each in made):
            return False
        alike = all(self._same(_only(a, parts), _only(b, parts)) for a, b in zip(made, found, strict=True))
        return alike and not all(self._same(_only(a, parts), _only(b, parts)) for a, b in zip(made, right, strict=True))

    def _first_wrong_part(self, found: Sequence[Outcome], right: Sequence[list[Array]]) -> int | None:
        for part in range(len(self.parts)):
            for got, best in zip(found, right, strict=True):
                if not isinstance(got, CheckFailed) and not close(got[part], best[part], self.tolerance):
                    return part
        return None

    def _unexplained(self, case: Case, found: Outcome, right: list[Array]) -> CheckFailed:
        where = described(self._names(len(case)), case)
        if isinstance(found, CheckFailed):
            return CheckFailed(f"{found}, for {where}")
        for name, got, best in zip(self.parts, found, right, strict=True):
            if got.shape != best.shape:
                return CheckFailed(f"{name}: expected shape {best.shape}, got {got.shape}, for {where}")
            if not np.isfinite(got).all():
                return CheckFailed(f"{name}: contains NaN or infinity, for {where}")
            if not close(got, best, self.tolerance):
                return CheckFailed(f"{self._complaint(name, case, got, best)}, for {where}{_values(got, best)}")
        raise AssertionError("the answer is right")

    def _complaint(self, name: str, case: Case, got: Array, best: Array) -> str:
        if callable(self.otherwise):
            return self.otherwise(case, got, best)
        return self.otherwise or f"{name}: not right yet"

    def _names(self, count: int) -> list[str]:
        return list(inspect.signature(self.reference).parameters)[:count]


def _looked_at(also: Callable[[Function], None], answer: Function) -> bool:
    also(answer)
    return True


_COUNTS = {2: "two", 3: "three"}


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _only(outcome: Outcome, parts: Sequence[int]) -> Outcome:
    return outcome if isinstance(outcome, CheckFailed) else [outcome[part] for part in parts]


def described(names: Sequence[str], case: Case) -> str:
    """The arguments of a case in a few words: short ones by their values, long ones by their shape."""
    return ", ".join(filter(None, map(_described, names, case)))


def _described(name: str, value: Any) -> str:
    if isinstance(value, bool | int | float | str | np.number):
        return f"{name} = {value}"
    if isinstance(value, list | dict) and len(repr(value)) <= 60:
        return f"{name} = {value}"
    if isinstance(value, Tensor | np.ndarray):
        small = value.ndim == 1 and len(value) <= 8
        return f"{name} = {_short(np.asarray(value))}" if small else f"{name} {tuple(value.shape)}"
    return f"{len(value)} {name}" if isinstance(value, list | dict | tuple) else ""


def _values(got: Array, right: Array) -> str:
    """What came and what is right, where that is short."""
    return f": expected {_short(right)}, got {_short(got)}" if right.size <= 8 else ""


def _short(array: Array) -> str:
    text = np.array2string(array, precision=4, separator=", ", suppress_small=True, max_line_width=10_000)
    return f"{float(array):.6g}" if array.ndim == 0 else " ".join(text.split())


def _alike(before: Any, after: Any) -> bool:
    """Whether an argument is as it was: same values, types and shapes. What has none, such as a function, is."""
    if isinstance(before, Tensor | np.ndarray):
        if before.dtype != after.dtype:
            return False
        one, other = (np.asarray(each.detach() if isinstance(each, Tensor) else each) for each in (before, after))
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(before, nn.Module):
        return _alike(before.state_dict(), after.state_dict()) and before.training == after.training
    if isinstance(before, Mapping):
        return list(before) == list(after) and all(_alike(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(_alike, before, after))
    if is_dataclass(before):
        return all(_alike(getattr(before, field.name), getattr(after, field.name)) for field in fields(before))
    if isinstance(before, bool | int | float | str | np.number):
        return bool(before == after)
    return True
