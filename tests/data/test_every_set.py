"""Every recipe, made at a reduced size: it can be made, read, scored and made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dmm.data.collect import collect, installed
from dmm.data.recipes import RECIPES, Learner, Recipe
from dmm.data.trajectories import Trajectories, load_trajectories

ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
SIZES = {"dmm/Kitchen-v0": 300, "dmm/AntMaze-v0": 800}
SHARED = (
    "dmm/walker2d/medium-replay-v0",
    "dmm/antmaze/umaze-diverse-v0",
    "dmm/kitchen/mixed-v0",
    "dmm/keytodoor/histories-v0",
)
"""One name of each kind, also made by several processes."""
D4RL_SIZES = {"hopper": (11, 3), "walker2d": (17, 6), "halfcheetah": (17, 6), "antmaze": (29, 8), "kitchen": (60, 9)}


def small(recipe: Recipe) -> int:
    if recipe.stages:
        return 60 * len(recipe.stages) if not recipe.histories else 2 * recipe.block
    return SIZES.get(recipe.env_id, 1500)


def make(recipe: Recipe, **more: int) -> Trajectories:
    collect(recipe, progress=False, **{"transitions": small(recipe), "workers": 1, **more})  # type: ignore[arg-type]
    return load_trajectories(recipe.name)


@ALL
def test_it_can_be_made_read_and_scored(recipe: Recipe, datasets_path: Path) -> None:
    data = make(recipe)
    assert data.transitions >= small(recipe) and data.reference == recipe.reference
    family = recipe.name.split("/")[1]
    assert (data.state_size, data.action_size) == D4RL_SIZES.get(family, (data.state_size, data.action_size))
    assert np.abs(data.actions).max() <= 1 and np.ptp(data.observations, axis=0).max() > 0
    (summary,) = installed()
    assert summary.mean_return == pytest.approx(data.returns().mean(), rel=1e-5, abs=1e-6)
    if recipe.histories:
        assert data.histories is not None and set(data.histories) == {0, 1}
        assert data.lengths[data.histories == 0].sum() >= recipe.block
    else:
        assert data.histories is None


@pytest.mark.parametrize("recipe", [r for r in RECIPES.values() if not r.eval_kwargs], ids=lambda recipe: recipe.name)
def test_its_environment_is_rebuilt_and_plays_the_stored_episode_again(recipe: Recipe, datasets_path: Path) -> None:
    data = make(recipe, transitions=100)
    env = data.make_env()
    metadata = json.loads((datasets_path / recipe.name / "data/metadata.json").read_text())
    assert metadata["dmm"]["environment"]["id"] == recipe.env_id
    with h5py.File(datasets_path / recipe.name / "data/main_data.hdf5") as file:
        seed = int(file["episode_0"].attrs["seed"])
    observation, _ = env.reset(seed=seed, options=task_of_the_first_history(recipe))
    rewards = []
    for row in range(int(data.lengths[0])):
        np.testing.assert_array_equal(observation, data.observations[row])
        observation, reward, terminated, truncated, _ = env.step(data.actions[row])
        rewards.append(reward)
    assert terminated == data.terminated[0] and terminated != truncated
    np.testing.assert_allclose(np.array(rewards, np.float32)[1:], data.rewards[: len(rewards)][1:], rtol=1e-6)
    env.close()


def task_of_the_first_history(recipe: Recipe) -> dict[str, Any] | None:
    """The options of `reset` in the first block, which the learner draws from the seed and the block's place."""
    if not recipe.histories:
        return None
    learner = recipe.stages[0]()
    assert isinstance(learner, Learner)
    return learner.options(np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0, 0))))


@pytest.mark.parametrize("name", SHARED)
def test_any_number_of_processes_makes_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = set()
    for workers in (1, 3):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / str(workers)))
        prints.add(make(RECIPES[name], workers=workers, seed=3).fingerprint())
    assert len(prints) == 1
