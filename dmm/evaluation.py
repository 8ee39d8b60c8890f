"""Evaluation: many episodes at once in the data set's own environment, scored with an interval.

The score of a run is that of its **last** checkpoint, the mean over episodes, with a bootstrap interval. (The released
code reports the best of all checkpoints and targets; see the book's page on paper and code.)
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from torch import Tensor

from dmm.acting import STATES, Actor, make_actor
from dmm.data.faults import FAULTS, STEP_LIMIT, CheckedEnv, reason, time_limit
from dmm.data.observations import build_flat_env, stored_env
from dmm.data.scores import family, no_scores, normalize, usable_reference
from dmm.errors import InputError, RunError, finite_number, whole_number
from dmm.policy import Outcome, Target, Wanted
from dmm.progress import progress_bar
from dmm.training import Run, load_run

if TYPE_CHECKING:
    from dmm.evaluation_in_context import InContextEvaluation

TARGETS: dict[str, tuple[float, ...]] = {
    "hopper": (3600.0, 7200.0),
    "halfcheetah": (12000.0, 24000.0),
    "walker2d": (5000.0, 10000.0),
    "antmaze": (1.0,),
    "kitchen": (4.0,),
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

    def init_state(self, n: int, target: Target) -> tuple[int, Tensor]:
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


class NoRewards:
    """An actor that no step pays before an episode is over, as in data with delayed rewards."""

    def __init__(self, actor: Actor):
        self.actor = actor
        self.init_state, self.select = actor.init_state, actor.select

    def act(self, state: Any, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.actor.act(state, observation, None if reward is None else torch.zeros_like(reward))


@dataclass(frozen=True)
class Rollout:
    """Finished episodes, in the order of their seeds."""

    returns: np.ndarray  # (episodes,)
    lengths: np.ndarray  # (episodes,)
    observations: list[np.ndarray] = field(
        repr=False
    )  # one (length + 1, s) per episode, the last observation included;
    # empty where they were not kept


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


@overload
def evaluate(
    run: Run | str | Path,
    *,
    episodes: int = ...,
    targets: Sequence[float] | float | None = ...,
    seed: int = ...,
    acting: str = ...,
    states: int = ...,
    progress: bool = ...,
    environments: int | None = ...,
    max_steps: int | None = ...,
    trust_environment: bool = ...,
) -> Evaluation: ...


@overload
def evaluate(
    run: Run | str | Path,
    *,
    episodes_in_context: int,
    tasks: int | None = ...,
    targets: Sequence[float] | float | None = ...,
    seed: int = ...,
    acting: str = ...,
    states: int = ...,
    progress: bool = ...,
    environments: int | None = ...,
    max_steps: int | None = ...,
    trust_environment: bool = ...,
) -> InContextEvaluation: ...


def evaluate(
    run: Run | str | Path,
    *,
    episodes: int = 100,
    episodes_in_context: int | None = None,
    tasks: int | None = None,
    targets: Sequence[float] | float | None = None,
    seed: int = 10_000,
    acting: str = "window",
    states: int = STATES,
    progress: bool = True,
    environments: int | None = None,
    max_steps: int | None = None,
    trust_environment: bool = False,
) -> Evaluation | InContextEvaluation:
    """Roll out a run's last checkpoint and score it.

    Args:
        run: a run or its folder.
        episodes: per target; episode `i` starts from environment seed `seed + i` whatever the target, so that targets
            and models meet the same starts.
        episodes_in_context: so many episodes in a row of each of many held-out tasks in place of those, with memory
            kept and no updates; see `dmm.evaluation_in_context`. Episode `i` of task `j` starts from environment seed
            `seed + j episodes_in_context + i`.
        tasks: how many of these tasks; all that are held out, 100 at most, if not given.
        targets: returns asked for, one or several, in the environment's units; `default_targets` if not given.
        seed: of the first episode.
        acting: how, `window` (as the paper evaluates), `recurrent`, `staggered` or `cached`; see `dmm.acting`.
        states: of each episode, for `staggered`.
        progress: show a bar on stderr.
        environments: how many are open at once, `ENVIRONMENTS_AT_ONCE` if not given; where not so many can be made,
            those that can. No episode depends on it, but for the last digits of float arithmetic.
        max_steps: end every episode after so many steps. If not given, an environment without a time limit of its own
            gets one: that of the data, as far as the run says (`dmm.training.describe_run`), else `STEP_LIMIT`.
        trust_environment: call what the run's environment specification names, with its arguments, instead of what an
            installed package has registered under its id.

    Raises:
        InputError: no run there, an environment that cannot be rebuilt, a number out of range, a target that is not
            finite, or a way of acting that the model does not know.
        RunError: the environment failed, or gave or was given NaN or infinity; the message says when.
    """
    run = run if isinstance(run, Run) else load_run(run)
    data = run.info["dataset"]
    given = _targets(targets)
    wanted = given or _targets(_usual_targets(data))
    episodes, seed = whole_number("episodes", episodes, 1), whole_number("seed", seed, 0, 2**31 - 1)
    states = whole_number("states", states, None)
    actor, reference, scores = make_actor(run.policy, acting, states), _reference(data), []
    actor = NoRewards(actor) if data.get("delayed_rewards") else actor
    make = functools.partial(make_env, run.info, trust_environment=trust_environment)
    if episodes_in_context is not None:
        from dmm.evaluation_in_context import evaluate_tasks

        if len(given) > 1:
            raise InputError(f"targets: got {len(given)}, allowed is one with episodes_in_context")
        return evaluate_tasks(
            run,
            actor,
            make,
            episodes=episodes_in_context,
            target=wanted[0],
            seed=seed,
            acting=acting,
            states=states if acting == "staggered" else None,
            reference=reference,
            tasks=tasks,
            at_once=environments,
            max_steps=None if max_steps is None else whole_number("max_steps", max_steps, 1),
            progress=progress and "evaluate in context",
        )
    if tasks is not None:
        raise InputError(f"tasks: got {tasks}, allowed only with episodes_in_context")
    with _environments(make, episodes, environments) as envs:
        limit = step_limit(envs[0], data) if max_steps is None else whole_number("max_steps", max_steps, 1)
        for target in wanted:  # in the same environments
            label = progress and f"evaluate, target {target:g}"
            settings: dict[str, Any] = {"episodes": episodes, "target": target, "seed": seed, "progress": label}
            done = play(actor, envs, max_steps=limit, keep_observations=False, **settings)
            scores.append(score(done, target, reference))
    behaviour = None
    if reference is not None and data["id"]:  # weights from elsewhere may come without data
        behaviour = float(normalize(data["mean_return"], reference))
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


def _targets(targets: Sequence[float] | float | None) -> list[float]:
    """One number or any sequence of them, as numpy and torch have them too."""
    if targets is None or isinstance(targets, str | bytes) or not np.iterable(targets):
        return [] if targets is None else [finite_number("targets", targets)]
    return [finite_number("targets", target) for target in targets]


def _reference(data: dict[str, Any]) -> tuple[float, float] | None:
    """The run's (random, expert) returns; a line on stderr where they are there and of no use."""
    said = data["reference"]
    if not said:
        return None
    pair = (*said, None, None)[:2] if isinstance(said, list | tuple) else (said, None)
    usable = usable_reference(*pair)
    if usable is None:
        print(f"dmm: evaluate: {no_scores(*pair)}", file=sys.stderr)
    return usable


def step_limit(env: gym.Env, data: dict[str, Any]) -> int | None:
    """Steps after which an episode has to be ended from outside: None where the environment has a time limit.

    Where it has none (`time_limit`), a line on stderr says so.
    """
    if time_limit(env) is not None:
        return None
    steps, name = data.get("step_limit"), env.spec.id if env.spec else data["env_id"]
    limit = STEP_LIMIT if steps is None else whole_number("step_limit", steps, 1)
    print(
        f"dmm: evaluate: {name!r} has no time limit and may never end; an episode is ended after {limit:,} steps "
        "(--max-steps, max_steps, sets another number)",
        file=sys.stderr,
    )
    return limit


def _usual_targets(data: dict[str, Any]) -> list[float]:
    """`default_targets`, if there are any."""
    if not data["id"] and family(data["env_id"]) not in TARGETS:
        raise InputError("target: got none, and the run has no data whose best return could be asked for; name one")
    return default_targets(data["env_id"], data["max_return"])


def default_targets(env_id: str, best_return: float) -> list[float]:
    """The released code's smallest targets for exactly the environments of D4RL, else the best return in the data."""
    return list(TARGETS.get(family(env_id) or "", (best_return,)))


def make_env(info: dict[str, Any], *, trust_environment: bool = False, **kwargs: Any) -> gym.Env:
    """The environment that a run's data came from, as its `run.json` describes it.

    It is made by the id that an installed package registers (`dmm.data.specifications`); `trust_environment` calls
    whatever the file names instead, with its arguments.

    Raises:
        InputError: it cannot be made here, not exactly as it was, or not without trust.
    """
    data, config = info["dataset"], info["config"]
    if not data["env_spec"] and not data["env_id"]:
        raise InputError(f"run: data set {data['id']!r} does not say which environment it comes from")
    spec = stored_env(data["env_spec"], data["env_id"], trust_environment=trust_environment)
    keys, sizes = tuple(data["observation_keys"]), (config["state_size"], config["action_size"])
    # runs and data sets from elsewhere carry no record
    as_there = {name: data.get(name) for name in ("action_bounds", "observation_offset")}
    kwargs = {**as_there, **kwargs, "trust_environment": trust_environment}
    return build_flat_env(spec, keys, *sizes, record=data.get("environment"), **kwargs)


def rollout(
    actor: Actor,
    make: Callable[[], gym.Env],
    *,
    episodes: int,
    target: float = 0.0,
    seed: int = 0,
    progress: bool | str = False,
    max_steps: int | None = None,
) -> Rollout:
    """Run `episodes` to their end, up to `ENVIRONMENTS_AT_ONCE` side by side with one call of the actor per step.

    Episodes that are over leave the batch, so with a deterministic actor an episode's course depends on its own seed
    alone, but for the last digits of float arithmetic, which depend on how many are computed at once.

    Args:
        actor: what plays, `dmm.policy.Policy` or another.
        make: makes one environment; where it fails for a further one, those that are there play one after another.
        episodes: how many; episode `i` starts from seed `seed + i`.
        target: the return that the actor is asked for.
        seed: of the first episode.
        progress: show a bar on stderr, under this label.
        max_steps: end every episode after so many steps; never, if not given.

    Raises:
        InputError: a number out of range, or no environment can be made.
        RunError: an environment failed, or gave or was given NaN or infinity; the message says when.
    """
    with environments(make, episodes) as envs:
        return play(actor, envs, episodes=episodes, target=target, seed=seed, progress=progress, max_steps=max_steps)


@contextmanager
def environments(make: Callable[[], gym.Env], episodes: int, at_once: int | None = None) -> Iterator[list[gym.Env]]:
    """As many environments as `episodes` are played in at once; closed in the end.

    Not so many, with a line on stderr, where a second or later one cannot be made: of a robot there may be only one.

    Args:
        make: makes one environment.
        episodes: how many are to be played.
        at_once: at most so many, `ENVIRONMENTS_AT_ONCE` if not given.

    Raises:
        InputError: a number below 1, or not even one environment can be made.
    """
    most = ENVIRONMENTS_AT_ONCE if at_once is None else whole_number("environments", at_once, 1)
    wanted = min(whole_number("episodes", episodes, 1), most)
    envs: list[gym.Env] = []
    with ExitStack() as stack:
        while len(envs) < wanted:
            try:
                envs.append(make())
            except FAULTS as error:
                _go_on_without(error, len(envs), wanted)
                break
            stack.callback(_close, envs[-1])
        yield envs


_environments = environments  # for `evaluate`, where that name is a number


def _go_on_without(error: BaseException, made: int, wanted: int) -> None:
    if not made:
        if isinstance(error, InputError | RunError):
            raise error
        raise InputError(f"environment: it cannot be made ({reason(error)})") from error
    print(
        f"dmm: environments: only {made} of {wanted} could be made ({reason(error)}); episodes are played in turn, "
        f"{made} at a time (--environments {made} asks for no more)",
        file=sys.stderr,
    )


def _close(env: gym.Env) -> None:
    """The episodes are played by now: a fault here is told, and spoils nothing."""
    try:
        env.close()
    except FAULTS as error:
        print(f"dmm: environment: it could not be closed ({reason(error)})", file=sys.stderr)


def play(
    actor: Actor,
    envs: list[gym.Env],
    *,
    episodes: int,
    target: float = 0.0,
    seed: int = 0,
    progress: bool | str = False,
    max_steps: int | None = None,
    keep_observations: bool = True,
) -> Rollout:
    """`rollout` in environments that are there already, one episode in each at a time.

    Without `keep_observations` those of the rollout are empty: all steps of long episodes take much memory.
    """
    episodes, seed = whole_number("episodes", episodes, 1), whole_number("seed", seed, 0, 2**31 - 1)
    target = finite_number("target", target)
    limit = sys.maxsize if max_steps is None else whole_number("max_steps", max_steps, 1)
    label, parts = progress if isinstance(progress, str) else "evaluate", []
    generator = torch.Generator().manual_seed(seed)  # of policies that draw when they act, so that this repeats
    checked = [CheckedEnv(env) for env in envs]
    with progress_bar(total=episodes, disable=not progress, unit="episode", desc=label) as bar:
        for first in range(0, episodes, len(envs)):
            batch = checked[: episodes - first]
            observation = np.stack([env.reset(first + i, seed + first + i) for i, env in enumerate(batch)])
            begun = asked(batch, target, generator)
            parts.append(_run_batch(actor, batch, observation, begun, limit, keep_observations, bar))
    returns = np.concatenate([part.returns for part in parts])
    if not np.isfinite(returns).all():
        raise RunError(f"environment: the rewards of episode {np.argmin(np.isfinite(returns))} add up to infinity")
    lengths = np.concatenate([part.lengths for part in parts])
    return Rollout(returns, lengths, [observations for part in parts for observations in part.observations])


def _run_batch(
    actor: Actor,
    envs: list[CheckedEnv],
    observation: np.ndarray,
    begun: Wanted,
    limit: int,
    keep: bool,
    bar: Any,
) -> Rollout:
    """Episodes that have just begun with these observations `(n, s)`, to their end or for `limit` steps."""
    going_on, returns, lengths = np.arange(len(envs)), np.zeros(len(envs)), np.zeros(len(envs), dtype=np.int64)
    visited = [(going_on, observation)]
    state, reward = actor.init_state(len(envs), begun), None
    while len(going_on) and lengths.max() < limit:
        playing = [envs[i] for i in going_on]
        _require_finite(playing, observation)
        action, state = actor.act(state, torch.from_numpy(observation), reward)
        # a copy: what an environment does to its action must not reach the actor's memory
        observation, earned, over = _step(playing, action.cpu().numpy().copy())
        with np.errstate(over="ignore"):  # `play` looks at the sums
            returns[going_on] += earned
        lengths[going_on] += 1
        if keep:
            visited.append((going_on, observation))
        if over.any():
            bar.update(int(over.sum()))
            rows = np.flatnonzero(~over)
            going_on, observation, earned = going_on[rows], observation[rows], earned[rows]
            state = actor.select(state, torch.from_numpy(rows))
        reward = torch.from_numpy(earned)
    bar.update(len(going_on))
    return Rollout(returns, lengths, _by_episode(visited) if keep else [])


def asked(
    envs: Sequence[CheckedEnv], returns: float, generator: torch.Generator, numbers: np.ndarray | None = None
) -> Wanted:
    """What is asked of episodes that have just begun: the return, and each environment's goal where all have one."""
    goals = [env.goal for env in envs]
    known = [goal for goal in goals if goal is not None]
    together = torch.from_numpy(np.stack(known)).float() if len(known) == len(goals) else None
    return Wanted(returns, together, generator, None if numbers is None else torch.from_numpy(numbers))


def play_tasks(
    actor: Actor,
    tasks: Sequence[gym.Env],
    *,
    episodes: int,
    target: float = 0.0,
    seed: int = 0,
    max_steps: int | None = None,
    progress: bool | str = False,
    first: int = 0,
) -> np.ndarray:
    """Several episodes of each task, one after another, with one memory for all episodes of a task.

    Between two episodes of a task the actor's `next_episode` says what it keeps; each task begins its next episode at
    once, whatever the others do.

    Args:
        actor: what plays; it must have `next_episode`.
        tasks: one environment for each task.
        episodes: of each task; episode `i` of task `j` starts from seed `seed + j * episodes + i`.
        target: the return asked for in every episode.
        seed: of the first episode of the first task, and of what the actor draws, for each task other numbers.
        max_steps: end every episode after so many steps; never, if not given.
        progress: show a bar on stderr, under this label.
        first: the number `j` of the first of these tasks, if others are played elsewhere.

    Returns:
        The undiscounted returns, `(tasks, episodes)` float64.

    Raises:
        InputError: a number out of range, or an actor without a memory of tasks.
        RunError: an environment failed, or gave or was given NaN or infinity; the message says when.
    """
    if not hasattr(actor, "next_episode"):
        raise InputError(
            f"actor: got a {type(actor).__name__}, allowed are actors with a memory of tasks (next_episode)"
        )
    envs, returns, begins, limit, generator = _Rows.of(tasks, episodes, seed, max_steps, first)
    episodes, going_on = returns.shape[1], list(envs)
    label = progress if isinstance(progress, str) else "tasks"
    number, length = np.zeros(len(envs), dtype=np.int64), np.zeros(len(envs), dtype=np.int64)
    places = np.arange(len(envs))  # of the tasks that go on
    observation = np.stack([env.reset(0, int(begin)) for begin, env in zip(begins, envs, strict=True)])
    state, reward = actor.init_state(len(envs), asked(envs, target, generator, begins)), None
    with progress_bar(total=returns.size, disable=not progress, unit="episode", desc=label) as bar:
        while len(places):
            going_on = [envs[j] for j in places]
            _require_finite(going_on, observation)
            action, state = actor.act(state, torch.from_numpy(observation), reward)
            observation, earned, over = _step(going_on, action.cpu().numpy())
            returns[places, number[places]] += earned
            length[places] += 1
            terminated = np.array([env.terminated for env in going_on])
            over |= length[places] >= limit
            if over.any():
                bar.update(int(over.sum()))
                rows = np.flatnonzero(over)
                number[places[rows]] += 1
                length[places[rows]] = 0
                more = rows[number[places[rows]] < episodes]
                behind = torch.from_numpy(observation[more])  # a copy
                for row in more:
                    j = places[row]
                    observation[row] = envs[j].reset(int(number[j]), int(begins[j] + number[j]))
                if len(more):
                    outcome = Outcome(torch.from_numpy(earned[more]), torch.from_numpy(terminated[more]), behind)
                    seeds = begins[places[more]] + number[places[more]]
                    begun = asked([going_on[row] for row in more], target, generator, seeds)
                    state = actor.next_episode(state, torch.from_numpy(more), begun, outcome)
                    earned[more] = 0.0
                stay = np.flatnonzero(number[places] < episodes)
                if len(stay) < len(places):
                    places, observation, earned = places[stay], observation[stay], earned[stay]
                    state = actor.select(state, torch.from_numpy(stay))
            reward = torch.from_numpy(earned)
    return returns


def play_tasks_anew(
    actor: Actor,
    tasks: Sequence[gym.Env],
    *,
    episodes: int,
    target: float = 0.0,
    seed: int = 0,
    max_steps: int | None = None,
    progress: bool | str = False,
    first: int = 0,
) -> np.ndarray:
    """`play_tasks` for any actor, which begins each episode anew: a control that cannot learn from earlier ones."""
    envs, returns, begins, limit, generator = _Rows.of(tasks, episodes, seed, max_steps, first)
    label = progress if isinstance(progress, str) else "tasks"
    with progress_bar(total=returns.size, disable=not progress, unit="episode", desc=label) as bar:
        for i in range(returns.shape[1]):
            observation = np.stack([env.reset(i, int(begin) + i) for begin, env in zip(begins, envs, strict=True)])
            begun = asked(envs, target, generator, begins + i)
            returns[:, i] = _run_batch(actor, envs, observation, begun, limit, False, bar).returns
    return returns


class _Rows(NamedTuple):
    """Tasks that are about to be played."""

    envs: list[CheckedEnv]
    returns: np.ndarray  # (tasks, episodes), zero
    begins: np.ndarray  # (tasks,), seeds of first episodes
    limit: int  # steps of an episode at most
    generator: torch.Generator

    @classmethod
    def of(cls, tasks: Sequence[gym.Env], episodes: int, seed: int, max_steps: int | None, first: int) -> _Rows:
        """Of arguments that are yet to be checked."""
        episodes, seed = whole_number("episodes", episodes, 1), whole_number("seed", seed, 0, 2**31 - 1)
        limit = sys.maxsize if max_steps is None else whole_number("max_steps", max_steps, 1)
        if not len(tasks):
            raise InputError("tasks: got none, allowed is at least one environment")
        begins = seed + (first + np.arange(len(tasks))) * episodes
        envs, returns = [CheckedEnv(env) for env in tasks], np.zeros((len(tasks), episodes))
        return cls(envs, returns, begins, limit, torch.Generator().manual_seed(seed))


def _require_finite(envs: list[CheckedEnv], observations: np.ndarray) -> None:
    if not np.isfinite(observations).all():
        for env, observation in zip(envs, observations, strict=True):
            env.require_finite(observation)


def _step(envs: list[CheckedEnv], actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of each: observations `(n, s)`, rewards `(n,)` and whether the episode is over `(n,)`."""
    if not np.isfinite(actions).all():
        env = envs[int(np.argmin(np.isfinite(actions).all(axis=1)))]
        raise RunError(
            f"policy: NaN or infinity in its action before step {env.t + 1} of episode {env.episode} (seed {env.seed})"
        )
    # environments may change what they are given, and the actor remembers its actions
    observations, rewards, over = zip(
        *[env.step(action) for env, action in zip(envs, actions.copy(), strict=True)], strict=True
    )
    return np.stack(observations), np.array(rewards, dtype=np.float64), np.array(over)


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
