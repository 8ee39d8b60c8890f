"""Every model of single episodes on `dmm/pointmaze/umaze-v0`, at the sizes that all share, beside random actions.

    python -m dmm.experiments.all_models

All are trained with the settings of the book's training chapter, and their last checkpoints evaluated at return targets
1 and 0, which those that ask for no return cannot tell apart. Runs are kept in `--runs`; a second call goes on where a
killed one stopped, and trains what the registry has got since.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmm.experiments import write_result
from dmm.experiments.grid import Job, arguments, machine, summarize_pooled, train_and_score
from dmm.experiments.pointmaze import DATASET, maze_job, maze_settings, reference_rows
from dmm.experiments.queue import run_jobs

CHANGES: dict[str, dict[str, Any]] = {
    "dmm-paper": {"rtg_scale": 1.0},  # returns of 0 and 1 over its 1000 would be one number
    **{name: {"learning_rate": 3e-4} for name in ("td3bc", "cql", "iql")},  # their own, of critics, too
    "ds4": {"batch_size": 8},  # whole trajectories, which hold 1,200 steps, more than twice those of 64 windows of 8
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"rvs-r, raw": ("rvs-r", {"average_scale": 1.0})}
"""Beside the models: the condition of RvS-R as its authors have it."""


def shown_models() -> list[str]:
    """The names of all models that lists show, but for those that learn over several episodes of a task."""
    from dmm.models.registry import MODELS

    return [name for name, model in MODELS.items() if not (model.hidden or model.in_context)]


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every model and variant, each seed."""
    entries = {name: (name, CHANGES.get(name, {})) for name in shown_models()} | VARIANTS
    return [
        maze_job(name, seed, runs, changes, model)
        for name, (model, changes) in entries.items()
        for seed in range(seeds)
    ]


def main() -> None:
    args = arguments("all_models", "Train and score every model on the point maze.", seeds=1)

    from dmm.data.collect import collect

    collect(DATASET)
    rows = run_jobs(train_and_score, make_jobs(args.runs, args.seeds), args.workers)
    settings = {**maze_settings(args.seeds), "changes": CHANGES, "variants": VARIANTS}
    result = {"settings": settings, "machine": machine(), **reference_rows()}
    write_result(args.out, {**result, "summary": summarize_pooled(rows), "runs": rows})


if __name__ == "__main__":
    main()
