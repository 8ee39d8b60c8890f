"""Evaluation: many episodes at once in the data set's own environment, scored with an interval.

The score of a run is that of its **last** checkpoint, the mean over episodes, with a bootstrap interval. (The released
code reports the best of all checkpoints and targets; see the book's page on paper and code.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from dmm.acting import STATES, Actor, make_actor
from dmm.data.observations import build_flat_env, parse_env_spec
from dmm.errors import InputError
from dmm.normalize import normalize
from dmm.training import Run, load_run

TARGETS: dict[str, tuple[float, ...]] = {
    "Hopper": (3600.0, 7200.0),
    "HalfCheetah": (12000.0, 24000.0),
    "Walker2d": (5000.0, 10000.0),
    "AntMaze": (1.0,),
    "Kitchen": (4.0,),
}
"""Returns asked for by default: the smallest ones that the released code tries, two for MuJoCo and one elsewhere."""
CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 10_000
ENVIRONMENTS_AT_ONCE = 100
"""So many take 60 MB, whether of MuJoCo's locomotion or of point mazes."""


class RandomActor:
    """Actions drawn uniformly from [-1, 1]: the zero of most scores."""

    def __init__(self, action_size: int, seed: int = 0):
        self.action_size = action_size
        self.generator = torch.Generator().manual_seed(seed)

    def init_state(self, n: int, target: float) -> tuple[int, Tensor]:
        """How many episodes there were at first, and the places of those that go on."""
        return n, torch.arange(n)

    def act(
        self, state: tuple[int, Tensor], observation: Tensor, reward: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, Tensor]]:
        """One draw for each episode there was at first, so that within a batch none depends on when others end."""
        n, going_on = state
        return (torch.rand(n, self.action_size, generator=self.generator) * 2 - 1)[going_on], state

    def select(self, state: tuple[int, Tensor], rows: Tensor) -> tuple[int, Tensor]:
        n, going_on = state
        return n, going_on[rows]


@dataclass(frozen=True)
class Rollout:
    """Finished episodes, in the order of their seeds."""

    returns: np.ndarray  # (episodes,)
    lengths: np.ndarray  # (episodes,)
    observations: list[np.ndarray] = field(repr=False)  # one (length + 1, s) per episode, the last observation included


@dataclass(frozen=True)
class Score:
    """What one target return led to."""

    target: float
    returns: np.ndarray  # (episodes,), undiscounted
    lengths: np.ndarray  # (episodes,)
    normalized_score: float | None  # None where no reference returns are known
    ci95: tuple[float, float]  # of the normalised score, or of the mean return where there is none

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "mean_return": float(self.returns.mean()),
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "normalized_score": self.normalized_score,
            "ci95": list(self.ci95),
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of one run's last checkpoint; the first target is the headline."""

    dataset: str
    model: str
    seed: int
    step: int
    acting: str  # a way of `dmm.acting.make_actor`
    states: int | None  # of `staggered` acting, None for other ways
    behaviour: float | None  # the data's own mean return, normalised
    scores: tuple[Score, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `returns`, `normalized_score` and `ci95` are those of the first target, `scores` has all."""
        first = self.scores[0].to_json()
        return {
            "dataset": self.dataset,
            "model": self.model,
            "seed": self.seed,
            "step": self.step,
            "acting": self.acting,
            "states": self.states,
            "episodes": len(first["returns"]),
            "targets": [score.target for score in self.scores],
            **{key: first[key] for key in ("returns", "mean_return", "normalized_score", "ci95")},
            "behaviour": self.behaviour,
            "scores": [score.to_json() for score in self.scores],
        }


def evaluate(
    run: Run | str | Path,
    *,
    episodes: int = 100,
    targets: Sequence[float] | None = None,
    seed: int = 10_000,
    acting: str = "window",
    states: int = STATES,
    progress: bool = True,
) -> Evaluation:
    """Roll out a run's last checkpoint and score it.

    Args:
        run: a run or its folder.
        episodes: per target; episode `i` starts from environment seed `seed + i` whatever the target, so that targets
            and models meet the same starts.
        targets: returns asked for, in the environment's units; `default_targets` if not given.
        seed: of the first episode.
        acting: how, `window` (as the paper evaluates), `recurrent` or `staggered`; see `dmm.acting`.
        states: of each episode, for `staggered`.
        progress: show a bar on stderr.

    Raises:
        InputError: no run there, an environment that cannot be rebuilt, `episodes` below 1, a target that is not
            finite, a seed out of range, or a way of acting that the model does not know.
    """
    run = run if isinstance(run, Run) else load_run(run)
    data = run.info["dataset"]
    reference = tuple(data["reference"]) if data["reference"] else None
    wanted = list(targets) if targets else default_targets(data["env_id"], data["max_return"])
    if not np.isfinite(wanted).all():
        raise InputError(f"target: got {wanted}, allowed are finite numbers")
    actor, scores = make_actor(run.policy, acting, states), []
    with environments(lambda: make_env(run.info), episodes) as envs:  # mazes take longer to make than to play
        for target in wanted:
            label = progress and f"evaluate, target {target:g}"
            done = play(actor, envs, episodes=episodes, target=target, seed=seed, progress=label)
            scores.append(score(done, target, reference))
    behaviour = None if reference is None else float(normalize(data["mean_return"], reference))
    return Evaluation(
        dataset=data["id"],
        model=run.info["model"],
        seed=run.info["training"]["seed"],
        step=run.step,
        acting=acting,
        states=states if acting == "staggered" else None,
        behaviour=behaviour,
        scores=tuple(scores),
    )


def default_targets(env_id: str, best_return: float) -> list[float]:
    """The released code's smallest targets for the environment's family, else the best return in the data."""
    return list(next((targets for family, targets in TARGETS.items() if family in env_id), (best_return,)))


def make_env(info: dict[str, Any], **kwargs: Any) -> gym.Env:
    """The environment that a run's data came from, as its `run.json` describes it.

    Raises:
        InputError: it cannot be made here, or not exactly as it was.
    """
    data, config = info["dataset"], info["config"]
    if not data["env_spec"] and not data["env_id"]:
        raise InputError(f"run: data set {data['id']!r} does not say which environment it comes from")
    spec = parse_env_spec(data["env_spec"]) if data["env_spec"] else data["env_id"]
    keys, sizes = tuple(data["observation_keys"]), (config["state_size"], config["action_size"])
    # runs and data sets from elsewhere carry no record
    return build_flat_env(spec, keys, *sizes, record=data.get("environment"), **kwargs)


def rollout(
    actor: Actor,
    make: Callable[[], gym.Env],
    *,
    episodes: int,
    target: float = 0.0,
    seed: int = 0,
    progress: bool | str = False,
) -> Rollout:
    """Run `episodes` to their end, up to `ENVIRONMENTS_AT_ONCE` side by side with one call of the actor per step.

    Episodes that are over leave the batch, so with a deterministic actor an episode's course depends on its own seed
    alone, but for the last digits of float arithmetic, which depend on how many are computed at once.

    Raises:
        InputError: `episodes` below 1.
    """
    with environments(make, episodes) as envs:
        return play(actor, envs, episodes=episodes, target=target, seed=seed, progress=progress)


@contextmanager
def environments(make: Callable[[], gym.Env], episodes: int) -> Iterator[list[gym.Env]]:
    """As many environments as `episodes` are played in at once; closed in the end.

    Raises:
        InputError: `episodes` below 1.
    """
    if episodes < 1:
        raise InputError(f"episodes: got {episodes}, allowed is at least 1")
    with ExitStack() as stack:
        yield [stack.enter_context(closing(make())) for _ in range(min(episodes, ENVIRONMENTS_AT_ONCE))]


def play(
    actor: Actor,
    envs: list[gym.Env],
    *,
    episodes: int,
    target: float = 0.0,
    seed: int = 0,
    progress: bool | str = False,
) -> Rollout:
    """`rollout` in environments that are there already, one episode in each at a time."""
    if not 0 <= seed < 2**31:
        raise InputError(f"seed: got {seed}, allowed is 0 to 2**31 - 1")
    label, parts = progress if isinstance(progress, str) else "evaluate", []
    with tqdm(total=episodes, disable=not progress, unit="episode", desc=label) as bar:
        for first in range(0, episodes, len(envs)):
            parts.append(_run_batch(actor, envs[: episodes - first], target, seed + first, bar))
    return Rollout(
        np.concatenate([part.returns for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        [observations for part in parts for observations in part.observations],
    )


def _run_batch(actor: Actor, envs: list[gym.Env], target: float, seed: int, bar: Any) -> Rollout:
    observation = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    going_on, returns = np.arange(len(envs)), np.zeros(len(envs))
    visited = [(going_on, observation)]
    state, reward = actor.init_state(len(envs), target), None
    while len(going_on):
        action, state = actor.act(state, torch.from_numpy(observation), reward)
        observation, earned, over = _step([envs[i] for i in going_on], action.cpu().numpy())
        returns[going_on] += earned
        visited.append((going_on, observation))
        if over.any():
            bar.update(int(over.sum()))
            rows = np.flatnonzero(~over)
            going_on, observation, earned = going_on[rows], observation[rows], earned[rows]
            state = actor.select(state, torch.from_numpy(rows))
        reward = torch.from_numpy(earned)
    courses = _by_episode(visited)
    return Rollout(returns, np.array([len(course) - 1 for course in courses]), courses)


def _step(envs: list[gym.Env], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of each: observations `(n, s)`, rewards `(n,)` and whether the episode is over `(n,)`."""
    observations, rewards, terminated, truncated, _ = zip(
        *[env.step(action) for env, action in zip(envs, actions, strict=True)], strict=True
    )
    return np.stack(observations), np.array(rewards, dtype=np.float64), np.array(terminated) | np.array(truncated)


def _by_episode(visited: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Pairs of episodes `(n,)` and their observations `(n, s)`, one pair for each step -> one array per episode."""
    episodes, rows = (np.concatenate(parts) for parts in zip(*visited, strict=True))
    order = np.argsort(episodes, kind="stable")
    return np.split(rows[order], np.cumsum(np.bincount(episodes))[:-1])


def score(done: Rollout, target: float, reference: tuple[float, float] | None) -> Score:
    """Normalised mean return and its interval."""
    values = done.returns if reference is None else normalize(done.returns, reference)
    mean = None if reference is None else float(values.mean())
    return Score(target, done.returns, done.lengths, mean, bootstrap_interval(values))


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean at 95 %: `(episodes,)` -> low, high.

    It says how far the mean could move with other episodes of the same policy; what another training seed would do is
    not in it.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
