"""DMM and stock Mamba on `dmm/pointmaze/umaze-v0`, several training seeds each, beside the data's own behaviour.

    python -m dmm.experiments.pointmaze

Every policy is trained with the settings of the book's training chapter, and its last checkpoint evaluated at return
targets 1 and 0. `ENTRIES` also holds variants that ask where a difference comes from, with one seed each. Runs are kept
in `--runs`; a second call goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dmm.experiments import RESULTS, write_result

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


@dataclass(frozen=True)
class Job:
    name: str
    seed: int
    runs: Path


def describe_entries() -> dict[str, Any]:
    """`ENTRIES` as plain values, for the result file."""
    return {name: dataclasses.asdict(entry) for name, entry in ENTRIES.items()}


def train_and_evaluate(job: Job) -> dict[str, Any]:
    """One policy: its size, training time, and scores with the interval over episodes."""
    import torch

    from dmm.evaluation import evaluate
    from dmm.training import train

    torch.set_num_threads(1)
    entry, folder = ENTRIES[job.name], job.runs / f"{job.name.replace(', ', '-').replace(' ', '-')}-seed{job.seed}"
    run = train(
        DATASET,
        entry.model,
        steps=STEPS * entry.steps_factor,
        seed=job.seed,
        out=folder,
        resume=True,
        changes={"learning_rate": LEARNING_RATE, **entry.changes},
        progress=False,
        device="cpu",
    )
    result = evaluate(run, episodes=EPISODES, targets=TARGETS, progress=False)
    print(job.name, job.seed, [round(s.normalized_score or 0.0, 1) for s in result.scores], flush=True)
    return {
        "name": job.name,
        "seed": job.seed,
        "weights": run.policy.parameter_count(),
        "loss": float(run.log["loss"][-1]),
        "seconds": float(run.log["seconds"][-1]),
        "scores": [
            {"target": s.target, "normalized_score": s.normalized_score, "ci95": list(s.ci95)} for s in result.scores
        ],
    }


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over training seeds and its 95 % interval (Student's t; None for a single seed), per entry and target."""
    summary = []
    for name in dict.fromkeys(row["name"] for row in rows):
        for i, target in enumerate(TARGETS):
            values = np.array([row["scores"][i]["normalized_score"] for row in rows if row["name"] == name])
            mean, n, interval = float(values.mean()), len(values), None
            if n > 1:
                half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
                interval = [mean - half, mean + half]
            summary.append({"name": name, "target": target, "mean": mean, "ci95": interval, "seeds": n})
    return summary


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
    parser = argparse.ArgumentParser(description="Remake the comparison on the point maze.")
    parser.add_argument("--out", type=Path, default=RESULTS / "pointmaze.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/pointmaze"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    from dmm.data.collect import collect

    collect(DATASET)
    jobs = [
        Job(name, seed, args.runs)
        for name, entry in ENTRIES.items()
        for seed in range(1 if entry.variant else args.seeds)
    ]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        rows = pool.map(train_and_evaluate, jobs, chunksize=1)
    settings = {
        "steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "entries": describe_entries(),
        "episodes": EPISODES,
        "targets": TARGETS,
        "seeds": args.seeds,
    }
    machine = {"processor": platform.machine(), "python": platform.python_version()}
    result = {"settings": settings, "machine": machine, **reference_rows(), "summary": summarize(rows), "runs": rows}
    write_result(args.out, result)


if __name__ == "__main__":
    main()
