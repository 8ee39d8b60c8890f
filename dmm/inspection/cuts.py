"""Taking something away from a trained policy: of its tokens, its local mixers' windows, its gates.

A cut is made in a copy's weights, so that whatever acts with a policy acts with a cut one, in every way of acting:

    tokens    the embedding of a return-to-go, state or action is zero, so that nothing is left of what it says
    window    a layer's local mixer (DSM, or the convolution of stock Mamba) sees the token itself and none before it
    gate      a layer's gate is zero, so that its Mamba adds nothing

Layers are counted from 1. `dmm/_assets/policy.js` does the same in a page.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from dmm.errors import InputError
from dmm.layers.local import DenseSequenceMixer, DepthwiseConv, LocalMixer, ModalityMixer
from dmm.layers.mamba import MambaBlock
from dmm.layers.mamba2 import Mamba2Block
from dmm.models.frame import TokenPolicy


@dataclass(frozen=True)
class Cut:
    """What is taken away, or what can be."""

    tokens: tuple[str, ...] = ()
    window: tuple[int, ...] = ()  # layers
    gate: tuple[int, ...] = ()  # layers


def possible_cuts(policy: TokenPolicy) -> Cut:
    """All that can be taken away from a policy."""
    layers = list(enumerate(policy.blocks, 1))
    return Cut(
        tokens=tuple(policy.TOKENS),
        window=tuple(i for i, block in layers if _named(block, _has_window)),
        gate=tuple(i for i, block in layers if _named(block, _has_gate)),
    )


def cut_policy(policy: TokenPolicy, cut: Cut) -> TokenPolicy:
    """A copy without these parts.

    Raises:
        InputError: parts that the policy does not have.
    """
    possible = possible_cuts(policy)
    for field in fields(cut):
        allowed = getattr(possible, field.name)
        extra = [each for each in getattr(cut, field.name) if each not in allowed]
        if extra:
            words = ", ".join(map(str, allowed)) or "none in this model"
            raise InputError(f"cut: {field.name}: got {extra[0]!r}, allowed are {words}")
    made = copy.deepcopy(policy)
    with torch.no_grad():
        for name in cut.tokens:
            for weight in made.embeddings()[name].parameters():
                weight.zero_()
        for layer in cut.window:
            for mixer in _own(made.blocks[layer - 1], _has_window):
                _close_window(mixer)
        for layer in cut.gate:
            for mixer in _own(made.blocks[layer - 1], _has_gate):
                _close_gate(mixer)
    return made


def _has_window(module: nn.Module) -> bool:
    kinds = (DenseSequenceMixer, DepthwiseConv, ModalityMixer)
    return isinstance(module, kinds) or (isinstance(module, MambaBlock) and module.conv1d is not None)


def _has_gate(module: nn.Module) -> bool:
    return isinstance(module, MambaBlock | Mamba2Block)


def _named(block: nn.Module, has: Any) -> dict[str, Any]:
    """The mixers of a block that have something."""
    return {name: child for name, child in block.named_children() if has(child)}


def _own(block: nn.Module, has: Any) -> list[Any]:
    """The same, each the block's own from now on: layers may share one, and the others keep theirs whole."""
    for name, child in _named(block, has).items():
        setattr(block, name, copy.deepcopy(child))
    return list(_named(block, has).values())


def _close_window(mixer: LocalMixer | MambaBlock) -> None:
    if isinstance(mixer, ModalityMixer):
        for each in mixer.mixers:
            _close_window(each)  # type: ignore[arg-type]
    elif isinstance(mixer, DenseSequenceMixer):
        mixer.linear.weight[:, : -mixer.d] = 0  # oldest token first
    else:
        mixer.conv1d.weight[..., :-1] = 0  # type: ignore[union-attr,operator,index]


def _close_gate(mixer: MambaBlock | Mamba2Block) -> None:
    """The rows of the first projection that make the gate: the last ones in Mamba, the first ones in Mamba-2."""
    rows = slice(mixer.inner, None) if isinstance(mixer, MambaBlock) else slice(mixer.inner)
    mixer.in_proj.weight[rows] = 0
