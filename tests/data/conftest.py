from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from dmm.data.trajectories import Trajectories

MakeDataset = Callable[..., None]


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


@pytest.fixture
def trajectories() -> Trajectories:
    """Five episodes, one of them a single step long, with every value distinct."""
    lengths = np.array([7, 1, 12, 3, 5])
    n = int(lengths.sum())
    count = np.arange(1, n + 1, dtype=np.float32)
    return Trajectories(
        observations=count[:, None] + np.array([0.0, 0.25, 0.5], dtype=np.float32),
        actions=-count[:, None] - np.array([0.0, 0.5], dtype=np.float32),
        rewards=np.sin(count),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        terminated=np.array([True, False, True, False, True]),
        dataset_id="test/made-v0",
        env_id="Hopper-v5",
    )
