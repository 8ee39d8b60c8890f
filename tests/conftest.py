"""One torch thread for every test, nothing left behind by any, and a data set so small that a run takes a second."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
from hypothesis import settings
from minari.data_collector import EpisodeBuffer

from dmm.data.observations import register_environments
from dmm.data.trajectories import Trajectories

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # so that tests can import `tests.peers`

from tests.global_state import put_back, seed_everything, seeded, shared_state  # noqa: E402

# Machines that share their cores are slow without being wrong, and a failure must come back on the next run.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)
register_environments()  # now, lest the first test that needs them is the one that changes the registry

MakeTrajectories = Callable[..., Trajectories]
MakeDataset = Callable[..., None]


def tiny_trajectories(
    seed: int = 0,
    lengths: tuple[int, ...] = (3, 9, 1, 12, 7),
    state_size: int = 4,
    action_size: int = 2,
    env_id: str = "",
    scale: float = 1.0,
) -> Trajectories:
    """Episodes whose action is a fixed linear function of the state, so that a policy can learn it within seconds."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    states = rng.normal(size=(n, state_size)).astype(np.float32)
    mix = np.linspace(-1, 1, state_size * action_size).reshape(state_size, action_size)
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    return Trajectories(
        observations=3 + 2 * states,
        actions=np.tanh(states @ mix).astype(np.float32),
        rewards=(scale * rng.uniform(size=n)).astype(np.float32),
        starts=ends - np.array(lengths),
        lengths=np.array(lengths, dtype=np.int64),
        terminated=np.array([length % 2 == 0 for length in lengths]),
        dataset_id="tiny/linear-v0",
        env_id=env_id,
        reference=(0.0, 10.0),
        last_observations=3 + 2 * np.random.default_rng(seed + 1).normal(size=(len(lengths), state_size)),
    )


def _nothing_left_behind(owner: str) -> Iterator[None]:
    before = shared_state()
    yield
    if changed := put_back(before):
        pytest.fail(f"{owner} leaves behind what other tests then meet:\n" + "\n".join(changed), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def _module_leaves_nothing_behind() -> Iterator[None]:
    yield from _nothing_left_behind("a fixture of this file")


@pytest.fixture(autouse=True)
def _test_leaves_nothing_behind(_module_leaves_nothing_behind: None) -> Iterator[None]:
    """Random state is not compared but set: each test begins with the same, whatever ran before it."""
    seed_everything()
    yield from _nothing_left_behind("this test")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Any:
    """What a fixture of a whole file or run draws does not depend on which test is the first to ask for it."""
    if fixturedef.scope == "function":
        return (yield)
    with seeded():
        return (yield)


@pytest.fixture(scope="session")
def make_trajectories() -> MakeTrajectories:
    """Makes synthetic `Trajectories`: `make_trajectories(seed=0, lengths=(...), state_size=4, action_size=2, ...)`."""
    return tiny_trajectories


@pytest.fixture(scope="session")
def trajectories() -> Trajectories:
    """Five episodes of 1 to 12 steps, `s = 4`, `a = 2`."""
    return tiny_trajectories()


@pytest.fixture
def datasets_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for Minari data sets."""
    path = tmp_path / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    return path


@pytest.fixture
def make_dataset(datasets_path: Path) -> MakeDataset:
    """Writes a tiny data set with Minari's own function: one `(observations, actions, rewards)` per episode."""

    def make(
        minari_id: str,
        episodes: list[tuple[Any, Any, Any]],
        observation_space: gym.Space,
        action_space: Any = None,
        **more: Any,
    ) -> None:
        buffers = []
        for observations, actions, rewards in episodes:
            terminations = np.zeros(len(rewards), dtype=bool)
            terminations[-1] = len(rewards) % 2 == 0  # episodes of even length end by themselves
            truncations = np.zeros_like(terminations)
            truncations[-1] = not terminations[-1]
            buffers.append(
                EpisodeBuffer(
                    observations=observations,
                    actions=actions,
                    rewards=rewards,
                    terminations=terminations,  # type: ignore[arg-type]
                    truncations=truncations,  # type: ignore[arg-type]
                )
            )
        action_space = action_space or gym.spaces.Box(-1, 1, (2,), np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minari.create_dataset_from_buffers(
                minari_id, buffers, observation_space=observation_space, action_space=action_space, **more
            )

    return make
