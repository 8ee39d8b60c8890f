from __future__ import annotations

import numpy as np
import pytest

from dmm.data.observations import build_env
from dmm.data.policies.waypoints import MazeWalker, breadth_first, neighbours

U = {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}


def test_breadth_first_goes_around_the_wall() -> None:
    assert breadth_first(U, (1, 1), (3, 1)) == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert breadth_first(U, (1, 2), (1, 1)) == [(1, 1)]
    assert breadth_first(U, (2, 3), (2, 3)) == []


def test_breadth_first_takes_a_shortest_way_in_the_open() -> None:
    grid = {(i, j) for i in range(5) for j in range(5)}
    path = breadth_first(grid, (0, 0), (4, 3))
    assert len(path) == 7 and path[-1] == (4, 3)
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in zip([(0, 0), *path], path, strict=False))


def test_neighbours_are_free_cells() -> None:
    assert sorted(neighbours(U, (1, 3))) == [(1, 2), (2, 3)]


@pytest.mark.parametrize("seek_probability", [0.0, 1.0])
def test_actions_are_clipped_and_the_noise_has_the_wanted_spread(seek_probability: float) -> None:
    env = build_env("PointMaze_UMaze-v3", continuing_task=False)
    observation, _ = env.reset(seed=1)
    rng = np.random.default_rng(0)
    walker = MazeWalker(seek_probability, noise=0.1, gain=0.01, damping=0.0)  # weak, so that nothing is clipped
    walker.begin(env, observation, rng)
    assert walker.seeks == bool(seek_probability)
    actions = np.array([walker.act(observation, rng) for _ in range(4000)])
    assert actions.std(axis=0) == pytest.approx([0.1, 0.1], rel=0.05)
    walker = MazeWalker(seek_probability, noise=0.5, gain=100.0)
    walker.begin(env, observation, rng)
    assert np.abs([walker.act(observation, rng) for _ in range(50)]).max() == 1.0
    env.close()


def test_both_kinds_act_alike_towards_the_same_waypoint() -> None:
    env = build_env("PointMaze_UMaze-v3", continuing_task=False)
    observation, _ = env.reset(seed=2)
    actions = []
    for seek_probability in (0.0, 1.0):
        walker, rng = MazeWalker(seek_probability, noise=0.5), np.random.default_rng(7)
        walker.begin(env, observation, rng)
        walker.path = [observation["observation"][:2] + np.array([0.6, 0.6])]
        actions.append(walker.act(observation, rng))
    np.testing.assert_array_equal(*actions)
    env.close()


def test_the_same_generator_gives_the_same_walk() -> None:
    env = build_env("PointMaze_UMaze-v3", continuing_task=False)
    walks = []
    for _ in range(2):
        observation, _ = env.reset(seed=3)
        walker, rng = MazeWalker(0.5, noise=0.5), np.random.default_rng(11)
        walker.begin(env, observation, rng)
        walk = []
        for _ in range(60):
            walk.append(walker.act(observation, rng))
            observation = env.step(walk[-1])[0]
        walks.append(np.array(walk))
    np.testing.assert_array_equal(*walks)
    env.close()
