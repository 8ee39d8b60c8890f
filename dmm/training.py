"""Training: AdamW on windows of a data set, with checkpoints from which a run goes on to the same numbers.

Recipe of the paper (appendix A, tables 5 and 6): mean squared error on actions, batch 64, learning rate 1e-4 after a
linear warm-up over the first tenth of the run, weight decay 1e-4 on every weight, gradient norm clipped at 0.25.

A run is a folder: `run.json` (model, configs, data set, versions), `checkpoint.safetensors` (weights, optimizer, random
generators, step) and `log.csv` (step, loss, learning rate, seconds). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dmm.checkpoints import pack_weights, read_checkpoint, write_atomically, write_checkpoint
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError, RunError
from dmm.policy import Policy
from dmm.registry import find_model, split_changes

SPARSE_RETURN = 100.0
"""Data whose returns stay below this get `rtg_scale` 1 by default, others 1000, as the released code has by domain."""


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
        file = self.path / "log.csv"
        try:
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines))
            return {name: np.array([float(row[name]) for row in rows]) for name in LOG_COLUMNS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"run: {file} is missing or damaged ({error})") from error


LOG_COLUMNS = ("step", "loss", "learning_rate", "seconds")


def train(
    dataset: str | Trajectories,
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
        dataset: the id of a Minari data set on this machine, or trajectories.
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
    trajectories = load_trajectories(dataset) if isinstance(dataset, str) else dataset
    entry = find_model(model)
    model_changes, train_changes = split_changes(changes or {}, entry, TrainConfig)
    if entry.fit_rtg_scale:
        model_changes.setdefault("rtg_scale", default_rtg_scale(trajectories))
    t = trajectories
    config = entry.make_config(t.state_size, t.action_size, t.env_id, **model_changes)
    training = TrainConfig(steps=steps, seed=seed, **train_changes)
    _check_actions(t)
    path = Path(out) if out is not None else default_out(t.dataset_id, model, seed)
    info = describe_run(t, model, config, training)
    torch_device = choose_device(device)
    with torch.random.fork_rng(devices=[torch_device] if torch_device.type == "cuda" else []):
        torch.manual_seed(seed)
        policy = entry.policy(config)
        policy.set_state_moments(*map(torch.from_numpy, t.state_moments()))
        policy.discrete_actions = t.discrete_actions
        loop = _Loop(policy.to(torch_device), t, training, path)
        _claim(path, info, resume, loop)
        loop.run(progress)
    return Run(path, policy.eval(), info, loop.step)


def load_run(path: str | Path, step: int | None = None) -> Run:
    """Read a run's folder onto the CPU, with the weights of its last checkpoint.

    Args:
        path: the folder.
        step: take the weights that `keep_every` kept after this many updates instead.

    Raises:
        InputError: no run there, or one that is damaged.
    """
    path = Path(path)
    info = _read_info(path)
    entry = find_model(info["model"])
    try:
        policy = entry.policy(entry.config(**info["config"]))
    except TypeError as error:
        raise InputError(f"run: {path / 'run.json'} does not fit this version of the package ({error})") from error
    _require_dataset(path, info)
    policy.discrete_actions = bool(info["dataset"].get("discrete_actions"))  # runs of earlier versions do not say
    name = "checkpoint.safetensors" if step is None else kept_name(step)
    return Run(path, policy.eval(), info, read_checkpoint(path / name, policy).step)


def kept_name(step: int) -> str:
    """The file that holds the weights kept after `step` updates."""
    return f"weights-{step:07d}.safetensors"


def default_rtg_scale(trajectories: Trajectories) -> float:
    """1000 for dense rewards and 1 for sparse ones, told apart by the size of the largest return."""
    return 1000.0 if np.abs(trajectories.returns()).max() >= SPARSE_RETURN else 1.0


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
            "reference": t.reference,
            "transitions": t.transitions,
            "mean_return": float(returns.mean()),
            "max_return": float(returns.max()),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def _check_actions(trajectories: Trajectories) -> None:
    largest = float(np.abs(trajectories.actions).max())
    if largest > 1 + 1e-6:
        raise InputError(f"dataset: actions of {trajectories.dataset_id!r} reach {largest:g}, allowed is -1 to 1")


def _read_info(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    try:
        info = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"run: no run at {path} ({file.name} is missing)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"run: {file} cannot be read ({error})") from error
    missing = {"model", "config", "training", "dataset"} - set(info if isinstance(info, dict) else ())
    if missing:
        raise InputError(f"run: {file} lacks {', '.join(sorted(missing))}")
    return info  # type: ignore[no-any-return]


def _require_dataset(path: Path, info: dict[str, Any]) -> None:
    missing = {"id", "fingerprint", "env_id", "env_spec", "observation_keys", "reference"} - set(info["dataset"])
    if missing:
        raise InputError(f"run: the dataset part of {path / 'run.json'} lacks {', '.join(sorted(missing))}")


def _claim(path: Path, info: dict[str, Any], resume: bool, loop: _Loop) -> None:
    """Make the folder this run's own: create it, or load its checkpoint if it holds the same run."""
    try:
        there = (path / "run.json").exists()
        if there and not resume:
            raise InputError(
                f"out: {path} already holds a run; --resume goes on with it, another --out leaves it alone"
            )
        if there:
            _require_same_run(path, _read_info(path), info)
        path.mkdir(parents=True, exist_ok=True)
        for leftover in path.glob(".*.safetensors.*"):  # of a process killed while it was writing
            leftover.unlink(missing_ok=True)
        if not there:
            write_atomically(path / "run.json", json.dumps(info, indent=2).encode())
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror})") from error
    if there and (path / "checkpoint.safetensors").exists():
        loop.restore()


def _require_same_run(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    asked = json.loads(json.dumps(asked))
    _require_dataset(path, there)
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


class _Loop:
    """The state of a training run and the steps that move it."""

    def __init__(self, policy: Policy, trajectories: Trajectories, config: TrainConfig, path: Path):
        self.policy, self.config, self.path, self.step = policy, config, path, 0
        self.device = policy.state_mean.device
        self.generator = torch.Generator().manual_seed(config.seed)
        self.sampler = WindowSampler(trajectories, policy.context, generator=self.generator)
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.rows: list[tuple[float, ...]] = []
        self.saved: int | None = None  # step of the checkpoint on disk
        self.seconds = 0.0  # spent before this process took over

    def run(self, progress: bool) -> None:
        """Update until `config.steps`, logging and saving on the way."""
        config, began, total = self.config, time.perf_counter() - self.seconds, torch.zeros((), device=self.device)
        self.policy.train()
        bar = tqdm(total=config.steps, initial=self.step, disable=not progress, unit="step", desc="train")
        with bar:
            while self.step < config.steps:
                total += self._update()
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self.seconds = time.perf_counter() - began
                    self._log(total)
                    bar.set_postfix(loss=f"{self.rows[-1][1]:.4f}")
                    total.zero_()
                if config.keep_every and self.step % config.keep_every == 0:
                    self.keep()
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self.save()

    def _update(self) -> Tensor:
        windows = self.sampler.sample(self.config.batch_size).to(self.device)
        self.optimizer.param_groups[0]["lr"] = self._learning_rate()
        loss = action_loss(self.policy(windows), windows)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        return loss.detach()

    def _learning_rate(self) -> float:
        warmup = self.config.warmup * self.config.steps
        return self.config.learning_rate * min(1.0, (self.step + 1) / warmup if warmup else 1.0)

    def _log(self, total: Tensor) -> None:
        count = self.step % self.config.log_every or self.config.log_every
        loss = float(total) / count
        if not np.isfinite(loss):
            self._diverged(f"loss: {loss} between steps {self.step - count + 1} and {self.step}")
        rate = self.optimizer.param_groups[0]["lr"]  # of the update just made
        self.rows.append((self.step, loss, rate, round(self.seconds, 3)))

    def _diverged(self, what: str) -> NoReturn:
        kept = "nothing was saved yet" if self.saved is None else f"the checkpoint of step {self.saved} is kept"
        rate = self.config.learning_rate
        raise RunError(f"{what}; {kept}; a lower learning_rate (now {rate:g}) is the first thing to try")

    def _require_finite_weights(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            self._diverged(f"weights: not finite after step {self.step}")

    def keep(self) -> None:
        """Write the weights of this step beside the checkpoint."""
        self._require_finite_weights()
        with _failing_as_run(self.path):
            write_atomically(self.path / kept_name(self.step), pack_weights(self.policy, self.step))

    def save(self) -> None:
        """Write log and checkpoint, each in one atomic move."""
        self._require_finite_weights()
        lines = [",".join(LOG_COLUMNS), *(",".join(f"{value:.9g}" for value in row) for row in self.rows)]
        generators = {"sampler": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        with _failing_as_run(self.path):
            write_atomically(self.path / "log.csv", ("\n".join(lines) + "\n").encode())
            write_checkpoint(
                self.path / "checkpoint.safetensors", self.policy, self.optimizer, generators, self.step, self.seconds
            )
        self.saved = self.step

    def restore(self) -> None:
        """Take over where the folder's checkpoint stopped."""
        checkpoint = read_checkpoint(self.path / "checkpoint.safetensors", self.policy, self.optimizer)
        self.step, self.seconds, self.saved = checkpoint.step, checkpoint.seconds, checkpoint.step
        self.generator.set_state(checkpoint.generators["sampler"])
        torch.set_rng_state(checkpoint.generators["torch"])
        if self.device.type == "cuda" and "cuda" in checkpoint.generators:
            torch.cuda.set_rng_state(checkpoint.generators["cuda"], self.device)
        log = Run(self.path, self.policy, {}, self.step).log
        self.rows = [row for row in zip(*log.values(), strict=True) if row[0] <= self.step]


@contextmanager
def _failing_as_run(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"checkpoint: {path} cannot be written ({error.strerror or error})") from error


def action_loss(predicted: Tensor, windows: Windows) -> Tensor:
    """Mean squared error over the actions of real steps: `(b, k, a)` -> scalar (paper, appendix A)."""
    return (predicted - windows.actions)[windows.mask].square().mean()
