"""What stock Mamba, attention and DMM make of their tokens, after training on a dense and on a sparse reward.

    python -m dmm.experiments.gating

Three models of one frame (width 64, 8 time steps, 3 layers), two tasks, several training seeds each. Of every trained
policy the score of the last checkpoint is kept; on 128 windows (two batches of 64, as in the DMM paper's figure 4) the
norms of its activations, the norms of its gradients and what its gates let through; and what a linear probe can read
at the last state token before and behind each gate and at the end. The policies of seed 0 are kept as files, from which
the book draws its heat maps.

Hopper's windows are committed since its result file was made, and that file's were recorded on another kind of
processor: norms differ by up to a quarter and probes by up to 0.17 from those of the same policies on today's windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from dmm.experiments import write_result
from dmm.experiments.grid import (
    Job,
    arguments,
    keep_model,
    machine,
    mean_interval,
    round_weights,
    score_job,
    summarize,
    train_job,
)
from dmm.experiments.queue import run_jobs
from dmm.experiments.recorded import recorded_windows

CONTEXT = 8
WINDOWS = 128
PROBE_WINDOWS = (640, 320)
"""How many windows probes are fitted on and scored on."""


@dataclass(frozen=True)
class Task:
    """A data set, how long to train on it, and how to score; learning rates are for short runs, as in chapter 8."""

    dataset: str
    steps: int
    targets: tuple[float, ...]
    episodes: int
    preview_episodes: int  # whose windows are measured


TASKS: dict[str, Task] = {
    "pointmaze": Task("dmm/pointmaze/umaze-v0", 3000, (1.0, 0.0), 200, 100),
    "hopper": Task("dmm/hopper/medium-v0", 5000, (3600.0,), 50, 30),
}
ENTRIES: tuple[str, ...] = ("dmm", "mamba", "dt")
LEARNING_RATE = 1e-3


def run_name(task: str, model: str, seed: int) -> str:
    """How a run is called, in `--runs` and among the committed ones."""
    return f"{task}-{model}-seed{seed}"


def train_and_measure(job: Job) -> dict[str, Any]:
    """One policy: trained, scored and measured; the one of seed 0 is also kept."""
    run = train_job(job)
    round_weights(run.policy)
    if job.seed == 0:
        keep_model(run, f"gating/{job.folder.name}")
    task, _, model = job.name.partition("/")
    row = {**score_job(job, run), "task": task, "model": model, **measure(run.policy, task)}
    print(job.name, job.seed, [round(s["normalized_score"], 1) for s in row["scores"]], flush=True)
    return row


def measure(policy: Any, task: str) -> dict[str, Any]:
    """Norms, gradients and gate shares of a policy on the task's windows, as plain lists over tokens."""
    from dmm.inspection import Objective, activations, gate_shares, gradient_norms, token_norms

    windows = measured_windows(task, policy.context)
    return {
        "norms": {name: _rounded(token_norms(x)) for name, x in activations(policy, windows).items()},
        "gradients": {name: _rounded(gradient_norms(policy, windows, name)) for name in get_args(Objective)},
        "gates": {name: _rounded(share) for name, share in gate_shares(policy, windows).items()},
        "probes": probes(policy, task),
    }


def probes(policy: Any, task: str) -> dict[str, dict[str, float]]:
    """What can be read at the last state token, by place: R^2 for this step's return and state and the action before.

    Fitted on windows of some episodes and scored on windows of others. Places are the scan's output (`layer i, scan`),
    the same behind the gate (`layer i, gate`), and the residual stream after the last layer (`end`).
    """
    from dmm.inspection import MODALITIES, activations, mamba_signals, probe

    read: list[dict[str, Any]] = []  # of the windows to fit on, and of those to score on
    known: list[dict[str, Any]] = []
    for seed, count in enumerate(PROBE_WINDOWS):
        windows = probe_windows(task, policy.context, seed, count)
        *_, end = activations(policy, windows).values()
        places = {"end": end}
        for layer, signals in mamba_signals(policy, windows).items():
            places |= {f"{layer}, scan": signals.y, f"{layer}, gate": signals.gated}
        read.append({place: x[:, -2] for place, x in places.items()})
        targets = (windows.returns_to_go[:, -1], windows.states[:, -1], windows.actions[:, -2])
        known.append(dict(zip(MODALITIES, targets, strict=True)))
    return {
        place: {
            kind: float(f"{probe(read[0][place], known[0][kind], read[1][place], known[1][kind]):.6g}")
            for kind in MODALITIES
        }
        for place in read[0]
    }


def probe_windows(task: str, context: int, seed: int, count: int) -> Any:
    """Windows of other episodes for each seed; the committed ones, where there are any (`dmm.experiments.recorded`)."""
    return _kept(task, f"probe_{seed}", context, count) or _drawn(task, context, count, data_seed=seed, seed=1)


def _rounded(numbers: Any) -> list[float]:
    return [float(f"{number:.6g}") for number in numbers.tolist()]


def measured_windows(task: str, context: int = CONTEXT) -> Any:
    """The windows that `measure` looks at: the same ones on every machine, from the data set's first episodes."""
    return _kept(task, "measured", context, WINDOWS) or _drawn(task, context, WINDOWS)


def draw_windows(task: str) -> dict[str, Any]:
    """All windows of a task by name, from episodes that are recorded here and now."""
    drawn = {"measured": _drawn(task, CONTEXT, WINDOWS)}
    probes = {f"probe_{i}": _drawn(task, CONTEXT, n, data_seed=i, seed=1) for i, n in enumerate(PROBE_WINDOWS)}
    return drawn | probes


def _kept(task: str, name: str, context: int, count: int) -> Any:
    windows = recorded_windows(task, name)
    return windows if windows is not None and windows.mask.shape == (count, context) else None


def _drawn(task: str, context: int, count: int, *, data_seed: int = 0, seed: int = 0) -> Any:
    from dmm.data.preview import preview
    from dmm.inspection import full_windows

    episodes = preview(TASKS[task].dataset, TASKS[task].preview_episodes, seed=data_seed)
    return full_windows(episodes, context, count, seed=seed)


def summarize_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """State and return-to-go as multiples of action, for norms and gradients: geometric mean and interval over seeds.

    A ratio of 2 is as far from 1 as one of 1/2, so mean and interval are taken of its logarithm.
    """
    summary = []
    for task in TASKS:
        for model in ENTRIES:
            own = [row for row in rows if (row["task"], row["model"]) == (task, model)]
            for kind in ("norms", "gradients"):
                for stage in own[0][kind] if own else ():
                    for modality, place in (("rtg", 0), ("state", 1)):
                        ratios = [over_action(row[kind][stage], place) for row in own]
                        key = {"task": task, "model": model, "kind": kind, "stage": stage, "modality": modality}
                        summary.append({**key, **_ratio_interval(ratios), "seeds": len(own)})
    return summary


def _ratio_interval(ratios: list[float]) -> dict[str, Any]:
    logarithm = mean_interval([math.log(ratio) for ratio in ratios])
    ends = logarithm["ci95"]
    return {"mean": math.exp(logarithm["mean"]), "ci95": ends and [math.exp(end) for end in ends]}


def over_action(tokens: list[float], place: int) -> float:
    """The mean of a modality's tokens over that of action tokens; return-to-go has place 0, state 1."""
    return _mean(tokens, place) / _mean(tokens, 2)


def _mean(tokens: list[float], place: int) -> float:
    """Of one modality's tokens but the last time step's, whose action token comes too late to matter."""
    own = tokens[place:-3:3]
    return sum(own) / len(own)


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every task, model and seed; seed 0 of all before seed 1 of any."""
    return [
        Job(
            name=f"{name}/{model}",
            seed=seed,
            folder=runs / run_name(name, model, seed),
            dataset=task.dataset,
            model=model,
            steps=task.steps,
            targets=task.targets,
            episodes=task.episodes,
            changes={"learning_rate": LEARNING_RATE, "layers": 3},
        )
        for seed in range(seeds)
        for name, task in TASKS.items()
        for model in ENTRIES
    ]


def main() -> None:
    args = arguments("gating", "Remake the measurements behind the chapter on gating.", seeds=3)

    from dmm.data.collect import collect

    for task in TASKS.values():
        collect(task.dataset)
    rows = run_jobs(train_and_measure, make_jobs(args.runs, args.seeds), args.workers)
    settings = {
        "learning_rate": LEARNING_RATE,
        "windows": WINDOWS,
        "probe_windows": PROBE_WINDOWS,
        "seeds": args.seeds,
        "tasks": {name: vars(task) for name, task in TASKS.items()},
    }
    result = {"settings": settings, "machine": machine(), "scores": summarize(rows), "ratios": summarize_ratios(rows)}
    write_result(args.out, {**result, "runs": rows})


if __name__ == "__main__":
    main()
