"""A trained policy as one JSON file that a web page can act with: `dmm export`.

The file is read by `dmm/_assets/policy.js`, and says all that acting needs: sizes, weights, moments of states, the
environment, and what returns can be asked. Weights are in half precision, as in runs that are kept with the package.

| entry | what |
|---|---|
| `format`, `version` | `dmm-policy`, 1 |
| `model`, `config` | `dmm`, `mamba` or `dt`: the structure; its sizes |
| `name`, `dataset`, `step` | the model's name, the data set, updates done |
| `discrete_actions` | whether actions are one-hot |
| `state_mean`, `state_std` | by which observations are normalised |
| `environment` | `id`, `action_bounds`, `delayed_rewards`, and `world`, see `dmm.data.worlds` |
| `returns` | `asked`: usual targets; `scale` of returns-to-go; `reference`, `mean` and `max` of the data |
| `weights` | `data`: float16, little endian, base64; `tensors`: name -> `shape` and `offset` in numbers |
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmm.data.faults import time_limit
from dmm.data.worlds import describe_world
from dmm.errors import InputError, RunError
from dmm.evaluation import default_targets, make_env
from dmm.files import strict_json, user_path
from dmm.models.dmm import DecisionMetaMamba
from dmm.models.dt import DecisionTransformer
from dmm.models.mamba import MambaPolicy
from dmm.policy import Policy
from dmm.training import Run, load_run
from dmm.training.checkpoints import write_atomically

FORMAT, VERSION = "dmm-policy", 1
STRUCTURES: dict[type[Policy], str] = {DecisionMetaMamba: "dmm", MambaPolicy: "mamba", DecisionTransformer: "dt"}
"""What the page can compute, by the very class: a sub-class may do something of its own."""


def export_run(run: str | Path | Run, to: str | Path) -> dict[str, Any]:
    """Write a run's policy to a file, and return what was written.

    Args:
        run: a run, or its folder.
        to: the file, in a folder that is there.

    Raises:
        InputError: no run, a model that the page cannot compute, weights beyond half precision, or a file that
            is there.
        RunError: it cannot be written.
    """
    file = user_path("to", to)
    if file.exists() or file.is_symlink():
        raise InputError(f"to: {file} is there already, allowed is a new file")
    made = describe_policy(run if isinstance(run, Run) else load_run(run))
    try:
        write_atomically(file, strict_json(made).encode())
    except OSError as error:
        raise RunError(f"to: {file} cannot be written ({error.strerror or error})") from error
    return made


def describe_policy(run: Run) -> dict[str, Any]:
    """What `export_run` writes, as plain values.

    Raises:
        InputError: a model that the page cannot compute, or weights beyond half precision.
    """
    policy: Any = run.policy
    model, data = _structure(run), run.info["dataset"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model,
        "name": run.info["model"],
        "config": dataclasses.asdict(policy.config),
        "dataset": data["id"],
        "step": run.step,
        "discrete_actions": policy.discrete_actions,
        "state_mean": policy.state_mean.tolist(),
        "state_std": policy.state_std.tolist(),
        "environment": {
            "id": data["env_id"],
            "action_bounds": data.get("action_bounds"),
            "delayed_rewards": bool(data.get("delayed_rewards")),
            "world": _world(run.info),
        },
        "returns": {
            "asked": default_targets(data["env_id"], data["max_return"]),
            "scale": policy.config.rtg_scale,
            "reference": data["reference"],
            "mean": data["mean_return"],
            "max": data["max_return"],
        },
        "weights": pack_half(policy),
    }


def pack_half(policy: Policy) -> dict[str, Any]:
    """A policy's weights in half precision: `data` and `tensors` of an export; what layers share is there once.

    Raises:
        InputError: weights that are not finite, or become so.
    """
    parts: list[np.ndarray] = []
    places: dict[int, int] = {}
    tensors, end = {}, 0
    for name, weight in policy.named_parameters(remove_duplicate=False):
        if id(weight) not in places:
            values = weight.detach().to(torch.float16).flatten().numpy()
            if not np.isfinite(values).all():
                limit = np.finfo(np.float16).max
                raise InputError(f"run: the weights {name!r} are not finite, or beyond {limit:g}, in half precision")
            places[id(weight)] = end
            parts.append(values)
            end += values.size
        tensors[name] = {"shape": list(weight.shape), "offset": places[id(weight)]}
    data = np.concatenate(parts).astype("<f2").tobytes()
    return {"data": base64.b64encode(data).decode(), "tensors": tensors}


def _structure(run: Run) -> str:
    """The name of the policy's structure."""
    kind = STRUCTURES.get(type(run.policy))
    allowed = f"allowed are {', '.join(STRUCTURES.values())}"
    if kind is None:
        raise InputError(f"run: got the model {run.info['model']!r}, which a page cannot compute; {allowed}")
    return kind


def _world(info: dict[str, Any]) -> dict[str, Any] | None:
    """The environment as the page plays it, None where it cannot, or where the environment cannot be made here."""
    data = info["dataset"]
    if not data["env_id"] and not data["env_spec"]:
        return None
    try:
        env: Any = make_env(info)
    except InputError:
        return None
    try:
        return describe_world(env, time_limit(env) or data.get("step_limit"))
    finally:
        env.close()
