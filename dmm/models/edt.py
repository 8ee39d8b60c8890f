"""Elastic Decision Transformer: it estimates the best return that can follow, and forgets a past that lowers it.

    tokens = LN(embed(s, R, a) + timestep), of each step in this order                              (b, 3k, d)
    x = LN(x + attention(x));  x = LN(x + MLP(x))                                               in each layer
    at the state token    estimate of the largest return that follows (expectile 0.99); logits over bins of returns
    at the return token   action = tanh(head(x));  next state = linear(x, action)

A return enters as the number of its bin. **All return tokens but the window's first are hidden from every token, their
own attention included**: a return reaches the action of its own step alone, past the attention. Loss: squared errors of
action and of the next state, z-scored, 0.5 of the expectile loss of the estimate, 0.001 of the bins' cross-entropy.

Acting is a search over histories. Those of all, all but 2, all but 4, ... of the window's steps are tried:

    1. with the return asked for, less what was earned, as the first return: the bins' logits, towards high returns by
       a slope; those below their 15 % quantile are dropped, and a bin is drawn for every step
    2. with the returns that were drawn: estimate and action of the present step

and the action of the largest estimate is played. **What is asked for hardly matters**: it stands before one draw of a
return, as the first return of the first pass, and reaches the action through that draw alone; with a history of one
step it reaches nothing. An estimate depends on the first drawn return only, which in turn depends on one state. So
`act` makes the second pass for all histories and the first for the one that wins.

With `bins="released"` a drawn bin is read back as the one below it: returns are counted in n - 1 intervals and drawn
bins taken for n. `corrected` reads a bin as its middle. Returns are cut to `return_low` .. `return_high`.

It reads `TransitionWindows`, padded on either side; its authors draw trajectories, not transitions, pad on the right
and start all layers as PyTorch does. Draws when acting follow from the generator's state, which is left as it was, and
from an episode's first observation (`dmm.draws`): an episode is the same whatever is played beside it.

Source: Wu et al. 2023, arXiv 2307.02484; `kristery/Elastic-DT` at commit 8517ef6. Departures: sizes are those of the
frame (context 8, width 64, 3 layers; theirs are 20, 512, 4). Bounds of returns are theirs for MuJoCo; for mazes and the
kitchen, whose returns of 0 and 1 share a bin there, D4RL's, or further apart where the data are; elsewhere the data's.
A head for rewards and an embedding of them, which nothing uses, are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.scores import family, reference_returns
from dmm.data.windows import TransitionWindows, WindowDraws, Windows
from dmm.draws import streams, uniform
from dmm.errors import InputError, require_choice
from dmm.layers.dropout import Dropout
from dmm.models.entry import Facts, Model, Official, domain
from dmm.policy import Outcome, Policy, Target, Wanted, masked_mean, next_window, of_merged

Bins = Literal["released", "corrected"]
WEIGHTS = {"action": 1.0, "state": 1.0, "expectile": 0.5, "cross_entropy": 0.001}
"""Of the loss's terms."""
EVERY = 2
"""Steps between two histories that are tried."""
SLOPE = 10.0
"""Of the logits of returns when acting, from the lowest bin to the highest, beside `expert_weight`."""
DROPPED = 0.15
"""The quantile of the logits below which no bin is drawn."""
LONGEST = 4096
"""Entries of the table of time steps at most, as many as published."""
EDGE = 1e-3
"""Part of a bin by which a return may miss the bin's lower end, with `bins="corrected"`."""
TOGETHER = 64
"""Tokens of several histories whose attention is one call, in which most pairs are of different histories."""
SMALL = 2**19
"""Tokens times channels squared: up to here a pass over all histories costs less than one more over a single one."""


@dataclass(frozen=True, kw_only=True)
class EDTConfig:
    """An Elastic Decision Transformer; all but the sizes is its authors'."""

    state_size: int  # s
    action_size: int  # a, continuous and within [-1, 1]
    context: int = 8  # k time steps, 3k tokens
    width: int = 64  # d channels
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1  # on what attention reads, on what it adds and on what the MLP adds
    max_timestep: int = 1000  # time steps that have an embedding; later ones share the last
    rtg_scale: float = 1000.0  # returns are divided by this, for the estimate
    return_bins: int = 60
    return_low: float = 0.0  # the lowest bin begins here; lower returns are cut to it
    return_high: float = 1000.0  # the highest bin begins here; higher returns are cut to it
    bins: Bins = "released"  # how a drawn bin is read: as the one below (released), or as its middle
    expectile: float = 0.99  # of the returns that follow
    expert_weight: float = 15.0  # how much more than its logits a high return is drawn for

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "context", "width", "layers", "heads", "max_timestep")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if not 0 < self.rtg_scale < float("inf"):
            raise InputError(f"rtg_scale: got {self.rtg_scale:g}, allowed is a positive number")
        if self.return_bins < 2:
            raise InputError(f"return_bins: got {self.return_bins}, allowed is at least 2")
        if not self.return_low < self.return_high:
            raise InputError(
                f"return_high: got {self.return_high:g}, allowed is more than return_low ({self.return_low:g})"
            )
        if not 0 < self.expectile < 1:
            raise InputError(f"expectile: got {self.expectile:g}, allowed is 0 < expectile < 1")
        require_choice("bins", self.bins, Bins)

    @property
    def bounds(self) -> tuple[float, float]:
        """`return_low` and `return_high`, scaled."""
        return self.return_low / self.rtg_scale, self.return_high / self.rtg_scale


def encode_return(returns: Tensor, config: EDTConfig) -> Tensor:
    """Returns `(...)` in the environment's units to their bins `(...)`, int64 in 0 .. return_bins - 1.

    There are n - 1 intervals; the last bin holds the upper bound alone, and in the release not always that: cut to it,
    a return may come to lie a rounding error below.
    """
    low, high = config.bounds
    interval = (high - low) / (config.return_bins - 1)
    place = ((returns / config.rtg_scale).clamp(low, high) - low) / interval
    return (place + (EDGE if config.bins == "corrected" else 0.0)).floor().long()


def decode_return(bins: Tensor, config: EDTConfig) -> Tensor:
    """Drawn bins `(...)` to returns `(...)` in the environment's units, float32.

    As released, bins are taken for n intervals, and every bin but the lowest is encoded again as the one below it.
    Corrected, a bin is its middle, the last one the upper bound, and all are encoded again as themselves.
    """
    (low, high), n = config.bounds, config.return_bins
    if config.bins == "released":
        scaled = bins * ((high - low) / n) + low
    else:
        scaled = ((bins + 0.5) * ((high - low) / (n - 1)) + low).clamp(max=high)
    return scaled.float() * config.rtg_scale


def return_probabilities(logits: Tensor, config: EDTConfig) -> Tensor:
    """What a return's bin is drawn from when acting: logits `(..., return_bins)` to probabilities of that shape."""
    slope = SLOPE + config.expert_weight
    raised = logits + torch.linspace(0, slope, config.return_bins, device=logits.device, dtype=logits.dtype)
    below, part = divmod(DROPPED * (config.return_bins - 1), 1)
    ordered = raised.sort(dim=-1).values[..., int(below) : int(below) + 2]
    quantile = torch.lerp(ordered[..., :1], ordered[..., 1:], part)
    return raised.masked_fill(raised < quantile, float("-inf")).softmax(dim=-1)


class ElasticBlock(nn.Module):
    """`LN(x + attention(x))`, then `LN(x + MLP(x))` with GELU: `(b, l, d) -> (b, l, d)`.

    Its parts can be called one by one, for a few tokens that read many.
    """

    def __init__(self, config: EDTConfig):
        super().__init__()
        d, self.heads = config.width, config.heads
        self.query, self.key, self.value, self.project_out = (nn.Linear(d, d) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d), Dropout(config.dropout))
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.read_dropout, self.dropout = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """`allowed (l, l)`: True where the row's token may look at the column's."""
        return self.add(x, self.read(x, x, allowed))

    def read(self, x: Tensor, among: Tensor, allowed: Tensor) -> Tensor:
        """What tokens `(b, q, d)` read among others `(b, l, d)`; `allowed (q, l)`."""
        return self.attend(self.query(x), self.key(among), self.value(among), allowed)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        """Queries `(b, q, d)`, keys and values `(b, l, d)`, `allowed (q, l)` -> `(b, q, d)`."""
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (q, k, v))  # (b, heads, l, e)
        if torch.is_grad_enabled():
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            read = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1) @ v
        else:  # faster, and its gradients on a GPU are not the same bits each time
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return read.transpose(1, 2).flatten(-2)  # type: ignore[no-any-return]

    def glance(self, x: Tensor, among: Tensor, allowed: Tensor) -> Tensor:
        """What `read` gives, cheaper for a few tokens: without making keys and values of the others.

        With `q` a head's query and `W_k y + b_k` a key, scores are `(W_k^T q) y` but for what all keys share; and the
        weighted mean of values is the value of the weighted mean. `allowed` is `(q, l)` or `(b, 1, q, l)`.
        """
        b, count, d = x.shape
        q = self.query(x).view(b * count, self.heads, -1).transpose(0, 1)  # (heads, b q, e)
        for_key, for_value = (layer.weight.view(self.heads, -1, d) for layer in (self.key, self.value))
        q = (q * q.shape[-1] ** -0.5 @ for_key).view(self.heads, b, count, d).transpose(0, 1)  # (b, heads, q, d)
        scores = (q.flatten(1, 2) @ among.mT).view(b, self.heads, count, -1)
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        mean = (weights.flatten(1, 2) @ among).view(b, self.heads, count, d).transpose(0, 1)
        read = mean.reshape(self.heads, b * count, d) @ for_value.mT  # (heads, b q, e)
        return read.transpose(0, 1).reshape(b, count, d) + self.value.bias  # type: ignore[no-any-return]

    def add(self, x: Tensor, read: Tensor) -> Tensor:
        """What becomes of tokens whose attention read this, `(b, l, d)` each."""
        x = self.attention_norm(x + self.dropout(self.project_out(self.read_dropout(read))))
        return self.mlp_norm(x + self.mlp(x))  # type: ignore[no-any-return]


class Predictions(NamedTuple):
    """What the heads say of every step."""

    actions: Tensor
    """`(b, k, a)`."""
    next_states: Tensor
    """`(b, k, s)`, z-scored."""
    estimates: Tensor
    """`(b, k, 1)`, the largest return that follows, scaled."""
    logits: Tensor
    """`(b, k, return_bins)`, of the return that follows."""


@dataclass(frozen=True, eq=False)
class Search:
    """What acting found out for one step of n episodes, for h lengths of history."""

    lengths: Tensor  # (h,) int64, time steps of each history, the present one included, from the longest on
    estimates: Tensor  # (h, n), the largest return that follows, in the environment's units
    actions: Tensor  # (h, n, a), of the present step
    chosen: Tensor  # (n,) int64, the row of the largest estimate

    @property
    def action(self) -> Tensor:
        """The actions of the chosen histories, `(n, a)`."""
        return self.actions[self.chosen, torch.arange(len(self.chosen), device=self.chosen.device)]


@dataclass(frozen=True, eq=False)
class Memory:
    """What acting remembers of n episodes."""

    windows: Windows  # (n, k, .), padded on the left
    seeds: Tensor  # (n,) int64, on the CPU
    streams: Tensor  # (n,) int64, of random numbers, once the first observation is there; on the CPU
    alone: Tensor  # (n, k, layers + 1, d), each state as a token that sees itself alone, see `alone` of the policy

    def map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """`function` of every tensor."""
        return Memory(self.windows.map(function), *map(function, self.tensors()[-3:]))

    def tensors(self) -> list[Tensor]:
        """All, in the order of `map`."""
        return [
            *(getattr(self.windows, field.name) for field in fields(self.windows)),
            self.seeds,
            self.streams,
            self.alone,
        ]


class ElasticDecisionTransformer(Policy):
    """`config.layers` blocks of attention, and a search over histories: see the module."""

    batch = TransitionWindows
    terms = tuple(WEIGHTS)
    config: EDTConfig

    def __init__(self, config: EDTConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d, s, a = config, config.width, config.state_size, config.action_size
        self.embed_state, self.embed_rtg, self.embed_action = nn.Linear(s, d), nn.Linear(1, d), nn.Linear(a, d)
        self.embed_timestep = nn.Embedding(config.max_timestep, d)
        self.embed_norm = nn.LayerNorm(d)
        self.blocks = nn.ModuleList(ElasticBlock(config) for _ in range(config.layers))
        self.head, self.state_head = nn.Linear(d, a), nn.Linear(d + a, s)
        self.estimate_head, self.bins_head = nn.Linear(d, 1), nn.Linear(d, config.return_bins)

    def forward(self, windows: Windows) -> Tensor:
        return self.predict(windows).actions

    def predict(self, windows: Windows) -> Predictions:
        """What all heads say, of which acting needs those of one step."""
        k = windows.mask.shape[1]
        behind = torch.arange(k, device=windows.mask.device)
        first = windows.mask.int().argmax(dim=1, keepdim=True)  # (b, 1), the first real step
        rows = torch.arange(len(first), device=first.device)[:, None]
        ahead = (behind + first) % k
        windows = windows.map(lambda field: field[rows, ahead])  # padding behind the real steps, as trained
        tokens = torch.stack([*self.tokens(windows)], dim=2).flatten(1, 2)  # (b, 3k, d)
        allowed = visible(k, tokens.device)
        for block in self.blocks:
            tokens = block(tokens, allowed)
        back = (behind - first) % k
        states, returns = tokens[:, 0::3][rows, back], tokens[:, 1::3][rows, back]
        actions = torch.tanh(self.head(returns))
        next_states = self.state_head(torch.cat([returns, actions], dim=-1))
        return Predictions(actions, next_states, self.estimate_head(states), self.bins_head(states))

    def tokens(self, windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
        """Those of states, returns and actions, `(b, k, d)` each."""
        time, returns = self._time(windows.timesteps), windows.returns_to_go
        level = self._level(encode_return(returns, self.config))
        if returns.requires_grad:  # whoever asks what depends on a return is not told that a step's slope is zero
            level = level + (returns - returns.detach()) / self.config.rtg_scale
        made = self.embed_rtg(level), self.embed_action(windows.actions)
        return_tokens, actions = (self.embed_norm(token + time) for token in made)
        return self.state_tokens(windows.states, windows.timesteps, time), return_tokens, actions

    def state_tokens(self, states: Tensor, timesteps: Tensor, time: Tensor | None = None) -> Tensor:
        """Those of states `(..., s)` at these time steps `(...)`, whose embedding may be at hand: `(..., d)`."""
        made = self.embed_state((states - self.state_mean) / self.state_std)
        return self.embed_norm(made + (self._time(timesteps) if time is None else time))  # type: ignore[no-any-return]

    def drawn_tokens(self, bins: Tensor, timesteps: Tensor) -> Tensor:
        """Those of drawn returns, by their bins `(...)`, at these time steps: `(..., d)`."""
        level = self._level(_encoded_again(self.config, bins.device)[bins])
        return self.embed_norm(self.embed_rtg(level[..., None]) + self._time(timesteps))  # type: ignore[no-any-return]

    def alone(self, x: Tensor) -> Tensor:
        """Tokens that see themselves alone, as first states do, in front of each block and behind the last.

        `(..., d) -> (..., layers + 1, d)`. Of one token that is seen, attention reads the value.
        """
        found = [x]
        for block in cast("Sequence[ElasticBlock]", self.blocks):
            found.append(block.add(found[-1], block.value(found[-1])))
        return torch.stack(found, dim=-2)

    def _level(self, bins: Tensor) -> Tensor:
        half = self.config.return_bins / 2
        return bins.to(self.state_mean.dtype) / half - 1

    def _time(self, timesteps: Tensor) -> Tensor:
        return self.embed_timestep(timesteps.clamp(max=self.config.max_timestep - 1))  # type: ignore[no-any-return]

    def loss(self, batch: TransitionWindows) -> dict[str, Tensor]:
        """The four terms, weighted; each a mean over real steps."""
        found, config = of_merged(self.predict, batch), self.config
        next_states = (batch.next_states - self.state_mean) / self.state_std
        above = batch.returns_to_go / config.rtg_scale - found.estimates
        weight = torch.where(above > 0, config.expectile, 1 - config.expectile)
        bins = encode_return(batch.returns_to_go, config)
        surprise = -found.logits.log_softmax(dim=-1).gather(-1, bins)
        terms = {
            "action": (found.actions - batch.actions).square(),
            "state": (found.next_states - next_states).square(),
            "expectile": weight * above.square(),
            "cross_entropy": surprise,
        }
        return {name: WEIGHTS[name] * masked_mean(term, batch.mask) for name, term in terms.items()}

    def init_state(self, n: int, target: Target) -> Memory:
        """The memory of `n` episodes before their first observation."""
        seeds = Wanted.of(target).seeds(n)
        alone = self.state_mean.new_zeros(n, self.context, self.config.layers + 1, self.config.width)
        return Memory(_of_acting(super().init_state(n, target)), seeds, torch.zeros_like(seeds), alone)

    @torch.no_grad()
    def act(self, state: Memory, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Memory]:
        """See `Policy.act`; the search is made among the histories of each episode."""
        begun, stream = state.windows.mask[:, -1].cpu(), state.streams
        if not begun.all():
            stream = torch.where(begun, stream, streams(state.seeds, observation))
        now: Windows = next_window(state.windows, observation, reward)
        alone = state.alone.roll(-1, dims=1)
        real = now.mask.sum(dim=1).tolist()
        action = torch.empty_like(now.actions[:, -1])
        for length, rows in _alike(real):
            some = now.map(lambda field: field[rows, -length:])  # noqa: B023 (called at once)
            if first := (length - 1) % EVERY == 0:  # the present state begins a history
                token = self.state_tokens(some.states[:, -1:], some.timesteps[:, -1:])
                alone[rows, -1:] = self.alone(token)
            draws = _uniforms(stream[rows], some.timesteps[:, -1], length)
            found = Candidates(self, some, draws, alone[rows, -length:][:, ::EVERY], every=False)
            action[rows] = found.best()
            if not first:
                alone[rows, -1:] = found.along
        action = self.played(action)
        now.actions[:, -1] = action
        return action, Memory(now, state.seeds, stream, alone)

    @torch.no_grad()
    def search(self, windows: Windows, draws: Tensor | None = None) -> Search:
        """All histories that acting compares for the last step of windows, and what it would do after each.

        Args:
            windows: `(n, k, .)`, padded on the left, with the returns still asked for and the action of the last step
                not known, as `dmm.policy.next_window` makes them; each with as many real steps as the others.
            draws: `(n, h, 2)`, uniform numbers by which each history's first and present return are drawn; None takes
                the likeliest bins.

        Raises:
            InputError: windows of several lengths or without a last step, or draws of another shape.
        """
        windows, real = _of_acting(windows), set(windows.mask.sum(dim=1).tolist())
        m = max(real, default=0)
        if len(real) != 1 or not m or not bool(windows.mask[:, -m:].all()):
            raise InputError(
                f"windows: got rows of {sorted(real)} real steps, allowed are rows of as many steps each, the last of "
                "them real"
            )
        return Candidates(self, windows.map(lambda field: field[:, -m:]), draws, every=True).all()

    def select(self, state: Memory, rows: Tensor) -> Memory:
        return state.map(lambda field: field[rows])

    def next_episode(self, state: Memory, rows: Tensor, target: Target, outcome: Outcome) -> Memory:
        """These rows begin anew."""
        begun = iter(self.init_state(len(rows), target).tensors())
        return state.map(lambda field: field.index_copy(0, rows.to(field.device), next(begun)))


@dataclass(frozen=True, eq=False)
class Group:
    """Histories whose attention is one call."""

    histories: slice  # among h
    tokens: slice  # among c
    allowed: Tensor  # (tokens, histories + tokens) which of first states and others a token may look at


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the tokens of all histories of m steps lie, one history behind the other.

    A history's tokens are its first state, and behind it its first return, then action and state of each step in turn.
    The first states, which see themselves alone, stand in front of all, h of them; behind them are c others. Where the
    present state is not the first of a history, it comes last once more, alone, for later steps, which ask for it.
    """

    lengths: tuple[int, ...]  # (h,) steps of the histories
    source: Tensor  # (c,) of each token among [h first returns, action and state of each step in turn]
    ends: Tensor  # of each history's last token among c, and of the present state alone
    closing: Tensor  # (ends, h + c) which of first states and others belong to each of them
    groups: tuple[Group, ...]  # of all histories, in order


@lru_cache(maxsize=64)
def lay_out(m: int, device: torch.device) -> Layout:
    """The histories of the last m, m - 2, m - 4, ... steps."""
    lengths = tuple(range(m, 0, -EVERY))
    h, along = len(lengths), lengths[-1] > 1
    counts = torch.tensor([2 * length - 1 for length in lengths] + [1] * along)  # tokens but for the first state
    owner = torch.arange(len(counts)).repeat_interleave(counts)  # (c,)
    ends = counts.cumsum(0)
    place = torch.arange(len(owner)) - (ends - counts)[owner]  # in its history
    source = torch.where(place == 0, owner, h - 1 + 2 * EVERY * owner + place)
    source[owner == h] = h + 2 * m - 3  # the last there is
    closing = torch.arange(len(counts))[:, None] == torch.cat([torch.arange(h), owner])
    bounds, groups = ends.tolist(), []
    first = begin = 0
    for i in range(len(bounds)):
        if i + 1 == len(bounds) or bounds[i + 1] - begin > TOGETHER:
            own, states = owner[begin : bounds[i]], torch.arange(h)[first : i + 1]
            same = own[:, None] == torch.cat([states, own])
            allowed = same & torch.ones(same.shape, dtype=torch.bool).tril(diagonal=len(states))
            groups.append(Group(slice(first, i + 1), slice(begin, bounds[i]), allowed.to(device)))
            first, begin = i + 1, bounds[i]
    source, ends, closing = (each.to(device) for each in (source, ends - 1, closing))
    return Layout(lengths, source, ends, closing, tuple(groups))


class Candidates:
    """The histories of an episode's step that are compared: the last m, m - 2, m - 4, ... steps, h of them.

    Only what estimates and actions of the present step depend on is computed: of the returns, the first of a history,
    and the present one as a single token that reads all of its history.

    Args:
        policy: in whose blocks they are read.
        windows: `(n, m, .)`, without padding.
        draws: see `ElasticDecisionTransformer.search`.
        alone: `(n, h, layers + 1, d)`, the first states of the histories, see `ElasticDecisionTransformer.alone`; made
            here if not given.
        every: whether the actions after all histories are asked for, and not only after the chosen ones.
    """

    def __init__(
        self,
        policy: ElasticDecisionTransformer,
        windows: Windows,
        draws: Tensor | None,
        alone: Tensor | None = None,
        *,
        every: bool,
    ):
        n, m = windows.mask.shape
        self.policy, self.times = policy, windows.timesteps
        self.layout = lay_out(m, windows.mask.device)
        h = len(self.layout.lengths)
        if draws is not None and draws.shape != (n, h, 2):
            raise InputError(f"draws: got shape {tuple(draws.shape)}, allowed is ({n}, {h}, 2)")
        self.draws = [None, None] if draws is None else draws.unbind(dim=-1)  # for first and present returns, (n, h)
        self.blocks = cast("Sequence[ElasticBlock]", policy.blocks)
        states, self.asked, actions = policy.tokens(windows)
        self.later = torch.stack([actions[:, :-1], states[:, 1:]], dim=2).flatten(1, 2)  # (n, 2 (m - 1), d)
        alone = policy.alone(states[:, ::EVERY]) if alone is None else alone
        *self.first_states, read = alone.unbind(dim=2)  # in front of each block, and behind the last: (n, h, d)
        self.first_bins = self._drawn(read, self.draws[0])  # (n, h)
        first = policy.drawn_tokens(self.first_bins, self.times[:, ::EVERY])
        small = n * len(self.layout.source) * policy.config.width**2 <= SMALL
        seen, last = self._read([first, self.asked[:, ::EVERY]] if every or small else [first])
        self.seen = [x[:n] for x in seen]  # in front of each block, (n, h + c, d)
        self.along = torch.stack([*(x[:, -1:] for x in self.seen), last[:n, -1:]], dim=2)  # where `layout` has it
        # what present states become where the first return is the one asked for, and where it is drawn
        self.as_asked, last = last[n:, :h], last[:n, :h]
        if self.layout.lengths[-1] == 1:  # the present state is the first
            last = torch.cat([last[:, :-1], read[:, -1:]], dim=1)
        self.estimates = policy.estimate_head(last)[..., 0]  # (n, h), scaled
        self.chosen = self.estimates.argmax(dim=1)  # (n,)

    def best(self) -> Tensor:
        """The actions `(n, a)` after the chosen histories."""
        chosen = self.chosen[:, None]
        if len(self.as_asked):
            bins = self._present_bins().gather(1, chosen)
            return self._act(bins, self.layout.closing[chosen][:, None])[:, 0]
        bins = self.first_bins.gather(1, chosen)
        for place, rows in _alike(self.chosen.tolist()):
            if self.layout.lengths[place] > 1:
                wanted = None if self.draws[1] is None else self.draws[1][rows, place : place + 1]
                bins[rows] = self._drawn(self._read_as_asked(place, rows), wanted)
        return self._act(bins, self.layout.closing[chosen][:, None])[:, 0]

    def all(self) -> Search:
        """What is to be known of each."""
        actions = self._act(self._present_bins(), self.layout.closing[: len(self.layout.lengths)])
        estimates = self.estimates.mT * self.policy.config.rtg_scale
        lengths = torch.tensor(self.layout.lengths, device=actions.device)
        return Search(lengths, estimates, actions.transpose(0, 1), self.chosen)

    def _present_bins(self) -> Tensor:
        """Of the present return after all histories, `(n, h)`: that of a history of one step is its first."""
        several = sum(length > 1 for length in self.layout.lengths)
        bins = self._drawn(self.as_asked, self.draws[1])
        return torch.cat([bins[:, :several], self.first_bins[:, several:]], dim=1)

    def _read(self, firsts: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """All tokens in front of each block, `(n, h + c, d)`, and what becomes of those at its `ends`.

        `firsts` are first returns, `(n, h, d)` each; those of several are read beside each other, and come so.
        """
        there, seen, times = self.layout, [], (len(firsts), 1, 1)
        parts = torch.cat([torch.cat(firsts), self.later.repeat(times)], dim=1)
        x = parts[:, there.source]
        for place, block in enumerate(self.blocks):
            states = self.first_states[place].repeat(times)
            seen.append(torch.cat([states, x], dim=1))
            if place == len(self.blocks) - 1:
                last = x[:, there.ends]
                return seen, block.add(last, block.glance(last, seen[-1], there.closing))
            if place:
                q, k, v = block.query(x), block.key(x), block.value(x)
            else:  # where a token that several histories have is still the same in all of them
                q, k, v = (layer(parts)[:, there.source] for layer in (block.query, block.key, block.value))
            read = self._attend(block, q, k, v, block.key(states), block.value(states))
            x = block.add(x, read)
        raise AssertionError("a policy has blocks")

    def _attend(self, block: ElasticBlock, q: Tensor, k: Tensor, v: Tensor, k_first: Tensor, v_first: Tensor) -> Tensor:
        """What all tokens read of their own histories: tokens `(n, c, d)`, first states `(n, h, d)` -> `(n, c, d)`."""
        read = []
        for group in self.layout.groups:
            keys, values = (
                torch.cat([states[:, group.histories], tokens[:, group.tokens]], dim=1)
                for states, tokens in ((k_first, k), (v_first, v))
            )
            read.append(block.attend(q[:, group.tokens], keys, values, group.allowed))
        return read[0] if len(read) == 1 else torch.cat(read, dim=1)

    def _read_as_asked(self, place: int, rows: Tensor | slice) -> Tensor:
        """What the present state becomes `(rows, 1, d)` if the first return is the one asked for."""
        start, blocks = self.layout.lengths[0] - self.layout.lengths[place], self.blocks
        x = torch.cat([self.asked[rows, start : start + 1], self.later[rows, 2 * start :]], dim=1)
        allowed = torch.ones(x.shape[1], 1 + x.shape[1], dtype=torch.bool, device=x.device).tril(diagonal=1)
        for i, block in enumerate(blocks):
            among = torch.cat([self.first_states[i][rows, place : place + 1], x], dim=1)
            if i == len(blocks) - 1:
                x = x[:, -1:]
                return block.add(x, block.glance(x, among, allowed[-1:]))  # type: ignore[no-any-return]
            x = block.add(x, block.read(x, among, allowed))
        raise AssertionError("a policy has blocks")

    def _act(self, bins: Tensor, allowed: Tensor) -> Tensor:
        """Actions `(n, q, a)` of the present step, for returns `(n, q)` that read what is `allowed`, `(q, h + c)` or
        `(n, 1, q, h + c)`."""
        policy = self.policy
        x = policy.drawn_tokens(bins, self.times[:, -1:])
        for block, seen in zip(self.blocks, self.seen, strict=True):
            x = block.add(x, block.glance(x, seen, allowed))
        return torch.tanh(policy.head(x))

    def _drawn(self, states: Tensor, wanted: Tensor | None) -> Tensor:
        """Bins `(n, q)` of the returns that follow states `(n, q, d)`, by uniform numbers `(n, q)` or the likeliest."""
        likely = return_probabilities(self.policy.bins_head(states), self.policy.config)
        if wanted is None:
            return likely.argmax(dim=-1)
        below = likely.cumsum(dim=-1)
        return (below <= wanted.to(below)[..., None] * below[..., -1:]).sum(dim=-1).clamp(max=likely.shape[-1] - 1)


def visible(k: int, device: torch.device) -> Tensor:
    """Which token of a window may look at which, `(3k, 3k)`: at none ahead, and at no return but the first."""
    place = torch.arange(3 * k, device=device)
    hidden = (place % 3 == 1) & (place > 1)
    return torch.ones(3 * k, 3 * k, dtype=torch.bool, device=device).tril() & ~hidden


@lru_cache(maxsize=64)
def _encoded_again(config: EDTConfig, device: torch.device) -> Tensor:
    """The bin that each drawn one is read as, `(return_bins,)`."""
    return encode_return(decode_return(torch.arange(config.return_bins), config), config).to(device)


def _of_acting(windows: Windows) -> Windows:
    """The fields that the search reads."""
    return Windows(**{field.name: getattr(windows, field.name) for field in fields(Windows)})


def _alike(values: list[int]) -> list[tuple[int, slice | Tensor]]:
    """Each value and the rows that have it, all of them as a slice."""
    if len(different := sorted(set(values))) == 1:
        return [(values[0], slice(None))]
    every = torch.tensor(values)
    return [(value, (every == value).nonzero()[:, 0]) for value in different]


def _uniforms(stream: Tensor, step: Tensor, length: int) -> Tensor:
    """What the returns of all histories `(n, h, 2)` are drawn by at these steps `(n,)` of these streams."""
    histories = len(range(0, length, EVERY))
    return uniform(stream, step, 2 * histories).unflatten(1, (histories, 2))  # type: ignore[no-untyped-call,no-any-return]


def _by_data(facts: Facts) -> dict[str, Any]:
    """Bounds of returns, the table of time steps and the weight of high returns."""
    name = family(facts.env_id)
    bounds = facts.returns_to_go
    if name is not None:
        low, high = reference_returns(facts.env_id)
        sparse = domain(facts.env_id) != "mujoco"
        bounds = (low, max((high, *bounds))) if sparse else (low, high)
    found: dict[str, Any] = {"max_timestep": min(facts.longest, LONGEST)}
    if bounds:
        low, high = bounds
        found |= {"return_low": low, "return_high": high if high > low else low + 1.0}
    return found | {"expert_weight": 1.0 if name == "halfcheetah" else EDTConfig.expert_weight}


def _published(facts: Facts) -> dict[str, Any]:
    """The authors' sizes and recipe, of MuJoCo; they have no others, and the scale elsewhere is what returns fit."""
    sizes: dict[str, Any] = {"context": 20, "width": 512, "layers": 4, "heads": 4, "max_timestep": LONGEST}
    if domain(facts.env_id) == "mujoco":
        sizes["rtg_scale"] = 1000.0
    batch = 128 if family(facts.env_id) == "halfcheetah" else 256
    recipe = {"steps": 50_000, "batch_size": batch, "learning_rate": 1e-4, "warmup": 0.2}
    return sizes | recipe | {"weight_decay": 1e-4, "decay": "all", "clip": 0.25}


def _official_config(sizes: Mapping[str, Any]) -> EDTConfig:
    scale = sizes.get("rtg_scale", 1000.0)
    names = {"state_size": "state_size", "action_size": "action_size", "context": "context", "width": "width"}
    names |= {"layers": "blocks", "heads": "heads", "max_timestep": "max_timestep", "return_bins": "bins"}
    bounds = {"return_low": sizes["return_min"] * scale, "return_high": sizes["return_max"] * scale}
    return EDTConfig(**{ours: sizes[theirs] for ours, theirs in names.items()}, rtg_scale=scale, **bounds)


BLOCK = {"query": "attention.q_net", "key": "attention.k_net", "value": "attention.v_net", "mlp.0": "mlp.0"}
BLOCK |= {"project_out": "attention.proj_net", "mlp.2": "mlp.2", "attention_norm": "ln1", "mlp_norm": "ln2"}


def _sources(policy: ElasticDecisionTransformer) -> dict[str, str]:
    layers = {name: name for name in ("embed_state", "embed_rtg", "embed_action")}
    layers |= {"embed_norm": "embed_ln", "head": "predict_action.0", "state_head": "predict_state"}
    layers |= {"estimate_head": "predict_rtg2", "bins_head": "predict_rtg"}
    for i in range(policy.config.layers):
        layers |= {f"blocks.{i}.{own}": f"transformer.{i}.{other}" for own, other in BLOCK.items()}
    parts = ("weight", "bias")
    found = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in parts}
    return found | {"embed_timestep.weight": "embed_timestep.weight"}


def _unused(key: str) -> bool:
    """The head and the embedding of rewards, which nothing trains or reads, and the causal masks."""
    return key.startswith(("predict_reward.", "embed_reward.")) or key.endswith(".attention.mask")


MODEL = Model(
    name="edt",
    policy=ElasticDecisionTransformer,
    config=EDTConfig,
    description="Elastic Decision Transformer, which searches for the length of history to act on",
    source="Wu et al. 2023, arXiv 2307.02484; kristery/Elastic-DT@8517ef6",
    defaults=_by_data,
    published=_published,
    sampler=WindowDraws(batch=TransitionWindows, by="trajectory", pad="right"),
    official=Official(config=_official_config, sources=_sources, unused=_unused),
)
