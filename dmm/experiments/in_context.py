"""Learning in context in the small dark room: 20 episodes in a row of each held-out goal, for every model that can.

    python -m dmm.experiments.in_context

Trained on learning histories of other goals (`dmm/darkroom/histories-v0`), each policy plays the 16 goals that no data
were about, with its weights as they are. The result holds the return of every episode of every goal. `dt`, which does
not learn in context, is the control; `dmh-learning` is `dmh` with the contexts of `ad` (`AS_LEARNED`), and each of
`APART` that with one setting put back. Budgets are a few minutes on one core each, not equal ones: the question is
whether a policy gets better from episode to episode, not which model is best; that is `dmm reproduce dmh-figure2`.

A run that is stopped goes on from its checkpoint when the command is given again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmm.experiments import write_result
from dmm.experiments.grid import Job, argument_parser, slug, train_job
from dmm.experiments.queue import run_jobs
from dmm.experiments.reproduce import context_returns, play_job

DATASET = "dmm/darkroom/histories-v0"
TASKS, EPISODES, TARGET = 16, 20, 20.0
SHARED: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 16, "clip": 1.0, "layers": 2, "dropout": 0.0}


AS_LEARNED = {"order": "learning", "learned": "all", "noise": "off", "plan_size": 16, "window": "group"}
"""Changes that let a hierarchy learn from histories as Algorithm Distillation does: episodes in the order in which they
were learned, from the very first on, all of whose actions count, and plans that no noise drowns."""


@dataclass(frozen=True)
class Entry:
    """How a model is trained."""

    model: str
    steps: int
    changes: dict[str, Any] = field(default_factory=dict)
    most_seeds: int | None = None  # of it are trained, however many are asked for


ENTRIES = {
    "ad-mamba": Entry("ad-mamba", 2_000, {"embed_dropout": 0.0}),
    "dmh": Entry("dmh", 1_000),
    "dpt": Entry("dpt", 4_000),
    "ad": Entry("ad", 1_000, {"embed_dropout": 0.0}),
    "hdt": Entry("hdt", 1_000),
    "at": Entry("at", 1_000),
    "dmh-learning": Entry("dmh", 2_000, AS_LEARNED),
    "dt": Entry("dt", 1_000),
}
APART = {
    f"dmh-learning, {back} as dmh": Entry(
        "dmh", 2_000, {name: value for name, value in AS_LEARNED.items() if name != back}, most_seeds=1
    )
    for back in AS_LEARNED
} | {"dmh-learning, all as dmh": Entry("dmh", 2_000, most_seeds=1)}
"""`dmh-learning` with one of its settings as `dmh` has it, and with all of them, which is `dmh` trained as long."""


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Seed 0 of every entry before seed 1 of any."""
    return [
        Job(
            name,
            seed,
            runs / f"{slug(name)}-seed{seed}",
            DATASET,
            entry.model,
            entry.steps,
            (TARGET,),
            TASKS,
            changes=SHARED | entry.changes,
            episodes_in_context=EPISODES,
        )
        for seed in range(seeds)
        for name, entry in (ENTRIES | APART).items()
        if entry.most_seeds is None or seed < entry.most_seeds
    ]


def train_and_play(job: Job) -> dict[str, Any]:
    """A job's row: size, time, and the returns of every goal's episodes."""
    run = train_job(job)
    checkpoint = {"step": run.step, "scores": play_job(job, run)}
    return {
        "name": job.name,
        "seed": job.seed,
        "weights": run.policy.parameter_count(),
        "loss": float(run.log["loss"][-1]),
        "seconds": float(run.log["seconds"][-1]),
        "checkpoints": [checkpoint],
    }


def describe_settings(seeds: int) -> dict[str, Any]:
    """What the numbers depend on, as plain values."""
    entries = {
        name: {"model": e.model, "steps": e.steps, "changes": SHARED | e.changes, "most_seeds": e.most_seeds}
        for name, e in (ENTRIES | APART).items()
    }
    return {"tasks": TASKS, "episodes": EPISODES, "target": TARGET, "seeds": seeds, "entries": entries}


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run: the first and the last episode and what lies between, means over goals with their intervals."""
    from dmm.evaluation_in_context import Mean

    made = []
    for row in rows:
        returns = context_returns(row)
        numbers = {"first": returns[:, 0], "last": returns[:, -1], "improvement": returns[:, -1] - returns[:, 0]}
        said = {name: Mean.of(values).to_json() for name, values in numbers.items()}
        made.append({"name": row["name"], "seed": row["seed"], **said})
    return made


def main() -> None:
    parser = argument_parser("in_context", "Remake the result on learning in context.", seeds=1)
    args = parser.parse_args()

    from dmm.data.collect import collect
    from dmm.data.trajectories import load_trajectories

    collect(DATASET)
    rows = run_jobs(train_and_play, make_jobs(args.runs, args.seeds), args.workers)
    result = {
        "settings": describe_settings(args.seeds),
        "dataset": {"id": DATASET, "fingerprint": load_trajectories(DATASET).fingerprint()},
        "summary": summarize(rows),
        "runs": rows,
    }
    write_result(args.out, result)


if __name__ == "__main__":
    main()
