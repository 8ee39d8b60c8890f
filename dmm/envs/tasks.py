"""Which tasks of the dark rooms are for training and which for evaluation: the one place that says so.

A model that learns in context has to be judged on tasks that its data know nothing of. So some cells of each room, and
some permutations of the actions, are **held out**. A task for training has no part that is held out, neither key nor
door; a task for evaluation has no other. (A known key with an unknown door is neither.)

- Cells: a fifth of each room, a knight's move apart, so that they are spread evenly: `(2 x + y) mod 5 = 0`.
- Permutations: the 20 of 120 that are `i -> (m i + c) mod 5`. Any two actions make any two moves in one of them and in
  five of the others: nothing that can be said of two actions is new in an evaluation, only the whole is.

A task is what `reset` takes as its options, such as `{"key": (0, 3), "door": (8, 8)}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.envs.grid import (
    ACTIONS,
    Cell,
    Darkroom,
    DarkroomDynamic,
    DarkroomHard,
    GridWorld,
    KeyToDoor,
    centre,
    draw_task,
)
from dmm.envs.tmaze import TMaze
from dmm.errors import whole_number

Task = dict[str, Any]
PERMUTATION = ("permutation",)


def is_held_out(name: str, value: Any) -> bool:
    """Whether no data may be about a task with this part: a cell `(x, y)`, or a `permutation` of the five actions."""
    if name in PERMUTATION:
        return len(set((np.diff(value) % len(ACTIONS)).tolist())) == 1
    x, y = value
    return bool((2 * x + y) % 5 == 0)


def is_for_training(task: Mapping[str, Any]) -> bool:
    """Whether no part of the task is held out."""
    return not any(is_held_out(name, value) for name, value in task.items())


def draw_training_task(rng: np.random.Generator, names: tuple[str, ...], size: int) -> Task:
    """A task for training, uniform over all of them.

    Args:
        names: the parts of the task, of `hidden_parts`.
        size: cells along each side of the room.
    """
    while True:
        drawn: Task = (
            {"permutation": rng.permutation(len(ACTIONS)).tolist()}
            if names == PERMUTATION
            else dict(draw_task(rng, names, size))
        )
        if is_for_training(drawn):
            return drawn


def hidden_parts(env: gym.Env) -> tuple[str, ...]:
    """The names of what is hidden in an environment and the same for all episodes of a task; none but in dark rooms."""
    base = env.unwrapped
    if isinstance(base, DarkroomDynamic):
        return PERMUTATION
    return base.TASK if isinstance(base, GridWorld) else ()


def evaluation_tasks(env: gym.Env, count: int, rng: np.random.Generator) -> list[Task]:
    """Up to `count` different tasks for evaluation, in an order drawn with `rng`; fewer where there are not so many.

    An environment that hides nothing (`hidden_parts`) has one task, which needs no options.

    Raises:
        InputError: `count` below 1.
    """
    whole_number("count", count, 1)
    names = hidden_parts(env)
    if not names:
        return [{}]
    if names == PERMUTATION:
        parts = [(p,) for p in itertools.permutations(range(len(ACTIONS))) if is_held_out("permutation", p)]
        every: list[tuple[Any, ...]] = [(list(p),) for (p,) in parts]
    else:
        every = list(itertools.permutations(held_out_cells(env.unwrapped.size), len(names)))  # type: ignore[attr-defined]
    return [dict(zip(names, every[i], strict=True)) for i in rng.permutation(len(every))[:count]]


def held_out_cells(size: int) -> list[Cell]:
    """The cells of a room that no data have as a goal, key or door, row by row from below."""
    cells = [(x, y) for y in range(size) for x in range(size)]
    return [cell for cell in cells if is_held_out("cell", cell)]


def best_return(env: gym.Env, task: Mapping[str, Any], steps: int | None) -> float | None:
    """The return of the shortest way, of an agent that knows the task; None where it is not known.

    `steps` are those after which an episode is ended, None if it never is.

    In a room that pays on each step the first one comes at the goal's distance from the centre, and at the first step
    for a goal in the centre, which is left for no time. Keys and doors pay 1 each wherever an episode starts.
    """
    base = env.unwrapped
    if isinstance(base, TMaze):  # which ends by itself
        return float(steps is None or steps > base.length)
    if steps is None or not isinstance(base, GridWorld):
        return None
    x, y = centre(base.size)
    if isinstance(base, KeyToDoor):
        return 2.0 if steps >= 4 * (base.size - 1) else None  # twice across the room, at most
    goal = (base.size - 1, base.size - 1) if isinstance(base, DarkroomDynamic) else task["goal"]
    way = max(abs(goal[0] - x) + abs(goal[1] - y), 1)
    if isinstance(base, DarkroomHard):
        return float(steps >= way)
    return float(max(steps + 1 - way, 0)) if isinstance(base, Darkroom) else None


class OneTask(gym.Wrapper):
    """An environment in which all episodes are about one task: what a model that learns in context is tested in.

    Args:
        env: the environment, wrapped or not.
        task: the options that every `reset` gets beside its own, of `evaluation_tasks`.
    """

    def __init__(self, env: gym.Env, task: Task):
        super().__init__(env)
        self.task = task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={**(options or {}), **self.task})
