"""The branches of blocks, each as one function with a gradient of its own, for training on a CPU.

A branch is `r + mixer(LN(x))`. Written as modules it is some twenty operations whose results all travel through memory,
and as many nodes for autograd. Here one row of the batch goes through all of them, matrix products included, before the
next (`branches.cpp`). Outputs and gradients are those of the modules to the rounding of float arithmetic.

`branch` says which branches can be had so. All others, and all that is not training on a CPU, are the modules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from dmm.errors import InputError
from dmm.fused import kernel, mlp, modality
from dmm.fused.dense import dense_branch
from dmm.fused.mamba import mamba_branch
from dmm.fused.mlp import mlp_branch
from dmm.fused.modality import modality_branch
from dmm.layers.local import DenseSequenceMixer, ModalityConv
from dmm.layers.mamba import MambaBlock
from dmm.layers.mlp import GeluMLP
from dmm.scan.cpp_kernel import DTYPES
from dmm.tracing import watched

__all__ = ["Choice", "branch", "branches"]

Choice = Literal["auto", "plain", "fused"]
LONGEST = 1024
"""Tokens: what the gradient of longer sequences keeps for each would leave the caches."""

_BRANCHES: dict[type, Callable[..., Tensor]] = {
    DenseSequenceMixer: dense_branch,
    MambaBlock: mamba_branch,
    GeluMLP: mlp_branch,
    ModalityConv: modality_branch,
}
_KERNELS = {GeluMLP: mlp.status, ModalityConv: modality.status}
"""Where it is not that of a DMM block's branches."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_choice: Choice = "auto"


def branch(norm: nn.Module, mixer: nn.Module, x: Tensor, normalized: bool) -> Callable[..., Tensor] | None:
    """What computes `(LN(x) if normalized else x) + mixer(LN(x))` in one, or None where the modules have to.

    It serves a `LayerNorm` with a `DenseSequenceMixer`, a `MambaBlock`, a `ModalityConv` or, in float32, a `GeluMLP`
    while they are trained: in training mode, with gradients, on float32 or float64 on a CPU, where a C++ compiler is.
    That of a `GeluMLP` takes `kept`, what dropout multiplies its output by; that of a `ModalityConv` takes `only`, the
    modality at whose tokens alone it is wanted; both add to `x`. It stands back where somebody looks inside
    (hooks), where the graph itself is wanted (`torch.export`, `torch.compile`, `torch.func`), and where a `MambaBlock`
    was told how to scan.

    Args:
        norm, mixer: `(b, l, d) -> (b, l, d)` each.
        x: `(b, l, d)`.
        normalized: what the residual adds to.

    Raises:
        InputError: it was asked for by `branches("fused")` and cannot serve.
    """
    reason = _why_not(norm, mixer, x, normalized)
    if reason is None:
        return functools.partial(_BRANCHES[type(mixer)], norm, mixer, x, normalized)
    if _choice == "fused":
        raise InputError(f"branches: got 'fused', allowed here is plain: {reason}")
    return None


@contextmanager
def branches(choice: Choice) -> Iterator[None]:
    """Inside, branches are `plain` (the modules), `fused` (an error where that cannot be), or as `auto` finds best.

    Raises:
        InputError: another choice.
    """
    global _choice
    if choice not in get_args(Choice):
        raise InputError(f"branches: got {choice!r}, allowed are {', '.join(get_args(Choice))}")
    before, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = before


def _why_not(norm: nn.Module, mixer: nn.Module, x: Tensor, normalized: bool) -> str | None:
    """What stands against one function for this branch, if anything does; what costs least is asked first."""
    if _choice == "plain":
        return "asked for"
    if not (mixer.training and torch.is_grad_enabled()):
        return "not training"
    if type(mixer) not in _BRANCHES or type(norm) is not nn.LayerNorm or not _is_plain(mixer):
        return f"{type(norm).__name__} and {type(mixer).__name__} have other parts"
    if x.device.type != "cpu" or x.dtype not in DTYPES or x.ndim != 3 or not 0 < x.shape[1] <= LONGEST or not len(x):
        return f"x is {x.dtype} of shape {tuple(x.shape)} on {x.device}"
    if norm.normalized_shape != x.shape[2:] or not all(_fits(weight, x) for weight in _weights(norm, mixer)):
        return "weights of another kind"
    if type(mixer) in _KERNELS and normalized:
        return f"that of a {type(mixer).__name__} adds to x"
    if type(mixer) is GeluMLP and x.dtype != torch.float32:
        return f"that of a GeluMLP is in float32, and x is {x.dtype}"
    if watched(x) or torch.is_autocast_enabled("cpu"):
        return "the operations themselves are asked for"
    if any(getattr(hooks_of_all, f"_global{name}") for name in _HOOKS) or _is_watched(norm) or _is_watched(mixer):
        return "there are hooks"
    found = _KERNELS.get(type(mixer), kernel.status)()
    return None if found.library is not None else found.reason


def _is_plain(mixer: nn.Module) -> bool:
    """Whether its layers are torch's own, not some that stand for them, and no way to scan was chosen."""
    if isinstance(mixer, MambaBlock) and mixer.backend != "auto":
        return False
    layers = mixer.convs if isinstance(mixer, ModalityConv) else mixer.children()
    return all(type(layer) in (nn.Linear, nn.Conv1d, nn.GELU) for layer in layers)


def _weights(norm: nn.Module, mixer: nn.Module) -> list[nn.Parameter | None]:
    return [norm.weight, norm.bias, *mixer.parameters()]  # type: ignore[list-item]


def _fits(weight: Tensor | None, x: Tensor) -> bool:
    return weight is not None and weight.dtype == x.dtype and weight.device == x.device


def _is_watched(module: nn.Module) -> bool:
    return any(getattr(each, name) for each in module.modules() for name in _HOOKS)
