"""What Decision Mamba-Hybrid and its control without Mamba share: a planner over groups, and a small GPT that acts.

    groups of c steps     R = return-to-go / rtg_scale and s = state at the group's first step, r = sum of its c rewards
                          as they are, d = whether an episode ended with it (or 2 for padding)
    planner               reads the tokens R, s, r, d of all groups (or s, r, d: `tokens="three"`), of several episodes
    plan                  mu, log-variance = tanh(W planner at the s token);  z = mu + exp(log-variance / 2) eps
    worker                in each group, tokens = LN(embed(z, s, a, r) + timestep) of its c steps; GPT-2 layers without
                          positions; action = head(LN(x) at the s token), through tanh where actions are continuous
    loss                  error(action) + goal_weight error(action with z = G valuable state),  of the learned steps

The valuable state is that of `dmm.data.sub_goals`, and `G` a linear map that is **never trained**; so both terms are
errors of actions (squared, or the cross-entropy of discrete ones), and nothing pulls the planner's z towards anything.
With `spread="squashed"`, as released, tanh holds the log-variance within (-1, 1): the standard deviation of z lies
between 0.61 and 1.65 beside |mu| < 1. `free` leaves it to the data. `noise` draws eps for every step (as released),
once for a group, or not at all.

Acting goes on over all episodes of a task (`next_episode`). The planner takes in the tokens of a group as they become
known, c steps apart; of the last c steps of the present episode the worker acts, all with the present group's z. That
window slides across the borders of groups (`window="sliding"`, as released), although in training it never does, and
`noise="step"` draws eps for all of its steps anew; `group` lets it begin with each group, with the eps that each step
drew, and then the actions are those of `forward` over everything so far (`dmm.models.worker`). The draws of
`acts="drawn"` follow from the generator's state and all that an episode's task has shown (`dmm.draws`); `mean` plays
z = mu. Discrete actions are drawn by softmax(logits / temperature), with 0 the likeliest; neither paper nor release
says how.

Axes: `b` contexts, `K` groups, `c` steps of each, `n` tasks, `s` state size, `a` action size, `z` plan
size, `d` channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.contexts import Best, Contexts, ContextSampler, Ends, GoalContexts, Learned, Order
from dmm.data.sub_goals import GoalRule
from dmm.data.trajectories import Trajectories
from dmm.draws import category, normal, streams
from dmm.errors import InputError, require_choice
from dmm.layers.noise import GaussianNoise
from dmm.models.entry import Facts, domain
from dmm.models.worker import GroupWorker, Seen, SlidingWorker, Worker
from dmm.policy import Outcome, Policy, Target, Wanted, action_error, of_merged

Tokens = Literal["four", "three"]
Noise = Literal["step", "group", "off"]
Spread = Literal["squashed", "free"]
Acts = Literal["drawn", "mean"]
Window = Literal["sliding", "group"]
SHORT = 100
"""Steps of the longest episode below which groups are of 5 steps, else of 20: the paper's grids and its other tasks."""
EPISODES = 10
"""Of the longest kind that a context holds, unless that is more than `MOST_GROUPS`."""
MOST_GROUPS = 200


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """A planner over groups and a worker within them."""

    state_size: int  # s
    action_size: int  # a
    groups: int = 40  # K of a context
    interval: int = 5  # c steps of a group
    width: int = 64  # d channels of both
    layers: int = 3  # of the worker
    heads: int = 1
    plan_layers: int = 2  # of the planner
    plan_size: int = 0  # z; 0: as many numbers as the state, as released
    dropout: float = 0.1  # of transformer layers: on attention weights and on what each half adds
    rtg_scale: float = 1000.0  # returns-to-go are divided by this; rewards are not
    max_timestep: int = 1000  # time steps that have an embedding; later ones share the last
    longest: int = 1000  # steps of the data's longest episode: where the last one is learned, the worker reads no more
    tokens: Tokens = "four"  # R, s, r, d of a group, or without R as in the paper's equations
    spread: Spread = "squashed"  # log-variance of z: through tanh or free
    noise: Noise = "step"  # eps drawn for every step, for a group, or zero
    acts: Acts = "drawn"  # z while acting: with eps, or its mean
    temperature: float = 0.4  # of the softmax that discrete actions are drawn by; 0: the likeliest
    window: Window = "sliding"  # the worker's steps while acting: the last c, or those of the present group
    goals: GoalRule = "formula"  # see `dmm.data.sub_goals`
    goal_weight: float = 0.5  # of the second term; 0 leaves it out
    order: Order = "return"  # of the episodes in a context
    learned: Learned = "last"  # whose actions are learned
    best: Best = "in"  # whether a task's best episode may be in a context
    ends: Ends = "episode"  # what d marks while training

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "groups", "interval", "width", "layers", "heads")
        check_positive(self, "plan_layers", "max_timestep", "longest")
        if self.width % self.heads:
            raise InputError(f"heads: got {self.heads}, allowed are divisors of width {self.width}")
        if self.plan_size < 0:
            raise InputError(f"plan_size: got {self.plan_size}, allowed is 0 (as the state) or more")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")
        if not 0 < self.rtg_scale < float("inf"):
            raise InputError(f"rtg_scale: got {self.rtg_scale:g}, allowed is a positive number")
        if not 0 <= self.goal_weight < float("inf"):
            raise InputError(f"goal_weight: got {self.goal_weight:g}, allowed is 0 or more")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature: got {self.temperature:g}, allowed is 0 (the likeliest action) or more")
        for name, literal in CHOICES.items():
            require_choice(name, getattr(self, name), literal)

    @property
    def z(self) -> int:
        """Numbers of a plan."""
        return self.plan_size or self.state_size


CHOICES: dict[str, Any] = {"tokens": Tokens, "spread": Spread, "noise": Noise, "acts": Acts, "window": Window}
CHOICES |= {"goals": GoalRule, "order": Order, "learned": Learned, "best": Best, "ends": Ends}


class Groups(NamedTuple):
    """What a planner reads of b contexts; padding is zero but for the states, which are z-scored zeros."""

    returns_to_go: Tensor
    """`(b, K, 1)`, scaled, at each group's first step."""
    states: Tensor
    """`(b, K, s)`, z-scored, there."""
    rewards: Tensor
    """`(b, K, 1)`, the sum over the group, as they are."""
    ended: Tensor
    """`(b, K, 1)`, 1 where an episode ended with the group."""
    real: Tensor
    """`(b, K)` bool."""
    number: Tensor
    """`(b, K)` int64, the group's place in its episode."""


class GroupTokens(nn.Module):
    """Embeddings of what a group has: R, s, r, d, each `(..., d)`; without R where `config.tokens` is `three`."""

    def __init__(self, config: HierarchyConfig):
        super().__init__()
        d = config.width
        self.embed_rtg = nn.Linear(1, d) if config.tokens == "four" else None
        self.embed_state, self.embed_reward = nn.Linear(config.state_size, d), nn.Linear(1, d)
        self.embed_ended = nn.Linear(3, d, bias=False)  # a table of 0, 1 and 2 = padding
        nn.init.normal_(self.embed_ended.weight)

    @property
    def state_place(self) -> int:
        """Of the state token among a group's."""
        return 0 if self.embed_rtg is None else 1

    @property
    def count(self) -> int:
        """Tokens of a group."""
        return self.state_place + 3

    def before(self, returns_to_go: Tensor, states: Tensor) -> list[Tensor]:
        """What a group begins with: R, s."""
        first = [] if self.embed_rtg is None else [self.embed_rtg(returns_to_go)]
        return [*first, self.embed_state(states)]

    def after(self, rewards: Tensor, ended: Tensor, real: Tensor) -> list[Tensor]:
        """What is known when it is over: r, d; `real (...)`."""
        there = real[..., None].to(ended.dtype)
        which = torch.cat([(1 - ended) * there, ended * there, 1 - there], dim=-1)
        return [self.embed_reward(rewards), self.embed_ended(which)]

    def forward(self, groups: Groups) -> Tensor:
        """All tokens of all groups: `(b, K, m, d)`."""
        first = self.before(groups.returns_to_go, groups.states)
        return torch.stack([*first, *self.after(groups.rewards, groups.ended, groups.real)], dim=2)


class Planner(nn.Module):
    """What sees all groups and makes a plan for each: `Groups (b, K, .) -> (b, K, 2 z)`.

    The plan of a group depends on those before it and on its own R and s.
    """

    config: HierarchyConfig
    head: nn.Linear

    def init_state(self, n: int) -> tuple[Tensor, ...]:
        """The memory of `n` tasks before their first group: tensors `(n, ...)`."""
        raise NotImplementedError

    def extend(self, state: tuple[Tensor, ...], group: Groups, first: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The plan `(n, 2 z)` of a group that begins, and the new memory.

        Args:
            state: the memory.
            group: fields `(n, 1, .)`: R, s and `number` of the group that begins; `rewards`, `ended` and `real` of the
                one before it.
            first: `(n,)` bool, where none is before it.
        """
        raise NotImplementedError

    def recurrence(self, groups: Groups) -> Tensor:
        """`forward` as acting makes it, one group after another: `(b, K, .) -> (b, K, 2 z)`."""
        b, k = groups.real.shape
        state, plans = self.init_state(b), []
        for now in range(k):
            there, before = slice(now, now + 1), slice(max(now - 1, 0), max(now, 1))
            group = Groups(
                groups.returns_to_go[:, there],
                groups.states[:, there],
                groups.rewards[:, before],
                groups.ended[:, before],
                groups.real[:, before],
                groups.number[:, there],
            )
            plan, state = self.extend(state, group, torch.full_like(groups.real[:, 0], now == 0))
            plans.append(plan)
        return torch.stack(plans, dim=1)

    def squash(self, out: Tensor) -> Tensor:
        """What the head gave, `(..., 2 z)`, as mu and log-variance."""
        if self.config.spread == "squashed":
            return torch.tanh(out)
        mu, spread = out.chunk(2, dim=-1)
        return torch.cat([torch.tanh(mu), spread], dim=-1)


WORKERS: dict[Window, type[Worker]] = {"sliding": SlidingWorker, "group": GroupWorker}


@dataclass(frozen=True, eq=False)
class Memory:
    """What acting remembers of n tasks."""

    target: Tensor  # (n, 1), the return still asked for
    earned: Tensor  # (n, 1), by the present group so far
    ended: Tensor  # (n, 1), 1 where the episode ended with the last group
    clock: Tensor  # (n,) int64, steps of the present episode
    planned: Tensor  # (n,) int64, groups of all episodes
    plan: Tensor  # (n, 2 z), of the present group
    eps: Tensor  # (n, z), its noise, where there is one for a group
    stream: Tensor  # (n,) int64, of random numbers, on the CPU
    worker: Any  # named tuple of tensors (n, ...)
    planner: tuple[Tensor, ...]

    @property
    def actions(self) -> Tensor:
        """Of the steps that the worker keeps, the last one at the end: `(n, w, a)`."""
        return self.worker.actions  # type: ignore[no-any-return]

    def map(self, function: Callable[[Tensor], Tensor]) -> Memory:
        """`function` of every tensor."""
        own = {f.name: function(getattr(self, f.name)) for f in fields(self)[:-2]}
        worker = type(self.worker)(*map(function, self.worker))
        return Memory(**own, worker=worker, planner=tuple(map(function, self.planner)))

    def tensors(self) -> list[Tensor]:
        """All of them, as `map` meets them."""
        *own, worker, planner = (getattr(self, f.name) for f in fields(self))
        return [*own, *worker, *planner]


class HierarchicalPolicy(Policy):
    """A planner and a worker: see the module. Its batches are `GoalContexts (b, K c, .)`.

    Where a context's steps are not whole groups, or goals are missing, `forward` and `loss` raise InputError.
    """

    batch = GoalContexts
    terms = ("action", "goal")
    recurrent = True
    config: HierarchyConfig
    planner: Planner

    def __init__(self, config: HierarchyConfig, planner: Planner):
        super().__init__(config.state_size, config.action_size, config.groups * config.interval)
        self.config, self.planner, self.worker = config, planner, WORKERS[config.window](config)
        self.noise = GaussianNoise()

    def field_sizes(self) -> dict[str, int]:
        return super().field_sizes() | {"goals": self.state_size}

    def forward(self, contexts: Contexts) -> Tensor:
        """The actions `(b, k, a)`, or logits of discrete ones; with z = mu in evaluation mode."""
        plan = self.plans(contexts)
        drawn = self.training and self.config.noise != "off"
        return self.actions(contexts, self.plan_of_steps(plan, self._drawn(plan) if drawn else None))

    def plans(self, contexts: Contexts) -> Tensor:
        """Mu and log-variance of every group: `(b, K, 2 z)`."""
        return self.planner(self.group(contexts))  # type: ignore[no-any-return]

    def group(self, contexts: Contexts) -> Groups:
        """What the planner reads of contexts."""
        parts = {f.name: self._in_groups(getattr(contexts, f.name)) for f in fields(contexts)}
        mask = parts["mask"]  # (b, K, c)
        first = mask.int().argmax(dim=-1)[..., None]  # (b, K, 1)

        def at_first(field: Tensor) -> Tensor:
            return field.gather(2, first[..., None].expand(-1, -1, -1, field.shape[-1]))[:, :, 0]

        return Groups(
            at_first(parts["returns_to_go"]) / self.config.rtg_scale,
            self._z(at_first(parts["states"])),
            (parts["rewards"] * mask[..., None]).sum(dim=2),
            parts["ended"][:, :, -1] * mask[:, :, -1:],
            mask.any(dim=-1),
            at_first(parts["timesteps"][..., None])[..., 0] // self.config.interval,
        )

    def plan_of_steps(self, plan: Tensor, eps: Tensor | None) -> Tensor:
        """z of every step: plans `(..., 2 z)` of groups, `eps (..., c, z)` or None for the means -> `(..., c, z)`."""
        mu, log_variance = (part[..., None, :] for part in plan.chunk(2, dim=-1))
        if eps is None:
            return mu.expand(*mu.shape[:-2], self.config.interval, -1)
        return mu + (log_variance / 2).exp() * eps

    def goal_plans(self, contexts: Contexts) -> Tensor:
        """z of every step from the valuable state of its group: `(b, K, c, z)`; no gradient reaches the map."""
        if not isinstance(contexts, GoalContexts):
            raise InputError(f"contexts: got {type(contexts).__name__}, allowed are GoalContexts")
        return self.worker.goal_to_plan(self._z(self._in_groups(contexts.goals))).detach()  # type: ignore[no-any-return]

    def actions(self, contexts: Contexts, plan: Tensor) -> Tensor:
        """The worker's actions, or logits of discrete ones, with these z `(b, K, c, z)`: `(b, K c, a)`."""
        fields_read = (contexts.states, contexts.actions, contexts.rewards, contexts.timesteps, contexts.mask)
        states, actions, rewards, timesteps, mask = (self._in_groups(f).flatten(0, 1) for f in fields_read)
        out = self.worker(plan.flatten(0, 1), self._z(states), actions, rewards, timesteps, mask)
        out = out.unflatten(0, plan.shape[:2]).flatten(1, 2)
        return out if self.discrete_actions else torch.tanh(out)

    def loss(self, batch: GoalContexts) -> dict[str, Tensor]:
        """Both terms, the second with its weight: fields `(..., b, k, .)` -> `(...)` each."""
        return self.terms_of(batch, None)

    def terms_of(self, batch: GoalContexts, eps: Tensor | None) -> dict[str, Tensor]:
        """`loss` with this noise `(b, K, c, z)` in place of one that is drawn."""
        by_plan, by_goal = of_merged(lambda merged: self._predicted(merged, eps), batch)
        axis, steps = len(batch.shape), by_plan.shape[-2]
        last = batch.map(lambda field: field.narrow(axis, field.shape[axis] - steps, steps))
        weight = last.learned[..., 0] * last.mask
        goal = self.config.goal_weight * action_error(by_goal, last.actions, weight, self.discrete_actions)
        return {"action": action_error(by_plan, last.actions, weight, self.discrete_actions), "goal": goal}

    def _predicted(self, contexts: GoalContexts, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        """The actions of the steps that may be learned, by the planner's z and by the goals': `(b, k', a)` each."""
        config, plan = self.config, self.plans(contexts)
        count = config.groups
        if config.learned == "last":
            count = min(count, -(-config.longest // config.interval))
        contexts = contexts.map(lambda field: field[:, -count * config.interval :])
        plan = plan[:, -count:]
        if eps is None and config.noise != "off":
            eps = self._drawn(plan)
        by_plan = self.actions(contexts, self.plan_of_steps(plan, None if eps is None else eps[:, -count:]))
        if not config.goal_weight:
            return by_plan, torch.zeros_like(by_plan)
        return by_plan, self.actions(contexts, self.goal_plans(contexts))

    def _drawn(self, plan: Tensor) -> Tensor:
        """Noise for plans `(b, K, 2 z)`: `(b, K, c, z)`."""
        half = plan[..., : self.config.z]
        if self.config.noise == "group":
            return self.noise(half)[..., None, :].expand(-1, -1, self.config.interval, -1)  # type: ignore[no-any-return]
        return self.noise(half[..., None, :].expand(-1, -1, self.config.interval, -1).contiguous())  # type: ignore[no-any-return]

    def _in_groups(self, field: Tensor) -> Tensor:
        c = self.config.interval
        if field.shape[1] % c:
            raise InputError(f"contexts: got {field.shape[1]} steps, allowed are groups of {c}")
        return field.unflatten(1, (-1, c))  # type: ignore[no-untyped-call,no-any-return]

    def _z(self, states: Tensor) -> Tensor:
        return (states - self.state_mean) / self.state_std

    def init_state(self, n: int, target: Target) -> Memory:
        """The memory of `n` tasks before their first observation."""
        config, zeros, wanted = self.config, self.state_mean.new_zeros, Wanted.of(target)
        counts = torch.zeros(n, dtype=torch.int64, device=self.state_mean.device)
        returns = torch.as_tensor(wanted.returns).to(self.state_mean).expand(n)[:, None].clone()
        return Memory(
            target=returns,
            earned=zeros(n, 1),
            ended=zeros(n, 1),
            clock=counts,
            planned=counts,
            plan=zeros(n, 2 * config.z),
            eps=zeros(n, config.z),
            stream=wanted.seeds(n),
            worker=self.worker.init_state(n),
            planner=self.planner.init_state(n),
        )

    @torch.no_grad()
    def act(self, state: Memory, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Memory]:
        """One time step, as in `Policy.act`; of an episode's first step the reward is passed over."""
        plain = self.config.noise == "off" or self.config.acts == "mean"
        if plain and not (self.discrete_actions and self.config.temperature):
            return self.step(state, observation, reward, None)
        seen = observation if reward is None else torch.cat([observation, reward[:, None].to(observation)], dim=1)
        stream, eps = streams(state.stream, seen), state.eps
        if plain:
            return self.step(dataclasses.replace(state, stream=stream), observation, reward, None)
        size, steps = self.config.z, self.worker.steps
        count = size if self.config.noise == "group" else steps * size
        drawn = normal(stream, state.clock, count).to(state.plan)
        if self.config.noise == "group":
            eps = torch.where((state.clock % self.config.interval == 0)[:, None], drawn, eps)
        state = dataclasses.replace(state, stream=stream, eps=eps)
        of_steps = eps[:, None].expand(-1, steps, -1) if self.config.noise == "group" else drawn.view(-1, steps, size)
        return self.step(state, observation, reward, of_steps)

    @torch.no_grad()
    def step(
        self, state: Memory, observation: Tensor, reward: Tensor | None, eps: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """`act` with this noise, `(n, w, z)` for the `w` steps that the worker keeps; None for z = mu."""
        seen = self._z(observation.to(self.state_mean))
        earned = torch.zeros_like(state.earned)
        if reward is not None:
            earned = reward[:, None].to(state.target) * (state.clock > 0)[:, None]
            state = dataclasses.replace(state, earned=state.earned + earned, target=state.target - earned)
        state = self._planned(state, seen)
        plan = self.plan_of_steps(state.plan, eps)[:, -self.worker.steps :]
        out, worker = self.worker.step(state.worker, Seen(plan, seen, earned, state.clock))
        action = self._chosen(out, state)
        worker.actions[:, -1] = action
        return action, dataclasses.replace(state, worker=worker, clock=state.clock + 1)

    def _chosen(self, out: Tensor, state: Memory) -> Tensor:
        """What is played, `(n, a)`, by what the worker gave; the draw is apart from those of eps."""
        if not self.discrete_actions:
            return torch.tanh(out)
        if not self.config.temperature:
            return self.played(out)
        return category(out / self.config.temperature, ~state.stream, state.clock)

    def _planned(self, state: Memory, seen: Tensor) -> Memory:
        """The memory with new plans where a group begins."""
        c = self.config.interval
        begins = state.clock % c == 0
        if not begins.any():
            return state
        rows = None if begins.all() else begins.nonzero()[:, 0]

        def some(field: Tensor) -> Tensor:
            return field if rows is None else field[rows.to(field.device)]

        def put(field: Tensor, part: Tensor) -> Tensor:
            return part if rows is None else field.index_copy(0, rows.to(field.device), part)

        clock = some(state.clock)[:, None]
        group = Groups(
            some(state.target)[:, None] / self.config.rtg_scale,
            some(seen)[:, None],
            some(state.earned)[:, None],
            some(state.ended)[:, None],
            torch.ones_like(clock, dtype=torch.bool),
            clock // c,
        )
        plan, planner = self.planner.extend(tuple(map(some, state.planner)), group, some(state.planned) == 0)
        return dataclasses.replace(
            state,
            plan=put(state.plan, plan),
            planner=tuple(map(put, state.planner, planner)),
            earned=state.earned.masked_fill(begins[:, None], 0.0),
            ended=state.ended.masked_fill(begins[:, None], 0.0),
            planned=state.planned + begins,
        )

    def select(self, state: Memory, rows: Tensor) -> Memory:
        return state.map(lambda field: field[rows.to(field.device)])

    def next_episode(self, state: Memory, rows: Tensor, target: Target, outcome: Outcome) -> Memory:
        """The planner's memory goes on, with the reward and the end of the last group; the rest begins anew."""
        begun, before = self.init_state(len(rows), target), self.select(state, rows)
        earned = before.earned + outcome.reward[:, None].to(before.earned)
        kept: dict[str, Any] = {"earned": earned, "ended": torch.ones_like(before.ended)}
        kept |= {name: getattr(before, name) for name in ("planned", "plan", "eps", "stream", "planner")}
        return _put(state, rows, dataclasses.replace(begun, **kept))


def _put(state: Memory, rows: Tensor, part: Memory) -> Memory:
    """The memory of all tasks with that of some, `rows (m,)`, replaced."""
    parts = iter(part.tensors())
    return state.map(lambda field: field.index_copy(0, rows.to(field.device), next(parts)))


def context_draws(trajectories: Trajectories, config: HierarchyConfig, device: torch.device | str) -> ContextSampler:
    """The contexts that a config asks for."""
    how = {name: getattr(config, name) for name in ("interval", "order", "learned", "best", "ends", "goals")}
    return ContextSampler(trajectories, config.groups, **how, device=device)


def by_data(facts: Facts) -> dict[str, Any]:
    """Groups and their steps, by the longest episode; the table of time steps."""
    interval = 5 if facts.longest < SHORT else 20
    groups = min(MOST_GROUPS, EPISODES * -(-facts.longest // interval))
    return {"interval": interval, "groups": groups, "max_timestep": facts.longest, "longest": facts.longest}


def authors_recipe(facts: Facts) -> dict[str, Any]:
    """Sizes and recipe of the release, for MuJoCo; groups by the paper's horizon elsewhere.

    Its batch of 64 episodes is 16 contexts where four episodes fill one, and its gradient is clipped at 0.25 for each
    of the two networks apart, where training here clips both together.
    """
    sizes = {"width": 128, "layers": 3, "heads": 1, "plan_layers": 2, "dropout": 0.1, "best": "out"}
    sizes |= {"goals": "released", "ends": "terminal"}
    if domain(facts.env_id) == "mujoco" and facts.longest >= SHORT:
        sizes |= {"groups": MOST_GROUPS, "interval": 20, "rtg_scale": 1000.0}
    recipe = {"steps": 100_000, "batch_size": 16, "learning_rate": 1e-4, "warmup": 0.0}
    return sizes | recipe | {"weight_decay": 1e-4, "decay": "all", "clip": 0.25}
