"""The classroom sources: one per chapter, and the same exercises as on the chapter's page."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import classroom
import exercises
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_page_and_source_show_the_same_exercises() -> None:
    hint = "change both, or run: python book/_tools/exercises.py draft NN_topic"
    assert exercises.disagreements() == [], hint


def test_a_change_on_either_side_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("notebooks", "notebooks/exercises"):
        (tmp_path / folder).mkdir()
        text = (ROOT / folder / "03_selective_scan.ipynb").read_text("utf8")
        (tmp_path / folder / "03_selective_scan.ipynb").write_text(text, "utf8")
    monkeypatch.setattr(exercises, "ROOT", tmp_path)
    assert exercises.disagreements() == []
    source = tmp_path / "notebooks" / "exercises" / "03_selective_scan.ipynb"
    text = source.read_text("utf8")
    changes = {
        "    summed = delta.cumsum(0)": ("    summed = delta", "What is kept: the code differs"),
        "in each state after each token": ("in each state", "What is kept: the prompt differs"),
        "## Exercise 3.1  What is kept": ("## Exercise 3.1  What stays", "other exercises"),
    }
    for old, (new, line) in changes.items():
        assert text.count(old) == 1
        source.write_text(text.replace(old, new), "utf8")
        assert [line in found for found in exercises.disagreements()] == [True]
    source.unlink()
    assert "only one of" in exercises.disagreements()[0]


def test_every_check_has_an_exercise_and_every_exercise_its_own_name(chapter: str) -> None:
    found = exercises.source_exercises(exercises.read(exercises.source_path(chapter)))
    module = importlib.import_module(f"dmm.checks.chapter_{chapter[:2]}")
    functions = [
        name for name, value in vars(module).items() if name.startswith("check_") and inspect.isfunction(value)
    ]
    assert sorted(exercise.check for exercise in found) == sorted(functions)
    assert 2 <= len(found) <= 4
    assert all(exercise.code and exercise.prompt and exercise.answer in exercise.code for exercise in found)


def test_prompts_read_outside_the_book(chapter: str) -> None:
    for exercise in exercises.source_exercises(exercises.read(exercises.source_path(chapter))):
        assert exercise.answer in exercise.prompt, "a prompt names the function to be written"
        for directive in (r"\{[\w-]+\}`", r"^:::", r"^```\{", r"\bchapter_\d", r"\]\((?!http)"):
            assert not re.search(directive, exercise.prompt + exercise.remarks, re.MULTILINE), directive


def test_every_source_has_the_same_settings(chapter: str) -> None:
    raw = [
        cell["source"] for cell in exercises.read(exercises.source_path(chapter))["cells"] if cell["cell_type"] == "raw"
    ]
    assert raw.count(exercises.CONFIG) == 1 and raw[0] == exercises.CONFIG


def test_the_same_grader_is_named_everywhere() -> None:
    assert f'"{classroom.GRADER}"' in (ROOT / "pyproject.toml").read_text("utf8")
    pins = (ROOT / ".ci" / "pins-classroom.txt").read_text("utf8")
    assert re.search(r"^otter-grader==7\.", pins, re.MULTILINE)


def test_solutions_lose_their_bodies_and_keep_their_heads() -> None:
    code = (
        '@cache\ndef helper():\n    return 1\n\n\nclass Mixer(nn.Module):\n    """D."""\n\n    def __init__(self, d):\n'
        '        super().__init__()\n        self.d = d\n\n    def forward(self, x):\n        """x (b, l, d)."""\n'
        "        return x + helper()"
    )
    marked = exercises.marked(code, "Mixer")
    assert marked.count("# BEGIN SOLUTION NO PROMPT") == 1 and marked.count("# END SOLUTION") == 3
    assert marked.startswith("# BEGIN SOLUTION NO PROMPT\n@cache\ndef helper():\n    return 1\n# END SOLUTION")
    assert '"""x (b, l, d)."""\n        # BEGIN SOLUTION\n        return x' in marked
