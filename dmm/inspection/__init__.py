"""What a policy does with its tokens: activations, norms by modality, gradients by distance, gates, probes.

The measurements behind figures 3 and 4 of the DMM paper (sections 3.2 and 4.3). The paper does not say which tensor its
norms are of; here every stage has a name, and each function takes one. Tokens are in the order return-to-go, state,
action of each time step, `l = 3k` of them (a policy's `TOKENS` are its own, where it has no action tokens); the last
state token decides the action.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import LARGEST_SEED, InputError, whole_number
from dmm.layers.mamba import MambaBlock, MambaSignals
from dmm.models.frame import TokenPolicy
from dmm.policy import action_loss

MODALITIES = TokenPolicy.TOKENS
"""Of the tokens of a time step, in order."""
Objective = Literal["action", "loss"]


def full_windows(trajectories: Trajectories, context: int, count: int, *, seed: int = 0) -> Windows:
    """`count` windows without padding, drawn uniformly from all that the data has, with replacement.

    Raises:
        InputError: `count` below 1, or no episode as long as `context`.
    """
    count = whole_number("count", count, 1)
    generator = torch.Generator().manual_seed(whole_number("seed", seed, 0, LARGEST_SEED))
    sampler = WindowSampler(trajectories, context, generator=generator)
    last = torch.from_numpy(trajectories.starts + trajectories.lengths - context)
    starts = [torch.arange(int(a), int(b) + 1) for a, b in zip(trajectories.starts, last, strict=True) if a <= b]
    if not starts:
        raise InputError(f"context: got {context}, the longest episode has {int(trajectories.lengths.max())} steps")
    first = torch.cat(starts)
    return sampler.windows_at(first[torch.randint(len(first), (count,), generator=generator)])


@torch.no_grad()
def activations(policy: TokenPolicy, windows: Windows) -> dict[str, Tensor]:
    """Every stage of a forward pass in evaluation mode, by name, `(b, l, d)` each.

    `embedding` and `embedding, normed`; then for each layer i from 1 what its mixers add, before the residual (`layer
    i, DSM`, `layer i, Mamba`, `layer i, attention`, `layer i, MLP`), and `layer i, output`, the residual stream.
    """
    seen: dict[str, Tensor] = {}
    with _evaluating(policy), _recording(policy, seen):
        policy(windows)
    return seen


def token_norms(x: Tensor) -> Tensor:
    """`mean_b |x_{b, t}|_1`: activations `(b, l, d)` of windows without padding -> L1 norm of each token `(l,)`."""
    return x.abs().sum(-1).mean(0)


def modality_norms(x: Tensor, tokens: Sequence[str] = MODALITIES) -> dict[str, float]:
    """`token_norms`, averaged over the time steps of each modality; `tokens` are the policy's `TOKENS`."""
    means = token_norms(x).view(-1, len(tokens)).mean(0)
    return dict(zip(tokens, means.tolist(), strict=True))


def gradient_norms(policy: TokenPolicy, windows: Windows, objective: Objective = "action") -> Tensor:
    """`mean_b |d objective / d token_{b, t}|_2` with respect to the output of `policy.embed`: `(l,)`.

    Args:
        windows: without padding.
        objective: `action` takes the Frobenius norm of the last action's Jacobian, which asks what that action depends
            on; `loss` the gradient of each window's training loss, a mean over all its steps. In both the last action
            token has no part: it follows the last state token, which nothing after it can reach.

    Raises:
        InputError: an unknown objective.
    """
    if objective not in get_args(Objective):
        raise InputError(f"objective: got {objective!r}, allowed are {', '.join(get_args(Objective))}")
    with _evaluating(policy), torch.enable_grad():
        gradient: Tensor
        tokens = policy.embed(windows).detach().requires_grad_()  # (b, l, d)
        actions = policy.decode(tokens, windows)  # (b, k, a)
        if objective == "loss":
            loss = action_loss(actions, windows) * len(actions)  # so that each window's share is its own mean
            (gradient,) = torch.autograd.grad(loss, tokens)
            return gradient.norm(dim=-1).mean(0)  # type: ignore[no-any-return]
        rows = [
            torch.autograd.grad(actions[:, -1, i].sum(), tokens, retain_graph=True)[0]
            for i in range(policy.action_size)
        ]
        return torch.stack(rows).square().sum((0, -1)).sqrt().mean(0)  # (a, b, l, d) -> (l,)


@torch.no_grad()
def gate_shares(policy: TokenPolicy, windows: Windows) -> dict[str, Tensor]:
    """How much of the scan's output a Mamba block's gate lets through: `|y silu(z)|_1 / |y|_1` per token.

    1 would be a gate that changes nothing in size; a SiLU gate can exceed it. By layer, `layer i` -> `(l,)`, means over
    windows; empty for a policy without Mamba blocks.
    """
    return {
        layer: (signals.gated.abs().sum(-1) / signals.y.abs().sum(-1)).mean(0)
        for layer, signals in mamba_signals(policy, windows).items()
    }


@torch.no_grad()
def mamba_signals(policy: TokenPolicy, windows: Windows) -> dict[str, MambaSignals]:
    """Every signal inside each Mamba block, `layer i` -> `MambaSignals`; empty for a policy without Mamba blocks."""
    inputs: dict[nn.Module, Tensor] = {}
    blocks = {module: name for name, module in _parts(policy) if isinstance(module, MambaBlock)}
    handles = [block.register_forward_pre_hook(lambda m, args: inputs.update({m: args[0]})) for block in blocks]
    try:
        with _evaluating(policy):
            policy(windows)
    finally:
        for handle in handles:
            handle.remove()
    return {name.split(",")[0]: block.signals(inputs[block]) for block, name in blocks.items()}


def probe(x: Tensor, target: Tensor, new_x: Tensor, new_target: Tensor, *, strength: float = 1e-4) -> float:
    """How much of `target` a linear map can read from `x`: R^2 on new samples, the mean over the target's components.

    1 is all of it; 0 is no more than its mean, and below 0 is worse than that; NaN where the new target does not vary.
    The map is ridge regression on z-scored channels.

    Args:
        x, target: what the map is fitted on, `(b, d)` and `(b, a)`.
        new_x, new_target: what it is scored on, `(c, d)` and `(c, a)`; take them from other episodes.
        strength: of the penalty, per sample.
    """
    x, target, new_x, new_target = (t.double() for t in (x, target, new_x, new_target))
    mean, std, centre = x.mean(0), x.std(0) + 1e-6, target.mean(0)
    z = (x - mean) / std
    penalty = strength * len(z) * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    weights = torch.linalg.solve(z.T @ z + penalty, z.T @ (target - centre))
    error = ((new_x - mean) / std @ weights + centre - new_target).square().mean(0)
    return float((1 - error / new_target.var(0, correction=0)).mean())


def _parts(policy: TokenPolicy) -> list[tuple[str, nn.Module]]:
    return [
        (f"layer {i}, {name}", module)
        for i, block in enumerate(policy.blocks, 1)
        for name, module in block.parts().items()  # type: ignore[operator]
    ]


@contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


@contextmanager
def _recording(policy: TokenPolicy, seen: dict[str, Tensor]) -> Iterator[None]:
    """While inside, a forward pass writes its stages to `seen`, in order."""

    def keep(names: list[str], module: nn.Module, args: Any, output: Tensor) -> None:
        seen[names.pop(0)] = output.detach()  # a module that layers share is called once for each of its names

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["embedding"] = args[0].detach()

    names: dict[nn.Module, list[str]] = {policy.embed_norm: ["embedding, normed"]}
    for i, block in enumerate(policy.blocks, 1):
        for name, module in block.parts().items():  # type: ignore[operator]
            names.setdefault(module, []).append(f"layer {i}, {name}")
        names[block] = [f"layer {i}, output"]
    handles = [policy.embed_norm.register_forward_pre_hook(keep_input)]
    handles += [module.register_forward_hook(partial(keep, list(of))) for module, of in names.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
