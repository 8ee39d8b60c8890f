"""The matrix products of a training step by themselves: what is left of it if all else took no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmm.data.windows import Windows
from dmm.fused import branches
from dmm.policy import Policy, action_loss


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the factors and the result of every matrix product that is computed inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.products.append((args[-2], args[-1], result))
        return result


def matrix_products(policy: Policy, windows: Windows) -> Callable[[], None]:
    """What computes all matrix products of one training step and nothing else: those of the forward pass, then those
    of the gradients of inputs and of weights, in the order of the step, on its numbers and in its memory.

    They are those of the modules, computed by torch: of the windows of a DSM as of any other matrix.
    """
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    with _Recording() as recording, branches("plain"):
        torch.autograd.grad(action_loss(policy(windows), windows), weights, allow_unused=True)
    products = [(a.detach(), b.detach(), result.detach()) for a, b, result in recording.products]

    def compute() -> None:
        for a, b, result in products:
            torch.mm(a, b, out=result)

    return compute
