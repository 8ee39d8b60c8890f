"""The Q-learning Decision Transformer of mazes whose states and actions are numbers in tables.

    three tokens of a step      action before, return-to-go, state: table[a'], tanh(Linear(R)), table[s], each + place
    layers                      `x + attention(LN(x))`, then `x + MLP(LN(x))` with GELU; the tokens of a step see each
                                other and those of earlier steps
    logits of the action        Linear(LN(x at the action before)), without bias: a + 1 of them

Number a of the actions says that the episode begins; the last logit belongs to it. There is no time of the episode, and
returns are not scaled. It is here for its authors' weights, by `from_official("qldt", ...)`: the package's own `qldt`
is a Decision Transformer.

Source: takuyamagata/qdt_simple@5d2f757, `mingpt/dt_model_v1.py`. Departures: its second use as a critic is not there,
which that repository's own script leaves off; neither is its table of kinds of tokens, which it makes and does not add.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmm.configs import check_positive, plain_fields
from dmm.errors import InputError
from dmm.layers.attention import PreNormBlock
from dmm.layers.dropout import Dropout
from dmm.layers.initial import init_linear
from dmm.models.entry import Official, Source, only

TOKENS = 3
"""Of each step: action before, return-to-go, state."""


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Sizes of a maze's transformer; the defaults are its authors'."""

    states: int
    actions: int
    context: int = 2  # k time steps
    width: int = 64
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "states", "actions", "context", "width", "layers", "heads")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")


class TableTransformer(nn.Module):
    """Rows (action before, state, return-to-go) to logits of actions: `(b, k, 3) -> (b, k, a + 1)`, k <= context."""

    def __init__(self, config: TableConfig):
        super().__init__()
        self.config, d = config, config.width
        self.embed_state, self.embed_action = nn.Embedding(config.states, d), nn.Embedding(config.actions + 1, d)
        self.embed_rtg = nn.Linear(1, d)
        self.places = nn.Embedding(config.context, d)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(PreNormBlock(d, config.heads, config.dropout) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, config.actions + 1, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init_linear(layer)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.places.weight)

    def forward(self, rows: Tensor) -> Tensor:
        c = self.config
        if rows.ndim != 3 or rows.shape[2] != TOKENS or not 1 <= rows.shape[1] <= c.context:
            raise InputError(f"rows: got shape {tuple(rows.shape)}, allowed is (b, 1 to {c.context}, {TOKENS})")
        before, states = rows[..., 0].long().clamp(max=c.actions), rows[..., 1].long()
        rtg = torch.tanh(self.embed_rtg(rows[..., 2:].to(self.embed_rtg.weight)))
        k = rows.shape[1]
        tokens = torch.stack([self.embed_action(before), rtg, self.embed_state(states)], dim=2)  # (b, k, 3, d)
        x = self.dropout((tokens + self.places.weight[:k, None]).flatten(1, 2))
        steps = torch.arange(k, device=rows.device).repeat_interleave(TOKENS)
        allowed = steps[:, None] >= steps
        for block in self.blocks:
            x = block(x, allowed)
        return self.head(self.norm(x[:, ::TOKENS]))  # type: ignore[no-any-return]

    def loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the actions in the first column of `targets (b, k, 3)`, one of `a` and more as the last."""
        actions = targets[..., 0].long().clamp(max=self.config.actions)
        return F.cross_entropy(self.forward(rows).flatten(0, 1), actions.flatten())


def _config(given: Mapping[str, Any]) -> TableConfig:
    """The authors' names, `n_layer` and such; those of a part `maze`, and of `gpt` in it, count too."""
    sizes = dict(given)
    for part in ("maze", "gpt"):
        sizes |= sizes.get(part) or {}
    names = {"states": "states", "actions": "actions", "context": "context"}
    names |= {"width": "n_embd", "layers": "n_layer", "heads": "n_head"}
    return TableConfig(**{ours: sizes[theirs] for ours, theirs in names.items()})


BLOCK = {"attention_norm": "ln1", "mlp_norm": "ln2", "attention.query": "attn.query", "attention.key": "attn.key"}
BLOCK |= {"attention.value": "attn.value", "attention.project_out": "attn.proj", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}


def _sources(module: TableTransformer) -> dict[str, Source]:
    named: dict[str, Source] = {"places.weight": ("pos_emb", only), "head.weight": "head.weight"}
    named |= {"embed_state.weight": "s_emb.weight", "embed_action.weight": "a_emb.weight"}
    layers = {"embed_rtg": "R_emb.0", "norm": "ln_f"}
    for i in range(module.config.layers):
        layers |= {f"blocks.{i}.{own}": f"blocks.{i}.{theirs}" for own, theirs in BLOCK.items()}
    return named | {
        f"{own}.{part}": f"{theirs}.{part}" for own, theirs in layers.items() for part in ("weight", "bias")
    }


def _unused(key: str) -> bool:
    """The table of kinds of tokens, that of seen actions, and masks."""
    return key in ("seg_emb", "bcq_table") or key.endswith((".attn.mask", ".attn.mask_ql"))


def _named(weights: dict[str, Tensor], sizes: Mapping[str, Any]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Their keys without the `maze/` that stands before them in a file that holds several things."""
    return {key.removeprefix("maze/"): tensor for key, tensor in weights.items()}, sizes


OFFICIAL = Official(config=_config, sources=_sources, unused=_unused, module=TableTransformer, named=_named)
