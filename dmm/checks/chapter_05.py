"""Checks for chapter 5: what gates, norms and gradients say about tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm import inspection
from dmm.checks.calls import Calls
from dmm.checks.cases import normal
from dmm.checks.check import Case, Check
from dmm.data.windows import Windows
from dmm.inspection import gradient_norms
from dmm.models.mamba import MambaConfig, MambaPolicy


def check_gate_share(answer: Callable[..., Any]) -> None:
    """`answer(y (b, l, e), z (b, l, e), mask (b, l))` must give `|y silu(z)|_1 / |y|_1` per token, `(l,)`.

    A token's mean is over the windows in which it is real.
    """
    _GATE_SHARE(answer)


def check_modality_norms(answer: Callable[..., Any]) -> None:
    """`answer(x (b, 3k, d))` must give the mean L1 norm of return-to-go, state and action tokens, `(3,)`."""
    _MODALITY_NORMS(answer)


def check_gradient_norms(answer: Callable[..., Any]) -> None:
    """`answer(policy, windows)` must equal `dmm.inspection.gradient_norms(policy, windows)`, `(l,)`."""
    _GRADIENT_NORMS(answer)


# The gate's share


def _gated_windows() -> list[Case]:
    """Left-padded windows; in the last two cases nothing but zeros stands in the padding."""
    cases = []
    for seed, (b, length, e, zeros) in enumerate([(3, 4, 5, False), (5, 7, 2, True), (2, 3, 7, True)]):
        y, z = normal(seed, (b, length, e), (b, length, e))
        y = y * torch.tensor([0.2, 1.0, 4.0, 0.5, 9.0])[:b, None, None]  # windows of different size
        missing = torch.tensor([2, 0, 1, 6, 3])[:b, None]
        mask = torch.arange(length) >= missing
        cases.append((y * mask[..., None] if zeros else y, z, mask))
    return cases


def _gate_share(y: Tensor, z: Tensor, mask: Tensor, gate: Callable[[Tensor], Tensor] = F.silu, norm: int = 1) -> Tensor:
    return _mean_of_real((y * gate(z)).norm(norm, dim=-1), y.norm(norm, dim=-1), mask)


def _mean_of_real(above: Tensor, below: Tensor, mask: Tensor) -> Tensor:
    share = torch.where(mask, above / torch.where(mask, below, 1.0), 0.0)  # (b, l)
    return share.sum(0) / mask.sum(0)


def _gate_mistakes(y: Tensor, z: Tensor, mask: Tensor) -> dict[str, Tensor]:
    passed, whole = (y * F.silu(z)).abs(), y.abs()
    share = passed.sum(-1) / whole.sum(-1)  # (b, l), NaN where the padding is zero
    real = mask[..., None]
    right = _gate_share(y, z, mask)
    return {
        "padded tokens are in the mean: a token counts only in the windows in which it is real": share.mean(0),
        "padding is left out of the sum, but counted: divide by the number of windows in which a token is real": (
            torch.where(mask, share, 0.0).mean(0)
        ),
        "0 / 0 in padding is NaN, and NaN times 0 is NaN: leave padding out before the sum, as torch.where does": (
            (share * mask).sum(0) / mask.sum(0)
        ),
        "the mask is upside down: True is a real token": (torch.where(mask, 0.0, share).sum(0) / (~mask).sum(0)),
        "silu is missing: the gate multiplies by silu(z), not by z": _gate_share(y, z, mask, lambda z: z),
        "that is a sigmoid gate: silu(z) is z times sigmoid(z)": _gate_share(y, z, mask, torch.sigmoid),
        "that is a ReLU gate: Mamba's is silu(z)": _gate_share(y, z, mask, F.relu),
        "y and z have changed places: silu is of z, and the share is of y": _gate_share(z, y, mask),
        "one number per channel: sum over the last axis, the channels, to get one per token": (
            (passed * real).sum((0, 1)) / (whole * real).sum((0, 1))
        ),
        "one row per window: average over the windows, axis 0": torch.where(mask, share, 0.0),
        "that is the mean of |silu(z)| over the channels: channels in which y is large must count more": (
            (F.silu(z).abs().mean(-1) * mask).sum(0) / mask.sum(0)
        ),
        "absolute values are missing: channels of opposite sign cancel": _mean_of_real(
            (y * F.silu(z)).sum(-1), y.sum(-1), mask
        ),
        "that is what is lost, 1 - share": 1 - right,
        "the fraction is upside down: what comes out stands above what went in": _mean_of_real(
            whole.sum(-1), passed.sum(-1), mask
        ),
        "the windows were summed before dividing: large windows count more; divide in each, then average": (
            (passed * real).sum((0, 2)) / (whole * real).sum((0, 2))
        ),
        "those are squares or Euclidean lengths: take the L1 norm, the sum of absolute values": _gate_share(
            y, z, mask, norm=2
        ),
    }


_GATE_SHARE = Check(
    reference=lambda y, z, mask: _gate_share(y, z, mask),
    cases=_gated_windows,
    mistakes=_gate_mistakes,
    parts=("share",),
    praise="one share per token, of real tokens only, and it may exceed 1.",
    otherwise="share is not the mean of |y silu(z)| / |y| over the windows in which the token is real",
)


# Norms by modality


def _activations() -> list[Case]:
    cases = []
    for seed, (b, k, d) in enumerate([(4, 5, 9), (3, 2, 7), (1, 1, 5), (2, 4, 1)]):
        (x,) = normal(seed, (b, 3 * k, d))
        size = torch.tensor([0.5, 2.0, 1.0]).repeat(k) * torch.linspace(1, 2, 3 * k)
        cases.append((x * size[:, None] - 0.1 * seed,))
    return cases


def _modality_norms(x: Tensor) -> Tensor:
    return _by_modality(x.abs().sum(-1)).mean((0, 1))


def _by_modality(tokens: Tensor) -> Tensor:
    """`(b, 3k) -> (b, k, 3)`."""
    return tokens.unflatten(1, (-1, 3))  # type: ignore[no-any-return, no-untyped-call]


def _norm_mistakes(x: Tensor) -> dict[str, Any]:
    (b, length, d), tokens, right = x.shape, x.abs().sum(-1), _modality_norms(x)
    k = length // 3
    return {
        "the order is state, action, return-to-go: token 0 is a return-to-go, so it comes first": right[[1, 2, 0]],
        "the modalities are in a wrong order: return-to-go, state, action": right[[0, 2, 1]],
        "that cuts the window in three parts: tokens are interleaved, take every third": tokens.view(b, 3, k).mean(
            (0, 2)
        ),
        "those are Euclidean lengths: the L1 norm is the sum of absolute values": (
            _by_modality(x.norm(dim=-1)).mean((0, 1))
        ),
        "absolute values are missing: positive and negative channels cancel": _by_modality(x.sum(-1)).mean((0, 1)),
        "that averages over the channels: a norm sums over them": right / d,
        "the time steps are summed: average over them": right * k,
        "the windows are summed: average over them": right * b,
        "windows and time steps are summed: average over them": right * b * k,
        "the windows were averaged before the norm, and cancelled: norm first, then the mean": _modality_norms(
            x.mean(0, keepdim=True)
        ),
        "one number per token: average over the time steps of each modality": tokens.mean(0),
        "one number per channel: the L1 norm of a token sums over its channels": (
            x.abs().mean(0).view(k, 3, d).mean(0)
        ),
        "a channel for a token: x[..., i::3] slices channels, tokens are on axis 1": torch.stack(
            [x[..., i::3].abs().sum(-1).mean() for i in range(3)]
        ),
        "a channel for a token: x[..., i::3] slices channels, tokens are on axis 1, and a norm sums": torch.stack(
            [x[..., i::3].abs().mean() for i in range(3)]
        ),
        "those are squares: the L1 norm is the sum of absolute values": (_by_modality(x.square().sum(-1)).mean((0, 1))),
        "those are the largest entries: the L1 norm is the sum of absolute values": (
            _by_modality(x.abs().amax(-1)).mean((0, 1))
        ),
        "only the first window is looked at: average over all of them": _modality_norms(x[:1]),
        "only the first time step is looked at: average over all of them": _modality_norms(x[:, :3]),
        "only the last time step is looked at: average over all of them": _modality_norms(x[:, -3:]),
        "those are medians: take the mean over windows and time steps": (
            _by_modality(tokens).flatten(0, 1).quantile(0.5, dim=0)
        ),
        "all tokens are in one mean: each modality has its own": tokens.mean().expand(3),
        "those are shares of the sum: the norms themselves are asked for": right / right.sum(),
        "the last time step is missing: its tokens count, too": (
            _modality_norms(x[:, :-3]) if k > 1 else torch.full_like(right, torch.nan)
        ),
    }


_MODALITY_NORMS = Check(
    reference=_modality_norms,
    cases=_activations,
    mistakes=_norm_mistakes,
    parts=("norms",),
    praise="return-to-go, state and action, each with its own norm.",
    otherwise="norms are not the mean L1 norms of return-to-go, state and action tokens",
)


# Gradients of a whole batch


def _policies() -> list[Case]:
    sizes = [(5, 4, 2, 4, 16, 1), (3, 3, 1, 2, 12, 2), (1, 2, 3, 5, 8, 1)]
    return [(_small_policy(s, a, k, width, layers), _random_windows(b, s, a, k)) for b, s, a, k, width, layers in sizes]


def _gradient_mistakes(policy: MambaPolicy, windows: Windows) -> dict[str, Tensor]:
    right, b = gradient_norms(policy, windows), len(windows.states)
    rows, every = _jacobian(policy, windows, last=True), _jacobian(policy, windows, last=False)  # (a, b, l, d)
    lengths = _frobenius(rows)  # (b, l)
    behind_norm = _jacobian(policy, windows, last=True, normed=True)
    return {
        "that is the gradient of the actions of all time steps: only the last one counts": _frobenius(every).mean(0),
        "the action's components were added first, where they can cancel: one gradient for each": (
            rows.sum(0).norm(dim=-1).mean(0)
        ),
        "the windows are summed: divide by their number": right * b,
        "divided by the number of windows twice: a mean before the gradient and one after it": right / b,
        "the gradients were averaged over the windows, and cancelled: norms first, then the mean": (
            _frobenius(rows.mean(1))
        ),
        "that is the gradient behind the embedding's LayerNorm: take it at the output of policy.embed": (
            _frobenius(behind_norm).mean(0)
        ),
        "the order is reversed: token 0 is the oldest return-to-go": right.flip(0),
        "those are squares: take the root of the sum of squares": lengths.square().mean(0),
        "the root comes after the mean over windows: take each window's norm first": lengths.square().mean(0).sqrt(),
        "the sum of absolute values was taken: this norm is the root of the sum of squares": (
            rows.abs().sum((0, -1)).mean(0)
        ),
        "the norms of the action's components were averaged: put all their squares under one root": (
            rows.norm(dim=-1).mean((0, 1))
        ),
        "the norms of the action's components were added: put all their squares under one root": (
            rows.norm(dim=-1).sum(0).mean(0)
        ),
        "only the action's first component is looked at: there are several": rows[0].norm(dim=-1).mean(0),
        "one token is missing: the last action token has a place too, its gradient is 0": right[:-1],
        "one row per window: average over the windows, axis 0": lengths,
        "only the first window is looked at: average over all of them": lengths[0],
        "a channel for a token: the norm is over channels, the last axis": rows.square().sum((0, 2)).sqrt().mean(0),
    }


_GRADIENT_NORMS = Check(
    reference=lambda policy, windows: gradient_norms(policy, windows),
    cases=_policies,
    mistakes=_gradient_mistakes,
    parts=("norms",),
    praise="the last action's dependence on each token, and none on the token after it.",
    otherwise="norms are not the mean over windows of the Jacobian's norm at each token",
    forbidden=[
        (
            lambda: Calls(folder=str(Path(inspection.__file__).parent)),
            "the numbers are right, but dmm.inspection made them: take the gradients yourself",
        )
    ],
)


def _small_policy(state_size: int, action_size: int, context: int, width: int, layers: int) -> MambaPolicy:
    """A stock Mamba with random weights, large enough that every mistake shows."""
    config = MambaConfig(
        state_size=state_size, action_size=action_size, context=context, width=width, layers=layers, rtg_scale=1.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = MambaPolicy(config)
        with torch.no_grad():
            for name, weight in policy.named_parameters():
                if weight.ndim > 1 and "A_log" not in name:
                    weight.mul_(10 / layers)
    return policy.eval()


def _random_windows(b: int, s: int, a: int, k: int) -> Windows:
    returns, states, actions = normal(2, *[(b, k, size) for size in (1, s, a)])
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
