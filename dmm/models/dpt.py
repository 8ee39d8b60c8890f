"""Decision-Pretrained Transformer: the best action in a state, from a set of transitions of the same task.

    tokens = W (s, a, s', r) of a transition;  the first token is the query: (s, 0, 0, 0)
    GPT-2 with learned positions;  logits of the query state's action at the query and behind every transition
    loss = cross-entropy, or squared error, behind each of the H transitions, **summed** over them and over the batch

It reads `Queries`: no windows, but a state that is asked about, the action that is best there, and H transitions of the
task, which are drawn anew each time and in no order. `forward` gives `(b, H, a)`, behind 1, ..., H transitions.

The source's labels are optimal actions. Here they are those of the task's best episodes: the query is a step of the
best `share` of its task's episodes by return, and what was done there is the label. (So the source does where no
optimal policy is known, with a trained one.)

Acting, the set is that of the task's last H transitions in episodes that are over, none at first; within an episode it
stays as it is. Discrete actions are drawn from the logits (`acts="drawn"`, by `dmm.draws`), which is how it explores,
or are the likeliest.

Source: Lee et al. 2023, arXiv 2306.14892; `net.py` of jon--lee/decision-pretrained-transformer at commit 15172df, which
has one head whatever is asked for. Departures: sizes are those of the frame; states are z-scored; continuous actions,
which it has not, are squashed by tanh; of whole episodes that do not fit the set, the end is kept. GPT-2's unused table
of words is not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Batch, whole_share
from dmm.draws import category, streams
from dmm.errors import InputError, require_choice, whole_number
from dmm.layers.transformer import GPTLayer
from dmm.models.across import steps_of
from dmm.models.conservative_q import with_next_states
from dmm.models.entry import Facts, Model, Official, Source, gpt_sources
from dmm.policy import Outcome, Policy, Target, Wanted, of_merged

Acts = Literal["drawn", "likeliest"]


@dataclass(frozen=True, kw_only=True)
class DPTConfig:
    """A Decision-Pretrained Transformer."""

    state_size: int  # s
    action_size: int  # a
    context: int = 100  # H transitions
    width: int = 64  # d channels
    layers: int = 3
    heads: int = 1
    dropout: float = 0.0  # of GPT-2's layers
    positions: int = 0  # that have a vector, at least H + 1; 0: as many
    share: float = 0.2  # of a task's episodes whose steps are asked about, the best ones
    acts: Acts = "drawn"  # from the logits, or the likeliest action

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "context", "width", "layers", "heads")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if self.positions and self.positions <= self.context:
            raise InputError(f"positions: got {self.positions}, allowed is more than context {self.context}, or 0")
        if not 0 < self.share <= 1:
            raise InputError(f"share: got {self.share:g}, allowed is above 0 and at most 1")
        require_choice("acts", self.acts, Acts)


@dataclass(frozen=True, eq=False)
class Queries(Batch):
    """b states that are asked about, raw, and H transitions of the task of each."""

    queries: Tensor  # (b, s)
    best: Tensor  # (b, a), the action to be learned there
    states: Tensor  # (b, H, s)
    actions: Tensor  # (b, H, a)
    rewards: Tensor  # (b, H, 1)
    next_states: Tensor  # (b, H, s)


class QuerySampler:
    """Draws queries and the transitions of their tasks, both in proportion to steps; `histories` says what is a task.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        config: `H` and the share of best episodes.
        device: where the data lie and queries are put together.
    """

    def __init__(self, trajectories: Trajectories, config: DPTConfig, device: torch.device | str):
        t = with_next_states(trajectories)
        tasks = np.zeros(t.episodes, dtype=np.int64) if t.histories is None else t.histories
        order, ranked = np.argsort(tasks, kind="stable"), np.lexsort((-t.returns(), tasks))
        best = []
        for task in np.unique(tasks):
            some = ranked[tasks[ranked] == task]
            best.append(some[: max(1, int(config.share * len(some) + 1e-9))])
        self._rows, self._begins, self._ends = _rows_of(t, [order[tasks[order] == task] for task in np.unique(tasks)])
        self._best, self._first, self._until = _rows_of(t, best)
        task = np.searchsorted(np.unique(tasks), tasks)
        self._task = torch.from_numpy(np.repeat(task, t.lengths))[self._rows]  # of each row
        self.context = config.context
        columns = (t.observations, t.actions, t.rewards[:, None], t.next_observations())
        self._sizes = [column.shape[1] for column in columns]
        self._table = torch.from_numpy(np.concatenate(columns, axis=1)).to(device)

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """The rows of queries and, behind each, of its transitions: `(batches, b, 1 + H)`."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        share = torch.rand((*shape, 2 + self.context), generator=generator, dtype=torch.float64)
        task = self._task[whole_share(share[..., 0], torch.tensor(len(self._rows)))]
        first, until = self._first[task], self._until[task]
        query = self._best[first + whole_share(share[..., 1], until - first)]
        begin, end = self._begins[task][..., None], self._ends[task][..., None]
        others = self._rows[begin + whole_share(share[..., 2:], end - begin)]
        return torch.cat([query[..., None], others], dim=-1)

    def gather(self, index: Tensor) -> Queries:
        """The batch of rows `(..., b, 1 + H)`; nothing here waits for the device."""
        rows = self._table[index.to(self._table.device, non_blocking=True)]
        states, actions, rewards, next_states = torch.split(rows, self._sizes, dim=-1)
        known = (states[..., 0, :], actions[..., 0, :])
        return Queries(*known, *(part[..., 1:, :] for part in (states, actions, rewards, next_states)))


def _rows_of(t: Trajectories, episodes: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of some episodes of each task, task after task, and where each task begins and ends among them."""
    parts = [np.concatenate([np.arange(t.starts[e], t.starts[e] + t.lengths[e]) for e in some]) for some in episodes]
    ends = np.cumsum([len(part) for part in parts])
    begins = ends - [len(part) for part in parts]
    return torch.from_numpy(np.concatenate(parts)), torch.from_numpy(begins), torch.from_numpy(ends)


@dataclass(frozen=True, eq=False)
class Transitions(Batch):
    """The last H transitions, raw, padded on the left."""

    states: Tensor  # (n, H, s)
    actions: Tensor  # (n, H, a)
    rewards: Tensor  # (n, H, 1)
    next_states: Tensor  # (n, H, s)
    real: Tensor  # (n, H, 1) bool

    def with_more(self, more: Transitions) -> Transitions:
        """These and then the others, the last H of all."""
        h = self.real.shape[1]
        count = more.real.sum(dim=1)  # (n, 1)
        place = torch.arange(h, device=count.device)
        old = place >= h - count  # where the others stand
        before = (place + count).clamp(max=h - 1)
        rows = torch.arange(len(count), device=count.device)[:, None]
        others = iter([getattr(more, field.name) for field in dataclasses.fields(more)])
        return self.map(lambda one: torch.where(old[..., None], next(others), one[rows, before]))


@dataclass(frozen=True, eq=False)
class Memory:
    """What acting remembers of n tasks."""

    known: Transitions  # of the episodes that are over
    present: Transitions  # of this one, but for its last step
    state: Tensor  # (n, s), of the last step
    action: Tensor  # (n, a)
    clock: Tensor  # (n,) int64, steps of the present episode
    stream: Tensor  # (n,) int64, of random numbers, on the CPU

    def map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """`function` of every tensor, in the order of `tensors`."""
        own = [function(getattr(self, name)) for name in ("state", "action", "clock", "stream")]
        return Memory(self.known.map(function), self.present.map(function), *own)

    def tensors(self) -> list[Tensor]:
        """All of them."""
        own = [self.state, self.action, self.clock, self.stream]
        both = [getattr(part, f.name) for part in (self.known, self.present) for f in dataclasses.fields(part)]
        return [*own, *both]


class DecisionPretrainedTransformer(Policy):
    """`Queries -> actions (b, H, a)`, or logits of discrete ones; see the module."""

    batch = Queries

    def __init__(self, config: DPTConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config, d, s, a = config, config.width, config.state_size, config.action_size
        self.embed = nn.Linear(2 * s + a + 1, d)
        self.positions = nn.Embedding(config.positions or config.context + 1, d)
        nn.init.normal_(self.positions.weight, std=0.02)
        how: Any = {"nonlinearity": "gelu-tanh"}
        self.blocks = nn.ModuleList(GPTLayer(d, config.heads, config.dropout, **how) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, a)

    def forward(self, batch: Queries) -> Tensor:
        """Behind 1, ..., H transitions: `(b, H, a)`."""
        return self.read(batch.queries, batch)[:, 1:]

    def read(self, queries: Tensor, known: Queries | Transitions) -> Tensor:
        """Behind none, 1, ..., H transitions: states `(b, s)` and what is known `(b, H, .)` -> `(b, 1 + H, a)`."""
        states, following = self._z(known.states), self._z(known.next_states)
        transitions = torch.cat([states, known.actions, following, known.rewards], dim=-1)
        query = transitions.new_zeros(len(queries), 1, transitions.shape[-1])
        query[:, 0, : self.state_size] = self._z(queries)
        x = self.embed(torch.cat([query, transitions], dim=1))  # (b, 1 + H, d)
        x = x + self.positions(torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out if self.discrete_actions else torch.tanh(out)

    def loss(self, batch: Queries) -> dict[str, Tensor]:
        """Fields `(..., b, H, .)` -> `(...)`; a sum, as in the source."""
        made, wanted = of_merged(self, batch), batch.best[..., None, :]
        if self.discrete_actions:
            error = -(made.log_softmax(dim=-1) * wanted).sum(dim=-1)
        else:
            error = (made - wanted).square().mean(dim=-1)
        return {"action": error.sum(dim=(-2, -1))}

    def _z(self, states: Tensor) -> Tensor:
        return (states - self.state_mean) / self.state_std

    def init_state(self, n: int, target: Target) -> Memory:
        """The memory of `n` tasks of which nothing is known; no return is asked for."""
        zeros, h = self.state_mean.new_zeros, self.context
        s, a = self.state_size, self.action_size
        none = Transitions(zeros(n, h, s), zeros(n, h, a), zeros(n, h, 1), zeros(n, h, s), zeros(n, h, 1).bool())
        clock = torch.zeros(n, dtype=torch.int64, device=self.state_mean.device)
        stream = Wanted.of(target).seeds(n)
        return Memory(none, none, zeros(n, self.state_size), zeros(n, self.action_size), clock, stream)

    @torch.no_grad()
    def act(self, state: Memory, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Memory]:
        """One time step, as in `Policy.act`; of an episode's first step the reward is passed over."""
        seen = observation.to(self.state_mean)
        given = torch.zeros_like(state.state[:, 0]) if reward is None else reward.to(self.state_mean)
        present = state.present.with_more(self._step(state, given, seen, state.clock > 0))
        stream = streams(state.stream, torch.cat([seen, given[:, None]], dim=1))
        known = _behind(state.known)
        count = state.known.real.sum(dim=(1, 2))  # (n,)
        most = int(count.max())
        made = self.read(seen, known.map(lambda field: field[:, :most]))
        out = made[torch.arange(len(count), device=count.device), count]
        action = self._chosen(out, stream, state.clock)
        return action, Memory(state.known, present, seen, action, state.clock + 1, stream)

    def _chosen(self, out: Tensor, stream: Tensor, clock: Tensor) -> Tensor:
        if not self.discrete_actions or self.config.acts == "likeliest":
            return self.played(out)
        return category(out, stream, clock)

    def _step(self, state: Memory, reward: Tensor, behind: Tensor, there: Tensor) -> Transitions:
        """The last step of each task as a transition in the last place, where there is one, `(n,)`."""
        last = iter((state.state, state.action, reward[:, None], behind, there[:, None]))

        def in_last_place(field: Tensor) -> Tensor:
            made = torch.zeros_like(field)
            made[:, -1] = next(last)
            return made

        return state.known.map(in_last_place)

    def select(self, state: Memory, rows: Tensor) -> Memory:
        return state.map(lambda field: field[rows])

    def next_episode(self, state: Memory, rows: Tensor, target: Target, outcome: Outcome) -> Memory:
        """The transitions of the episode that is over are known from now on.

        Where the observation behind its last step is not (`Outcome.observation`), that step's own state stands for it.
        """
        over = self.select(state, rows)
        behind = over.state if outcome.observation is None else outcome.observation.to(over.state)
        last = self._step(over, outcome.reward.to(over.state), behind, over.clock > 0)
        known = over.known.with_more(over.present.with_more(last))
        begun = dataclasses.replace(self.init_state(len(rows), target), known=known, stream=over.stream)
        new = iter(begun.tensors())
        return state.map(lambda field: field.index_copy(0, rows.to(field.device), next(new)))


def _behind(known: Transitions) -> Transitions:
    """The same with the padding behind."""
    h = known.real.shape[1]
    short = h - known.real.sum(dim=1)  # (n, 1)
    place = (torch.arange(h, device=short.device) + short) % h
    rows = torch.arange(len(short), device=short.device)[:, None]
    return known.map(lambda field: field[rows, place])


def _by_data(facts: Facts) -> dict[str, Any]:
    return {"context": steps_of(facts.longest)}


def _recipe(facts: Facts) -> dict[str, Any]:
    """A loss that is a sum has gradients of no usual size to clip to."""
    return {"clip": 0.0}


def _published(facts: Facts) -> dict[str, Any]:
    """The authors' sizes and recipe for their dark room: 200 epochs of 100,000 contexts."""
    sizes: dict[str, Any] = {"context": 100, "width": 32, "layers": 4, "heads": 1, "dropout": 0.0}
    recipe = {"steps": 312_500, "batch_size": 64, "learning_rate": 1e-3, "warmup": 0.0}
    return sizes | recipe | {"weight_decay": 1e-4, "decay": "all", "clip": 0.0}


def _official_config(sizes: Mapping[str, Any]) -> DPTConfig:
    names = {"state_size": "state_size", "action_size": "action_size", "width": "width", "layers": "layers"}
    names |= {"heads": "heads", "context": "horizon", "positions": "positions"}
    return DPTConfig(**{ours: sizes[theirs] for ours, theirs in names.items()})


def _sources(policy: DecisionPretrainedTransformer) -> dict[str, Source]:
    layers = {"embed": "embed_transition", "norm": "transformer.ln_f", "head": "pred_actions"}
    found: dict[str, Source] = {
        f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")
    }
    found["positions.weight"] = "transformer.wpe.weight"
    return found | gpt_sources(policy.config.layers, "blocks.", "transformer.h.")


def _unused(key: str) -> bool:
    """GPT-2's words, and the causal masks."""
    return key.startswith("transformer.wte.") or key.endswith((".attn.bias", ".attn.masked_bias"))


MODEL = Model(
    name="dpt",
    policy=DecisionPretrainedTransformer,
    config=DPTConfig,
    description="Decision-Pretrained Transformer: the best action in a state, from transitions of the same task",
    source="Lee et al. 2023, arXiv 2306.14892; jon--lee/decision-pretrained-transformer@15172df",
    defaults=_by_data,
    in_context=True,
    published=_published,
    recipe=_recipe,
    sampler=QuerySampler,
    official=Official(config=_official_config, sources=_sources, unused=_unused, discrete=True),
)
