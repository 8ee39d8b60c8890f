"""Recorded episodes, each decided by seed and place alone, so that any number of processes gives the same data."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from multiprocessing.synchronize import Event
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.environments import require_packages
from dmm.data.faults import STEP_LIMIT, say_once, time_limit
from dmm.data.observations import build_env
from dmm.data.recipes import Behaviour, Learner, Recipe
from dmm.errors import InputError, RunError

CHUNK = 8
"""Episodes per task of a worker process: long enough to hide the hand-over, short enough to waste little at the end."""


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode of l transitions, as the environment gave it."""

    observations: Any  # (l + 1, s), or a dictionary of such arrays
    actions: np.ndarray  # (l, a) float32 for a Box, (l,) int64 for a Discrete space
    rewards: np.ndarray  # (l,) float64
    terminated: bool
    truncated: bool
    seed: int  # what `env.reset` was given
    block: int = 0  # of a recipe with stages: which of `blocks(...)` it belongs to


@dataclass(frozen=True)
class Block:
    """A run of episodes that one behaviour of a stage records from beginning to end."""

    index: int  # among all blocks of the data set
    stage: int
    number: int  # within the stage
    transitions: int  # at least; episodes are kept whole


def blocks(recipe: Recipe, transitions: int) -> list[Block]:
    """The blocks that make `transitions` steps of a recipe with stages: equal shares, in the order of the stages."""
    ends = np.linspace(0, transitions, len(recipe.stages) + 1).round().astype(int)
    plan: list[Block] = []
    for stage, share in enumerate(np.diff(ends).tolist()):
        for number, first in enumerate(range(0, share, recipe.block)):
            plan.append(Block(len(plan), stage, number, min(recipe.block, share - first)))
    return plan


class Recorder:
    """An environment, ready to record a recipe's episodes."""

    def __init__(self, recipe: Recipe, seed: int):
        require_packages(recipe.name, recipe.packages)
        self.env: gym.Env = build_env(recipe.env_id, **recipe.env_kwargs)
        self.recipe = recipe
        self.seed = seed
        self.behaviour = recipe.behaviour() if recipe.behaviour else None
        if isinstance(self.behaviour, Learner):
            raise InputError(f"behaviour: {recipe.name!r} names a learner; allowed: a learner as one of the stages")
        self.limit = STEP_LIMIT if time_limit(self.env) is None else None
        self.action_type = np.int64 if isinstance(self.env.action_space, gym.spaces.Discrete) else np.float32

    def episode(self, number: int) -> RecordedEpisode:
        """Episode `number` of a recipe without stages; nothing of earlier episodes reaches it."""
        assert self.behaviour is not None
        return self._record(self.behaviour, np.random.SeedSequence([self.seed, number]))

    def block(self, block: Block) -> Iterator[RecordedEpisode]:
        """The episodes of a block, until they hold its transitions; nothing of other blocks reaches them."""
        behaviour, place = self.recipe.stages[block.stage](), (block.stage, block.number)
        options: dict[str, Any] | None = None
        if isinstance(behaviour, Learner):
            options = behaviour.options(np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place)))
        left = block.transitions
        for number in count():
            sequence = np.random.SeedSequence(self.seed, spawn_key=(*place, number))
            episode = self._record(behaviour, sequence, options, block.index)
            yield episode
            left -= len(episode.rewards)
            if left <= 0:
                return

    def _record(
        self,
        behaviour: Behaviour,
        sequence: np.random.SeedSequence,
        options: dict[str, Any] | None = None,
        block: int = 0,
    ) -> RecordedEpisode:
        env, learner = self.env, behaviour if isinstance(behaviour, Learner) else None
        reset_sequence, noise_sequence = sequence.spawn(2)
        reset_seed, rng = int(reset_sequence.generate_state(1)[0]), np.random.default_rng(noise_sequence)
        # environments and behaviours may fill the same arrays again at every step: what is kept is a copy, and so is
        # what a behaviour sees, which may change it
        seen, _ = env.reset(seed=reset_seed, options=options)
        observations, actions, rewards = [_copied(seen)], [], []
        observation = _copied(seen)
        behaviour.begin(env, observation, rng)
        terminated = truncated = False
        while not (terminated or truncated):
            action = behaviour.act(observation, rng)
            before = observation
            actions.append(_recorded_action(action, self.action_type))
            seen, paid, terminated, truncated, _ = env.step(action)
            observations.append(_copied(seen))
            observation = _copied(seen)
            rewards.append(_one_reward(paid))
            if learner:
                learner.learn(before, action, rewards[-1], observation, terminated)
            if len(rewards) == self.limit and not terminated:
                truncated = True
                name = self.recipe.env_id
                say_once(f"dmm: collect: {name!r} has no time limit; an episode was ended after {self.limit:,} steps")
        return RecordedEpisode(
            observations=_stack(observations),
            actions=np.array(actions, dtype=self.action_type),
            rewards=np.array(rewards, dtype=np.float64),
            terminated=bool(terminated),
            truncated=bool(truncated),
            seed=reset_seed,
            block=block,
        )


def record(recipe: Recipe, seed: int, workers: int, transitions: int) -> Generator[RecordedEpisode, None, None]:
    """A recipe's whole episodes, in order, until they hold `transitions` steps; `workers=1` stays in this process."""
    if recipe.stages:
        plan = blocks(recipe, transitions)
        with closing(_recorded(recipe, seed, workers, Recorder.block, plan)) as episodes:
            yield from episodes
        return
    chunks = (range(first, first + CHUNK) for first in count(0, CHUNK))
    with closing(_recorded(recipe, seed, workers, _chunk, chunks)) as episodes:
        for episode in episodes:
            yield episode
            transitions -= len(episode.rewards)
            if transitions <= 0:
                return


def _chunk(recorder: Recorder, numbers: Iterable[int]) -> Iterator[RecordedEpisode]:
    return map(recorder.episode, numbers)


Task = Callable[[Recorder, Any], Iterator[RecordedEpisode]]


def _recorded(
    recipe: Recipe, seed: int, workers: int, task: Task, arguments: Iterable[Any]
) -> Generator[RecordedEpisode, None, None]:
    """The episodes of `task(recorder, argument)` for each argument in turn."""
    if workers > 1:
        yield from _recorded_in_parallel(recipe, seed, workers, task, iter(arguments))
        return
    recorder = Recorder(recipe, seed)
    try:
        for argument in arguments:
            yield from task(recorder, argument)
    finally:
        recorder.env.close()


def _recorded_in_parallel(
    recipe: Recipe, seed: int, workers: int, task: Task, arguments: Iterator[Any]
) -> Iterator[RecordedEpisode]:
    _require_importable(recipe)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(recipe, seed, stop))
    pending: deque[Future[list[RecordedEpisode]]] = deque()
    try:
        with _hidden_main():
            # enough in flight to keep everyone busy, few enough for flat memory
            pending.extend(pool.submit(_work, task, argument) for argument in islice(arguments, 3 * workers))
        while pending:
            episodes = pending.popleft().result()
            pending.extend(pool.submit(_work, task, argument) for argument in islice(arguments, 1))
            yield from episodes
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _require_importable(recipe: Recipe) -> None:
    """Worker processes import the behaviour's class by its name."""
    try:
        with _hidden_main():
            ForkingPickler.dumps(recipe)
    except Exception as error:  # whatever a class that cannot be named makes of it
        raise InputError(
            f"recipe: worker processes cannot import the behaviour of {recipe.name!r} ({error}); "
            "put its class in a file of its own and import it, or use workers=1"
        ) from error


_recorder: Recorder  # of a worker process
_stop: Event  # set when the caller has enough: chunks under way are then cut short


def _start_worker(recipe: Recipe, seed: int, stop: Event) -> None:
    global _recorder, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stop = stop
    _recorder = Recorder(recipe, seed)


def _work(task: Task, argument: Any) -> list[RecordedEpisode]:
    episodes = []
    for episode in task(_recorder, argument):
        episodes.append(episode)
        if _stop.is_set():
            break
    return episodes


def _end_with_parent() -> None:
    """A worker of a killed parent would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Worker processes started in here do not import the caller's script, which may lack a `__main__` guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _copied(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _copied(entry) for key, entry in observation.items()}
    if isinstance(observation, tuple):
        return tuple(map(_copied, observation))
    return np.array(observation)


def _recorded_action(action: Any, kind: type) -> np.ndarray:
    recorded: np.ndarray = np.array(action, dtype=kind)
    if kind is np.int64 and recorded != action:
        raise InputError(f"behaviour: got the action {action!r}, allowed are whole numbers in a Discrete space")
    return recorded


def _one_reward(paid: Any) -> float:
    """A reward as a number; some environments give an array with one in it."""
    array = np.asarray(paid)
    reward = float(array.reshape(())) if array.dtype.kind in "biuf" and array.size == 1 else np.nan
    if not np.isfinite(reward):
        raise RunError(f"environment: step() gave the reward {paid!r}, allowed is one finite number")
    return reward


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: _stack([entry[key] for entry in observations]) for key in observations[0]}
    stacked = np.stack(observations)
    if stacked.dtype.kind == "f" and not np.isfinite(stacked).all():
        step = int(np.argmin(np.isfinite(stacked).reshape(len(stacked), -1).all(axis=1)))
        raise RunError(f"environment: NaN or infinity in its observation after {step} steps")
    return stacked
