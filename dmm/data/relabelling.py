"""Returns-to-go that a critic raises: what it thinks can still be had, where the data got less.

    R_{T-1} = r_{T-1};   R_t = r_t + max(R_{t+1}, V(s_{t+1}))        backwards through an episode of T steps
    window that ends at step e: its last place has R_e, each earlier one r_t + (its next place)

Unrolled, with G the plain return-to-go: `R_t = G_t + max(0, largest V(s_u) - G_u of later steps u)`. So a window's
returns are its plain ones plus one number, `R_e - G_e`, its lift, and the same step has other returns in other windows.
V of what follows the last step never enters, and neither does V of an episode's first state.

Source: Yamagata et al. 2023, arXiv 2209.03993; takuyamagata/qdt_simple@5d2f757. `last_reward="dropped"` is the script
for D4RL, takuseno/d3rlpy@38c34b6: the episode's last transition keeps its plain return and counts as 0 for those before
it. A time limit costs d3rlpy one transition more, so that an episode cut off by it loses its last two rewards.

Axes: `b` batch, `k` time steps, `N` transitions, `T` steps of an episode.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dmm.data.precision import real_array
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError, require_choice

LastReward = Literal["kept", "dropped"]
Drawn = Literal["first", "last"]


@dataclass(frozen=True, eq=False)
class Relabelled(Trajectories):
    """Trajectories with what each window that ends at a step adds to its returns-to-go."""

    lifts: np.ndarray | None = None  # (N,) float64, R_t - G_t; None adds nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lifts is not None and np.shape(self.lifts) != (self.transitions,):
            raise InputError(f"lifts: got shape {np.shape(self.lifts)}, allowed is ({self.transitions},)")

    def relabelled_returns(self) -> np.ndarray:
        """`R_t` of every step: `(N,)` float64."""
        plain = self.returns_to_go().astype(np.float64)
        return plain if self.lifts is None else plain + self.lifts

    def relabelled_steps(self) -> int:
        """Steps whose return is larger than the data's own."""
        return 0 if self.lifts is None else int((self.lifts > 0).sum())


def relabel(rewards: Any, values: Any, *, last_reward: LastReward = "kept", terminated: bool = True) -> np.ndarray:
    """Relabelled returns-to-go of one episode: `(T,)` float64.

    Args:
        rewards: `(T,)`, one per step.
        values: `(T,)`, `values[t] = V(s_t)` of the state before step t, in the unit of the rewards; -inf never counts.
        last_reward: `kept`, or `dropped` as in the script for D4RL; see the module.
        terminated: whether the environment ended the episode, which only `dropped` asks.

    Raises:
        InputError: other shapes, no steps, numbers that are not finite (values may be -inf), an unknown reading.
    """
    rewards, values = _row("rewards", rewards), _row("values", values)
    if len(rewards) != len(values) or not len(rewards):
        raise InputError(f"values: got {len(values)} for {len(rewards)} rewards, allowed is one for each, at least one")
    returns: np.ndarray = _plain(rewards) + _lifts(rewards, values, last_reward, terminated)
    return returns


def relabel_all(trajectories: Trajectories, values: Any, *, last_reward: LastReward = "kept") -> Relabelled:
    """Every episode of a data set, relabelled: the same data with `lifts`.

    Args:
        trajectories: the data.
        values: `(N,)`, V of each observation; see `relabel`.
        last_reward: see `relabel`.

    Raises:
        InputError: as `relabel`.
    """
    t, values = trajectories, _row("values", values)
    if len(values) != t.transitions:
        raise InputError(f"values: got {len(values)}, allowed is one for each of {t.transitions} observations")
    lifts = np.empty(t.transitions)
    for start, length, terminated in zip(t.starts, t.lengths, t.terminated, strict=True):
        own = slice(start, start + length)
        lifts[own] = _lifts(t.rewards[own].astype(np.float64), values[own], last_reward, bool(terminated))
    return Relabelled(**{field.name: getattr(t, field.name) for field in dataclasses.fields(Trajectories)}, lifts=lifts)


def window_returns(rewards: Tensor, last: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns-to-go in windows: `last` in the last real place, `r_t + next place` before it, zeros in padding.

    Args:
        rewards: `(..., k)`.
        last: `(...,)`, R_e of the step that each window ends with.
        mask: `(..., k)` bool, real places; all if not given.

    Returns:
        `(..., k)`.

    Raises:
        InputError: shapes that do not fit.
    """
    if not rewards.ndim or not rewards.shape[-1]:
        raise InputError(f"rewards: got shape {tuple(rewards.shape)}, allowed is (..., k) with k >= 1")
    if last.shape != rewards.shape[:-1]:
        raise InputError(f"last: got shape {tuple(last.shape)}, allowed is {tuple(rewards.shape[:-1])}")
    real = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask
    if real.shape != rewards.shape:
        raise InputError(f"mask: got shape {tuple(real.shape)}, allowed is {tuple(rewards.shape)}")
    following, places = torch.zeros_like(last), []
    begun = torch.zeros_like(real[..., 0])  # whether the window's end lies behind the present place
    for place in reversed(range(rewards.shape[-1])):
        found = torch.where(begun, rewards[..., place] + following, last)
        following = torch.where(real[..., place], found, following)
        begun = begun | real[..., place]
        places.append(torch.where(real[..., place], found, 0.0))
    return torch.stack(places[::-1], dim=-1)


class RelabelledSampler(WindowSampler):
    """Windows whose returns-to-go are lifted by what their last real step says.

    `drawn` is `first`, the package's own draw, or `last`: windows end at the drawn transition and are short at the
    start of an episode, as in the script for D4RL. Data that are not relabelled are lifted by nothing.
    """

    def __init__(self, trajectories: Trajectories, context: int, *, drawn: Drawn = "first", **options: Any):
        super().__init__(trajectories, context, **options)
        require_choice("drawn", drawn, Drawn)
        self.drawn = drawn
        lifts = trajectories.lifts if isinstance(trajectories, Relabelled) else None
        lifts = np.zeros(trajectories.transitions) if lifts is None else lifts
        self._lifts = torch.from_numpy(lifts).float().to(self._rows.device)  # (N,)
        self._begins = self._starts.repeat_interleave(torch.from_numpy(trajectories.lengths)).to(self._rows.device)

    def gather(self, first: Tensor) -> Windows:
        windows = super().gather(first)
        drawn = first.to(self._rows.device, non_blocking=True)
        last = drawn if self.drawn == "last" else self._ends[drawn] - 1
        lifts = self._lifts[last][..., None, None] * windows.mask[..., None]
        return dataclasses.replace(windows, returns_to_go=windows.returns_to_go + lifts)

    def places(self, first: Tensor) -> tuple[Tensor, Tensor]:
        if self.drawn == "first":
            return super().places(first)
        begins = torch.maximum(self._begins[first], first - self.context + 1)
        base = first + 1 if self.pad == "left" else begins
        rows = base[..., None] + self._offsets
        return rows, (rows >= begins[..., None]) & (rows <= first[..., None])


def _plain(rewards: np.ndarray) -> np.ndarray:
    """`G_t = r_t + G_{t+1}`: `(T,)` float64."""
    return np.cumsum(rewards[::-1])[::-1]


def _lifts(rewards: np.ndarray, values: np.ndarray, last_reward: LastReward, terminated: bool) -> np.ndarray:
    """`R_t - G_t` of one episode: `(T,)` float64."""
    require_choice("last_reward", last_reward, LastReward)
    lifts, last, plain = np.zeros(len(rewards)), len(rewards) - 1, _plain(rewards)
    lost = 0.0
    if last_reward == "dropped":
        last = max(last - (not terminated), 0)
        lost = plain[last]  # what no step before it gets
    ahead = values[1 : last + 1] - (plain[1 : last + 1] - lost)  # of the steps behind 0 .. last - 1
    lifts[:last] = np.maximum.accumulate(np.maximum(ahead, 0)[::-1])[::-1] - lost
    return lifts


def _row(name: str, numbers: Any) -> np.ndarray:
    array = np.asarray(real_array(name, numbers), dtype=np.float64)
    wrong = np.isnan(array) | (array == np.inf) | ((array == -np.inf) & (name != "values"))
    if array.ndim != 1 or wrong.any():
        kind = f"shape {array.shape}" if array.ndim != 1 else f"{array[wrong][0]:g}"
        raise InputError(f"{name}: got {kind}, allowed are finite numbers (T,)")
    return array
