"""Weights, optimizer and random generators in one safetensors file, written in one atomic move and never unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dmm.errors import InputError
from dmm.policy import Policy

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each weight."""

Moments = Mapping[str, Mapping[str, Tensor]]
"""The same by name of the weight, then of the moment."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the weights and moments that were loaded in place."""

    step: int
    seconds: float
    generators: dict[str, Tensor]


def policy_tensors(policy: Policy) -> dict[str, Tensor]:
    """Parameters and buffers by name, one that several layers share only once."""
    return dict(policy.named_parameters()) | dict(policy.named_buffers())


def write_checkpoint(
    path: Path,
    policy: Policy,
    moments: Moments,
    generators: dict[str, Tensor],
    step: int,
    seconds: float,
) -> None:
    """Save a training run's state after `step` updates and `seconds` of work."""
    extra = {f"generator.{name}": state for name, state in generators.items()}
    for name, values in moments.items():
        extra |= {f"optimizer.{moment}.{name}": value for moment, value in values.items()}
    write_atomically(path, pack_weights(policy, step, seconds, extra))


def pack_weights(policy: Policy, step: int, seconds: float = 0.0, extra: dict[str, Tensor] | None = None) -> bytes:
    """A policy's weights and buffers, and what else is given, as the content of a safetensors file."""
    tensors = {f"policy.{name}": tensor for name, tensor in policy_tensors(policy).items()} | (extra or {})
    plain = {name: _own(tensor) for name, tensor in tensors.items()}
    return save(plain, metadata={"step": str(step), "seconds": repr(seconds)})


def _own(tensor: Tensor) -> Tensor:
    """In memory that it shares with no other, as the format wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_checkpoint(path: Path, policy: Policy, moments: Moments | None = None) -> Checkpoint:
    """Load a checkpoint into the tensors of `policy` and, if given, of `moments`.

    Raises:
        InputError: missing, truncated, or of a policy of other shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise InputError(f"checkpoint: {path} does not exist; the run has not saved that yet") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint: {path} is damaged or truncated ({error})") from error
    if not metadata.get("step", "").isdigit():
        raise InputError(f"checkpoint: {path} was not written by this package (no step in its metadata)")
    _load(path, policy, tensors)
    if moments is not None:
        _load_moments(path, moments, tensors)
    generators = {name.removeprefix("generator."): t for name, t in tensors.items() if name.startswith("generator.")}
    return Checkpoint(int(metadata["step"]), float(metadata.get("seconds", 0)), generators)


def _load(path: Path, policy: Policy, tensors: dict[str, Tensor]) -> None:
    own = policy_tensors(policy)
    there = {name.removeprefix("policy."): t for name, t in tensors.items() if name.startswith("policy.")}
    wrong = sorted(
        n for n in own.keys() | there.keys() if n not in own or n not in there or own[n].shape != there[n].shape
    )
    if wrong:
        raise InputError(f"checkpoint: {path} is of another policy, {len(wrong)} weights do not fit, first {wrong[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(there[name])


def _load_moments(path: Path, moments: Moments, tensors: dict[str, Tensor]) -> None:
    needed = {f"optimizer.{moment}.{name}" for moment in MOMENTS for name in moments}
    missing = sorted((needed | {"generator.sampler", "generator.torch"}) - tensors.keys())
    if missing:
        raise InputError(f"checkpoint: {path} has weights only, a run cannot go on from it (no {missing[0]})")
    with torch.no_grad():
        for name, values in moments.items():
            for moment in MOMENTS:
                values[moment].copy_(tensors[f"optimizer.{moment}.{name}"])


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a reader or a crash sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
