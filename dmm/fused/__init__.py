"""The branches of blocks, each as one function, on a CPU: with a gradient of its own, and without any.

A branch is `r + mixer(LN(x))`. Written as modules it is some twenty operations whose results all travel through memory,
and as many nodes for autograd. Here one row of the batch goes through all of them, matrix products included, before the
next (`branches.cpp`). Outputs and gradients are those of the modules to the rounding of float arithmetic.

`branch` says which branches of whole windows can be had so, and `cell` which ones a few tokens at a time, for acting.
All others are the modules.
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
from dmm.fused.steps import BranchCell, Cell, Chain, DenseCell, MambaBranchCell, branch_step
from dmm.layers.local import DenseSequenceMixer, ModalityConv
from dmm.layers.mamba import MambaBlock
from dmm.layers.mlp import GeluMLP
from dmm.scan.cpp_kernel import DTYPES
from dmm.tracing import watched

__all__ = ["Cell", "Chain", "Choice", "branch", "branches", "cell", "newest"]

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

    It serves a `LayerNorm` with a `DenseSequenceMixer` or a `MambaBlock` while they are trained (in training mode, with
    gradients) and while they are only used (without gradients), and one with a `ModalityConv` or, in float32, a
    `GeluMLP` while they are trained; on float32 or float64 on a CPU, where a C++ compiler is. That of a `GeluMLP` takes
    `kept`, what dropout multiplies its output by; that of a `ModalityConv` takes `only`, the modality at whose tokens
    alone it is wanted; both add to `x`. It stands back where somebody looks inside (hooks), where the graph itself is
    wanted (`torch.export`, `torch.compile`, `torch.func`), and where a `MambaBlock` has another activation than SiLU or
    no skip, or was told how to scan.

    Args:
        norm, mixer: `(b, l, d) -> (b, l, d)` each.
        x: `(b, l, d)`.
        normalized: what the residual adds to.

    Raises:
        InputError: it was asked for by `branches("fused")` and cannot serve.
    """
    reason = _why_not(norm, mixer, x, normalized)
    if reason is None:
        compute = _BRANCHES[type(mixer)] if torch.is_grad_enabled() else branch_step
        return functools.partial(compute, norm, mixer, x, normalized)  # type: ignore[arg-type]
    if _choice == "fused":
        raise InputError(f"branches: got 'fused', allowed here is plain: {reason}")
    return None


def newest(norm: nn.Module, mixer: nn.Module, x: Tensor, normalized: bool) -> Tensor:
    """`(LN(x) if normalized else x) + mixer(LN(x))` of the last token alone, `(b, l, d) -> (b, d)`.

    What only other tokens' outputs need is left out where that can be done without a gradient.
    """
    fused = branch(norm, mixer, x, normalized)
    if fused is not None and isinstance(mixer, MambaBlock) and not torch.is_grad_enabled():
        return branch_step(norm, mixer, x, normalized, newest=True)  # type: ignore[arg-type]
    if fused is not None:
        return fused()[:, -1]
    normed = norm(x)
    return (normed if normalized else x)[:, -1] + mixer(normed)[:, -1]  # type: ignore[no-any-return]


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


def cell(norm: nn.Module, mixer: nn.Module, normalized: bool) -> Cell:
    """What computes `(LN(x) if normalized else x) + mixer(LN(x))` a few tokens at a time, with the weights of now.

    In one function for a `DenseSequenceMixer` and a `MambaBlock`, in calls without gradients; else in the modules,
    whose weights must not change then, either.
    """
    weight = getattr(norm, "weight", None)
    served = type(mixer) not in _KERNELS and isinstance(weight, Tensor) and isinstance(norm, nn.LayerNorm)
    if not served or _unfit(norm, mixer, weight) is not None:  # type: ignore[arg-type]
        return BranchCell(norm, mixer, normalized)
    kind = MambaBranchCell if isinstance(mixer, MambaBlock) else DenseCell
    return kind(norm, mixer, normalized, _serves)  # type: ignore[arg-type]


def _serves(weight: Tensor, x: Tensor, *state: Tensor) -> bool:
    """Whether the kernel may take these tokens of a cell with weights like this one."""
    if _choice == "plain" or torch.is_grad_enabled() or not _fits(weight, x) or not 0 < x.shape[1] <= LONGEST:
        return False
    return len(x) > 0 and not watched(x, *state) and not torch.is_autocast_enabled("cpu")


def _why_not(norm: nn.Module, mixer: nn.Module, x: Tensor, normalized: bool) -> str | None:
    """What stands against one function for this branch, if anything does; what costs least is asked first."""
    if _choice == "plain":
        return "asked for"
    if torch.is_grad_enabled() and not mixer.training:
        return "not training"
    if type(mixer) in _KERNELS and not torch.is_grad_enabled():
        return "not training"
    if x.ndim != 3 or not 0 < x.shape[1] <= LONGEST or not len(x):
        return f"x is of shape {tuple(x.shape)}"
    if getattr(norm, "normalized_shape", x.shape[2:]) != x.shape[2:]:
        return "x has other channels"
    if type(mixer) in _KERNELS and normalized:
        return f"that of a {type(mixer).__name__} adds to x"
    if type(mixer) is GeluMLP and x.dtype != torch.float32:
        return f"that of a GeluMLP is in float32, and x is {x.dtype}"
    if watched(x) or torch.is_autocast_enabled("cpu"):
        return "the operations themselves are asked for"
    return _unfit(norm, mixer, x)


def _unfit(norm: nn.Module, mixer: nn.Module, x: Tensor) -> str | None:
    """What stands against one function for these modules and numbers like those of `x`."""
    if type(mixer) not in _BRANCHES or type(norm) is not nn.LayerNorm or not _is_plain(mixer):
        return f"{type(norm).__name__} and {type(mixer).__name__} have other parts"
    if x.device.type != "cpu" or x.dtype not in DTYPES:
        return f"x is {x.dtype} on {x.device}"
    if not all(_fits(weight, x) for weight in _weights(norm, mixer)):
        return "weights of another kind"
    if any(getattr(hooks_of_all, f"_global{name}") for name in _HOOKS) or _is_watched(norm) or _is_watched(mixer):
        return "there are hooks"
    found = _KERNELS.get(type(mixer), kernel.status)()
    return None if found.library is not None else found.reason


def _is_plain(mixer: nn.Module) -> bool:
    """Whether its layers are torch's own, not some that stand for them, a Mamba block is Mamba's, with SiLU and skip,
    and no way to scan was chosen."""
    if isinstance(mixer, MambaBlock) and (mixer.backend != "auto" or mixer.activation != "silu" or mixer.D is None):
        return False
    layers = mixer.convs if isinstance(mixer, ModalityConv) else mixer.children()
    return all(type(layer) in (nn.Linear, nn.Conv1d, nn.GELU) for layer in layers)


def _weights(norm: nn.Module, mixer: nn.Module) -> list[nn.Parameter | None]:
    return [norm.weight, norm.bias, *mixer.parameters()]  # type: ignore[list-item]


def _fits(weight: Tensor | None, x: Tensor) -> bool:
    return weight is not None and weight.dtype == x.dtype and weight.device == x.device


def _is_watched(module: nn.Module) -> bool:
    return any(getattr(each, name) for each in module.modules() for name in _HOOKS)
