"""What a dying process does to a test, and a dying worker to the whole run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.own_process import CANNOT, ROOT, render, run_python

DIES = """
import os, signal, time

def test_before():
    pass

def test_dies():
    os.kill(os.getpid(), signal.SIGBUS)
"""
HANGS = """
import time

def test_hangs():
    time.sleep(300)
"""
PASSES = "def test_passes():\n    pass\n"


def test_what_it_prints() -> None:
    assert run_python("import os; print(os.environ['ANSWER'])", ANSWER="42") == "42\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "died of SIGBUS"),
        ("raise ValueError('no')", r"exit code 1\n(?s:.*)ValueError: no"),
        ("import time; time.sleep(100)", "did not end within 2 s"),
    ],
)
def test_a_process_that_dies_fails_or_hangs_fails_the_test(code: str, said: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=said):
        run_python(code, seconds=2)


def test_what_cannot_be_tested_here_is_skipped_with_the_reason() -> None:
    code = f"import sys; print('more', 'no display', sep=chr(10), file=sys.stderr); sys.exit({CANNOT})"
    with pytest.raises(pytest.skip.Exception, match=r"^no display$"):
        run_python(code)


@pytest.mark.skipif(sys.platform != "linux", reason="the variable counts on Linux")
def test_no_renderer_is_a_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(pytest.skip.Exception, match="cannot render without a screen"):
        render("print('drawn')")


def run_of_two_files(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The run of a folder with this project's settings, two workers; it must end."""
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir=.", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *settings, *options, "-n", "2", "--dist", "loadfile", "."]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(("first", "lost"), [(DIES, "test_dies"), (HANGS, "test_hangs")])
def test_a_lost_worker_ends_the_run_with_a_failure(tmp_path: Path, first: str, lost: str) -> None:
    (tmp_path / "test_first.py").write_text(first, "utf8")
    (tmp_path / "test_second.py").write_text(PASSES, "utf8")
    done = run_of_two_files(tmp_path, "-o", "faulthandler_timeout=3")
    assert done.returncode == 1, done.stdout
    assert re.search(rf"crashed while running 'test_first.py::{lost}'", done.stdout)


def test_a_kernel_that_dies_fails_its_cell_at_once(tmp_path: Path) -> None:
    shutil.copy(ROOT / "notebooks" / "conftest.py", tmp_path)
    cells = ["print(1)", "import os, signal\nos.kill(os.getpid(), signal.SIGBUS)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    nbformat.write(notebook, tmp_path / "dying.ipynb")
    done = run_of_two_files(tmp_path, "--nbval-lax", "--nbval-current-env")
    assert done.returncode == 1 and "the kernel died while this cell ran" in done.stdout, done.stdout
    assert "1 failed, 1 passed" in done.stdout
