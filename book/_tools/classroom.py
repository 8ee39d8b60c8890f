"""Builds the classroom set from notebooks/exercises: student edition, instructor edition and autograder per chapter.

What these are for is said in book/classroom.md.

    python book/_tools/classroom.py build                                  every chapter, into _build/classroom
    python book/_tools/classroom.py build 03_selective_scan --to FOLDER
    python book/_tools/classroom.py grade AUTOGRADER.zip SUBMISSION ... --to FOLDER    writes FOLDER/scores.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from exercises import ROOT, names, read, source_path
from setup_cell import SETUP_CELL

GRADER = "otter-grader>=7,<8"

# Colab knows no folder beside the notebook, so the notebook carries its tests and writes them down itself.
GRADER_CELL = """\
# The grader. On Colab it is installed; its tests, one file per exercise, are written beside this notebook.
if "google.colab" in sys.modules:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "{grader}"], check=True)

from pathlib import Path

import otter

tests = {{
{tests}}}
folder = Path("tests/{name}")
folder.mkdir(parents=True, exist_ok=True)
for exercise, test in tests.items():
    (folder / f"{{exercise}}.py").write_text(test, "utf8")
grader = otter.Notebook(tests_dir=str(folder))"""


@dataclass(frozen=True)
class Edition:
    """The three files of one chapter."""

    student: Path
    instructor: Path
    autograder: Path


@dataclass(frozen=True)
class Score:
    """What the autograder gave one submission, and what it said about each exercise."""

    points: float
    possible: float
    feedback: dict[str, str]


class GradingFailed(RuntimeError):
    """The autograder gave no result: the submission is no notebook, ran out of time, or stopped the grader."""


def build(name: str, to: Path) -> Edition:
    """Writes `student/NAME.ipynb`, `instructor/NAME.ipynb` and `autograder/NAME.zip` under `to`."""
    from otter.assign import main as assign

    edition = Edition(
        to / "student" / f"{name}.ipynb", to / "instructor" / f"{name}.ipynb", to / "autograder" / f"{name}.zip"
    )
    for path in (edition.student, edition.instructor, edition.autograder):
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        assign(str(source_path(name)), scratch, no_run_tests=True)
        cell = grader_cell(name, made / "student" / "tests")
        for ours, theirs in ((edition.student, "student"), (edition.instructor, "autograder")):
            notebook = read(made / theirs / f"{name}.ipynb")
            after = 1 + next(i for i, each in enumerate(notebook["cells"]) if each["source"].strip() == SETUP_CELL)
            notebook["cells"].insert(after, nbformat.v4.new_code_cell(cell, metadata=_locked()))
            for each in notebook["cells"]:
                each["source"] = each["source"].rstrip()  # where solutions were cut off the end
            nbformat.write(notebook, ours)
        shutil.move(next((made / "autograder").glob("*.zip")), edition.autograder)
    return edition


def grader_cell(name: str, tests: Path) -> str:
    """The cell that sets up the grader, with the tests of folder `tests` inside it."""
    texts = {path.stem: path.read_text("utf8").strip() for path in sorted(tests.glob("*.py"))}
    lines = "".join(f'    "{test}": """{text}\n""",\n' for test, text in texts.items())
    if lines.count('"""') != 2 * len(texts) or "\\" in lines:
        raise ValueError(f"{name}: a test with a docstring or a backslash does not fit into the grader's cell")
    return GRADER_CELL.format(grader=GRADER, tests=lines, name=name)


def grade(submission: Path, autograder: Path, seconds: float = 300) -> Score:
    """Runs the command `otter run` on one submission, in a folder of its own.

    Raises:
        GradingFailed: there is no result after `seconds`, or none at all.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        command = [sys.executable, "-m", "otter", "run", "--no-logo", "-a", str(autograder), "-o", scratch]
        command.append(str(submission))
        try:
            # Otter's own folder lies in ours, so that nothing is left of a run that is cut off.
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, env={**os.environ, "TMPDIR": scratch}
            )
        except subprocess.TimeoutExpired as error:
            raise GradingFailed(f"no result after {seconds:g} seconds: an endless loop?") from error
        results = Path(scratch, "results.json")
        if not results.exists():
            raise GradingFailed(ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else "no result")
        return _score(json.loads(results.read_text("utf8")))


def grade_all(submissions: Sequence[Path], autograder: Path, to: Path) -> Path:
    """Grades each submission; writes `scores.csv` and one text of feedback for each into `to`."""
    to.mkdir(parents=True, exist_ok=True)
    alike = len({path.stem for path in submissions}) < len(submissions)
    rows = [("submission", "points", "possible")]
    for path in submissions:
        # Where every student's file has the same name, the folder tells whose it is.
        label = f"{path.parent.name}-{path.stem}" if alike else path.stem
        try:
            score = grade(path, autograder)
            rows.append((label, f"{score.points:g}", f"{score.possible:g}"))
            text = "\n\n".join(score.feedback.values())
        except GradingFailed as error:
            rows.append((label, "", ""))
            text = f"not graded: {error}"
        (to / f"{label}.txt").write_text(text + "\n", "utf8")
        print(f"{label}: {rows[-1][1]} of {rows[-1][2]}" if rows[-1][1] else f"{label}: {text}")
    with (to / "scores.csv").open("w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows(rows)
    return to / "scores.csv"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build")
    building.add_argument("names", nargs="*", metavar="NN_topic")
    building.add_argument("--to", type=Path, default=ROOT / "_build" / "classroom")
    grading = commands.add_parser("grade")
    grading.add_argument("autograder", type=Path)
    grading.add_argument("submissions", nargs="+", type=Path)
    grading.add_argument("--to", type=Path, default=Path("graded"))
    given = parser.parse_args(arguments)
    if given.command == "grade":
        print(grade_all(given.submissions, given.autograder, given.to))
        return 0
    return _build_and_verify(given.names or names(), given.to)


def _build_and_verify(chapters: Sequence[str], to: Path) -> int:
    """Builds each chapter and grades both editions: solutions must score full marks, untouched stubs none."""
    wrong = 0
    for name in chapters:
        edition = build(name, to)
        solved, untouched = (grade(path, edition.autograder) for path in (edition.instructor, edition.student))
        good = solved.points == solved.possible > 0 and untouched.points == 0
        wrong += not good
        print(
            f"{name}: solutions {solved.points:g} of {solved.possible:g} points, untouched student edition "
            f"{untouched.points:g}{'' if good else '  <- WRONG'}"
        )
    print(f"student editions, instructor editions and autograders are in {to}")
    return 1 if wrong else 0


def _score(results: dict[str, Any]) -> Score:
    graded = [test for test in results["tests"] if "max_score" in test]
    if not graded:
        raise GradingFailed(results["tests"][0]["output"].splitlines()[0])
    return Score(
        sum(test["score"] for test in graded),
        sum(test["max_score"] for test in graded),
        {test["name"]: test["output"] for test in graded},
    )


def _locked() -> dict[str, Any]:
    """Closed at first, on Colab (cellView) as in Jupyter, and not to be edited."""
    return {"cellView": "form", "jupyter": {"source_hidden": True}, "editable": False, "deletable": False}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
