"""StARformer: each step is read by a small transformer of its own pieces before a causal one reads the steps.

    pieces of step t   z = [action_(t-1), one per entry of state_t, reward]                            (P, e)
    state token        g_t = Linear(state_t) + place_t                                                 (d)
    in each layer      z = local block(z)                      attention among the P pieces, no mask
                       v_t = LN(Linear(flatten(LN(z)))) + place_t
                       [v_0, g_0, v_1, g_1, ...] = causal block of the same; the g go on, v is made anew
    action             tanh(head(LN(g_t)))

A block is `x + attention(LN(x))`, then `x + MLP(LN(x))` with GELU. `place` is the place in the window, not the time of
the episode. There is no return-to-go and no target: it is behaviour cloning with a history. `kind="imitation"`, which
the authors call `star` and their script for D4RL runs by default, has pieces of actions and states. `kind="reward"`,
`star_rwd`, adds a reward, not scaled: **in training that of the very action which is to be predicted, when acting the
one received before it**, as in their code, so that it learns with a hint that it does not have when it acts.

Previous actions are -10 in every entry at an episode's first step and in padding, where states are z-scored zeros.
Padding is on the left and is read like anything else. When acting there is none: a short history has the first places.

It reads `HistoryWindows`: windows that also hold each step's reward, previous action and previous reward.

Source: Shang et al. 2022, arXiv 2110.06206; `elicassion/StARformer` at commit c4a537e, `gym/models/starformer.py`, its
version for state vectors. Departures: context, width and layers are those of the frame (8, 64, 3; theirs are 20, 128,
3), heads for states and rewards that its authors leave untrained are not there, and neither is the entry of the causal
mask that lets the first token, whose output is dropped, see the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.windows import HistoryWindows, WindowDraws, right_padded
from dmm.errors import InputError, require_choice
from dmm.layers.attention import PreNormBlock
from dmm.layers.dropout import Dropout
from dmm.models.entry import Facts, Model, Official, Source, only
from dmm.policy import Policy, next_window

Kind = Literal["imitation", "reward"]
KINDS: dict[str, Kind] = {"star": "imitation", "star_rwd": "reward"}
"""The authors' names."""
NO_ACTION = -10.0
"""Every entry of the action before an episode's first, and of those in padding."""


@dataclass(frozen=True, kw_only=True)
class StARformerConfig:
    """A StARformer; local sizes, heads and dropout are its authors'."""

    state_size: int  # s
    action_size: int  # a, continuous and within [-1, 1]
    context: int = 8  # k time steps, 2k tokens
    width: int = 64  # d channels of steps
    layers: int = 3
    heads: int = 1  # of attention among steps
    local_width: int = 16  # e channels of pieces
    local_heads: int = 4  # of attention among the pieces of a step
    dropout: float = 0.1  # after the embeddings, on attention weights and on what each block adds
    kind: Kind = "imitation"  # imitation: pieces of actions and states; reward: with the reward, see above

    def __post_init__(self) -> None:
        plain_fields(self)
        sizes = ("state_size", "action_size", "context", "width", "layers", "heads", "local_width", "local_heads")
        check_positive(self, *sizes)
        for heads, width in (("heads", "width"), ("local_heads", "local_width")):
            if getattr(self, width) % getattr(self, heads):
                got, whole = getattr(self, heads), getattr(self, width)
                raise InputError(f"{heads}: got {got}, allowed are divisors of {width} {whole}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        require_choice("kind", self.kind, Kind)

    @property
    def pieces(self) -> int:
        """P of each step."""
        return self.state_size + (2 if self.kind == "reward" else 1)


class StARLayer(nn.Module):
    """Pieces `(b, k, P, e)` and state tokens `(b, k, d)` to the same shapes; `place (b, k, d)`."""

    def __init__(self, config: StARformerConfig):
        super().__init__()
        d, e = config.width, config.local_width
        self.local_block = PreNormBlock(e, config.local_heads, config.dropout)
        self.local_norm = nn.LayerNorm(e)
        self.project, self.step_norm = nn.Linear(config.pieces * e, d), nn.LayerNorm(d)
        self.block = PreNormBlock(d, config.heads, config.dropout)

    def forward(self, pieces: Tensor, g: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        b, k = g.shape[:2]
        pieces = self.local_block(pieces.flatten(0, 1)).unflatten(0, (b, k))
        v = self.step_norm(self.project(self.local_norm(pieces).flatten(-2))) + place  # (b, k, d)
        tokens = torch.stack([v, g], dim=2).flatten(1, 2)  # (b, 2k, d)
        causal = torch.ones(2 * k, 2 * k, dtype=torch.bool, device=g.device).tril()
        return pieces, self.block(tokens, causal)[:, 1::2]


class StARformer(Policy):
    """`config.layers` layers over pieces and steps: `HistoryWindows (b, k, ...) -> actions (b, k, a)`."""

    batch = HistoryWindows

    def __init__(self, config: StARformerConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d, e = config, config.width, config.local_width
        self.embed_action, self.embed_entry = nn.Linear(config.action_size, e), nn.Linear(1, e)
        self.embed_reward = nn.Linear(1, e) if config.kind == "reward" else None
        self.embed_state = nn.Linear(config.state_size, d)
        self.entries, self.places = nn.Embedding(config.state_size, e), nn.Embedding(config.context, d)
        self.piece_dropout, self.dropout = Dropout(config.dropout), Dropout(config.dropout)
        self.blocks = nn.ModuleList(StARLayer(config) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, config.action_size)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.entries.weight)
        nn.init.zeros_(self.places.weight)

    def forward(self, windows: HistoryWindows) -> Tensor:
        states = (windows.states - self.state_mean) / self.state_std
        place = self.places(_numbers(windows.mask))  # (b, k, d)
        pieces = self.piece_dropout(self._pieces(states, windows))
        g = self.dropout(self.embed_state(states) + place)
        for layer in self.blocks:
            pieces, g = layer(pieces, g, place)
        return torch.tanh(self.head(self.norm(g)))

    def _pieces(self, states: Tensor, windows: HistoryWindows) -> Tensor:
        """`(b, k, P, e)`: the action before, every entry of the state, and the reward where it is one."""
        first = (windows.timesteps == 0) & (windows.previous_actions == 0).all(dim=-1)  # where windows hold zeros
        before = torch.where((first | ~windows.mask)[..., None], NO_ACTION, windows.previous_actions)
        entries = self.embed_entry(states[..., None]) + self.entries(_numbers(states))
        parts = [self.embed_action(before)[:, :, None], entries]
        if self.embed_reward is not None:
            parts.append(torch.tanh(self.embed_reward(windows.rewards))[:, :, None])
        return torch.cat(parts, dim=2)

    @torch.no_grad()
    def act(
        self, state: HistoryWindows, observation: Tensor, reward: Tensor | None = None
    ) -> tuple[Tensor, HistoryWindows]:
        """See `Policy.act`. No return is asked for: `reward` is the piece of `kind="reward"`, 0 at the first step."""
        now = next_window(state, observation, reward)
        made = self.forward(right_padded(dataclasses.replace(now, rewards=now.previous_rewards)))
        last = now.mask.sum(dim=1) - 1  # (n,)
        action = self.played(made[torch.arange(len(last), device=last.device), last])
        now.actions[:, -1] = action
        return action, now


def _numbers(x: Tensor) -> Tensor:
    """0, 1, ... along the last axis, in the shape of `x`."""
    return torch.arange(x.shape[-1], device=x.device).expand(x.shape)


def _published(facts: Facts) -> dict[str, Any]:
    """The sizes and the recipe of the script for D4RL. It decays matrices only, and here the two tables of places and
    entries count as such, which it leaves out."""
    recipe = {"steps": 100_000, "batch_size": 64, "learning_rate": 1e-4, "warmup": 0.1, "clip": 0.25}
    return {"context": 20, "width": 128} | recipe | {"weight_decay": 1e-4, "decay": "matrices", "beta2": 0.95}


def _official_config(sizes: Mapping[str, Any]) -> StARformerConfig:
    require_choice("kind", sizes["kind"], Literal["star", "star_rwd"])
    names = ("state_size", "action_size", "context", "width", "layers", "heads", "local_width", "local_heads")
    return StARformerConfig(**{name: sizes[name] for name in names}, kind=KINDS[sizes["kind"]])


BLOCK = {"attention_norm": "ln1", "mlp_norm": "ln2", "attention.query": "attn.query", "attention.key": "attn.key"}
BLOCK |= {"attention.value": "attn.value", "attention.project_out": "attn.proj", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}


def _sources(policy: StARformer) -> dict[str, Source]:
    tables = {"entries": "spatial_emb", "places": "temporal_emb"}
    named: dict[str, Source] = {f"{ours}.weight": (f"token_emb.{theirs}", only) for ours, theirs in tables.items()}
    layers = {"embed_action": "token_emb.action_emb", "embed_entry": "token_emb.patch_embedding"}
    layers |= {"embed_state": "token_emb.vec_emb", "norm": "ln_head", "head": "action_head.0"}
    if policy.embed_reward is not None:
        layers["embed_reward"] = "token_emb.reward_emb.0"
    for i in range(policy.config.layers):
        ours, theirs = f"blocks.{i}", f"blocks.{i}"
        layers |= {f"{ours}.local_block.{own}": f"{theirs}.local_block.{other}" for own, other in BLOCK.items()}
        layers |= {f"{ours}.block.{own}": f"{theirs}.global_block.{other}" for own, other in BLOCK.items()}
        layers |= {f"{ours}.local_norm": f"{theirs}.local_norm", f"{ours}.project": f"{theirs}.local_global_proj.0"}
        layers[f"{ours}.step_norm"] = f"{theirs}.local_global_proj.1"
    return named | {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")
    }


def _unused(key: str) -> bool:
    """Heads that are not trained, and the causal masks."""
    return key.startswith(("state_head.", "reward_head.")) or (key.startswith("blocks.") and key.endswith(".mask"))


MODEL = Model(
    name="starformer",
    policy=StARformer,
    config=StARformerConfig,
    description="StARformer, behaviour cloning with a history: no return-to-go (kind=reward: with rewards)",
    source="Shang et al. 2022, arXiv 2110.06206; elicassion/StARformer@c4a537e",
    published=_published,
    fit_rtg_scale=False,
    sampler=WindowDraws(batch=HistoryWindows),
    official=Official(config=_official_config, sources=_sources, unused=_unused),
)
