"""Training windows: k consecutive steps of an episode, drawn as Decision Transformer draws them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError


@dataclass(frozen=True, eq=False)
class Windows:
    """b windows of k steps, raw (not normalised), short ones padded with zeros on the left."""

    returns_to_go: Tensor  # (b, k, 1)
    states: Tensor  # (b, k, s)
    actions: Tensor  # (b, k, a)
    timesteps: Tensor  # (b, k) int64, steps since the episode began
    mask: Tensor  # (b, k) bool, True where a step is real

    def to(self, device: torch.device | str) -> Windows:
        """The same windows on another device."""
        return Windows(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


class WindowSampler:
    """Draws windows `[t, t + k)`, cut at the episode's end, whose first step is uniform over all transitions.

    That is a trajectory in proportion to its length and a start uniform in it, as `get_batch` of Decision Transformer.
    Departure: padding is zero everywhere, where that code pads states with (0 - mean) / std and actions with -10.

    Raises:
        InputError: `context` or `batch_size` is below 1, or an index lies outside the data.
    """

    def __init__(self, trajectories: Trajectories, context: int, *, generator: torch.Generator):
        if context < 1:
            raise InputError(f"context: got {context}; allowed: 1 or more")
        self.context = context
        self.generator = generator
        self._returns_to_go = torch.from_numpy(trajectories.returns_to_go())[:, None]  # (N, 1)
        self._states = torch.from_numpy(trajectories.observations)
        self._actions = torch.from_numpy(trajectories.actions)
        starts, lengths = torch.from_numpy(trajectories.starts), torch.from_numpy(trajectories.lengths)
        index = torch.arange(trajectories.transitions)
        self._timesteps = index - starts.repeat_interleave(lengths)  # (N,)
        self._remaining = (starts + lengths).repeat_interleave(lengths) - index  # (N,) steps left, this one included
        self._offsets = torch.arange(context) - context  # -k .. -1

    def sample(self, batch_size: int) -> Windows:
        """`batch_size` windows; the generator's state alone decides which."""
        if batch_size < 1:
            raise InputError(f"batch_size: got {batch_size}; allowed: 1 or more")
        return self._gather(torch.randint(len(self._states), (batch_size,), generator=self.generator))

    def windows_at(self, first_indices: Tensor) -> Windows:
        """The windows that begin at the given transitions `(b,)`."""
        first = torch.as_tensor(first_indices, dtype=torch.int64)
        if first.ndim != 1 or not len(first) or int(first.min()) < 0 or int(first.max()) >= len(self._states):
            raise InputError(f"first_indices: must be (b,) with b >= 1 and entries in 0 .. {len(self._states) - 1}")
        return self._gather(first)

    def window_at(self, index: int) -> Windows:
        """The one window (b = 1) that begins at transition `index`."""
        return self.windows_at(torch.tensor([index]))

    def _gather(self, first: Tensor) -> Windows:
        real = self._remaining[first].clamp_(max=self.context)
        rows = (first + real)[:, None] + self._offsets  # (b, k), ends with the window's last real step
        padding = rows < first[:, None]
        rows = torch.where(padding, first[:, None], rows)  # any valid row: it is zeroed below
        empty = padding[:, :, None]
        return Windows(
            returns_to_go=self._returns_to_go[rows].masked_fill_(empty, 0.0),
            states=self._states[rows].masked_fill_(empty, 0.0),
            actions=self._actions[rows].masked_fill_(empty, 0.0),
            timesteps=self._timesteps[rows].masked_fill_(padding, 0),
            mask=~padding,
        )
