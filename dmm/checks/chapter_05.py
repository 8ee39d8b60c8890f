"""Checks for chapter 5: what gates, norms and gradients say about tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import as_array, call, match, passed, require
from dmm.data.windows import Windows
from dmm.inspection import gradient_norms
from dmm.models.mamba import MambaConfig, MambaPolicy

Array = NDArray[np.float64]


def check_gate_share(answer: Callable[..., Any]) -> None:
    """`answer(y (b, l, e), z (b, l, e))` must give `mean_b |y silu(z)|_1 / |y|_1` per token, `(l,)`."""
    b, length, e = 3, 4, 5
    generator = torch.Generator().manual_seed(0)
    y, z = (torch.randn(b, length, e, generator=generator, dtype=torch.float64) for _ in range(2))
    y = y * torch.tensor([0.2, 1.0, 4.0], dtype=torch.float64)[:, None, None]  # windows of different size
    result = call(answer, y, z)
    shape = tuple(getattr(result, "shape", ()))
    require(shape != (e,), "one number per channel: sum over the last axis, the channels, to get one per token")
    require(shape != (b, length), "one row per window: average over the windows, axis 0")
    require(shape != (b, length, e), "one number per channel of each token: sum sizes over the channels first")
    share = as_array(result, (length,), "share")

    def ratio(above: Tensor, below: Tensor) -> Array:
        return _numpy((above.abs().sum(-1) / below.abs().sum(-1)).mean(0))

    expected = ratio(y * F.silu(z), y)
    match(
        share,
        expected,
        {
            "silu is missing: the gate multiplies by silu(z), not by z": ratio(y * z, y),
            "that is a sigmoid gate: silu(z) is z times sigmoid(z)": ratio(y * torch.sigmoid(z), y),
            "that is a ReLU gate: Mamba's is silu(z)": ratio(y * F.relu(z), y),
            "y and z have changed places: silu is of z, and the share is of y": ratio(z * F.silu(y), z),
            "that is the mean of |silu(z)| over the channels: channels in which y is large must count more": _numpy(
                F.silu(z).abs().mean((0, 2))
            ),
            "absolute values are missing: channels of opposite sign cancel": _numpy(
                ((y * F.silu(z)).sum(-1) / y.sum(-1)).mean(0)
            ),
            "that is what is lost, 1 - share": 1 - expected,
            "the fraction is upside down: what comes out stands above what went in": ratio(y, y * F.silu(z)),
            "the windows were summed before dividing: large windows count more; divide in each, then average": _numpy(
                (y * F.silu(z)).abs().sum((0, 2)) / y.abs().sum((0, 2))
            ),
            "those are squares or Euclidean lengths: take the L1 norm, the sum of absolute values": _numpy(
                ((y * F.silu(z)).norm(dim=-1) / y.norm(dim=-1)).mean(0)
            ),
        },
        "share is not the mean over windows of |y silu(z)| / |y|",
    )
    passed("one share per token, and it may exceed 1.")


def check_modality_norms(answer: Callable[..., Any]) -> None:
    """`answer(x (b, 3k, d))` must give the mean L1 norm of return-to-go, state and action tokens, `(3,)`."""
    b, k, d = 4, 5, 9
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64).repeat(k) * torch.linspace(1, 2, 3 * k)
    x = torch.randn(b, 3 * k, d, generator=generator, dtype=torch.float64) * size[:, None]
    result = call(answer, x)
    shape = tuple(getattr(result, "shape", ()))
    require(shape != (3 * k,), "one number per token: average over the time steps of each modality")
    require(shape != (3, d), "one number per channel: the L1 norm of a token sums over its channels")
    norms = as_array(list(result.values()) if isinstance(result, dict) else result, (3,), "norms")
    tokens = x.abs().sum(-1)  # (b, 3k)
    expected = _numpy(tokens.view(b, k, 3).mean((0, 1)))
    blocks = _numpy(tokens.view(b, 3, k).mean((0, 2)))
    match(
        norms,
        expected,
        {
            "the order is state, action, return-to-go: token 0 is a return-to-go, so it comes first": expected[
                [1, 2, 0]
            ],
            "the modalities are in a wrong order: return-to-go, state, action": expected[[0, 2, 1]],
            "that cuts the window in three parts: tokens are interleaved, take every third": blocks,
            "a channel for a token: x[..., i::3] slices channels, tokens are on axis 1": _numpy(
                torch.stack([x[..., i::3].abs().sum(-1).mean() for i in range(3)])
            ),
            "those are Euclidean lengths: the L1 norm is the sum of absolute values": _numpy(
                x.norm(dim=-1).view(b, k, 3).mean((0, 1))
            ),
            "absolute values are missing: positive and negative channels cancel": _numpy(
                x.sum(-1).view(b, k, 3).mean((0, 1))
            ),
            "that averages over the channels: a norm sums over them": expected / d,
            "the time steps are summed: average over them": expected * k,
            "the windows are summed: average over them": expected * b,
            "the windows were averaged before the norm, and cancelled: norm first, then the mean": _numpy(
                x.mean(0).abs().sum(-1).view(k, 3).mean(0)
            ),
        },
        "norms are not the mean L1 norms of return-to-go, state and action tokens",
    )
    passed("return-to-go, state and action, each with its own norm.")


def check_gradient_norms(answer: Callable[..., Any]) -> None:
    """`answer(policy, windows)` must equal `dmm.inspection.gradient_norms(policy, windows)`, `(l,)`."""
    policy, windows = _small_policy(), _random_windows()
    b, length = len(windows.states), 3 * policy.context
    expected = _numpy(gradient_norms(policy, windows))
    result = call(answer, policy, windows)
    shape = tuple(getattr(result, "shape", ()))
    require(shape != (length - 1,), "one token is missing: the last action token has a place too, its gradient is 0")
    require(shape != (b, length), "one row per window: average over the windows, axis 0")
    require(shape != (policy.config.width,), "a channel for a token: the norm is over channels, the last axis")
    norms = as_array(result, (length,), "norms")
    rows, every = _jacobian(policy, windows, last=True), _jacobian(policy, windows, last=False)  # (a, b, l, d)
    lengths = _frobenius(rows)  # (b, l)
    match(
        norms,
        expected,
        {
            "that is the gradient of the actions of all time steps: only the last one counts": _numpy(
                _frobenius(every).mean(0)
            ),
            "the action's components were added first, where they can cancel: one gradient for each": _numpy(
                rows.sum(0).norm(dim=-1).mean(0)
            ),
            "the windows are summed: divide by their number": expected * b,
            "divided by the number of windows twice: a mean before the gradient and one after it": expected / b,
            "the gradients were averaged over the windows, and cancelled: norms first, then the mean": _numpy(
                _frobenius(rows.mean(1))
            ),
            "that is the gradient behind the embedding's LayerNorm: take it at the output of policy.embed": _numpy(
                _frobenius(_jacobian(policy, windows, last=True, normed=True)).mean(0)
            ),
            "the order is reversed: token 0 is the oldest return-to-go": expected[::-1],
            "those are squares: take the root of the sum of squares": _numpy(lengths.square().mean(0)),
            "the root comes after the mean over windows: take each window's norm first": _numpy(
                lengths.square().mean(0).sqrt()
            ),
            "the sum of absolute values was taken: this norm is the root of the sum of squares": _numpy(
                rows.abs().sum((0, -1)).mean(0)
            ),
            "the norms of the action's components were averaged: put all their squares under one root": _numpy(
                rows.norm(dim=-1).mean((0, 1))
            ),
            "the norms of the action's components were added: put all their squares under one root": _numpy(
                rows.norm(dim=-1).sum(0).mean(0)
            ),
        },
        "norms are not the mean over windows of the Jacobian's norm at each token",
    )
    passed("the last action's dependence on each token, and none on the token after it.")


def _small_policy() -> MambaPolicy:
    """A stock Mamba with random weights, large enough that every mistake shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = MambaPolicy(MambaConfig(state_size=4, action_size=2, context=4, width=16, layers=1, rtg_scale=1.0))
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if weight.ndim > 1 and "A_log" not in name:
                    weight.mul_(10)
    return policy.eval()


def _random_windows() -> Windows:
    generator = torch.Generator().manual_seed(2)
    b, k = 5, 4
    returns, states, actions = (torch.randn(b, k, size, generator=generator) for size in (1, 4, 2))
    steps = torch.arange(k).expand(b, k)
    return Windows(returns, states, actions.tanh(), steps, torch.ones(b, k, dtype=torch.bool))


def _jacobian(policy: MambaPolicy, windows: Windows, *, last: bool, normed: bool = False) -> Tensor:
    """Gradients of each component of the last action, or of the sum of all steps' actions: `(a, b, l, d)`."""
    with torch.enable_grad():
        tokens = policy.embed(windows).detach()
        x = (policy.embed_norm(tokens).detach() if normed else tokens).requires_grad_()
        actions = torch.tanh(policy.head(policy.norm(policy.mix(x, windows))[:, 1::3])) if normed else None
        actions = policy.decode(x, windows) if actions is None else actions
        chosen = actions[:, -1] if last else actions.sum(1)  # (b, a)
        rows = [torch.autograd.grad(chosen[:, i].sum(), x, retain_graph=True)[0] for i in range(policy.action_size)]
    return torch.stack(rows)


def _frobenius(rows: Tensor) -> Tensor:
    return rows.square().sum((0, -1)).sqrt()


def _numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())
