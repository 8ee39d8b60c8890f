"""Decision Transformer: causal attention over return-to-go, state and action tokens, with an embedding of time.

    x = LN(tokens + timestep)
    x = x + attention(LN1(x));  x = x + MLP(LN2(x))      in each layer
    action = tanh(head(LN(x) at the state token))

Source: Chen et al. 2021, `decision_transformer.py` and its GPT-2 without position embeddings. Departures: sizes are
those of the frame (context 8, width 64, 3 layers, so that models can be compared; DT has 20, 128, 3), and the heads for
states and returns that its authors leave unused are not there.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.layers.attention import CausalAttention, attention_mask
from dmm.layers.dropout import Dropout
from dmm.layers.initial import init_linear
from dmm.models.entry import Model
from dmm.models.frame import TokenPolicy, TokenPolicyConfig


@dataclass(frozen=True, kw_only=True)
class DTConfig(TokenPolicyConfig):
    """A Decision Transformer. `dropout` also falls on attention weights and on what each layer adds."""

    heads: int = 1
    max_timestep: int = 1000  # time steps that have an embedding; later ones share the last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "heads", "max_timestep")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")


class DTLayer(nn.Module):
    """`x + attention(LN(x))`, then `x + MLP(LN(x))` with ReLU: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, config: DTConfig):
        super().__init__()
        d = config.width
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = CausalAttention(d, config.heads, config.dropout)
        up, down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.mlp = nn.Sequential(up, nn.ReLU(), down)
        self.dropout = Dropout(config.dropout)
        for layer in (self.attention.project_in, self.attention.project_out, up, down):
            init_linear(layer)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), allowed))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"attention": self.attention, "MLP": self.mlp}


class DecisionTransformer(TokenPolicy):
    """`config.layers` layers of attention in the shared frame."""

    config: DTConfig

    def __init__(self, config: DTConfig):
        super().__init__(config)
        self.embed_timestep = nn.Embedding(config.max_timestep, config.width)
        nn.init.normal_(self.embed_timestep.weight, std=0.02)
        self.blocks.extend(DTLayer(config) for _ in range(config.layers))

    def embed(self, windows: Windows) -> Tensor:
        """Tokens `(b, 3k, d)` of the frame, each plus the embedding of its time step."""
        last = self.config.max_timestep - 1
        time = self.embed_timestep(windows.timesteps.clamp(max=last))  # (b, k, d)
        return super().embed(windows) + time.repeat_interleave(3, dim=1)  # type: ignore[no-any-return]

    def mix(self, x: Tensor, windows: Windows) -> Tensor:
        allowed = attention_mask(windows.mask)
        for layer in self.blocks:
            x = layer(x, allowed)
        return x


MODEL = Model(
    name="dt",
    policy=DecisionTransformer,
    config=DTConfig,
    description="Decision Transformer, in the sizes of the frame",
    source="Chen et al. 2021, arXiv 2106.01345; kzl/decision-transformer@e2d82e6",
)
