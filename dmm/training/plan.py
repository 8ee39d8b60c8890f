"""What was asked for, looked at before anything is begun: data, model, configs, device, seeds and their folders."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import minari
import numpy as np
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories, load_trajectories, require_trainable
from dmm.data.windows import Sampler
from dmm.errors import LARGEST_SEED, InputError, whole_number
from dmm.files import user_path
from dmm.models.entry import Facts, Model, Stage
from dmm.models.registry import find_model, read_changes
from dmm.policy import Policy
from dmm.training.checkpoints import policy_tensors
from dmm.training.config import TrainConfig
from dmm.training.record import read_record, require_readable
from dmm.training.run import Run, SeedRun, default_out, describe_run, holds_run, load_run


def default_rtg_scale(trajectories: Trajectories) -> float:
    """By the largest return-to-go: 1000 or 1, as the released code has, or a power of ten where neither fits."""
    return trajectories.return_scale()


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


@dataclass(frozen=True)
class Origin:
    """The run whose weights new ones start from."""

    config: dict[str, Any]  # of its model
    said: dict[str, Any]  # in the new runs' `run.json`, as `from`
    tensors: dict[str, Tensor] | None = None  # its weights and moments; None if new runs only go on


@dataclass(frozen=True)
class Plan:
    """What the seeds of one call of `train` or `train_seeds` have in common."""

    trajectories: Trajectories
    model: str
    entry: Model
    model_config: Any
    config: TrainConfig  # but for its seed
    device: torch.device
    origin: Origin | None
    several: bool  # seeds, so that messages must say of which they are
    stages: tuple[Policy, ...] = ()  # trained before, each with its seed's own weights

    def run(self, seed: int, path: Path, generators: Callable[[torch.device], dict[str, torch.Generator]]) -> SeedRun:
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
        run = SeedRun(policy.to(self.device), config, path, generators(self.device), info, name)
        run.startable = self.origin is None or self.origin.tensors is not None
        if self.entry.learner is not None:
            run.learner = self.entry.learner(policy, config)
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
    def sampler(self) -> Sampler:
        """Of the batches of all seeds, each of which has a generator of its own."""
        return self.entry.sampler(self.prepared, self.model_config, self.device)

    @cached_property
    def prepared(self) -> Trajectories:
        """The data as the model wants them."""
        prepare = self.entry.prepare
        return self.trajectories if prepare is None else prepare(self.trajectories, self.model_config, self.stages)

    def stage(self, stage: Stage, steps: int) -> Plan:
        """What is trained before this model, on the same data, for so many updates unless the stage says how many."""
        entry, facts = find_model(stage.model), Facts.of(self.trajectories)
        changes = dict(stage.changes(self.model_config))
        steps = changes.pop("steps", steps)
        model_changes, train_changes = read_changes(changes, entry, TrainConfig, facts)
        config = TrainConfig(steps=steps, seed=self.config.seed, **train_changes)
        made = {"entry": entry, "model_config": entry.config_for(facts, model_changes), "config": config}
        return dataclasses.replace(self, model=stage.model, origin=None, stages=(), **made)

    def after(self, stages: Sequence[Policy]) -> Plan:
        """The plan of one seed, behind its earlier stages."""
        return dataclasses.replace(self, stages=tuple(stages))

    def fits_other_processes(self) -> bool:
        """Whether a fresh interpreter finds the model; one that was defined in a script or notebook it does not.

        A model behind earlier stages is trained where its data are.
        """
        if self.entry.before:
            return False
        own = (value for value in vars(self.entry).values() if callable(value))
        parts = (part if hasattr(part, "__qualname__") else type(part) for part in own)
        return all(part.__module__.partition(".")[0] == "dmm" and "<" not in part.__qualname__ for part in parts)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what is worked out from the trajectories, not themselves."""
        worked_out = {name: getattr(self, name) for name in ("info", "moments", "discrete_actions", "sampler")}
        entry = dataclasses.replace(self.entry, official=None, published=None)  # of no use there
        return self.__dict__ | worked_out | {"trajectories": None, "prepared": None, "entry": entry}


def make_plan(
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
) -> tuple[Plan, list[int], list[Path]]:
    """Look at everything that was asked for before anything is begun: what is to be done, the seeds, their folders."""
    seeds = _seeds(seeds) if several else [whole_number("seed", each, 0, LARGEST_SEED) for each in seeds]
    t = dataset if isinstance(dataset, Trajectories) else load_trajectories(dataset)
    entry = find_model(model)
    paths = _paths(out, several, t.dataset_id, model, seeds)
    there = [read_record(path, TrainConfig).info for path in paths if resume and holds_run(path)]
    origin = _find_origin(start_from, there)
    facts = Facts.of(t)
    model_changes, train_changes = read_changes(changes or {}, entry, TrainConfig, facts)
    if origin is not None:
        _require_fit(origin, t, model)
        if entry.learner is not None:
            raise InputError(f"from: got {origin.said['run']}, of whose weights {model!r} needs more than the policy's")
        config = entry.config(**(origin.config | model_changes))
    else:
        if entry.fit_rtg_scale and hasattr(entry.config, "rtg_scale"):
            model_changes.setdefault("rtg_scale", default_rtg_scale(t))
        config = entry.config_for(facts, model_changes)
    usual = train_changes.pop("steps", TrainConfig.steps)
    if steps is None:
        steps = max((info["training"]["steps"] for info in there), default=usual)
    training = TrainConfig(steps=steps, **train_changes)
    require_trainable(t, getattr(config, "rtg_scale", 1.0))
    require_readable(config, training)
    return Plan(t, model, entry, config, training, choose_device(device), origin, several), seeds, paths


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


def _find_origin(start_from: Run | str | Path | None, there: Sequence[dict[str, Any]]) -> Origin | None:
    """The run that was named, or the one that runs which are there say they started from."""
    if start_from is not None:
        run = start_from if isinstance(start_from, Run) else load_run(user_path("from", start_from))
        tensors = {name: tensor.detach().cpu() for name, tensor in policy_tensors(run.policy).items()}
        data = {name: run.info["dataset"][name] for name in ("id", "fingerprint")}
        said = {"run": str(run.path), "model": run.info["model"], "seed": run.info["training"]["seed"]}
        said |= {"step": run.step, "dataset": data, "discrete_actions": run.policy.discrete_actions}
        return Origin(run.info["config"], said | {"weights": _digest(tensors)}, tensors)
    known = next((info for info in there if info.get("from")), None)
    return None if known is None else Origin(known["config"], known["from"])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that change when any of these tensors does (SHA-256)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _require_fit(origin: Origin, trajectories: Trajectories, model: str) -> None:
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


def _start_from(origin: Origin, policy: Policy) -> None:
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
