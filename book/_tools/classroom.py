"""Builds the classroom set from notebooks/exercises: student edition, instructor edition and autograder per chapter.

What these are for is said in book/classroom.md.

    python book/_tools/classroom.py build                                  every chapter, into _build/classroom
    python book/_tools/classroom.py build 03_selective_scan --to FOLDER
    python book/_tools/classroom.py grade AUTOGRADER.zip SUBMISSION ... --to FOLDER    writes FOLDER/scores.csv
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import sandbox
from exercises import ROOT, names, read, source_path
from setup_cell import SETUP_CELL

from dmm.errors import InputError
from dmm.files import read_json

GRADER = "otter-grader>=7,<8"
MEMORY = 4 * 2**30
"""Bytes that a submission may have, with all its processes."""
RESULTS = 4 * 2**20
"""Bytes that a file of results may have."""
TEXT = 20_000
"""Characters of feedback on one exercise."""
PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "MINARI_DATASETS_PATH",
    "DMM_CACHE_DIR",
    "MUJOCO_GL",
)
"""Variables of the environment that a submission needs."""

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


def grade(
    submission: Path | bytes,
    autograder: Path,
    seconds: float = 300,
    memory: int = MEMORY,
    hidden: Sequence[Path] = (),
) -> Score:
    """Runs the command `otter run` on one submission, in the sandbox and in a folder of its own.

    Args:
        submission: a notebook, or what is in its file.
        memory: bytes that it may have.
        hidden: folders that it shall not see, such as those of the results and of other submissions.

    Raises:
        GradingFailed: there is no result after `seconds`, or none at all, or one that is not of these tests.
    """
    content = submission if isinstance(submission, bytes) else submission.read_bytes()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch).resolve()
        notebook, tests, out = folder / "submission.ipynb", folder / "autograder.zip", folder / "out"
        notebook.write_bytes(content)
        shutil.copyfile(autograder, tests)
        for each in (out, folder / "tmp"):
            each.mkdir()
        command = [sys.executable, "-m", "otter", "run", "--no-logo", "-a", str(tests), "-o", str(out), str(notebook)]
        ended = sandbox.run(
            command,
            folder,
            seconds=seconds,
            memory=memory,
            environment=_environment(folder),
            hidden=_visible_no_more(hidden),
        )
        if ended.reason == "time":
            raise GradingFailed(f"no result after {seconds:g} seconds: an endless loop?")
        if ended.reason == "memory":
            raise GradingFailed(f"more than {memory / 2**30:g} GiB of memory")
        if ended.reason == "supervisor":
            raise GradingFailed("it ended the process that watched over it")
        if ended.code:
            raise GradingFailed(_last_line(ended.output))
        try:
            results = read_json(out / "results.json", RESULTS)
        except OSError as error:
            raise GradingFailed(_last_line(ended.output)) from error
        except InputError as error:
            raise GradingFailed(f"its results are not those of the tests: {error}") from error
        return _score(results, _points(autograder))


def grade_all(
    submissions: Sequence[Path], autograder: Path, to: Path, seconds: float = 300, memory: int = MEMORY
) -> Path:
    """Grades each submission; writes `scores.csv` and a text for each into `to`, with a row as soon as there is one.

    All submissions and the autograder are read before the first one runs, and all results are kept in memory and
    written anew after each: what one of them does to these files makes no difference to the others.
    """
    to.mkdir(parents=True, exist_ok=True)
    alike = len({path.stem for path in submissions}) < len(submissions)
    contents = {path: path.read_bytes() if path.is_file() else b"" for path in submissions}
    rows, texts = [("submission", "points", "possible")], {}
    hidden = [to, *dict.fromkeys(path.parent for path in submissions)]
    with tempfile.TemporaryDirectory() as kept:
        tests = Path(kept, "autograder.zip")
        tests.write_bytes(autograder.read_bytes())
        tests_as_given = tests.read_bytes()
        for path in submissions:
            # Where every student's file has the same name, the folder tells whose it is.
            label = f"{path.parent.name}-{path.stem}" if alike else path.stem
            tests.parent.mkdir(exist_ok=True)
            tests.write_bytes(tests_as_given)
            try:
                score = grade(contents[path], tests, seconds, memory, hidden)
                rows.append((label, f"{score.points:g}", f"{score.possible:g}"))
                text = "\n\n".join(score.feedback.values())
            except GradingFailed as error:
                rows.append((label, "", ""))
                text = f"not graded: {error}"
            texts[label] = text + "\n"
            _write(to, rows, texts)
            print(f"{label}: {rows[-1][1]} of {rows[-1][2]}" if rows[-1][1] else f"{label}: {text}", flush=True)
    return to / "scores.csv"


def _write(to: Path, rows: Sequence[tuple[str, str, str]], texts: Mapping[str, str]) -> None:
    """All that is known so far; files that are as they should be stay, others are put back."""
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    for name, text in {
        **{f"{label}.txt": text for label, text in texts.items()},
        "scores.csv": table.getvalue(),
    }.items():
        path = to / name
        try:
            if path.read_text("utf8") == text:
                continue
        except (OSError, ValueError):
            pass
        to.mkdir(parents=True, exist_ok=True)
        fresh = to / f".{name}.new"
        fresh.write_text(text, "utf8")
        fresh.replace(path)


def _environment(folder: Path) -> dict[str, str]:
    """What a submission sees of this process's environment, which may hold secrets: little, and folders of its own."""
    own = {name: str(folder / "tmp") for name in ("HOME", "TMPDIR", "MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR")}
    own |= {"JUPYTER_DATA_DIR": str(folder / "tmp"), "JUPYTER_RUNTIME_DIR": str(folder / "tmp")}
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | own


def _visible_no_more(hidden: Sequence[Path]) -> list[Path]:
    """The folders that can be hidden: those without anything in them that grading needs."""
    needed = [Path(sys.prefix), Path(sys.base_prefix), ROOT / "dmm", ROOT / "book", Path(tempfile.gettempdir())]
    resolved = [path.resolve() for path in hidden if path.is_dir()]
    return [path for path in dict.fromkeys(resolved) if not any(each.resolve().is_relative_to(path) for each in needed)]


def _points(autograder: Path) -> dict[str, float]:
    """By its name, how many points each test of an autograder gives."""
    found = {}
    with zipfile.ZipFile(autograder) as file:
        for name in file.namelist():
            if name.startswith("tests/") and name.endswith(".py"):
                values = {
                    target.id: node.value.value
                    for node in ast.parse(file.read(name)).body
                    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
                    for target in node.targets
                    if isinstance(target, ast.Name)
                }
                found[str(values["name"])] = float(values["points"])
    return found


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip() and "[IPKernelApp]" not in line]
    return lines[-1][:500] if lines else "no result"


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
    grading.add_argument("--seconds", type=float, default=300, help="for each submission")
    grading.add_argument("--memory", type=float, default=MEMORY / 2**30, metavar="GIB", help="for each submission")
    given = parser.parse_args(arguments)
    if given.command == "grade":
        if not sandbox.isolation():
            print(
                "no namespaces here: submissions have limits of time and memory, but no walls (see book/classroom.md)"
            )
        memory = int(given.memory * 2**30)
        print(grade_all(given.submissions, given.autograder, given.to, given.seconds, memory))
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


def _score(results: Any, points: Mapping[str, float]) -> Score:
    """What the results say, if they are of the tests with these `points`.

    Raises:
        GradingFailed: they are of other tests, or give points that these do not.
    """
    try:
        graded = [test for test in results["tests"] if "max_score" in test]
        if not graded:
            raise GradingFailed(str(results["tests"][0]["output"]).splitlines()[0])
        found = {str(test["name"]): (float(test["score"]), float(test["max_score"])) for test in graded}
        feedback = {str(test["name"]): str(test["output"])[:TEXT] for test in graded}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise GradingFailed("its results are not those of the tests: not in their form") from error
    if {name: most for name, (_, most) in found.items()} != points or len(graded) != len(points):
        raise GradingFailed("its results are not those of the tests: other tests, or other points")
    if not all(score in (0, most) for score, most in found.values()):
        raise GradingFailed("its results are not those of the tests: points that no test gives")
    return Score(sum(score for score, _ in found.values()), sum(points.values()), feedback)


def _locked() -> dict[str, Any]:
    """Closed at first, on Colab (cellView) as in Jupyter, and not to be edited."""
    return {"cellView": "form", "jupyter": {"source_hidden": True}, "editable": False, "deletable": False}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
