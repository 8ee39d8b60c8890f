"""Training windows: k consecutive steps of an episode, drawn as Decision Transformer draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError, require_choice, whole_number

if TYPE_CHECKING:
    from typing_extensions import Self


Draw = Literal["transition", "trajectory"]
Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors drawn together, each with the same axes in front, `(..., b)`."""

    @property
    def shape(self) -> torch.Size:
        """The axes in front: `(..., b)`. Here every field has one axis behind them."""
        first: Tensor = getattr(self, fields(self)[0].name)
        return first.shape[:-1]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """`function` of every field."""
        return type(self)(*(function(getattr(self, field.name)) for field in fields(self)))

    def merged(self) -> Self:
        """One batch of what has further axes in front: `(g, b, ...)` -> `(g * b, ...)`."""
        last = len(self.shape) - 1
        return self.map(lambda field: field.flatten(0, last))

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return self.map(lambda field: field.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class Windows(Batch):
    """b windows of k steps, raw (not normalised), short ones padded with zeros, on the left unless said otherwise."""

    returns_to_go: Tensor  # (b, k, 1)
    states: Tensor  # (b, k, s)
    actions: Tensor  # (b, k, a)
    timesteps: Tensor  # (b, k) int64, steps since the episode began
    mask: Tensor  # (b, k) bool, True where a step is real

    @property
    def shape(self) -> torch.Size:
        """The axes in front: `(..., b)`."""
        return self.mask.shape[:-1]


Padded = TypeVar("Padded", bound=Windows)


@dataclass(frozen=True, eq=False)
class RewardedWindows(Windows):
    """Windows with what each step earned."""

    rewards: Tensor  # (b, k, 1)


@dataclass(frozen=True, eq=False)
class HistoryWindows(RewardedWindows):
    """Windows in which each step also has the action and the reward of the step before, which may lie outside."""

    previous_actions: Tensor  # (b, k, a), zero at an episode's first step
    previous_rewards: Tensor  # (b, k, 1), zero at an episode's first step


@dataclass(frozen=True, eq=False)
class TransitionWindows(RewardedWindows):
    """Windows in which each step also has the state that it led to."""

    next_states: Tensor  # (b, k, s)
    ended: Tensor  # (b, k, 1), 1 where the environment ended the episode with this step, else 0


COLUMNS: dict[str, Callable[[Trajectories], np.ndarray]] = {
    "returns_to_go": lambda t: t.returns_to_go()[:, None],
    "states": lambda t: t.observations,
    "actions": lambda t: t.actions,
    "rewards": lambda t: t.rewards[:, None],
    "previous_actions": lambda t: t.one_step_before(t.actions),
    "previous_rewards": lambda t: t.one_step_before(t.rewards[:, None]),
    "next_states": lambda t: t.next_observations(),
    "ended": lambda t: t.ended()[:, None].astype(np.float32),
}
"""Where the fields of windows come from, a row for each transition, `(N, size)`; all but time steps and mask."""


class Sampler(Protocol):
    """What training draws batches with."""

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """What the next batches are made of: `(batches, b, ...)` int64 on the CPU, the same on every device."""

    def gather(self, index: Tensor) -> Batch:
        """The batch of what was drawn, `(..., b, ...)` -> fields `(..., b, ...)`, on the sampler's device.

        Shapes follow from the index's alone and nothing waits for the device, so that a CUDA graph can hold it.
        """


@dataclass(frozen=True)
class WindowDraws:
    """How a model wants its windows; called with data, the model's config and a device it gives the sampler.

    `batch` names the fields, `by` and `pad` are those of `WindowSampler`.
    """

    batch: type[Windows] = Windows
    by: Draw = "transition"
    pad: Side = "left"

    def __call__(self, trajectories: Trajectories, config: Any, device: torch.device | str) -> WindowSampler:
        """The sampler of windows of `config.context` steps."""
        how: dict[str, Any] = {"batch": self.batch, "by": self.by, "pad": self.pad, "device": device}
        return WindowSampler(trajectories, config.context, generator=torch.Generator(), **how)


WINDOWS = WindowDraws()
"""Those of most models."""


class WindowSampler:
    """Draws windows `[t, t + k)`, cut at the episode's end.

    By transition, the first step is uniform over all transitions: a trajectory in proportion to its length and a start
    uniform in it, as `get_batch` of Decision Transformer. By trajectory, every trajectory is as likely and the start is
    uniform over those of full windows, as in Elastic Decision Transformer.
    Departure: padding is zero everywhere, where that code pads states with (0 - mean) / std and actions with -10.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        context: `k` time steps in a window.
        generator: on the CPU, whatever the device, so that the same windows are drawn everywhere.
        device: where the data lie and windows are put together.
        batch: the kind of windows, `Windows` or a class with more of the fields that `COLUMNS` knows.
        by: what is drawn uniformly, `transition` or `trajectory`.
        pad: the side on which short windows are padded.

    Raises:
        InputError: `context` or `batch_size` is below 1, an index lies outside the data, or the data lack a field.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        context: int,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        batch: type[Windows] = Windows,
        by: Draw = "transition",
        pad: Side = "left",
    ):
        context = whole_number("context", context, 1)
        require_choice("by", by, Draw)
        require_choice("pad", pad, Side)
        self.context, self.generator, self.transitions = context, generator, trajectories.transitions
        self.batch, self.by, self.pad = batch, by, pad
        self._names = [field.name for field in fields(batch) if field.name not in ("timesteps", "mask")]
        columns = [COLUMNS[name](trajectories) for name in self._names]
        self._sizes = [column.shape[1] for column in columns]
        self._rows = _table(columns).to(device)  # (N + 1, 1 + s + a + ...)
        starts, lengths = torch.from_numpy(trajectories.starts), torch.from_numpy(trajectories.lengths)
        self._starts = starts  # (E,) on the CPU, for drawing
        self._full = (lengths - context).clamp(min=0) + 1  # (E,) starts of full windows, at least the first step
        index = torch.arange(self.transitions)
        self._timesteps = F.pad(index - starts.repeat_interleave(lengths), (0, 1)).to(device)  # (N + 1,)
        episode_ends = (starts + lengths).repeat_interleave(lengths)
        self._ends = torch.minimum(index + context, episode_ends).to(device)  # (N,) of the window that begins here
        self._offsets = (torch.arange(context) - (context if pad == "left" else 0)).to(device)  # -k .. -1, or 0 .. k-1
        self._padding = torch.tensor(self.transitions, device=device)  # the row behind the last, all zeros

    def sample(self, batch_size: int) -> Windows:
        """`batch_size` windows; the generator's state alone decides which."""
        return self.gather(self.draw(1, batch_size, self.generator)[0])

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Where the windows of the next batches begin: `(batches, b)`, the numbers of as many draws of one batch."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        if self.by == "transition":
            return torch.randint(self.transitions, shape, generator=generator)
        which, where = torch.rand((*shape, 2), generator=generator, dtype=torch.float64).unbind(dim=-1)
        episode = whole_share(which, torch.tensor(len(self._starts)))
        return self._starts[episode] + whole_share(where, self._full[episode])

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
        rows, mask = self.places(first.to(self._rows.device, non_blocking=True))
        rows = torch.where(mask, rows, self._padding)
        parts = torch.split(self._rows[rows], self._sizes, dim=-1)
        return self.batch(**dict(zip(self._names, parts, strict=True)), timesteps=self._timesteps[rows], mask=mask)

    def places(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """The transitions of the windows that begin at `first (..., b)`, and which are real: `(..., b, k)` each."""
        if self.pad == "left":
            rows = self._ends[first][..., None] + self._offsets  # (..., b, k), ends with the window's last real step
            return rows, rows >= first[..., None]
        rows = first[..., None] + self._offsets
        return rows, rows < self._ends[first][..., None]


def right_padded(windows: Padded) -> Padded:
    """Windows `(b, k, .)` whose padding, on the left, is moved behind the real steps, where causality hides it."""
    k = windows.mask.shape[1]
    short = k - windows.mask.sum(dim=1, keepdim=True)  # (b, 1)
    index = (torch.arange(k, device=short.device) + short) % k  # (b, k)
    rows = torch.arange(len(index), device=short.device)[:, None]
    return windows.map(lambda field: field[rows, index])


def _table(columns: Sequence[np.ndarray]) -> Tensor:
    """All columns of each transition in one row, and a row of zeros behind the last: one look-up finds all of them,
    where each is, and padding with them."""
    rows = torch.zeros(len(columns[0]) + 1, sum(column.shape[1] for column in columns))
    done = 0
    for column in columns:
        rows[:-1, done : done + column.shape[1]] = torch.from_numpy(column)
        done += column.shape[1]
    return rows


def whole_share(part: Tensor, count: Tensor) -> Tensor:
    """Uniform numbers below 1 to whole numbers below `count`."""
    return torch.minimum((part * count).long(), count - 1)
