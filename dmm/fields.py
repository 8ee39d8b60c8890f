"""The entries of a JSON object from elsewhere, taken one by one, each with its type and its limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from dmm.errors import InputError, finite_number, whole_number

TEXT_LIMIT = 2**20
"""Characters of a text; the longest ones are environment specifications."""
NAME_LIMIT = 1000
"""Characters of an id, and entries of a list of names."""
LARGEST_INTEGER = 2**63 - 1


class Fields:
    """The entries of one JSON object.

    Args:
        where: what stands before the name of an entry in messages, as `run: /path/run.json: dataset.`.
        value: the object.

    Raises:
        InputError: no object. Each method raises it for an entry that is missing (where no `default` is given), of
            another type, or beyond its limits; the message names it.
    """

    def __init__(self, where: str, value: Any):
        if not isinstance(value, dict):
            raise InputError(f"{where.rstrip('. :')}: got {_kind(value)}, allowed is a JSON object")
        self.where, self.values = where, value

    def require(self, *names: str) -> None:
        """Passes when all of them are there."""
        missing = sorted(set(names) - self.values.keys())
        if missing:
            raise InputError(f"{self.where.rstrip('. :')} lacks {', '.join(missing)}")

    def part(self, name: str) -> Fields:
        """The object that is the entry `name`."""
        self.require(name)
        return Fields(f"{self.where}{name}.", self.values[name])

    def text(self, name: str, default: str | None = None, limit: int = NAME_LIMIT) -> str | None:
        """A text of at most `limit` characters that can be printed; `default` where it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or len(value) > limit or not _printable(value):
            raise self.wrong(name, f"a text of at most {limit:,} characters")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of names; empty where it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return ()
        short = isinstance(value, list) and len(value) <= NAME_LIMIT
        if not short or not all(isinstance(v, str) and len(v) <= NAME_LIMIT and _printable(v) for v in value):
            raise self.wrong(name, f"a list of at most {NAME_LIMIT:,} names")
        return tuple(value)

    def whole(self, name: str, least: int, most: int = LARGEST_INTEGER, default: int | None = None) -> int | None:
        """A whole number from `least` to `most`."""
        value = self.values.get(name)
        return default if value is None else whole_number(f"{self.where}{name}", value, least, most)

    def finite(self, name: str) -> float | None:
        """A finite number, None where it is missing or null."""
        value = self.values.get(name)
        return None if value is None else finite_number(f"{self.where}{name}", value)

    def numbers(self, name: str, most: int) -> list[float] | None:
        """A list of at most `most` finite numbers, None where it is missing or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > most:
            raise self.wrong(name, f"a list of at most {most:,} numbers")
        return [finite_number(f"{self.where}{name}", number) for number in value]

    def flag(self, name: str) -> bool:
        """True or false, false where it is missing or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return bool(value)

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object with anything in it, None where it is missing or null."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "a JSON object")
        return value

    def config(self, kind: type, limits: Mapping[str, int]) -> Any:
        """All entries as the config dataclass `kind`, which has more to say on ranges; missing ones get its defaults.

        Args:
            kind: with fields of type int, float, bool, str or a `Literal`.
            limits: the largest whole number of some fields.
        """
        hints, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
        unknown = sorted(self.values.keys() - fields.keys())
        if unknown:
            raise InputError(
                f"{self.where.rstrip('. :')} does not fit this version of the package: it has no field {unknown[0]!r}"
            )
        self.require(*(name for name, field in fields.items() if not _has_default(field)))
        values = {name: self._typed(name, hints[name], limits.get(name, LARGEST_INTEGER)) for name in self.values}
        try:
            return kind(**values)
        except InputError as error:
            raise InputError(f"{self.where}{error}") from None

    def wrong(self, name: str, allowed: str) -> InputError:
        """What to raise for an entry that is not what is allowed."""
        return InputError(f"{self.where}{name}: got {_kind(self.values.get(name))}, allowed is {allowed}")

    def _typed(self, name: str, hint: Any, most: int) -> Any:
        value = self.values[name]
        if hint is int:
            return whole_number(f"{self.where}{name}", value, -most - 1, most)
        if hint is float:
            finite_number(f"{self.where}{name}", value)
            return value
        if hint is bool:
            if not isinstance(value, bool):
                raise self.wrong(name, "true or false")
            return value
        if not isinstance(value, str):
            raise self.wrong(name, " or ".join(map(str, get_args(hint))) if get_origin(hint) else "a text")
        return value


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _printable(text: str) -> bool:
    """Whether it can be written to a terminal or a file name: no half of a surrogate pair, no end of a C string."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _kind(value: Any) -> str:
    """What came, short enough for one line."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,} entries"
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
