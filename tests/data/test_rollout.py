from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dmm.data.observations import build_env
from dmm.data.recipes import RECIPES
from dmm.data.rollout import RecordedEpisode, Recorder, record

MAZE, HOPPER = RECIPES["dmm/pointmaze/umaze-v0"], RECIPES["dmm/hopper/medium-v0"]


def assert_same(first: RecordedEpisode, second: RecordedEpisode) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, dict):
            assert all(np.array_equal(value[key], other[key]) for key in value | other)
        else:
            assert np.array_equal(value, other), name


@pytest.mark.parametrize("recipe", [MAZE, HOPPER], ids=lambda recipe: recipe.env_id)
def test_an_episode_depends_on_seed_and_number_alone(recipe) -> None:
    recorder = Recorder(recipe, seed=3)
    in_order = [recorder.episode(number) for number in range(4)]
    for number in (3, 0, 2):  # another order, and an environment that has seen other episodes
        assert_same(recorder.episode(number), in_order[number])
    assert_same(Recorder(recipe, seed=3).episode(3), in_order[3])
    assert not np.array_equal(Recorder(recipe, seed=4).episode(3).actions, in_order[3].actions)


@pytest.mark.parametrize("recipe", [MAZE, HOPPER], ids=lambda recipe: recipe.env_id)
def test_recorded_actions_lead_to_the_recorded_observations(recipe) -> None:
    episode = Recorder(recipe, seed=0).episode(1)
    env = build_env(recipe.env_id, **recipe.env_kwargs)
    observation, _ = env.reset(seed=episode.seed)
    for step, action in enumerate(episode.actions):
        stored = episode.observations
        stored = {key: stored[key][step] for key in stored} if isinstance(stored, dict) else stored[step]
        np.testing.assert_equal(observation, stored)
        observation, reward, terminated, truncated, _ = env.step(action)
        assert reward == episode.rewards[step]
    assert (terminated, truncated) == (episode.terminated, episode.truncated)
    assert episode.actions.dtype == np.float32 and np.abs(episode.actions).max() <= 1
    env.close()


def test_a_script_without_main_guard_can_use_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('script runs')\n"
        "from dmm.data.recipes import RECIPES\n"
        "from dmm.data.rollout import record\n"
        "episodes = record(RECIPES['dmm/pointmaze/umaze-v0'], 0, workers=2)\n"
        "print(next(episodes).seed)\n"
        "episodes.close()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == ["script runs", str(Recorder(MAZE, 0).episode(0).seed), ""]


def test_a_worker_that_cannot_start_ends_the_recording() -> None:
    broken = dataclasses.replace(HOPPER, env_kwargs={"max_episode_steps": 5, "frame_skip": "x"})
    with pytest.raises(BrokenProcessPool), closing(record(broken, 0, workers=2)) as episodes:
        next(episodes)
