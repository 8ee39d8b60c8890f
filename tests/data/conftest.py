from __future__ import annotations

import numpy as np
import pytest

from dmm.data.trajectories import Trajectories


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
