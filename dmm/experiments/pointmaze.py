"""DMM and stock Mamba on `dmm/pointmaze/umaze-v0`, several training seeds each, beside the data's own behaviour.

    python -m dmm.experiments.pointmaze

Every policy is trained with the settings of the book's training chapter, and its last checkpoint evaluated at return
targets 1 and 0. `ENTRIES` also holds variants that ask where a difference comes from, with one seed each. Runs are kept
in `--runs`; a second call goes on where a killed one stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmm.experiments import write_result
from dmm.experiments.grid import Job, arguments, machine, slug, summarize, summarize_pooled, train_and_score
from dmm.experiments.queue import run_jobs

DATASET = "dmm/pointmaze/umaze-v0"
STEPS = 3000
TARGETS = (1.0, 0.0)
EPISODES = 200


@dataclass(frozen=True)
class Entry:
    """A policy of the comparison: a model name, changes to its defaults, and how long and how often it is trained."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    steps_factor: int = 1  # times STEPS
    variant: bool = False  # trained with one seed only


ENTRIES: dict[str, Entry] = {
    "dmm": Entry("dmm"),  # 123,650 weights
    # 171,842 weights: equation 3 and Mamba's expansion of 2, but returns of 0 and 1 are not divided by 1000
    "dmm-paper": Entry("dmm-paper", {"rtg_scale": 1.0}),
    "mamba": Entry("mamba", {"layers": 4}),  # 132,226 weights
    "dmm, twice as long": Entry("dmm", steps_factor=2, variant=True),
    "mamba, 3 layers": Entry("mamba", {"layers": 3}, variant=True),
}
LEARNING_RATE = 1e-3
"""Ten times the paper's, for a run of 3,000 updates instead of 100,000."""


def describe_entries() -> dict[str, Any]:
    """`ENTRIES` as plain values, for the result file."""
    return {name: dataclasses.asdict(entry) for name, entry in ENTRIES.items()}


def maze_job(
    name: str, seed: int, runs: Path, changes: dict[str, Any], model: str = "dmm", steps: int | None = None
) -> Job:
    """A policy for the point maze, trained and scored as in the book's training chapter."""
    return Job(
        name=name,
        seed=seed,
        folder=runs / f"{slug(name)}-seed{seed}",
        dataset=DATASET,
        model=model,
        steps=steps or STEPS,
        targets=TARGETS,
        episodes=EPISODES,
        changes={"learning_rate": LEARNING_RATE, **changes},
    )


def maze_settings(seeds: int) -> dict[str, Any]:
    """What `maze_job` fixes, for result files."""
    return {
        "dataset": DATASET,
        "steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "episodes": EPISODES,
        "targets": TARGETS,
        "seeds": seeds,
    }


def compare_on_maze(
    name: str,
    description: str,
    make_jobs: Callable[[Path, int], list[Job]],
    work: Callable[[Job], dict[str, Any]],
    **settings: Any,
) -> None:
    """The command of an experiment whose jobs are all `maze_job`s: train, score, and write its result file."""
    args = arguments(name, description, seeds=3)

    from dmm.data.collect import collect

    collect(DATASET)
    rows = run_jobs(work, make_jobs(args.runs, args.seeds), args.workers)
    result = {"settings": {**maze_settings(args.seeds), **settings}, "machine": machine()}
    write_result(args.out, {**result, "summary": summarize_pooled(rows), "runs": rows})


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every entry and seed; variants have one seed only."""
    return [
        maze_job(name, seed, runs, entry.changes, entry.model, STEPS * entry.steps_factor)
        for name, entry in ENTRIES.items()
        for seed in range(1 if entry.variant else seeds)
    ]


def reference_rows() -> dict[str, Any]:
    """What the comparison is held against: the data's own success and that of random actions."""
    from dmm.data.trajectories import load_trajectories
    from dmm.evaluation import RandomActor, bootstrap_interval, rollout

    data = load_trajectories(DATASET)
    chance = rollout(RandomActor(data.action_size), data.make_env, episodes=EPISODES, seed=10_000).returns
    shares = {"behaviour": 100 * data.returns(), "random": 100 * chance}
    rows = {name: {"mean": float(v.mean()), "ci95": list(bootstrap_interval(v))} for name, v in shares.items()}
    return {
        **rows,
        "dataset": {"id": DATASET, "fingerprint": data.fingerprint(), "transitions": data.transitions},
    }


def main() -> None:
    args = arguments("pointmaze", "Remake the comparison on the point maze.", seeds=5)

    from dmm.data.collect import collect

    collect(DATASET)
    rows = run_jobs(train_and_score, make_jobs(args.runs, args.seeds), args.workers)
    settings = {**maze_settings(args.seeds), "entries": describe_entries()}
    result = {"settings": settings, "machine": machine(), **reference_rows(), "summary": summarize(rows), "runs": rows}
    write_result(args.out, result)


if __name__ == "__main__":
    main()
