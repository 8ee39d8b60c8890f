"""The transformer block of GPT-2, for all tokens at once and, with what it remembers, for the next ones alone.

Axes: `b` batch, `l` tokens, `d` channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dmm.layers.attention import CausalAttention, Places
from dmm.layers.dropout import Dropout
from dmm.layers.initial import init_linear

Nonlinearity = Literal["relu", "gelu", "gelu-tanh"]


def _nonlinearity(name: Nonlinearity) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu-tanh" else "none")


class GPTLayer(nn.Module):
    """`x + attention(LN(x))`, then `x + MLP(LN(x))`: `(b, l, d) -> (b, l, d)`.

    Source: `GPT2Block` of transformers, without what its caller does: positions, and the norm behind the last block.

    Args:
        d: channels; `4 d` in the MLP.
        heads: of attention, a divisor of `d`.
        dropout: on what each half adds.
        attention_dropout: on attention weights; `dropout` if not given.
        nonlinearity: of the MLP. `gelu-tanh` is GPT-2's own, and Decision Transformer has `relu`.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        dropout: float,
        *,
        attention_dropout: float | None = None,
        nonlinearity: Nonlinearity = "relu",
    ):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = CausalAttention(d, heads, dropout if attention_dropout is None else attention_dropout)
        up, down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.mlp = nn.Sequential(up, _nonlinearity(nonlinearity), down)
        self.dropout = Dropout(dropout)
        for layer in (self.attention.project_in, self.attention.project_out, up, down):
            init_linear(layer)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """`allowed (b, 1, l, l)`, as in `CausalAttention`; None is all but the future."""
        x = x + self.dropout(self.attention(self.attention_norm(x), allowed))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def newest(self, x: Tensor, allowed: Tensor) -> Tensor:
        """`forward` of the last token alone, `(b, l, d) -> (b, d)`; see `CausalAttention.newest`."""
        y = x[:, -1] + self.attention.newest(self.attention_norm(x), allowed)
        return y + self.mlp(self.mlp_norm(y))  # type: ignore[no-any-return]

    def cached(self, x: Tensor, remembered: Tensor, places: Places) -> Tensor:
        """`forward` of the next tokens alone, `(b, t, d) -> (b, t, d)`; see `CausalAttention.cached`."""
        x = x + self.attention.cached(self.attention_norm(x), remembered, places)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"attention": self.attention, "MLP": self.mlp}


GPT_BLOCK = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
GPT_PRODUCTS = {"attention.project_in": "attn.c_attn", "attention.project_out": "attn.c_proj"}
GPT_PRODUCTS |= {"mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}
"""Of a `GPTLayer`: what GPT-2's code calls the same; the weights of products are stored transposed there."""


def seen_before(real: Tensor) -> Tensor:
    """Which token may look at which: `real (b, l)`, False for padding -> `(b, 1, l, l)`.

    A token looks at itself and at earlier real ones; what padding maps to means nothing.
    """
    tokens = real.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=real.device).tril()
    itself = torch.eye(tokens, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | itself)[:, None]
