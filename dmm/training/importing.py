"""The authors' weights as a run: a folder that `evaluate` and `inspect` take like any other."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import torch

from dmm.data.observations import build_flat_env, register_environments
from dmm.data.scores import reference_returns
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.errors import InputError
from dmm.files import strict_json, user_path
from dmm.models.official import from_official
from dmm.policy import Policy
from dmm.training.checkpoints import pack_weights, write_atomically
from dmm.training.config import TrainConfig
from dmm.training.run import Run, describe_run, holds_run, load_run


def import_run(
    name: str,
    weights: Mapping[str, Any] | str | Path,
    config: Mapping[str, Any],
    out: str | Path,
    *,
    dataset: str | Trajectories | None = None,
    environment: str | None = None,
) -> Run:
    """Write the authors' weights, as `from_official` reads them, into a new run's folder.

    Args:
        name: a model, see `dmm.from_official`.
        weights: the authors' state dict, or a `.safetensors` or `.npz` file of it.
        config: their sizes.
        out: the folder; it may not hold a run yet.
        dataset: the id of a local Minari data set, or trajectories, that the weights were trained on or for. It says
            where to evaluate, and gives the moments that normalise states where `config` and `weights` have none.
        environment: the id of an environment to evaluate in, if there is no data set.

    Raises:
        InputError: as `from_official`; a folder that holds a run or cannot be written; data or an environment of other
            sizes; or both named.
    """
    folder = user_path("out", out)
    if dataset is not None and environment is not None:
        raise InputError("environment: got one beside a dataset, which names its own; allowed is one of them")
    if holds_run(folder):
        raise InputError(f"out: {folder} already holds a run; another --out leaves it alone")
    policy = from_official(name, weights, config)
    if not isinstance(policy, Policy):
        raise InputError(f"name: got {name!r}, whose weights are no policy's; allowed are those of policies")
    info = _described(policy, name, dataset, environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "checkpoint.safetensors", pack_weights(policy, 0))
        write_atomically(folder / "run.json", strict_json(info, indent=2).encode())
    except OSError as error:
        raise InputError(f"out: {folder} cannot be written ({error.strerror})") from error
    return load_run(folder)


def _described(
    policy: Policy, name: str, dataset: str | Trajectories | None, environment: str | None
) -> dict[str, Any]:
    """What `run.json` says; with a data set, the policy gets its moments if it has none."""
    config: Any = policy.config
    sizes = (policy.state_size, policy.action_size)
    if dataset is not None:
        t = dataset if isinstance(dataset, Trajectories) else load_trajectories(dataset)
        if (t.state_size, t.action_size) != sizes:
            raise InputError(
                f"dataset: {t.dataset_id!r} has states and actions of {t.state_size} and {t.action_size} numbers, the "
                f"weights {sizes[0]} and {sizes[1]}"
            )
        if not policy.state_mean.any() and bool((policy.state_std == 1).all()):
            policy.set_state_moments(*map(torch.from_numpy, t.state_moments()))
        return describe_run(t, name, config, TrainConfig()) | {"imported": True}
    return {
        "model": name,
        "config": dataclasses.asdict(config),
        "training": dataclasses.asdict(TrainConfig()),
        "dataset": _without_data(environment, sizes, policy.discrete_actions),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "gymnasium": gymnasium.__version__,
        },
        "imported": True,
    }


def _without_data(environment: str | None, sizes: tuple[int, int], discrete: bool) -> dict[str, Any]:
    """The part of the description that is of the data, where there are none."""
    reference = None
    if environment is not None:
        register_environments()
        env = build_flat_env(environment, (), *sizes)  # raises where it has other sizes
        discrete = isinstance(env.unwrapped.action_space, gymnasium.spaces.Discrete)
        env.close()
        try:
            reference = list(reference_returns(environment))
        except InputError:  # none is known
            reference = None
    return {
        "id": "",
        "fingerprint": "",
        "env_id": environment or "",
        "env_spec": None,
        "observation_keys": [],
        "environment": None,
        "discrete_actions": discrete,
        "action_bounds": None,
        "observation_offset": None,
        "reference": reference,
        "transitions": 0,
        "mean_return": 0.0,
        "max_return": 0.0,
        "step_limit": None,
    }
