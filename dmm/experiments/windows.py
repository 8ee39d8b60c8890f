"""How far should the Dense Sequence Mixer see? DMM on the point maze with every window from 1 to 12 tokens.

    python -m dmm.experiments.windows

All else is as in the book's training chapter. Several seeds each; the policies of seed 0 are kept as files, from which
the book draws their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmm.experiments.grid import Job, keep_model, round_weights, score_job, train_job
from dmm.experiments.pointmaze import compare_on_maze, maze_job

WINDOWS = tuple(range(1, 13))


def window_name(window: int) -> str:
    """How a window's entry, and its committed run, is called."""
    return f"w{window:02d}"


def train_and_keep(job: Job) -> dict[str, Any]:
    """One policy, scored; the one of seed 0 is also kept."""
    run = train_job(job)
    round_weights(run.policy)
    if job.seed == 0:
        keep_model(run, f"windows/{job.name}")
    return {**score_job(job, run), "window": job.changes["window"]}


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every window and seed; seed 0 of all before seed 1 of any."""
    return [maze_job(window_name(w), seed, runs, {"window": w}) for seed in range(seeds) for w in WINDOWS]


def main() -> None:
    compare_on_maze("windows", "Remake the comparison of window sizes.", make_jobs, train_and_keep, windows=WINDOWS)


if __name__ == "__main__":
    main()
