"""Training: AdamW on windows of a data set, with checkpoints from which a run goes on to the same numbers.

Recipe of the paper (appendix A, tables 5 and 6): mean squared error on actions, batch 64, learning rate 1e-4 after a
linear warm-up over the first tenth of the run, weight decay 1e-4 on every weight, gradient norm clipped at 0.25.

Many seeds can be trained at once (`train_seeds`), in a process each or as one program; each has its own run, as if it
had been alone. A run can be trained further (`resume` with more steps), and a new one can start from its weights.

A run is a folder: `run.json` (model, configs, data set, versions), `checkpoint.safetensors` (weights, optimizer, random
generators, step) and `log.csv` (step, loss, learning rate, seconds). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import minari
import numpy as np
import torch
from torch import Tensor

from dmm.checkpoints import (
    pack_weights,
    policy_tensors,
    read_checkpoint,
    require_weights,
    restore_generator,
    write_atomically,
    write_checkpoint,
)
from dmm.data.trajectories import Trajectories, load_trajectories, require_trainable
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import LARGEST_SEED, InputError, RunError, whole_number
from dmm.files import strict_json, user_path
from dmm.memory import keep_freed_memory
from dmm.policy import Policy, check_positive, plain_fields
from dmm.processes import in_processes
from dmm.progress import progress_bar
from dmm.registry import Model, find_model, split_changes
from dmm.run_record import LOG_COLUMNS, read_log, read_record, require_readable
from dmm.stacking import stack
from dmm.update import FlatWeights, Update, fastest, learning_rate


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a policy is trained; the defaults are the paper's."""

    steps: int = 100_000  # updates
    seed: int = 0  # of the initial weights, the drawn windows and dropout
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup: float = 0.1  # part of the run over which the learning rate rises linearly to its value
    weight_decay: float = 1e-4  # on every weight, norms and biases included
    clip: float = 0.25  # largest norm of the gradient
    log_every: int = 100  # updates averaged in one row of the log
    checkpoint_every: int = 200  # updates between checkpoints, what a kill can cost; a multiple of log_every
    keep_every: int = 0  # updates between weights that are kept beside the last; 0 keeps the last alone

    def __post_init__(self) -> None:
        plain_fields(self)
        whole_number("seed", self.seed, 0, LARGEST_SEED)
        check_positive(self, "steps", "batch_size", "log_every", "checkpoint_every")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: got {getattr(self, name):g}, allowed is a positive number")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay: got {self.weight_decay:g}, allowed is 0 or more")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup: got {self.warmup:g}, allowed is a part of the run, 0 to 1")
        if self.keep_every < 0:
            raise InputError(f"keep_every: got {self.keep_every}, allowed is 0 (keep none) or more")
        if self.checkpoint_every % self.log_every:
            raise InputError(
                f"checkpoint_every: got {self.checkpoint_every}, allowed are multiples of log_every ({self.log_every})"
            )


@dataclass(frozen=True)
class Run:
    """A trained policy and where it came from."""

    path: Path
    policy: Policy  # in evaluation mode, with the last checkpoint's weights
    info: dict[str, Any]  # what `run.json` holds
    step: int  # updates done

    @property
    def log(self) -> dict[str, np.ndarray]:
        """The columns of `log.csv`: step, loss, learning_rate, seconds."""
        return read_log(self.path / "log.csv")


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
        model: a name of `dmm.registry.MODELS`.
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
    plan, [seed], [path] = _plan(dataset, model, [seed], out, changes, several=False, **asked)
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

    On a CPU with several cores each seed has a process and a thread of its own, and its run is bit for bit the one
    that `train` gives on one thread. With one worker, and on other devices, all seeds are one program (`dmm.stacking`),
    and a run is the one that `train` gives to the rounding of float arithmetic: the same start, windows and dropout,
    its own clipping. Seconds in its log are then those of the whole program. Either way each has its own folder in the
    same form, so it may be resumed, evaluated and kept by itself, and runs that were begun separately may be resumed
    together. In one program those that are behind are trained first: were all stopped between two runs' checkpoints,
    those that lagged come to the same weights but for the last digits. A model that cannot be stacked is trained one
    seed after the other, and a line on stderr says so.

    Args:
        dataset: the id of a Minari data set on this machine, one that Minari opened or selected from, or trajectories.
        model: a name of `dmm.registry.MODELS`.
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
    plan, seeds, paths = _plan(dataset, model, seeds, out, changes, several=True, **asked)
    workers = torch.get_num_threads() if workers is None else whole_number("workers", workers, 1)
    runs = []
    for seed, path in zip(seeds, paths, strict=True):
        with _forked_generators(plan.device):
            runs.append(plan.run(seed, path, _own_generators))
    _claim(runs, resume)
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
    plan: _Plan, seed: int, path: Path, resume: bool, bar: Callable[[Sequence[_SeedRun]], AbstractContextManager[Any]]
) -> _SeedRun:
    """The whole run of one seed, or what its folder lacks of it; torch's default generators are as before."""
    with _forked_generators(plan.device):
        run = plan.run(seed, path, _default_generators)
        _claim([run], resume)
        if run.step < run.config.steps:
            with bar([run]) as shown:
                _Loop([run], run.policy, plan).run(run.config.steps, shown)
    return run


def _train_together(runs: Sequence[_SeedRun], plan: _Plan, progress: bool) -> None:
    """As one program, those that are behind first, and from where they meet as one."""
    while behind := [run for run in runs if run.step < run.config.steps]:
        first = min(behind, key=lambda run: run.step)
        alike = [run for run in runs if run.recipe == first.recipe]
        group = [run for run in alike if run.step == first.step]
        until = min((run.step for run in alike if run.step > first.step), default=first.config.steps)
        with _bar(progress, group[:1]) as bar:  # which counts the program's updates
            _Loop(group, _stack(group, plan.device), plan).run(until, bar)


def _train_apart(runs: Sequence[_SeedRun], plan: _Plan, workers: int, progress: bool) -> None:
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


def _train_here(plan: _Plan, seed: int, path: str, report: Callable[..., None]) -> None:
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


def _bar(progress: bool, runs: Sequence[_SeedRun]) -> Any:
    """Of all updates of these runs."""
    total, done = sum(run.config.steps for run in runs), sum(run.step for run in runs)
    return progress_bar(total=total, initial=done, unit="step", desc="train", disable=not progress)


def _forked_generators(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is drawn inside, torch's default generators are as before in the end."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])  # type: ignore[no-any-return]


def _stack(runs: Sequence[_SeedRun], device: torch.device) -> Policy:
    return stack([run.policy for run in runs], [run.generators[_dropout_generator(device)] for run in runs])


def _why_not_together(runs: Sequence[_SeedRun], device: torch.device) -> str | None:
    """What keeps these runs from being one program, if anything does."""
    if device.type not in ("cpu", "cuda"):
        return f"no generators of their own on {device.type}"
    try:
        _stack(runs, device)
    except InputError as error:
        return str(error)
    return None


def load_run(path: str | Path, step: int | None = None) -> Run:
    """Read a run's folder onto the CPU, with the weights of its last checkpoint.

    Args:
        path: the folder.
        step: take the weights that `keep_every` kept after this many updates instead.

    Raises:
        InputError: no run there, or one that is damaged.
    """
    path = user_path("run", path)
    step = None if step is None else whole_number("step", step, 0)
    record = read_record(path, TrainConfig)
    file = path / ("checkpoint.safetensors" if step is None else kept_name(step))
    require_weights(file, record.policy)  # before a config from elsewhere decides how much memory is taken
    policy = record.policy()
    return Run(path, policy.eval(), record.info, read_checkpoint(file, policy, last=record.training.steps).step)


def kept_name(step: int) -> str:
    """The file that holds the weights kept after `step` updates."""
    return f"weights-{step:07d}.safetensors"


def default_rtg_scale(trajectories: Trajectories) -> float:
    """By the largest return-to-go: 1000 or 1, as the released code has, or a power of ten where neither fits."""
    return trajectories.return_scale()


def default_out(dataset_id: str, model: str, seed: int) -> Path:
    """`runs/<dataset>/<model>-seed<seed>` below the current folder."""
    return Path("runs") / dataset_id.replace("/", "_") / f"{model}-seed{seed}"


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: a device that torch does not know or that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()  # fails on a device that holds no numbers
        return probe.device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"device: got {name!r}, allowed are auto, cpu and what torch finds here ({reason})") from error


def describe_run(trajectories: Trajectories, model: str, config: Any, training: TrainConfig) -> dict[str, Any]:
    """What `run.json` says: enough to rebuild policy and environment without the data."""
    t, returns = trajectories, trajectories.returns()
    return {
        "model": model,
        "config": dataclasses.asdict(config),
        "training": dataclasses.asdict(training),
        "dataset": {
            "id": t.dataset_id,
            "fingerprint": t.fingerprint(),
            "env_id": t.env_id,
            "env_spec": t.env_spec,
            "observation_keys": list(t.observation_keys),
            "environment": t.environment,
            "discrete_actions": t.discrete_actions,
            "action_bounds": None if t.action_bounds is None else [side.tolist() for side in t.action_bounds],
            "observation_offset": None if t.observation_offset is None else t.observation_offset.tolist(),
            "reference": t.reference,
            "transitions": t.transitions,
            "mean_return": float(returns.mean()),
            "max_return": float(returns.max()),
            "step_limit": t.step_limit(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


@dataclass(frozen=True)
class _Origin:
    """The run whose weights new ones start from."""

    config: dict[str, Any]  # of its model
    said: dict[str, Any]  # in the new runs' `run.json`, as `from`
    tensors: dict[str, Tensor] | None = None  # its weights and moments; None if new runs only go on


@dataclass(frozen=True)
class _Plan:
    """What the seeds of one call of `train` or `train_seeds` have in common."""

    trajectories: Trajectories
    model: str
    entry: Model
    model_config: Any
    config: TrainConfig  # but for its seed
    device: torch.device
    origin: _Origin | None
    several: bool  # seeds, so that messages must say of which they are

    def run(self, seed: int, path: Path, generators: Callable[[torch.device], dict[str, torch.Generator]]) -> _SeedRun:
        """A run before its first update; seeds torch's default generators, which go on from there."""
        torch.manual_seed(seed)
        policy = self.entry.policy(self.model_config)
        policy.set_state_moments(*map(torch.from_numpy, self.moments))
        policy.discrete_actions = self.discrete_actions
        if self.origin is not None:
            _start_from(self.origin, policy)
        config = dataclasses.replace(self.config, seed=seed)
        info = self.info | {"training": dataclasses.asdict(config)}
        name = f" of seed {seed}" if self.several else ""
        run = _SeedRun(policy.to(self.device), config, path, generators(self.device), info, name)
        run.startable = self.origin is None or self.origin.tensors is not None
        return run

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the runs' descriptions have in common; looks at all data once."""
        said = {} if self.origin is None else {"from": self.origin.said}
        return describe_run(self.trajectories, self.model, self.model_config, self.config) | said

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        return self.trajectories.state_moments()

    @cached_property
    def discrete_actions(self) -> bool:
        return self.trajectories.discrete_actions

    @cached_property
    def sampler(self) -> WindowSampler:
        """Of the windows of all seeds, each of which has a generator of its own."""
        context = self.model_config.context
        return WindowSampler(self.trajectories, context, generator=torch.Generator(), device=self.device)

    def fits_other_processes(self) -> bool:
        """Whether a fresh interpreter finds the model; one that was defined in a script or notebook it does not."""
        parts = (self.entry.policy, self.entry.config, self.entry.make_config)
        return all(part.__module__.partition(".")[0] == "dmm" and "<" not in part.__qualname__ for part in parts)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what is worked out from the trajectories, not themselves."""
        worked_out = {name: getattr(self, name) for name in ("info", "moments", "discrete_actions", "sampler")}
        return self.__dict__ | worked_out | {"trajectories": None}


def _plan(
    dataset: str | minari.MinariDataset | Trajectories,
    model: str,
    seeds: Any,
    out: str | Path | None,
    changes: Mapping[str, Any] | None,
    *,
    several: bool,
    steps: int | None,
    device: str,
    resume: bool,
    start_from: Run | str | Path | None,
) -> tuple[_Plan, list[int], list[Path]]:
    """Look at everything that was asked for before anything is begun: what is to be done, the seeds, their folders."""
    seeds = _seeds(seeds) if several else [whole_number("seed", each, 0, LARGEST_SEED) for each in seeds]
    t = dataset if isinstance(dataset, Trajectories) else load_trajectories(dataset)
    entry = find_model(model)
    paths = _paths(out, several, t.dataset_id, model, seeds)
    there = [read_record(path, TrainConfig).info for path in paths if resume and _holds_run(path)]
    origin = _find_origin(start_from, there)
    model_changes, train_changes = split_changes(changes or {}, entry, TrainConfig)
    if origin is not None:
        _require_fit(origin, t, model)
        config = entry.config(**(origin.config | model_changes))
    else:
        if entry.fit_rtg_scale:
            model_changes.setdefault("rtg_scale", default_rtg_scale(t))
        config = entry.make_config(t.state_size, t.action_size, t.env_id, **model_changes)
    if steps is None:
        steps = max((info["training"]["steps"] for info in there), default=TrainConfig.steps)
    training = TrainConfig(steps=steps, **train_changes)
    require_trainable(t, getattr(config, "rtg_scale", 1.0))
    require_readable(config, training)
    return _Plan(t, model, entry, config, training, choose_device(device), origin, several), seeds, paths


def _seeds(seeds: Any) -> list[int]:
    """Any sequence of different whole numbers, numpy's too."""
    given = list(seeds) if np.iterable(seeds) and not isinstance(seeds, str | bytes) else [seeds]
    numbers = [whole_number("seed", seed, 0, LARGEST_SEED) for seed in given]
    if not np.iterable(seeds) or not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"seeds: got {numbers}, allowed are different seeds, at least one")
    return numbers


def _paths(out: str | Path | None, several: bool, dataset_id: str, model: str, seeds: Sequence[int]) -> list[Path]:
    if out is None:
        return [default_out(dataset_id, model, seed) for seed in seeds]
    folder = user_path("out", out)
    return [folder / f"seed{seed}" for seed in seeds] if several else [folder]


def _find_origin(start_from: Run | str | Path | None, there: Sequence[dict[str, Any]]) -> _Origin | None:
    """The run that was named, or the one that runs which are there say they started from."""
    if start_from is not None:
        run = start_from if isinstance(start_from, Run) else load_run(user_path("from", start_from))
        tensors = {name: tensor.detach().cpu() for name, tensor in policy_tensors(run.policy).items()}
        data = {name: run.info["dataset"][name] for name in ("id", "fingerprint")}
        said = {"run": str(run.path), "model": run.info["model"], "seed": run.info["training"]["seed"]}
        said |= {"step": run.step, "dataset": data, "discrete_actions": run.policy.discrete_actions}
        return _Origin(run.info["config"], said | {"weights": _digest(tensors)}, tensors)
    known = next((info for info in there if info.get("from")), None)
    return None if known is None else _Origin(known["config"], known["from"])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any of these tensors does (SHA-256)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _require_fit(origin: _Origin, trajectories: Trajectories, model: str) -> None:
    """A run to start from must be of this model, and its states and actions like those of the data."""
    t, there = trajectories, origin.config
    discrete = origin.said["discrete_actions"]
    for what, old, new in (
        ("model", origin.said["model"], model),
        ("state_size", there["state_size"], t.state_size),
        ("action_size", there["action_size"], t.action_size),
        ("actions", *("discrete" if each else "continuous" for each in (discrete, t.discrete_actions))),
    ):
        if old != new:
            raise InputError(f"from: {origin.said['run']} differs in its {what}: {old!r} there, {new!r} asked for")


def _start_from(origin: _Origin, policy: Policy) -> None:
    """Copy the origin's weights and moments, if they are to be had, into a policy."""
    if origin.tensors is None:
        return
    own, there = policy_tensors(policy), origin.tensors
    wrong = [n for n in own.keys() | there.keys() if n not in own or n not in there or own[n].shape != there[n].shape]
    if wrong:
        config = dataclasses.asdict(policy.config)  # type: ignore[call-overload]
        pairs = [(name, old, config[name]) for name, old in origin.config.items() if config[name] != old]
        differing = ", ".join(f"{name} is {old!r} there, {new!r} asked for" for name, old, new in pairs)
        raise InputError(f"from: {len(wrong)} weights of {origin.said['run']} do not fit ({differing})")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(there[name])


def _default_generators(device: torch.device) -> dict[str, torch.Generator]:
    """Torch's own, by the names that checkpoints have for them."""
    generators = {"torch": torch.default_generator}
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators["cuda"] = torch.cuda.default_generators[index]
    return generators


def _own_generators(device: torch.device) -> dict[str, torch.Generator]:
    """New ones that go on where torch's own are."""
    generators = {}
    for name, default in _default_generators(device).items():
        generators[name] = torch.Generator(default.device)
        generators[name].set_state(default.get_state())
    return generators


def _dropout_generator(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "torch"


def _claim(runs: Sequence[_SeedRun], resume: bool) -> None:
    """Make the folders these runs' own: create each, or take over what it holds of the same run.

    A run that is to go on for longer has that in its description before it does, so that it may be stopped anywhere.
    """
    there = [_require_free(run, resume) for run in runs]
    changed = [run.take_over(info) for run, info in zip(runs, there, strict=True)]
    for run, write in zip(runs, changed, strict=True):
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            for name in ("*.safetensors", "run.json", "log.csv"):
                for leftover in run.path.glob(f".{name}.*"):  # of a process killed while it was writing
                    leftover.unlink(missing_ok=True)
            if write:
                write_atomically(run.path / "run.json", strict_json(run.info, indent=2).encode())
        except OSError as error:
            raise InputError(f"out: {run.path} cannot be written ({error.strerror})") from error


def _holds_run(path: Path) -> bool:
    try:
        return (path / "run.json").exists()
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror})") from error


def _require_free(run: _SeedRun, resume: bool) -> dict[str, Any] | None:
    """The description of this very run if it is in its folder already; any other may not be."""
    if not _holds_run(run.path):
        return None
    if not resume:
        raise InputError(
            f"out: {run.path} already holds a run; --resume goes on with it, another --out leaves it alone"
        )
    there = read_record(run.path, TrainConfig).info
    _require_same_run(run.path, there, run.info)
    return there


def _require_same_run(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    asked = json.loads(strict_json(asked))
    if there["dataset"]["fingerprint"] != asked["dataset"]["fingerprint"]:
        old, new = ("{id!r} ({fingerprint})".format(**info["dataset"]) for info in (there, asked))
        raise InputError(f"resume: the checkpoint in {path} is of data set {old}, asked for is {new}")
    asked["training"]["steps"] = there["training"]["steps"]  # may be others, see `take_over`
    for part in ("model", "config", "training"):
        if there[part] != asked[part]:
            differing = f"{there[part]!r} there, {asked[part]!r} asked for"
            if isinstance(asked[part], dict):
                names = sorted(k for k in asked[part] if there[part].get(k) != asked[part][k])
                differing = ", ".join(
                    f"{k} is {there[part].get(k)!r} there, {asked[part][k]!r} asked for" for k in names
                )
            raise InputError(f"resume: {path} holds another run ({part}: {differing})")
    origins = [info.get("from") or {"run": "no run", "weights": None} for info in (there, asked)]
    if origins[0]["weights"] != origins[1]["weights"]:  # wherever the run lies now
        began, wanted = (f"{origin['run']} ({origin['weights']})" for origin in origins)
        raise InputError(f"resume: {path} started from {began}, asked for is {wanted}; without --from it goes on")


class _SeedRun:
    """The run of one seed: its policy and what AdamW keeps for it, its generators, log and folder."""

    startable = True  # whether its weights are those that a first update wants

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        path: Path,
        generators: Mapping[str, torch.Generator],
        info: dict[str, Any],
        name: str,
    ):
        self.policy, self.config, self.path, self.info, self.name = policy, config, path, info, name
        self.flat = FlatWeights(policy)
        self.generators = {"sampler": torch.Generator().manual_seed(config.seed), **generators}
        self.step = 0
        self.seconds = 0.0  # of work, that of earlier processes included
        self.rows: list[tuple[float, ...]] = []
        self.saved: int | None = None  # step of the checkpoint on disk

    @property
    def recipe(self) -> TrainConfig:
        """What its updates depend on beside the data: a run that goes on for longer keeps its warm-up."""
        return dataclasses.replace(self.config, steps=self.info.get("first_steps", self.config.steps), seed=0)

    def take_over(self, there: dict[str, Any] | None) -> bool:
        """Go on from what the folder holds, if `there` is the description in it; whether that is to be written."""
        steps, checkpoint = self.config.steps, self.path / "checkpoint.safetensors"
        if there is not None and checkpoint.exists():
            self.restore(there["training"]["steps"])
        elif not self.startable:
            raise InputError(f"from: {self.path} has no checkpoint; name the run that it starts from once more")
        if there is None:
            return True
        if steps < self.step:
            raise InputError(f"steps: got {steps}, allowed are {self.step}, which {self.path} has already, or more")
        planned = there["training"]["steps"]
        self.info = there | {"training": there["training"] | {"steps": steps}}
        if steps != planned:
            self.info.setdefault("first_steps", planned)
        return bool(steps != planned)

    def log(self, loss: float) -> None:
        """Add a row for the updates since the last one, of which `loss` is the mean."""
        rate = learning_rate(self.recipe, self.step - 1)  # of the update just made
        self.rows.append((self.step, loss, rate, round(self.seconds, 3)))

    def diverged(self, what: str) -> NoReturn:
        kept = "nothing was saved yet" if self.saved is None else f"the checkpoint of step {self.saved} is kept"
        rate = self.config.learning_rate
        raise RunError(f"{what}; {kept}; a lower learning_rate (now {rate:g}) is the first thing to try")

    def keep(self) -> None:
        """Write the weights of this step beside the checkpoint."""
        with _failing_as_run(self.path):
            write_atomically(self.path / kept_name(self.step), pack_weights(self.policy, self.step))

    def save(self) -> None:
        """Write log and checkpoint, each in one atomic move."""
        lines = [",".join(LOG_COLUMNS), *(",".join(f"{value:.9g}" for value in row) for row in self.rows)]
        states = {name: generator.get_state() for name, generator in self.generators.items()}
        checkpoint = self.path / "checkpoint.safetensors"
        with _failing_as_run(self.path):
            write_atomically(self.path / "log.csv", ("\n".join(lines) + "\n").encode())
            write_checkpoint(checkpoint, self.policy, self.flat.moments(), states, self.step, self.seconds)
        self.saved = self.step

    def restore(self, last: int) -> None:
        """Take over where the folder's checkpoint stopped, at step `last` at most."""
        file = self.path / "checkpoint.safetensors"
        checkpoint = read_checkpoint(file, self.policy, self.flat.moments(), last)
        self.step, self.seconds, self.saved = checkpoint.step, checkpoint.seconds, checkpoint.step
        for name, generator in self.generators.items():
            if name in checkpoint.generators:  # a run that goes on elsewhere may have none for the new device
                restore_generator(file, name, generator, checkpoint.generators[name])
        log = Run(self.path, self.policy, {}, self.step).log
        self.rows = [row for row in zip(*log.values(), strict=True) if row[0] <= self.step]
        if not self.rows or self.rows[-1][0] != self.step:
            raise InputError(f"run: {self.path / 'log.csv'} is damaged (no row for step {self.step} of the checkpoint)")

    def finished(self) -> Run:
        self.flat.release()
        return Run(self.path, self.policy.eval(), self.info, self.step)


class _Loop:
    """Runs that stand at the same step, and what moves them on.

    Args:
        runs: of one or several seeds.
        policy: that of the one run, or the stack of all.
        plan: what they have in common.
    """

    def __init__(self, runs: Sequence[_SeedRun], policy: Policy, plan: _Plan):
        self.runs, self.policy, self.config, self.step = runs, policy.train(), plan.config, runs[0].step
        self.sampler, self.logged = plan.sampler, self.step
        dropout = [run.generators[_dropout_generator(plan.device)] for run in runs]
        flats = [run.flat for run in runs]
        self.update = Update(flats, policy, self._losses, self.sampler, runs[0].recipe, dropout)

    def run(self, until: int, bar: Any) -> None:
        """Update up to this step, logging and saving on the way."""
        keep_freed_memory()
        began, make = time.perf_counter(), None
        while self.step < until:
            block = self._draw(until)
            make = make or fastest(self.update, block[0])
            for first in block:
                make(first)
                bar.update()
            self.step += len(block)
            for run in self.runs:
                run.step = self.step
            if self._due(self.config.log_every):
                now = time.perf_counter()
                self._log(now - began)
                began = now
                bar.set_postfix(loss=f"{np.mean([run.rows[-1][1] for run in self.runs]):.4f}")
            self._write()

    def _draw(self, until: int) -> Tensor:
        """Where windows begin, `(updates, S, b)`, for all updates up to the next one that something is written after.

        Each seed's are the numbers of its own generator on the CPU, the same on every device, and move there at once.
        """
        config = self.config
        every = [config.log_every, config.keep_every or until]
        updates = min(until, *(self.step - self.step % n + n for n in every)) - self.step
        drawn = [self.sampler.draw(updates, config.batch_size, run.generators["sampler"]) for run in self.runs]
        return torch.stack(drawn, dim=1).to(self.update.step.device)

    def _losses(self, windows: Windows) -> Tensor:
        """The loss of each seed: windows `(S, b, k, ...)` -> `(S,)`."""
        predicted = self.policy(windows.merged())  # (S * b, k, a)
        return action_loss(predicted.unflatten(0, (len(self.runs), -1)), windows)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _log(self, seconds: float) -> None:
        count, self.logged = self.step - self.logged, self.step
        losses = (self.update.total / count).tolist()
        self.update.total.zero_()
        for run, loss in zip(self.runs, losses, strict=True):
            if not np.isfinite(loss):
                run.diverged(f"loss{run.name}: {loss} between steps {self.step - count + 1} and {self.step}")
            run.seconds += seconds
            run.log(loss)

    def _write(self) -> None:
        keep = self.config.keep_every and self.step % self.config.keep_every == 0
        save = self._due(self.config.checkpoint_every)
        if keep or save:
            self._require_finite_weights()
        for run in self.runs:
            if keep:
                run.keep()
            if save:
                run.save()

    def _require_finite_weights(self) -> None:
        finite = self.update.rows["weights"].isfinite().all(dim=1).tolist()
        for run, sound in zip(self.runs, finite, strict=True):
            if not sound:
                run.diverged(f"weights{run.name}: not finite after step {self.step}")


@contextmanager
def _failing_as_run(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"checkpoint: {path} cannot be written ({error.strerror or error})") from error


def action_loss(predicted: Tensor, windows: Windows) -> Tensor:
    """Mean squared error over the actions of real steps: `(..., b, k, a)` -> `(...)` (paper, appendix A)."""
    error = (predicted - windows.actions).square().sum(dim=-1) * windows.mask  # (..., b, k)
    return error.sum(dim=(-2, -1)) / (windows.mask.sum(dim=(-2, -1)) * predicted.shape[-1])
