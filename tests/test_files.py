from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmm.errors import InputError
from dmm.files import read_file, read_json, strict_json, user_path


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home dir ä")
    assert user_path("out", "~/runs/mine/") == Path("/home dir ä/runs/mine")
    assert user_path("out", Path("~/runs")) == Path("/home dir ä/runs")
    assert user_path("out", "runs/~") == Path("runs/~")


@pytest.mark.parametrize("value", ["", "a\0b", None, 3, b"runs", "~nobody-of-that-name/runs"], ids=repr)
def test_what_no_path_can_be_is_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"^out: got "):
        user_path("out", value)


def test_files_are_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_file(file, 5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes, allowed are 4"):
        read_file(file, 4)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none", 5)


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises((InputError, IsADirectoryError)):
            read_file(path, 5)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"", b"[" * 100_000])
def test_what_is_no_json_is_said(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(InputError, match=r"run\.json is no JSON"):
        read_json(tmp_path / "run.json")


def test_json_is_strict_and_takes_numpys_values() -> None:
    value = {"a": np.nan, "b": [np.inf, np.float32(1.5), np.int64(2)], "c": np.array([1.0, -np.inf]), "d": Path("x")}
    text = strict_json(value)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": None, "b": [None, 1.5, 2], "c": [1.0, None], "d": "x"}
