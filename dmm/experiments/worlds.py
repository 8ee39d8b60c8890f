"""Policies for a world without physics: the T-maze, with enough memory and with too little.

    python -m dmm.experiments.worlds

The T-maze's cue is in its first observation alone and decides the last of 21 steps, so that a window of 21 steps holds
it and one of 8 does not. The policies of seed 0 are kept as files.

Of 21 windows that begin at any transition of an episode one alone has the cue and the turn, so that a policy would take
long to find out that they belong together. Every other window of a batch is therefore one that is full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm.experiments import write_result
from dmm.experiments.grid import Job, argument_parser, keep_model, machine, round_weights, score_job, train_job
from dmm.experiments.queue import run_jobs

if TYPE_CHECKING:
    from dmm.data.windows import WindowSampler

TMAZE = "dmm/tmaze/noisy-v0"
EPISODES = 200
BEST: dict[str, float] = {TMAZE: 0.5}
"""Part of a set's episodes that is learned from: of the T-maze's those whose turn was right, more than half."""
CHANGES: dict[str, Any] = {"learning_rate": 4e-3, "batch_size": 128, "width": 32, "layers": 2, "dropout": 0.0}
ENTRIES: dict[str, tuple[str, int, tuple[float, ...], dict[str, Any]]] = {
    "tmaze-k21": (TMAZE, 2000, (1.0,), {"context": 21, "a_init": "uniform"}),
    "tmaze-k8": (TMAZE, 2000, (1.0,), {"context": 8, "a_init": "uniform"}),
}
"""Data set, updates, returns asked for, and what is not as in the others."""


def train_and_keep(job: Job) -> dict[str, Any]:
    """One policy, scored and kept."""
    from dmm.data.trajectories import load_trajectories

    data = load_trajectories(job.dataset, best_share=BEST.get(job.dataset, 1.0))
    with drawing(half_of_them_full()):
        run = train_job(job, data)
    round_weights(run.policy)
    if job.seed == 0:
        keep_model(run, f"worlds/{job.name}")
    return {**score_job(job, run), "context": job.changes["context"], "dataset": job.dataset}


def half_of_them_full() -> Callable[[Any, Any, Any], WindowSampler]:
    """Draws batches in which windows take turns: one that is full, uniform over episodes, and one by transition."""
    import torch

    from dmm.data.windows import WindowSampler

    class HalfFull(WindowSampler):
        def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
            full = super().draw(batches, batch_size, generator)
            any_of_them = torch.randint(self.transitions, full.shape, generator=generator)
            return torch.where(torch.arange(batch_size) % 2 == 0, full, any_of_them)

    return lambda data, config, device: HalfFull(
        data, config.context, generator=torch.Generator(), by="trajectory", device=device
    )


@contextmanager
def drawing(sampler: Callable[[Any, Any, Any], WindowSampler]) -> Iterator[None]:
    """Inside, a DMM is trained on batches that are drawn like this."""
    from dmm.models.registry import MODELS

    usual = MODELS["dmm"]
    MODELS["dmm"] = dataclasses.replace(usual, sampler=sampler)
    try:
        yield
    finally:
        MODELS["dmm"] = usual


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every entry and seed; seed 0 of all before seed 1 of any."""
    return [
        Job(name, seed, runs / f"{name}-seed{seed}", dataset, "dmm", steps, targets, EPISODES, CHANGES | changes)
        for seed in range(seeds)
        for name, (dataset, steps, targets, changes) in ENTRIES.items()
    ]


def describe_settings(seeds: int) -> dict[str, Any]:
    """What all policies share."""
    return {"episodes": EPISODES, "seeds": seeds, "changes": CHANGES, "best_share": BEST}


def main() -> None:
    args = argument_parser("worlds", "Remake the policies of the grid worlds.", seeds=1).parse_args()

    from dmm.data.collect import collect

    for dataset in dict.fromkeys(entry[0] for entry in ENTRIES.values()):
        collect(dataset)
    rows = run_jobs(train_and_keep, make_jobs(args.runs, args.seeds), args.workers)
    write_result(args.out, {"settings": describe_settings(args.seeds), "machine": machine(), "runs": rows})


if __name__ == "__main__":
    main()
