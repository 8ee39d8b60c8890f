"""The queue on a Ray cluster: each job a task, begun in the queue's order, wherever there is a core.

What travels is the job, a few hundred bytes, and its row, which the driver writes where the node has not done so: nodes
need no storage in common. Where they have the runs' folder in common, a job whose node died goes on from its last
checkpoint on another; where not, it begins anew. Its claim keeps it from being done twice at a time.

Source: Ray's documentation of tasks, fault tolerance and cancelling, and its code (version 2.60).
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmm.errors import InputError, RunError, finite_number
from dmm.experiments.grid import DEVICE, Job
from dmm.experiments.queue import (
    Progress,
    Work,
    do_job,
    function_at,
    keep_outcome,
    open_jobs,
    outcome,
    require_hours,
    title,
    why,
)
from dmm.experiments.queue import address as address_of
from dmm.experiments.same_data import known_fingerprint, require_fingerprint, require_row
from dmm.processes import usable_cores
from dmm.progress import progress_bar

RETRIES = 3
"""How often a job is begun again whose worker or node died; also one that was ended for want of memory, which Ray has
a count of its own for, infinite unless told. One that fails by itself is not."""
AHEAD = 2
"""Tasks that Ray is given at a time, for each that it has room for: enough to keep all cores busy, and to ask a cluster
that grows for more, and so few that the queue stays in the driver."""
TICK = 1.0
"""Seconds between two looks at the clock and at the cluster."""
AGAIN, LEASE = 5.0, 120.0
"""Seconds after which a job that another process holds is tried again, and for how long: the lock of a node that died
lasts on a network file system until its lease ends, 90 s on NFS."""
QUIET = 60.0
"""Seconds without room for a single job after which that is said."""
TAKEN_ALONG = ("MINARI_DATASETS_PATH", "DMM_CACHE_DIR", "MUJOCO_GL", "PYTHONPATH")
"""Variables that a job has on every node as the driver has them, if it has them."""
ANSWER = 10.0
"""Seconds in which a cluster's head has to answer."""
LONGEST_FOLDER = 40
"""Characters of a folder in which the names of Ray's sockets, 107 characters at most, have room."""


@dataclass(frozen=True)
class Resources:
    """What one job takes of a node."""

    cpus: float = 1.0  # a job computes on one thread
    gpus: float = 0.0  # a share: 0.25 lets four jobs have a GPU in common; with any, jobs are trained there

    def __post_init__(self) -> None:
        for name, least in (("cpus", 0.01), ("gpus", 0.0)):
            if not finite_number(f"{name}_per_job", getattr(self, name)) >= least:
                raise InputError(f"{name}_per_job: got {getattr(self, name):g}, allowed is a number from {least:g}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise InputError(f"gpus_per_job: got {self.gpus:g}, allowed is a share up to 1, or whole GPUs")

    def room(self, nodes: Sequence[dict[str, Any]]) -> int:
        """How many jobs nodes, as `ray.nodes()` tells of them, have room for together."""
        return sum(self._on(node["Resources"]) for node in nodes if node["Alive"])

    def _on(self, node: dict[str, float]) -> int:
        shares = [node.get("CPU", 0.0) / self.cpus, *([node.get("GPU", 0.0) / self.gpus] if self.gpus else [])]
        return int(min(shares) + 1e-9)


def work_off_on_ray(
    work: Work,
    jobs: Sequence[Job],
    *,
    address: str | None = None,
    hours: float | None = None,
    cpus_per_job: float = 1.0,
    gpus_per_job: float = 0.0,
    progress: bool = True,
) -> Progress:
    """Do the jobs of a queue that are not done, as tasks of a Ray cluster.

    Args:
        work: a function of a module that every node can import; turns a job into its row, plain values.
        jobs: in the order in which they are to be begun. Relative paths are those of the driver's folder.
        address: of the cluster, `HOST:PORT`, or `auto` on one of its machines; if not given, Ray is started on this
            machine and stopped in the end.
        hours: when to stop, in the middle of jobs if need be: they go on from their checkpoints next time.
        cpus_per_job, gpus_per_job: see `Resources`.
        progress: show a bar on stderr.

    Raises:
        InputError: Ray is not installed, no cluster answers, or a number is out of range.
        RunError: an outcome cannot be written.
    """
    share, seconds = Resources(cpus_per_job, gpus_per_job), require_hours(hours)
    end = time.monotonic() + seconds if seconds else None
    jobs = [dataclasses.replace(job, folder=job.folder.absolute(), row=job.row_file.absolute()) for job in jobs]
    left = open_jobs(jobs)
    bar = progress_bar(total=len(jobs), initial=len(jobs) - len(left), unit="job", desc="jobs", disable=not progress)
    with _connected(address) as ray, bar:
        return _Driver(ray, work, jobs, share, bar, local=address is None).work_off(left, end)


@dataclass
class _Driver:
    """What the process does that has the queue."""

    ray: Any
    work: Work
    jobs: Sequence[Job]
    share: Resources
    bar: Any
    local: bool  # Ray runs on this machine alone
    made: Progress = field(default_factory=Progress)
    running: dict[Any, int] = field(default_factory=dict)  # job by the reference of what its task returns
    again: dict[int, float] = field(default_factory=dict)  # when to try a job that another process holds
    since: dict[int, float] = field(default_factory=dict)  # when that was first seen

    def work_off(self, left: Sequence[int], end: float | None) -> Progress:
        """Do these jobs, or as many as there is time for."""
        waiting, task, quiet = deque(left), self._task(), time.monotonic() + QUIET
        try:
            while waiting or self.running or self.again:
                now, room = time.monotonic(), self.share.room(self.ray.nodes())
                if end is not None and now >= end:
                    self.made.out_of_time = True
                    break
                quiet = now + QUIET if room else self._say_that_nothing_fits(now, quiet)
                due = [i for i, then in self.again.items() if then <= now]
                waiting.extendleft(i for i in reversed(due) if self.again.pop(i))
                while waiting and len(self.running) < AHEAD * max(room, 1):
                    self._begin(task, waiting.popleft())
                self._wait(TICK if end is None else max(0.0, min(TICK, end - now)))
        finally:
            for reference in self.running:
                self.ray.cancel(reference, force=True)
        return self.made

    def _task(self) -> Any:
        variables = {name: os.environ[name] for name in TAKEN_ALONG if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        variables |= {DEVICE: "cuda"} if self.share.gpus else {}
        # Ray puts this into a line for bash as it is; on a cluster it is each node's own
        python = {"py_executable": shlex.quote(sys.executable)} if self.local else {}
        resources = {"num_cpus": self.share.cpus, "num_gpus": self.share.gpus}
        kept = {"max_retries": RETRIES, "retry_exceptions": False}
        return self.ray.remote(do_here).options(**resources, **kept, runtime_env={"env_vars": variables, **python})

    def _begin(self, task: Any, i: int) -> None:
        if outcome(self.jobs[i]) is not None:  # another call has done it
            self.bar.update()
            return
        known = known_fingerprint(self.jobs[i])
        self.running[task.remote(address_of(self.work), self.jobs[i], known)] = i
        self.bar.set_postfix_str(title(self.jobs[i]))

    def _wait(self, seconds: float) -> None:
        if not self.running:
            time.sleep(seconds)
            return
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        for reference in ready:
            i = self.running.pop(reference)
            try:
                self._take(i, *self.ray.get(reference))
            except (InputError, RunError) as error:  # here, as the row came
                self._fail(i, why(error))
            except self.ray.exceptions.RayError as error:
                self._fail(i, _lost(error))

    def _take(self, i: int, what: str, said: str, row: dict[str, Any] | None) -> None:
        """What came of a job: `done`, `there` already, `failed`, or `taken` by another process."""
        if row is not None:
            require_row(self.jobs[i], row)
            if outcome(self.jobs[i]) is None:  # the node has storage of its own
                keep_outcome(self.jobs[i], row)
            self.made.finished += what == "done"
            self.bar.update()
        elif what == "failed":
            self._fail(i, said)
        elif (now := time.monotonic()) - self.since.setdefault(i, now) < LEASE:
            self.again[i] = now + AGAIN

    def _fail(self, i: int, said: str) -> None:
        self.made.failed[title(self.jobs[i])] = said
        print(f"dmm: {title(self.jobs[i])}: {said}", file=sys.stderr)

    def _say_that_nothing_fits(self, now: float, when: float) -> float:
        if now >= when:
            wanted = f"{self.share.cpus:g} CPUs" + (f" and {self.share.gpus:g} GPUs" if self.share.gpus else "")
            print(f"dmm: ray: no node has {wanted} for a job; waiting for one that has", file=sys.stderr)
            return float("inf")
        return when


def do_here(where: str, job: Job, fingerprint: str | None) -> tuple[str, str, dict[str, Any] | None]:
    """A task: do a job on this node, whose data must have that fingerprint if any is known.

    Returns:
        `done`, `there` (it was), `taken` (another process is at it) or `failed`; why it failed; its row.
    """
    try:
        if fingerprint is not None:
            require_fingerprint(job, fingerprint)  # here is where the work looks for it
        how = do_job(function_at(where), job)
    except Exception as error:
        return "failed", why(error), None
    return how, "", None if how == "taken" else outcome(job)


def _lost(error: Exception) -> str:
    """Why a task came to nothing, in a line."""
    kind, lines = type(error).__name__, [line for line in str(error).splitlines() if line.strip()]
    if kind in ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError"):
        return f"its worker or node died, and so did those of {RETRIES} further attempts ({kind})"
    return f"ray: {kind}: {' '.join(lines[-1].split()) if lines else 'no reason given'}"


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError('runner: ray is not installed; pip install "decision-metamamba[cluster]"') from None
    return ray


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray at this address, or on this machine alone; as it is where the caller has it already."""
    with ExitStack() as stack:
        stack.enter_context(_settings())  # some are read when Ray is imported
        ray = _import_ray()
        if not ray.is_initialized():
            _init(ray, address, stack)
            stack.callback(ray.shutdown)
        yield ray


def _init(ray: Any, address: str | None, stack: ExitStack) -> None:
    import logging

    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        _require_answer(address)
    else:
        how |= {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": 200 * 2**20}
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dmm-ray-", ignore_cleanup_errors=True))
        if len(folder) <= LONGEST_FOLDER:
            how["_temp_dir"] = str(Path(folder).resolve())
    try:
        ray.init(address=address or "local", **how)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address is None:
            raise RunError(f"ray: it cannot be started here ({_first_line(error)})") from error
        raise InputError(f"address: no Ray cluster answers at {address!r} ({_first_line(error)})") from error


def _require_answer(address: str) -> None:
    """Ray itself knocks for a quarter of an hour at an address where nobody is."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) >= 2**16:
        raise InputError(f"address: got {address!r}, allowed are auto and HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"address: no Ray cluster answers at {address!r} ({reason})") from error


def _first_line(error: Exception) -> str:
    return " ".join(next(iter(str(error).strip().splitlines()), type(error).__name__).split())[:200]


@contextmanager
def _settings() -> Iterator[None]:
    """Ray's variables are ours for the length of the block; what a SIGTERM does is as it was in the end."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RETRIES)}
    before, main = dict(os.environ), threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
