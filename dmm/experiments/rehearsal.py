"""A queue of two short jobs, to be killed and taken up again, and jobs that only wait.

    python -m dmm.experiments.rehearsal FOLDER      works the two jobs off, one after the other

Runs, outcomes and a tiny data set of their own lie in that folder.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmm.experiments.grid import Job
from dmm.experiments.queue import do_job
from dmm.experiments.reproduce import make_jobs, train_and_score, use_own_data
from dmm.experiments.tables import find_cells

MODELS = ("bc", "dmm")
UPDATES, EVERY = 120, 20
"""Of each job, and between its checkpoints: seconds, and a small part of one."""


def short_jobs(folder: Path) -> list[Job]:
    """Two policies on the point maze, at the scale `smoke` but for more updates.

    Args:
        folder: of runs, in `runs`, and of outcomes, in `rows`.
    """
    cells = find_cells([f"pointmaze/pointmaze-umaze/{model}" for model in MODELS])
    jobs = make_jobs(cells, "smoke", folder / "runs", folder / "rows")
    often = {"log_every": EVERY, "checkpoint_every": EVERY}
    return [dataclasses.replace(job, steps=UPDATES, changes=job.changes | often) for job in jobs]


def work_through(folder: Path) -> list[str]:
    """Do the two jobs in this process; for each whether it was `done`, `there` already or `taken` by another."""
    use_own_data(folder, "smoke")
    return [do_job(train_and_score, job) for job in short_jobs(folder)]


def waits(folder: Path, seconds: Sequence[float]) -> list[Job]:
    """Jobs for `nap`, which take so long."""
    return [Job(f"wait {i}", i, folder / f"{i}", "", "", 1, (), 1, {"seconds": each}) for i, each in enumerate(seconds)]


def nap(job: Job) -> dict[str, Any]:
    """Wait as long as the job says; when that began and ended, by this machine's clock."""
    begin = time.monotonic()
    time.sleep(job.changes["seconds"])
    return {"begin": begin, "end": time.monotonic()}


if __name__ == "__main__":
    work_through(Path(sys.argv[1]))
