"""`.ci/setup` with an interpreter, a pip and system tools that only write down what they are asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/bash
# Real Python for what it is asked about itself, and a diary for all else.
case "$*" in
    "-c import sys; sys.exit(sys.version_info < (3, 10))") exit ${TOO_OLD:-0} ;;
    "-c import venv, ensurepip") exit ${NO_VENV:-0} ;;
    "-c import sys; sys.exit(sys.version_info < (3, 11))") exit ${PYTHON_3_10:-0} ;;
    -c*) exec "$REAL" "$@" ;;
    --version) echo "Python 3.8.18" ;;
    "-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv >>diary ;;
    *--version) exit ${NO_PIP:-0} ;;
    *" show "*) exit 0 ;;
    *) echo "$*" >>diary; [ -z "${ENDS:-}" ] || kill -TERM $PPID; exit ${PIP_FAILS:-0} ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout's files that the set-up reads, in a folder with a space."""
    here = tmp_path / "a folder"
    (here / "tools").mkdir(parents=True)
    shutil.copytree(ROOT / ".ci", here / ".ci")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, here / name)
    tools = {
        "python3": PYTHON,
        "ldconfig": "#!/bin/sh\necho libEGL.so.1\n",
        "chromium": "#!/bin/sh\n",
        "firefox-esr": "#!/bin/sh\n",
    }
    for name, text in tools.items():
        (here / "tools" / name).write_text(text)
        (here / "tools" / name).chmod(0o755)
    return here


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "TORCH")}
    path = f"{folder / 'tools'}{os.pathsep}{env['PATH']}"
    env |= {"PATH": path, "REAL": sys.executable, "LANG": "C", "LC_ALL": "C", **variables}
    command = ["bash", str(folder / ".ci" / "setup"), *words]
    return subprocess.run(command, cwd=folder.parent, env=env, capture_output=True, text=True, timeout=120)


def diary(folder: Path) -> list[str]:
    path = folder / "diary"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


@pytest.mark.parametrize(
    ("want", "pins"),
    [("book", "-r requirements.txt"), ("classroom", "-r .ci/pins-classroom.txt"), ("test", "-r .ci/pins-test.txt")],
)
def test_torch_comes_first_then_the_pins_then_this_package(folder: Path, want: str, pins: str) -> None:
    done = run(folder, want)
    assert (done.returncode, done.stderr) == (0, "")
    first, torch, packages, own = diary(folder)
    assert first == "venv" and torch.startswith(".ci/install_torch.py torch==")
    assert packages.endswith(pins) and own.endswith("--no-deps -e .")
    assert run(folder, want).returncode == 0
    assert "venv" not in diary(folder), "what is there is kept"


@pytest.mark.parametrize(
    ("want", "extras"), [("book", "[book]"), ("test", "[book,test,classroom,behaviours,bench,value-based,cluster]")]
)
def test_python_3_10_is_held_to_its_own_pins(folder: Path, want: str, extras: str) -> None:
    done = run(folder, want, PYTHON_3_10="1")
    assert (done.returncode, done.stderr) == (0, "")
    _, torch, packages = diary(folder)
    assert torch.startswith(".ci/install_torch.py torch==")
    assert packages.endswith(f"-c .ci/pins-python3.10.txt -e .{extras}")


def test_another_aim_is_refused(folder: Path) -> None:
    done = run(folder, "everything")
    assert done.returncode == 2 and done.stderr == "set-up: got everything; allowed: book, classroom, test\n"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PYTHON": "python-of-tomorrow"}, ["there is no python-of-tomorrow", "PYTHON=python3.11"]),
        ({"TOO_OLD": "1"}, ["Python 3.8.18; 3.10 or newer is needed", "PYTHON=python3.11"]),
        ({"NO_VENV": "1"}, ["without its venv module", "python3-venv"]),
        ({"PIP_FAILS": "1"}, ["not everything could be installed", "run this again"]),
    ],
)
def test_what_is_missing_is_said_in_one_line(folder: Path, variables: dict[str, str], words: list[str]) -> None:
    done = run(folder, **variables)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
    assert not (folder / ".venv" / ".installing").exists()


@pytest.mark.parametrize("left", ["killed", "without pip", "without Python"])
def test_a_half_made_environment_is_made_anew(folder: Path, left: str) -> None:
    variables = {"NO_PIP": "1"} if left == "without pip" else {}
    assert run(folder).returncode == 0
    diary(folder)
    if left == "killed":
        process = subprocess.Popen(["true"])
        process.wait()
        (folder / ".venv" / ".installing").write_text(f"{process.pid}\n")
    elif left == "without Python":
        (folder / ".venv" / "bin" / "python").unlink()
    assert run(folder, **variables).returncode == 0
    assert diary(folder)[0] == "venv"


def test_an_end_in_the_middle_leaves_a_mark(folder: Path) -> None:
    assert run(folder, ENDS="1").returncode == 130
    assert (folder / ".venv" / ".installing").exists()
    diary(folder)
    assert run(folder).returncode == 0 and diary(folder)[0] == "venv"


def test_two_at_once_do_not_install_into_one_environment(folder: Path) -> None:
    assert run(folder).returncode == 0
    diary(folder)
    (folder / ".venv" / ".installing").write_text(f"{os.getpid()}\n")
    done = run(folder)
    assert done.returncode == 1 and f"process {os.getpid()} is installing into .venv" in done.stderr
    assert not diary(folder) and (folder / ".venv" / ".installing").exists()
