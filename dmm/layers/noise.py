"""Gaussian noise from generators that can be named, so that stacked seeds draw what separate runs draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GaussianNoise(nn.Module):
    """Numbers from N(0, 1), drawn anew in each call, in training and in evaluation mode alike."""

    generators: Sequence[torch.Generator] | None = None
    """None draws from torch's default generator. Several draw for equal parts of the batch, one after the other."""

    def forward(self, like: Tensor) -> Tensor:
        """A tensor of the shape, type and device of `like (b, ...)`."""
        drawn = torch.empty_like(like, requires_grad=False)
        if self.generators is None:
            return drawn.normal_()
        for part, generator in zip(drawn.chunk(len(self.generators)), self.generators, strict=True):
            part.normal_(generator=generator)
        return drawn
