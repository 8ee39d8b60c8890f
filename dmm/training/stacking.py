"""Several policies of one shape as one: their weights stacked, their batches one after the other.

A stack of S policies maps a batch of S * b windows, the first b of them the first policy's. Layers that hold weights
get those of all policies with an axis of S in front, and multiply with them as batched matrices; whatever has no
weights of its own runs as it is. So one program trains S seeds, in about as many operations as one seed takes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import InputError
from dmm.layers.dropout import Dropout
from dmm.layers.gaussian import GaussianHead
from dmm.layers.local import DenseSequenceMixer, DepthwiseConv
from dmm.layers.mamba import MambaBlock
from dmm.layers.mamba2 import Mamba2Block
from dmm.layers.noise import GaussianNoise
from dmm.layers.s4 import S4, S4D
from dmm.policy import Policy
from dmm.tracing import watched


def stack(policies: Sequence[Policy], generators: Sequence[torch.Generator]) -> Policy:
    """One policy for S * b windows that does to each b of them what one of `policies` does.

    Its parameters have the names of theirs and the shape `(S, ...)`, and are copies of theirs; what layers share, the
    stack's layers share. Each policy's dropout draws from its own generator what it would draw alone.

    Args:
        policies: of one class and one config, with the same moments of the states.
        generators: one for each, on the policies' device.

    Raises:
        InputError: no policies, not one generator for each, policies that differ in more than their weights, or a layer
            that has weights or random numbers and that this module does not know how to stack.
    """
    if not policies or len(generators) != len(policies):
        raise InputError(f"generators: got {len(generators)} for {len(policies)} policies, allowed is one for each")
    configs = [getattr(policy, "config", None) for policy in policies]
    if any(config != configs[0] for config in configs):
        raise InputError(f"policies: got {configs[0]} beside others, allowed are policies of one config")
    made = cast(Policy, _stacked(list(policies), {}))
    for module in made.modules():
        if isinstance(module, Dropout | GaussianNoise):
            module.generators = tuple(generators)
    return made


def _stacked(modules: list[nn.Module], done: dict[int, Any]) -> nn.Module:
    """The stack of modules that have the same place in each policy; `done` holds what other layers share already."""
    first = modules[0]
    if id(first) not in done:
        _require_alike(modules)
        made = copy.copy(first)
        made.__class__ = _class_of_stack(first)
        made._parameters = {name: _stack_weights(modules, name, done) for name in first._parameters}
        made._buffers = {name: _common_buffer(modules, name) for name in first._buffers}
        made._modules = {
            name: None if child is None else _stacked([module._modules[name] for module in modules], done)  # type: ignore[misc]
            for name, child in first._modules.items()
        }
        done[id(first)] = made
    return cast(nn.Module, done[id(first)])


def _require_alike(modules: list[nn.Module]) -> None:
    first, *others = modules
    for other in others:
        if type(other) is not type(first) or other._modules.keys() != first._modules.keys():
            kinds = f"{type(first).__name__} beside {type(other).__name__}"
            raise InputError(f"policies: got {kinds}, allowed are policies of one config")


def _class_of_stack(module: nn.Module) -> type[nn.Module]:
    kind = type(module)
    if kind in STACKED:
        return STACKED[kind] if any(True for _ in module.parameters()) else kind
    draws = isinstance(module, nn.modules.dropout._DropoutNd)
    if draws or any(weight is not None for weight in module._parameters.values()):
        known = ", ".join(each.__name__ for each in STACKED)
        raise InputError(f"policies: got a layer {kind.__name__}, allowed are {known} and what is made of them")
    return kind


def _stack_weights(modules: list[nn.Module], name: str, done: dict[int, Any]) -> nn.Parameter | None:
    weights = [module._parameters[name] for module in modules]
    first = weights[0]
    if first is None:
        return None
    if any(weight is None or weight.shape != first.shape for weight in weights):
        raise InputError(f"policies: got weights {name!r} of several shapes, allowed is one")
    if id(first) not in done:
        stacked = torch.stack([cast(Tensor, weight).detach() for weight in weights])
        done[id(first)] = nn.Parameter(stacked, requires_grad=first.requires_grad)
    return cast(nn.Parameter, done[id(first)])


def _common_buffer(modules: list[nn.Module], name: str) -> Tensor | None:
    first = modules[0]._buffers[name]
    for other in (module._buffers[name] for module in modules[1:]):
        if first is not other and (first is None or other is None or not torch.equal(first, other)):
            raise InputError(f"policies: got several values of {name!r}, allowed is one that all share")
    return first


def _apart(x: Tensor, weight: Tensor) -> Tensor:
    """The batches of the policies that `weight (S, ...)` belongs to: `(S * b, ...) -> (S, b, ...)`."""
    return x.reshape(weight.shape[0], -1, *x.shape[1:])


class _BatchedLinear(torch.autograd.Function):
    """`x (S, rows, in)`, `weight (S, out, in)`, `bias (S, out)` or None -> `(S, rows, out)`.

    Autograd's own gradient of the transposed weight would have to be copied into the weight's order, one by one.
    The gradients can be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _batched_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return dy @ weight if for_x else None, dy.mT @ x if for_weight else None, dy.sum(dim=1) if for_bias else None


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`(S * b, ..., in) -> (S * b, ..., out)`, each batch by its own weight."""
    rows = _apart(x, weight).flatten(1, -2)  # (S, rows, in)
    function = _batched_linear if watched(rows, weight, bias) else _BatchedLinear.apply
    y = cast(Tensor, function(rows, weight, bias))
    return y.view(*x.shape[:-1], -1)


class StackedLinear(nn.Linear):
    """`weight (S, out, in)`, `bias (S, out)`: `(S * b, ..., in) -> (S * b, ..., out)`."""

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


class StackedLayerNorm(nn.LayerNorm):
    """`weight, bias (S, d)`: `(S * b, ..., d)` to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        normed = _apart(F.layer_norm(x, self.normalized_shape, eps=self.eps), self.weight)
        lead = (self.weight.shape[0], *(1,) * (x.ndim - 1))
        weight, bias = self.weight.view(*lead, -1), self.bias.view(*lead, -1)
        return torch.addcmul(bias, normed, weight).flatten(0, 1)


class StackedRMSNorm(nn.RMSNorm):
    """`weight (S, d)`: `(S * b, ..., d)` to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        normed = _apart(F.rms_norm(x, self.normalized_shape, eps=self.eps), self.weight)
        return (normed * self.weight.view(self.weight.shape[0], *(1,) * (x.ndim - 1), -1)).flatten(0, 1)


class StackedEmbedding(nn.Embedding):
    """`weight (S, entries, d)`: integers `(S * b, ...) -> (S * b, ..., d)`."""

    def forward(self, x: Tensor) -> Tensor:
        seeds, entries, _ = self.weight.shape
        first = torch.arange(seeds, device=x.device) * entries  # of each policy in the joint table
        index = _apart(x, self.weight) + first.view(-1, *(1,) * x.ndim)
        return F.embedding(index.flatten(0, 1), self.weight.flatten(0, 1))


class StackedConv1d(nn.Conv1d):
    """`weight (S, out, in / groups, w)`, `bias (S, out)`: `(S * b, in, l) -> (S * b, out, l)`, policies as groups."""

    def forward(self, x: Tensor) -> Tensor:
        seeds, bias = self.weight.shape[0], self.bias
        channels = _apart(x, self.weight).transpose(0, 1).flatten(1, 2)  # (b, S * in, l)
        y = F.conv1d(
            channels,
            self.weight.flatten(0, 1),
            None if bias is None else bias.flatten(),
            self.stride,
            self.padding,
            self.dilation,
            seeds * self.groups,
        )
        return y.view(y.shape[0], seeds, -1, y.shape[-1]).transpose(0, 1).flatten(0, 1)


class StackedDenseSequenceMixer(DenseSequenceMixer):
    """`linear.weight (S, d, w * d)`: windows `(S * b, l, d, w) -> (S * b, l, d)`."""

    def mix(self, windows: Tensor) -> Tensor:
        return self.linear(windows.mT.flatten(-2))  # type: ignore[no-any-return]


class StackedDepthwiseConv(DepthwiseConv):
    """`conv1d.weight (S, d, 1, w)`: windows `(S * b, l, d, w) -> (S * b, l, d)`."""

    def mix(self, windows: Tensor) -> Tensor:
        weight, bias = self.conv1d.weight, self.conv1d.bias
        y = (_apart(windows, weight) * weight.transpose(1, 2)[:, :, None]).sum(-1)  # (S, b, l, d)
        y = y if bias is None else y + bias[:, None, None]
        return y.flatten(0, 1)


class StackedMambaBlock(MambaBlock):
    """`A_log (S, e, n)`, `D (S, e)`: the scan takes S systems side by side."""

    def _select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, B, C = self.x_proj(x).split([self.rank, self.state_size, self.state_size], dim=-1)
        return _linear(low, self.dt_proj.weight), B, C


class StackedGaussianHead(GaussianHead):
    """`log_std (S, a)`: of means `(S * b, ..., a)`, those of each policy have their own."""

    def spread(self, mean: Tensor) -> Tensor:
        rows = self.log_std.repeat_interleave(len(mean) // len(self.log_std), dim=0)  # (S * b, a)
        return rows.view(len(mean), *(1,) * (mean.ndim - 2), -1)


STACKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    nn.RMSNorm: StackedRMSNorm,
    nn.Embedding: StackedEmbedding,
    nn.Conv1d: StackedConv1d,
    DenseSequenceMixer: StackedDenseSequenceMixer,
    DepthwiseConv: StackedDepthwiseConv,
    MambaBlock: StackedMambaBlock,
    GaussianHead: StackedGaussianHead,
    Mamba2Block: Mamba2Block,
    S4: S4,
    S4D: S4D,
}
"""Layers with weights, and what a stack has in their place; a layer made of these needs no entry.

Those that stand for themselves take weights with an axis of S in front as they are."""
