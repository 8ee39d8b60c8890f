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
    chance, faults = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        calm, killed = Path(folder, "calm"), Path(folder, "killed")
        start, took = watch(calm)
        expected, written = outcomes(calm), dict[str, int]()
        print(
            f"undisturbed: {len(expected)} jobs in {took:.0f} s of processor time, the first after {start:.0f}",
            flush=True,
        )
        for kill in range(kills):
            process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL, start_new_session=True)
            until = chance.uniform(0.5 * start, start + (took - start) / 3)
            while process.poll() is None and spent(process) < until:
                time.sleep(0.05)
            if chance.random() < 0.5:  # the head alone, whose workers have to notice, or all at once
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for file in (killed / "rows").rglob("*.json"):
                now = file.stat().st_mtime_ns
                faults += written.setdefault(file.name, now) != now
            print(f"kill {kill + 1}: {len(written)} of {len(expected)} jobs are done", flush=True)
        subprocess.run(command(killed), check=True)
        found = outcomes(killed)
        faults += sum(found.get(name) != row for name, row in expected.items()) + (found.keys() != expected.keys())
        faults += len(list(killed.rglob(".*.json.*")))  # what a killed process was writing
    print(f"{kills} kills, {faults} faults")
    return faults


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
