"""Training: AdamW on windows of a data set, with checkpoints from which a run goes on to the same numbers.

Recipe of the paper (appendix A, tables 5 and 6): mean squared error on actions, batch 64, learning rate 1e-4 after a
linear warm-up over the first tenth of the run, weight decay 1e-4 on every weight, gradient norm clipped at 0.25.

Many seeds can be trained at once (`train_seeds`), in a process each or as one program; each has its own run, as if it
had been alone. A run can be trained further (`resume` with more steps), and a new one can start from its weights.

A run is a folder: `run.json` (model, configs, data set, versions), `checkpoint.safetensors` (weights, optimizer, random
generators, step) and `log.csv` (step, loss, learning rate, seconds). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import minari
import numpy as np
import torch

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError, whole_number
from dmm.models.registry import find_model
from dmm.policy import Policy
from dmm.processes import in_processes
from dmm.progress import progress_bar
from dmm.training.config import TrainConfig
from dmm.training.loop import Loop
from dmm.training.plan import Plan, choose_device, default_rtg_scale, make_plan
from dmm.training.run import (
    Run,
    SeedRun,
    claim,
    default_generators,
    default_out,
    describe_run,
    dropout_generator,
    kept_name,
    load_run,
    own_generators,
)
from dmm.training.stacking import stack

__all__ = [
    "Run",
    "TrainConfig",
    "choose_device",
    "default_out",
    "default_rtg_scale",
    "describe_run",
    "kept_name",
    "load_run",
    "train",
    "train_seeds",
]


def train(
    dataset: str | minari.MinariDataset | Trajectories,
    model: str = "dmm",
    *,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    start_from: Run | str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Run:
    """Train `model` on `dataset` and return the run; its folder holds all that is needed to go on or to evaluate.

    Args:
        dataset: the id of a Minari data set on this machine, one that Minari opened or selected from, or trajectories.
        model: a name of `dmm.models.registry.MODELS`.
        steps: updates in all; if not given, those of the run that is resumed, or `TrainConfig.steps`.
        seed: of everything random; what still varies is the last digits of float arithmetic between kinds of processor
            and numbers of threads.
        out: folder of the run, `runs/<dataset>/<model>-seed<seed>` if not given.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, ...
        resume: go on from the folder's checkpoint, to the same weights as an undisturbed run; a finished run is
            returned at once, and where there is none yet a new one begins. With more `steps` than the run had it is
            trained further: the warm-up stays as long as it was, so 20 updates and 20 more are not a run of 40.
        start_from: a run, or its folder, whose weights a new run starts from. It must be of this model and of these
            sizes of states and actions; the data may be others. What the model's config says is taken from it but for
            `changes`, and so are the moments by which states are normalised, since its weights were trained on those.
            Optimizer, warm-up and generators start anew.
        changes: values for fields of the model's config or of `TrainConfig`.
        progress: show on stderr how far it is.

    Raises:
        InputError: an unknown name, a field that does not exist, a folder that holds another run or cannot be written,
            fewer steps than a resumed run has, or a run to start from that differs.
        RunError: the loss is no longer finite.
    """
    asked: dict[str, Any] = {"steps": steps, "device": device, "resume": resume, "start_from": start_from}
    plan, [seed], [path] = make_plan(dataset, model, [seed], out, changes, several=False, **asked)
    return _train_alone(plan, seed, path, resume, partial(_bar, progress)).finished()


def train_seeds(
    dataset: str | minari.MinariDataset | Trajectories,
    model: str = "dmm",
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    start_from: Run | str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[Run]:
    """Train `model` on `dataset` once for each seed, and return the runs in the order of the seeds.

    On a CPU with several cores each seed has a process and a thread of its own, and its run is bit for bit the one that
    `train` gives on one thread. With one worker, and on other devices, all seeds are one program
    (`dmm.training.stacking`), and a run is the one that `train` gives to the rounding of float arithmetic: the same
    start, windows and dropout, its own clipping. Seconds in its log are then those of the whole program. Either way
    each has its own folder in the same form, so it may be resumed, evaluated and kept by itself, and runs that were
    begun separately may be resumed together. In one program those that are behind are trained first: were all stopped
    between two runs' checkpoints, those that lagged come to the same weights but for the last digits. A model that
    cannot be stacked is trained one seed after the other, and a line on stderr says so.

    Args:
        dataset: the id of a Minari data set on this machine, one that Minari opened or selected from, or trajectories.
        model: a name of `dmm.models.registry.MODELS`.
        seeds: different ones, at least one.
        steps: updates of each seed; if not given, those of the longest run that is resumed, or `TrainConfig.steps`.
        out: the folder in which each run gets its own, `seed<seed>`; those of `train` if not given.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, ...
        resume: go on from the checkpoints, where there are any; see `train`.
        start_from: a run whose weights each seed starts from; see `train`.
        changes: values for fields of the model's config or of `TrainConfig`.
        workers: seeds that are trained at the same time on a CPU; torch's number of threads if not given.
        progress: show on stderr how far it is.

    Raises:
        InputError: as in `train`, or seeds that are none or not all different; nothing is begun then.
        RunError: the loss of one seed, which the message names, is no longer finite, or its process was ended. All
            stop, and the checkpoints of all are kept, so that the other seeds can be resumed without it.
    """
    asked: dict[str, Any] = {"steps": steps, "device": device, "resume": resume, "start_from": start_from}
    plan, seeds, paths = make_plan(dataset, model, seeds, out, changes, several=True, **asked)
    workers = torch.get_num_threads() if workers is None else whole_number("workers", workers, 1)
    runs = []
    for seed, path in zip(seeds, paths, strict=True):
        with _forked_generators(plan.device):
            runs.append(plan.run(seed, path, own_generators))
    claim(runs, resume)
    behind = [run for run in runs if run.step < run.config.steps]
    if plan.device.type == "cpu" and min(workers, len(behind)) > 1 and plan.fits_other_processes():
        _train_apart(behind, plan, workers, progress)
    elif (reason := _why_not_together(runs, plan.device)) is None:
        _train_together(runs, plan, progress)
    else:
        print(f"dmm: seeds are trained one after the other: {reason}", file=sys.stderr)
        for run in behind:
            _train_alone(plan, run.config.seed, run.path, True, partial(_bar, progress))
            run.restore(run.config.steps)
    return [run.finished() for run in runs]


def _train_alone(
    plan: Plan, seed: int, path: Path, resume: bool, bar: Callable[[Sequence[SeedRun]], AbstractContextManager[Any]]
) -> SeedRun:
    """The whole run of one seed, or what its folder lacks of it; torch's default generators are as before."""
    with _forked_generators(plan.device):
        run = plan.run(seed, path, default_generators)
        claim([run], resume)
        if run.step < run.config.steps:
            if plan.entry.before:
                plan = _behind_earlier_stages(plan, run, bar)
            with bar([run]) as shown:
                Loop([run], run.policy, plan).run(run.config.steps, shown)
    return run


def _behind_earlier_stages(
    plan: Plan, run: SeedRun, bar: Callable[[Sequence[SeedRun]], AbstractContextManager[Any]]
) -> Plan:
    """Train what is trained before, each an ordinary run in the run's folder that goes on where it was stopped.

    The policy takes over what they learned before its own first update; later it has that in its weights. Where the run
    goes on for longer than it was begun for, they stay as long as they were.
    """
    trained: list[Policy] = []
    for stage in plan.entry.before:
        earlier = plan.stage(stage, run.recipe.steps).after(trained)
        done = _train_alone(earlier, run.config.seed, run.path / stage.model, True, bar).finished()
        trained.append(done.policy.requires_grad_(False))
    plan = plan.after(trained)
    if run.saved is None:
        run.policy.adopt(trained)
        run.policy.look_at(plan.prepared)
    return plan


def _train_together(runs: Sequence[SeedRun], plan: Plan, progress: bool) -> None:
    """As one program, those that are behind first, and from where they meet as one."""
    while behind := [run for run in runs if run.step < run.config.steps]:
        first = min(behind, key=lambda run: run.step)
        alike = [run for run in runs if run.recipe == first.recipe]
        group = [run for run in alike if run.step == first.step]
        until = min((run.step for run in alike if run.step > first.step), default=first.config.steps)
        with _bar(progress, group[:1]) as bar:  # which counts the program's updates
            Loop(group, _stack(group, plan.device), plan).run(until, bar)


def _train_apart(runs: Sequence[SeedRun], plan: Plan, workers: int, progress: bool) -> None:
    """Each run in a process of its own, `workers` at a time; then load what they saved."""
    losses: dict[int, float] = {}

    def show(seed: int, steps: int, loss: float) -> None:
        losses[seed] = loss
        bar.set_postfix(loss=f"{np.mean(list(losses.values())):.4f}")
        bar.update(steps)

    jobs = {f"seed {run.config.seed}": (run.config.seed, str(run.path)) for run in runs}
    with _bar(progress, runs) as bar:
        in_processes(_train_here, plan, jobs, workers=workers, report=show)
    for run in runs:
        run.restore(run.config.steps)


def _train_here(plan: Plan, seed: int, path: str, report: Callable[..., None]) -> None:
    """What a process of `_train_apart` does."""
    torch.set_num_threads(1)
    _train_alone(plan, seed, Path(path), True, lambda runs: nullcontext(_Reports(partial(report, seed))))


class _Reports:
    """Stands in the place of a bar: passes on how far a run is, at each loss in its log."""

    def __init__(self, report: Callable[[int, float], None]):
        self.report, self.steps = report, 0

    def update(self, n: int = 1) -> None:
        self.steps += n

    def set_postfix(self, loss: str) -> None:
        self.report(self.steps, float(loss))
        self.steps = 0


def _bar(progress: bool, runs: Sequence[SeedRun]) -> Any:
    """Of all updates of these runs."""
    total, done = sum(run.config.steps for run in runs), sum(run.step for run in runs)
    return progress_bar(total=total, initial=done, unit="step", desc="train", disable=not progress)


def _forked_generators(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is drawn inside, torch's default generators are as before in the end."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])  # type: ignore[no-any-return]


def _stack(runs: Sequence[SeedRun], device: torch.device) -> Policy:
    return stack([run.policy for run in runs], [run.generators[dropout_generator(device)] for run in runs])


def _why_not_together(runs: Sequence[SeedRun], device: torch.device) -> str | None:
    """What keeps these runs from being one program, if anything does."""
    if find_model(runs[0].info["model"]).before:
        return "each has a first stage of its own"
    if type(runs[0].policy).after_update is not Policy.after_update:
        return f"{type(runs[0].policy).__name__} moves weights that are not trained"
    if runs[0].learner is not None:
        return "each is trained by updates of another package, which are of one policy"
    if device.type not in ("cpu", "cuda"):
        return f"no generators of their own on {device.type}"
    try:
        _stack(runs, device)
    except InputError as error:
        return str(error)
    return None
