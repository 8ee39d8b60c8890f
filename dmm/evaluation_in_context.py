"""Evaluation in context: episodes in a row of one task, with the weights as they are and what the policy remembers.

In a dark room a task is a hidden goal that no data were about (`dmm.envs.tasks`), and what is measured is whether a
policy gets better from episode to episode of the same one. Many tasks are played at once, each in an environment of its
own. Where an environment hides nothing there is one task, which is played `ROWS` times, from other starts.

A policy that does not learn in context is played as a control: it begins each episode of a task anew.

Intervals are over tasks, of the one policy; what another training seed would do is not in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np

from dmm.data.faults import time_limit
from dmm.data.scores import normalize
from dmm.envs.tasks import OneTask, Task, best_return, evaluation_tasks, hidden_parts
from dmm.errors import InputError, whole_number
from dmm.evaluation import (
    ENVIRONMENTS_AT_ONCE,
    bootstrap_interval,
    environments,
    play_tasks,
    play_tasks_anew,
    step_limit,
)
from dmm.policy import Policy

if TYPE_CHECKING:
    from dmm.acting import Actor
    from dmm.training import Run

Remembered = Literal["kept", "reset"]
TASKS = ENVIRONMENTS_AT_ONCE
"""Tasks that are played, unless there are fewer."""
ROWS = 20
"""How often the one task of an environment that hides nothing is played."""


@dataclass(frozen=True)
class Mean:
    """Of one number of each task."""

    mean: float
    ci95: tuple[float, float]  # bootstrap over tasks

    @classmethod
    def of(cls, values: np.ndarray) -> Mean:
        """`(tasks,)`."""
        return cls(float(values.mean()), bootstrap_interval(values))

    def text(self) -> str:
        """`9.31 [7.62, 10.9]`."""
        return f"{self.mean:.3g} [{self.ci95[0]:.3g}, {self.ci95[1]:.3g}]"

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "ci95": list(self.ci95)}


@dataclass(frozen=True)
class InContextEvaluation:
    """What episodes in a row of several tasks came to, for one run's last checkpoint."""

    dataset: str
    model: str
    seed: int
    step: int
    acting: str  # a way of `dmm.acting.make_actor`
    states: int | None  # of `staggered` acting, None for other ways
    target: float
    memory: Remembered  # between the episodes of a task; `reset` for a control
    hidden: tuple[str, ...]  # what makes a task; none where an environment hides nothing
    tasks: tuple[Task, ...]
    returns: np.ndarray  # (tasks, episodes), undiscounted
    reference: tuple[float, float] | None  # returns of random actions and of an expert that knows the task
    best_possible: float | None  # the mean over these tasks of what can be reached, where it is known

    @property
    def per_episode(self) -> list[Mean]:
        """Of the first episode of every task, of the second, ..."""
        return [Mean.of(values) for values in self.returns.T]

    @property
    def first(self) -> Mean:
        """Of each task's first episode."""
        return Mean.of(self.returns[:, 0])

    @property
    def last(self) -> Mean:
        """Of each task's last episode: the score that Decision Mamba-Hybrid's paper reports."""
        return Mean.of(self.returns[:, -1])

    @property
    def best(self) -> Mean:
        """Of each task's best episode; a maximum, which noise alone lifts above every episode's mean."""
        return Mean.of(self.returns.max(axis=1))

    @property
    def improvement(self) -> Mean:
        """Of the last episode over the first, task by task."""
        return Mean.of(self.returns[:, -1] - self.returns[:, 0])

    def to_json(self) -> dict[str, Any]:
        """Plain values; `normalized_score` and `ci95` are those of the last episode."""
        ends, score = Mean.of(self.returns[:, -1]), None
        if self.reference is not None:
            ends = Mean.of(normalize(self.returns[:, -1], self.reference))
            score = ends.mean
        each = self.per_episode
        return {
            "dataset": self.dataset,
            "model": self.model,
            "seed": self.seed,
            "step": self.step,
            "acting": self.acting,
            "states": self.states,
            "targets": [self.target],
            "episodes_in_context": self.returns.shape[1],
            "memory": self.memory,
            "hidden": list(self.hidden),
            "tasks": [dict(task) for task in self.tasks],
            "returns": self.returns.tolist(),
            "normalized_score": score,
            "ci95": list(ends.ci95),
            "mean_per_episode": [episode.mean for episode in each],
            "ci95_per_episode": [list(episode.ci95) for episode in each],
            **{name: getattr(self, name).to_json() for name in ("first", "last", "best", "improvement")},
            "random": None if self.reference is None else self.reference[0],
            "best_possible": self.best_possible,
        }

    def text(self) -> str:
        """A line an episode, then what they come to."""
        count, episodes = self.returns.shape
        what = f"held-out tasks ({' and '.join(self.hidden)})" if self.hidden else "rows of the one task there is"
        memory = "memory kept from episode to episode"
        if self.memory == "reset":
            memory = "a control that does not learn in context: each episode begins anew"
        way = self.acting + (f" with {self.states} states" if self.states else "")
        known = (("random actions", self.reference and self.reference[0]), ("best possible", self.best_possible))
        lines = [
            f"{self.model} on {self.dataset}, step {self.step:,}, {count} {what}, {episodes} episodes in a row each",
            f"acting: {way}; target {self.target:g}; {memory}",
            f"{'episode':14}mean return, 95 % interval over tasks",
            *(f"{number:<14}{episode.text()}" for number, episode in enumerate(self.per_episode, 1)),
            f"{'last - first':14}{self.improvement.text()}",
            f"{'best of each':14}{self.best.text()}",
            *(f"{name}: {value:.4g}" for name, value in known if value is not None),
        ]
        return "\n".join(lines)


def evaluate_tasks(
    run: Run,
    actor: Actor,
    make: Callable[[], gym.Env],
    *,
    episodes: int,
    target: float,
    seed: int,
    acting: str,
    states: int | None,
    reference: tuple[float, float] | None,
    tasks: int | None = None,
    at_once: int | None = None,
    max_steps: int | None = None,
    progress: bool | str = False,
) -> InContextEvaluation:
    """Play `episodes` in a row of each of many tasks; see `dmm.evaluation.evaluate`, which calls this.

    Args:
        run: what is evaluated.
        actor: its policy, acting in one of the ways.
        make: makes one environment.
        episodes: of each task; see `play_tasks` for their seeds.
        target: asked for in every episode.
        seed: draws the tasks, and is that of the first episode.
        acting, states, reference: for the report.
        tasks: at most so many; all that are held out, `TASKS` at most, if not given.
        at_once: environments that are open at most; those of further tasks follow. No return depends on it.
        max_steps: end every episode after so many steps.
        progress: show a bar on stderr, under this label.

    Raises:
        InputError: a number out of range, or an environment that cannot be made.
        RunError: the environment failed, or gave or was given NaN or infinity.
    """
    episodes = whole_number("episodes_in_context", episodes, 1)
    count = None if tasks is None else whole_number("tasks", tasks, 1)
    keeps = type(run.policy).next_episode is not Policy.next_episode
    if keeps and run.info["dataset"].get("delayed_rewards"):
        raise InputError(
            f"episodes_in_context: got {episodes} for a {run.info['model']} of delayed rewards, which cannot be told "
            "what its steps earn; allowed are runs of data with rewards per step"
        )
    with environments(make, 1) as envs:
        hidden, chosen = hidden_parts(envs[0]), _choose(envs[0], count, seed)
        limit = step_limit(envs[0], run.info["dataset"]) if max_steps is None else max_steps
        best = _best_possible(envs[0], chosen, max_steps)
    play: Any = play_tasks if keeps else play_tasks_anew
    options: Any = {"episodes": episodes, "target": target, "seed": seed, "max_steps": limit, "progress": progress}
    parts: list[np.ndarray] = []
    with environments(make, len(chosen), at_once) as envs:
        for first in range(0, len(chosen), len(envs)):
            rows = [OneTask(env, task) for env, task in zip(envs, chosen[first:], strict=False)]
            parts.append(play(actor, rows, **options, first=first))
    return InContextEvaluation(
        dataset=run.info["dataset"]["id"],
        model=run.info["model"],
        seed=run.info["training"]["seed"],
        step=run.step,
        acting=acting,
        states=states,
        target=target,
        memory="kept" if keeps else "reset",
        hidden=hidden,
        tasks=tuple(chosen),
        returns=np.concatenate(parts),
        reference=reference,
        best_possible=best,
    )


def _choose(env: gym.Env, count: int | None, seed: int) -> list[Task]:
    """The tasks to play."""
    found = evaluation_tasks(env, TASKS if count is None else count, np.random.default_rng(seed))
    if not hidden_parts(env):
        return found * (ROWS if count is None else count)
    return found


def _best_possible(env: gym.Env, tasks: Sequence[Task], max_steps: int | None) -> float | None:
    steps = min((limit for limit in (time_limit(env), max_steps) if limit is not None), default=None)
    known = [value for task in tasks if (value := best_return(env, task, steps)) is not None]
    return float(np.mean(known)) if len(known) == len(tasks) else None
