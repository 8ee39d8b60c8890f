from __future__ import annotations

import inspect
import itertools
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.observations import build_env
from dmm.data.policies import SquashedGaussianPolicy
from dmm.data.policies.ant import WALK, AntWalker
from dmm.data.recipes import RECIPES
from dmm.data.rollout import RecordedEpisode, Recorder
from dmm.envs.ant import egocentric
from dmm.errors import InputError

CENTRES = {(1, 1): (-4, 4), (1, 2): (0, 4), (1, 3): (4, 4), (2, 3): (4, 0), (3, 3): (4, -4), (3, 2): (0, -4)}


@pytest.fixture
def env() -> gym.Env:
    return build_env("dmm/AntMaze-v0")


@pytest.fixture(scope="module", params=["umaze", "umaze-diverse"])
def episodes(request: pytest.FixtureRequest) -> list[RecordedEpisode]:
    recorder = Recorder(RECIPES[f"dmm/antmaze/{request.param}-v0"], seed=0)
    return [recorder.episode(number) for number in range(12)]


def constant_policy(action: float) -> Any:
    """A policy of the shape of the kept one whose mean action is the same everywhere."""
    shapes = {name: array.shape for name, array in SquashedGaussianPolicy.load(WALK).arrays.items()}
    arrays = {name: np.zeros(shape) for name, shape in shapes.items()}
    return SquashedGaussianPolicy({**arrays, "b2": np.full(8, np.arctanh(action))})


def at(x: float, y: float) -> dict[str, np.ndarray]:
    rest = np.zeros(27)
    rest[:2] = 0.5, 1.0  # height, and a quaternion that looks along +x
    return {"achieved_goal": np.array([x, y]), "observation": rest, "desired_goal": np.array([-4.0, -4.0])}


def test_kept_policy_walks_on_what_the_ant_sees() -> None:
    policy = SquashedGaussianPolicy.load(WALK)
    assert policy.mean(np.zeros(28)).shape == (8,)
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in policy.arrays.values())


def test_every_cell_leads_to_the_next_one_and_the_last_to_the_goal(env: gym.Env) -> None:
    walker = AntWalker(0.0)
    walker.begin(env, at(-4, 4), np.random.default_rng(0))
    route = [*CENTRES.values(), (-4, -4)]
    for here, there in itertools.pairwise(route):
        step = np.subtract(there, here) / 4
        np.testing.assert_allclose(walker._direction(here), step)
        np.testing.assert_allclose(walker._direction(tuple(here + 0.9 * step)), step)
    np.testing.assert_allclose(walker._direction((-3.5, -3.0)), np.array([-0.5, -1]) / np.hypot(0.5, 1))
    np.testing.assert_allclose(walker._direction((1.9, 1.5)), np.array([2.1, -5.5]) / np.hypot(2.1, 5.5))  # in the wall
    assert np.isfinite(walker._direction((-4.0, -4.0))).all()  # on the goal itself
    env.close()


def test_action_without_noise_is_the_policys_mean(env: gym.Env) -> None:
    walker, observation = AntWalker(0.0), at(-3.0, 4.5)
    walker.begin(env, observation, np.random.default_rng(0))
    qpos = np.concatenate((observation["achieved_goal"], observation["observation"][:13]))
    seen = egocentric(qpos, observation["observation"][13:], np.array([3.0, -0.5]) / np.hypot(3.0, 0.5))
    expected = SquashedGaussianPolicy.load(WALK).mean(seen)
    np.testing.assert_allclose(walker.act(observation, np.random.default_rng(0)), expected, atol=1e-6)
    env.close()


@pytest.mark.parametrize(("mean", "noise"), [(0.0, 0.2), (0.5, 0.1)])
def test_noise_has_the_wanted_spread(env: gym.Env, mean: float, noise: float) -> None:
    walker, rng = AntWalker(noise, constant_policy(mean)), np.random.default_rng(0)
    walker.begin(env, at(-4, 4), rng)
    actions = np.array([walker.act(at(-4, 4), rng) for _ in range(3000)])
    np.testing.assert_allclose(actions.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(actions.std(axis=0), noise, rtol=0.05)
    env.close()


def test_actions_stay_in_the_action_space(env: gym.Env) -> None:
    walker, rng = AntWalker(3.0), np.random.default_rng(0)
    walker.begin(env, at(-4, 4), rng)
    actions = [walker.act(at(-4, 4), rng) for _ in range(50)]
    assert all(env.action_space.contains(action) for action in actions)
    assert np.abs(actions).max() == 1.0
    env.close()


def test_most_ants_arrive_and_some_take_their_time(episodes: list[RecordedEpisode]) -> None:
    returns = np.array([episode.rewards.sum() for episode in episodes])
    lengths = np.array([len(episode.rewards) for episode in episodes])
    assert set(returns) <= {0.0, 1.0} and returns.mean() >= 0.6
    np.testing.assert_array_equal(returns, [episode.terminated for episode in episodes])
    np.testing.assert_array_equal(returns == 0, [episode.truncated for episode in episodes])
    assert (lengths[returns == 0] == 700).all() and len(set(lengths)) > 6
    assert all(np.abs(episode.actions).max() <= 1 for episode in episodes)


def test_an_episode_depends_on_its_number_alone() -> None:
    recipe = RECIPES["dmm/antmaze/umaze-diverse-v0"]
    first, second = Recorder(recipe, seed=3), Recorder(pickle.loads(pickle.dumps(recipe)), seed=3)
    first.episode(0)
    one, other = first.episode(1), second.episode(1)
    assert one.actions.tobytes() == other.actions.tobytes()
    for key, values in one.observations.items():
        assert values.tobytes() == other.observations[key].tobytes()
    assert set(one.observations) == {"observation", "achieved_goal", "desired_goal"}


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_bad_noise_is_refused(noise: float) -> None:
    with pytest.raises(InputError, match=r"noise: got .*; allowed: 0 or more"):
        AntWalker(noise)


def test_arguments_are_those_of_the_recipes() -> None:
    for name in ("dmm/antmaze/umaze-v0", "dmm/antmaze/umaze-diverse-v0"):
        keywords = RECIPES[name].behaviour.keywords  # type: ignore[union-attr]
        assert set(keywords) <= set(inspect.signature(AntWalker).parameters)
        assert f"noise {keywords['noise']}" in RECIPES[name].behaviour_name
