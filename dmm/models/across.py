"""Acting on a window of the last k steps that goes on over the episodes of a task.

At the end of an episode its last reward is put in its place, and what follows stands behind it; a window over windows'
fields needs no more. Returns-to-go begin anew with what is asked for, time steps with 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dmm.data.windows import Batch, RewardedWindows, right_padded
from dmm.draws import streams
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

    def init_state(self, n: int, target: Target) -> Lived:
        """The memory of `n` tasks before their first observation."""
        returns = torch.as_tensor(Wanted.of(target).returns).to(self.state_mean).expand(n)[:, None].clone()
        clock = torch.zeros(n, dtype=torch.int64, device=self.state_mean.device)
        return Lived(super().init_state(n, target), returns, clock, Wanted.of(target).seeds(n))

    @torch.no_grad()
    def act(self, state: Lived, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Lived]:
        """One time step, as in `Policy.act`; of an episode's first step the reward is passed over."""
        now = self.seen(state, observation, reward)
        windows = right_padded(now.windows)
        last = windows.mask.sum(dim=1) - 1  # (n,)
        most = int(last.max()) + 1
        made = self.forward(windows.map(lambda field: field[:, :most]))
        out = made[torch.arange(len(last), device=last.device), last]
        action = self.chosen(out, now.stream, state.clock)
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


def steps_of(longest: int) -> int:
    """Of a window, where episodes have at most so many."""
    return min(MOST_STEPS, SPAN * longest)
