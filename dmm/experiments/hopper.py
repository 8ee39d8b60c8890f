"""A DMM on `dmm/hopper/medium-v0` after 10,000 updates on a CPU, and what it scores on the way there.

    python -m dmm.experiments.hopper

The command behind it is `dmm train dmm/hopper/medium-v0 --steps 10000` with weights kept four times on the way. Each is
evaluated at both default targets, so that the score of the last checkpoint can be held against the best of all
checkpoints and targets, which is what the released code reports.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dmm.experiments import RESULTS, path_argument, write_result

DATASET = "dmm/hopper/medium-v0"
STEPS = 10_000
KEEP = 2_500
EPISODES = 50


def train_and_evaluate(folder: Path, seed: int) -> dict[str, Any]:
    """One training run and the scores of its kept weights."""
    from dmm.evaluation import evaluate
    from dmm.training import load_run, train

    run = train(DATASET, steps=STEPS, seed=seed, out=folder, resume=True, changes={"keep_every": KEEP}, device="cpu")
    checkpoints = []
    for step in range(KEEP, STEPS + 1, KEEP):
        result = evaluate(load_run(folder, step), episodes=EPISODES)
        scores = [
            {"target": s.target, "normalized_score": s.normalized_score, "ci95": list(s.ci95)} for s in result.scores
        ]
        checkpoints.append({"step": step, "scores": scores})
    return {
        "seed": seed,
        "weights": run.policy.parameter_count(),
        "seconds": float(run.log["seconds"][-1]),
        "checkpoints": checkpoints,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Remake the Hopper result.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "hopper.json")
    parser.add_argument("--runs", type=path_argument, default=Path("runs/hopper"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--transitions", type=int, help="size of the data set; the recipe's own if left out")
    args = parser.parse_args()

    from dmm.data.collect import collect
    from dmm.data.trajectories import load_trajectories

    made = collect(DATASET, transitions=args.transitions)
    rows = [train_and_evaluate(args.runs / f"seed{seed}", seed) for seed in range(args.seeds)]
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
