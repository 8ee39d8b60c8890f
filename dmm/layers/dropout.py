"""Dropout whose masks come from generators that can be named, so that stacked seeds draw what separate runs draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """`x * kept / (1 - p)` while training, with `kept` drawn anew in each call; `x` itself in evaluation mode.

    On a CPU it equals `torch.nn.Dropout` bit for bit, from the same random numbers. On CUDA `torch.nn.Dropout` is one
    fused kernel with a stream of its own, which several generators could not share.

    Args:
        p: part of the entries that become zero, below 1.
    """

    generators: Sequence[torch.Generator] | None = None
    """None draws from torch's default generator. Several draw for equal parts of the batch, one after the other."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        kept = self.kept(x)
        return x if kept is None else x * kept

    def kept(self, x: Tensor) -> Tensor | None:
        """What `forward` multiplies by, `kept / (1 - p)`, drawn anew for a tensor like this; None where it does not."""
        if not self.training or self.p == 0:
            return None
        kept = torch.empty_like(x, requires_grad=False)
        if self.generators is None:
            kept.bernoulli_(1 - self.p)
        else:
            for part, generator in zip(kept.chunk(len(self.generators)), self.generators, strict=True):
                part.bernoulli_(1 - self.p, generator=generator)
        return kept.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
