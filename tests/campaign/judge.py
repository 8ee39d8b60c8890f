"""Runs commands on cases in a process that is kept, and says what went wrong."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SECONDS = 20
"""Of the processor; a machine that does much else at a time gives them slowly."""
MEMORY = 2 * 10**9
"""Bytes of addresses beyond those that the process has when it has imported everything."""
PATIENCE = 100
"""Seconds of the clock after which a command is taken to wait for ever."""


class TooLong(BaseException):
    """The time is over."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None  # None: not at all
    errors: str
    seconds: float
    trace: str = ""


class Worker:
    """A process that runs commands; started anew when one of them hangs."""

    def __init__(self, base: Path):
        self.base, self.process = base, None

    def run(self, case: Path, words: list[str]) -> Outcome:
        if self.process is None:
            context = get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, str(self.base)), daemon=True)
            self.process.start()
            theirs.close()
            self.pipe.recv()
        self.pipe.send((str(case), words))
        try:
            if self.pipe.poll(PATIENCE + SECONDS):
                return Outcome(*self.pipe.recv())
            reason = "does not answer"
        except EOFError:
            reason = "died"
        self.close()
        return Outcome(None, "", float(PATIENCE), f"the process {reason}")

    def close(self) -> None:
        if self.process is not None:
            self.pipe.close()  # one that waits for work then ends by itself
            self.process.join(5)
            self.process.kill()
            self.process.join()
            self.process = None


def judge(outcome: Outcome, case: Path) -> str | None:
    """What is wrong with a command's end, None where nothing is."""
    if (case / "called").exists():
        return "code of a file was run"
    if outcome.trace:
        return outcome.trace
    if outcome.seconds > SECONDS:
        return f"took {outcome.seconds:.0f} s"
    if outcome.code not in (0, 1, 2):
        return f"exit code {outcome.code}"
    said = [line.split("\r")[-1] for line in outcome.errors.split("\n")]
    told = [line for line in said if line.startswith("dmm: error: ")]
    other = [line for line in said if line.strip() and not line.startswith("dmm: ") and not _is_progress(line)]
    if other:
        return f"stderr has {other[0][:200]!r}"
    if len(told) != bool(outcome.code) or any(len(line) > 2000 for line in told):
        return f"{len(told)} lines for exit code {outcome.code}: {told[:1]}"[:300]
    return None


def _is_progress(line: str) -> bool:
    return line.startswith(("train:", "evaluate", "\x1b")) or "%|" in line


def _serve(pipe: Any, base: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(base) / "canary"))
    import matplotlib

    matplotlib.use("Agg")
    import dmm.inspection.report  # noqa: F401 (all imports lie before the limit of memory)
    from dmm.data.observations import register_environments

    register_environments()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _stop)
    signal.signal(signal.SIGPROF, _stop)
    pipe.send("ready")
    while True:
        try:
            case, words = pipe.recv()
        except EOFError:
            return
        pipe.send(_run(case, words))


def _stop(*_: Any) -> None:
    raise TooLong


def _run(case: str, words: list[str]) -> tuple[int | None, str, float, str]:
    from dmm.cli import _exit_code, app

    os.environ |= {"MINARI_DATASETS_PATH": f"{case}/sets", "CAMPAIGN_MARK": f"{case}/called"}
    os.chdir(case)
    errors, code, trace, began = io.StringIO(), None, "", time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = _exit_code(lambda: app(args=words, prog_name="dmm", standalone_mode=False))
    except TooLong:
        trace = f"too long, at {_place(traceback.extract_tb(sys.exc_info()[2]))}"
    except BaseException as error:
        trace = f"{type(error).__name__} at {_place(traceback.extract_tb(error.__traceback__))}: {error}"[:400]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return code, errors.getvalue(), time.process_time() - began, trace


def _place(frames: traceback.StackSummary) -> str:
    own = [frame for frame in frames if f"{os.sep}dmm{os.sep}" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"
