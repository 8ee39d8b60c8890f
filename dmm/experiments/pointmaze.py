"""DMM, stock Mamba and the data's behaviour on `dmm/pointmaze/umaze-v0`, several training seeds each.

    python -m dmm.experiments.pointmaze --out notebooks/results/pointmaze.json

Every policy is trained with the settings of the book's training chapter and its last checkpoint evaluated at return
targets 1 and 0. Runs are kept in `--runs`; a second call goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

DATASET = "dmm/pointmaze/umaze-v0"
STEPS = 3000
CHANGES: dict[str, dict[str, Any]] = {
    "dmm": {"learning_rate": 1e-3},
    "mamba": {"learning_rate": 1e-3, "layers": 4},  # 132,226 weights against DMM's 123,650
}
"""Changes to the defaults, per model: a higher learning rate for a short run, and layers that equalise the size."""
TARGETS = (1.0, 0.0)
EPISODES = 200


@dataclass(frozen=True)
class Job:
    model: str
    seed: int
    runs: Path


def train_and_evaluate(job: Job) -> dict[str, Any]:
    """One policy: its size, training time, and scores with the interval over episodes."""
    import torch

    from dmm.evaluation import evaluate
    from dmm.training import train

    torch.set_num_threads(1)
    folder, changes = job.runs / f"{job.model}-seed{job.seed}", CHANGES[job.model]
    run = train(
        DATASET,
        job.model,
        steps=STEPS,
        seed=job.seed,
        out=folder,
        resume=True,
        changes=changes,
        progress=False,
        device="cpu",
    )
    result = evaluate(run, episodes=EPISODES, targets=TARGETS, progress=False)
    print(job.model, job.seed, [round(s.normalized_score or 0.0, 1) for s in result.scores], flush=True)
    return {
        "model": job.model,
        "seed": job.seed,
        "weights": run.policy.parameter_count(),
        "loss": float(run.log["loss"][-1]),
        "seconds": float(run.log["seconds"][-1]),
        "scores": [
            {"target": s.target, "normalized_score": s.normalized_score, "ci95": list(s.ci95)} for s in result.scores
        ],
    }


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over training seeds and its 95 % interval (Student's t), per model and target."""
    summary = []
    for model in CHANGES:
        for i, target in enumerate(TARGETS):
            values = np.array([row["scores"][i]["normalized_score"] for row in rows if row["model"] == model])
            half = (
                stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
                if len(values) > 1
                else 0
            )
            summary.append(
                {
                    "model": model,
                    "target": target,
                    "mean": values.mean(),
                    "ci95": [values.mean() - half, values.mean() + half],
                }
            )
    return summary


def reference_rows() -> dict[str, Any]:
    """What the comparison is held against: the data's own success and that of random actions."""
    from dmm.data.trajectories import load_trajectories
    from dmm.evaluation import RandomActor, rollout, score

    data = load_trajectories(DATASET)
    chance = score(
        rollout(RandomActor(data.action_size), data.make_env, episodes=EPISODES, seed=10_000), 0.0, data.reference
    )
    behaviour = 100 * data.returns()
    half = 1.96 * behaviour.std() / np.sqrt(len(behaviour))
    return {
        "behaviour": {"mean": behaviour.mean(), "ci95": [behaviour.mean() - half, behaviour.mean() + half]},
        "random": {"mean": chance.normalized_score, "ci95": list(chance.ci95)},
        "dataset": {"id": DATASET, "fingerprint": data.fingerprint(), "transitions": data.transitions},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Remake the comparison on the point maze.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/pointmaze"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    from dmm.data.collect import collect

    collect(DATASET)
    jobs = [Job(model, seed, args.runs) for seed in range(args.seeds) for model in CHANGES]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        rows = pool.map(train_and_evaluate, jobs, chunksize=1)
    settings = {"steps": STEPS, "changes": CHANGES, "episodes": EPISODES, "targets": TARGETS, "seeds": args.seeds}
    machine = {"processor": platform.machine(), "python": platform.python_version()}
    result = {"settings": settings, "machine": machine, **reference_rows(), "summary": summarize(rows), "runs": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
