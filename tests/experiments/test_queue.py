"""A queue of jobs: each is done once, whatever ends the processes that work on it."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmm.errors import InputError, RunError
from dmm.experiments.queue import address, claimed, do_job, function_at, keep_outcome, outcome, run_jobs, work_off
from tests.conftest import ROOT
from tests.experiments.conftest import do_here
from tests.experiments.queued import answer, answer_or_die, answer_or_fail, make

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no signals and no such locks there")


def logged(folder: Path, what: str) -> list[int]:
    lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(what)]


class TestOutcomes:
    def test_what_is_there_is_not_worked_for_again(self, tmp_path: Path) -> None:
        (job,) = make(tmp_path, 1)
        assert outcome(job) is None
        assert do_job(answer, job) == "done" and do_job(answer, job) == "there"
        assert outcome(job) == {"i": 0, "square": 0} and logged(tmp_path, "begun") == [0]
        assert job.row_file == tmp_path / "0" / "row.json"

    def test_the_outcome_of_another_job_is_none(self, tmp_path: Path) -> None:
        (job,) = make(tmp_path, 1)
        do_job(answer, job)
        for other in ({"episodes": 2}, {"changes": {"i": 1}}, {"checkpoints": 2}, {"max_steps": 3}):
            assert outcome(dataclasses.replace(job, **other)) is None  # type: ignore[arg-type]
        elsewhere = dataclasses.replace(job, folder=tmp_path / "far" / "0", row=job.row_file)
        assert outcome(elsewhere) == outcome(job)  # where it was worked on does not matter

    def test_one_of_before_a_field_existed_counts(self, tmp_path: Path) -> None:
        (job,) = make(tmp_path, 1)
        do_job(answer, job)
        kept = json.loads(job.row_file.read_text())
        for name in ("transitions", "checkpoints", "max_steps"):
            del kept["job"][name]
        job.row_file.write_text(json.dumps(kept))
        assert outcome(job) == {"i": 0, "square": 0}
        assert outcome(dataclasses.replace(job, checkpoints=2)) is None

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"job": 1, "row": {}}', "null", '{"row": {"i": 1}}', "\0"])
    def test_a_file_that_is_none_is_replaced(self, tmp_path: Path, content: str) -> None:
        (job,) = make(tmp_path, 1)
        job.folder.mkdir()
        job.row_file.write_text(content)
        assert outcome(job) is None
        assert do_here(answer, job) == {"i": 0, "square": 0}

    def test_work_that_fails_leaves_none(self, tmp_path: Path) -> None:
        (_, job) = make(tmp_path, 2)
        with pytest.raises(InputError, match=r"^width: got 0$"):
            do_job(answer_or_fail, job)
        assert not job.row_file.exists()

    def test_numbers_that_json_lacks_are_null(self, tmp_path: Path) -> None:
        (job,) = make(tmp_path, 1)
        keep_outcome(job, {"loss": float("nan")})
        assert outcome(job) == {"loss": None}

    def test_one_that_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        (job,) = make(tmp_path, 1)
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match=r"^queue: .*row\.json cannot be written \(.+\)$"):
            keep_outcome(dataclasses.replace(job, row=tmp_path / "file" / "row.json"), {})

    def test_nothing_is_begun_on_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (job,) = make(tmp_path, 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=30 * 10**6))
        with pytest.raises(RunError, match=r"^queue: 30 MB are free at .*, a job wants 200$"):
            do_job(answer, job)
        assert logged(tmp_path, "begun") == [] and not job.folder.exists()


@needs_signals
class TestClaims:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        (job,) = make(tmp_path, 1)
        with claimed(job.folder) as mine:
            assert mine
            with claimed(job.folder) as again:
                assert not again
            assert do_job(answer, job) == "taken"
        assert do_job(answer, job) == "done"

    def test_it_ends_with_the_process(self, tmp_path: Path) -> None:
        code = (
            "import pathlib, sys, time; from dmm.experiments.queue import claimed\n"
            f"with claimed(pathlib.Path({str(tmp_path / 'job')!r})) as mine: print(mine, flush=True); time.sleep(600)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout and process.stdout.readline() == "True\n"
        with claimed(tmp_path / "job") as mine:
            assert not mine
        process.kill()
        process.wait()
        with claimed(tmp_path / "job") as mine:
            assert mine


def test_a_function_is_found_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    assert function_at(address(answer)) is answer
    monkeypatch.setattr(answer, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="dmm.experiments.windows"))
    assert address(answer) == "dmm.experiments.windows:answer"  # what `python -m` runs has that name elsewhere


class TestQueue:
    def test_rows_come_in_the_order_of_the_jobs(self, tmp_path: Path) -> None:
        jobs = make(tmp_path, 5)
        keep_outcome(jobs[3], {"i": "made before"})
        rows = run_jobs(answer, jobs, workers=2)
        assert [row["i"] for row in rows] == [0, 1, 2, "made before", 4]
        assert sorted(logged(tmp_path, "begun")) == [0, 1, 2, 4]

    def test_a_failure_does_not_end_it(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        jobs = make(tmp_path, 5)
        made = work_off(answer_or_fail, jobs, workers=2)
        assert made.failed == {"job 1, seed 1": "width: got 0", "job 2, seed 2": "KeyError: 'a bug'"}
        assert made.finished == 3 and sorted(logged(tmp_path, "ended")) == [0, 3, 4]
        assert capfd.readouterr().err.count("dmm: job 1, seed 1: width: got 0\n") == 1  # not once for each worker
        with pytest.raises(RunError, match=r"^job 1, seed 1: width: got 0 \(2 jobs are open\)$"):
            run_jobs(answer_or_fail, jobs, workers=1)
        assert sorted(logged(tmp_path, "ended")) == [0, 3, 4]

    @needs_signals
    @pytest.mark.parametrize("always", [False, True])
    def test_a_job_whose_process_is_killed_is_tried_again(self, tmp_path: Path, always: bool) -> None:
        jobs = make(tmp_path, 4, always=always)
        made = work_off(answer_or_die, jobs, workers=2)
        done = [job.seed for job in jobs if outcome(job) is not None]
        assert logged(tmp_path, "begun").count(1) >= 2
        if always:
            assert done == [0, 2, 3] and made.failed.keys() == {"job 1, seed 1"}
            assert "its process was ended from outside (SIGKILL)" in made.failed["job 1, seed 1"]
        else:
            assert done == [0, 1, 2, 3] and made.failed == {}

    @pytest.mark.parametrize("ignored", [False, True])
    def test_time_is_up(self, tmp_path: Path, ignored: bool) -> None:
        """Also where Ctrl-C is ignored, as by what a shell starts in the background."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else signal.getsignal(signal.SIGINT)
        try:
            self.stop_in_time(tmp_path)
        finally:
            signal.signal(signal.SIGINT, before)

    def stop_in_time(self, tmp_path: Path) -> None:
        jobs = make(tmp_path, 3, seconds=600.0)
        began = time.monotonic()
        made = work_off(answer, jobs, workers=1, hours=4.0 / 3600)
        assert made.out_of_time and made.finished == 0 and time.monotonic() - began < 60
        assert [outcome(job) for job in jobs] == [None] * 3

    @pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
    def test_hours_that_are_none(self, tmp_path: Path, hours: float) -> None:
        with pytest.raises(InputError, match=r"^hours: got "):
            work_off(answer, make(tmp_path, 1), hours=hours)

    def test_no_workers(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^workers: got 0, allowed is a whole number of at least 1$"):
            work_off(answer, make(tmp_path, 1), workers=0)

    @needs_signals
    def test_killed_again_and_again_it_loses_and_doubles_nothing(self, tmp_path: Path) -> None:
        jobs, chance, written, start = make(tmp_path, 12, seconds=0.4), random.Random(0), {}, 0.0
        for kill in range(6):
            command = [sys.executable, "-m", "tests.experiments.queued", str(tmp_path)]
            process, began = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT), time.monotonic()
            while kill == 0 and not outcome(jobs[0]):  # how long a start takes on this machine
                time.sleep(0.05)
                start = time.monotonic() - began
            time.sleep(chance.uniform(0.2, 1.3) * start)
            process.kill()  # its workers end by themselves
            process.wait()
            for job in jobs:
                if job.row_file.exists():
                    now = job.row_file.stat().st_mtime_ns
                    assert written.setdefault(job.seed, now) == now  # an outcome is written once
        rows = run_jobs(answer, jobs, workers=2)
        assert rows == [{"i": i, "square": i * i} for i in range(12)]
        assert written  # some jobs were done between two kills
        ended = logged(tmp_path, "ended")
        assert set(ended) == set(range(12))
        assert not list(tmp_path.rglob(".row.json.*"))  # what a killed process was writing
