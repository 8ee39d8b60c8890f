"""The functions here are what the processes are given to do: fresh interpreters import this module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmm.errors import InputError, RunError
from dmm.processes import in_processes
from tests.conftest import ROOT


def describe(shared: dict[str, Any], name: str, report: Callable[..., None]) -> None:
    print("what a library prints")
    large, tensor = shared["large"], shared["tensor"]
    mapped = isinstance(large.base, np.memmap) or isinstance(large, np.memmap)
    report(name, float(large.sum()), float(tensor.sum()), mapped, os.getpid(), os.environ["OMP_NUM_THREADS"])


def fail(shared: Any, how: str, report: Callable[..., None]) -> None:
    if how == "input":
        raise InputError("seed: got 1")
    if how == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000000 bytes")
    if how == "bug":
        raise KeyError("a bug")
    os.kill(os.getpid(), signal.SIGKILL)


def wait(shared: Any, report: Callable[..., None]) -> None:
    report(os.getpid())
    time.sleep(600)


def test_large_arrays_are_mapped_and_reports_arrive() -> None:
    shared = {"large": np.ones((2**18, 2)), "tensor": torch.ones(2**19), "small": np.ones(3), "rng": torch.Generator()}
    said: list[tuple[Any, ...]] = []
    in_processes(describe, shared, {"a": ("x",), "b": ("y",)}, workers=2, report=lambda *each: said.append(each))
    assert sorted(each[:4] for each in said) == [("x", 2.0**19, 2.0**19, True), ("y", 2.0**19, 2.0**19, True)]
    assert len({each[4] for each in said} | {os.getpid()}) == 3 and {each[5] for each in said} == {"1"}


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("input", InputError, r"^seed: got 1$"),
        ("memory", RunError, r"^memory: there is not enough for this"),
        ("bug", RuntimeError, r"^job:\nTraceback(.|\n)*KeyError: 'a bug'"),
        pytest.param(
            "kill",
            RunError,
            r"^job: its process was ended from outside \(SIGKILL\)",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind"),
        ),
    ],
)
def test_a_failure_is_that_of_the_call(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        in_processes(fail, None, {"job": (how,)}, workers=1, report=print)


PARENT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process inherits
import sys
from dmm.processes import in_processes
from tests.test_processes import wait
in_processes(wait, None, {"a": ()}, workers=1, report=lambda pid: print(pid, flush=True))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(way: signal.Signals, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(way)
    assert parent.wait(60) != 0
    until = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_running(worker) and list(tmp_path.glob("dmm-*")) == []


def is_running(pid: int) -> bool:
    """Not counting a process that has ended and that nobody has asked for its exit code."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:  # gone since, or a system without /proc
        return Path("/proc").exists() is False
    except ProcessLookupError:
        return False
