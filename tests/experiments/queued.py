"""What the processes of a queue are given to do in tests: fresh interpreters import this module, so it is light.

python -m tests.experiments.queued FOLDER       works off twelve jobs, to be killed
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dmm.errors import InputError
from dmm.experiments.grid import Job
from dmm.experiments.queue import work_off


def make(folder: Path, count: int, **changes: Any) -> list[Job]:
    return [Job(f"job {i}", i, folder / f"{i}", "", "", 1, (), 1, {"i": i, **changes}) for i in range(count)]


def answer(job: Job) -> dict[str, Any]:
    """Writes down that it was begun and ended, beside the jobs' folders, and takes a while."""
    log = job.folder.parent / "log"
    with log.open("a") as file:
        file.write(f"begun {job.seed}\n")
    time.sleep(job.changes.get("seconds", 0.0))
    with log.open("a") as file:
        file.write(f"ended {job.seed}\n")
    return {"i": job.changes["i"], "square": job.seed**2}


def answer_or_fail(job: Job) -> dict[str, Any]:
    if job.seed == 1:
        raise InputError("width: got 0")
    if job.seed == 2:
        raise KeyError("a bug")
    return answer(job)


def answer_or_die(job: Job) -> dict[str, Any]:
    """The process of job 1 ends in the middle of it, the first time or always."""
    answer(job)
    mark = job.folder / "died"
    if job.seed == 1 and (job.changes["always"] or not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(job)


if __name__ == "__main__":
    work_off(answer, make(Path(sys.argv[1]), 12, seconds=0.4), workers=2)
