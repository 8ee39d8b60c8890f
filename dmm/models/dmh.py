"""Decision Mamba-Hybrid: Mamba plans over the episodes of a task, a small GPT acts within groups of c steps.

    planner    x = LN(tokens);  x = x + Mamba(RMSNorm(x)) in each of 2 layers;  plan = tanh(W RMSNorm(x) at s tokens)

Worker, loss, contexts and acting are those of `dmm.models.hierarchy`, its control those of `dmm.models.hdt`. Padded
groups, in front of a context, are read like any other. Acting is a recurrence that is never reset within a task: a
group's cost does not grow with what came before.

In the release the recurrence of acting leaves out the LayerNorm over tokens that training has (`step_norm=False`); with
it, acting equals the parallel forward.

Source: Huang et al. 2024, arXiv 2406.00079; SiliHuang-ai/hybrid_mamba at commit 29ada77, whose weights
(`h_policy/...`, `l_policy/...`) `from_official` takes, with all of the release's ways. Those of its ways that are not
the paper's are switches here; defaults are the paper's, with the LayerNorm, and sizes those of the frame. Discrete
actions get cross-entropy, as in the paper; the release has none. What the release trains nothing with (embeddings of z
and heads for states, rewards and returns in the planner; one word in the worker) is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.layers.mamba import MambaBlock, MambaState
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

EPSILON = 1e-5
"""In the root of RMSNorm."""


@dataclass(frozen=True, kw_only=True)
class DMHConfig(HierarchyConfig):
    """A Decision Mamba-Hybrid, its Mamba with the defaults of `mamba_ssm.Mamba`."""

    expand: int = 2  # inner channels per channel
    ssm_state: int = 16  # n
    conv_width: int = 4  # taps of the depth-wise convolution
    step_norm: bool = True  # LayerNorm over tokens while acting too; False as released

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "expand", "ssm_state", "conv_width")


class ResidualMamba(nn.Module):
    """`x + Mamba(RMSNorm(x))`: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, config: DMHConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=EPSILON)
        sizes = {"state_size": config.ssm_state, "expand": config.expand, "conv_width": config.conv_width}
        self.mixer = MambaBlock(config.width, **sizes)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))  # type: ignore[no-any-return]

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None) -> tuple[Tensor, MambaState]:
        """The next tokens; see `MambaBlock.extend`."""
        y, state = self.mixer.extend(self.norm(x), state, present)
        return x + y, state


class MambaPlanner(Planner):
    """Mamba over the tokens of all groups; its memory is that of its layers."""

    def __init__(self, config: DMHConfig):
        super().__init__()
        self.config: DMHConfig = config
        self.tokens, self.embed_norm = GroupTokens(config), nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(ResidualMamba(config) for _ in range(config.plan_layers))
        self.norm, self.head = nn.RMSNorm(config.width, eps=EPSILON), nn.Linear(config.width, 2 * config.z)

    def forward(self, groups: Groups) -> Tensor:
        x = self.embed_norm(self.tokens(groups).flatten(1, 2))  # (b, m K, d)
        for block in self.blocks:
            x = block(x)
        return self.squash(self.head(self.norm(x[:, self.tokens.state_place :: self.tokens.count])))

    def init_state(self, n: int) -> tuple[Tensor, ...]:
        return tuple(part for block in self._layers() for part in block.mixer.init_state(n))

    def extend(self, state: tuple[Tensor, ...], group: Groups, first: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        made = self.tokens.after(group.rewards, group.ended, group.real)
        made += self.tokens.before(group.returns_to_go, group.states)
        x = torch.cat(made, dim=1)  # (n, m, d), the last two of the group before
        x = self.embed_norm(x) if self.config.step_norm else x
        present = None
        if first.any():  # nothing is before a first group
            present = x.new_ones(x.shape[:2])
            present[:, :2] = (~first).to(x.dtype)[:, None]
        after: list[Tensor] = []
        for place, block in enumerate(self._layers()):
            x, layer = block.extend(x, MambaState(*state[2 * place : 2 * place + 2]), present)
            after += layer
        return self.squash(self.head(self.norm(x[:, -1]))), tuple(after)

    def _layers(self) -> Sequence[ResidualMamba]:
        return cast("Sequence[ResidualMamba]", self.blocks)


class DecisionMambaHybrid(HierarchicalPolicy):
    """`GoalContexts (b, K c, ...) -> actions (b, K c, a)`; see the module."""

    def __init__(self, config: DMHConfig):
        super().__init__(config, MambaPlanner(config))


def _official_config(sizes: Mapping[str, Any]) -> DMHConfig:
    names = {"state_size": "state_size", "action_size": "action_size", "width": "width", "heads": "heads"}
    names |= {"groups": "context_groups", "interval": "sub_goal_interval", "plan_size": "z_size"}
    names |= {"layers": "transformer_layers", "plan_layers": "mamba_layers", "max_timestep": "max_episode_steps"}
    more = ("rtg_scale", "expand", "ssm_state", "conv_width")
    return DMHConfig(
        **{ours: sizes[theirs] for ours, theirs in names.items()},
        **{name: sizes[name] for name in more if name in sizes},
        longest=sizes["context_groups"] * sizes["sub_goal_interval"],
        step_norm=False,
        goals="released",
        best="out",
        ends="terminal",
    )


MAMBA = (
    *("A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias"),
    *("x_proj.weight", "dt_proj.weight", "dt_proj.bias", "out_proj.weight"),
)
UNUSED = (
    *(f"h_policy/{name}." for name in ("embed_z", "predict_state", "predict_rewards", "predict_returns")),
    "l_policy/transformer.wte.",
)
"""What no output depends on."""


def _sources(policy: DecisionMambaHybrid) -> dict[str, Source]:
    high, low = "h_policy/", "l_policy/"
    layers = {"tokens.embed_rtg": "embed_return", "tokens.embed_state": "embed_state", "embed_norm": "embed_ln"}
    layers |= {"tokens.embed_reward": "embed_reward", "head": "predict_z_distribution.0"}
    names = {f"planner.{ours}": high + theirs for ours, theirs in layers.items()}
    layers = {"embed_plan": "embed_z", "embed_norm": "embed_ln", "goal_to_plan": "embed_g_to_z"}
    layers |= {name: name for name in ("embed_state", "embed_action", "embed_reward")}
    layers |= {"norm": "transformer.ln_f", "head": "predict_action.0"}
    names |= {f"worker.{ours}": low + theirs for ours, theirs in layers.items()}
    found: dict[str, Source] = {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in names.items() for part in ("weight", "bias")
    }
    found |= gpt_sources(policy.config.layers, "worker.blocks.", f"{low}transformer.h.")
    found["worker.embed_timestep.weight"] = f"{low}embed_timestep.weight"
    found["planner.tokens.embed_ended.weight"] = (f"{high}embed_done.weight", transposed)
    found["planner.norm.weight"] = f"{high}norm_f.weight"
    for i in range(policy.config.plan_layers):
        found[f"planner.blocks.{i}.norm.weight"] = f"{high}mamba.layers.{i}.norm.weight"
        found |= {f"planner.blocks.{i}.mixer.{part}": f"{high}mamba.layers.{i}.mixer.{part}" for part in MAMBA}
    return found


def _published(facts: Facts) -> dict[str, Any]:
    return authors_recipe(facts) | {"step_norm": False}


MODEL = Model(
    name="dmh",
    policy=DecisionMambaHybrid,
    config=DMHConfig,
    description="Decision Mamba-Hybrid: Mamba plans over episodes, a small GPT acts within groups of steps",
    source="Huang et al. 2024, arXiv 2406.00079; SiliHuang-ai/hybrid_mamba@29ada77",
    defaults=by_data,
    in_context=True,
    published=_published,
    sampler=context_draws,
    official=Official(
        config=_official_config,
        sources=_sources,
        unused=lambda key: key.startswith(UNUSED) or key.endswith((".attn.bias", ".attn.masked_bias")),
    ),
)
