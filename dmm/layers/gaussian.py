"""A head that says how likely actions are: a Gaussian whose spread does not depend on the input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GaussianHead(nn.Module):
    """`a ~ N(W x + b, exp(log_std)^2)`, each entry by itself; `log_std (a,)` is free and 0 at first.

    Source: `DiagGaussianDistribution` of stable-baselines3 1.2.0. `W` starts orthogonal with gain 0.01, `b` at zero.
    """

    def __init__(self, width: int, action_size: int):
        super().__init__()
        self.mean = nn.Linear(width, action_size)
        self.log_std = nn.Parameter(torch.zeros(action_size))
        nn.init.orthogonal_(self.mean.weight, gain=0.01)
        nn.init.zeros_(self.mean.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The mean: `(b, ..., d) -> (b, ..., a)`."""
        return self.mean(x)  # type: ignore[no-any-return]

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """The log density of actions, summed over their entries: `(b, ..., a)` and the same -> `(b, ...)`."""
        log_std = self.spread(mean)
        z = (actions - mean) * torch.exp(-log_std)
        return -(z.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(dim=-1)

    def spread(self, mean: Tensor) -> Tensor:
        """`log_std` as it belongs to each row of `mean (b, ..., a)`."""
        return self.log_std
