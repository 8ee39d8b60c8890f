"""What each difference between paper and released code changes: one switch of `DMMConfig` at a time, on the point maze.

    python -m dmm.experiments.switches

Each entry is the package's default with one change, trained as in the book's training chapter, with several seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmm.experiments.grid import Job, train_and_score
from dmm.experiments.pointmaze import compare_on_maze, maze_job

ENTRIES: dict[str, dict[str, Any]] = {
    "default": {},
    "residual: normalized": {"residual": "normalized"},  # equation 3
    "share_norms": {"share_norms": True},  # code
    "share_dsm": {"share_dsm": True},  # table 4
    "share_dsm, not trained": {"share_dsm": True, "train_dsm": False},  # code for AntMaze and Kitchen
    "dsm_bias": {"dsm_bias": True},  # "affine", paper
    "expand: 2": {"expand": 2},  # Mamba, and so the paper's text
    "step_init: wiped": {"step_init": "wiped"},  # code
    "padding: released": {"padding": "released"},  # code
    "rtg_scale: 1000": {"rtg_scale": 1000.0},  # paper
    "local_mixer: depthwise": {"local_mixer": "depthwise"},  # table 3
    "local_mixer: multimodal": {"local_mixer": "multimodal"},  # table 9
    "a_init: uniform": {"a_init": "uniform"},  # table 8
}


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every entry and seed; seed 0 of all before seed 1 of any."""
    return [maze_job(name, seed, runs, changes) for seed in range(seeds) for name, changes in ENTRIES.items()]


def main() -> None:
    compare_on_maze(
        "switches", "Remake the comparison of paper and released code.", make_jobs, train_and_score, entries=ENTRIES
    )


if __name__ == "__main__":
    main()
