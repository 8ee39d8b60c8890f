from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dmm.data.observations import build_env
from dmm.envs.kitchen import Kitchen, goal_vector
from dmm.errors import InputError
from tests.own_process import render

COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")


@pytest.fixture(scope="module")
def env() -> Iterator[gym.Env]:
    env = build_env("dmm/Kitchen-v0")
    yield env
    env.close()


def put(kitchen: Any, task: str) -> None:
    """Moves the object of a task to its goal."""
    goal = goal_vector([task])
    kitchen.data.qpos[goal != 0] = goal[goal != 0]


def test_it_is_a_correct_environment(env: gym.Env) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity.*")  # positions have no bounds
        check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space.shape == (60,) and env.observation_space.dtype == np.float32
    assert env.spec is not None and env.spec.max_episode_steps == 280


def test_the_physics_and_the_noise_are_those_of_franka_kitchen(env: gym.Env) -> None:
    franka = build_env("FrankaKitchen-v1", tasks_to_complete=list(COMPLETE))
    ours, theirs = env.unwrapped.data, franka.unwrapped.data
    rng = np.random.default_rng(0)
    for seed in (5, 6):  # the second episode follows a touched kitchen
        observation, _ = env.reset(seed=seed)
        expected = franka.reset(seed=seed)[0]["observation"]
        for action in np.repeat(rng.uniform(-1.3, 1.3, (15, 9)), 8, axis=0):  # held, so that the arm gets somewhere
            np.testing.assert_array_equal(observation[:9], expected[:9].astype(np.float32))
            np.testing.assert_array_equal(observation[9:30], expected[18:39].astype(np.float32))
            observation, reward, *_ = env.step(action)
            result = franka.step(action)
            expected = result[0]["observation"]
            np.testing.assert_array_equal(ours.qpos, theirs.qpos)
            np.testing.assert_array_equal(ours.qvel, theirs.qvel)
            assert reward == result[1]
    franka.close()


def test_the_last_thirty_numbers_are_the_goal_in_the_layout_of_the_positions(env: gym.Env) -> None:
    observation, _ = env.reset(seed=0)
    goal = observation[30:]
    assert goal[22] == np.float32(-0.75) and goal[19] == np.float32(0.37)  # microwave, slide cabinet
    np.testing.assert_array_equal(goal[17:19], np.float32([-0.69, -0.05]))  # light switch
    np.testing.assert_array_equal(goal[23:], np.float32([-0.23, 0.75, 1.62, 0.99, 0, 0, -0.06]))  # kettle
    assert not goal[:17].any() and not goal[20:22].any()
    assert np.abs(observation[:30] - env.unwrapped.data.qpos).max() < 0.002
    np.testing.assert_array_equal(env.step(np.zeros(9))[0][30:], goal)
    np.testing.assert_array_equal(goal_vector(["bottom burner"])[11:13], [-0.88, -0.01])


def test_each_task_is_rewarded_once_and_the_last_one_ends_the_episode(env: gym.Env) -> None:
    kitchen: Any = env.unwrapped
    env.reset(seed=0)
    rest = np.zeros(9)
    assert env.step(rest)[1:4] == (0.0, False, False)
    put(kitchen, "microwave")
    _, reward, terminated, _, info = env.step(rest)
    assert (reward, terminated, info["step_task_completions"]) == (1.0, False, ["microwave"])
    assert kitchen.is_complete("microwave") and not kitchen.is_complete("kettle")
    assert env.step(rest)[1] == 0.0
    put(kitchen, "bottom burner")  # not one of the four
    assert env.step(rest)[1] == 0.0 and kitchen.is_complete("bottom burner")
    for task in COMPLETE[1:]:
        put(kitchen, task)
    _, reward, terminated, truncated, info = env.step(rest)
    assert (reward, terminated, truncated) == (3.0, True, False)
    assert sorted(info["episode_task_completions"]) == sorted(COMPLETE)
    env.reset(seed=0)
    assert env.step(rest)[1:3] == (0.0, False)


def test_the_same_seed_gives_the_same_bytes(env: gym.Env) -> None:
    def run(seed: int) -> np.ndarray:
        observations = [env.reset(seed=seed)[0]]
        for action in np.random.default_rng(1).uniform(-1, 1, (20, 9)):
            observations.append(env.step(action)[0])
        return np.array(observations)

    np.testing.assert_array_equal(run(7), run(7))
    assert not np.array_equal(run(7), run(8))


def test_noise_can_be_left_out() -> None:
    kitchen = Kitchen(tasks=("kettle",), robot_noise_ratio=0.0, object_noise_ratio=0.0)
    observation, _ = kitchen.reset(seed=0)
    np.testing.assert_array_equal(observation[:30], kitchen.data.qpos.astype(np.float32))
    put(kitchen, "kettle")
    assert kitchen.step(np.zeros(9))[1:3] == (1.0, True)
    kitchen.close()


def test_it_draws_pictures() -> None:
    shown = render(
        "import gymnasium, dmm.envs\n"
        "env = gymnasium.make('dmm/Kitchen-v0', render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "frame = env.render()\n"
        "env.close()\n"
        "print(frame.shape, frame.dtype, frame.std() > 20)\n"
    )
    assert shown == "(480, 480, 3) uint8 True\n"


@pytest.mark.parametrize(
    "arguments",
    [
        {"tasks": ()},
        {"tasks": "kettle"},
        {"tasks": ("kettle", "kettle")},
        {"tasks": ("kettle", "dishes")},
        {"robot_noise_ratio": -0.1},
        {"object_noise_ratio": float("nan")},
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(InputError, match=f"^{name}: got .*; allowed: "):
        Kitchen(**arguments)
