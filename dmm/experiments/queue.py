"""A queue of jobs: each is done once, whoever works on it, and what a killed process left is taken up by the next.

    outcome    a file for each finished job (`Job.row_file`), written in one step: what the job is, and its row
    claim      a file in the job's folder, locked by the process that works on it; the system lets go of the lock
               however that process ends, so that nothing has to be cleaned up after a kill

The order of the jobs is that of the list. Any number of processes, of one call or of several, may work on one queue: a
job that another holds is passed over. A job that fails is told in a line and does not end the queue; a process that is
ended from outside is replaced, and the job that it held tried `ATTEMPTS` times in all.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dmm.errors import InputError, RunError, finite_number, outside_reason, whole_number
from dmm.experiments.grid import Job
from dmm.experiments.same_data import require_row
from dmm.files import read_json, strict_json
from dmm.progress import progress_bar

if sys.platform != "win32":
    import fcntl

Work = Callable[[Job], dict[str, Any]]

ATTEMPTS = 2
"""How often a job is begun whose process is ended from outside."""
PATIENCE = 0.5
"""Seconds between two looks at jobs that others are at."""
SPARE_BYTES = 200 * 10**6
"""Free space on the disk without which no job is begun."""
OUTCOME_LIMIT = 64 * 2**20
"""Bytes of an outcome's file; a job of 10 checkpoints, 5 targets and 100 episodes writes a tenth of a megabyte."""


@dataclass
class Progress:
    """What one call of `work_off` came to."""

    finished: int = 0  # by this call
    failed: dict[str, str] = field(default_factory=dict)  # by job, why
    out_of_time: bool = False


def outcome(job: Job) -> dict[str, Any] | None:
    """The row that this very job came to, or None if it has not been done."""
    try:
        kept = read_json(job.row_file, OUTCOME_LIMIT)
    except (OSError, InputError):  # not there, or no outcome: the job is done again
        return None
    if isinstance(kept, dict) and job.is_described_by(kept.get("job")) and isinstance(kept.get("row"), dict):
        row: dict[str, Any] = kept["row"]
        return row
    return None


def keep_outcome(job: Job, row: dict[str, Any]) -> None:
    """Write a finished job's file, all of it or nothing.

    Raises:
        RunError: it cannot be written.
    """
    from dmm.training.checkpoints import write_atomically

    try:
        job.row_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(job.row_file, (strict_json({"job": job.described(), "row": row}, indent=1) + "\n").encode())
    except OSError as error:
        raise RunError(f"queue: {job.row_file} cannot be written ({error.strerror or error})") from error


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether a folder is this process's own for the length of the block; not if another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # without such locks: one call at a time
        yield True
        return
    handle = os.open(folder / "claim", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def do_job(work: Work, job: Job) -> Literal["done", "there", "taken"]:
    """Do one job and keep its outcome, unless it is `there` already or `taken` by another process at this moment.

    Raises:
        InputError, RunError: the job failed, or the disk is full.
    """
    if outcome(job) is not None:
        return "there"
    _require_space(job)
    with claimed(job.folder) as mine:
        if not mine:
            return "taken"
        if outcome(job) is not None:  # done between the look and the claim
            return "there"
        row = work(job)
        require_row(job, row)
        keep_outcome(job, row)
    return "done"


def open_jobs(jobs: Sequence[Job]) -> list[int]:
    """The places of the jobs that are not done. What is done says which data the others must have."""
    found = []
    for i, job in enumerate(jobs):
        if (row := outcome(job)) is None:
            found.append(i)
            continue
        try:
            require_row(job, row)
        except RunError as error:
            print(f"dmm: {title(job)}, which is done: {error}", file=sys.stderr)
    return found


def _require_space(job: Job) -> None:
    place = next(folder for folder in (job.folder, *job.folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < SPARE_BYTES:
        raise RunError(f"queue: {free / 1e6:.0f} MB are free at {place}, a job wants {SPARE_BYTES / 1e6:.0f}")


def run_jobs(work: Work, jobs: Sequence[Job], workers: int) -> list[dict[str, Any]]:
    """Do all jobs that are not done yet, and return the rows of all, in the order of the jobs.

    Raises:
        RunError: a job failed, or another process is at one of them; all others are done.
    """
    made = work_off(work, jobs, workers=workers)
    rows = [outcome(job) for job in jobs]
    missing = [title(job) for job, row in zip(jobs, rows, strict=True) if row is None]
    if missing:
        name = missing[0]
        raise RunError(f"{name}: {made.failed.get(name, 'another process is at it')} ({len(missing)} jobs are open)")
    return [row for row in rows if row is not None]


def work_off(
    work: Work, jobs: Sequence[Job], *, workers: int = 1, hours: float | None = None, progress: bool = True
) -> Progress:
    """Do the jobs of a queue that are not done, in `workers` processes of one thread each.

    Args:
        work: a function of an importable module that turns a job into its row, plain values.
        jobs: in the order in which they are to be begun.
        workers: processes.
        hours: when to stop, in the middle of jobs if need be: they go on from their checkpoints next time.
        progress: show a bar on stderr.
    """
    workers = whole_number("workers", workers, 1)
    made, killed, seconds = Progress(), Counter[int](), require_hours(hours)
    until = None if seconds is None else time.monotonic() + seconds
    left = open_jobs(jobs)
    bar = progress_bar(total=len(jobs), initial=len(jobs) - len(left), unit="job", desc="jobs", disable=not progress)
    running: dict[str, int] = {}

    def report(worker: str, what: str, i: int, said: str) -> None:
        match what:
            case "begun":
                running[worker] = i
                bar.set_postfix_str(title(jobs[i]))
            case "done":
                made.finished += 1
                bar.update()
            case "there":  # another call's
                bar.update()
            case "failed":
                made.failed[title(jobs[i])] = said
                print(f"dmm: {title(jobs[i])}: {said}", file=sys.stderr)
        if what != "begun":
            running.pop(worker, None)

    with bar:
        while left:
            try:
                now = [jobs[i] for i in left]
                made.out_of_time = not _in_processes(work, now, left, min(workers, len(left)), report, until)
                break
            except RunError as error:  # a worker was ended from outside, or there is no room for its start
                i = running.get(str(error).partition(":")[0], -1)
                if i < 0:
                    raise
                killed[i] += 1
                if killed[i] >= ATTEMPTS:
                    made.failed[title(jobs[i])] = str(error)
                print(f"dmm: {title(jobs[i])}: {error}", file=sys.stderr)
                running.clear()
                left = [i for i in left if killed[i] < ATTEMPTS and outcome(jobs[i]) is None]
    return made


def require_hours(hours: float | None) -> float | None:
    """Seconds of so many hours.

    Raises:
        InputError: no positive number.
    """
    if hours is not None and not finite_number("hours", hours) > 0:
        raise InputError(f"hours: got {hours:g}, allowed is a positive number")
    return None if hours is None else hours * 3600


def _in_processes(
    work: Work, jobs: list[Job], numbers: list[int], workers: int, report: Callable[..., None], until: float | None
) -> bool:
    from dmm.processes import in_processes

    names = {f"worker {i}": (f"worker {i}",) for i in range(workers)}
    shared = address(work), uuid.uuid4().hex, jobs, numbers
    return in_processes(_work, shared, names, workers=workers, report=report, until=until)


def address(work: Work) -> str:
    """A function as `module:name`, by which another process finds it; also of the module that is being run."""
    module = work.__module__
    if module == "__main__":
        module = getattr(sys.modules["__main__"].__spec__, "name", module)
    return f"{module}:{work.__qualname__}"


def function_at(where: str) -> Work:
    """The function of such an address."""
    module, _, name = where.partition(":")
    found: Work = getattr(importlib.import_module(module), name)
    return found


def _work(shared: tuple[str, str, list[Job], list[int]], worker: str, report: Callable[..., None]) -> None:
    """What a worker does: job after job, until all are done or have failed, by whomever.

    For those that others are at it waits: should their process end, they are open again.
    """
    where, call, jobs, numbers = shared
    work, waiting = function_at(where), list(zip(numbers, jobs, strict=True))
    os.environ["OMP_NUM_THREADS"] = "1"
    while waiting:
        taken = []
        for i, job in waiting:
            if outcome(job) is not None or _has_failed(job, call):
                continue
            report(worker, "begun", i, "")
            try:
                how: str = do_job(work, job)
                taken += [(i, job)] if how == "taken" else []
                report(worker, how, i, "")
            except Exception as error:
                with suppress(OSError):  # then the other workers try it, too
                    (job.folder / "failed").write_text(call)
                report(worker, "failed", i, why(error))
        if len(taken) == len(waiting):
            time.sleep(PATIENCE)
        waiting = taken


def _has_failed(job: Job, call: str) -> bool:
    """Whether a worker of the same call failed at a job; the next call tries again."""
    try:
        return (job.folder / "failed").read_text() == call
    except OSError:
        return False


def why(error: Exception) -> str:
    """Why a job failed, in a line."""
    said = str(error) if isinstance(error, InputError | RunError) else outside_reason(error)
    return " ".join((said or f"{type(error).__name__}: {error}").split())


def title(job: Job) -> str:
    """A job in a line."""
    return f"{job.name}, seed {job.seed}"
