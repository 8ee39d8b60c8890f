"""The transformer block of GPT-2, for all tokens at once and, with what it remembers, for the next ones alone.

Axes: `b` batch, `l` tokens, `d` channels.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.layers.attention import CausalAttention
from dmm.layers.dropout import Dropout
from dmm.layers.frozen import Freezable
from dmm.layers.initial import init_linear

Nonlinearity = Literal["relu", "gelu", "gelu-tanh"]


def _nonlinearity(name: Nonlinearity) -> nn.Module:
    if name == "relu":
        return nn.ReLU()
    return nn.GELU(approximate="tanh" if name == "gelu-tanh" else "none")


class Places(NamedTuple):
    """Where the next `t` tokens of each row stand in a cache, and what they may look at there."""

    where: Tensor
    """`(b, t)` int64."""
    bias: Tensor
    """`(b, 1, t, q)`, 0 where a token may look and -inf where not, of the first `q` places: all that is looked at."""


class GPTLayer(Freezable):
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

    def make_cell(self) -> GPTCell:
        return GPTCell(self)

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"attention": self.attention, "MLP": self.mlp}


class GPTCell:
    """A `GPTLayer` for acting, without dropout and without a gradient, with the layer's weights of when it is made.

    In a step of one environment it takes longer to find the weights than to multiply by them.
    """

    def __init__(self, layer: GPTLayer):
        attention, (up, self.activate, down) = layer.attention, layer.mlp
        self.heads = attention.heads
        self.norms = [(n.normalized_shape, n.weight, n.bias, n.eps) for n in (layer.attention_norm, layer.mlp_norm)]
        layers: Any = (attention.project_in, attention.project_out, up, down)
        self.project_in, self.project_out, self.up, self.down = ((each.weight, each.bias) for each in layers)

    def whole(self, x: Tensor, bias: Tensor) -> Tensor:
        """`forward`, `(b, l, d) -> (b, l, d)`; `bias (b, 1, l, l)` as in `Places`."""
        q, k, v = self._projected(x).unbind(1)
        return self._behind(x, q, k, v, bias)

    def newest(self, x: Tensor, bias: Tensor) -> Tensor:
        """`forward` of the last token alone, `(b, l, d) -> (b, 1, d)`."""
        q, k, v = self._projected(x).unbind(1)
        return self._behind(x[:, -1:], q[:, :, -1:], k, v, bias[:, :, -1:])

    def cached(self, x: Tensor, remembered: Tensor, places: Places) -> Tensor:
        """`forward` of the next tokens alone, `(b, t, d) -> (b, t, d)`.

        Args:
            x: the tokens.
            remembered: keys and values of those before, `(b, 2, heads, p, d / heads)`; theirs are written into it.
            places: of the tokens.
        """
        made = self._projected(x)
        new, seen = made[:, 1:], places.bias.shape[-1]
        remembered.scatter_(3, places.where[:, None, None, :, None].expand(new.shape), new)
        k, v = remembered[:, :, :, :seen].unbind(1)
        return self._behind(x, made[:, 0], k, v, places.bias)

    def _projected(self, x: Tensor) -> Tensor:
        """Queries, keys and values: `(b, 3, heads, l, d / heads)`."""
        made = F.linear(F.layer_norm(x, *self.norms[0]), *self.project_in)
        return made.view(*x.shape[:2], 3, self.heads, -1).permute(0, 2, 3, 1, 4)

    def _behind(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """The tokens of these queries behind both halves of the layer."""
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (b, heads, t, d / heads)
        x = x + F.linear(mixed.transpose(1, 2).reshape(x.shape), *self.project_out)
        return x + F.linear(self.activate(F.linear(F.layer_norm(x, *self.norms[1]), *self.up)), *self.down)


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
