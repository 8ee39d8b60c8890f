"""A run as a folder: `run.json` (model, configs, data set, versions), `checkpoint.safetensors` (weights, optimizer,
random generators, step) and `log.csv` (step, loss, learning rate, seconds). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError, RunError, whole_number
from dmm.files import strict_json, user_path
from dmm.models.entry import Learner
from dmm.policy import Policy
from dmm.training.checkpoints import (
    Moments,
    pack_weights,
    read_checkpoint,
    require_weights,
    restore_generator,
    write_atomically,
    write_checkpoint,
)
from dmm.training.config import TrainConfig
from dmm.training.record import LOG_COLUMNS, read_log, read_record
from dmm.training.update import FlatWeights, learning_rate


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


def default_out(dataset_id: str, model: str, seed: int) -> Path:
    """`runs/<dataset>/<model>-seed<seed>` below the current folder."""
    return Path("runs") / dataset_id.replace("/", "_") / f"{model}-seed{seed}"


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
            "best_share": t.best_share,
            "delayed_rewards": t.delayed_rewards,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
    }


def default_generators(device: torch.device) -> dict[str, torch.Generator]:
    """Torch's own, by the names that checkpoints have for them."""
    generators = {"torch": torch.default_generator}
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators["cuda"] = torch.cuda.default_generators[index]
    return generators


def own_generators(device: torch.device) -> dict[str, torch.Generator]:
    """New ones that go on where torch's own are."""
    generators = {}
    for name, default in default_generators(device).items():
        generators[name] = torch.Generator(default.device)
        generators[name].set_state(default.get_state())
    return generators


def dropout_generator(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "torch"


def claim(runs: Sequence[SeedRun], resume: bool) -> None:
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


def holds_run(path: Path) -> bool:
    try:
        return (path / "run.json").exists()
    except OSError as error:
        raise InputError(f"out: {path} cannot be written ({error.strerror})") from error


def _require_free(run: SeedRun, resume: bool) -> dict[str, Any] | None:
    """The description of this very run if it is in its folder already; any other may not be."""
    if not holds_run(run.path):
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


class SeedRun:
    """The run of one seed: its policy and what AdamW keeps for it, its generators, log and folder."""

    startable = True  # whether its weights are those that a first update wants
    learner: Learner | None = None  # what trains it, where that is not AdamW on its loss

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

    def moments(self) -> Moments:
        """What AdamW keeps for the policy; nothing where a learner has optimizers of its own."""
        return self.flat.moments() if self.learner is None else {}

    def learned(self) -> Mapping[str, Tensor]:
        """What a learner goes on with beside the policy, if there is one."""
        return {} if self.learner is None else self.learner.tensors()

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

    def log(self, loss: float, terms: Sequence[float] = ()) -> None:
        """Add a row for the updates since the last one, of which `loss`, and each of its several terms, is the mean."""
        rate = learning_rate(self.recipe, self.step - 1)  # of the update just made
        self.rows.append((self.step, loss, rate, round(self.seconds, 3), *terms))

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
        terms = self.policy.terms if len(self.policy.terms) > 1 else ()
        lines = [",".join((*LOG_COLUMNS, *terms)), *(",".join(f"{value:.9g}" for value in row) for row in self.rows)]
        states = {name: generator.get_state() for name, generator in self.generators.items()}
        checkpoint = self.path / "checkpoint.safetensors"
        with _failing_as_run(self.path):
            write_atomically(self.path / "log.csv", ("\n".join(lines) + "\n").encode())
            write_checkpoint(checkpoint, self.policy, self.moments(), states, self.step, self.seconds, self.learned())
        self.saved = self.step

    def restore(self, last: int) -> None:
        """Take over where the folder's checkpoint stopped, at step `last` at most."""
        file = self.path / "checkpoint.safetensors"
        checkpoint = read_checkpoint(file, self.policy, self.moments(), last, self.learned())
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


@contextmanager
def _failing_as_run(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"checkpoint: {path} cannot be written ({error.strerror or error})") from error
