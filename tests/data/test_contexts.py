from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dmm.data.contexts import Contexts, ContextSampler, GoalContexts, as_histories
from dmm.data.sub_goals import sub_goals
from dmm.data.trajectories import Trajectories
from dmm.errors import InputError
from tests.conftest import MakeTrajectories

LENGTHS = (3, 9, 1, 12, 7, 4, 8, 8, 2, 10)
TASKS = np.array([2, 0, 0, 2, 2, 0, 5, 2, 0, 0])


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    return dataclasses.replace(make_trajectories(lengths=LENGTHS), histories=TASKS)


def naive(t: Trajectories, episodes: list[int], groups: int, c: int) -> dict[str, np.ndarray]:
    """One context, step by step: each episode cut into groups, short ones padded in front, the last groups kept."""
    best, rows, last = max(t.returns()[episodes]), [], episodes[-1]
    for number, e in enumerate(episodes):
        steps = np.arange(t.lengths[e])
        for first in range(0, int(t.lengths[e]), c):
            group = steps[first : first + c]
            rows += [None] * (c - len(group)) + [(number, e, int(step)) for step in group]
    rows = ([None] * groups * c + rows)[-groups * c :]
    made: dict[str, list[Any]] = {f.name: [] for f in dataclasses.fields(Contexts)}
    for row in rows:
        if row is None:
            blank = {"states": np.zeros(t.state_size), "actions": np.zeros(t.action_size)}
            for name in made:
                made[name].append(blank.get(name, 0 if name in ("timesteps", "mask") else [0.0]))
            continue
        number, e, step = row
        at = t.starts[e] + step
        to_go = best - t.rewards[t.starts[e] : at].astype(np.float64).sum()
        values = {"states": t.observations[at], "actions": t.actions[at], "rewards": [t.rewards[at]]}
        values |= {"returns_to_go": [to_go], "timesteps": step, "mask": True}
        values |= {"ended": [float(step == t.lengths[e] - 1)], "learned": [float(number == len(episodes) - 1)]}
        for name, value in values.items():
            made[name].append(value)
    assert last == episodes[-1]
    return {name: np.array(value) for name, value in made.items()}


@pytest.mark.parametrize(("groups", "c"), [(4, 3), (7, 1), (3, 5), (30, 2)])
def test_every_context_is_the_naive_one(data: Trajectories, groups: int, c: int) -> None:
    sampler = ContextSampler(data, groups, interval=c)
    index = sampler.draw(5, 8, torch.Generator().manual_seed(0))
    made = sampler.gather(index)
    assert made.mask.shape == (5, 8, groups * c)
    for i in range(5):
        for j in range(8):
            episodes = [e for e in index[i, j].tolist() if e >= 0]
            for name, expected in naive(data, episodes, groups, c).items():
                found = getattr(made, name)[i, j].numpy()
                np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=name)


def test_a_context_is_of_one_task_and_sorted_by_return(data: Trajectories) -> None:
    sampler = ContextSampler(data, 6, interval=3)
    index, returns, seen = sampler.draw(40, 16, torch.Generator().manual_seed(0)).flatten(0, 1), data.returns(), set()
    for row in index.tolist():
        episodes = [e for e in row if e >= 0]
        assert row[: len(row) - len(episodes)] == [-1] * (len(row) - len(episodes))
        assert len({int(TASKS[e]) for e in episodes}) == 1
        assert returns[episodes].tolist() == sorted(returns[episodes].tolist())
        groups = -(-np.array(LENGTHS)[episodes] // 3)
        assert groups.sum() >= 6 or len(episodes) == sampler.episodes
        seen |= {int(TASKS[e]) for e in episodes}
    assert seen == {0, 2, 5}


def test_tasks_and_episodes_are_drawn_in_proportion_to_their_steps(data: Trajectories) -> None:
    sampler = ContextSampler(data, 1)  # one step: one episode
    index = sampler.draw(1, 20_000, torch.Generator().manual_seed(0))[0, :, -1]
    share = np.bincount(index.numpy(), minlength=len(LENGTHS)) / len(index)
    np.testing.assert_allclose(share, np.array(LENGTHS) / sum(LENGTHS), atol=0.01)


def test_in_the_order_of_learning_a_context_is_the_history_up_to_an_episode(data: Trajectories) -> None:
    sampler = ContextSampler(data, 6, interval=3, order="learning", learned="all")
    index = sampler.draw(20, 16, torch.Generator().manual_seed(0)).flatten(0, 1)
    for row in index.tolist():
        episodes = [e for e in row if e >= 0]
        history = [e for e in range(len(LENGTHS)) if TASKS[e] == TASKS[episodes[-1]]]
        end = history.index(episodes[-1]) + 1
        assert episodes == history[end - len(episodes) : end]
        groups = -(-np.array(LENGTHS)[episodes] // 3)
        assert (groups.sum() >= 6 and groups[1:].sum() < 6) or len(episodes) == end
    made = sampler.gather(index)
    assert torch.equal(made.learned[..., 0].bool(), made.mask)


def test_the_best_episode_of_each_task_can_be_set_aside(data: Trajectories) -> None:
    sampler = ContextSampler(data, 8, interval=2, best="out")
    drawn = set(sampler.draw(40, 16, torch.Generator().manual_seed(0)).flatten().tolist()) - {-1}
    returns = data.returns()
    best = {max(np.flatnonzero(task == TASKS), key=lambda e: returns[e]) for task in (0, 2)}  # 5 has but one
    assert drawn == set(range(len(LENGTHS))) - best


def test_ends_may_be_those_of_the_environment_alone(data: Trajectories) -> None:
    assert not data.terminated.all()
    marks = {}
    for ends in ("episode", "terminal"):
        sampler = ContextSampler(data, 12, ends=ends)
        marks[ends] = sampler.contexts_of([[0], [3]]).ended[:, -1, 0].tolist()
    assert marks == {"episode": [1.0, 1.0], "terminal": data.terminated[[0, 3]].astype(float).tolist()}


def released(t: Trajectories, episodes: list[int], c: int) -> list[np.ndarray]:
    """The states of the released rule's sub-goals, group after group, as its code goes about it."""
    goals: list[np.ndarray] = []
    states_before: list[np.ndarray] = []
    earned_before: list[float] = []
    for e in episodes:
        states, rewards = (array[t.starts[e] : t.starts[e] + t.lengths[e]] for array in (t.observations, t.rewards))
        own, earned, sums, pointer = [], 0.0, [], 0
        _, rows = sub_goals(rewards, np.array([len(rewards)]), c, "released")
        for group, first in enumerate(range(0, len(states), c)):
            earned += float(rewards[first : first + c].astype(np.float64).sum())
            own.append(states[first])
            sums.append(earned)
            later = [q for q in range(pointer, len(earned_before)) if earned_before[q] > earned]
            if later:
                pointer = later[0]
                goals.append(states_before[min(pointer + 1, len(states_before) - 1)])
            else:
                goals.append(states[rows[group]])
        states_before, earned_before = own, sums
    return goals


@pytest.mark.parametrize("c", [1, 3])
def test_released_sub_goals_come_from_the_episode_before(data: Trajectories, c: int) -> None:
    rng = np.random.default_rng(3)
    t = dataclasses.replace(data, rewards=rng.integers(-2, 4, size=data.transitions).astype(np.float32))
    sampler = ContextSampler(t, 9, interval=c, goals="released")
    index = sampler.draw(6, 8, torch.Generator().manual_seed(0)).flatten(0, 1)
    made = sampler.gather(index)
    assert isinstance(made, GoalContexts)
    from_before = 0
    for row, goals, mask in zip(index[:, : sampler.episodes].tolist(), made.goals, made.mask, strict=True):
        episodes = [e for e in row if e >= 0]
        expected = released(t, episodes, c)[-9:]
        found = goals[c - 1 :: c][-len(expected) :].numpy()
        np.testing.assert_array_equal(found, expected)
        assert not goals[~mask].any()
        from_before += len(episodes) > 1
    assert from_before > 10


def test_draws_are_the_same_however_many_at_once(data: Trajectories) -> None:
    for order in ("return", "learning"):
        sampler = ContextSampler(data, 5, interval=2, order=order, goals="released")
        one, other = (torch.Generator().manual_seed(5) for _ in range(2))
        apart = torch.cat([sampler.draw(1, 4, other) for _ in range(3)])
        assert torch.equal(sampler.draw(3, 4, one), apart)


def test_contexts_of_named_episodes(data: Trajectories) -> None:
    sampler = ContextSampler(data, 4, interval=4)
    made = sampler.contexts_of([[-1, 0], [3, 4]])
    assert made.mask.sum(dim=1).tolist() == [3, 12 + 7 - 4]  # one group of 4 is cut off
    for episodes, reason in (
        ([[0, 1]], r"got those of tasks \[0, 2\] in one context, allowed is one task"),
        ([[0, -1]], r"allowed are numbers of 0 .. 9, with -1 in front for none"),
        ([[10]], r"allowed are numbers of 0 .. 9"),
        ([0], r"got shape \(1,\), allowed is \(b, m\) with m <= 4"),
    ):
        with pytest.raises(InputError, match=f"^episodes: {reason}"):
            sampler.contexts_of(episodes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("groups", 0), ("interval", 0), ("order", "best"), ("best", "no"), ("ends", "x"), ("learned", 1)],
)
def test_bad_choices(data: Trajectories, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: "):
        ContextSampler(data, **({"groups": 3} | {name: value}))  # type: ignore[arg-type]


def test_a_history_as_one_episode(data: Trajectories) -> None:
    whole = as_histories(data)
    assert whole.histories is not None and whole.histories.tolist() == [0, 2, 5]
    order = [e for task in (0, 2, 5) for e in range(len(LENGTHS)) if TASKS[e] == task]
    rows = np.concatenate([np.arange(data.starts[e], data.starts[e] + data.lengths[e]) for e in order])
    np.testing.assert_array_equal(whole.observations, data.observations[rows])
    assert whole.lengths.tolist() == [
        sum(n for n, task in zip(LENGTHS, TASKS, strict=True) if task == t) for t in (0, 2, 5)
    ]
    assert whole.terminated.tolist() == data.terminated[[9, 7, 6]].tolist()
    assert as_histories(dataclasses.replace(data, histories=None)).lengths.tolist() == [sum(LENGTHS)]
