"""The short queue of chapter 17: killed, it goes on to the same outcomes; and jobs that wait."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dmm.experiments.queue import claimed, do_job, outcome
from dmm.experiments.rehearsal import EVERY, UPDATES, nap, short_jobs, waits, work_through


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_a_killed_queue_goes_on_to_the_same_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))  # which `use_own_data` sets
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert work_through(calm) == ["done", "done"] and work_through(calm) == ["there", "there"]
    process = subprocess.Popen([sys.executable, "-m", "dmm.experiments.rehearsal", str(killed)])
    first, second = short_jobs(killed)
    while not (second.folder / "checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.002)
    with claimed(second.folder) as mine:
        assert not mine
    process.kill()
    process.wait()
    with claimed(second.folder) as mine:
        assert mine
    assert outcome(first) is not None and outcome(second) is None
    log = (second.folder / "log.csv").read_text().splitlines()
    assert EVERY <= int(log[-1].split(",")[0]) <= UPDATES
    assert work_through(killed) == ["there", "done"]
    for one, other in zip(short_jobs(calm), short_jobs(killed), strict=True):
        rows: list[Any] = [outcome(one), outcome(other)]
        assert json.dumps(rows[0] | {"seconds": 0}) == json.dumps(rows[1] | {"seconds": 0})


def test_jobs_wait_as_long_as_they_say(tmp_path: Path) -> None:
    jobs = waits(tmp_path, [0.01, 0.03])
    assert [do_job(nap, job) for job in jobs] == ["done", "done"]
    for job, seconds in zip(jobs, (0.01, 0.03), strict=True):
        row: Any = outcome(job)
        assert row["end"] - row["begin"] >= seconds
