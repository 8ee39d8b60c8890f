"""Small data sets with the spaces and environment specifications of Minari's public ones, read from end to end.

Sources: Minari's documentation pages of each data set, and Farama's minari-dataset-generation-scripts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.minari_files import open_dataset
from dmm.data.observations import build_env
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.errors import InputError
from dmm.evaluation import RandomActor, evaluate, rollout
from dmm.training import train

KITCHEN_TASKS = ["microwave", "kettle", "light switch", "slide cabinet"]
UMAZE = [[1, 1, 1, 1, 1], [1, "g", 0, 0, 1], [1, 1, 1, 0, 1], [1, "r", 0, 0, 1], [1, 1, 1, 1, 1]]
UMAZE_TURNED = [[1, 1, 1, 1, 1], [1, 0, 0, "r", 1], [1, 0, 1, 1, 1], [1, 0, 0, "g", 1], [1, 1, 1, 1, 1]]
GONE = '"order_enforce": true, "apply_api_compatibility": false, "autoreset": false, "disable_env_checker"'

Record = Callable[..., Path]


def play(env: gym.Env, steps: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """An episode of random actions, cut after `steps`, as Minari buffers it."""
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    observations, actions, rewards = [observation], [], []
    for _ in range(steps):
        actions.append(env.action_space.sample())
        observation, reward, *_ = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
    return stack(observations), np.array(actions), np.array(rewards)


def stack(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


@pytest.fixture
def record(make_dataset, datasets_path: Path) -> Record:
    """Records a data set in an environment and leaves its specification as an old Gymnasium wrote it."""

    def run(minari_id: str, env_id: str, *, steps: int = 6, rewards=None, eval_env=None, **kwargs: Any) -> Path:
        env = build_env(env_id, **kwargs)
        episodes = [play(env, steps), play(env, steps + 1)]
        if rewards is not None:
            episodes = [(*episode[:2], np.array(rewards[: len(episode[2])], dtype=float)) for episode in episodes]
        more = {"eval_env": eval_env} if eval_env else {}
        make_dataset(minari_id, episodes, env.observation_space, env.action_space, env=env, **more)
        env.close()
        file = datasets_path / minari_id / "data" / "metadata.json"
        metadata = json.loads(file.read_text())
        for name in {"env_spec", "eval_env_spec"} & metadata.keys():
            metadata[name] = metadata[name].replace('"order_enforce": true, "disable_env_checker"', GONE)
            assert "autoreset" in metadata[name]
        file.write_text(json.dumps(metadata))
        return file

    return run


def steps_of_a_random_actor(data: Trajectories) -> np.ndarray:
    return rollout(RandomActor(data.action_size), data.make_env, episodes=1).lengths


def tiny_run(data: Trajectories, out: Path) -> Any:
    changes = {"width": 8, "layers": 1, "context": 3, "batch_size": 4}
    return train(data, steps=2, out=out, changes=changes, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("minari_id", "env_id", "sizes"),
    [
        ("D4RL/door/human-v2", "AdroitHandDoor-v1", (39, 28)),
        ("D4RL/hammer/expert-v2", "AdroitHandHammer-v1", (46, 26)),
        ("D4RL/pen/cloned-v2", "AdroitHandPen-v1", (45, 24)),
        ("D4RL/relocate/human-v2", "AdroitHandRelocate-v1", (39, 30)),
        ("mujoco/hopper/medium-v0", "Hopper-v5", (11, 3)),
        ("mujoco/humanoid/simple-v0", "Humanoid-v5", (348, 17)),
    ],
)
def test_vectors(record: Record, minari_id: str, env_id: str, sizes: tuple[int, int]) -> None:
    record(minari_id, env_id, max_episode_steps=8)
    data = load_trajectories(minari_id)
    assert (data.state_size, data.action_size) == sizes and not data.discrete_actions
    assert data.env_id == env_id and data.observation_keys == () and data.transitions == 13
    assert 1 <= steps_of_a_random_actor(data)[0] <= 8


def test_point_maze_is_evaluated_in_the_environment_meant_for_it(record: Record) -> None:
    shown = build_env("PointMaze_UMaze-v3", maze_map=UMAZE, continuing_task=True, reset_target=False)
    file = record(
        "D4RL/pointmaze/umaze-v2", "PointMaze_UMaze-v3", continuing_task=True, reset_target=True, eval_env=shown
    )
    shown.close()
    metadata = json.loads(file.read_text())
    # as it was recorded: the time limit is a float, which Gymnasium takes no more
    metadata["env_spec"] = metadata["env_spec"].replace('"max_episode_steps": 300', '"max_episode_steps": 1000000.0')
    assert "1000000.0" in metadata["env_spec"]
    file.write_text(json.dumps(metadata))
    data = load_trajectories("D4RL/pointmaze/umaze-v2")
    assert data.observation_keys == ("observation", "achieved_goal", "desired_goal") and data.state_size == 4 + 2 + 2
    env = data.make_env()
    assert env.spec is not None and env.spec.max_episode_steps == 300
    assert env.spec.kwargs["maze_map"] == UMAZE and env.spec.kwargs["continuing_task"]
    env.close()
    assert steps_of_a_random_actor(data) == [300] and data.reference is None
    del metadata["eval_env_spec"]  # as in the first version of these data sets
    file.write_text(json.dumps(metadata))
    env = load_trajectories("D4RL/pointmaze/umaze-v2").make_env()
    assert env.spec is not None and env.spec.max_episode_steps == 1_000_000
    env.close()


def test_ant_maze_pays_at_every_step_at_the_goal_so_d4rl_has_no_reference_for_it(record: Record) -> None:
    turned = build_env("AntMaze_UMaze-v4", maze_map=UMAZE_TURNED, continuing_task=True, reset_target=False)
    maze = {"maze_map": UMAZE, "continuing_task": True, "reset_target": False}
    record("D4RL/antmaze/umaze-v1", "AntMaze_UMaze-v4", eval_env=turned, **maze)
    turned.close()
    data = load_trajectories("D4RL/antmaze/umaze-v1")
    assert data.observation_keys == ("observation", "achieved_goal", "desired_goal") and data.state_size == 27 + 2 + 2
    assert data.reference is None
    env = data.make_env()
    assert env.spec is not None and env.spec.kwargs["maze_map"] == UMAZE_TURNED
    assert env.reset(seed=0)[0].shape == (31,) and env.step(np.zeros(8, np.float32))[0].dtype == np.float32
    env.close()
    record("ends/antmaze/umaze-v0", "AntMaze_UMaze-v4", continuing_task=False)
    assert load_trajectories("ends/antmaze/umaze-v0").reference == (0.0, 1.0)


class TestKitchen:
    """Minari's kitchen stores at every step how many tasks are done by then."""

    COUNTS = (0, 0, 1, 1, 2, 1, 2)

    @pytest.fixture
    def made(self, record: Record) -> str:
        record(
            "D4RL/kitchen/complete-v2",
            "FrankaKitchen-v1",
            rewards=self.COUNTS,
            remove_task_when_completed=False,
            terminate_on_tasks_completed=False,
            tasks_to_complete=KITCHEN_TASKS,
            max_episode_steps=6,
        )
        return "D4RL/kitchen/complete-v2"

    def test_reads_the_robot_and_leaves_the_nested_goals_out(self, made: str) -> None:
        data = load_trajectories(made)
        assert data.observation_keys == ("observation",) and (data.state_size, data.action_size) == (59, 9)

    def test_counts_become_what_each_step_earned(self, made: str) -> None:
        data = load_trajectories(made)
        np.testing.assert_array_equal(data.rewards[-7:], [0, 0, 1, 0, 1, -1, 1])
        assert data.reference == (0.0, 4.0)
        np.testing.assert_array_equal(data.returns(), [1, 2])
        np.testing.assert_array_equal(load_trajectories(made, rewards="cumulative").rewards, data.rewards)

    def test_is_evaluated_where_each_task_pays_once_and_the_last_one_ends(self, made: str, tmp_path: Path) -> None:
        data = load_trajectories(made)
        env = data.make_env()
        assert env.spec is not None
        assert env.spec.kwargs["remove_task_when_completed"] and env.spec.kwargs["terminate_on_tasks_completed"]
        assert env.spec.kwargs["tasks_to_complete"] == KITCHEN_TASKS
        env.close()
        result = evaluate(tiny_run(data, tmp_path / "run"), episodes=1, progress=False)
        assert result.scores[0].target == 4.0 and result.scores[0].lengths.tolist() == [6]

    def test_counts_can_be_taken_as_they_are(self, made: str) -> None:
        data = load_trajectories(made, rewards="per-step")
        np.testing.assert_array_equal(data.rewards[-7:], self.COUNTS)
        assert data.reference is None  # D4RL's 0 to 4 is for tasks that pay once
        assert data.env_spec is not None
        assert not json.loads(data.env_spec)["kwargs"]["remove_task_when_completed"]

    def test_a_kitchen_that_pays_once_is_per_step(self, record: Record) -> None:
        record("mine/kitchen-v0", "FrankaKitchen-v1", rewards=(0, 0, 1, 0, 1, 0, 0), max_episode_steps=6)
        np.testing.assert_array_equal(load_trajectories("mine/kitchen-v0").rewards[-7:], [0, 0, 1, 0, 1, 0, 0])


def test_actions_from_minus_three_to_three(record: Record, tmp_path: Path) -> None:
    record("mujoco/invertedpendulum/expert-v0", "InvertedPendulum-v5")
    data = load_trajectories("mujoco/invertedpendulum/expert-v0")
    assert data.action_bounds is not None and [float(side[0]) for side in data.action_bounds] == [-3, 3]
    assert np.abs(data.actions).max() <= 1
    assert len(evaluate(tiny_run(data, tmp_path / "run"), episodes=1, targets=[1.0], progress=False).scores) == 1


class TestRefused:
    IMAGES = np.zeros((3, 7, 7, 3))

    def test_minigrid_pictures(self, make_dataset) -> None:
        space = gym.spaces.Box(0.0, 8.0, (7, 7, 3), np.float32)
        make_dataset(
            "minigrid/fourrooms-v0",
            [(self.IMAGES.astype(np.float32), np.array([0, 6]), np.zeros(2))],
            space,
            gym.spaces.Discrete(7),
        )
        with pytest.raises(InputError, match=r"observations: arrays of shape \(7, 7, 3\) are not supported"):
            load_trajectories("minigrid/fourrooms-v0")

    def test_minigrid_dictionaries_of_pictures_and_text(self, make_dataset) -> None:
        space = gym.spaces.Dict(
            {
                "direction": gym.spaces.Discrete(4),
                "image": gym.spaces.Box(0, 255, (7, 7, 3), np.uint8),
                "mission": gym.spaces.Text(14),
            }
        )
        observations = {
            "direction": np.array([0, 1, 2]),
            "image": self.IMAGES.astype(np.uint8),
            "mission": ["reach the goal"] * 3,
        }
        make_dataset(
            "D4RL/minigrid/fourrooms-v0",
            [(observations, np.array([0, 6]), np.zeros(2))],
            space,
            gym.spaces.Discrete(7),
        )
        with pytest.raises(InputError) as caught:
            load_trajectories("D4RL/minigrid/fourrooms-v0")
        said = str(caught.value)
        assert "'image' (images of shape (7, 7, 3))" in said and "'mission' (Text)" in said and "\n" not in said

    def test_files_in_another_format(self, record: Record) -> None:
        file = record("D4RL/minigrid/arrow-v0", "Hopper-v5")
        metadata = json.loads(file.read_text())
        file.write_text(json.dumps({**metadata, "data_format": "arrow"}))
        with pytest.raises(InputError, match="stored as arrow; allowed: hdf5"):
            open_dataset("D4RL/minigrid/arrow-v0")

    @pytest.mark.parametrize("space", [gym.spaces.MultiDiscrete([2, 3]), gym.spaces.MultiBinary(2)])
    def test_several_discrete_actions_at_once(self, make_dataset, space: gym.Space) -> None:
        box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        make_dataset("mine/several-v0", [(np.zeros((3, 3)), np.zeros((2, 2), dtype=np.int8), np.zeros(2))], box, space)
        with pytest.raises(InputError, match=r"actions: Multi.* is not supported; allowed: a 1-D Box or a Discrete"):
            load_trajectories("mine/several-v0")


def test_spaces_that_are_not_stored_come_from_the_environment(record: Record) -> None:
    file = record("mujoco/hopper/old-v0", "Hopper-v5")
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in metadata.items() if not k.endswith("_space")}))
    assert load_trajectories("mujoco/hopper/old-v0").state_size == 11
    file.write_text(json.dumps({k: v for k, v in metadata.items() if not k.endswith(("_space", "_spec"))}))
    with pytest.raises(InputError, match=r"'mujoco/hopper/old-v0' at .* cannot be read"):
        load_trajectories("mujoco/hopper/old-v0")
