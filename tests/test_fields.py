from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from dmm.errors import InputError
from dmm.fields import Fields


@dataclass(frozen=True)
class Config:
    size: int
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    fast: bool = False


def config(**values: Any) -> Any:
    return Fields("file: config.", values).config(Config, {"size": 10})


class TestConfig:
    def test_what_is_missing_gets_the_default(self) -> None:
        assert config(size=3) == Config(3)

    def test_json_has_one_kind_of_number(self) -> None:
        assert config(size=3.0, rate=1).size == 3

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "file: config lacks size"),
            ({"size": 11}, "file: config.size: got 11"),
            ({"size": True}, "file: config.size: got True"),
            ({"size": "3"}, "file: config.size: got '3'"),
            ({"size": 3, "rate": float("nan")}, "file: config.rate: got nan"),
            ({"size": 3, "rate": None}, "file: config.rate: got None"),
            ({"size": 3, "kind": []}, "file: config.kind: got a list of 0 entries, allowed is a or b"),
            ({"size": 3, "fast": 1}, "file: config.fast: got 1, allowed is true or false"),
            ({"size": 3, "deep": 1}, "file: config does not fit this version of the package: it has no field 'deep'"),
        ],
    )
    def test_everything_else_is_named(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError) as caught:
            config(**values)
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", ["\ud800", "a\0b", "x" * 2000, 3, ["x"], {}])
def test_texts_can_be_printed_and_are_short(value: Any) -> None:
    with pytest.raises(InputError, match=r"^file: name: got .*, allowed is a text"):
        Fields("file: ", {"name": value}).text("name")
    with pytest.raises(InputError, match=r"^file: names: got .*, allowed is a list"):
        Fields("file: ", {"names": [value]}).texts("names")


def test_null_is_as_good_as_nothing() -> None:
    fields = Fields("file: ", {"a": None})
    assert (fields.text("a", "x"), fields.texts("a"), fields.whole("a", 0), fields.finite("a")) == ("x", (), None, None)
    assert fields.mapping("a") is None and not fields.flag("a")


@pytest.mark.parametrize("value", [[], None, 1, "x"])
def test_no_object(value: Any) -> None:
    with pytest.raises(InputError, match=r"^file: part: got .*, allowed is a JSON object"):
        Fields("file: ", {"part": value}).part("part")
