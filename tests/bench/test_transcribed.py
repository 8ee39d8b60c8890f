"""The transcriptions compute what the package's models compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dmm import from_official
from dmm.bench.train import random_trajectories
from dmm.bench.transcribed import Transcribed, transcribed_step
from dmm.data.windows import Windows, WindowSampler
from dmm.policy import action_loss

CONFIG = {"state_size": 11, "action_size": 3, "context": 5, "width": 16, "layers": 2, "max_timestep": 1000, "window": 6}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def windows() -> Windows:
    return WindowSampler(random_trajectories(3, 8), 5, generator=torch.Generator().manual_seed(0)).sample(6)


@pytest.mark.parametrize("name", ["dc", "dm"])
def test_actions_are_those_of_the_package(name: str, windows: Windows) -> None:
    model = Transcribed(name, 11, 3, 16, 2).eval()
    policy = from_official(name, model.state_dict(), CONFIG)
    assert bool(windows.mask.all(1).any())
    given = [x * windows.mask[..., None] for x in (windows.states, windows.actions, windows.returns_to_go / 1000)]
    torch.testing.assert_close(model(*given, windows.timesteps), policy(windows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["dc", "dm"])
def test_a_step_lowers_the_loss(name: str, windows: Windows) -> None:
    model = Transcribed(name, 11, 3, 16, 2).eval()

    def loss() -> float:
        predicted = model(windows.states, windows.actions, windows.returns_to_go / 1000, windows.timesteps)
        return float(action_loss(predicted, windows).detach())

    before, step = loss(), transcribed_step(model, windows)
    for _ in range(20):
        step()
    assert loss() < before
