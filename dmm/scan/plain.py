"""The scan in plain torch: what comes before the recurrence and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

States = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`u, delta, A (1 or b, e, n), B, C, start` -> `C h (b, l, e)`, the last state `(b, e, n)`."""


def plain_scan(
    states: States,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """`y (b, l, e)` and the last state; `A (g, e, n)`, `D, bias (g, e)` are of `g` systems, all of one dtype."""
    systems, rows = A.shape[0], u.shape[0] // A.shape[0]
    if systems > 1:  # one system for each row
        A, D, bias = (None if t is None else t.repeat_interleave(rows, dim=0) for t in (A, D, bias))  # type: ignore[assignment]
    D, bias = (None if t is None else t[:, None] for t in (D, bias))  # (1 or b, 1, e)
    y, last = states(u, positive_step(delta, bias, softplus), A, B, C, start)
    return output(y, u, D, z), last


def positive_step(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """`delta + bias`, through softplus if asked for."""
    delta = delta if bias is None else delta + bias
    return F.softplus(delta) if softplus else delta


def output(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """`(y + D u) silu(z)`."""
    y = y if D is None else y + D * u
    return y if z is None else y * F.silu(z)


def differentiable_gradients(
    function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor | None, ...], gradients: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of `function(*inputs)`, whose outputs have these `gradients`, to be differentiated again.

    For the backward pass of a kernel under `create_graph`: the kernel's own gradients would pass for constants.
    `function` computes the same in operations that torch can differentiate as often as asked.
    """
    with torch.enable_grad():
        # aliases: one input may have been computed from another, which is the business of the graph outside
        inner: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
        outputs = function(*inner)
    wanted = [t for t in inner if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inner)
