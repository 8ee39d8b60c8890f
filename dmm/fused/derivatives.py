"""Derivatives of the gradient: by way of the plain formula, which autograd can differentiate as often as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    formula: Callable[..., Tensor], inputs: Sequence[Tensor | None], wanted: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """The gradients of `formula(*inputs)` that are wanted, with a graph of their own; None for the others."""
    with torch.enable_grad():
        y = formula(*inputs)
    asked = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want and tensor is not None]
    found = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    return [next(found) if want and tensor is not None else None for tensor, want in zip(inputs, wanted, strict=True)]
