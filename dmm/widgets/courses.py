"""The still picture of a figure in which policies act: stick figures from the side, or paths from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dmm.acting import RecurrentActor, make_actor
from dmm.data.skeleton import View, Watcher
from dmm.evaluation import make_env
from dmm.models.frame import TokenPolicy
from dmm.plots import COLORS
from dmm.training import Run

_WIDTH, _HEIGHT, _DPI = 7.2, 2.6, 100
_POSES = 9


@dataclass(frozen=True)
class Course:
    """What one policy did from one start."""

    label: str
    color: str
    view: View
    points: Sequence[NDArray[np.float64]]
    """Of the body, for every observation: `(p, 2)`."""
    places: dict[str, tuple[float, float]]
    earned: float


def play_course(run: Run, label: str, *, asked: float, color: str = "state", way: str = "recurrent",
                padding: bool = True, seed: int = 0, steps: int = 150) -> Course:  # fmt: skip
    """The first steps of one episode, in the environment that the run's data came from.

    `padding` says whether a recurrence begins behind it, as a window does.
    """
    env = Watcher(make_env(run.info))
    try:
        observation, _ = env.reset(seed=seed)
        actor: Any = make_actor(run.policy, way) if padding else RecurrentActor(cast(TokenPolicy, run.policy), False)
        memory, reward, earned = actor.init_state(1, asked), None, 0.0
        for _ in range(steps):
            action, memory = actor.act(memory, torch.from_numpy(observation)[None], reward)
            played: Any = action[0].cpu().numpy().copy()
            observation, paid, terminated, truncated, _ = env.step(played)
            earned += float(paid)
            reward = torch.tensor([float(paid)])
            if terminated or truncated:
                break
        return Course(label, color, env.view, env.points, env.places[0], earned)
    finally:
        env.close()


def draw_courses(groups: Sequence[Sequence[Course]]) -> bytes:
    """A png: one panel for each group of courses of one kind, side by side."""
    with mpl.rc_context(mpl.rcParamsDefault | {"font.size": 9, "axes.grid": False}):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        for axes, courses in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups, strict=True):
            view = courses[0].view
            (_side if view.segments else _above)(axes, courses)
            axes.set_aspect("equal")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        target = BytesIO()
        figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _side(axes: Axes, courses: Sequence[Course]) -> None:
    """Every course in a row of its own, a pose each time that it has moved on by a step of equal length."""
    low, high = courses[0].view.limits()[1]
    tall = high - low
    widest = max(course.points[-1][:, 0].max() for course in courses)
    for row, course in enumerate(reversed(courses)):
        places = np.linspace(0, len(course.points) - 1, _POSES).round().astype(int)
        axes.axhline(row * tall, color="#8B949E", linewidth=1)
        for place, alpha in zip(places, np.linspace(0.25, 1, _POSES), strict=True):
            points = course.points[place] + [0, row * tall]
            for ends in course.view.segments:
                axes.plot(*points[list(ends)].T, color=COLORS[course.color], alpha=alpha, linewidth=2.5)
        axes.plot([], [], color=COLORS[course.color], label=f"{course.label}, {places[-1]} steps")
    axes.set(xlim=(-0.6, widest + 0.4), ylim=(low / 2, tall * len(courses) - 0.3), yticks=[], xlabel="metres")
    axes.spines["left"].set_visible(False)


def _above(axes: Axes, courses: Sequence[Course]) -> None:
    """All courses on one plan, each with its start and its end."""
    view = courses[0].view
    for left, bottom, width, height in view.walls:
        axes.add_patch(Rectangle((left, bottom), width, height, color="#8B949E", linewidth=0))
    for name, (x, y) in courses[0].places.items():
        axes.plot(x, y, "*", color="#1F2328", markersize=9)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 3))
    for course in courses:
        path = np.array([points[0] for points in course.points])
        axes.plot(*path.T, color=COLORS[course.color], linewidth=1.6, label=course.label)
        axes.plot(*path[-1], "o", color=COLORS[course.color], markersize=6)
    across, upwards = view.limits()
    axes.set(xlim=across, ylim=upwards, xlabel="x (m)", ylabel="y (m)")
