"""Measurements of this machine: everything that is compared is timed in one run, in turn, and reported as ratios."""

from __future__ import annotations

import functools
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmm.errors import InputError, RunError, whole_number
from dmm.files import user_path


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was: read them with that in mind."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    calls: int = 1,
    warm: int = 0,
    patience: float = float("inf"),
    finish: Callable[[], object] | None = None,
) -> dict[str, dict[str, float]]:
    """Seconds per call of each candidate: `median`, `low` and `high` (quartiles) over `repeats` rounds.

    Every round times `calls` calls of each candidate in turn, so that whatever else the machine does meets all of them;
    a first call of each, which may load or compile, is thrown away.

    Args:
        candidates: what is called.
        repeats: rounds.
        calls: per round and candidate.
        warm: calls before those that are timed, in every turn, where what ran before leaves caches and memory cold.
        patience: seconds; of a candidate whose first and second call took longer the second is the figure.
        finish: waits until a device is done; called before the clock is read.
    """
    slow = {}
    for name, call in candidates.items():
        if _seconds(call, 1, finish) > patience and (again := _seconds(call, 1, finish)) > patience:
            slow[name] = quartiles([again])
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            if name not in slow:
                if warm:
                    _seconds(call, warm, finish)
                times[name].append(_seconds(call, calls, finish))
    return {name: slow.get(name) or quartiles(values) for name, values in times.items()}


def _seconds(call: Callable[[], object], calls: int, finish: Callable[[], object] | None) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    if finish is not None:
        finish()
    return (time.perf_counter() - begin) / calls


def device_name(device: torch.device) -> str:
    """A GPU's name, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def finisher(device: torch.device) -> Callable[[], object] | None:
    """What waits for a device; None for a CPU, which is done when a call returns."""
    return functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else None


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    """Torch works with this many CPU threads inside the block.

    Raises:
        InputError: fewer than one.
    """
    threads = whole_number("threads", threads, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_at_least_one(**numbers: Any) -> None:
    """Raise InputError unless these arguments are whole numbers of 1 or more."""
    for name, value in numbers.items():
        whole_number(name, value, 1)


PICTURES = (".png", ".svg", ".pdf")


def check_picture(picture: str | Path | None) -> Path | None:
    """Where a picture is to be written; InputError if it cannot be, before minutes have gone into its numbers."""
    path = None if picture is None else user_path("picture", picture)
    if path is not None and path.suffix not in PICTURES:
        raise InputError(f"picture: got {str(path)!r}; allowed: a name that ends in {', '.join(PICTURES)}")
    if path is not None and not path.resolve().parent.is_dir():
        raise InputError(f"picture: got {str(path)!r}; allowed: a file in a folder that is there")
    return path


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a Python process of its own.

    Raises:
        RunError: the process was ended from outside, for example because memory ran out.
    """
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        name = getattr(function, "__name__", "a measurement")
        raise RunError(f"bench: the process of {name} was ended from outside; is there enough memory?") from error


def quartiles(values: list[float]) -> dict[str, float]:
    """`median`, `low` and `high`, the middle half of the values."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


def forget_peak() -> None:
    """Let `peak_megabytes` begin again from what this process holds now; does nothing where there is no way to."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    """The most memory that this process has held, in MB (2**20 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's own `ru_maxrss` begins with the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
