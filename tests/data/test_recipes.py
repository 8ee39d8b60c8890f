from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.dataset.minari_dataset import parse_dataset_id

from dmm.data.observations import FlatObservation, build_env
from dmm.data.recipes import RECIPES, Behaviour, Learner, Recipe
from dmm.data.rollout import Recorder
from dmm.data.scores import normalized_score


def factories(recipe: Recipe) -> list[Callable[[], Behaviour]]:
    return [recipe.behaviour] if recipe.behaviour else list(recipe.stages)


ALL = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)


@pytest.fixture(scope="module")
def maze() -> dict[str, np.ndarray]:
    """300 episodes: success, kind (heads for the goal or not), length, distance from start to goal."""
    recorder = Recorder(RECIPES["dmm/pointmaze/umaze-v0"], seed=0)
    rows: dict[str, list[float]] = {"success": [], "seeks": [], "length": [], "distance": []}
    for number in range(300):
        episode = recorder.episode(number)
        start, goal = episode.observations["observation"][0, :2], episode.observations["desired_goal"][0]
        rows["success"].append(episode.rewards.sum())
        rows["seeks"].append(recorder.behaviour.seeks)  # type: ignore[attr-defined]
        rows["length"].append(len(episode.rewards))
        rows["distance"].append(float(np.linalg.norm(start - goal)))
    return {name: np.array(values) for name, values in rows.items()}


@ALL
def test_names_are_minari_ids_and_recipes_travel_to_workers(recipe: Recipe) -> None:
    assert RECIPES[recipe.name] is recipe
    assert parse_dataset_id(recipe.name)[2] >= 0 and minari is not None
    copy = pickle.loads(pickle.dumps(recipe))
    assert copy.name == recipe.name
    assert [type(make()) for make in factories(copy)] == [type(make()) for make in factories(recipe)]


@ALL
def test_environment_has_the_recipes_keys_and_takes_the_behaviours_actions(recipe: Recipe) -> None:
    env = build_env(recipe.env_id, **recipe.env_kwargs)
    flat = FlatObservation(env, recipe.observation_keys)
    assert flat.observation_space.shape is not None and len(flat.observation_space.shape) == 1
    for make in factories(recipe):
        behaviour, rng = make(), np.random.default_rng(0)
        options = behaviour.options(rng) if isinstance(behaviour, Learner) else None
        observation, _ = env.reset(seed=0, options=options)
        behaviour.begin(env, observation, rng)
        action = behaviour.act(observation, rng)
        assert env.action_space.contains(action)
        assert not isinstance(env.action_space, gym.spaces.Box) or action.dtype == np.float32
    env.close()


@ALL
def test_names_and_descriptions_say_what_the_data_are(recipe: Recipe) -> None:
    assert recipe.name.startswith("dmm/") and recipe.behaviour_name and recipe.description.endswith(".")
    assert recipe.reference[0] < recipe.reference[1]
    assert recipe.histories is False or recipe.stages


def test_to_list_recipes_no_learning_library_is_loaded() -> None:
    asked = "import sys, dmm.data.recipes; print({'torch', 'stable_baselines3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_about_half_of_the_maze_episodes_succeed(maze: dict[str, np.ndarray]) -> None:
    success, seeks, length = maze["success"], maze["seeks"], maze["length"]
    assert set(success) == {0.0, 1.0}
    assert 0.45 < success.mean() < 0.60
    assert success[seeks].mean() > 0.97
    assert 0.2 < success[~seeks].mean() < 0.5
    assert length.max() == 150 and (length[success == 0] == 150).all()


def test_where_a_maze_episode_begins_does_not_give_its_return_away(maze: dict[str, np.ndarray]) -> None:
    far = maze["distance"] > 1.5
    for part in (far, ~far):
        assert 0.25 < maze["success"][part].mean() < 0.85


def test_hopper_behaviour_is_a_medium_policy() -> None:
    recorder = Recorder(RECIPES["dmm/hopper/medium-v0"], seed=0)
    returns = [recorder.episode(number).rewards.sum() for number in range(30)]
    assert 35 < normalized_score(np.mean(returns), "Hopper-v5") < 60
    assert np.std(returns) > 100
