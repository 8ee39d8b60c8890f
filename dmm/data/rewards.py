"""What a stored reward means: what one step earned, or a sum so far that has to be undone; and how it is read."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmm.data.precision import real_array
from dmm.data.scores import family
from dmm.errors import InputError

StoredRewards = Literal["per-step", "cumulative"]
Rewards = Literal["per-step", "cumulative", "delayed"]
"""How to read them: as one of the two, or all of an episode's reward at its last step, whatever is stored."""


def stored_rewards(asked: str | None, metadata: dict[str, Any], spec: EnvSpec | None) -> StoredRewards:
    """How the rewards of a data set are to be read: as asked, else as its metadata say, else as its environment pays.

    Raises:
        InputError: `asked`, or what the metadata say, is neither `per-step` nor `cumulative`.
    """
    said = asked or metadata.get("dmm", {}).get("rewards")
    for choice in get_args(StoredRewards):
        if said == choice:
            return choice  # type: ignore[no-any-return]
    if said:
        allowed = ", ".join(map(repr, get_args(StoredRewards)))
        raise InputError(f"rewards: got {said!r}; allowed: {allowed}")
    return "cumulative" if spec is not None and counts_tasks(spec) else "per-step"


def require_rewards(asked: str | None) -> None:
    """Passes when rewards can be read that way; None leaves it to the data set.

    Raises:
        InputError: they cannot.
    """
    if asked is not None and asked not in get_args(Rewards):
        allowed = ", ".join(map(repr, get_args(Rewards)))
        raise InputError(f"rewards: got {asked!r}; allowed: {allowed}")


def one_per_step(rewards: Any, where: str) -> np.ndarray:
    """Rewards `(l,)`, or a column `(l, 1)` of them, as `(l,)` float64.

    Raises:
        InputError: another shape, or no real numbers; `where` says of which episode.
    """
    array = real_array("rewards", rewards)
    if array.shape[1:] not in ((), (1,)) or not array.ndim:
        raise InputError(f"rewards: got shape {array.shape} {where}; allowed: one number per step, (l,) or (l, 1)")
    return array.reshape(-1).astype(np.float64)


def per_step_rewards(cumulative: np.ndarray, *, keep_first: bool = False) -> np.ndarray:
    """`r_t = c_t - c_{t-1}`, `r_0 = 0`, from the running sums `c (l,)` of one episode.

    This is "compute delta" of the paper's Algorithm 1. `keep_first=True` is the released code's variant, `r_0 = c_0`.
    """
    first = cumulative[:1] if keep_first else np.zeros_like(cumulative[:1])
    return np.concatenate([first, np.diff(cumulative)])


def counts_tasks(spec: EnvSpec) -> bool:
    """Whether each step's reward is the number of tasks that are done by then, and not of those done just now.

    FrankaKitchen does so when it does not remove a task once it is completed. Minari's `D4RL/kitchen` sets were
    recorded that way (their generation script says so), and the sets of the original D4RL hold such sums, too.
    """
    return spec.id == "FrankaKitchen-v1" and not spec.kwargs.get("remove_task_when_completed", True)


def paying_once(spec: EnvSpec) -> EnvSpec:
    """The kitchen in which a task earns 1 when it is completed, and the last one ends the episode, as in D4RL."""
    changed = copy.deepcopy(spec)
    changed.kwargs |= {"remove_task_when_completed": True, "terminate_on_tasks_completed": True}
    return changed


def pays_again(spec: EnvSpec) -> bool:
    """Whether the same goal pays at every step spent there; D4RL's reference returns count each goal once.

    Besides the kitchen of `counts_tasks` that is gymnasium-robotics' ant maze, unless it ends at the goal.
    """
    from_robotics = spec.id.startswith("AntMaze_") and family(spec.id) == "antmaze"
    return counts_tasks(spec) or (from_robotics and spec.kwargs.get("continuing_task", True))
