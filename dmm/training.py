"""Training: AdamW on windows of a data set, with checkpoints from which a run goes on to the same numbers.

Recipe of the paper (appendix A, tables 5 and 6): mean squared error on actions, batch 64, learning rate 1e-4 after a
linear warm-up over the first tenth of the run, weight decay 1e-4 on every weight, gradient norm clipped at 0.25.

Many seeds can be trained at once, as one program (`train_seeds`); each has its own run, as if it had been alone.

A run is a folder: `run.json` (model, configs, data set, versions), `checkpoint.safetensors` (weights, optimizer, random
generators, step) and `log.csv` (step, loss, learning rate, seconds). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import minari
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dmm.checkpoints import (
    pack_weights,
    read_checkpoint,
    require_weights,
    restore_generator,
    write_atomically,
    write_checkpoint,
)
from dmm.data.trajectories import Trajectories, load_trajectories, require_trainable
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError, RunError
from dmm.memory import keep_freed_memory
from dmm.policy import Policy
from dmm.registry import find_model, split_changes
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
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed: got {self.seed}, allowed is 0 to 2**63 - 1")
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, allowed is at least 1")
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
    steps: int = TrainConfig.steps,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Run:
    """Train `model` on `dataset` and return the run; its folder holds all that is needed to go on or to evaluate.

    Args:
        dataset: the id of a Minari data set on this machine, one that Minari opened or selected from, or trajectories.
        model: a name of `dmm.registry.MODELS`.
        steps: updates in all.
        seed: of everything random; what still varies is the last digits of float arithmetic between kinds of processor
            and numbers of threads.
        out: folder of the run, `runs/<dataset>/<model>-seed<seed>` if not given.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, ...
        resume: go on from the folder's checkpoint, to the same weights as an undisturbed run; a finished run is
            returned at once, and where there is none yet a new one begins.
        changes: values for fields of the model's config or of `TrainConfig`.
        progress: show a bar on stderr.

    Raises:
        InputError: an unknown name, a field that does not exist, a folder that holds another run or cannot be written.
        RunError: the loss is no longer finite.
    """
    plan = _plan(dataset, model, steps, device, changes)
    config = dataclasses.replace(plan.config, seed=seed)
    path = Path(out) if out is not None else default_out(plan.trajectories.dataset_id, model, seed)
    with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
        run = _SeedRun(plan.start(seed), config, path, _default_generators(plan.device), plan.describe(config))
        _claim([run], resume)
        if run.step < config.steps:
            _Loop([run], run.policy, plan).run(config.steps, progress)
    return run.finished()


def train_seeds(
    dataset: str | minari.MinariDataset | Trajectories,
    model: str = "dmm",
    *,
    seeds: Sequence[int],
    steps: int = TrainConfig.steps,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    changes: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Run]:
    """Train `model` on `dataset` once for each seed, all as one program, and return the runs in the order of the seeds.

    A run is the one that `train` gives for its seed, to the rounding of float arithmetic: the same start, windows and
    dropout, its own clipping, its own folder in the same form. So each may be resumed, evaluated and kept by itself,
    and runs that were begun separately may be resumed together; those that are behind are then trained first. Seconds
    in the log are those of the whole program. A model that `dmm.stacking` cannot stack is trained one seed after the
    other, and a line on stderr says so.

    Args:
        dataset: the id of a Minari data set on this machine, one that Minari opened or selected from, or trajectories.
        model: a name of `dmm.registry.MODELS`.
        seeds: different ones, at least one.
        steps: updates of each seed.
        out: the folder in which each run gets its own, `seed<seed>`; those of `train` if not given.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, ...
        resume: go on from the checkpoints, where there are any.
        changes: values for fields of the model's config or of `TrainConfig`.
        progress: show a bar on stderr.

    Raises:
        InputError: as in `train`, or seeds that are none or not all different; nothing is begun then.
        RunError: the loss of one seed, which the message names, is no longer finite. All stop, and the checkpoints of
            all are kept, so that the other seeds can be resumed without it.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: got {list(seeds)}, allowed are different seeds, at least one")
    plan = _plan(dataset, model, steps, device, changes)
    runs = []
    for seed in seeds:
        config = dataclasses.replace(plan.config, seed=seed)
        path = default_out(plan.trajectories.dataset_id, model, seed) if out is None else Path(out) / f"seed{seed}"
        with torch.random.fork_rng(devices=[plan.device] if plan.device.type == "cuda" else []):
            policy = plan.start(seed)
            generators = _own_generators(plan.device)
        runs.append(_SeedRun(policy, config, path, generators, plan.describe(config)))
    reason = _why_not_together(runs, plan.device)
    if reason is not None:
        print(f"dmm: seeds are trained one after the other: {reason}", file=sys.stderr)
        for run in runs:
            _require_free(run, resume)
        more: dict[str, Any] = {"steps": steps, "device": device, "changes": changes, "progress": progress}
        data = plan.trajectories
        return [train(data, model, seed=run.config.seed, out=run.path, resume=resume, **more) for run in runs]
    _claim(runs, resume)
    _train_together(runs, plan, progress)
    return [run.finished() for run in runs]


def _train_together(runs: Sequence[_SeedRun], plan: _Plan, progress: bool) -> None:
    """Bring all runs to their end, those that are behind first, and from where they meet as one."""
    steps = plan.config.steps
    while behind := [run for run in runs if run.step < steps]:
        first = min(run.step for run in behind)
        group = [run for run in behind if run.step == first]
        until = min(run.step for run in runs if run.step > first) if len(group) < len(runs) else steps
        _Loop(group, _stack(group, plan.device), plan).run(until, progress)


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
    path = Path(path)
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
class _Plan:
    """What the seeds of one call of `train` or `train_seeds` have in common."""

    trajectories: Trajectories
    model: str
    model_config: Any
    config: TrainConfig  # but for its seed
    device: torch.device

    def start(self, seed: int) -> Policy:
        """The policy before its first update; seeds torch's default generators, which go on from there."""
        torch.manual_seed(seed)
        policy = find_model(self.model).policy(self.model_config)
        policy.set_state_moments(*map(torch.from_numpy, self.trajectories.state_moments()))
        policy.discrete_actions = self.trajectories.discrete_actions
        return policy.to(self.device)

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the runs' descriptions have in common; looks at all data once."""
        return describe_run(self.trajectories, self.model, self.model_config, self.config)

    def describe(self, config: TrainConfig) -> dict[str, Any]:
        return self.info | {"training": dataclasses.asdict(config)}


def _plan(
    dataset: str | minari.MinariDataset | Trajectories,
    model: str,
    steps: int,
    device: str,
    changes: Mapping[str, Any] | None,
) -> _Plan:
    """Look at everything that was asked for before anything is begun."""
    t = dataset if isinstance(dataset, Trajectories) else load_trajectories(dataset)
    entry = find_model(model)
    model_changes, train_changes = split_changes(changes or {}, entry, TrainConfig)
    if entry.fit_rtg_scale:
        model_changes.setdefault("rtg_scale", default_rtg_scale(t))
    config = entry.make_config(t.state_size, t.action_size, t.env_id, **model_changes)
    training = TrainConfig(steps=steps, **train_changes)
    require_trainable(t, getattr(config, "rtg_scale", 1.0))
    require_readable(config, training)
    return _Plan(t, model, config, training, choose_device(device))


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
    """Make the folders these runs' own: create each, or load its checkpoint if it holds the same run."""
    there = [_require_free(run, resume) for run in runs]
    for run, exists in zip(runs, there, strict=True):
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            for leftover in run.path.glob(".*.safetensors.*"):  # of a process killed while it was writing
                leftover.unlink(missing_ok=True)
            if not exists:
                write_atomically(run.path / "run.json", json.dumps(run.info, indent=2).encode())
        except OSError as error:
            raise InputError(f"out: {run.path} cannot be written ({error.strerror})") from error
        if exists and (run.path / "checkpoint.safetensors").exists():
            run.restore()


def _require_free(run: _SeedRun, resume: bool) -> bool:
    """Whether this very run is in its folder already; any other may not be."""
    path = run.path
    try:
        there = (path / "run.json").exists()
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror})") from error
    if there and not resume:
        raise InputError(f"out: {path} already holds a run; --resume goes on with it, another --out leaves it alone")
    if there:
        _require_same_run(path, read_record(path, TrainConfig).info, run.info)
    return there


def _require_same_run(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    asked = json.loads(json.dumps(asked))
    if there["dataset"]["fingerprint"] != asked["dataset"]["fingerprint"]:
        old, new = ("{id!r} ({fingerprint})".format(**info["dataset"]) for info in (there, asked))
        raise InputError(f"resume: the checkpoint in {path} is of data set {old}, asked for is {new}")
    for part in ("model", "config", "training"):
        if there[part] != asked[part]:
            differing = f"{there[part]!r} there, {asked[part]!r} asked for"
            if isinstance(asked[part], dict):
                names = sorted(k for k in asked[part] if there[part].get(k) != asked[part][k])
                differing = ", ".join(
                    f"{k} is {there[part].get(k)!r} there, {asked[part][k]!r} asked for" for k in names
                )
            raise InputError(f"resume: {path} holds another run ({part}: {differing})")


class _SeedRun:
    """The run of one seed: its policy and what AdamW keeps for it, its generators, log and folder."""

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        path: Path,
        generators: Mapping[str, torch.Generator],
        info: dict[str, Any],
    ):
        self.policy, self.config, self.path, self.info = policy, config, path, info
        self.flat = FlatWeights(policy)
        self.generators = {"sampler": torch.Generator().manual_seed(config.seed), **generators}
        self.step = 0
        self.seconds = 0.0  # of work, that of earlier processes included
        self.rows: list[tuple[float, ...]] = []
        self.saved: int | None = None  # step of the checkpoint on disk

    def log(self, loss: float) -> None:
        """Add a row for the updates since the last one, of which `loss` is the mean."""
        rate = learning_rate(self.config, self.step - 1)  # of the update just made
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

    def restore(self) -> None:
        """Take over where the folder's checkpoint stopped."""
        file = self.path / "checkpoint.safetensors"
        checkpoint = read_checkpoint(file, self.policy, self.flat.moments(), self.config.steps)
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
        generators = [run.generators["sampler"] for run in runs]
        self.sampler = WindowSampler(plan.trajectories, policy.context, generator=generators[0], device=plan.device)
        dropout = [run.generators[_dropout_generator(plan.device)] for run in runs]
        flats = [run.flat for run in runs]
        self.update = Update(flats, policy, self._losses, self.sampler, plan.config, dropout)

    def run(self, until: int, progress: bool) -> None:
        """Update up to this step, logging and saving on the way."""
        keep_freed_memory()
        config, began, make = self.config, time.perf_counter(), None
        with tqdm(total=config.steps, initial=self.step, disable=not progress, unit="step", desc="train") as bar:
            while self.step < until:
                block = self._draw(until)
                make = make or fastest(self.update, block[0])
                for first in block:
                    make(first)
                    bar.update()
                self.step += len(block)
                for run in self.runs:
                    run.step = self.step
                if self._due(config.log_every):
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
        count = self.step % self.config.log_every or self.config.log_every
        losses = (self.update.total / count).tolist()
        self.update.total.zero_()
        for run, loss in zip(self.runs, losses, strict=True):
            if not np.isfinite(loss):
                run.diverged(f"loss{self._whose(run)}: {loss} between steps {self.step - count + 1} and {self.step}")
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
                run.diverged(f"weights{self._whose(run)}: not finite after step {self.step}")

    def _whose(self, run: _SeedRun) -> str:
        return f" of seed {run.config.seed}" if len(self.runs) > 1 else ""


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
