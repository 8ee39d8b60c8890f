from __future__ import annotations

import dataclasses
import pickle

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.policies.learners import DynaLearner
from dmm.data.recipes import Learner, Recipe, find_recipe
from dmm.data.rollout import Recorder, blocks
from dmm.envs.grid import Darkroom
from dmm.envs.tasks import is_held_out

SMALL = (
    "dmm/darkroom/histories-v0",
    "dmm/darkroom-hard/histories-v0",
    "dmm/keytodoor/histories-v0",
    "dmm/darkroom-dynamic/histories-v0",
)
LARGE = {  # where a history begins, and where it ends
    "dmm/darkroom-large/histories-v0": (10, 150),
    "dmm/darkroom-large-hard/histories-v0": (0.5, 0.99),
    "dmm/keytodoor-large/histories-v0": (1.1, 1.8),
    "dmm/darkroom-large-dynamic/histories-v0": (20, 140),
}


def returns(recipe: Recipe, histories: int) -> np.ndarray:
    """Returns `(histories, episodes)` of the recipe's first learners."""
    recorder = Recorder(recipe, seed=0)
    plan = blocks(recipe, histories * recipe.block)
    return np.array([[episode.rewards.sum() for episode in recorder.block(block)] for block in plan])


@pytest.mark.parametrize("name", SMALL)
def test_a_history_leads_from_random_to_nearly_the_best_return(name: str) -> None:
    recipe = find_recipe(name)
    table = returns(recipe, histories=10)
    assert table.shape == (10, 50)
    first, middle, last = table[:, :5].mean(), table[:, 20:30].mean(), table[:, -5:].mean()
    low, high = recipe.reference
    assert first < low + 0.25 * (high - low) and last > low + 0.95 * (high - low)
    assert first < middle < last


@pytest.mark.parametrize("name", LARGE)
def test_large_rooms_are_learned_too(name: str) -> None:
    recipe, (low, high) = find_recipe(name), LARGE[name]
    returns_ = returns(recipe, histories=1)[0]
    assert returns_.shape == (recipe.stages[0]().episodes,)  # type: ignore[attr-defined]
    assert returns_[:8].mean() < low and returns_[-4:].mean() > high


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_recipes_blocks_are_whole_histories(name: str) -> None:
    recipe = find_recipe(name)
    steps = gym.make(recipe.env_id, disable_env_checker=True).spec.max_episode_steps  # type: ignore[union-attr]
    learner = recipe.stages[0]()
    assert isinstance(learner, Learner) and isinstance(learner, DynaLearner)
    assert recipe.histories and recipe.block == learner.episodes * steps and recipe.transitions % recipe.block == 0
    pickle.loads(pickle.dumps(recipe.stages))  # worker processes get the recipe


def test_a_history_is_decided_by_seed_and_number() -> None:
    recipe = find_recipe(SMALL[2])
    first, second = blocks(recipe, 2 * recipe.block)
    a, b = list(Recorder(recipe, seed=1).block(second)), list(Recorder(recipe, seed=1).block(second))
    assert all(np.array_equal(x.observations, y.observations) for x, y in zip(a, b, strict=True))
    c = list(Recorder(recipe, seed=1).block(first))
    assert not all(np.array_equal(x.actions, y.actions) for x, y in zip(a, c, strict=True))


def test_one_task_serves_a_whole_history() -> None:
    recipe = find_recipe(SMALL[1])
    recorder = Recorder(recipe, seed=2)
    for block in blocks(recipe, 3 * recipe.block):
        goals = {tuple(e.observations[1:][e.rewards > 0].ravel()) for e in recorder.block(block)} - {()}
        assert len(goals) == 1


def test_held_out_cells_are_never_learned_as_goals_keys_or_doors() -> None:
    for learner in (DynaLearner(9, 50), DynaLearner(9, 50, task=("key", "door"), rewards=3)):
        rng = np.random.default_rng(0)
        tasks = [learner.options(rng) for _ in range(2000)]
        for name in learner.task:
            assert not any(is_held_out(name, task[name]) for task in tasks)
            assert len({task[name] for task in tasks}) == 81 - 16


def test_the_first_episode_is_random_and_the_last_is_greedy() -> None:
    env, rng = Darkroom(), np.random.default_rng(0)
    learner = DynaLearner(9, episodes=10, exploring=0.5)
    observation, _ = env.reset(seed=0)
    shares = []
    for _ in range(7):
        learner.begin(env, observation, rng)
        shares.append(learner.randomness)
    assert shares == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    learner.values[learner._state(observation), 3] = 1.0
    assert {learner.act(observation, rng) for _ in range(50)} == {3}
    learner.randomness = 1.0
    assert {learner.act(observation, rng) for _ in range(100)} == {0, 1, 2, 3, 4}


def test_values_are_bellmans_for_what_was_taken_and_optimistic_elsewhere() -> None:
    learner, rng = DynaLearner(3, episodes=10, discount=0.5, optimism=0.1), np.random.default_rng(0)
    a, b, c = (np.array(cell, dtype=np.float32) for cell in ((0, 0), (1, 0), (2, 0)))
    learner.learn(a, 4, 0.0, b, False)
    learner.learn(b, 4, 1.0, c, False)
    known = {(learner._state(a), 4): 0.5 * 0.1, (learner._state(b), 4): 1 + 0.5 * 0.1}
    assert {place: learner.values[place] for place in known} == pytest.approx(known)
    learner.begin(Darkroom(), a, rng)  # one sweep carries the reward one cell further
    assert learner.values[learner._state(a), 4] == pytest.approx(0.5 * (1 + 0.5 * 0.1))
    assert (learner.values[:-1][~learner.known] == 0.1).all() and learner.known.sum() == 2
    learner.learn(c, 0, 1.0, c, True)
    assert learner.values[learner._state(c), 0] == 1.0  # nothing comes after the end


def test_memory_of_the_key_makes_other_states_and_begins_anew() -> None:
    learner, rng = DynaLearner(9, episodes=10, rewards=3), np.random.default_rng(0)
    cell = np.zeros(2, dtype=np.float32)
    states = []
    learner.begin(Darkroom(), cell, rng)
    for reward in (0.0, 1.0, 0.0, 1.0, 1.0):
        learner.learn(cell, 0, reward, cell, False)
        states.append(learner._state(cell))
    assert states == [0, 1, 1, 2, 2]
    learner.begin(Darkroom(), cell, rng)
    assert learner._state(cell) == 0


def test_other_sizes_of_a_recipe_keep_its_histories() -> None:
    recipe = dataclasses.replace(find_recipe(SMALL[0]), transitions=3000)
    assert [block.transitions for block in blocks(recipe, 2500)] == [1000, 1000, 500]


def test_enough_optimism_finds_out_that_staying_on_the_goal_is_best() -> None:
    recipe = find_recipe(SMALL[0])
    env = gym.make(recipe.env_id, disable_env_checker=True)
    last = {optimism: [last_return(env, optimism, seed) for seed in range(8)] for optimism in (0.1, 10.5)}
    assert set(last[10.5]) == {18.0}
    assert min(last[0.1]) == 9.0  # on and off, every second step
    assert 0.95 / (1 - 0.95**2) < 10.5 < 1 / (1 - 0.95)
    assert recipe.stages[0]().values[0, 0] == 10.5  # type: ignore[attr-defined]


def last_return(env: gym.Env, optimism: float, seed: int) -> float:
    """Of the 30th episode towards a goal three cells away, with hardly a random action."""
    learner, rng = DynaLearner(9, episodes=30, optimism=optimism, exploring=0.01), np.random.default_rng(seed)
    total = 0.0
    for _ in range(30):
        observation, _ = env.reset(seed=seed, options={"goal": (6, 5)})
        learner.begin(env, observation, rng)
        total, over = 0.0, False
        while not over:
            before, action = observation, learner.act(observation, rng)
            observation, reward, terminated, over, _ = env.step(action)
            learner.learn(before, action, float(reward), observation, terminated)
            total += float(reward)
    return total
