"""Recorded episodes, each decided by `(seed, number)` alone, so that any number of processes gives the same data."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.observations import build_env
from dmm.data.recipes import Behaviour, Recipe

CHUNK = 8
"""Episodes per task of a worker process: long enough to hide the hand-over, short enough to waste little at the end."""


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode of l transitions, as the environment gave it."""

    observations: Any  # (l + 1, s), or a dictionary of such arrays
    actions: np.ndarray  # (l, a) float32
    rewards: np.ndarray  # (l,) float64
    terminated: bool
    truncated: bool
    seed: int  # what `env.reset` was given


class Recorder:
    """An environment and a behaviour, ready to record episodes by number."""

    def __init__(self, recipe: Recipe, seed: int):
        self.env: gym.Env = build_env(recipe.env_id, **recipe.env_kwargs)
        self.behaviour: Behaviour = recipe.behaviour()
        self.seed = seed

    def episode(self, number: int) -> RecordedEpisode:
        """Episode `number` of the seed; nothing of earlier episodes reaches it."""
        env, behaviour = self.env, self.behaviour
        reset_sequence, noise_sequence = np.random.SeedSequence([self.seed, number]).spawn(2)
        reset_seed, rng = int(reset_sequence.generate_state(1)[0]), np.random.default_rng(noise_sequence)
        observation, _ = env.reset(seed=reset_seed)
        behaviour.begin(env, observation, rng)
        observations, actions, rewards = [observation], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            action = behaviour.act(observation, rng)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        return RecordedEpisode(
            observations=_stack(observations),
            actions=np.array(actions, dtype=np.float32),
            rewards=np.array(rewards, dtype=np.float64),
            terminated=bool(terminated),
            truncated=bool(truncated),
            seed=reset_seed,
        )


def record(recipe: Recipe, seed: int, workers: int) -> Generator[RecordedEpisode, None, None]:
    """Episodes 0, 1, 2, ... without end, in order; close the iterator to stop. `workers=1` stays in this process."""
    if workers == 1:
        recorder = Recorder(recipe, seed)
        try:
            yield from map(recorder.episode, count())
        finally:
            recorder.env.close()
    else:
        yield from _record_in_parallel(recipe, seed, workers)


def _record_in_parallel(recipe: Recipe, seed: int, workers: int) -> Iterator[RecordedEpisode]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(recipe, seed, stop))
    pending: deque[Future[list[RecordedEpisode]]] = deque()
    chunks = count(0, CHUNK)
    try:
        with _hidden_main():
            for _ in range(3 * workers):  # enough in flight to keep everyone busy, few enough for flat memory
                pending.append(pool.submit(_record_chunk, next(chunks)))
        while True:
            episodes = pending.popleft().result()
            pending.append(pool.submit(_record_chunk, next(chunks)))
            yield from episodes
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_recorder: Recorder  # of a worker process
_stop: Event  # set when the caller has enough: chunks under way are then cut short


def _start_worker(recipe: Recipe, seed: int, stop: Event) -> None:
    global _recorder, _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stop = stop
    _recorder = Recorder(recipe, seed)


def _record_chunk(first: int) -> list[RecordedEpisode]:
    return [_recorder.episode(number) for number in range(first, first + CHUNK) if not _stop.is_set()]


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


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([entry[key] for entry in observations]) for key in observations[0]}
    return np.stack(observations)
