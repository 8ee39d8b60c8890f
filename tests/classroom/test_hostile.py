"""Thirty submissions that would stop the grader, forge its results or spoil the others: each ends as its own line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import classroom
import nbformat
import pytest
import sandbox

SECONDS, MEMORY = 120, 2**30
ENDLESS = ("loops", "sleeps_in_the_answer")  # these get less time, as they take all of it
GRADER = "import otter\n\ngrader = otter.Notebook()"  # as at the top of every notebook that is handed out
TEST = """\
from otter.test_files import test_case

OK_FORMAT = False
name = "answer"
points = 1


@test_case(points=None, hidden=False)
def test_answer(answer):
    assert answer() == 42
"""
HONEST = "def answer():\n    return 42"
FORGED = {"tests": [{"name": "answer", "score": 100.0, "max_score": 3.0, "output": "all passed"}]}
FORGE = f"""\
import json, os, pathlib
forged = json.dumps({FORGED!r})
for place in pathlib.Path(os.environ["TMPDIR"]).parent.rglob("*"):
    if place.is_dir():
        (place / "results.json").write_text(forged)
"""
OTHERS = """\
import os, pathlib, shutil
for place in (pathlib.Path({to!r}), pathlib.Path({submissions!r})):
    {act}
"""
# By name: code of a cell in front of a right answer.
HOSTILE = {
    "exits": "raise SystemExit(0)",
    "exits_at_once": "import os\nos._exit(0)",
    "exits_in_the_answer": "import os\ndef answer():\n    os._exit(0)",
    "raises_system_exit_in_the_answer": "def answer():\n    raise SystemExit",
    "kills_itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "kills_its_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "kills_everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "kills_its_group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "aborts": "import os\nos.abort()",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "loops": "while True:\n    pass",
    "sleeps_in_the_answer": "def answer():\n    import time\n    time.sleep(10_000)",
    "leaves_a_process": (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    ),
    "leaves_a_thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()",
    "takes_all_memory": "taken = [bytearray(2**26) for _ in range(10_000)]",
    "takes_all_memory_at_once": "taken = bytearray(2**45)",
    "fills_the_disk": "with open('big', 'wb') as file:\n    while True:\n        file.write(bytes(2**24))",
    "prints_without_end": "for _ in range(300):\n    print('x' * 10_000)",
    "changes_directory": "import os\nos.chdir('/')",
    "removes_its_folder": "import os, shutil\nshutil.rmtree(os.getcwd(), ignore_errors=True)",
    "removes_all_of_its_own": (
        "import os, shutil\nshutil.rmtree(os.path.dirname(os.environ['TMPDIR']), ignore_errors=True)"
    ),
    "forges_its_results": FORGE,
    "forges_its_results_and_exits": FORGE + "os._exit(0)",
    "forges_its_results_and_kills": FORGE + "import signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "writes_into_the_results": OTHERS.replace("{act}", "(place / 'scores.csv').write_text('mallory,100,3')"),
    "removes_the_others": OTHERS.replace("{act}", "shutil.rmtree(place, ignore_errors=True)"),
    "reads_the_others": OTHERS.replace("{act}", "assert not list(place.glob('*')), 'their answers'"),
    "changes_the_package": "import dmm.checks, pathlib\npathlib.Path(dmm.checks.__file__).open('a').write('# mine')",
    "calls_home": "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=5)",
    "reads_secrets": "import os\nassert 'DMM_TEST_SECRET' not in os.environ",
}
NEED_WALLS = ("kills_everybody", "changes_the_package", "writes_into_the_results", "removes_the_others")
"""Would reach, where a machine has no namespaces, what is not theirs: the processes of this test and its checkout."""
USUAL = (
    *("exits", "exits_at_once", "exits_in_the_answer", "kills_everybody", "crashes", "loops", "leaves_a_process"),
    *("takes_all_memory", "fills_the_disk", "removes_all_of_its_own", "forges_its_results_and_exits", "calls_home"),
    *("writes_into_the_results", "removes_the_others", "changes_the_package", "reads_secrets"),
    *("sleeps_in_the_answer", "forges_its_results_and_kills"),
)
"""Tried in every run, as each takes seconds; all thirty with DMM_ALL_HOSTILE=1 in the environment."""
CHOSEN = {name: code for name, code in HOSTILE.items() if name in USUAL or os.environ.get("DMM_ALL_HOSTILE")}
NO_NOTEBOOK = {"is_text": "no notebook", "is_empty": "", "is_deep": "[" * 100_000}


def _notebook(*cells: str, grader: bool = True) -> str:
    code = [nbformat.v4.new_code_cell(cell) for cell in (*([GRADER] if grader else []), *cells)]
    return nbformat.writes(nbformat.v4.new_notebook(cells=code))


def _write_autograder(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("otter_config.json", json.dumps({"show_all_public": True, "lang": "python"}))
        file.writestr("tests/answer.py", TEST)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path, dict[Path, bytes]]:
    """Rows by submission, the folder of the results, and what was in the submissions."""
    folder = tmp_path_factory.mktemp("hostile")
    submissions, to, autograder = folder / "submissions", folder / "graded", folder / "answer.zip"
    submissions.mkdir()
    _write_autograder(autograder)
    texts = {"ann": _notebook(HONEST), "wrong": _notebook("def answer():\n    return 41")}
    for name, code in CHOSEN.items():
        if name in NEED_WALLS and not sandbox.isolation():
            continue
        code = code.replace("{to!r}", repr(str(to))).replace("{submissions!r}", repr(str(submissions)))
        texts[name] = _notebook(code, *([] if "def answer" in code else [HONEST]))
    texts |= NO_NOTEBOOK | {"zoe": _notebook(HONEST)}
    paths = []
    for name, text in texts.items():
        paths.append(submissions / f"{name}.ipynb")
        paths[-1].write_text(text, "utf8")
    before = {path: path.read_bytes() for path in paths}
    rows = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMM_TEST_SECRET", "s3cret")
        for place, seconds, chosen in (
            (folder / "endless", 15, [path for path in paths if path.stem in ENDLESS]),
            (to, SECONDS, [path for path in paths if path.stem not in ENDLESS]),
        ):
            table = classroom.grade_all(chosen, autograder, place, seconds, MEMORY)
            with table.open(encoding="utf8") as file:
                rows |= {row[0]: row[1:] for row in csv.reader(file)}
    for name in ENDLESS:
        (to / f"{name}.txt").write_bytes((folder / "endless" / f"{name}.txt").read_bytes())
    return rows, to, before


def test_everybody_has_a_line_of_their_own(graded: tuple[dict[str, list[str]], Path, dict[Path, bytes]]) -> None:
    rows, to, before = graded
    assert set(rows) == {"submission", *(path.stem for path in before)} and len(HOSTILE) == 30
    assert set(USUAL) <= HOSTILE.keys()
    assert all((to / f"{path.stem}.txt").read_text("utf8").strip() for path in before)
    assert not [path.name for path in to.iterdir() if path.suffix not in (".csv", ".txt")]


def test_the_honest_are_graded_before_and_after(graded: tuple[dict[str, list[str]], Path, dict[Path, bytes]]) -> None:
    rows, _, before = graded
    assert rows["ann"] == rows["zoe"] == ["1", "1"] and rows["wrong"] == ["0", "1"]
    if sandbox.isolation():
        assert all(path.read_bytes() == content for path, content in before.items())


def test_nobody_gets_more_than_there_is(graded: tuple[dict[str, list[str]], Path, dict[Path, bytes]]) -> None:
    rows, to, _ = graded
    assert {tuple(row) for name, row in rows.items() if name != "submission"} <= {("1", "1"), ("0", "1"), ("", "")}
    for name in ("exits_at_once", "forges_its_results_and_exits", "forges_its_results_and_kills", *NO_NOTEBOOK):
        assert rows[name] != ["1", "1"], name
    assert "s3cret" not in "".join(path.read_text("utf8") for path in to.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loops", "endless loop"),
        ("sleeps_in_the_answer", "endless loop"),
        ("takes_all_memory", "GiB of memory"),
        ("is_text", "not graded: "),
    ],
)
def test_it_is_said_why(graded: tuple[dict[str, list[str]], Path, dict[Path, bytes]], name: str, said: str) -> None:
    rows, to, _ = graded
    assert rows[name] == ["", ""] and said in (to / f"{name}.txt").read_text("utf8")


@pytest.mark.skipif(not sandbox.isolation(), reason="this machine lets no user have namespaces")
class TestWalls:
    def _run(self, code: str, folder: Path, **changes: object) -> sandbox.Ended:
        settings = {"seconds": 20, "memory": 2**30, "environment": {"PATH": "/usr/bin:/bin"}} | changes
        return sandbox.run([sys.executable, "-I", "-c", code], folder, **settings)  # type: ignore[arg-type]

    def test_only_its_own_folder_can_be_written(self, tmp_path: Path) -> None:
        mine, other = tmp_path / "mine", tmp_path / "other"
        mine.mkdir()
        other.mkdir()
        assert self._run("open('here', 'w').write('x')", mine).code == 0 and (mine / "here").exists()
        ended = self._run(f"open({str(other / 'there')!r}, 'w')", mine)
        assert ended.code == 1 and "Read-only file system" in ended.output and not list(other.iterdir())

    def test_it_cannot_take_the_walls_down(self, tmp_path: Path) -> None:
        ended = self._run("import os, sys; sys.exit(os.system('mount -o remount,rw /') != 0)", tmp_path)
        assert ended.code != 0 and "denied" in ended.output

    def test_hidden_folders_are_empty(self, tmp_path: Path) -> None:
        mine, other = tmp_path / "mine", tmp_path / "other"
        mine.mkdir()
        other.mkdir()
        (other / "answers").write_text("42", "utf8")
        code = f"import os; print(os.listdir({str(other)!r}))"
        assert self._run(code, mine).output == "['answers']\n"
        assert self._run(code, mine, hidden=[other]).output == "[]\n"

    def test_no_network_but_its_own(self, tmp_path: Path) -> None:
        ended = self._run("import socket; print([name for _, name in socket.if_nameindex()])", tmp_path)
        assert "'lo'" in ended.output and "eth" not in ended.output

    def test_it_sees_no_process_but_its_own(self, tmp_path: Path) -> None:
        ended = self._run("import os; print(sum(name.isdigit() for name in os.listdir('/proc')))", tmp_path)
        assert int(ended.output) <= 3


@pytest.mark.parametrize("isolated", [False, True] if sandbox.isolation() else [False])
def test_nothing_outlives_its_submission(tmp_path: Path, isolated: bool) -> None:
    marker = f"outlives {tmp_path}"
    child = f"import time; time.sleep(300) # {marker}"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)"
    ended = sandbox.run(
        [sys.executable, "-c", code],
        tmp_path,
        seconds=20,
        memory=2**30,
        environment={"PATH": "/usr/bin:/bin"},
        isolated=isolated,
    )
    assert (ended.reason, ended.code) == ("exit", 0)
    assert marker not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_without_walls_there_are_still_limits(tmp_path: Path) -> None:
    def run(code: str, seconds: float = 20) -> sandbox.Ended:
        settings = {"memory": 2**28, "environment": {"PATH": "/usr/bin:/bin"}, "isolated": False}
        return sandbox.run([sys.executable, "-c", code], tmp_path, seconds=seconds, **settings)  # type: ignore[arg-type]

    assert run("while True: pass", seconds=1).reason == "time"
    assert run("x = [bytearray(2**24) for _ in range(1000)]; input()").reason == "memory"
    assert run("import os, signal; os.kill(os.getppid(), signal.SIGKILL)").reason == "supervisor"
    assert run("import sys; sys.exit(3)") == sandbox.Ended("exit", 3, "")


@pytest.mark.parametrize(
    ("cells", "points"),
    [((HONEST,), 1), (("def answer():\n    return 41",), 0), ((HOSTILE["exits_at_once"], HONEST), None)],
    ids=["honest", "wrong", "exits"],
)
def test_a_notebook_that_lost_its_grader_s_cell_is_graded_too(
    cells: tuple[str, ...], points: float | None, tmp_path: Path
) -> None:
    autograder, submission = tmp_path / "answer.zip", tmp_path / "bare.ipynb"
    _write_autograder(autograder)
    submission.write_text(_notebook(*cells, grader=False), "utf8")
    if points is None:
        with pytest.raises(classroom.GradingFailed, match="Kernel died"):
            classroom.grade(submission, autograder, SECONDS, MEMORY)
    else:
        assert classroom.grade(submission, autograder, SECONDS, MEMORY).points == points
