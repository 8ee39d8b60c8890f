"""A DMM on `dmm/hopper/medium-v0` after 10,000 updates on a CPU, and what it scores on the way there.

    python -m dmm.experiments.hopper

The command behind it is `dmm train dmm/hopper/medium-v0 --steps 10000` with weights kept four times on the way. Each is
evaluated at both default targets, so that the score of the last checkpoint can be held against the best of all
checkpoints and targets, which is what the released code reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmm.experiments import write_result
from dmm.experiments.grid import Job, argument_parser, train_job
from dmm.experiments.queue import run_jobs
from dmm.experiments.reproduce import score_checkpoints

DATASET = "dmm/hopper/medium-v0"
STEPS = 10_000
KEEP = 2_500
EPISODES = 50
TARGETS = (3600.0, 7200.0)


def train_and_evaluate(job: Job) -> dict[str, Any]:
    """One training run and the scores of its kept weights."""
    run = train_job(job)
    checkpoints = score_checkpoints(job, run)
    for checkpoint in checkpoints:
        for score in checkpoint["scores"]:
            del score["returns"]
    return {
        "seed": job.seed,
        "weights": run.policy.parameter_count(),
        "seconds": float(run.log["seconds"][-1]),
        "checkpoints": checkpoints,
    }


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every seed."""
    return [
        Job("dmm", seed, runs / f"seed{seed}", DATASET, "dmm", STEPS, TARGETS, EPISODES, checkpoints=STEPS // KEEP)
        for seed in range(seeds)
    ]


def main() -> None:
    parser = argument_parser("hopper", "Remake the Hopper result.", seeds=2)
    parser.add_argument("--transitions", type=int, help="size of the data set; the recipe's own if left out")
    args = parser.parse_args()

    from dmm.data.collect import collect
    from dmm.data.trajectories import load_trajectories

    made = collect(DATASET, transitions=args.transitions)
    rows = run_jobs(train_and_evaluate, make_jobs(args.runs, args.seeds), args.workers)
    result = {
        "settings": {"steps": STEPS, "episodes": EPISODES, "seeds": args.seeds},
        "behaviour": made.normalized_score,
        "dataset": {
            "id": DATASET,
            "fingerprint": load_trajectories(DATASET).fingerprint(),
            "transitions": made.transitions,
        },
        "runs": rows,
    }
    write_result(args.out, result)


if __name__ == "__main__":
    main()
