"""The same work on several inputs, each in a Python process of its own, with large arrays in common.

The processes are fresh interpreters that are given a function of an importable module, as with the start method `spawn`
of `multiprocessing`, which would also run the caller's script once more in each of them. What they work on reaches them
through a pipe, as there; only arrays are files.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

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
    until: float | None = None,
) -> bool:
    """Call `function(shared, *job, report)` for every job, in up to `workers` processes at the same time.

    The processes end with this one, however it ends. Ctrl-C and the failure of one job end all of them.

    Args:
        function: of a module that a fresh interpreter can import. What it passes to the `report` that it is given,
            plain values, is passed to `report` here.
        shared: can be pickled; arrays and tensors of at least `LARGE` bytes in it lie in memory once for all processes.
        jobs: what else the function is called with, under the names that errors give them.
        workers: processes.
        report: called on this thread.
        until: a time of `time.monotonic` at which all processes are ended, in the middle of their jobs.

    Returns:
        Whether all jobs were done before that time.

    Raises:
        InputError, RunError: as `function` raises them; or a process was ended from outside, or there is no room for
            `shared` among the temporary files.
    """
    events: queue.Queue[tuple[str, str, Any]] = queue.Queue()
    waiting, running = list(jobs), dict[str, subprocess.Popen[bytes]]()
    with tempfile.TemporaryDirectory(prefix="dmm-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        message = _write(folder, function, shared)
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    name = waiting.pop(0)
                    running[name] = _begin(folder, message + _framed(jobs[name]), name, events)
                event = _next(events, until)
                if event is None:
                    return False
                _handle(*event, running, report)
        finally:
            _end(list(running.values()))
    return True


def _write(folder: Path, function: Callable[..., None], shared: Any) -> bytes:
    """Large arrays as files in the folder, and all else as a message to be sent to each process."""
    try:
        (folder / "path.json").write_text(json.dumps([str(place) for place in sys.path]), encoding="utf8")
        return _framed((function, shared), folder)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"processes: the data they share cannot be written to {folder.parent} ({reason})") from error


def _framed(value: Any, folder: Path | None = None) -> bytes:
    """A message that says how long it is."""
    buffer = BytesIO()
    _Pickler(buffer, folder).dump(value)
    return struct.pack("<Q", buffer.tell()) + buffer.getvalue()


class _Pickler(ForkingPickler):
    """What `multiprocessing` sends to its processes, but large arrays and tensors as files of their own."""

    def __init__(self, file: Any, folder: Path | None):
        super().__init__(file)
        self.folder, self.files = folder, 0

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Generator):  # which older versions of torch cannot send; its state stays behind
            return torch.Generator, ()
        if isinstance(value, Tensor):  # as an array: torch's own way needs a process that `multiprocessing` has begun
            return _tensor, (value.detach().numpy(), isinstance(value, nn.Parameter), value.requires_grad)
        if self.folder is None or not isinstance(value, np.ndarray) or value.nbytes < LARGE:
            return NotImplemented
        self.files += 1
        file = self.folder / f"{self.files}.npy"
        np.save(file, value)
        return _mapped, (str(file),)


def _tensor(array: np.ndarray, parameter: bool, requires_grad: bool) -> Tensor:
    tensor = torch.from_numpy(array)
    return nn.Parameter(tensor, requires_grad) if parameter else tensor.requires_grad_(requires_grad)


def _mapped(file: str) -> Any:
    return np.load(file, mmap_mode="c")  # what is not written to stays common to all


def _begin(
    folder: Path, message: bytes, name: str, events: queue.Queue[tuple[str, str, Any]]
) -> subprocess.Popen[bytes]:
    # isolated: of the caller's paths alone, not of what happens to lie in the current folder
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", START, str(folder)],
        stdin=subprocess.PIPE,  # stays open: its end is how the process learns that this one has ended
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def tell() -> None:
        with suppress(OSError, ValueError):  # it has ended, which `listen` will say
            stdin.write(message)
            stdin.flush()

    def listen() -> None:
        for line in stdout:
            events.put((name, *json.loads(line)))
        events.put((name, "ended", process.wait()))

    for talk in (tell, listen):
        threading.Thread(target=talk, daemon=True).start()
    return process


def _next(events: queue.Queue[tuple[str, str, Any]], until: float | None) -> tuple[str, str, Any] | None:
    """The next event, or None if there is none before that time."""
    while until is None or time.monotonic() < until:
        left = 1.0 if until is None else min(1.0, until - time.monotonic())
        with suppress(queue.Empty):
            return events.get(timeout=max(left, 0.001))  # so that Ctrl-C is noticed on every system
    return None


def _handle(
    name: str, kind: str, content: Any, running: dict[str, subprocess.Popen[bytes]], report: Callable[..., None]
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


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def work(folder: str) -> None:
    """What a process does: one job, which it is told on its standard input."""
    told = [_read_message(folder) for _ in range(2)]
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    out = os.fdopen(os.dup(1), "w")
    with suppress(OSError):
        os.dup2(2, 1)  # whatever a library prints must not come among the reports

    def send(kind: str, content: Any) -> None:
        print(json.dumps([kind, content]), file=out, flush=True)

    try:
        (function, shared), job = map(ForkingPickler.loads, told)
        function(shared, *job, lambda *said: send("report", said))
    except (InputError, RunError) as error:
        send("InputError" if isinstance(error, InputError) else "RunError", str(error))
    except Exception as error:
        reason = outside_reason(error)
        send(*(("RunError", reason) if reason else ("bug", traceback.format_exc())))


def _read_message(folder: str) -> bytes:
    (size,) = struct.unpack("<Q", _read(8, folder))
    return _read(size, folder)


def _read(size: int, folder: str) -> bytes:
    parts: list[bytes] = []
    while size:
        part = os.read(0, min(size, 2**20))
        if not part:  # the parent has ended
            _leave(folder)
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _end_with_parent(folder: str) -> None:
    with suppress(OSError):
        while os.read(0, 1):
            pass
    _leave(folder)


def _leave(folder: str) -> NoReturn:
    shutil.rmtree(folder, ignore_errors=True)  # which the parent can no longer do
    os._exit(1)
