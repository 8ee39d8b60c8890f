"""The built set: what a student sees, and what the command-line autograder gives for solutions and untouched stubs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import classroom
import exercises
import nbformat
import otter
import pytest
from address import configured
from nbclient import NotebookClient
from otter.check.utils import IPythonInterpreter
from setup_cell import SETUP_CELL

from tests.global_state import put_back_after

Build = Callable[[str], classroom.Edition]


def _sources(path: Path, kind: str = "code") -> list[str]:
    return [cell["source"] for cell in exercises.read(path)["cells"] if cell["cell_type"] == kind]


def test_autograder_gives_all_points_to_solutions_and_none_to_stubs(chapter: str, edition: Build) -> None:
    built = edition(chapter)
    solved = classroom.grade(built.instructor, built.autograder)
    count = len(exercises.source_exercises(exercises.read(exercises.source_path(chapter))))
    assert (solved.points, solved.possible) == (count, count), solved.feedback
    untouched = classroom.grade(built.student, built.autograder)
    assert (untouched.points, untouched.possible) == (0, count)
    assert all("CheckFailed: " in said for said in untouched.feedback.values())


def test_student_edition_has_no_solution(chapter: str, edition: Build) -> None:
    built = edition(chapter)
    student, instructor = _sources(built.student), _sources(built.instructor)
    assert student[0].strip() == SETUP_CELL and not _sources(built.student, "raw")
    text = "\n".join(student + _sources(built.student, "markdown"))
    assert "SOLUTION" not in text and "IGNORE" not in text
    assert not [cell for cell in exercises.read(built.student)["cells"] if cell.get("outputs")]
    for exercise in exercises.source_exercises(exercises.read(exercises.source_path(chapter))):
        assert f'grader.check("{exercise.check.removeprefix("check_")}")' in student
        lines = [line.strip() for line in exercise.code.splitlines() if len(line.strip()) > 20]
        heads = [line for line in lines if line.startswith(("def ", "class ", "import ", "from ", "#"))]
        assert not [line for line in lines if line in text and line not in heads]
        assert all(line in "\n".join(instructor) for line in lines if "SOLUTION" not in line)
        if exercise.remarks:
            assert exercise.remarks not in text


def _run(path: Path, changes: dict[str, str]) -> nbformat.NotebookNode:
    """Executes a notebook in its folder, with the cells that define the named functions replaced."""
    notebook = nbformat.read(path, as_version=4)
    for name, code in changes.items():
        (cell,) = [cell for cell in notebook.cells if cell.source.startswith(f"def {name}(")]
        cell.source = code
    nbformat.write(notebook, path)
    with put_back_after():  # the client answers Ctrl-C itself from now on
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def test_a_student_at_work(edition: Build, tmp_path: Path) -> None:
    built = edition("03_selective_scan")
    mine = tmp_path / "ann.ipynb"
    mine.write_bytes(built.student.read_bytes())
    right = (
        "def kept(delta, A):\n    summed = delta.cumsum(0)\n    between = (summed[:, None] - summed).tril()\n"
        "    return torch.exp(between[..., None] * A) * torch.ones_like(between).tril()[..., None]"
    )
    wrong = "def adjoint(a, dh):\n    return parallel_scan(a, dh)"
    notebook = _run(mine, {"kept": right, "adjoint": wrong})
    assert sorted(path.name for path in (tmp_path / "tests" / "03_selective_scan").iterdir()) == [
        "adjoint.py",
        "chunks.py",
        "kept.py",
    ]
    shown = {cell.source: str(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"}
    assert "passed!" in shown['grader.check("kept")'] and "Correct: " in shown['grader.check("kept")']
    assert "gradients flow from the last to the first" in shown['grader.check("adjoint")']
    (tmp_path / "ben.ipynb").write_text("no notebook", "utf8")
    table = classroom.grade_all([mine, tmp_path / "ben.ipynb"], built.autograder, tmp_path / "graded")
    assert table.read_text("utf8").splitlines() == ["submission,points,possible", "ann,1,3", "ben,,"]
    assert "gradients flow from the last to the first" in (tmp_path / "graded" / "ann.txt").read_text("utf8")
    assert "not graded: " in (tmp_path / "graded" / "ben.txt").read_text("utf8")


def test_a_submission_that_does_not_end_is_given_up(edition: Build) -> None:
    built = edition("03_selective_scan")
    with pytest.raises(classroom.GradingFailed, match="endless loop"):
        classroom.grade(built.student, built.autograder, seconds=0.05)


def test_on_colab_the_notebook_installs_the_grader_and_brings_its_tests(
    edition: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colab's kernel has no notebook file beside it; there, Otter accepts tests from files only."""
    installed: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(subprocess, "run", lambda command, check: installed.append(command))
    monkeypatch.setattr(
        type(IPythonInterpreter.COLAB.value), "running", lambda self: self.display_name == "Google Colab"
    )
    names: dict[str, object] = {}
    first, *cells = _sources(edition("03_selective_scan").student)[:3]
    with pytest.raises(SystemExit, match="no public address yet"):
        exec(first.replace(f"/{configured()[0]}/", "/OWNER_NAME/"), {})
    assert not installed
    with put_back_after():  # the chapter counts in double precision
        for cell in (first.replace("github.com/OWNER_NAME", "github.com/someone"), *cells):
            exec(cell, names)
    assert [command[-1].split("/")[-1] for command in installed] == ["decision-metamamba", classroom.GRADER]
    grader = names["grader"]
    assert isinstance(grader, otter.Notebook) and grader.interpreter is IPythonInterpreter.COLAB
    assert "returned nothing" in grader.check("kept", {"kept": lambda delta, A: ...}).summary()
