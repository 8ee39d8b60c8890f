"""Weights from elsewhere: the authors' state dict as a policy of this package.

Each model's file says in its entry (`Official`) how the authors' sizes and names become ours. Nothing is unpickled:
weights come as a mapping from their keys to arrays or tensors, or from a `.safetensors` or `.npz` file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
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
from dmm.models.registry import MODELS, find_model
from dmm.policy import Policy

__all__ = ["from_official", "load_official", "read_weights", "transposed"]

SHOWN = 8
"""Keys of each kind that an error lists."""
MOMENTS = ("state_mean", "state_std")
"""What the authors keep beside their weights; a file may have them under these names."""
PREFIX = "weights/"
"""Of the authors' keys in an `.npz` file that holds other arrays too."""
UNREGISTERED = "unregistered/"
"""Of weights in such a file that the authors' state dict does not hold; they keep the whole name."""


Weights = Mapping[str, Any] | str | Path


@overload
def from_official(name: Literal["mamba"], weights: Weights, config: Mapping[str, Any]) -> MambaBlock: ...  # type: ignore[overload-overlap]
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
    try:
        made = model.official.config(config)
    except KeyError as error:
        raise InputError(f"config: {error.args[0]!r} is missing, which {name} needs") from None
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"config: it cannot be one of {name} ({error})") from None
    tensors = read_weights(weights)
    with torch.random.fork_rng():  # the start that is overwritten leaves no trace
        policy = (model.official.module or model.policy)(made)
    if not isinstance(policy, Policy):
        load_official(policy, tensors, model.official, name)
        return policy.eval()
    moments = [tensors.pop(each, None) if config.get(each) is None else config[each] for each in MOMENTS]
    load_official(policy, tensors, model.official, name)
    if all(moment is not None for moment in moments):
        mean, std = (torch.as_tensor(np.asarray(moment)).float() for moment in moments)
        if mean.shape != policy.state_mean.shape or std.shape != mean.shape:
            raise InputError(f"state_mean: got {tuple(mean.shape)}, allowed is {tuple(policy.state_mean.shape)}")
        policy.set_state_moments(mean, std)
    return policy.eval()


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
        tensor = translate(tensors[theirs])
        if tensor.shape != own[key].shape:
            there, here = tuple(tensors[theirs].shape), tuple(own[key].shape)
            wrong.append(f"{theirs} {there} where {key} is {here}")
        elif not tensor.isfinite().all():
            wrong.append(f"{theirs} is not finite")
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
            with np.load(path, allow_pickle=False) as arrays:
                kept = [key for key in arrays.files if key.startswith(PREFIX)]
                kept += [key for key in arrays.files if kept and key.startswith(UNREGISTERED)]
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
