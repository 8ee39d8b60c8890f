"""The worker of a hierarchy: a small GPT over the c steps of a group, towards the plan of each; and how it acts.

Acting, `SlidingWorker` reads the last c steps of the episode anew at each step, all with the present group's plan, as
released. `GroupWorker` reads those of the present group, whose tokens do not change once they are there: it goes on
from their keys and values, and its actions are those of `forward`.

Axes: `m` groups or `n` tasks, `c` steps of a group, `s` state size, `a` action size, `z` plan size, `d` channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.layers.cache import bias_of, empty_cache, places_of, through
from dmm.layers.frozen import Freezable
from dmm.layers.transformer import GPTLayer, Places, seen_before

if TYPE_CHECKING:
    from dmm.models.hierarchy import HierarchyConfig

LATE = 2
"""Tokens of a step that are known only at the next one: action and reward."""


class Seen(NamedTuple):
    """What a step begins with."""

    plan: Tensor
    """`(n, w, z)`, of the `w` steps that a worker keeps, this one the last."""
    state: Tensor
    """`(n, s)`, z-scored."""
    earned: Tensor
    """`(n, 1)`, by the step before, if it was of the present episode."""
    clock: Tensor
    """`(n,)` int64, steps of the episode before this one."""


class Window(NamedTuple):
    """The last `w = c` steps of the present episode."""

    states: Tensor
    """`(n, c, s)`, z-scored."""
    actions: Tensor
    """`(n, c, a)`."""
    rewards: Tensor
    """`(n, c, 1)`."""
    timesteps: Tensor
    """`(n, c)` int64."""
    mask: Tensor
    """`(n, c)` bool."""


class Remembered(NamedTuple):
    """The last step, `w = 1`, and keys and values of the present group before its action."""

    actions: Tensor
    """`(n, 1, a)`."""
    cache: Tensor
    """`(n, layers, 2, heads, 4c, d / heads)`."""


class Worker(nn.Module):
    """Actions of c steps towards a plan: `(m, c, .) -> (m, c, a)`, before tanh or softmax."""

    steps: int
    """`w`, that are kept while acting."""

    def __init__(self, config: HierarchyConfig):
        super().__init__()
        d, s, a, z = config.width, config.state_size, config.action_size, config.z
        self.config = config
        self.embed_plan, self.embed_state = nn.Linear(z, d), nn.Linear(s, d)
        self.embed_action, self.embed_reward = nn.Linear(a, d), nn.Linear(1, d)
        self.embed_timestep = nn.Embedding(config.max_timestep, d)
        self.embed_norm = nn.LayerNorm(d)
        self.goal_to_plan = nn.Linear(s, z).requires_grad_(False)
        self.blocks = nn.ModuleList(GPTLayer(d, config.heads, config.dropout) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, a)

    def forward(
        self, plan: Tensor, states: Tensor, actions: Tensor, rewards: Tensor, timesteps: Tensor, real: Tensor
    ) -> Tensor:
        """`plan (m, c, z)`, z-scored states, and which of the steps `(m, c)` are none but padding."""
        x = self.embed(plan, states, actions, rewards, timesteps)  # (m, 4c, d)
        allowed = seen_before(real.repeat_interleave(4, dim=1))
        for block in self.blocks:
            x = block(x, allowed)
        return self.head(self.norm(x[:, 1::4]))  # type: ignore[no-any-return]

    def embed(self, plan: Tensor, states: Tensor, actions: Tensor, rewards: Tensor, timesteps: Tensor) -> Tensor:
        """Tokens of steps, z, s, a, r of each: `(m, c, .) -> (m, 4c, d)`."""
        time = self.time(timesteps)
        made = self.embed_plan(plan), self.embed_state(states), self.embed_action(actions), self.embed_reward(rewards)
        return self.embed_norm(torch.stack([token + time for token in made], dim=2).flatten(1, 2))  # type: ignore[no-any-return]

    def time(self, timesteps: Tensor) -> Tensor:
        """Embeddings of time steps: `(...) -> (..., d)`."""
        return self.embed_timestep(timesteps.clamp(0, self.embed_timestep.num_embeddings - 1))  # type: ignore[no-any-return]

    def init_state(self, n: int) -> Window | Remembered:
        """The memory of `n` tasks before an episode."""
        raise NotImplementedError

    def step(self, memory: Any, seen: Seen) -> tuple[Tensor, Any]:
        """The action `(n, a)` of a step, and a memory in whose last place it is still to be put."""
        raise NotImplementedError


class SlidingWorker(Worker):
    """Acting on the last c steps, across the borders of groups."""

    def __init__(self, config: HierarchyConfig):
        super().__init__(config)
        self.steps = config.interval

    def init_state(self, n: int) -> Window:
        config, zeros = self.config, self.head.weight.new_zeros
        timesteps = torch.zeros(n, self.steps, dtype=torch.int64, device=self.head.weight.device)
        states, actions = (zeros(n, self.steps, size) for size in (config.state_size, config.action_size))
        return Window(states, actions, zeros(n, self.steps, 1), timesteps, timesteps.bool())

    def step(self, memory: Window, seen: Seen) -> tuple[Tensor, Window]:
        now = _shifted(memory, seen)
        x = self.embed(seen.plan, *now[:4])[:, :-LATE]  # (n, 4c - 2, d)
        bias = bias_of(seen_before(now.mask.repeat_interleave(4, dim=1)[:, :-LATE]), x)
        *cells, last = (cast(GPTLayer, block).cell_of_now() for block in self.blocks)
        for cell in cells:
            x = cell.whole(x, bias)
        return self.head(self.norm(last.newest(x, bias)[:, 0])), now


def _shifted(past: Window, seen: Seen) -> Window:
    """The window one step on, its last action and reward not known yet."""

    def behind(field: Tensor, *new: Tensor) -> Tensor:
        return torch.cat([field[:, 1 : field.shape[1] + 1 - len(new)], *(each[:, None] for each in new)], dim=1)

    going = seen.clock > 0
    return Window(
        states=behind(past.states, seen.state),
        actions=behind(past.actions, torch.zeros_like(past.actions[:, 0])),
        rewards=behind(past.rewards, seen.earned, torch.zeros_like(seen.earned))[:, -past.rewards.shape[1] :],
        timesteps=behind(past.timesteps, seen.clock),
        mask=behind(past.mask & going[:, None], torch.ones_like(going)),
    )


class GroupWorker(Worker, Freezable):
    """Acting on the steps of the present group."""

    steps = 1
    where: Tensor
    bias: Tensor
    offsets: Tensor

    def __init__(self, config: HierarchyConfig):
        super().__init__(config)
        numbers, offsets = (torch.tensor(each, device="cpu") for each in (range(config.interval), (-1, -1, 0, 0)))
        where, bias = places_of(numbers, 4, LATE, self.head.weight)
        for name, constant in {"where": where, "bias": bias, "offsets": offsets}.items():
            self.register_buffer(name, constant.to(self.head.weight.device), persistent=False)

    def init_state(self, n: int) -> Remembered:
        actions = self.head.weight.new_zeros(n, 1, self.config.action_size)
        return Remembered(actions, empty_cache(self.blocks, n, 4 * self.config.interval))

    def step(self, memory: Remembered, seen: Seen) -> tuple[Tensor, Remembered]:
        step, cache = seen.clock % self.config.interval, memory.cache.clone()
        given = torch.cat([memory.actions[:, 0], seen.earned, seen.plan[:, 0], seen.state], dim=1)
        tokens = F.linear(given, *self.cell_of_now()).view(len(given), 4, -1)  # a and r of the step before, z, s
        x = self.embed_norm(tokens + self.time(seen.clock[:, None] + self.offsets))
        x = through(self.blocks, x, cache, Places(*(each.index_select(0, step) for each in (self.where, self.bias))))
        return self.head(self.norm(x[:, -1])), Remembered(torch.zeros_like(memory.actions), cache)

    def make_cell(self) -> tuple[Tensor, Tensor]:
        """One linear map to all four tokens of a step: weights and biases."""
        layers = self.embed_action, self.embed_reward, self.embed_plan, self.embed_state
        return torch.block_diag(*(e.weight for e in layers)), torch.cat([e.bias for e in layers])  # type: ignore[no-untyped-call]
