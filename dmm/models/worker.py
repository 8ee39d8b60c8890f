"""The worker of a hierarchy: a small GPT over the c steps of a group, towards the plan of each; and how it acts.

Acting, `SlidingWorker` reads the last c steps of the episode anew at each step, all with the present group's plan, as
released. `GroupWorker` reads those of the present group, whose tokens do not change once they are there: it goes on
from their keys and values, and its actions are those of `forward`.

Axes: `m` groups or `n` tasks, `c` steps of a group, `s` state size, `a` action size, `z` plan size, `d` channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dmm.layers.cache import empty_cache, places_of, through
from dmm.layers.transformer import GPTLayer, seen_before

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
    rewards: Tensor
    """`(n, 1, 1)`."""
    cache: Tensor
    """`(n, layers, 2, heads, 4c, d / heads)`."""


class Worker(nn.Module):
    """Actions of c steps towards a plan: `(m, c, .) -> (m, c, a)`, before tanh or softmax; see `dmm.models.hierarchy`."""

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
        x, allowed = self.embed(plan, states, actions, rewards, timesteps), seen_before(real.repeat_interleave(4, dim=1))
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
        config, weight = self.config, self.head.weight
        sizes = config.state_size, config.action_size, 1
        timesteps = torch.zeros(n, self.steps, dtype=torch.int64, device=weight.device)
        return Window(*(weight.new_zeros(n, self.steps, size) for size in sizes), timesteps, timesteps.bool())

    def step(self, memory: Window, seen: Seen) -> tuple[Tensor, Window]:
        mask = memory.mask & (seen.clock > 0)[:, None]
        later = iter((seen.state, *(torch.zeros_like(part[:, 0]) for part in memory[1:3]), seen.clock, mask[:, 0] | True))
        past = memory._replace(mask=mask)
        now = Window(*(torch.cat([part[:, 1:], next(later)[:, None]], dim=1) for part in past))
        x = self.embed(seen.plan, *now[:4])[:, :-LATE]  # (n, 4c - 2, d)
        allowed = seen_before(now.mask.repeat_interleave(4, dim=1)[:, :-LATE])
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, allowed)
        return self.head(self.norm(cast(GPTLayer, last).newest(x, allowed))), now


class GroupWorker(Worker):
    """Acting on the steps of the present group."""

    steps = 1

    def init_state(self, n: int) -> Remembered:
        zeros = self.head.weight.new_zeros
        cache = empty_cache(self.blocks, n, 4 * self.config.interval)
        return Remembered(zeros(n, 1, self.config.action_size), zeros(n, 1, 1), cache)

    def step(self, memory: Remembered, seen: Seen) -> tuple[Tensor, Remembered]:
        before = self.embed_action(memory.actions), self.embed_reward(memory.rewards)
        present = self.embed_plan(seen.plan), self.embed_state(seen.state[:, None])
        time = self.time(torch.stack([seen.clock - 1, seen.clock], dim=1)).repeat_interleave(2, dim=1)
        x = self.embed_norm(torch.cat([*before, *present], dim=1) + time)  # (n, 4, d)
        cache = memory.cache.clone()
        x = through(self.blocks, x, cache, places_of(seen.clock % self.config.interval, x.shape[1], LATE))
        nothing = [torch.zeros_like(part) for part in memory[:2]]
        return self.head(self.norm(x[:, -1])), Remembered(*nothing, cache)
