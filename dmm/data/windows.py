"""Training windows: k consecutive steps of an episode, drawn as Decision Transformer draws them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError, whole_number


@dataclass(frozen=True, eq=False)
class Windows:
    """b windows of k steps, raw (not normalised), short ones padded with zeros on the left."""

    returns_to_go: Tensor  # (b, k, 1)
    states: Tensor  # (b, k, s)
    actions: Tensor  # (b, k, a)
    timesteps: Tensor  # (b, k) int64, steps since the episode began
    mask: Tensor  # (b, k) bool, True where a step is real

    def merged(self) -> Windows:
        """One batch of what has a further axis in front: `(g, b, k, ...)` -> `(g * b, k, ...)`."""
        return Windows(*(getattr(self, field.name).flatten(0, 1) for field in fields(self)))

    def to(self, device: torch.device | str) -> Windows:
        """The same windows on another device."""
        return Windows(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


class WindowSampler:
    """Draws windows `[t, t + k)`, cut at the episode's end, whose first step is uniform over all transitions.

    That is a trajectory in proportion to its length and a start uniform in it, as `get_batch` of Decision Transformer.
    Departure: padding is zero everywhere, where that code pads states with (0 - mean) / std and actions with -10.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        context: `k` time steps in a window.
        generator: on the CPU, whatever the device, so that the same windows are drawn everywhere.
        device: where the data lie and windows are put together.

    Raises:
        InputError: `context` or `batch_size` is below 1, or an index lies outside the data.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context: int,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ):
        context = whole_number("context", context, 1)
        self.context, self.generator, self.transitions = context, generator, trajectories.transitions
        self._sizes = [1, trajectories.state_size, trajectories.action_size]
        self._rows = _table(trajectories).to(device)  # (N + 1, 1 + s + a)
        starts, lengths = torch.from_numpy(trajectories.starts), torch.from_numpy(trajectories.lengths)
        index = torch.arange(self.transitions)
        self._timesteps = F.pad(index - starts.repeat_interleave(lengths), (0, 1)).to(device)  # (N + 1,)
        episode_ends = (starts + lengths).repeat_interleave(lengths)
        self._ends = torch.minimum(index + context, episode_ends).to(device)  # (N,) of the window that begins here
        self._offsets = (torch.arange(context) - context).to(device)  # -k .. -1
        self._padding = torch.tensor(self.transitions, device=device)  # the row behind the last, all zeros

    def sample(self, batch_size: int) -> Windows:
        """`batch_size` windows; the generator's state alone decides which."""
        return self.gather(self.draw(1, batch_size, self.generator)[0])

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Where the windows of the next batches begin: `(batches, b)`, the numbers of as many draws of one batch."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        return torch.randint(self.transitions, shape, generator=generator)

    def windows_at(self, first_indices: Tensor) -> Windows:
        """The windows that begin at the given transitions `(b,)`."""
        first = torch.as_tensor(first_indices, dtype=torch.int64)
        if first.ndim != 1 or not len(first) or int(first.min()) < 0 or int(first.max()) >= self.transitions:
            raise InputError(f"first_indices: must be (b,) with b >= 1 and entries in 0 .. {self.transitions - 1}")
        return self.gather(first)

    def window_at(self, index: int) -> Windows:
        """The one window (b = 1) that begins at transition `index`."""
        return self.windows_at(torch.tensor([index]))

    def gather(self, first: Tensor) -> Windows:
        """The windows that begin at `first (..., b)`, which must be transitions, on the sampler's device.

        Nothing here waits for the device or looks at the numbers, so that a CUDA graph can hold it.
        """
        first = first.to(self._rows.device, non_blocking=True)
        rows = self._ends[first][..., None] + self._offsets  # (..., b, k), ends with the window's last real step
        mask = rows >= first[..., None]
        rows = torch.where(mask, rows, self._padding)
        returns_to_go, states, actions = torch.split(self._rows[rows], self._sizes, dim=-1)
        return Windows(returns_to_go, states, actions, self._timesteps[rows], mask)


def _table(trajectories: Trajectories) -> Tensor:
    """Return-to-go, state and action of each transition in one row, and a row of zeros behind the last: one look-up
    finds all three, where each is, and padding with them."""
    t, s = trajectories, trajectories.state_size
    rows = torch.zeros(t.transitions + 1, 1 + s + t.action_size)
    rows[:-1, 0] = torch.from_numpy(t.returns_to_go())
    rows[:-1, 1 : 1 + s] = torch.from_numpy(t.observations)
    rows[:-1, 1 + s :] = torch.from_numpy(t.actions)
    return rows
