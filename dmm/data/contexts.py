"""Several episodes of one task in one context, for models that learn within it.

A context has K groups of c steps (c = 1 where a model has no groups) and is filled from its end: whole episodes, one
behind the other, until there are K groups; what is older is cut off, and what is missing is padding in front. The last
group of an episode may be short, and then its steps stand at its end. Episodes of two tasks never meet: `histories` of
the data says which episode is of which task, and without it all are of one.

Two orders of the episodes in a context:

    return      drawn from the task's episodes in proportion to their length, with replacement, and sorted by return:
                the last one is the best (Agentic Transformer, Decision Mamba-Hybrid)
    learning    consecutive ones of a history, as they were learned (Algorithm Distillation)

Returns-to-go are those of a learner that always hopes for the best: each episode begins with the largest return in its
context and counts down by its own rewards.

Sub-goals (`dmm.data.sub_goals`) by the released code come from another episode wherever they can: let A be what the
episode has earned at a group's end. If the episode before it in the context has, at the end of one of its groups, from
the last one that was used on, earned more than A, the sub-goal is the state in which its next group begins.

Source: `get_batch` in `experiment.py` of SiliHuang-ai/hybrid_mamba; Huang et al. 2024, arXiv 2406.00079, algorithm 1.
Departures: each context draws its own episodes, as in the paper. The release draws for a whole batch, sorts all of
them, and cuts that into contexts, so that neighbours are nearly equal. Padding is zero here, as in all windows.

Axes: `b` contexts, `n` episodes, `k = K c` steps, `s` state size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dmm.data.sub_goals import GoalRule, sub_goals
from dmm.data.trajectories import Trajectories
from dmm.data.windows import COLUMNS, RewardedWindows, whole_share
from dmm.errors import InputError, require_choice, whole_number

Order = Literal["return", "learning"]
Ends = Literal["episode", "terminal"]
Learned = Literal["last", "all"]
Best = Literal["in", "out"]


@dataclass(frozen=True, eq=False)
class Contexts(RewardedWindows):
    """b contexts of k steps, raw, with padding in front and in front of short groups."""

    ended: Tensor  # (b, k, 1), 1 at an episode's last step, else 0
    learned: Tensor  # (b, k, 1), 1 where the action is to be learned, else 0


@dataclass(frozen=True, eq=False)
class GoalContexts(Contexts):
    """Contexts with the valuable state of each step's group."""

    goals: Tensor  # (b, k, s)


@dataclass(frozen=True)
class _Layout:
    """Where the groups of a context come from, `(..., K)` each."""

    place: Tensor  # int64, of the episode among the n of the context
    group: Tensor  # int64, in the episode
    real: Tensor  # bool


class ContextSampler:
    """Draws contexts; see the module.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        groups: `K`.
        interval: `c`, steps of a group.
        order: of the episodes in a context.
        learned: which episodes' actions are to be learned: the last one's (the best, by return), or all.
        best: whether the task's best episode may be in a context; the release sets it aside (a task of one episode
            keeps it).
        ends: what `ended` marks: every episode's last step, or only those that the environment ended (the release,
            which while acting marks them all).
        goals: the rule of sub-goals; None makes contexts without.
        device: where the data lie and contexts are put together.

    Raises:
        InputError: sizes below 1 or an unknown choice.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        groups: int,
        *,
        interval: int = 1,
        order: Order = "return",
        learned: Learned = "last",
        best: Best = "in",
        ends: Ends = "episode",
        goals: GoalRule | None = None,
        device: torch.device | str = "cpu",
    ):
        self.groups, self.interval = whole_number("groups", groups, 1), whole_number("interval", interval, 1)
        choices = {"order": (order, Order), "learned": (learned, Learned), "best": (best, Best), "ends": (ends, Ends)}
        for name, (choice, literal) in choices.items():
            require_choice(name, choice, literal)
        self.order, self.learned, self.goals = order, learned, goals
        t, self.batch = trajectories, Contexts if goals is None else GoalContexts
        self.returns = torch.from_numpy(t.returns())
        self._counts = torch.from_numpy(-(-t.lengths // self.interval))  # (E,) groups of each episode
        self._tasks = np.zeros(t.episodes, dtype=np.int64) if t.histories is None else t.histories
        self._rank = torch.from_numpy(np.argsort(np.argsort(t.returns(), kind="stable"), kind="stable"))
        self._make_pool(t.lengths, best)
        self.episodes = -(-self.groups // int(self._counts[self._pool].min()))  # n, enough to fill any context
        self._make_table(t, ends, device)
        if goals is not None:
            self._make_goals(t, goals)

    def _make_pool(self, lengths: np.ndarray, best: Best) -> None:
        """The episodes that may be drawn, those of a task beside each other, in the data's order."""
        kept = np.ones(len(lengths), dtype=bool)
        if best == "out":
            by_rank = np.lexsort((self._rank.numpy(), self._tasks))
            last = np.append(np.diff(self._tasks[by_rank]) != 0, True)
            alone = last & np.append(True, last[:-1])
            kept[by_rank[last & ~alone]] = False
        pool = np.argsort(self._tasks, kind="stable")
        self._pool = torch.from_numpy(pool[kept[pool]])  # (P,)
        tasks, steps = self._tasks[self._pool], torch.from_numpy(lengths)[self._pool].cumsum(0)
        first = np.flatnonzero(np.append(True, np.diff(tasks) != 0))
        of_task = torch.from_numpy(np.cumsum(np.append(False, np.diff(tasks) != 0)))
        last_one = np.append(first[1:], len(tasks)) - 1
        self._steps = steps  # (P,) up to each episode's end
        self._first = torch.from_numpy(first)[of_task]  # (P,) place in the pool of the task's first episode
        self._until = steps[torch.from_numpy(last_one)][of_task]  # (P,) steps up to the task's end
        self._from = torch.cat([steps.new_zeros(1), steps])[self._first]  # (P,) steps before the task

    def _make_table(self, t: Trajectories, ends: Ends, device: torch.device | str) -> None:
        self._names = [f.name for f in fields(RewardedWindows) if f.name not in ("timesteps", "mask")]
        columns = [torch.from_numpy(COLUMNS[name](t)) for name in self._names]
        self._sizes = [column.shape[1] for column in columns]
        rows = torch.cat(columns, dim=1)
        self._rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).to(device)  # the last one is padding
        marks = np.ones(t.episodes, dtype=np.float32) if ends == "episode" else t.terminated.astype(np.float32)
        by_episode = (t.starts, t.lengths, self._counts.numpy(), t.returns().astype(np.float32), marks)
        moved = (torch.tensor(each, device=device) for each in by_episode)
        self._starts, self._lengths, self._groups_of, self._returns, self._marks = moved

    def _make_goals(self, t: Trajectories, rule: GoalRule) -> None:
        begins, goals = sub_goals(t.rewards, t.lengths, self.interval, rule)
        first = (self._counts.cumsum(0) - self._counts).numpy()
        self._first_group, self._begins, self._own = first, begins, goals
        earned = np.add.reduceat(t.rewards.astype(np.float64), begins).cumsum()
        before = np.append(0.0, earned)[first]
        place = np.arange(len(begins)) - np.repeat(first, self._counts)
        self._earned = np.full((t.episodes, int(self._counts.max())), -np.inf)  # at the end of each group
        episode = np.repeat(np.arange(t.episodes), self._counts)
        self._earned[episode, place] = earned - before[episode]

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """The episodes of each context, -1 for none, and with sub-goals the rows of those: `(batches, b, n (+ K))`."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        share = torch.rand((*shape, 1 + self.episodes), generator=generator, dtype=torch.float64)
        some = self._places(whole_share(share[..., 0], self._steps[-1]))
        if self.order == "learning":
            episodes = self._history(some)
        else:
            begin, end = self._from[some][..., None], self._until[some][..., None]
            chosen = self._pool[self._places(begin + whole_share(share[..., 1:], end - begin))]
            counts = self._counts[chosen]
            needed = counts.cumsum(-1) - counts < self.groups
            key = torch.where(needed, self._rank[chosen], -1)
            episodes = torch.where(needed, chosen, -1).gather(-1, key.argsort(dim=-1, stable=True))
        return self._with_goals(episodes)

    def _places(self, step: Tensor) -> Tensor:
        """The places in the pool of the episodes that these steps, counted through the pool, are of."""
        return torch.searchsorted(self._steps, step, right=True)

    def _history(self, last: Tensor) -> Tensor:
        """The episodes up to these places in the pool, `(...) -> (..., n)`."""
        place = last[..., None] - torch.arange(self.episodes - 1, -1, -1)
        there = place >= self._first[last][..., None]
        episodes = self._pool[place.clamp(min=0)]
        counts = torch.where(there, self._counts[episodes], 0)
        later = counts.flip(-1).cumsum(-1).flip(-1) - counts
        return torch.where(there & (later < self.groups), episodes, -1)

    def _with_goals(self, episodes: Tensor) -> Tensor:
        if self.goals is None:
            return episodes
        rows = self._goal_rows(episodes.flatten(0, -2))
        return torch.cat([episodes, torch.from_numpy(rows).view(*episodes.shape[:-1], self.groups)], dim=-1)

    def contexts_of(self, episodes: Any) -> Contexts:
        """The contexts of these episodes `(b, m)`, m <= n, in this order, -1 in front where there are fewer.

        Raises:
            InputError: numbers that are no episodes, gaps, or episodes of several tasks in one context.
        """
        given = torch.as_tensor(np.asarray(episodes, dtype=np.int64))
        if given.ndim != 2 or not 0 < given.shape[1] <= self.episodes:
            raise InputError(f"episodes: got shape {tuple(given.shape)}, allowed is (b, m) with m <= {self.episodes}")
        if int(given.min()) < -1 or int(given.max()) >= len(self._counts) or int(given[:, -1].min()) < 0:
            raise InputError(
                f"episodes: allowed are numbers of 0 .. {len(self._counts) - 1}, with -1 in front for none"
            )
        for row in given.numpy():
            if len(tasks := set(self._tasks[row[row >= 0]].tolist())) > 1:
                raise InputError(f"episodes: got those of tasks {sorted(tasks)} in one context, allowed is one task")
        front = given.new_full((len(given), self.episodes - given.shape[1]), -1)
        return self.gather(self._with_goals(torch.cat([front, given], dim=1)))

    def _lay_out(self, episodes: Tensor, counts: Tensor) -> _Layout:
        """Episodes `(..., n)`, -1 for none, and the groups that each of the data's has."""
        count = torch.where(episodes >= 0, counts[episodes.clamp(min=0)], 0)
        ends = count.cumsum(-1)
        position = ends[..., -1:] - self.groups + torch.arange(self.groups, device=ends.device)  # (..., K)
        place = torch.searchsorted(ends, position.clamp(min=0), right=True)
        group = position - (ends - count).gather(-1, place)
        return _Layout(place, group, position >= 0)

    def _goal_rows(self, episodes: Tensor) -> np.ndarray:
        """The rows of all groups' sub-goals, that of padding 0: `(m, n) -> (m, K)`."""
        there = self._lay_out(episodes, self._counts)
        place, group, real = there.place.numpy(), there.group.numpy(), there.real.numpy()
        own = np.take_along_axis(episodes.numpy(), place, axis=1)
        found = np.where(real, self._own[self._first_group[own] + np.where(real, group, 0)], 0)
        if self.goals != "released":
            return found
        before = np.where(place > 0, np.take_along_axis(episodes.numpy(), np.maximum(place - 1, 0), axis=1), -1)
        used = np.zeros(len(found), dtype=np.int64)  # the group of the episode before that was used last
        numbers = np.arange(self._earned.shape[1])
        for k in range(self.groups):
            used[group[:, k] == 0] = 0
            has = real[:, k] & (before[:, k] >= 0)
            earned = self._earned[own[:, k], np.where(real[:, k], group[:, k], 0)]
            more = (self._earned[before[:, k]] > earned[:, None]) & (numbers >= used[:, None]) & has[:, None]
            some = more.any(axis=1)
            used = np.where(some, more.argmax(axis=1), used)
            following = np.minimum(used + 1, self._counts.numpy()[before[:, k]] - 1)
            found[:, k] = np.where(some, self._begins[self._first_group[before[:, k]] + following], found[:, k])
        return found

    def gather(self, index: Tensor) -> Contexts:
        """The contexts of what was drawn, `(..., b, n (+ K))`; nothing here waits for the device."""
        index = index.to(self._rows.device, non_blocking=True)
        episodes = index[..., : self.episodes].contiguous()
        there, c = self._lay_out(episodes, self._groups_of), self.interval
        episode = episodes.gather(-1, there.place).clamp(min=0)  # (..., K)
        length, last = self._lengths[episode], there.group == self._groups_of[episode] - 1
        short = torch.where(last, self._groups_of[episode] * c - length, 0)[..., None]
        within = torch.arange(c, device=index.device)
        step = there.group[..., None] * c + within - short  # (..., K, c)
        real = (there.real[..., None] & (within >= short)).flatten(-2)  # (..., k)
        step, episode = step.flatten(-2), episode.repeat_interleave(c, dim=-1)
        place = there.place.repeat_interleave(c, dim=-1)
        padding = len(self._rows) - 1
        rows = torch.where(real, self._starts[episode] + step, padding)
        parts = dict(zip(self._names, torch.split(self._rows[rows], self._sizes, dim=-1), strict=True))
        largest = torch.where(episodes >= 0, self._returns[episodes.clamp(min=0)], -torch.inf).amax(-1, keepdim=True)
        parts["returns_to_go"] = parts["returns_to_go"] + ((largest - self._returns[episode]) * real)[..., None]
        ended = self._marks[episode] * (step == self._lengths[episode] - 1) * real
        learned = real if self.learned == "all" else real & (place == self.episodes - 1)
        parts |= {"ended": ended[..., None], "learned": learned[..., None].to(ended.dtype)}
        if self.goals is not None:
            goals = index[..., self.episodes :].repeat_interleave(c, dim=-1)
            states = self._rows[torch.where(real, goals, padding)]
            parts["goals"] = torch.split(states, self._sizes, dim=-1)[self._names.index("states")]
        return self.batch(**parts, timesteps=torch.where(real, step, 0), mask=real)


def as_histories(trajectories: Trajectories) -> Trajectories:
    """The same steps with each learner's history as one long episode, in the order of learning.

    Windows drawn of these cross the ends of episodes, and never those of tasks. Data without histories are one history.
    """
    t = trajectories
    tasks = np.zeros(t.episodes, dtype=np.int64) if t.histories is None else t.histories
    whole = t.select(np.argsort(tasks, kind="stable"))
    ordered = np.sort(tasks, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(ordered) != 0))
    last = np.append(first[1:], t.episodes) - 1
    starts = whole.starts[first]
    closing = whole.last_observations
    return dataclasses.replace(
        whole,
        starts=starts,
        lengths=np.diff(np.append(starts, t.transitions)),
        terminated=whole.terminated[last],
        histories=ordered[first],
        last_observations=None if closing is None else closing[last],
    )
