"""The same work on several inputs, each in a Python process of its own, with large arrays in common.

The processes are fresh interpreters that are given a function of an importable module, as with the start method `spawn`
of `multiprocessing`, which would also run the caller's script once more in each of them.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmm.errors import InputError, RunError, outside_reason

LARGE = 2**20
"""Bytes from which arrays are mapped from a file, once for all processes, instead of copied into each."""
PATIENCE = 5.0
"""Seconds that a process has to end in when it is told to."""
START = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # Ctrl-C reaches the parent alone
    "sys.path[:] = json.load(open(sys.argv[1] + '/path.json')); "
    "from dmm.processes import work; work(*sys.argv[1:])"
)


def usable_cores() -> int:
    """The cores that this process may use, where the system tells, else those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    function: Callable[..., None],
    shared: Any,
    jobs: Mapping[str, tuple[Any, ...]],
    *,
    workers: int,
    report: Callable[..., None],
) -> None:
    """Call `function(shared, *job, report)` for every job, in up to `workers` processes at the same time.

    The processes end with this one, however it ends. Ctrl-C and the failure of one job end all of them.

    Args:
        function: of a module that a fresh interpreter can import. What it passes to the `report` that it is given,
            plain values, is passed to `report` here.
        shared: can be pickled; arrays and tensors of at least `LARGE` bytes in it lie in memory once for all processes.
        jobs: what else the function is called with, under the names that errors give them.
        workers: processes.
        report: called on this thread.

    Raises:
        InputError, RunError: as `function` raises them; or a process was ended from outside, or there is no room for
            `shared` among the temporary files.
    """
    events: queue.Queue[tuple[str, str, Any]] = queue.Queue()
    waiting, running = list(jobs), dict[str, subprocess.Popen[str]]()
    with tempfile.TemporaryDirectory(prefix="dmm-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        _write(folder, function, shared, jobs)
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    name = waiting.pop(0)
                    running[name] = _begin(folder, list(jobs).index(name), name, events)
                _handle(*_next(events), running, report)
        finally:
            _end(list(running.values()))


def _write(folder: Path, function: Callable[..., None], shared: Any, jobs: Mapping[str, tuple[Any, ...]]) -> None:
    try:
        (folder / "path.json").write_text(json.dumps([str(place) for place in sys.path]))
        with (folder / "shared").open("wb") as file:
            _Pickler(file, folder).dump((function, shared))
        for number, job in enumerate(jobs.values()):
            (folder / str(number)).write_bytes(pickle.dumps(job))
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"processes: the data they share cannot be written to {folder.parent} ({reason})") from error


class _Pickler(pickle.Pickler):
    """Puts large arrays and tensors into files of their own."""

    def __init__(self, file: Any, folder: Path):
        super().__init__(file)
        self.folder, self.files = folder, 0

    def persistent_id(self, value: Any) -> tuple[str, str] | None:
        if isinstance(value, torch.Generator):  # which older versions of torch cannot pickle; its state stays behind
            return "generator", ""
        if not isinstance(value, np.ndarray | Tensor) or value.nbytes < LARGE:
            return None
        self.files += 1
        name = f"{self.files}.npy"
        np.save(self.folder / name, value.detach().numpy() if isinstance(value, Tensor) else value)
        return ("tensor" if isinstance(value, Tensor) else "array"), name


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, folder: Path):
        super().__init__(file)
        self.folder = folder

    def persistent_load(self, saved: tuple[str, str]) -> Any:
        kind, name = saved
        if kind == "generator":
            return torch.Generator()
        array = np.load(self.folder / name, mmap_mode="c")  # what is not written to stays common to all
        return torch.from_numpy(array) if kind == "tensor" else array


def _begin(folder: Path, number: int, name: str, events: queue.Queue[tuple[str, str, Any]]) -> subprocess.Popen[str]:
    # isolated: of the caller's paths alone, not of what happens to lie in the current folder
    command = [sys.executable, "-I", "-c", START, str(folder), str(number)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # never written to: its end is how the process learns that this one has ended
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            events.put((name, *json.loads(line)))
        events.put((name, "ended", process.wait()))

    threading.Thread(target=listen, daemon=True).start()
    return process


def _next(events: queue.Queue[tuple[str, str, Any]]) -> tuple[str, str, Any]:
    while True:
        with suppress(queue.Empty):
            return events.get(timeout=1.0)  # so that Ctrl-C is noticed on every system


def _handle(
    name: str, kind: str, content: Any, running: dict[str, subprocess.Popen[str]], report: Callable[..., None]
) -> None:
    if kind == "report":
        report(*content)
    elif kind == "ended":
        del running[name]
        if content != 0:
            raise RunError(f"{name}: its process was ended from outside ({_how(content)}); is there enough memory?")
    elif kind == "bug":
        raise RuntimeError(f"{name}:\n{content}")
    else:
        raise {"InputError": InputError, "RunError": RunError}[kind](content)


def _how(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def work(folder: str, number: str) -> None:
    """What a process does: one job."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    with suppress(OSError):
        os.dup2(2, 1)  # whatever a library prints must not come among the reports

    def send(kind: str, content: Any) -> None:
        print(json.dumps([kind, content]), file=out, flush=True)

    try:
        with Path(folder, "shared").open("rb") as file:
            function, shared = _Unpickler(file, Path(folder)).load()
        function(shared, *pickle.loads(Path(folder, number).read_bytes()), lambda *said: send("report", said))
    except (InputError, RunError) as error:
        send("InputError" if isinstance(error, InputError) else "RunError", str(error))
    except Exception as error:
        reason = outside_reason(error)
        send(*(("RunError", reason) if reason else ("bug", traceback.format_exc())))


def _end_with_parent(folder: str) -> None:
    with suppress(OSError):
        while os.read(0, 1):
            pass
    shutil.rmtree(folder, ignore_errors=True)  # which the parent can no longer do
    os._exit(1)
