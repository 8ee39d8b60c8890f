"""A Minari data set as flat arrays: one row per transition, episodes one after another."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmm.data.minari_files import Episode, open_dataset, read_episodes
from dmm.data.observations import FlatObservation, build_flat_env, choose_keys, flatten_observation, stored_env
from dmm.data.rewards import StoredRewards, counts_tasks, paying_once, pays_again, per_step_rewards, stored_rewards
from dmm.data.specifications import parse_env_spec
from dmm.errors import InputError
from dmm.normalize import no_scores, reference_returns, usable_reference

__all__ = [
    "FlatObservation",
    "Trajectories",
    "flatten_observation",
    "load_trajectories",
    "per_step_rewards",
    "returns_to_go",
]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Episodes of a data set, as flat arrays of N transitions in E episodes.

    Raises:
        InputError: the arrays do not fit together (see `__post_init__`).
    """

    observations: np.ndarray  # (N, s) float32, the one before each action
    actions: np.ndarray  # (N, a) float32; one-hot where the environment's actions are Discrete
    rewards: np.ndarray  # (N,) float32, one per step
    starts: np.ndarray  # (E,) int64, row of each episode's first transition
    lengths: np.ndarray  # (E,) int64
    terminated: np.ndarray  # (E,) bool: ended by the environment, not by its time limit
    dataset_id: str
    env_id: str  # empty when the data set does not say
    observation_keys: tuple[str, ...] = ()  # entries of the goal dictionary; empty for a Box
    reference: tuple[float, float] | None = None  # (random, expert) return
    env_spec: str | None = None  # Gymnasium's specification as JSON
    environment: dict[str, Any] | None = None  # what that environment exactly was (`dmm.data.environments`)
    discrete_actions: bool = False
    histories: np.ndarray | None = None  # (E,) int64: which learner's history each episode belongs to, in order

    def __post_init__(self) -> None:
        n, ends = len(self.observations), np.cumsum(self.lengths)
        rows = (len(self.actions), len(self.rewards), int(ends[-1]) if len(ends) else 0)
        if any(count != n for count in rows):
            raise InputError(f"trajectories: {n} observations against (actions, rewards, sum of lengths) = {rows}")
        if n == 0 or self.lengths.min() < 1:
            raise InputError("lengths: every episode must have at least one transition")
        if not np.array_equal(self.starts, ends - self.lengths):
            raise InputError("starts: episodes must lie one after another, starts = cumsum(lengths) - lengths")
        if self.histories is not None and len(self.histories) != len(self.lengths):
            raise InputError(f"histories: got {len(self.histories)} entries for {len(self.lengths)} episodes")

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
        """Undiscounted return of each episode: `(E,)` float64."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.starts)

    def returns_to_go(self) -> np.ndarray:
        """`R_t = r_t + R_{t+1}` within each episode: `(N,)` float32."""
        return returns_to_go(self.rewards, self.starts, self.lengths)

    def state_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation + 1e-6 of the observations, each `(s,)` float32, as in Decision Transformer."""
        mean = self.observations.mean(axis=0, dtype=np.float64)
        std = self.observations.std(axis=0, dtype=np.float64) + 1e-6
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
        """16 hexadecimal digits that change when any array does (SHA-256)."""
        digest = hashlib.sha256()
        arrays = [self.observations, self.actions, self.rewards, self.lengths, self.terminated]
        for array in arrays if self.histories is None else [*arrays, self.histories]:
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def make_env(self, *, trust_environment: bool = False, **kwargs: Any) -> gym.Env:
        """The data set's environment with flat float32 observations `(s,)`; the caller seeds it in `reset(seed=...)`.

        With Discrete actions it takes a score for each, `(a,)`, and plays the largest.

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
        sizes, kwargs = (self.state_size, self.action_size), {**kwargs, "trust_environment": trust_environment}
        return build_flat_env(spec, self.observation_keys, *sizes, record=self.environment, **kwargs)


def load_trajectories(
    minari_id: str,
    *,
    rewards: StoredRewards | None = None,
    download: bool = False,
    trust_environment: bool = False,
) -> Trajectories:
    """Read a Minari data set of this machine, for example `dmm/hopper/medium-v0`, into flat arrays.

    Observations are a 1-D Box or a goal dictionary, actions a 1-D Box or Discrete; all are cast to float32 once. An
    environment meant for evaluation, if the data set stores one, is preferred over the one that made the data.

    Args:
        rewards: `per-step`, or `cumulative` when the stored reward is the sum so far, as in Kitchen; then Algorithm 1
            is applied. If not given, the data set decides (see `dmm.data.rewards`).
        download: fetch the data set from Minari's server when it is not on this machine.
        trust_environment: where the data set does not store its spaces, call whatever it names as its environment to
            find them, as in `Trajectories.make_env`.

    Raises:
        InputError: unknown id, no network, unsupported spaces, NaN or infinity, an episode without transitions.
    """
    stored_rewards(rewards, {}, None)
    dataset = open_dataset(minari_id, download=download, trust_environment=trust_environment)
    metadata = dataset.storage.metadata
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    spec = parse_env_spec(text) if text else None
    keys, env_keys = _keys(dataset, metadata)
    cumulative = stored_rewards(rewards, metadata, spec) == "cumulative"
    if cumulative and spec is not None and counts_tasks(spec):
        spec = paying_once(spec)
        text = spec.to_json()
    converter = per_step_rewards if cumulative else _unchanged
    arrays = _concatenate(read_episodes(dataset, keys), minari_id, converter)
    return Trajectories(
        **arrays,
        dataset_id=minari_id,
        env_id=spec.id if spec else "",
        observation_keys=env_keys,
        reference=_reference(metadata, spec),
        env_spec=text,
        environment=_environment(metadata),
        discrete_actions=isinstance(dataset.action_space, gym.spaces.Discrete),
        histories=_histories(metadata, len(arrays["lengths"]), minari_id),
    )


def returns_to_go(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`R_t = r_t + R_{t+1}`, undiscounted, within each episode: `(N,)` -> `(N,)` float32.

    Summed in float64, from each episode's end, as in the paper's Algorithm 1.
    """
    result = np.empty(len(rewards), dtype=np.float32)
    for start, length in zip(starts, lengths, strict=True):
        episode = slice(start, start + length)
        result[episode] = np.cumsum(rewards[episode][::-1], dtype=np.float64)[::-1]
    return result


def _concatenate(
    episodes: Iterator[Episode], dataset_id: str, per_step: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {"observations": [], "actions": [], "rewards": []}
    terminated = []
    for i, episode in enumerate(episodes):
        steps = len(episode.rewards)
        if steps == 0:
            raise InputError(f"dataset: episode {i} of {dataset_id!r} has no transitions")
        if len(episode.actions) != steps or len(episode.observations) != steps + 1:
            raise InputError(
                f"dataset: episode {i} of {dataset_id!r} has {len(episode.observations)} observations and "
                f"{len(episode.actions)} actions for {steps} rewards; allowed: {steps + 1} and {steps}"
            )
        parts["observations"].append(episode.observations[:-1])
        parts["actions"].append(episode.actions)
        # differences are taken before rounding to float32
        parts["rewards"].append(per_step(episode.rewards).astype(np.float32, copy=False))
        terminated.append(episode.terminated)
    if not terminated:
        raise InputError(f"dataset: {dataset_id!r} has no episodes")
    lengths = np.array([len(part) for part in parts["rewards"]], dtype=np.int64)
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    _require_finite(arrays, lengths, dataset_id)
    starts = np.cumsum(lengths) - lengths
    return {**arrays, "starts": starts, "lengths": lengths, "terminated": np.array(terminated, dtype=bool)}


def _require_finite(arrays: dict[str, np.ndarray], lengths: np.ndarray, dataset_id: str) -> None:
    for name, array in arrays.items():
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            episode = int(np.searchsorted(np.cumsum(lengths), np.argmin(finite), side="right"))
            raise InputError(f"{name}: NaN or infinity in episode {episode} of {dataset_id!r}")


def _unchanged(rewards: np.ndarray) -> np.ndarray:
    return rewards


def _keys(dataset: minari.MinariDataset, metadata: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The entries that make the state vector: those to read from the files, and those of the live environment.

    They differ in a data set written from plain arrays, whose rows are what a goal dictionary was flattened to.
    """
    wanted = tuple(metadata.get("dmm", {}).get("observation_keys") or ())
    stored = choose_keys(dataset.observation_space, wanted or None)
    return stored, wanted or stored


def _environment(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the environment to evaluate in, if the data set was made by a recipe."""
    own = metadata.get("dmm", {})
    record: dict[str, Any] | None = own.get("eval_environment") or own.get("environment")
    return record


def _histories(metadata: dict[str, Any], episodes: int, dataset_id: str) -> np.ndarray | None:
    counts = metadata.get("dmm", {}).get("histories")
    if not counts:
        return None
    if sum(counts) != episodes:
        raise InputError(f"dataset: the histories of {dataset_id!r} have {sum(counts)} episodes, it holds {episodes}")
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)


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
