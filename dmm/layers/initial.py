"""How weights start."""

from __future__ import annotations

from torch import nn


def init_linear(layer: nn.Linear) -> None:
    """The generic start of GPT-2, Decision Transformer and the released DMM code: weight `N(0, 0.02)`, bias zero."""
    nn.init.normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
