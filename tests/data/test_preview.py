from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dmm.data.collect import collect
from dmm.data.preview import preview
from dmm.data.recipes import RECIPES
from dmm.data.trajectories import load_trajectories
from dmm.errors import InputError


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("seed", [0, 7])
def test_is_the_beginning_of_what_collect_makes(name: str, seed: int, datasets_path: Path) -> None:
    wanted = RECIPES[name].env_kwargs.get("length", 0) + 1100
    collect(name, transitions=wanted, seed=seed, workers=1, progress=False)
    made = load_trajectories(name)
    assert made.episodes > 1
    seen = preview(name, made.episodes, seed=seed, transitions=wanted)
    assert seen.fingerprint() == made.fingerprint()
    for field in ("observations", "actions", "rewards", "starts", "lengths", "terminated"):
        ours, theirs = getattr(seen, field), getattr(made, field)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), field
    for field in ("dataset_id", "env_id", "observation_keys", "reference"):
        assert getattr(seen, field) == getattr(made, field), field
    assert seen.env_spec is not None and made.env_spec is not None
    assert json.loads(seen.env_spec) == json.loads(made.env_spec)


def test_fewer_episodes_are_the_first_ones() -> None:
    two, one = (preview("dmm/pointmaze/umaze-v0", episodes) for episodes in (2, 1))
    assert two.episodes == 2 and one.episodes == 1
    assert np.array_equal(one.observations, two.observations[: one.transitions])


def test_writes_nothing(datasets_path: Path) -> None:
    preview("dmm/pointmaze/umaze-v0", 1)
    assert not datasets_path.exists()


def test_makes_its_environment() -> None:
    seen = preview("dmm/pointmaze/umaze-v0", 1)
    env = seen.make_env()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (seen.state_size,) and observation.dtype == np.float32
    env.close()


@pytest.mark.parametrize("episodes", [0, -3])
def test_less_than_one_episode_is_named(episodes: int) -> None:
    with pytest.raises(InputError, match=f"^episodes: got {episodes}, allowed is a whole number of at least 1$"):
        preview("dmm/pointmaze/umaze-v0", episodes)


def test_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^name: no recipe 'dmm/hoper/medium-v0'; did you mean dmm/hopper/medium-v0"):
        preview("dmm/hoper/medium-v0", 1)
