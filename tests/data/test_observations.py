from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dmm.data.observations import (
    FlatObservation,
    LargestScore,
    action_size,
    build_env,
    build_flat_env,
    choose_keys,
    flatten_actions,
    flatten_observation,
    parse_env_spec,
)
from dmm.errors import InputError


def vector(size: int) -> gym.spaces.Box:
    return gym.spaces.Box(-1.0, 1.0, (size,), np.float64)


GOAL = gym.spaces.Dict({"desired_goal": vector(2), "achieved_goal": vector(2), "observation": vector(4)})


def test_keys_by_default_and_by_wish() -> None:
    assert choose_keys(vector(3)) == ()
    assert choose_keys(GOAL) == ("observation", "achieved_goal", "desired_goal")
    assert choose_keys(GOAL, ("desired_goal", "observation")) == ("desired_goal", "observation")


@pytest.mark.parametrize(
    ("space", "wanted", "words"),
    [
        (gym.spaces.Box(0, 255, (64, 64, 3), np.uint8), None, ["images", "(64, 64, 3)"]),
        (gym.spaces.Box(-1, 1, (2, 3), np.float32), None, ["arrays", "(2, 3)"]),
        (gym.spaces.Text(4), None, ["Text"]),
        (gym.spaces.Discrete(10**9), None, ["Discrete(1000000000)", "at most 10000"]),
        (GOAL, ("observation", "observation"), ["observation_keys", "each key once"]),
        (gym.spaces.Tuple([vector(2)]), None, ["Tuple"]),
        (gym.spaces.Dict({"camera": gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)}), None, ["'camera' (images of"]),
        (GOAL, ("velocity",), ["velocity", "achieved_goal"]),
        (gym.spaces.Dict({"observation": gym.spaces.Text(2)}), ("observation",), ["'observation'", "Text"]),
    ],
)
def test_unsupported_spaces_are_named(space, wanted, words) -> None:
    with pytest.raises(InputError) as caught:
        choose_keys(space, wanted)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_flatten_keeps_the_leading_axes_and_the_order_of_keys() -> None:
    batch = {"a": np.arange(6.0).reshape(3, 2), "b": np.arange(3.0).reshape(3, 1) - 10}
    flat = flatten_observation(batch, ("b", "a"))
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [[-10, 0, 1], [-9, 2, 3], [-8, 4, 5]])
    assert flatten_observation(np.ones((2, 3)), ()).dtype == np.float32


def test_wrapper_does_the_same_to_a_live_environment() -> None:
    keys = ("observation", "desired_goal")
    plain, flat = (build_env("PointMaze_UMaze-v3", continuing_task=False) for _ in range(2))
    flat = FlatObservation(flat, keys)
    assert flat.observation_space.shape == (6,) and flat.observation_space.dtype == np.float32
    np.testing.assert_array_equal(flat.reset(seed=5)[0], flatten_observation(plain.reset(seed=5)[0], keys))
    action = np.array([0.3, -0.7], dtype=np.float32)
    observation = flat.step(action)[0]
    np.testing.assert_array_equal(observation, flatten_observation(plain.step(action)[0], keys))
    assert observation.dtype == np.float32
    plain.close()
    flat.close()


def test_wrapper_casts_a_box_and_its_bounds() -> None:
    env = FlatObservation(gym.make("Pendulum-v1"), ())
    assert isinstance(env.observation_space, gym.spaces.Box)
    np.testing.assert_array_equal(env.observation_space.high, [1, 1, 8])
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_building_a_maze_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = build_env("PointMaze_UMaze-v3")
    env.reset(seed=0)
    assert os.listdir(tmp_path) == []
    assert tempfile.tempdir == str(tmp_path)
    env.close()


def test_building_a_maze_prints_nothing() -> None:
    code = "from dmm.data.observations import build_env; build_env('PointMaze_UMaze-v3').close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


class Counter(gym.Env):
    """Remembers the action it was given; its three actions are 5, 6 and 7."""

    observation_space = vector(2)
    action_space = gym.spaces.Discrete(3, start=5)
    played: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(2), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.played = action
        return np.zeros(2), 0.0, False, False, {}


class TestDiscreteActions:
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(gym.registry, "Counter-v0", EnvSpec("Counter-v0", entry_point=Counter))

    def test_largest_score_is_played(self) -> None:
        env = build_flat_env("Counter-v0", (), 2, 3)
        assert env.action_space.shape == (3,)
        env.reset()
        for scores, expected in [([0.1, 0.2, -3], 6), ([0, 0, 1], 7), ([-0.1, -0.2, -0.3], 5)]:
            env.step(np.array(scores, dtype=np.float32))
            assert env.unwrapped.played == expected and isinstance(env.unwrapped.played, int)  # type: ignore[attr-defined]

    def test_their_number_must_be_that_of_the_data(self) -> None:
        with pytest.raises(InputError, match=r"'Counter-v0' has .*\(3,\).*data set has .*\(4,\)"):
            build_flat_env("Counter-v0", (), 2, 4)

    def test_flattening_matches_what_is_played(self) -> None:
        space = Counter.action_space
        for action in (5, 6, 7):
            scores = flatten_actions(np.array([action]), space)
            assert scores.shape == (1, 3) and scores.dtype == np.float32
            assert LargestScore(Counter()).action(scores[0]) == action
        assert action_size(space) == 3 and action_size(vector(4)) == 4
        for wrong in (4, 8):
            with pytest.raises(InputError, match=f"actions: {wrong} is no action of"):
                flatten_actions(np.array([5, wrong]), space)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [("Nowhere-v0", {}), ("Hopper-v999", {}), ("no id!", {}), ("Hopper-v5", {"not_an_argument": 1})],
)
def test_environments_that_cannot_be_made(env_id: str, kwargs: dict[str, int]) -> None:
    with pytest.raises(InputError) as caught:
        build_env(env_id, **kwargs)
    assert repr(env_id) in str(caught.value) and "\n" not in str(caught.value)


def test_specification_round_trip_with_fields_of_old_versions() -> None:
    spec = gym.make("Hopper-v5", max_episode_steps=9).spec
    assert spec is not None
    text = spec.to_json().replace('"nondeterministic"', '"autoreset": false, "nondeterministic"')
    assert parse_env_spec(text).max_episode_steps == 9
    for new, old in (("9", "1000000.0"), ("{}", "null")):
        text = text.replace(f": {new},", f": {old},")
    assert "1000000.0" in text and '"kwargs": null' in text
    assert parse_env_spec(text).max_episode_steps == 1_000_000 and parse_env_spec(text).kwargs == {}
    with pytest.raises(InputError, match="stored specification"):
        parse_env_spec("not json")
