"""Acting on a window of the last k steps that goes on over the episodes of a task.

At the end of an episode its last reward is put in its place, and what follows stands behind it; a window over windows'
fields needs no more. Returns-to-go begin anew with what is asked for, time steps with 0.

`CachedActor` goes on from the keys and values of the steps before instead of reading them all anew. That is the same
until the window is full: from then on it would remember what steps had seen that are no longer in the window, and where
positions are counted from the window's first step they would be others. So a full window is read anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmm.data.windows import Batch, RewardedWindows, right_padded
from dmm.draws import streams
from dmm.layers.cache import KeyValueCache
from dmm.policy import Outcome, Policy, Target, Wanted, next_window

SPAN = 4
"""Episodes of the longest kind that a window holds, unless that is more than `MOST_STEPS`."""
MOST_STEPS = 160


@dataclass(frozen=True, eq=False)
class Lived:
    """What acting remembers of n tasks."""

    windows: RewardedWindows  # (n, k, .), padded on the left
    target: Tensor  # (n, 1), the return still asked for
    clock: Tensor  # (n,) int64, steps of the present episode
    stream: Tensor  # (n,) int64, of random numbers, on the CPU

    def map(self, function: Callable[[Tensor], Tensor]) -> Lived:
        """`function` of every tensor."""
        return Lived(self.windows.map(function), *map(function, (self.target, self.clock, self.stream)))


def with_last(windows: RewardedWindows, **values: Tensor) -> Any:
    """The windows with other values in their last place, `(n, .)` or `(n,)` each."""
    parts = {}
    for name, value in values.items():
        field = getattr(windows, name).clone()
        field[:, -1] = value
        parts[name] = field
    return dataclasses.replace(windows, **parts)


class AcrossEpisodes(Policy):
    """A policy of windows whose memory is the last k steps of a task, whatever episodes they are of."""

    batch: ClassVar[type[Batch]] = RewardedWindows
    state_token: int
    """The place of the state among a step's tokens, at which its action is read."""
    blocks: nn.ModuleList

    def tokens(self, windows: Any, first: Tensor | None = None) -> Tensor:
        """What the layers read, `(b, k, m, d)`; the windows begin with step `first (b,)` of those acted on, or 0."""
        raise NotImplementedError

    def read(self, x: Tensor) -> Tensor:
        """Actions, or logits of discrete ones, of state tokens behind the last layer: `(..., d) -> (..., a)`."""
        raise NotImplementedError

    def init_state(self, n: int, target: Target) -> Lived:
        """The memory of `n` tasks before their first observation."""
        returns = torch.as_tensor(Wanted.of(target).returns).to(self.state_mean).expand(n)[:, None].clone()
        clock = torch.zeros(n, dtype=torch.int64, device=self.state_mean.device)
        return Lived(super().init_state(n, target), returns, clock, Wanted.of(target).seeds(n))

    @torch.no_grad()
    def act(self, state: Lived, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Lived]:
        """One time step, as in `Policy.act`; of an episode's first step the reward is passed over."""
        now = self.seen(state, observation, reward)
        return self.done(now, self.newest(now.windows))

    def newest(self, windows: Any) -> Tensor:
        """`forward` at the last step alone, `(b, a)`, of windows that are padded in front."""
        windows = right_padded(windows)
        last = windows.mask.sum(dim=1) - 1  # (n,)
        most = int(last.max()) + 1
        made = self.forward(windows.map(lambda field: field[:, :most]))
        return made[torch.arange(len(last), device=last.device), last]  # type: ignore[no-any-return]

    def done(self, now: Lived, out: Tensor) -> tuple[Tensor, Lived]:
        """The action by what `forward` says, `(n, a)`, and the memory with it."""
        action = self.chosen(out, now.stream, now.clock - 1)
        return action, dataclasses.replace(now, windows=with_last(now.windows, actions=action))

    def chosen(self, out: Tensor, stream: Tensor, clock: Tensor) -> Tensor:
        """What is played, `(n, a)`, by what `forward` gave; `stream` and `clock` are for policies that draw."""
        return self.played(out)

    def seen(self, state: Lived, observation: Tensor, reward: Tensor | None) -> Lived:
        """The memory with a new observation, whose action is not known yet."""
        begun, last = state.clock > 0, state.windows.rewards[:, -1]
        given = torch.zeros_like(last) if reward is None else reward[:, None].to(last)
        earned = torch.where(begun[:, None], given, last)
        target = state.target - torch.where(begun[:, None], given, 0.0)
        windows = next_window(state.windows, observation.to(last), earned[:, 0])
        windows = with_last(windows, returns_to_go=target, timesteps=state.clock)
        stream = streams(state.stream, torch.cat([observation.to(last), given], dim=1))
        return Lived(windows, target, state.clock + 1, stream)

    def select(self, state: Lived, rows: Tensor) -> Lived:
        return state.map(lambda field: field[rows])

    def next_episode(self, state: Lived, rows: Tensor, target: Target, outcome: Outcome) -> Lived:
        """The window goes on, with the last reward of the episode that is over."""
        some = state.windows.map(lambda field: field[rows])
        some = self.closed(some, outcome.reward[:, None].to(some.rewards))
        begun = self.init_state(len(rows), target)
        parts = (getattr(some, f.name) for f in dataclasses.fields(some))
        new = iter([*parts, begun.target, begun.clock, self.select(state, rows).stream])
        return state.map(lambda field: field.index_copy(0, rows.to(field.device), next(new)))

    def closed(self, windows: RewardedWindows, reward: Tensor) -> Any:
        """Windows whose last episode ended with this reward, `(m, 1)`."""
        return with_last(windows, rewards=reward)


@dataclass(frozen=True, eq=False)
class Cached:
    """What a `CachedActor` remembers of n tasks."""

    lived: Lived
    cache: KeyValueCache

    def map(self, function: Callable[[Tensor], Tensor]) -> Cached:
        """`function` of every tensor."""
        return Cached(self.lived.map(function), KeyValueCache(*map(function, self.cache)))


class CachedActor:
    """The policy, going on from the keys and values of the steps before until its window is full; see the module."""

    def __init__(self, policy: AcrossEpisodes):
        self.policy, self.context, self.discrete_actions = policy, policy.context, policy.discrete_actions
        self.count = policy.tokens(policy.init_state(1, 0.0).windows).shape[2]

    def init_state(self, n: int, target: Target) -> Cached:
        """The memory of `n` tasks before their first observation."""
        cache = KeyValueCache.empty(self.policy.blocks, n, self.count * self.context)
        return Cached(self.policy.init_state(n, target), cache)

    @torch.no_grad()
    def act(self, state: Cached, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Cached]:
        """One time step, as in `Policy.act`."""
        now, cache = self.policy.seen(state.lived, observation, reward), state.cache
        if int(cache.steps.max()) >= self.context:  # all tasks have lived through as many steps
            out = self.policy.newest(now.windows)
        else:
            out, cache = self._next(now.windows, cache)
        action, lived = self.policy.done(now, out)
        return action, Cached(lived, cache)

    def _next(self, windows: RewardedWindows, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
        """What `newest` gives, from the tokens behind the state of the step before, up to the present one."""
        two = windows.map(lambda field: field[:, -2:])
        x = self.policy.tokens(two, cache.steps - 1).flatten(1, 2)  # (n, 2 m, d)
        own = self.policy.state_token + 1
        x, cache = cache.extend(self.policy.blocks, x[:, own : own + self.count], self.count - own)
        return self.policy.read(x[:, -1]), cache

    def select(self, state: Cached, rows: Tensor) -> Cached:
        """The memory of some of the tasks."""
        return state.map(lambda field: field[rows])

    def next_episode(self, state: Cached, rows: Tensor, target: Target, outcome: Outcome) -> Cached:
        """The memory when the episodes at `rows (m,)` are over: keys and values go on."""
        return Cached(self.policy.next_episode(state.lived, rows, target, outcome), state.cache)


def steps_of(longest: int) -> int:
    """Of a window, where episodes have at most so many."""
    return min(MOST_STEPS, SPAN * longest)
