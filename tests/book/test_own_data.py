"""The page on own data: its Python runs as it stands, and its commands exist."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from dmm.cli import app
from tests.book.running import blocks_of, run_blocks
from tests.global_state import put_back_after

PAGE = Path(__file__).resolve().parents[2] / "book" / "own_data.md"
BLOCKS = blocks_of(PAGE)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a reader has: a folder to work in, no data sets, and files of that folder that can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with put_back_after():  # the page registers its environment
        yield tmp_path
    sys.modules.pop("corridor", None)


def test_python_blocks_run_in_order_and_print_what_the_page_shows(empty_folder: Path) -> None:
    assert run_blocks(PAGE, empty_folder) > 0


def commands() -> list[list[str]]:
    lines = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    inline = re.findall(r"`(dmm [^`]+)`", PAGE.read_text("utf8"))
    words = [shlex.split(line, comments=True) for line in lines + inline]
    return [line[line.index("dmm") :] for line in words if "dmm" in line]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_exist_with_these_options(words: list[str]) -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert words[1] in known
    options = {option for parameter in known[words[1]].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_page_shows_what_the_refusals_say() -> None:
    """The phrases of the last table stand in the package."""
    source = "".join(path.read_text("utf8") for path in (PAGE.parents[1] / "dmm").rglob("*.py"))
    for phrase in (
        "does not say which environment",
        "cannot be made here",
        "cannot be stored",
        "has (observation, action) shapes",
        "are not supported",
        "allowed is -1 to 1",
        "NaN or infinity",
    ):
        assert phrase in source and phrase in PAGE.read_text("utf8")
