"""Decision Transformer: causal attention over return-to-go, state and action tokens, with an embedding of time.

    x = LN(tokens + timestep)
    x = x + attention(LN1(x));  x = x + MLP(LN2(x))      in each layer
    action = tanh(head(LN(x) at the state token))

Source: Chen et al. 2021, `decision_transformer.py` and its GPT-2 without position embeddings. Departures: sizes are
those of the frame (context 8, width 64, 3 layers, so that models can be compared; DT has 20, 128, 3), all of it starts
at `N(0, 0.02)` (`start = "published"` starts it as its authors do), and what they leave unused is not there: the heads
for states and returns, and GPT-2's table of words. `sizes=published` takes their sizes, start and recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dmm.configs import check_positive
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.layers.attention import attention_mask
from dmm.layers.transformer import GPTLayer
from dmm.models.entry import Facts, Model, Official, Source, domain, gpt_sources
from dmm.models.frame import Start, TimedConfig, TokenPolicy, official_frame, official_sizes


@dataclass(frozen=True, kw_only=True)
class DTConfig(TimedConfig):
    """A Decision Transformer. `dropout` also falls on attention weights and on what each layer adds."""

    heads: int = 1
    start: Start = "frame"  # how embeddings, time table and head start

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "heads")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")


class DTLayer(GPTLayer):
    """`x + attention(LN(x))`, then `x + MLP(LN(x))` with ReLU: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, config: DTConfig):
        super().__init__(config.width, config.heads, config.dropout)


class DecisionTransformer(TokenPolicy):
    """`config.layers` layers of attention in the shared frame."""

    config: DTConfig

    def __init__(self, config: DTConfig):
        super().__init__(config)
        self.blocks.extend(DTLayer(config) for _ in range(config.layers))

    def mix(self, x: Tensor, windows: Windows) -> Tensor:
        allowed = attention_mask(windows.mask)
        for layer in self.blocks:
            x = layer(x, allowed)
        return x


UNUSED = ("transformer.wte.", "predict_state.", "predict_return.")
"""The authors' weights that no action depends on."""


def _sources(policy: DecisionTransformer) -> dict[str, Source]:
    return official_frame(policy, "transformer") | gpt_sources(len(policy.blocks), "blocks.", "transformer.h.")


def _config(config: Mapping[str, Any]) -> DTConfig:
    return DTConfig(**official_sizes(config), heads=config["heads"], start="published")


def _unused(key: str) -> bool:
    return key.startswith(UNUSED) or key.endswith((".attn.bias", ".attn.masked_bias"))  # the causal mask


def _published(facts: Facts) -> dict[str, Any]:
    """The authors' sizes and recipe, of MuJoCo; they have no others, and the scale elsewhere is what returns fit."""
    sizes: dict[str, Any] = {"context": 20, "width": 128, "layers": 3, "heads": 1, "max_timestep": 1000}
    sizes |= {"dropout": 0.1}
    if domain(facts.env_id) == "mujoco":
        sizes["rtg_scale"] = 10.0 if facts.env_id.lower().startswith("reacher") else 1000.0
    return sizes | {"start": "published", "padding": "released"} | RECIPE


RECIPE: dict[str, Any] = {
    "steps": 100_000,
    "batch_size": 64,
    "learning_rate": 1e-4,
    "warmup": 0.1,
    "weight_decay": 1e-4,
    "clip": 0.25,
    "decay": "all",
}
"""That of Decision Transformer's code, which those that follow it keep but for the learning rate."""

MODEL = Model(
    name="dt",
    policy=DecisionTransformer,
    config=DTConfig,
    description="Decision Transformer, in the sizes of the frame",
    source="Chen et al. 2021, arXiv 2106.01345; kzl/decision-transformer@e2d82e6",
    published=_published,
    official=Official(config=_config, sources=_sources, unused=_unused),
)
