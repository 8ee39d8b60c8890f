"""What all config dataclasses have in common: plain values, checked fields, names and types of fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from dmm.errors import InputError, finite_number, true_or_false, whole_number

PLAIN: dict[str, Callable[[str, Any], Any]] = {
    "int": partial(whole_number, least=None),
    "float": finite_number,
    "bool": true_or_false,
}
"""What turns a value into the plain type that a field's annotation names."""


def plain_fields(config: Any) -> None:
    """Turn the numbers and truth values of a config dataclass, which may be numpy's, into Python's own.

    Raises:
        InputError: a value that is none of its field's type.
    """
    for field in dataclasses.fields(config):
        if plain := PLAIN.get(str(field.type)):
            object.__setattr__(config, field.name, plain(field.name, getattr(config, field.name)))  # it is frozen


def check_positive(config: object, *names: str) -> None:
    """Raise InputError unless these fields are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name}: got {getattr(config, name)}, allowed is at least 1")


def config_fields(config: type) -> dict[str, str]:
    """Names and types of the fields of a config dataclass, for error messages and `--set`."""
    return {field.name: str(field.type) for field in dataclasses.fields(config)}
