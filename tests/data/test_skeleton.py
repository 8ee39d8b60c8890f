"""Stick figures: their points are where the simulation has them, and watching an episode changes nothing of it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.observations import build_env
from dmm.data.recipes import RECIPES, find_recipe
from dmm.data.rollout import Recorder, blocks
from dmm.data.skeleton import Watcher, body_points, view
from dmm.errors import InputError

ENVIRONMENTS = sorted({recipe.env_id for recipe in RECIPES.values()} | {"Walker2d-v5", "HalfCheetah-v5"})
SIZES = {"Hopper-v5": 6, "Walker2d-v5": 8, "HalfCheetah-v5": 9, "dmm/AntMaze-v0": 13, "dmm/Kitchen-v0": 7}


def reset(env_id: str, **kwargs: object) -> gym.Env:
    env = build_env(env_id, **kwargs)
    env.reset(seed=0)
    env.action_space.seed(0)
    return env


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_every_environment_of_a_recipe_can_be_drawn(env_id: str) -> None:
    env = reset(env_id)
    seen = view(env)
    points, ((left, right), (bottom, top)) = body_points(env), seen.limits()
    assert points.shape == (SIZES.get(env_id, 1), 2) and np.isfinite(points).all()
    assert left < right and bottom < top
    x, y = points.T
    assert (left <= x).all() and (x <= right).all() and (bottom <= y).all() and (y <= top).all()
    assert all(0 <= point < len(points) for pair in seen.segments for point in pair)
    assert seen.walls.shape[1:] == (4,)
    for place in seen.places().values():
        assert left <= place[0] <= right and bottom <= place[1] <= top
    env.close()


@pytest.mark.parametrize("env_id", [name for name, size in SIZES.items() if size > 1])
def test_limbs_hang_together_and_keep_their_lengths(env_id: str) -> None:
    env = reset(env_id)
    seen, spread = view(env), []
    joined = {0}
    for _ in seen.segments:  # spread over all segments
        joined |= {point for pair in seen.segments if joined & set(pair) for point in pair}
    loose = set(range(SIZES[env_id])) - joined
    # Hopper's ankle ends in the middle of the foot
    assert len(loose) == (2 if env_id == "Hopper-v5" else 0)
    if env_id in ("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"):  # flat bodies: nothing is foreshortened
        for _ in range(20):
            env.step(env.action_space.sample())
            points = seen.points()
            spread.append([np.linalg.norm(points[a] - points[b]) for a, b in seen.segments])
        assert np.ptp(spread, axis=0).max() < 0.06
    env.close()


def test_the_walker_has_two_legs() -> None:
    env = reset("Walker2d-v5")
    ends = [pair for pair in view(env).segments]
    counts = np.bincount(np.ravel(ends))
    assert counts.tolist().count(3) == 1 and counts.tolist().count(1) == 3  # a hip; a head and two toes
    env.close()


def test_the_point_of_a_maze_is_where_the_observation_says() -> None:
    env = build_env("PointMaze_UMaze-v3")
    observation, _ = env.reset(seed=3)
    seen = view(env)
    assert np.allclose(seen.points()[0], observation["achieved_goal"])
    assert np.allclose(seen.places()["goal"], observation["desired_goal"])
    x, y = seen.points()[0]
    assert not any(left < x < left + width and low < y < low + height for left, low, width, height in seen.walls)
    env.close()


def test_the_ant_stands_where_the_observation_says() -> None:
    env = build_env("dmm/AntMaze-v0")
    observation, _ = env.reset(seed=3)
    assert np.allclose(view(env).points()[0], observation["achieved_goal"])
    env.close()


def test_a_key_that_is_found_is_gone() -> None:
    env = build_env("dmm/KeyToDoor-v0")
    env.reset(options={"key": (1, 0), "door": (5, 5), "start": (0, 0)})
    assert view(env).places() == {"key": (1.0, 0.0), "door": (5.0, 5.0)}
    env.step(4)
    assert view(env).places() == {"door": (5.0, 5.0)} and view(env).points().tolist() == [[1.0, 0.0]]
    env.close()


@pytest.mark.parametrize("name", ["dmm/pointmaze/umaze-v0", "dmm/tmaze/noisy-v0", "dmm/keytodoor/histories-v0"])
def test_watching_changes_nothing(name: str) -> None:
    recipe = find_recipe(name)
    seen, unseen = Recorder(recipe, 0), Recorder(recipe, 0)
    seen.env = watcher = Watcher(seen.env)
    first = (
        [next(recorder.block(blocks(recipe, 100)[0])) for recorder in (seen, unseen)]
        if recipe.stages
        else [recorder.episode(0) for recorder in (seen, unseen)]
    )
    one, other = first
    assert np.array_equal(one.actions, other.actions) and np.array_equal(one.rewards, other.rewards)
    assert len(watcher.points) == len(watcher.places) == len(watcher.limits) == len(one.rewards) + 1
    before = np.array(watcher.points)
    seen.env.reset(seed=1)
    assert len(watcher.points) == 1 and len(before) > 1


def test_other_environments_are_refused() -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(InputError, match=r"^env: got CartPoleEnv; allowed: HopperEnv, "):
        view(env)
