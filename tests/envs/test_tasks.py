"""Tasks for training and for evaluation never meet, and together with neither they are all there are."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

import dmm.envs  # noqa: F401
from dmm.data.observations import build_flat_env
from dmm.data.recipes import RECIPES, Learner
from dmm.envs.tasks import (
    OneTask,
    best_return,
    draw_training_task,
    evaluation_tasks,
    held_out_cells,
    hidden_parts,
    is_for_training,
    is_held_out,
)
from dmm.errors import InputError
from dmm.evaluation import play_tasks

ROOMS = {
    "Darkroom": (9, ("goal",)),
    "DarkroomHard": (9, ("goal",)),
    "KeyToDoor": (9, ("key", "door")),
    "DarkroomDynamic": (9, ("permutation",)),
    "LargeDarkroom": (40, ("goal",)),
    "LargeDarkroomHard": (40, ("goal",)),
    "LargeKeyToDoor": (40, ("key", "door")),
    "LargeDarkroomDynamic": (40, ("permutation",)),
}


def make(name: str, **kwargs: Any) -> gym.Env:
    return gym.make(f"dmm/{name}-v0", disable_env_checker=True, **kwargs)


def frozen(task: dict[str, Any]) -> tuple[Any, ...]:
    return tuple((name, tuple(value)) for name, value in task.items())


@pytest.mark.parametrize("size", [9, 10, 40])
def test_a_fifth_of_the_cells_is_held_out_and_each_cell_has_one_near(size: int) -> None:
    held_out = held_out_cells(size)
    assert abs(len(held_out) - size**2 / 5) < 1
    inside = [(x, y) for x in range(1, size - 1) for y in range(1, size - 1)]
    near = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    assert all(sum((x + dx, y + dy) in held_out for dx, dy in near) == 1 for x, y in inside)


def test_held_out_permutations_hide_no_pair_of_moves() -> None:
    every = list(itertools.permutations(range(5)))
    held_out = [p for p in every if is_held_out("permutation", p)]
    assert held_out == sorted({tuple((m * i + c) % 5 for i in range(5)) for m in range(1, 5) for c in range(5)})
    pairs = list(itertools.permutations(range(5), 2))
    for (i, j), (a, b) in itertools.product(pairs, pairs):
        assert sum(p[i] == a and p[j] == b for p in held_out) == 1
        assert sum(p[i] == a and p[j] == b for p in every) == 6


@pytest.mark.parametrize("name", ["Darkroom", "KeyToDoor", "DarkroomDynamic"])
def test_all_tasks_for_training_are_drawn_equally_and_none_other(name: str) -> None:
    (size, names), rng = ROOMS[name], np.random.default_rng(0)
    number = {"Darkroom": 65, "KeyToDoor": 65 * 64, "DarkroomDynamic": 100}[name]
    drawn = [frozen(draw_training_task(rng, names, size)) for _ in range(12 * number)]
    counts = np.array([drawn.count(task) for task in list(set(drawn))[:200]])
    assert len(set(drawn)) > 0.999 * number and counts.max() < 40
    assert not any(is_held_out(part, value) for task in set(drawn) for part, value in task)


@pytest.mark.parametrize("name", ROOMS)
def test_tasks_for_evaluation_are_held_out_in_every_part(name: str) -> None:
    (_, names), env = ROOMS[name], make(name)
    assert hidden_parts(env) == names
    tasks = evaluation_tasks(env, 10**6, np.random.default_rng(0))
    cells = {9: 16, 40: 320}[ROOMS[name][0]]
    assert (
        len({frozen(task) for task in tasks})
        == len(tasks)
        == {
            ("goal",): cells,
            ("key", "door"): cells * (cells - 1),
            ("permutation",): 20,
        }[names]
    )
    for task in tasks[:500]:
        assert tuple(task) == names and all(is_held_out(*part) for part in task.items()) and not is_for_training(task)
        env.reset(options=task)


def test_fewer_tasks_are_the_first_ones_and_the_generator_decides_the_order() -> None:
    env = make("KeyToDoor")
    many, few, others = (
        evaluation_tasks(env, count, np.random.default_rng(seed)) for count, seed in ((50, 1), (8, 1), (8, 2))
    )
    assert many[:8] == few != others and len(many) == 50
    with pytest.raises(InputError, match="count: got 0"):
        evaluation_tasks(env, 0, np.random.default_rng(0))


@pytest.mark.parametrize("name", ["dmm/TMaze-v0", "CartPole-v1"])
def test_environments_that_hide_nothing_have_one_task(name: str) -> None:
    assert evaluation_tasks(gym.make(name), 5, np.random.default_rng(0)) == [{}]


def test_a_known_key_with_an_unknown_door_is_for_neither() -> None:
    task = {"key": (0, 1), "door": (0, 0)}
    assert not is_for_training(task)
    assert frozen(task) not in map(frozen, evaluation_tasks(make("KeyToDoor"), 1000, np.random.default_rng(0)))


@pytest.mark.parametrize("recipe", [r for r in RECIPES.values() if r.histories], ids=lambda recipe: recipe.name)
def test_no_history_is_about_a_task_for_evaluation(recipe: Any) -> None:
    env = gym.make(recipe.env_id, disable_env_checker=True)
    for place in range(8):
        learner = recipe.stages[0]()
        assert isinstance(learner, Learner)
        task = learner.options(np.random.default_rng(place))
        assert tuple(task) == hidden_parts(env) and is_for_training(task)
        env.reset(options=task)


def test_one_task_serves_all_episodes_whatever_wraps_the_room() -> None:
    for room in (make("KeyToDoor"), build_flat_env("dmm/KeyToDoor-v0", (), 2, 5)):
        env, starts = OneTask(room, {"key": (0, 0), "door": (4, 2)}), set()
        for seed in (0, 1, None, None):
            observation, info = env.reset(seed=seed, options={"key": (1, 1)} if seed else None)
            assert info["key"].tolist() == [0, 0] and info["door"].tolist() == [4, 2]
            starts.add(tuple(observation.tolist()))
        assert len(starts) > 1
        assert env.reset(options={"start": (3, 3)})[0].tolist() == [3, 3]


class Guide:
    """Knows the goal of every task and walks there."""

    def __init__(self, goals: list[tuple[int, int]]):
        self.goals = torch.tensor(goals, dtype=torch.float32)

    def init_state(self, n: int, target: Any) -> Tensor:
        assert n == len(self.goals)
        return torch.arange(n)

    def act(self, state: Tensor, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Tensor]:
        (dx, dy), move = (self.goals[state] - observation).T, torch.zeros(len(state), dtype=torch.int64)
        move = torch.where(dy > 0, 1, torch.where(dy < 0, 2, move))
        move = torch.where(dx < 0, 3, torch.where(dx > 0, 4, move))
        return torch.nn.functional.one_hot(move, 5).float(), state

    def next_episode(self, state: Tensor, rows: Tensor, target: Any, outcome: Any) -> Tensor:
        return state

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]


def test_who_knows_the_held_out_goals_gets_the_best_return_in_every_episode() -> None:
    room = build_flat_env("dmm/Darkroom-v0", (), 2, 5)
    tasks = evaluation_tasks(room, 16, np.random.default_rng(0))
    envs = [OneTask(build_flat_env("dmm/Darkroom-v0", (), 2, 5), task) for task in tasks]
    returns = play_tasks(Guide([task["goal"] for task in tasks]), envs, episodes=3)
    distance = np.array([abs(x - 4) + abs(y - 4) for x, y in (task["goal"] for task in tasks)])
    np.testing.assert_array_equal(returns, np.tile(21 - np.maximum(distance, 1), (3, 1)).T)
    assert returns.mean() == 16.625  # over all 81 goals: 16.54


def shortest_return(name: str, task: dict[str, Any], steps: int) -> float:
    """The best return of an episode by search over all that can be reached, step by step, in a small room."""
    env = make(name, size=4)
    env.reset(seed=0, options={**task, "start": (2, 2)} if name != "DarkroomDynamic" else task)
    base: Any = env.unwrapped
    best = {(base.x, base.y, 0): 0.0}  # place, rewards so far -> return
    for _ in range(steps):
        after: dict[tuple[int, int, int], float] = {}
        for (x, y, got), total in best.items():
            for action in range(5):
                base.x, base.y = x, y
                base.found, base.has_key, base.opened = got > 0, got > 0, got > 1
                _, reward, *_ = base.step(action)
                where = (base.x, base.y, min(got + (reward > 0), 2))
                after[where] = max(after.get(where, -1.0), total + float(reward))
        best = after
    return max(best.values())


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Darkroom", {"goal": (0, 0)}),
        ("Darkroom", {"goal": (2, 2)}),
        ("Darkroom", {"goal": (3, 1)}),
        ("DarkroomHard", {"goal": (0, 0)}),
        ("KeyToDoor", {"key": (0, 0), "door": (3, 3)}),
        ("DarkroomDynamic", {"permutation": [1, 2, 3, 4, 0]}),
    ],
)
def test_the_best_return_is_that_of_a_search(name: str, task: dict[str, Any]) -> None:
    steps = 12
    assert best_return(make(name, size=4), task, steps) == shortest_return(name, task, steps)


def test_what_no_way_is_known_for() -> None:
    assert best_return(gym.make("CartPole-v1"), {}, 500) is None
    assert best_return(make("Darkroom"), {"goal": (0, 0)}, None) is None  # an episode without an end pays for ever
    assert best_return(make("KeyToDoor"), {"key": (0, 0), "door": (8, 8)}, 20) is None  # by the start, perhaps
    assert best_return(make("TMaze", length=20), {}, None) == 1.0
    assert best_return(make("TMaze", length=20), {}, 21) == 1.0 and best_return(make("TMaze", length=20), {}, 20) == 0.0
