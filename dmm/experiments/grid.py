"""What the experiments share: a policy as a job, trained and scored wherever it runs, and summaries over seeds."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from dmm.errors import InputError
from dmm.experiments import MODELS, RESULTS, path_argument
from dmm.files import strict_json

if TYPE_CHECKING:
    from dmm.data.trajectories import Trajectories
    from dmm.evaluation import Score
    from dmm.policy import Policy
    from dmm.training import Run


DEVICE = "DMM_JOB_DEVICE"
"""The variable by which a runner tells its workers where to train, `cpu` if it tells nothing."""


@dataclass(frozen=True)
class Job:
    """One policy: what it is trained on and how, and how it is scored."""

    name: str  # of the entry that it is a seed of
    seed: int
    folder: Path  # of the run; a killed job goes on from there
    dataset: str
    model: str
    steps: int
    targets: tuple[float, ...]
    episodes: int
    changes: dict[str, Any] = field(default_factory=dict)
    transitions: int | None = None  # of the data set; its recipe's own number if not given
    checkpoints: int = 1  # that are scored, at equal distances; 1 is the last alone
    max_steps: int | None = None  # of an episode that is played; the environment's own if not given
    episodes_in_context: int = 0  # played in a row of each of `episodes` held-out tasks; 0: single episodes
    row: Path | None = None  # where its outcome is kept; `row.json` beside the run if not given

    @property
    def row_file(self) -> Path:
        """Where the outcome is kept."""
        return self.row or self.folder / "row.json"

    def described(self) -> dict[str, Any]:
        """What decides the outcome, as plain values; where it is worked on does not."""
        fields = dataclasses.asdict(self) | {"folder": self.folder.name}
        fields.pop("row")
        plain: dict[str, Any] = json.loads(json.dumps(fields))
        return plain

    def is_described_by(self, kept: Any) -> bool:
        """Whether that is this job; fields that did not exist when it was written have their defaults."""
        defaults: dict[str, Any] = {"changes": {}, "transitions": None, "checkpoints": 1, "max_steps": None}
        defaults["episodes_in_context"] = 0
        return isinstance(kept, dict) and defaults | kept == self.described()


def train_job(job: Job, data: Trajectories | None = None) -> Run:
    """Train a job's policy on one thread, or finish it; weights at the checkpoints that are scored are kept.

    `data` is the job's data set, where it has been loaded already.
    """
    import torch

    from dmm.training import train

    torch.set_num_threads(1)
    if job.steps % job.checkpoints:
        raise InputError(f"checkpoints: got {job.checkpoints}, allowed are divisors of the job's {job.steps:,} updates")
    keep = {"keep_every": job.steps // job.checkpoints} if job.checkpoints > 1 else {}
    return train(
        job.dataset if data is None else data,
        job.model,
        steps=job.steps,
        seed=job.seed,
        out=job.folder,
        resume=True,
        changes=keep | job.changes,
        progress=False,
        device=os.environ.get(DEVICE, "cpu"),
    )


def round_weights(policy: Policy) -> None:
    """Round the weights to half precision, the form in which runs are kept, so that scores are of what is kept."""
    import torch

    with torch.no_grad():
        for weight in policy.parameters():
            weight.copy_(weight.half())


def score_job(job: Job, run: Run) -> dict[str, Any]:
    """Size, training time and last checkpoint's scores, with intervals over episodes."""
    from dmm.evaluation import evaluate

    result = evaluate(run, episodes=job.episodes, targets=job.targets, progress=False)
    return {
        "name": job.name,
        "seed": job.seed,
        "weights": run.policy.parameter_count(),
        "loss": float(run.log["loss"][-1]),
        "seconds": float(run.log["seconds"][-1]),
        "scores": [describe_score(score) for score in result.scores],
    }


def describe_score(score: Score) -> dict[str, Any]:
    """A target's score without its episodes, as plain values."""
    return {"target": score.target, "normalized_score": score.normalized_score, "ci95": list(score.ci95)}


def train_and_score(job: Job) -> dict[str, Any]:
    """`train_job`, then `score_job`."""
    return score_job(job, train_job(job))


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over training seeds and its 95 % interval (Student's t; None for a single seed), per entry and target."""
    summary = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        for i, score in enumerate(own[0]["scores"]):
            values = [row["scores"][i]["normalized_score"] for row in own]
            summary.append({"name": name, "target": score["target"], **mean_interval(values), "seeds": len(own)})
    return summary


def summarize_pooled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`summarize` for many entries with few seeds each: one standard deviation for all, pooled per target.

    The interval is Student's t with the degrees of freedom of all entries together. It rests on the assumption that
    seeds scatter alike in every entry, which two or three seeds each cannot check.
    """
    summary = summarize(rows)
    for each in summary:
        groups = [
            _scores(rows, other["name"], each["target"]) for other in summary if other["target"] == each["target"]
        ]
        freedom = sum(len(group) - 1 for group in groups)
        if freedom:
            pooled = np.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom)
            half = float(stats.t.ppf(0.975, freedom) * pooled / np.sqrt(each["seeds"]))
            each["ci95"] = [each["mean"] - half, each["mean"] + half]
    return summary


def _scores(rows: Sequence[dict[str, Any]], name: str, target: float) -> np.ndarray:
    own = [score for row in rows if row["name"] == name for score in row["scores"] if score["target"] == target]
    return np.array([score["normalized_score"] for score in own])


def mean_interval(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """`mean` of the values and `ci95`, Student's t interval of it; None for a single value."""
    numbers = np.asarray(values, dtype=np.float64)
    mean, n = float(numbers.mean()), len(numbers)
    if n < 2:
        return {"mean": mean, "ci95": None}
    half = float(stats.t.ppf(0.975, n - 1) * numbers.std(ddof=1) / np.sqrt(n))
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def keep_model(run: Run, name: str) -> None:
    """Commit a run under `MODELS / name`: its description, and its weights in half precision."""
    from safetensors.torch import save

    from dmm.training.checkpoints import policy_tensors, write_atomically

    folder = MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    trained = {id(weight) for weight in run.policy.parameters()}
    tensors = {
        f"policy.{key}": (tensor.half() if id(tensor) in trained else tensor).detach().contiguous()
        for key, tensor in policy_tensors(run.policy).items()
    }
    write_atomically(folder / "run.json", (strict_json(run.info, indent=1) + "\n").encode())
    write_atomically(folder / "checkpoint.safetensors", save(tensors, metadata={"step": str(run.step)}))


def argument_parser(name: str, description: str, *, seeds: int) -> argparse.ArgumentParser:
    """What every experiment's command takes: `out`, `runs`, `seeds`, `workers`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=path_argument, default=RESULTS / f"{name}.json", help="the result file to write")
    parser.add_argument("--runs", type=path_argument, default=Path("runs") / name, help="where runs are kept")
    parser.add_argument("--seeds", type=int, default=seeds, help="training seeds of each entry")
    parser.add_argument("--workers", type=int, default=2, help="policies trained at once, one thread each")
    return parser


def arguments(name: str, description: str, *, seeds: int) -> argparse.Namespace:
    """`argument_parser`, and what it was given."""
    return argument_parser(name, description, seeds=seeds).parse_args()


def slug(name: str) -> str:
    """An entry's name as part of a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def machine() -> dict[str, str]:
    """Where an experiment ran, for its result file."""
    return {"processor": platform.machine(), "python": platform.python_version()}
