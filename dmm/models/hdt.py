"""The hierarchy without Mamba: a transformer plans over the episodes of a task; the control of Decision Mamba-Hybrid.

    planner    x = LN(tokens + number of the group);  GPT-2 layers without positions;  plan = tanh(W LN(x) at s tokens)

All else is that of `dmm.models.hierarchy`, its worker, loss, contexts and acting. Groups are numbered from where the
first of a context stands in its episode on, through all that follow; padding is hidden. While acting, the planner works
once in c steps, whenever a group begins. Up to K groups it goes on from the keys and values of those before; from then
on their numbers, and what they have seen, change with each further group, and it reads the last K of them anew.

`from_official` gives the planner of the release alone, `TransformerPlanner`, whose groups have a fifth token behind s:
the group's own plan. In the release nothing calls it; in its authors' earlier model (IDT, arXiv 2405.20692) those plans
come from a third network, and here nothing makes them. It is called with them: `planner(groups, plans)`.

Source: `HDecisionTransformer` in SiliHuang-ai/hybrid_mamba at commit 29ada77, the repository of arXiv 2406.00079. Sizes
are those of the frame; `sizes=published` takes 3 layers of 128 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.errors import InputError
from dmm.layers.cache import KeyValueCache
from dmm.layers.transformer import GPTLayer, seen_before
from dmm.models.entry import Facts, Model, Official, Source, gpt_sources, transposed
from dmm.models.hierarchy import (
    Groups,
    GroupTokens,
    HierarchicalPolicy,
    HierarchyConfig,
    Planner,
    authors_recipe,
    by_data,
    context_draws,
)


@dataclass(frozen=True, kw_only=True)
class HDTConfig(HierarchyConfig):
    """A hierarchy of two transformers."""

    numbers: int = 0  # of groups that have an embedding, later ones share the last; 0: as many as can come

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.numbers:
            check_positive(self, "numbers")


class Planned(NamedTuple):
    """What the planner remembers of n tasks, and how it is kept: as one tuple of tensors."""

    window: Groups
    """The last K groups, `(n, K, .)`, padded in front."""
    number: Tensor
    """`(n,)` int64, of the first group."""
    cache: KeyValueCache
    """Of up to K groups."""

    def flat(self) -> tuple[Tensor, ...]:
        """The tensors."""
        return (*self.window, self.number, *self.cache)

    @classmethod
    def of(cls, state: tuple[Tensor, ...]) -> Planned:
        """What `flat` gave."""
        fields = len(Groups._fields)
        return cls(Groups(*state[:fields]), state[fields], KeyValueCache(*state[fields + 1 :]))


class TransformerPlanner(Planner):
    """A transformer over the tokens of all groups; its memory is the last K groups, and their keys and values.

    Args:
        config: the hierarchy's.
        plan_tokens: whether groups have the token of their own plan, as released.
    """

    def __init__(self, config: HDTConfig, plan_tokens: bool = False):
        super().__init__()
        self.config, d = config, config.width
        self.tokens, self.embed_norm = GroupTokens(config), nn.LayerNorm(d)
        self.embed_plan = nn.Linear(2 * config.z, d) if plan_tokens else None
        self.embed_number = nn.Embedding(config.numbers or config.groups + config.max_timestep // config.interval, d)
        self.blocks = nn.ModuleList(GPTLayer(d, config.heads, config.dropout) for _ in range(config.plan_layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 2 * config.z)

    def forward(self, groups: Groups, plans: Tensor | None = None) -> Tensor:
        """`plans (b, K, 2 z)` are those of the groups themselves, where they have a token."""
        x = self.tokens(groups)  # (b, K, m, d)
        place = self.tokens.state_place
        if (plans is None) != (self.embed_plan is None):
            wanted = "none" if self.embed_plan is None else "those of all groups, (b, K, 2 z)"
            raise InputError(f"plans: got {'none' if plans is None else tuple(plans.shape)}, allowed is {wanted}")
        if self.embed_plan is not None:
            x = torch.cat([x[:, :, : place + 1], self.embed_plan(plans)[:, :, None], x[:, :, place + 1 :]], dim=2)
        x, every = x + self.embed_number(self._numbers(groups))[:, :, None], x.shape[2]
        x = self.embed_norm(x.flatten(1, 2))
        allowed = seen_before(groups.real.repeat_interleave(every, dim=1))
        for block in self.blocks:
            x = block(x, allowed)
        return self.squash(self.head(self.norm(x[:, place::every])))

    def _numbers(self, groups: Groups) -> Tensor:
        """Of all groups, from that of the context's first one on: `(b, K)`."""
        first = groups.real.int().argmax(dim=1, keepdim=True)
        places = torch.arange(groups.real.shape[1], device=first.device) - first
        numbers = (groups.number.gather(1, first) + places) * groups.real
        return numbers.clamp(max=self.embed_number.num_embeddings - 1)

    def init_state(self, n: int) -> tuple[Tensor, ...]:
        k, zeros = self.config.groups, self.norm.weight.new_zeros
        number = torch.zeros(n, k, dtype=torch.int64, device=self.norm.weight.device)
        single = zeros(n, k, 1)
        window = Groups(single, zeros(n, k, self.config.state_size), single, single, number.bool(), number)
        cache = KeyValueCache.empty(self.blocks, n, k * self.tokens.count)
        return Planned(window, number[:, 0], cache).flat()

    def extend(self, state: tuple[Tensor, ...], group: Groups, first: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        now = Planned.of(state)
        window, groups = self._next_window(now.window, group), now.cache.steps * group.real[:, 0]  # none behind padding
        number = torch.where(groups == 0, group.number[:, 0], now.number)
        full = groups >= self.config.groups
        if full.all():
            return self(window)[:, -1], Planned(window, number, now.cache).flat()
        cache = now.cache._replace(steps=groups.clamp(max=self.config.groups - 1))
        plan, cache = self._next(cache, group, number)
        if full.any():
            plan = torch.where(full[:, None], self(window)[:, -1], plan)
        return plan, Planned(window, number, cache).flat()

    def _next_window(self, window: Groups, group: Groups) -> Groups:
        """The last K groups with the one that begins, whose end is not known yet."""
        before = Groups(*(field.clone() for field in window))
        before.rewards[:, -1:], before.ended[:, -1:] = group.rewards, group.ended
        before.real[:, -1:] &= group.real
        new = group._replace(
            rewards=torch.zeros_like(group.rewards),
            ended=torch.zeros_like(group.ended),
            real=torch.ones_like(group.real),
        )
        return Groups(*(torch.cat([past[:, 1:], field], dim=1) for past, field in zip(before, new, strict=True)))

    def _next(self, cache: KeyValueCache, group: Groups, number: Tensor) -> tuple[Tensor, KeyValueCache]:
        """The plan `(n, 2 z)` of the group that begins, from the keys and values of those before."""
        late = self.tokens.after(group.rewards, group.ended, group.real)
        x = torch.cat([*late, *self.tokens.before(group.returns_to_go, group.states)], dim=1)  # (n, m, d)
        own = torch.arange(x.shape[1], device=x.device) >= len(late)
        numbers = number[:, None] + cache.steps[:, None] - (~own).long()  # (n, m)
        x = self.embed_norm(x + self.embed_number(numbers.clamp(0, self.embed_number.num_embeddings - 1)))
        x, cache = cache.extend(self.blocks, x, len(late))
        return self.squash(self.head(self.norm(x[:, -1]))), cache


class HierarchicalTransformer(HierarchicalPolicy):
    """`GoalContexts (b, K c, ...) -> actions (b, K c, a)`; see the module."""

    def __init__(self, config: HDTConfig):
        super().__init__(config, TransformerPlanner(config))


def _official_config(sizes: Mapping[str, Any]) -> HDTConfig:
    names = {"state_size": "state_size", "action_size": "action_size", "width": "width", "heads": "heads"}
    names |= {"groups": "context_groups", "plan_size": "z_size", "plan_layers": "layers", "numbers": "embed_timestep"}
    return HDTConfig(**{ours: sizes[theirs] for ours, theirs in names.items()})


def official_planner(config: HDTConfig) -> TransformerPlanner:
    """What the authors' weights are of."""
    return TransformerPlanner(config, plan_tokens=True)


def _sources(planner: TransformerPlanner) -> dict[str, Source]:
    layers = {"tokens.embed_rtg": "embed_return", "tokens.embed_state": "embed_state", "embed_norm": "embed_ln"}
    layers |= {"tokens.embed_reward": "embed_reward", "embed_plan": "embed_z", "norm": "transformer.ln_f"}
    layers |= {"head": "predict_z_distribution.0"}
    found: dict[str, Source] = {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")
    }
    found["embed_number.weight"] = "embed_timestep.weight"
    found["tokens.embed_ended.weight"] = ("embed_done.weight", transposed)
    return found | gpt_sources(len(planner.blocks), "blocks.", "transformer.h.")


def _unused(key: str) -> bool:
    """Heads that nothing calls, one word, and the causal masks."""
    heads = ("predict_state.", "predict_return.", "transformer.wte.")
    return key.startswith(heads) or key.endswith((".attn.bias", ".attn.masked_bias"))


def _published(facts: Facts) -> dict[str, Any]:
    return authors_recipe(facts) | {"plan_layers": 3}


MODEL = Model(
    name="hdt",
    policy=HierarchicalTransformer,
    config=HDTConfig,
    description="the hierarchy with a transformer in Mamba's place: the control of dmh",
    source="Huang et al. 2024, arXiv 2406.00079; SiliHuang-ai/hybrid_mamba@29ada77, HDecisionTransformer",
    defaults=by_data,
    in_context=True,
    published=_published,
    sampler=context_draws,
    official=Official(config=_official_config, sources=_sources, unused=_unused, module=official_planner),
)
