"""Causal attention and its mask.

Axes: `b` batch, `l` tokens, `d` channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmm.layers.dropout import Dropout


class CausalAttention(nn.Module):
    """Multi-head attention `(b, l, d) -> (b, l, d)` in which no token looks ahead or, with a mask, at padding.

    Source: `GPT2Attention` of transformers, whose weights are stored transposed.
    """

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.project_in, self.project_out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`allowed (b, 1, l, l)`: True where the row's token may look at the column's; None is all but the future."""
        if allowed is None:
            allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        parts = self.project_in(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (b, heads, l, d / heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (b, heads, l, l)
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        mixed = self.dropout(weights) @ v  # (b, heads, l, d / heads)
        return self.project_out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class SplitAttention(nn.Module):
    """Multi-head attention `(b, l, d) -> (b, l, d)` with a projection each for queries, keys and values (minGPT)."""

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.weights_dropout, self.dropout = heads, Dropout(dropout), Dropout(dropout)
        self.query, self.key, self.value, self.project_out = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        """`allowed (l, l)`: True where the row's token may look at the column's; None lets all look at all."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )  # (b, heads, l, d / heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (b, heads, l, l)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        mixed = self.weights_dropout(scores.softmax(dim=-1)) @ v
        return self.dropout(self.project_out(mixed.transpose(1, 2).flatten(-2)))  # type: ignore[no-any-return]


class PreNormBlock(nn.Module):
    """`x + attention(LN(x))`, then `x + MLP(LN(x))` with GELU: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, d: int, heads: int, dropout: float):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = SplitAttention(d, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d), Dropout(dropout))

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), allowed)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


def attention_mask(real: Tensor) -> Tensor:
    """Which token may look at which: `real (b, k)`, True for steps that are not padding -> `(b, 1, 3k, 3k)`.

    A token looks at itself and at earlier real ones; a padded token, which nothing looks at, sees only padding.
    """
    tokens = real.repeat_interleave(3, dim=1)  # (b, 3k)
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=real.device).tril()
    same = tokens[:, :, None] == tokens[:, None, :]
    return (causal & same)[:, None]
