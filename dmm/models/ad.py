"""Algorithm Distillation: the next action of a learner, from the history of its learning; with Mamba, too.

    tokens = W (embed(s, a, r) + position),  of each step in this order, from e to d channels        (b, 3k, d)
    x = x + attention(LN(x));  x = x + MLP(LN(x)) with GELU      in each layer; in `ad-mamba`  x = x + Mamba(LN(x))
    action = W x at the s token:  logits of discrete actions, or tanh
    loss = cross-entropy, or squared error, of every step's action

No return-to-go, no ends of episodes, no time steps, and no norm behind the last layer: the order of steps is all that
it has. Windows are k steps of one history, across the ends of its episodes, and never of two tasks (where the source
lets some straddle two). Positions are sines and cosines of the token's place in the window; with Mamba there are none.

Acting, discrete actions are drawn by softmax(logits / temperature) (`dmm.draws`): 1 as in the paper, 0 for the
likeliest action, as in ad-eps. Neither does well here. What is imitated are a learner's random actions too; a policy
that draws as many of them stays a beginner, one that draws none tries nothing new, and half way between it explores and
keeps what it found. Memory is never reset within a task
(`next_episode`). The transformer reads the last k steps anew each time, fewer at first, or goes on from their keys and
values until these are k (`cached`, see `dmm.acting`); Mamba goes on as a recurrence over everything since the task
began, in constant time.

It reads `RewardedWindows`, padded behind. States and actions are vectors here, z-scored and one-hot, each under one
linear layer; the source's tables of states and actions are that layer, without its bias, for one-hot states, and
`from_official` takes them so: `states (b, k, states)`, `actions (b, k, actions)`.

Source: Laskin et al. 2022, arXiv 2210.14215, which has no official code; `dark_room/ad_darkroom.py` of
corl-team/ad-eps at commit 8db090a (arXiv 2312.12275, a third party). Departures: sizes are those of the frame, with one
dropout unless told otherwise; continuous actions, which it has not, are squashed by tanh. `ad-mamba` is the paper's
"AD (Mamba)" (arXiv 2406.00079, table 1), of which there is no code either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.contexts import as_histories
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Batch, RewardedWindows, WindowDraws, WindowSampler
from dmm.draws import category, streams
from dmm.errors import InputError, require_choice
from dmm.layers.dropout import Dropout
from dmm.layers.initial import init_linear
from dmm.layers.mamba import MambaState, StepInit
from dmm.layers.transformer import GPTLayer
from dmm.models.across import AcrossEpisodes, steps_of
from dmm.models.entry import Facts, Model, Official, Source
from dmm.models.mamba import MambaLayer
from dmm.policy import Outcome, Policy, Target, Wanted, action_error, of_merged


@dataclass(frozen=True, kw_only=True)
class ADConfig:
    """Algorithm Distillation."""

    state_size: int  # s
    action_size: int  # a
    context: int = 80  # k time steps, 3k tokens
    width: int = 64  # d channels
    layers: int = 3
    embedding: int = 64  # e channels in which positions are added
    embed_dropout: float = 0.1  # on the tokens
    dropout: float = 0.1  # on what each half of a layer adds
    temperature: float = 0.4  # of the softmax that discrete actions are drawn by; 0: the likeliest

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "context", "width", "layers", "embedding")
        for name in ("dropout", "embed_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name):g}, allowed is 0 <= {name} < 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: got {self.temperature:g}, allowed is 0 (the likeliest action) or more")


@dataclass(frozen=True, kw_only=True)
class ADTransformerConfig(ADConfig):
    """With attention."""

    heads: int = 4
    attention_dropout: float = 0.1  # on attention weights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "heads")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")
        if not 0 <= self.attention_dropout < 1:
            raise InputError(
                f"attention_dropout: got {self.attention_dropout:g}, allowed is 0 <= attention_dropout < 1"
            )


@dataclass(frozen=True, kw_only=True)
class ADMambaConfig(ADConfig):
    """With Mamba, of the defaults of `mamba_ssm.Mamba`."""

    expand: int = 2  # inner channels per channel
    ssm_state: int = 16  # n
    conv_width: int = 4  # taps of the depth-wise convolution
    step_init: StepInit = "mamba"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "expand", "ssm_state", "conv_width")
        require_choice("step_init", self.step_init, StepInit)


def sinusoids(places: int, e: int) -> Tensor:
    """Sines of the places in the first half of the channels' pairs, cosines in the other: `(places, e)`."""
    rate = torch.exp(-math.log(10_000.0) / e * torch.arange(0, e, 2, dtype=torch.float32))
    angle = torch.arange(places, dtype=torch.float32)[:, None] * rate
    made = torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
    return made[:, :e]


class Distilled(Policy):
    """What both have in common: embeddings, head and loss. `RewardedWindows (b, k, ...) -> actions (b, k, a)`."""

    batch: ClassVar[type[Batch]] = RewardedWindows

    def __init__(self, config: ADConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, e, d = config, config.embedding, config.width
        self.embed_state, self.embed_action = nn.Linear(config.state_size, e), nn.Linear(config.action_size, e)
        self.embed_reward, self.widen = nn.Linear(1, e), nn.Linear(e, d)
        self.dropout, self.head = Dropout(config.embed_dropout), nn.Linear(d, config.action_size)
        for layer in (self.embed_state, self.embed_action, self.embed_reward, self.widen, self.head):
            init_linear(layer)
        self.blocks = nn.ModuleList(self.make_block() for _ in range(config.layers))

    def make_block(self) -> nn.Module:
        """One layer: `(b, l, d) -> (b, l, d)`, causal."""
        raise NotImplementedError

    def embed(self, states: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """Tokens of steps, raw, before positions: `(b, k, .) -> (b, 3k, e)`."""
        z = (states - self.state_mean) / self.state_std
        made = self.embed_state(z), self.embed_action(actions), self.embed_reward(rewards)
        return torch.stack(made, dim=2).flatten(1, 2)

    def placed(self, tokens: Tensor, first: Tensor | None) -> Tensor:
        """Tokens `(b, l, e)` with their places, from step `first (b,)` on."""
        return tokens

    def tokens(self, windows: RewardedWindows, first: Tensor | None = None) -> Tensor:
        """What the layers read of steps, s, a, r of each: `(b, k, 3, d)`; `first (b,)` is the number of the first."""
        x = self.placed(self.embed(windows.states, windows.actions, windows.rewards), first)
        return self.dropout(self.widen(x)).unflatten(1, (-1, 3))  # type: ignore[no-any-return]

    def forward(self, windows: RewardedWindows) -> Tensor:
        """The actions, or logits of discrete ones; padding must be behind the steps."""
        x = self.tokens(windows).flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.read(x[:, 0::3])

    def read(self, x: Tensor) -> Tensor:
        """State tokens behind the last layer, `(..., d) -> (..., a)`."""
        out: Tensor = self.head(x)
        return out if self.discrete_actions else torch.tanh(out)

    def chosen(self, out: Tensor, stream: Tensor, clock: Tensor) -> Tensor:
        """What is played, `(n, a)`, by what `read` gave."""
        if self.discrete_actions and self.config.temperature:
            return category(out / self.config.temperature, stream, clock)
        return self.played(out)

    def loss(self, batch: RewardedWindows) -> dict[str, Tensor]:
        """The error of every real step's action: fields `(..., b, k, .)` -> `(...)`."""
        made = of_merged(self, batch)
        return {"action": action_error(made, batch.actions, batch.mask, self.discrete_actions)}


class AlgorithmDistillation(Distilled, AcrossEpisodes):
    """With attention over a window."""

    config: ADTransformerConfig
    places: Tensor
    state_token = 0

    def __init__(self, config: ADTransformerConfig):
        super().__init__(config)
        self.register_buffer("places", sinusoids(3 * config.context, config.embedding), persistent=False)

    def make_block(self) -> nn.Module:
        c = self.config
        how: Any = {"attention_dropout": c.attention_dropout, "nonlinearity": "gelu"}
        return GPTLayer(c.width, c.heads, c.dropout, **how)

    def placed(self, tokens: Tensor, first: Tensor | None) -> Tensor:
        if tokens.shape[1] > len(self.places):
            raise InputError(f"windows: got {tokens.shape[1] // 3} steps, allowed are at most {self.context}")
        if first is None:
            return tokens + self.places[: tokens.shape[1]]
        places = 3 * first[:, None] + torch.arange(tokens.shape[1], device=first.device)
        return tokens + self.places[places.clamp(min=0)]  # nothing is before a first step


@dataclass(frozen=True, eq=False)
class Stream:
    """What the recurrence remembers of n tasks."""

    action: Tensor  # (n, a), of the step before
    reward: Tensor  # (n, 1), of that step, once its episode is over
    steps: Tensor  # (n,) int64, of all episodes
    clock: Tensor  # (n,) int64, of the present one
    stream: Tensor  # (n,) int64, of random numbers, on the CPU
    blocks: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> Stream:
        """`function` of every tensor."""
        own = (self.action, self.reward, self.steps, self.clock, self.stream)
        action, reward, steps, clock, stream = map(function, own)
        return Stream(action, reward, steps, clock, stream, tuple(map(function, self.blocks)))


class AlgorithmDistillationMamba(Distilled):
    """With Mamba over everything since the task began."""

    config: ADMambaConfig
    recurrent = True

    def make_block(self) -> nn.Module:
        return MambaLayer(self.config)  # type: ignore[arg-type]  # which reads the fields that this config has

    def init_state(self, n: int, target: Target) -> Stream:
        """The memory of `n` tasks before their first observation; no return is asked for."""
        zeros = self.state_mean.new_zeros
        count = torch.zeros(n, dtype=torch.int64, device=self.state_mean.device)
        blocks = tuple(part for block in self._layers() for part in block.init_state(n))
        return Stream(zeros(n, self.action_size), zeros(n, 1), count, count, Wanted.of(target).seeds(n), blocks)

    @torch.no_grad()
    def act(self, state: Stream, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Stream]:
        """One time step, as in `Policy.act`; of an episode's first step the reward is passed over."""
        given = torch.zeros_like(state.reward) if reward is None else reward[:, None].to(state.reward)
        earned = torch.where((state.clock > 0)[:, None], given, state.reward)
        seen = observation.to(state.reward)
        tokens = self.embed(seen[:, None], state.action[:, None], earned[:, None])  # those of s, a, r
        x = self.dropout(self.widen(tokens.roll(-1, dims=1)))  # a and r of the step before, then s
        present = None
        if not state.steps.all():  # nothing is before a first step
            present = x.new_ones(x.shape[:2])
            present[:, :2] = (state.steps > 0).to(x.dtype)[:, None]
        after: list[Tensor] = []
        for place, block in enumerate(self._layers()):
            x, layer = block.extend(x, MambaState(*state.blocks[2 * place : 2 * place + 2]), present)
            after += layer
        stream = streams(state.stream, torch.cat([seen, given], dim=1))
        action = self.chosen(self.read(x[:, -1]), stream, state.clock)
        return action, Stream(action, torch.zeros_like(earned), state.steps + 1, state.clock + 1, stream, tuple(after))

    def select(self, state: Stream, rows: Tensor) -> Stream:
        return state.map(lambda field: field[rows])

    def next_episode(self, state: Stream, rows: Tensor, target: Target, outcome: Outcome) -> Stream:
        """The recurrence goes on, with the last reward of the episode that is over."""
        reward = state.reward.index_copy(0, rows, outcome.reward[:, None].to(state.reward))
        return dataclasses.replace(state, reward=reward, clock=state.clock.index_fill(0, rows, 0))

    def _layers(self) -> Sequence[MambaLayer]:
        return cast("Sequence[MambaLayer]", self.blocks)


def history_windows(trajectories: Trajectories, config: ADConfig, device: torch.device | str) -> WindowSampler:
    """Windows of learning histories: full ones where a history is as long as that, each history as likely."""
    draws = WindowDraws(batch=RewardedWindows, by="trajectory", pad="right")
    return draws(as_histories(trajectories), config, device)


def by_data(facts: Facts) -> dict[str, Any]:
    """Steps of a window, by the longest episode."""
    return {"context": steps_of(facts.longest)}


def _published(facts: Facts) -> dict[str, Any]:
    """The sizes and recipe of ad-eps for its dark room; its learning rate falls along a cosine, here it stays."""
    sizes: dict[str, Any] = {"width": 512, "layers": 4, "heads": 4, "embedding": 64, "dropout": 0.1}
    sizes |= {"attention_dropout": 0.5, "embed_dropout": 0.3}
    recipe = {"steps": 300_000, "batch_size": 512, "learning_rate": 3e-4, "warmup": 0.05, "beta2": 0.99, "clip": 1.0}
    return sizes | recipe | {"weight_decay": 0.0, "temperature": 0.0}


def _official_config(sizes: Mapping[str, Any]) -> ADTransformerConfig:
    names = {"state_size": "states", "action_size": "actions", "context": "context", "embedding": "embedding"}
    names |= {"width": "width", "layers": "layers", "heads": "heads"}
    return ADTransformerConfig(**{ours: sizes[theirs] for ours, theirs in names.items()}, temperature=0.0)


def _table(table: Tensor) -> Tensor:
    return table.mT


def _no_bias(table: Tensor) -> Tensor:
    """Zeros `(e,)` for a table `(entries, e)`."""
    return torch.zeros_like(table[0])


BLOCK = {"attention_norm": "norm1", "mlp_norm": "norm2", "mlp.0": "mlp.0", "mlp.2": "mlp.2"}
BLOCK |= {"attention.project_out": "attention.out_proj"}


def _sources(policy: AlgorithmDistillation) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for name in ("state", "action"):
        found[f"embed_{name}.weight"] = (f"{name}_emb.weight", _table)
        found[f"embed_{name}.bias"] = (f"{name}_emb.weight", _no_bias)
    names = {"embed_reward": "reward_emb", "widen": "emb2hid", "head": "action_head"}
    for i in range(policy.config.layers):
        names |= {f"blocks.{i}.{ours}": f"blocks.{i}.{theirs}" for ours, theirs in BLOCK.items()}
        for part in ("weight", "bias"):
            found[f"blocks.{i}.attention.project_in.{part}"] = f"blocks.{i}.attention.in_proj_{part}"
    return found | {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in names.items() for part in ("weight", "bias")
    }


def _unused(key: str) -> bool:
    """The table of sinusoids, and causal masks."""
    return key.startswith("pos_emb.") or key.endswith(".causal_mask")


MODEL = Model(
    name="ad",
    policy=AlgorithmDistillation,
    config=ADTransformerConfig,
    description="Algorithm Distillation: a transformer that goes on with a learner's history",
    source="Laskin et al. 2022, arXiv 2210.14215; corl-team/ad-eps@8db090a (a third party)",
    defaults=by_data,
    in_context=True,
    published=_published,
    sampler=history_windows,
    official=Official(config=_official_config, sources=_sources, unused=_unused, discrete=True),
)
MAMBA_MODEL = Model(
    name="ad-mamba",
    policy=AlgorithmDistillationMamba,
    config=ADMambaConfig,
    description="the same with Mamba, a recurrence over all episodes",
    source="Huang et al. 2024, arXiv 2406.00079, table 1 (no code); Mamba blocks in the frame of ad",
    defaults=by_data,
    in_context=True,
    sampler=history_windows,
)
