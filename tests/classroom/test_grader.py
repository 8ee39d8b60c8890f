"""Every wrong answer of tests/checks through the grader: no point, and a message that names the mistake."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from html import unescape
from pathlib import Path

import otter
import pytest
import torch
from classroom import Edition
from exercises import ROOT, Exercise
from otter.execute import Checker
from otter.nbmeta_config import NBMetadataConfig

from tests.classroom.wrong_answers import NAMELESS, wrong_answers

Build = Callable[[str], Edition]


@pytest.fixture
def grader(edition: Build, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> otter.Notebook:
    """What a student calls `grader`, with the tests of the autograder."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(edition(name).autograder) as file:
        file.extractall(tmp_path)
    return otter.Notebook(tests_dir=str(tmp_path / "tests"))


def test_wrong_answers_get_no_point_and_are_told_why(grader: otter.Notebook, name: str, exercise: Exercise) -> None:
    question, named = exercise.check.removeprefix("check_"), set()
    for answer, hint in wrong_answers(name[:2])[exercise.check]:
        result = grader.check(question, global_env={exercise.answer: answer})
        said = re.findall(r"CheckFailed: (.*)", result.summary())
        assert result.score == 0 and result.possible == 1 and len(said) == 1
        assert re.search(hint, said[0]), f"expected {hint!r}"
        assert said[0] in unescape(result._repr_html_())
        named |= {said[0]} if not NAMELESS.search(said[0]) else set()
    assert len(named) >= 5, f"{exercise.check} names {len(named)} mistakes of its wrong answers"


def test_no_function_gets_no_point(grader: otter.Notebook, name: str, exercise: Exercise) -> None:
    result = grader.check(exercise.check.removeprefix("check_"), global_env={})
    assert result.score == 0 and "run the cell that defines it" in result.summary()


def test_the_page_for_teachers_shows_what_the_grader_says(edition: Build, tmp_path: Path) -> None:
    def after_the_last(delta: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        return torch.exp((delta.sum() - delta.cumsum(0))[:, None] * A)

    with zipfile.ZipFile(edition("03_selective_scan").autograder) as file:
        test = file.extract("tests/kept.py", tmp_path)
    result = Checker.check(test, NBMetadataConfig(), global_env={"kept": after_the_last})
    page = (ROOT / "book" / "classroom.md").read_text("utf8")
    assert f"```text\n{result.summary()}\n```" in page
