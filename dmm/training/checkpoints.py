"""Weights, optimizer and random generators in one safetensors file, written in one atomic move and never unpickled."""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dmm.errors import InputError
from dmm.files import write_atomically as write_atomically
from dmm.policy import Policy

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each weight."""
LEARNED = "learner."
"""Before the names of what a learner has beside the policy."""
HEADER_LIMIT = 16 * 2**20
"""Bytes of a file's header; a tensor takes some 100 of them."""
GENERATOR_LIMIT = 2**14
"""Bytes of a generator's state; torch's on the CPU has 5,056."""
LARGEST_STEP = 2**53
FLOATS = ("F16", "BF16", "F32", "F64")
"""Names that the format has for types of weights; kept policies have half precision."""

Moments = Mapping[str, Mapping[str, Tensor]]
"""The same by name of the weight, then of the moment."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds beside the weights and moments that were loaded in place."""

    step: int
    seconds: float
    generators: dict[str, Tensor]


def policy_tensors(policy: Policy) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, one that several layers share only once.

    The other buffers are constants that follow from the config.
    """
    tensors, kept = dict(policy.named_parameters()) | dict(policy.named_buffers()), policy.state_dict().keys()
    return {name: tensor for name, tensor in tensors.items() if name in kept}


def write_checkpoint(
    path: Path,
    policy: Policy,
    moments: Moments,
    generators: dict[str, Tensor],
    step: int,
    seconds: float,
    learned: Mapping[str, Tensor] | None = None,
) -> None:
    """Save a training run's state after `step` updates and `seconds` of work, with what a learner has beside it."""
    extra = {f"generator.{name}": state for name, state in generators.items()}
    extra |= {f"{LEARNED}{name}": value for name, value in (learned or {}).items()}
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


@contextmanager
def _without_triton() -> Iterator[None]:
    """Keeps Triton out where there is no GPU for it.

    Tensors without memory let torch import its compiler, and that imports Triton where it is installed: its LLVM ends a
    process that has rendered a picture with Mesa's.
    """
    if "triton" in sys.modules or torch.cuda.is_available():
        yield
        return
    sys.modules["triton"] = None  # type: ignore[assignment]  # what importing fails on
    try:
        yield
    finally:
        del sys.modules["triton"]


def require_weights(path: Path, build: Callable[[], Policy]) -> None:
    """Passes when a checkpoint declares just the weights of the policy that `build` makes.

    The policy is built without memory, so that neither a config nor a header from elsewhere decides how much is taken.

    Raises:
        InputError: the file is missing, damaged, or of a policy of other shapes.
    """
    try:
        with torch.device("meta"), _without_triton():
            policy = build()
    except (RuntimeError, TypeError, OverflowError) as error:  # more numbers than can be counted
        raise InputError(f"checkpoint: {path} cannot be of a policy as large as the run's config says") from error
    with _opened(path) as file:
        _require_same(path, _declared(file), policy)


def read_checkpoint(
    path: Path,
    policy: Policy,
    moments: Moments | None = None,
    last: int = LARGEST_STEP,
    learned: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Load a checkpoint into the tensors of `policy` and, if given, of `moments`.

    All that the file declares is looked at before anything is read, and all that is read before anything is loaded.

    Args:
        path: the file.
        policy: gets the weights and buffers.
        moments: get what the optimizer keeps.
        last: the most updates that may be behind it.
        learned: get what a learner has beside the policy.

    Raises:
        InputError: missing, no ordinary file, truncated, of a policy of other shapes, or with numbers that no training
            leads to: weights or moments that are not finite, steps or seconds out of range.
    """
    with _opened(path) as file:
        declared = _declared(file)
        _require_same(path, declared, policy)
        if moments is not None:
            _require_moments(path, declared, moments, learned or {})
        checkpoint = _metadata(path, file, declared, last)
        weights = {name: _finite(path, file, f"policy.{name}") for name in policy_tensors(policy)}
        kept = _moments(path, file, moments or {}, checkpoint.step)
        beside = {name: _finite(path, file, f"{LEARNED}{name}") for name in learned or {}}
    with torch.no_grad():
        for name, tensor in policy_tensors(policy).items():
            tensor.copy_(weights[name])
        for weight, moment in kept:
            (moments or {})[weight][moment].copy_(kept[weight, moment])
        for name, tensor in (learned or {}).items():
            tensor.copy_(beside[name])
    return checkpoint


def restore_generator(path: Path, name: str, generator: torch.Generator, state: Tensor) -> None:
    """Put a generator where the checkpoint at `path` says that it was.

    Raises:
        InputError: `state` is none of a generator of this kind.
    """
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint: {path} is damaged (the state of generator {name!r}: {reason})") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose header is of a size that can be read; its library checks shapes against its size."""
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"checkpoint: {path} is no ordinary file")
            header = int.from_bytes(file.read(8), "little")
        if header > HEADER_LIMIT:
            raise InputError(f"checkpoint: {path} is damaged or truncated (its header says that it has {header} bytes)")
        with safe_open(path, framework="pt") as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"checkpoint: {path} does not exist; the run has not saved that yet") from None
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise InputError(f"checkpoint: {path} is damaged or truncated ({error})") from error


def _declared(file: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor, by name, from the header alone."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return {name: (stored.get_dtype(), tuple(stored.get_shape())) for name, stored in slices.items()}


def _fits(form: tuple[str, tuple[int, ...]] | None, tensor: Tensor) -> bool:
    """Whether what is declared can be loaded into a tensor: of its shape, and floats of any size."""
    return form is not None and form[0] in FLOATS and form[1] == tuple(tensor.shape)


def _require_same(path: Path, declared: Mapping[str, Any], policy: Policy) -> None:
    """Constants, which older files hold too, are passed over."""
    own = policy_tensors(policy)
    constants = dict(policy.named_buffers()).keys() - own.keys()
    there = {name.removeprefix("policy."): form for name, form in declared.items() if name.startswith("policy.")}
    there = {name: form for name, form in there.items() if name not in constants}
    wrong = sorted(n for n in own.keys() | there.keys() if n not in own or not _fits(there.get(n), own[n]))
    if wrong:
        raise InputError(f"checkpoint: {path} is of another policy, {len(wrong)} weights do not fit, first {wrong[0]}")


def _require_moments(path: Path, declared: Mapping[str, Any], moments: Moments, learned: Mapping[str, Tensor]) -> None:
    needed = {f"optimizer.{moment}.{name}": moments[name][moment] for moment in MOMENTS for name in moments}
    needed |= {f"{LEARNED}{name}": tensor for name, tensor in learned.items()}
    missing = sorted((needed.keys() | {"generator.sampler", "generator.torch"}) - declared.keys())
    if missing:
        raise InputError(f"checkpoint: {path} has weights only, a run cannot go on from it (no {missing[0]})")
    wrong = sorted(name for name, moment in needed.items() if not _fits(declared[name], moment))
    if wrong:
        raise InputError(f"checkpoint: {path} is damaged, {len(wrong)} moments do not fit, first {wrong[0]}")


def _metadata(path: Path, file: Any, declared: Mapping[str, Any], last: int) -> Checkpoint:
    metadata = file.metadata() or {}
    if "step" not in metadata:
        raise InputError(f"checkpoint: {path} was not written by this package (no step in its metadata)")
    step, seconds = _number(metadata["step"]), _number(metadata.get("seconds", "0"))
    if not (step.is_integer() and 0 <= step <= last):
        raise InputError(f"checkpoint: {path} is damaged (step {metadata['step'][:40]!r}, allowed is 0 to {last})")
    if not 0 <= seconds < math.inf:
        raise InputError(f"checkpoint: {path} is damaged (seconds {metadata['seconds'][:40]!r}, allowed is 0 or more)")
    states = {name.removeprefix("generator."): name for name in declared if name.startswith("generator.")}
    for name in states.values():
        kind, shape = declared[name]
        if kind != "U8" or len(shape) != 1 or shape[0] > GENERATOR_LIMIT:
            raise InputError(f"checkpoint: {path} is damaged ({name} has {kind} of shape {list(shape)})")
    return Checkpoint(int(step), seconds, {name: file.get_tensor(stored) for name, stored in states.items()})


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _finite(path: Path, file: Any, name: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name)
    if not tensor.isfinite().all():
        raise InputError(f"checkpoint: {path} is damaged ({name} is not finite)")
    if name == "policy.state_std" and not (tensor > 0).all():
        raise InputError(f"checkpoint: {path} is damaged ({name} is not positive)")
    if name.startswith(LEARNED) and name.endswith((".step", ".exp_avg_sq")) and (tensor < 0).any():
        raise InputError(f"checkpoint: {path} is damaged ({name} is negative)")
    return tensor


def _moments(path: Path, file: Any, moments: Moments, step: int) -> dict[tuple[str, str], Tensor]:
    """What the optimizer kept, by weight and moment."""
    kept = {}
    for moment in MOMENTS:
        for weight in moments:
            name = f"optimizer.{moment}.{weight}"
            kept[weight, moment] = values = _finite(path, file, name)
            if (moment == "step" and values.item() != step) or (moment == "exp_avg_sq" and (values < 0).any()):
                raise InputError(f"checkpoint: {path} is damaged ({name} is not that of step {step})")
    return kept
