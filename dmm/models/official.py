"""Weights from elsewhere: the authors' state dict as a policy of this package.

Each model's file says in its entry (`Official`) how the authors' sizes and names become ours. Nothing is unpickled:
weights come as a mapping from their keys to arrays or tensors, or from a `.safetensors` or `.npz` file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dmm.errors import InputError
from dmm.files import user_path
from dmm.layers.mamba import MambaBlock
from dmm.models.entry import Official, transposed
from dmm.models.hdt import TransformerPlanner
from dmm.models.registry import MODELS, find_model
from dmm.policy import Policy

__all__ = ["from_official", "load_official", "read_weights", "transposed"]

SHOWN = 8
"""Keys of each kind that an error lists."""
MOMENTS = ("state_mean", "state_std")
"""What the authors keep beside their weights; a file may have them under these names."""
PREFIX = "weights/"
"""Of the authors' keys in an `.npz` file that holds other arrays too."""
BESIDE = ("unregistered/", "waypoint_weights/", "waypoint.")
"""Of weights in such a file that are not in the policy's own state dict; they keep the whole name."""


Weights = Mapping[str, Any] | str | Path


@overload
def from_official(name: Literal["mamba"], weights: Weights, config: Mapping[str, Any]) -> MambaBlock: ...  # type: ignore[overload-overlap]
@overload
def from_official(name: Literal["hdt"], weights: Weights, config: Mapping[str, Any]) -> TransformerPlanner: ...  # type: ignore[overload-overlap]
@overload
def from_official(name: str, weights: Weights, config: Mapping[str, Any]) -> Policy: ...
def from_official(name: str, weights: Weights, config: Mapping[str, Any]) -> nn.Module:
    """A policy of this package with the authors' weights, in evaluation mode.

    It predicts what their code predicts, with the exceptions that the model's own docstring names. States are
    normalised by the moments `state_mean` and `state_std`, where `config` or `weights` has them, else not at all:
    `set_state_moments` sets them later.

    For `mamba` it is one block, a `MambaBlock`, and the weights are those of one `mamba_ssm.Mamba`, whose arguments
    `config` holds (`d_model`, and `d_state`, `d_conv`, `expand`, `dt_rank` where they are not its defaults): the policy
    around the blocks is this package's own.

    For `hdt` it is a planner, a `TransformerPlanner`: the release has no policy around it.

    For `wt` they are those of two networks: the policy's, and behind `waypoint_weights/` or `waypoint.` those of the
    waypoint network.

    Args:
        name: a model with published weights or code: `dmm`, `mamba`, `dt`, ... as in `dmm models`.
        weights: the authors' state dict, from their keys to arrays or tensors; or a `.safetensors` or `.npz` file of
            it, in which the keys may stand behind `weights/`.
        config: the sizes that the authors' code was run with, by the names that the model's `Official.config` reads;
            others are passed over.

    Raises:
        InputError: an unknown name, a file of another kind, a size that is missing or wrong, or keys that are missing,
            left over or of another shape; the message lists them.
    """
    model = find_model(name)
    if model.official is None:
        known = ", ".join(each for each, entry in MODELS.items() if entry.official)
        raise InputError(f"name: got {name!r}, which has no weights from elsewhere; allowed are {known}")
    if not isinstance(config, Mapping):
        raise InputError(f"config: got {type(config).__name__}, allowed is a mapping from names to sizes")
    tensors = read_weights(weights)
    try:
        if model.official.named is not None:
            tensors, config = model.official.named(tensors, config)
        made = model.official.config(config)
    except KeyError as error:
        raise InputError(f"config: {error.args[0]!r} is missing, which {name} needs") from None
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"config: it cannot be one of {name} ({error})") from None
    build = partial(model.official.module or model.policy, made)
    _require_room(build, tensors, name)
    with torch.random.fork_rng():  # the start that is overwritten leaves no trace
        policy = build()
    if not isinstance(policy, Policy):
        load_official(policy, tensors, model.official, name)
        return policy.eval()
    policy.discrete_actions = model.official.discrete
    moments = _moments(config, {each: tensors.pop(each, None) for each in MOMENTS}, policy.state_size)
    load_official(policy, tensors, model.official, name)
    if moments is not None:
        policy.set_state_moments(*moments)
    return policy.eval()


def _require_room(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], name: str) -> None:
    """Passes when a policy of these sizes has no more numbers than were given, built without memory to find out."""
    try:
        with torch.device("meta"):
            size = sum(weight.numel() for weight in build().state_dict().values())
    except (RuntimeError, TypeError, OverflowError) as error:  # more numbers than can be counted
        raise InputError(f"config: no {name} can be as large as these sizes say") from error
    given = sum(tensor.numel() for tensor in tensors.values())
    if size > 2 * given + 2**20:
        raise InputError(f"config: a {name} of these sizes has {size:,} weights, and {given:,} were given")


def _moments(config: Mapping[str, Any], kept: Mapping[str, Any], size: int) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of states, `(s,)` each, of the config or else of what lies beside the weights."""
    given = {name: kept[name] if config.get(name) is None else config[name] for name in MOMENTS}
    lacking = [name for name, values in given.items() if values is None]
    if len(lacking) == len(given):
        return None
    if lacking:
        raise InputError(f"{lacking[0]}: got none beside the other moment, allowed are both or neither")
    made = []
    for name, values in given.items():
        try:
            moment = torch.as_tensor(np.asarray(values, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name}: got {type(values).__name__}, allowed are {size} numbers") from error
        if moment.shape != (size,):
            raise InputError(f"{name}: got shape {tuple(moment.shape)}, allowed is ({size},)")
        if not moment.isfinite().all() or (name == "state_std" and not (moment > 0).all()):
            kind = "positive" if name == "state_std" else "finite"
            raise InputError(f"{name}: got {moment.tolist()[:SHOWN]}, allowed are {kind} numbers")
        made.append(moment)
    return made[0], made[1]


@torch.no_grad()
def load_official(policy: nn.Module, tensors: Mapping[str, Tensor], official: Official, name: str) -> None:
    """Copy the authors' weights into a policy, or into what else they are of.

    Raises:
        InputError: keys are missing, left over, of another shape or not finite; the message lists them.
    """
    own = {key: tensor for key, tensor in policy.state_dict().items() if key not in MOMENTS}
    sources = official.sources(policy)
    found: dict[str, Tensor] = {}
    missing, wrong, used = [], [], set()
    for key, source in sources.items():
        theirs, translate = (source, _same) if isinstance(source, str) else source
        used.add(theirs)
        if theirs not in tensors:
            missing.append(theirs + official.notes.get(theirs, ""))
            continue
        try:
            tensor = translate(tensors[theirs])
        except (RuntimeError, IndexError):  # of fewer axes than it takes
            tensor = tensors[theirs][None]
        if tensor.shape != own[key].shape:
            there, here = tuple(tensors[theirs].shape), tuple(own[key].shape)
            wrong.append(f"{theirs} {there} where {key} is {here}")
        elif tensor.is_complex() or not tensor.isfinite().all():
            wrong.append(f"{theirs} is {'complex' if tensor.is_complex() else 'not finite'}")
        found[key] = tensor
    named = {own[key].data_ptr() for key in sources}  # layers may share weights, which are named once
    forgotten = [key for key, tensor in own.items() if tensor.data_ptr() not in named]
    assert not forgotten, f"{name}: no source for {forgotten}"
    left = sorted(key for key in tensors.keys() - used if not official.unused(key))
    faults = {"missing": sorted(set(missing)), "left over": left, "of another shape": wrong}
    told = [f"{kind}: {_listed(keys)}" for kind, keys in faults.items() if keys]
    if told:
        raise InputError(f"weights: they are not those of this {name} ({'; '.join(told)})")
    for key, tensor in found.items():
        own[key].copy_(tensor)


def read_weights(weights: Mapping[str, Any] | str | Path) -> dict[str, Tensor]:
    """Tensors by the authors' keys, from a mapping or a file.

    Raises:
        InputError: neither, a file that cannot be read or is of another kind, or an entry that is no array of numbers.
    """
    if isinstance(weights, str | Path):
        weights = _read_file(user_path("weights", weights))
    if not isinstance(weights, Mapping):
        raise InputError(
            f"weights: got {type(weights).__name__}, allowed is a mapping from keys to arrays, or a .safetensors or "
            ".npz file"
        )
    return {str(key): _tensor(str(key), value) for key, value in weights.items()}


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(
            f"weights: got {path.name}, allowed are .safetensors and .npz; a pickle (.pt, .pth, .bin) can run code: "
            "save its state dict with safetensors where you trust it"
        )
    try:
        if path.suffix == ".npz":
            opened = np.load(path, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, not several with names")
            with opened as arrays:
                kept = [key for key in arrays.files if key.startswith(PREFIX)]
                kept += [key for key in arrays.files if kept and key.startswith(BESIDE)]
                return {key.removeprefix(PREFIX): arrays[key] for key in kept or arrays.files}
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise InputError(f"weights: {path} does not exist") from None
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise InputError(f"weights: {path} cannot be read ({error})") from error


def _tensor(key: str, value: Any) -> Tensor:
    try:
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"weights: {key} is {type(value).__name__}, allowed is an array of numbers") from error
    return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
