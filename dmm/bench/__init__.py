"""Measurements of this machine: everything that is compared is timed in one run, in turn, and reported as ratios."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was: read them with that in mind."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, calls: int = 1
) -> dict[str, dict[str, float]]:
    """Seconds per call of each candidate: `median`, `low` and `high` (quartiles) over `repeats` rounds.

    Every round times `calls` calls of each candidate in turn, so that whatever else the machine does meets all of them;
    a first round is thrown away.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, call in candidates.items():
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - begin) / calls)
    return {name: quartiles(values[1:]) for name, values in times.items()}


def quartiles(values: list[float]) -> dict[str, float]:
    """`median`, `low` and `high`, the middle half of the values."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


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
