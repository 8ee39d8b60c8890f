"""Experiments at a size that takes seconds: short episodes, jobs in this process, models kept in a scratch folder."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmm import experiments
from dmm.data import collect as collecting
from dmm.data import preview
from dmm.data.recipes import RECIPES
from dmm.experiments import all_models, gating, grid, pointmaze, queue

MAZE, HOPPER = "dmm/pointmaze/umaze-v0", "dmm/hopper/medium-v0"
TINY: dict[str, Any] = {"width": 8, "layers": 1, "batch_size": 4}
RunCommand = Callable[..., dict[str, Any]]


def do_here(work: Callable[[grid.Job], Any], job: grid.Job) -> Any:
    """A job's row, worked for in this process unless it is there."""
    queue.do_job(work, job)
    return queue.outcome(job)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept, instead of the committed ones."""
    for module in (experiments, grid):
        monkeypatch.setattr(module, "MODELS", tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def small_sets(datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`collect` makes small data sets of episodes of at most 12 steps; the maze's is there already."""
    collect = collecting.collect

    def quick(name: str, *, transitions: int | None = None, **more: Any) -> Any:
        return collect(name, transitions=100, workers=1, progress=False)

    for name in (MAZE, HOPPER):
        short = RECIPES[name].env_kwargs | {"max_episode_steps": 12}
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], env_kwargs=short))
    monkeypatch.setattr(collecting, "collect", quick)
    quick(MAZE)


@pytest.fixture
def maze_job(small_sets: None, tmp_path: Path) -> Callable[..., grid.Job]:
    """Makes a job of four updates: `maze_job(name="dmm", seed=0, model="dmm", **changes)`."""

    def make(name: str = "dmm", seed: int = 0, model: str = "dmm", **changes: Any) -> grid.Job:
        return grid.Job(
            name=name,
            seed=seed,
            folder=tmp_path / "runs" / f"{name}-seed{seed}",
            dataset=MAZE,
            model=model,
            steps=4,
            targets=(1.0, 0.0),
            episodes=2,
            changes=TINY | changes,
        )

    return make


@pytest.fixture
def run_command(small_sets: None, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs an experiment's `main`, two updates and two episodes a policy, and returns what it writes."""

    def run_here(work: Callable[[grid.Job], Any], jobs: list[grid.Job], workers: int) -> list[Any]:
        return [do_here(work, job) for job in jobs]

    for module in (pointmaze, gating, all_models):
        monkeypatch.setattr(module, "run_jobs", run_here)
    monkeypatch.setattr(pointmaze, "STEPS", 2)
    monkeypatch.setattr(pointmaze, "EPISODES", 2)
    monkeypatch.setattr(gating, "WINDOWS", 4)
    monkeypatch.setattr(gating, "PROBE_WINDOWS", (8, 4))
    monkeypatch.setattr(preview, "preview", functools.cache(preview.preview))
    monkeypatch.setattr(
        gating,
        "TASKS",
        {"pointmaze": gating.Task(MAZE, 2, (1.0, 0.0), 2, 2), "hopper": gating.Task(HOPPER, 2, (3600.0,), 2, 2)},
    )
    monkeypatch.chdir(tmp_path)

    def run(module: Any, seeds: int = 1) -> dict[str, Any]:
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(experiments, "RESULTS", tmp_path)
        monkeypatch.setattr(sys, "argv", [name, "--out", f"{name}.json", "--seeds", str(seeds)])
        module.main()
        return experiments.load_result(name)

    return run
