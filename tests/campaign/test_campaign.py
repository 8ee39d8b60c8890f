from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.base import make_base
from tests.campaign.play import play

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of memory as Linux has them")


def test_files_from_elsewhere_neither_run_code_nor_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    report = play(tmp_path, range(200), seed=0)
    assert report.faults == []
    assert report.codes[2] > 100 and report.codes[0] > 50  # some changes hurt and some do not


def test_a_pipe_in_a_files_place_as_a_whole_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    make_base(tmp_path)
    os.unlink(tmp_path / "run/run.json")
    os.mkfifo(tmp_path / "run/run.json")
    words = [sys.executable, "-m", "dmm.cli", "evaluate", "run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("dmm: error: ") and done.stderr.count("\n") == 1
