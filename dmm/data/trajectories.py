"""A Minari data set as flat arrays: one row per transition, episodes one after another."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmm.data.actions import Bounds, checked_bounds, require_unit, unit_actions
from dmm.data.minari_files import Episode, open_dataset, read_episodes
from dmm.data.observations import (
    FlatObservation,
    build_flat_env,
    choose_keys,
    flatten_actions,
    flatten_observation,
    observation_parts,
    stored_env,
    without_offset,
)
from dmm.data.precision import (
    EXACT,
    ChangesLost,
    common_offset,
    not_finite,
    real_array,
    subtract,
    warn_of_lost_changes,
)
from dmm.data.return_scale import require_returns_in_range, scale_of, warn_of_close_returns
from dmm.data.rewards import (
    Rewards,
    counts_tasks,
    one_per_step,
    paying_once,
    pays_again,
    per_step_rewards,
    require_rewards,
    stored_rewards,
)
from dmm.data.scores import no_scores, reference_returns, usable_reference
from dmm.data.specifications import parse_env_spec
from dmm.errors import InputError, finite_number

__all__ = [
    "FlatObservation",
    "Trajectories",
    "flatten_observation",
    "load_trajectories",
    "per_step_rewards",
    "returns_to_go",
]


MARK = "+"
"""Stands, in names of data, before what was done to a stored set; ids of Minari do not contain it."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Episodes of a data set, as flat arrays of N transitions in E episodes.

    Arrays may come as lists, tensors or of other types of real numbers; they are kept as the types named here. Columns
    of `observations` that float32 would round to fewer different numbers than they hold, such as seconds since 1970,
    are kept less `observation_offset`, whole numbers that are taken off before rounding.

    Raises:
        InputError: NaN or infinity, a wrong shape or type, or arrays that do not fit together; names the field.
    """

    observations: np.ndarray  # (N, s) float32, the one before each action, less `observation_offset`
    actions: np.ndarray  # (N, a) float32, -1 and 1 for `action_bounds`; one-hot where the actions are Discrete
    rewards: np.ndarray  # (N,) float32, one per step
    starts: np.ndarray  # (E,) int64, row of each episode's first transition
    lengths: np.ndarray  # (E,) int64
    terminated: np.ndarray  # (E,) bool: ended by the environment, not by its time limit
    dataset_id: str
    env_id: str  # empty when the data set does not say
    observation_keys: tuple[str, ...] = ()  # entries of the dictionary; empty where observations are none
    reference: tuple[float, float] | None = None  # (random, expert) return
    env_spec: str | None = None  # Gymnasium's specification as JSON
    environment: dict[str, Any] | None = None  # what that environment exactly was (`dmm.data.environments`)
    discrete_actions: bool = False
    histories: np.ndarray | None = None  # (E,) int64: which learner's history each episode belongs to, in order
    action_bounds: Bounds | None = None  # what -1 and 1 stand for, each (a,) float64; None for -1 and 1 themselves
    observation_offset: np.ndarray | None = None  # (s,) whole numbers in float64; None where nothing is taken off
    last_observations: np.ndarray | None = None  # (E, s) float32, the one behind each episode's last action, if known
    best_share: float = 1.0  # which part of the data set's episodes these are, the best ones
    delayed_rewards: bool = False  # all of an episode's reward is at its last step

    def __post_init__(self) -> None:
        for name in ("dataset_id", "env_id"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name}: got {type(getattr(self, name)).__name__}, allowed is text")
        for name in ("starts", "lengths"):
            self._set(name, _whole_numbers(name, getattr(self, name)))
        self._set("terminated", _truth_values("terminated", self.terminated))
        if self.histories is not None:
            self._set("histories", _whole_numbers("histories", self.histories))
        rows = {name: real_array(name, getattr(self, name)) for name in ("observations", "actions", "rewards")}
        if self.last_observations is not None:
            rows["last_observations"] = real_array("last_observations", self.last_observations)
        for name in ("observations", "actions"):
            if rows[name].ndim != 2 or not rows[name].shape[1]:
                raise InputError(f"{name}: got shape {rows[name].shape}, allowed is (N, size)")
        if rows["rewards"].dtype != np.float32 or rows["rewards"].ndim != 1:
            rows["rewards"] = one_per_step(rows["rewards"], "for all steps")
        self._require_fit(rows)
        self._require_finite(rows)
        if self.observation_offset is None:
            rows["observations"], offset = self._with_all_changes(rows["observations"])
            self._set("observation_offset", offset)
            if offset is not None and "last_observations" in rows:
                rows["last_observations"] = subtract(rows["last_observations"], offset)
        for name, array in rows.items():
            self._set(name, array.astype(np.float32, copy=False))
        self._require_sizes()

    def _require_finite(self, rows: dict[str, np.ndarray]) -> None:
        for name, array in rows.items():
            if wrong := not_finite(array):
                row = int(wrong[0])
                each = name == "last_observations"  # one row for each episode
                episode = row if each else int(np.searchsorted(np.cumsum(self.lengths), row, side="right"))
                raise InputError(f"{name}: {wrong[1]} in episode {episode} of {self.dataset_id!r}")

    def _with_all_changes(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Observations of any type, and the offset that they are now without, if rounding would lose changes."""
        if observations.dtype in EXACT:
            return observations, None
        before, after = ChangesLost(), ChangesLost()
        parts = np.split(observations, self.starts[1:])
        for part in parts:
            before.add(part)
        offset = common_offset([before])
        if offset is None:
            return observations, None
        for part in parts:
            after.add(subtract(part, offset))
        warn_of_lost_changes([after], ["observations"])
        return subtract(observations, offset), offset

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require_fit(self, rows: dict[str, np.ndarray]) -> None:
        n, ends = len(rows["observations"]), np.cumsum(self.lengths)
        counts = (len(rows["actions"]), len(rows["rewards"]), int(ends[-1]) if len(ends) else 0)
        if any(count != n for count in counts):
            raise InputError(f"trajectories: {n} observations against (actions, rewards, sum of lengths) = {counts}")
        if n == 0 or self.lengths.min() < 1:
            raise InputError("lengths: every episode must have at least one transition")
        if not np.array_equal(self.starts, ends - self.lengths):
            raise InputError("starts: episodes must lie one after another, starts = cumsum(lengths) - lengths")
        last = rows.get("last_observations")
        if last is not None and last.shape != (len(self.lengths), rows["observations"].shape[1]):
            wanted = (len(self.lengths), rows["observations"].shape[1])
            raise InputError(f"last_observations: got shape {last.shape}, allowed is {wanted}")
        for name in ("terminated", "histories"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.lengths):
                raise InputError(f"{name}: got {len(array)} entries for {len(self.lengths)} episodes")

    def _require_sizes(self) -> None:
        """What the environment is made with must be as wide as the arrays."""
        if self.observation_offset is not None:
            offset = np.asarray(real_array("observation_offset", self.observation_offset), dtype=np.float64)
            if offset.shape != (self.state_size,) or not (offset == np.rint(offset)).all():
                raise InputError(f"observation_offset: got {offset}, allowed are {self.state_size} whole numbers")
            self._set("observation_offset", offset)
        if self.action_bounds is not None:
            self._set("action_bounds", checked_bounds(self.action_bounds, self.action_size))

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def transitions(self) -> int:
        return len(self.observations)

    @property
    def state_size(self) -> int:
        return int(self.observations.shape[1])

    @property
    def action_size(self) -> int:
        return int(self.actions.shape[1])

    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, in the unit of the rewards: `(E,)` float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    def returns_to_go(self) -> np.ndarray:
        """`R_t = r_t + R_{t+1}` within each episode: `(N,)` float32."""
        return returns_to_go(self.rewards, self.starts, self.lengths)

    def one_step_before(self, rows: np.ndarray) -> np.ndarray:
        """What the step before had, `(N, size)` -> `(N, size)`; zeros at an episode's first step."""
        before = np.zeros_like(rows)
        before[1:] = rows[:-1]
        before[self.starts] = 0
        return before

    def next_observations(self) -> np.ndarray:
        """The observation behind each action: `(N, s)`.

        Raises:
            InputError: what followed the episodes' last actions is not known.
        """
        if self.last_observations is None:
            raise InputError(f"last_observations: {self.dataset_id!r} has none, and next states are asked for")
        rows = np.empty_like(self.observations)
        rows[:-1] = self.observations[1:]
        rows[self.starts + self.lengths - 1] = self.last_observations
        return rows

    def ended(self) -> np.ndarray:
        """Whether the environment ended the episode with this step: `(N,)` bool."""
        marks = np.zeros(self.transitions, dtype=bool)
        marks[self.starts + self.lengths - 1] = self.terminated
        return marks

    def select(self, episodes: Any) -> Trajectories:
        """Some of the episodes, by their numbers `(m,)`, in this order; all else stays as it is.

        Raises:
            InputError: no episodes, or numbers that are none of `0 .. E - 1`.
        """
        chosen = _whole_numbers("episodes", episodes)
        if not len(chosen) or chosen.min() < 0 or chosen.max() >= self.episodes:
            shown = f"{chosen.min()} to {chosen.max()}" if len(chosen) else "none"
            raise InputError(f"episodes: got {shown}, allowed are some of 0 to {self.episodes - 1}")
        lengths = self.lengths[chosen]
        starts = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(self.starts[chosen] - starts, lengths)
        by_step = {name: getattr(self, name)[rows] for name in ("observations", "actions", "rewards")}
        by_episode: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[chosen]
            for name in ("terminated", "histories", "last_observations")
        }
        return dataclasses.replace(self, starts=starts, lengths=lengths, **by_step, **by_episode)

    def best(self, share: float) -> Trajectories:
        """The episodes of the largest returns: no more than this share of all, but at least one; in the data's order.

        Of equal returns the earlier episodes are kept. The name of the data says what share was.

        Raises:
            InputError: a share that is not above 0 and at most 1.
        """
        share = checked_share(share)
        if share == 1:
            return self
        count = max(1, math.floor(share * self.episodes + 1e-9))  # 0.29 of 100 are 29
        order = np.argsort(-self.returns(), kind="stable")
        name = f"{self.dataset_id}{MARK}best-{share:g}"
        kept = self.select(np.sort(order[:count]))
        return dataclasses.replace(kept, dataset_id=name, best_share=share * self.best_share)

    def delayed(self) -> Trajectories:
        """The same episodes with all of their reward at the last step; the name of the data says so."""
        if self.delayed_rewards:
            return self
        rewards = np.zeros_like(self.rewards)
        rewards[self.starts + self.lengths - 1] = self.returns()
        name = f"{self.dataset_id}{MARK}delayed"
        return dataclasses.replace(self, rewards=rewards, dataset_id=name, delayed_rewards=True)

    def return_scale(self) -> float:
        """What returns-to-go are divided by unless `rtg_scale` says otherwise; see `dmm.data.return_scale`."""
        return scale_of(self.returns_to_go())

    def state_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation + 1e-6 of the observations, each `(s,)` float32, as in Decision Transformer.

        Unlike there, a column that never varies has the deviation 1: divided by 1e-6, a number that a live environment
        gives a little differently would drown all others.
        """
        mean = self.observations.mean(axis=0, dtype=np.float64)
        std = self.observations.std(axis=0, dtype=np.float64) + 1e-6
        std[self.observations.min(axis=0) == self.observations.max(axis=0)] = 1.0
        return mean.astype(np.float32), std.astype(np.float32)

    def step_limit(self) -> int:
        """Steps after which an episode is ended in an environment that has no time limit of its own.

        The length of the longest episodes where a time limit cut them. Where they ended by themselves, ten times that
        and at least 1000: a policy that does worse than the data must still come to its own end.
        """
        longest = self.lengths == self.lengths.max()
        steps = int(self.lengths.max())
        return max(1000, 10 * steps) if self.terminated[longest].any() else steps

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when any array does (SHA-256); `last_observations` go with the others."""
        digest = hashlib.sha256()
        arrays = [self.observations, self.actions, self.rewards, self.lengths, self.terminated]
        optional = [self.histories, *(self.action_bounds or ()), self.observation_offset]
        for array in [*arrays, *(array for array in optional if array is not None)]:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def make_env(self, *, trust_environment: bool = False, **kwargs: Any) -> gym.Env:
        """The data set's environment with flat float32 observations `(s,)`; the caller seeds it in `reset(seed=...)`.

        It takes actions and gives observations as they are in these arrays: -1 to 1 for `action_bounds`, less
        `observation_offset`. With Discrete actions it takes a score for each, `(a,)`, and plays the largest.

        `kwargs` go to `gymnasium.make`, for example `render_mode="rgb_array"`. The environment is made by the id that
        an installed package registers (`dmm.data.specifications`); `trust_environment` calls whatever the data set
        names instead, with its arguments.

        Raises:
            InputError: the data set names no environment, it cannot be made here, not exactly as it was, or not
                without trust.
        """
        if not self.env_spec and not self.env_id:
            raise InputError(f"environment: data set {self.dataset_id!r} does not say which environment it comes from")
        spec = stored_env(self.env_spec, self.env_id, trust_environment=trust_environment)
        sizes = self.state_size, self.action_size
        as_here = {"action_bounds": self.action_bounds, "observation_offset": self.observation_offset}
        kwargs = {**as_here, **kwargs, "trust_environment": trust_environment}
        return build_flat_env(spec, self.observation_keys, *sizes, record=self.environment, **kwargs)


def load_trajectories(
    dataset: str | minari.MinariDataset,
    *,
    rewards: Rewards | None = None,
    best_share: float = 1.0,
    observation_keys: Sequence[str] | None = None,
    download: bool = False,
    trust_environment: bool = False,
) -> Trajectories:
    """Read a Minari data set of this machine, for example `dmm/hopper/medium-v0`, into flat arrays.

    Observations become vectors (`choose_keys` and `entry_size` in `dmm.data.observations` say which and how). Actions
    are a 1-D Box, whose bounds become -1 and 1 (`dmm.data.actions`), or Discrete. All is float32 in the end. An
    environment meant for evaluation, if the data set stores one, is preferred over the one that made the data.

    An episode that neither terminates nor is truncated at its last step counts as cut off there. One that ends before
    its last step is refused, because its returns would reach across the end.

    Args:
        dataset: an id, or what Minari opened, a selection by `filter_episodes` or `split_dataset` included: the
            episodes that it selects, in its order.
        rewards: `per-step`, or `cumulative` when the stored reward is the sum so far, as in Kitchen; then Algorithm 1
            is applied. If not given, the data set decides (see `dmm.data.rewards`). `delayed` lets it decide, too, and
            then puts all of an episode's reward at its last step (`Trajectories.delayed`).
        best_share: take the best episodes alone, as 0.1 for the best tenth (`Trajectories.best`).
        observation_keys: the entries of a dictionary of observations that make the state vector, in order.
        download: fetch the data set from Minari's server when it is not on this machine.
        trust_environment: where the data set does not store its spaces, call whatever it names as its environment to
            find them, as in `Trajectories.make_env`.

    Raises:
        InputError: unknown id, no network, unsupported spaces or keys, NaN or infinity, an episode without transitions
            or with an end before its last, more than one reward per step, a share that is none.
    """
    require_rewards(rewards)
    best_share = checked_share(best_share)
    opened = open_dataset(dataset, download=download, trust_environment=trust_environment)
    name, metadata = opened.spec.dataset_id, opened.storage.metadata
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    spec = parse_env_spec(text) if text else None
    keys, env_keys = _keys(opened, metadata, observation_keys)
    cumulative = stored_rewards(None if rewards == "delayed" else rewards, metadata, spec) == "cumulative"
    if cumulative and spec is not None and counts_tasks(spec):
        spec = paying_once(spec)
        text = spec.to_json()
    arrays = _read(opened, keys, per_step_rewards if cumulative else _unchanged)
    data = Trajectories(
        **arrays,
        dataset_id=name,
        env_id=spec.id if spec else "",
        observation_keys=env_keys,
        reference=_reference(metadata, spec),
        env_spec=text,
        environment=_environment(metadata),
        discrete_actions=isinstance(opened.action_space, gym.spaces.Discrete),
        histories=_histories(metadata, opened),
    ).best(best_share)
    return data.delayed() if rewards == "delayed" else data


def checked_share(share: Any) -> float:
    """A part of the episodes.

    Raises:
        InputError: not above 0 and at most 1.
    """
    number = finite_number("best_share", share)
    if not 0 < number <= 1:
        raise InputError(f"best_share: got {number:g}, allowed is a part of the episodes, above 0 and at most 1")
    return number


def require_trainable(trajectories: Trajectories, rtg_scale: float) -> None:
    """Passes when policies can be trained on the data; warns when they cannot tell most returns apart.

    Raises:
        InputError: actions beyond -1 to 1, or returns-to-go beyond what a network can be given.
    """
    t, to_go = trajectories, trajectories.returns_to_go()
    require_unit(t.actions, t.action_bounds, t.dataset_id)
    require_returns_in_range(to_go, rtg_scale, t.dataset_id)
    warn_of_close_returns(t.returns(), float(np.abs(to_go).max()), t.dataset_id)


def returns_to_go(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`R_t = r_t + R_{t+1}`, undiscounted, within each episode: `(N,)` -> `(N,)` float32.

    Summed in float64, from each episode's end, as in the paper's Algorithm 1.
    """
    result = np.empty(len(rewards), dtype=np.float32)
    with np.errstate(over="ignore"):  # a sum that float32 does not hold is infinite; training refuses it
        for start, length in zip(starts, lengths, strict=True):
            episode = slice(start, start + length)
            result[episode] = np.cumsum(rewards[episode][::-1], dtype=np.float64)[::-1]
    return result


def _read(
    dataset: minari.MinariDataset, keys: tuple[str, ...], per_step: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """The arrays of `Trajectories`, from the files."""
    name, space = dataset.spec.dataset_id, dataset.action_space
    rows: dict[str, list[Any]] = {"actions": [], "rewards": [], "terminated": []}
    states = _States(dataset.observation_space, keys)
    for episode in read_episodes(dataset, keys):
        where = f"in episode {episode.index} of {name!r}"
        rewards, actions = one_per_step(episode.rewards, where), flatten_actions(episode.actions, space)
        observed = states.parts(episode)
        _require_whole(episode, len(rewards), len(actions), {len(part) for part in observed}, name)
        for argument, parts in {"observations": observed, "actions": [actions], "rewards": [rewards]}.items():
            _require_finite(argument, parts, where)
        states.add(observed)
        rows["actions"].append(actions)
        # differences are taken before rounding to float32
        rows["rewards"].append(per_step(rewards).astype(np.float32))
        rows["terminated"].append(len(episode.terminations) > 0 and bool(episode.terminations[-1]))
    if not rows["rewards"]:
        raise InputError(f"dataset: {name!r} has no episodes")
    lengths = np.array([len(part) for part in rows["rewards"]], dtype=np.int64)
    arrays: dict[str, Any] = {key: np.concatenate(rows[key]) for key in ("actions", "rewards")}
    if isinstance(space, gym.spaces.Box):
        arrays["actions"], arrays["action_bounds"] = unit_actions(arrays["actions"], space, name)
    arrays |= {"lengths": lengths, "starts": np.cumsum(lengths) - lengths, "terminated": np.array(rows["terminated"])}
    return arrays | states.finish(read_episodes(dataset, keys))


class _States:
    """The observations of episodes as rows of float32, without what float32 would lose."""

    def __init__(self, space: gym.Space[Any], keys: tuple[str, ...]):
        self.space, self.keys, self.offset = space, keys, None
        self._start()

    def _start(self) -> None:
        self.rows: list[np.ndarray] = []
        self.last: list[np.ndarray] = []
        self.changes = [ChangesLost() for _ in self.keys or (None,)]

    def parts(self, episode: Episode) -> list[np.ndarray]:
        """What makes the state vector, each `(l + 1, size)` as stored."""
        parts = observation_parts(episode.observations, self.keys, self.space)
        if any(part.ndim != 2 for part in parts):
            shapes = ", ".join(str(part.shape) for part in parts)
            raise InputError(f"observations: episode {episode.index} has arrays of shape {shapes}; allowed: (l + 1, s)")
        return parts

    def add(self, parts: Sequence[np.ndarray]) -> None:
        before = [part[:-1] for part in parts]  # each action
        for changes, part in zip(self.changes, before, strict=True):
            changes.add(part)
        self.rows.append(np.concatenate(before, axis=1, dtype=np.float32, casting="unsafe"))
        after = [part[-1:] for part in parts]
        self.last.append(np.concatenate(after, axis=1, dtype=np.float32, casting="unsafe"))

    def finish(self, again: Iterator[Episode]) -> dict[str, Any]:
        """The rows; where float32 would lose changes, read `again` and without what they have in common."""
        offset = common_offset(self.changes)
        if offset is not None:
            self._start()
            for episode in again:
                self.add(without_offset(self.parts(episode), offset))
            warn_of_lost_changes(self.changes, [f"observations[{key!r}]" for key in self.keys] or ["observations"])
        last = {"last_observations": np.concatenate(self.last)}
        return {"observations": np.concatenate(self.rows), "observation_offset": offset, **last}


def _require_whole(episode: Episode, steps: int, actions: int, observations: set[int], dataset_id: str) -> None:
    name = f"episode {episode.index} of {dataset_id!r}"
    if steps == 0:
        raise InputError(f"dataset: {name} has no transitions")
    if actions != steps or observations != {steps + 1}:
        raise InputError(
            f"dataset: {name} has {', '.join(map(str, sorted(observations)))} observations and {actions} actions for "
            f"{steps} rewards; allowed: {steps + 1} and {steps}"
        )
    for kind, marks in (("terminations", episode.terminations), ("truncations", episode.truncations)):
        ends = np.flatnonzero(marks)
        if len(ends) and ends[0] < steps - 1:
            raise InputError(
                f"dataset: {name} ends at step {ends[0]} of {steps} already ({kind}); allowed: at its last step "
                f"({steps - 1}), what follows is an episode of its own"
            )


def _require_finite(name: str, arrays: Sequence[np.ndarray], where: str) -> None:
    for array in arrays:
        if wrong := not_finite(array):
            raise InputError(f"{name}: {wrong[1]} {where}")


def _unchanged(rewards: np.ndarray) -> np.ndarray:
    return rewards


def _keys(
    dataset: minari.MinariDataset, metadata: dict[str, Any], asked: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The entries that make the state vector: those to read from the files, and those of the live environment.

    They differ in a data set written from plain arrays, whose rows are what a dictionary was flattened to.
    """
    said = tuple(metadata.get("dmm", {}).get("observation_keys") or ())
    names = (asked,) if isinstance(asked, str) else tuple(asked or ())
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"observation_keys: got {names!r}, allowed are names of entries")
    if names and not isinstance(dataset.observation_space, gym.spaces.Dict) and names != said:
        raise InputError(f"observation_keys: got {names!r}, but the observations of this data set are no dictionary")
    stored = choose_keys(dataset.observation_space, names or said or None)
    return stored, names or said or stored


def _environment(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the environment to evaluate in, if the data set was made by a recipe."""
    own = metadata.get("dmm", {})
    record: dict[str, Any] | None = own.get("eval_environment") or own.get("environment")
    return record


def _histories(metadata: dict[str, Any], dataset: minari.MinariDataset) -> np.ndarray | None:
    counts = metadata.get("dmm", {}).get("histories")
    if not counts:
        return None
    stored = dataset.storage.total_episodes
    if sum(counts) != stored:
        name = dataset.spec.dataset_id
        raise InputError(f"dataset: the histories of {name!r} have {sum(counts)} episodes, it holds {stored}")
    selected = np.asarray(dataset.episode_indices, dtype=np.int64)
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)[selected]


def _whole_numbers(name: str, values: Any) -> np.ndarray:
    """`(E,)` int64."""
    array = real_array(name, values)
    if array.ndim != 1 or array.dtype.kind == "b" or not (array == np.rint(array)).all():
        raise InputError(f"{name}: got {array.dtype} of shape {array.shape}, allowed are whole numbers (E,)")
    return array.astype(np.int64, copy=False)


def _truth_values(name: str, values: Any) -> np.ndarray:
    """`(E,)` bool."""
    array = real_array(name, values)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise InputError(f"{name}: got {array.dtype} of shape {array.shape}, allowed is one truth value per episode")
    return array.astype(bool, copy=False)


def _reference(metadata: dict[str, Any], spec: EnvSpec | None) -> tuple[float, float] | None:
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if low is not None and high is not None:
        reference = usable_reference(low, high)
        if reference is None:
            print(f"dmm: dataset: {no_scores(low, high)}", file=sys.stderr)
        return reference
    if spec is None or pays_again(spec):
        return None
    try:
        return reference_returns(spec.id)
    except InputError:
        return None
