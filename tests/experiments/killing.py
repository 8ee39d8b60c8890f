"""Kills a real queue of twelve smoke jobs again and again, and compares what comes out with an undisturbed one.

    python -m tests.experiments.killing --kills 20 --seed 0

By hand, since it takes minutes; `test_queue.py` does the like with jobs that only wait. Ends with 1 if a job was lost,
done twice, or came to something else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

NAMES = ("pointmaze", "table9/hopper-medium")
JOBS = 12


def command(place: Path) -> list[str]:
    """A queue whose first jobs are those of the point maze."""
    return [sys.executable, "-m", "tests.experiments.killing", "--work", str(place)]


def work(place: Path) -> None:
    """Work off the queue in this process's workers; what is killed."""
    from dmm.experiments.queue import work_off
    from dmm.experiments.reproduce import cells_for, make_jobs, train_and_score, use_own_data

    use_own_data(place, "smoke")
    cells = [cell for cell in cells_for(NAMES, "smoke") if cell.entry.model != "cql"]
    jobs = make_jobs(cells, "smoke", place, place / "rows")[:JOBS]
    work_off(train_and_score, jobs, workers=2, progress=False)


def outcomes(place: Path) -> dict[str, Any]:
    """By file: its job and row, without the seconds."""
    found = {}
    for file in sorted((place / "rows").rglob("*.json")):
        found[file.name] = json.loads(file.read_text())
        found[file.name]["row"].pop("seconds")
    return found


def spent(process: subprocess.Popen[bytes]) -> float:
    """Seconds of processor time that a queue and its workers have taken: how far it is, however busy the machine."""
    try:
        head = psutil.Process(process.pid)
        return sum(sum(each.cpu_times()[:2]) for each in [head, *head.children(recursive=True)])
    except psutil.NoSuchProcess:  # one has just ended
        return 0.0


def watch(place: Path) -> tuple[float, float]:
    """Processor time until the first outcome, and until the last, of a queue that nobody disturbs."""
    process, first, last = subprocess.Popen(command(place)), 0.0, 0.0
    while process.poll() is None:
        time.sleep(0.1)
        last = max(last, spent(process))
        if not first and list((place / "rows").rglob("*.json")):
            first = last
    if process.returncode:
        sys.exit(f"the undisturbed queue ended with {process.returncode}")
    return first, last


def play(kills: int, seed: int) -> int:
    """The whole comparison; how many faults there were."""
    chance, faults, done = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        first, calm = Path(folder, "first"), Path(folder, "calm")
        watch(first)  # makes what all share, as the compiled kernel
        start, took = watch(calm)
        expected = outcomes(calm)
        faults += outcomes(first) != expected
        said = f"undisturbed: {len(expected)} jobs in {took:.0f} s of processor time, the first after {start:.0f}"
        print(said, flush=True)
        for number in range(kills):  # of queues: each goes on until it is through, for as long as there are kills left
            place, written = Path(folder, f"killed-{number}"), dict[str, int]()
            while done < kills and len(written) < len(expected):
                until = chance.uniform(0.5 * start, start + (took - start) / 3)
                if not killed(place, until, all_at_once=chance.random() < 0.5):
                    break
                done += 1
                faults += changed(place, written)
                print(f"kill {done}, queue {number + 1}: {len(written)} of {len(expected)} jobs are done", flush=True)
            faults += judged(place, expected)
            if done == kills:
                break
    print(f"{done} kills of {number + 1} queues, {faults} faults")
    return faults


def killed(place: Path, until: float, all_at_once: bool) -> bool:
    """Begin or go on with a queue and kill it when it has had so many seconds; False if it ended before.

    Either the head alone is killed, whose workers have to notice, or all at once.
    """
    process = subprocess.Popen(command(place), stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and spent(process) < until:
        time.sleep(0.05)
    if process.poll() is not None:
        return False
    if all_at_once:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return True


def changed(place: Path, written: dict[str, int]) -> int:
    """How many outcomes were written a second time; `written` holds when each was first seen."""
    times = {file.name: file.stat().st_mtime_ns for file in (place / "rows").rglob("*.json")}
    return sum(written.setdefault(name, now) != now for name, now in times.items())


def judged(place: Path, expected: dict[str, Any]) -> int:
    """Finish a queue; how many of its outcomes are missing, others or too many, and files left behind by the killed."""
    subprocess.run(command(place), check=True)
    found = outcomes(place)
    other = sum(found.get(name) != row for name, row in expected.items()) + (found.keys() != expected.keys())
    return other + len(list(place.rglob(".*.json.*")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return 0
    return bool(play(given.kills, given.seed))


if __name__ == "__main__":
    sys.exit(main())
