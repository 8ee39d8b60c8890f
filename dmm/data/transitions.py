"""Single transitions, drawn uniformly: what value-based methods learn from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.data.windows import TransitionWindows, WindowSampler
from dmm.errors import InputError, whole_number


class TransitionSampler(WindowSampler):
    """Draws `TransitionWindows` of one step, each of those that a value can be learned from as likely.

    What a time limit cut is no end: the value of the state behind it counts. Where that state was not recorded, the
    step before it is left out; one with which the environment ended the episode stays, since no value lies behind it.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        device: where the data lie and batches are put together.

    Raises:
        InputError: every step of the data is the last of a cut episode.
    """

    def __init__(self, trajectories: Trajectories, device: torch.device | str = "cpu"):
        t = trajectories
        usable = np.ones(t.transitions, dtype=bool)
        if t.last_observations is None:
            usable[(t.starts + t.lengths - 1)[~t.terminated]] = False
            t = dataclasses.replace(t, last_observations=np.zeros((t.episodes, t.state_size), dtype=np.float32))
        if not usable.any():
            raise InputError(f"dataset: {t.dataset_id!r} has no step with a known next state")
        super().__init__(t, 1, generator=torch.Generator(), device=device, batch=TransitionWindows)
        self._usable = torch.from_numpy(np.flatnonzero(usable))

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """The transitions of the next batches: `(batches, b)`, the numbers of as many draws of one batch."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        return self._usable[torch.randint(len(self._usable), shape, generator=generator)]


def transitions(trajectories: Trajectories, config: Any, device: torch.device | str) -> TransitionSampler:
    """The sampler of a model's entry."""
    return TransitionSampler(trajectories, device)
