"""Agentic Transformer: a Decision Transformer over several episodes of a task, from the worst to the best.

    tokens = LN(embed(R, s, a, r, d) + timestep), of each step in this order           (b, 5k, d)
    GPT-2 layers without positions;  action = head(LN(x) at the s token), through tanh where actions are continuous
    loss = squared error, or cross-entropy, of the actions of the last, best episode

Contexts are those of `dmm.data.contexts`, sorted by return: each episode's returns-to-go begin with the best one's
return, so that they end above zero where an episode fell short. d is 1 at the end of an episode that reached it, else
0. `tokens="four"` leaves r out. Time steps begin anew with each episode.

Acting, the last k steps are read anew each time, across the episodes of a task (`next_episode`), and each of them is
asked for the same return; with `dmm.acting`'s `cached` their keys and values are remembered until these are k.

Source: Liu & Abbeel 2023, arXiv 2305.16554; suessmann/Agentic-Transformer-Pytorch at commit 758839c, a third party's
code, was read (the authors' own is not to be had), and there is nothing to compare numbers with. It has the four tokens
and writes d into a row before the rows are sorted, which is not done here. Sizes are those of the frame: k is cut at
160 steps, of long episodes less than one; `sizes=published` holds four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.contexts import Contexts, ContextSampler
from dmm.data.trajectories import Trajectories
from dmm.data.windows import RewardedWindows
from dmm.errors import InputError, require_choice
from dmm.layers.transformer import GPTLayer, seen_before
from dmm.models.across import SPAN, AcrossEpisodes, steps_of, with_last
from dmm.models.dt import RECIPE
from dmm.models.entry import Facts, Model, domain
from dmm.policy import action_error, of_merged

Tokens = Literal["five", "four"]
REACHED = 1e-4
"""How much of `rtg_scale` may be left of a return that counts as reached."""


@dataclass(frozen=True, kw_only=True)
class ATConfig:
    """An Agentic Transformer."""

    state_size: int  # s
    action_size: int  # a
    context: int = 80  # k time steps of several episodes
    width: int = 64  # d channels
    layers: int = 3
    heads: int = 1
    dropout: float = 0.1  # on attention weights and on what each half of a layer adds
    rtg_scale: float = 1000.0  # returns-to-go are divided by this; rewards are not
    max_timestep: int = 1000  # time steps that have an embedding; later ones share the last
    tokens: Tokens = "five"  # R, s, a, r, d of a step, or without r as in the code that was read

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "context", "width", "layers", "heads", "max_timestep")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if not 0 < self.rtg_scale < float("inf"):
            raise InputError(f"rtg_scale: got {self.rtg_scale:g}, allowed is a positive number")
        require_choice("tokens", self.tokens, Tokens)


class AgenticTransformer(AcrossEpisodes):
    """`Contexts (b, k, ...) -> actions (b, k, a)`, or logits of discrete ones; see the module."""

    batch = Contexts
    state_token = 1
    config: ATConfig

    def __init__(self, config: ATConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d = config, config.width
        self.embed_rtg, self.embed_reached = nn.Linear(1, d), nn.Linear(1, d)
        self.embed_state, self.embed_action = nn.Linear(config.state_size, d), nn.Linear(config.action_size, d)
        self.embed_reward = nn.Linear(1, d) if config.tokens == "five" else None
        self.embed_timestep, self.embed_norm = nn.Embedding(config.max_timestep, d), nn.LayerNorm(d)
        self.blocks = nn.ModuleList(GPTLayer(d, config.heads, config.dropout) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, config.action_size)

    def forward(self, contexts: Contexts) -> Tensor:
        x = self.tokens(contexts)
        every = x.shape[2]
        x, allowed = x.flatten(1, 2), seen_before(contexts.mask.repeat_interleave(every, dim=1))
        for block in self.blocks:
            x = block(x, allowed)
        return self.read(x[:, self.state_token :: every])

    def tokens(self, windows: Contexts, first: Tensor | None = None) -> Tensor:
        time = self.embed_timestep(windows.timesteps.clamp(max=self.config.max_timestep - 1))
        return self.embed_norm(torch.stack([token + time for token in self._embedded(windows)], dim=2))  # type: ignore[no-any-return]

    def read(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(x))
        return out if self.discrete_actions else torch.tanh(out)

    def _embedded(self, contexts: Contexts) -> list[Tensor]:
        """The tokens of all steps, `(b, k, d)` each."""
        states = (contexts.states - self.state_mean) / self.state_std
        made = [self.embed_rtg(contexts.returns_to_go / self.config.rtg_scale), self.embed_state(states)]
        made.append(self.embed_action(contexts.actions))
        if self.embed_reward is not None:
            made.append(self.embed_reward(contexts.rewards))
        return [*made, self.embed_reached(self.reached(contexts))]

    def reached(self, contexts: Contexts) -> Tensor:
        """d: 1 at the end of an episode that reached the return it was asked for, else 0: `(b, k, 1)`."""
        left = contexts.returns_to_go - contexts.rewards
        return contexts.ended * (left <= REACHED * self.config.rtg_scale)

    def loss(self, batch: Contexts) -> dict[str, Tensor]:
        """The error of the actions that are to be learned: fields `(..., b, k, .)` -> `(...)`."""
        made, weight = of_merged(self, batch), batch.learned[..., 0] * batch.mask
        return {"action": action_error(made, batch.actions, weight, self.discrete_actions)}

    def closed(self, windows: RewardedWindows, reward: Tensor) -> Any:
        return with_last(windows, rewards=reward, ended=torch.ones_like(reward))


def _draws(trajectories: Trajectories, config: ATConfig, device: torch.device | str) -> ContextSampler:
    """Contexts of single steps, sorted by return, of which the last episode is learned."""
    return ContextSampler(trajectories, config.context, device=device)


def _by_data(facts: Facts) -> dict[str, Any]:
    return {"context": steps_of(facts.longest), "max_timestep": facts.longest}


def _published(facts: Facts) -> dict[str, Any]:
    """Four whole episodes; the recipe is Decision Transformer's, as far as it is known."""
    sizes: dict[str, Any] = {"context": SPAN * facts.longest, "width": 128, "layers": 3, "heads": 1, "dropout": 0.1}
    scale = {"rtg_scale": 1000.0} if domain(facts.env_id) == "mujoco" and facts.longest >= 100 else {}
    return sizes | scale | RECIPE


MODEL = Model(
    name="at",
    policy=AgenticTransformer,
    config=ATConfig,
    description="Agentic Transformer: a Decision Transformer over episodes from the worst to the best",
    source="Liu & Abbeel 2023, arXiv 2305.16554; suessmann/Agentic-Transformer-Pytorch@758839c (a third party, read)",
    defaults=_by_data,
    in_context=True,
    published=_published,
    sampler=_draws,
)
