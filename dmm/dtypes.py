"""Which numbers the models of this package compute with, and in which precision."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmm.errors import InputError

HALF = (torch.float16, torch.bfloat16)
FULL = (torch.float32, torch.float64)


def precision(
    tensors: Mapping[str, Any], optional: tuple[str, ...] = (), allowed: tuple[torch.dtype, ...] = (*HALF, *FULL)
) -> torch.dtype:
    """The dtype in which these are computed together: float64 if any is, else float32.

    Args:
        tensors: by the names of the arguments; those in `optional` may be None.

    Raises:
        InputError: no tensor, or complex or whole numbers, truth values, or another dtype that is not `allowed`.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None or name not in optional}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name}: got a {type(tensor).__name__}, allowed is a tensor")
        if tensor.dtype not in allowed:
            *first, last = (str(dtype).removeprefix("torch.") for dtype in allowed)
            raise InputError(
                f"{name}: got dtype {tensor.dtype}, allowed are real numbers: {', '.join(first)} and {last}"
            )
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in given.values()) else torch.float32


def together(optional: tuple[str, ...] = (), /, **tensors: Tensor | None) -> list[Any]:
    """These tensors, all in float64 if any is, else in float32; those that have that dtype already are not copied.

    Raises:
        InputError: as `precision`; half precision, too, is not allowed.
    """
    dtype = precision(tensors, optional, FULL)
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors.values()]


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, which would take the products of plain operations in half precision."""
    known = torch.amp.is_autocast_available(device.type)
    on = known and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()
