"""Environments that misbehave: whatever they do wrong ends in one line that says that it was the environment, and when.

Simulators of one's own fail in ways of their own: an exception, a reward that is None, an observation of another size,
a bare observation where a pair belongs. Without this the fault shows up much later, as torch's or numpy's complaint.
"""

from __future__ import annotations

import functools
import math
import sys
from contextlib import suppress
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np

from dmm.errors import RunError

FAULTS = (Exception, SystemExit)
"""What code of others may raise; Ctrl-C is the user's and goes on."""

STEP_LIMIT = 10_000
"""Steps after which an episode is ended where neither the environment nor the data have a time limit."""
LONGEST_LIMIT = 100_000
"""A time limit beyond this is none: some public data sets were recorded as one episode of a million steps."""


def time_limit(env: gym.Env) -> int | None:
    """Steps after which an environment ends an episode, None for never or after more than `LONGEST_LIMIT`."""
    steps = env.spec.max_episode_steps if env.spec else None
    return None if steps is None or steps > LONGEST_LIMIT else steps


def reason(error: BaseException) -> str:
    """An exception as one short line."""
    text = " ".join(str(error).split())
    return shown_text(f"{type(error).__name__}: {text}" if text else type(error).__name__, 300)


def shown(value: Any) -> str:
    """What came, short enough for one line."""
    return shown_text(" ".join(repr(value).split()), 100)


def shown_text(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


@functools.cache
def say_once(line: str) -> None:
    """A line on stderr, once in a process however many environments it holds for."""
    print(line, file=sys.stderr)


class CheckedEnv:
    """An environment that is played and nothing else; see the module.

    Args:
        env: any environment with array observations; those of `dmm.data.observations.build_flat_env` are `(s,)`.
    """

    def __init__(self, env: gym.Env):
        self.env = env
        self.name = env.spec.id if env.spec else type(env.unwrapped).__name__
        self.shape: tuple[int, ...] | None = getattr(env.observation_space, "shape", None)
        self.episode, self.seed, self.t = 0, 0, 0
        self.terminated = False

    def reset(self, episode: int, seed: int) -> np.ndarray:
        """Begin an episode; its first observation.

        Raises:
            RunError: the environment failed, or did not give an observation of its space's shape, and an info.
        """
        self.episode, self.seed, self.t = episode, seed, 0
        try:
            observation, _ = self.env.reset(seed=seed)
        except FAULTS as error:
            self.fault(reason(error), error)
        return self._checked(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """One step: observation, reward, and whether the episode is over. A reward of one number in an array counts.

        `terminated` then says whether it was the environment that ended it, and not a time limit.

        Raises:
            RunError: the environment failed, or gave something else.
        """
        self.t += 1
        try:
            observation, reward, terminated, truncated, _ = self.env.step(action)
        except FAULTS as error:
            self.fault(reason(error), error)
        if type(terminated) is not bool or type(truncated) is not bool:  # nearly always they are
            terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        self.terminated = terminated
        over = terminated or truncated
        return self._checked(observation), self._reward(reward), over

    @property
    def goal(self) -> np.ndarray | None:
        """The goal of this episode, `(g,)`, where the environment has one that is a vector (`desired_goal`)."""
        goal = getattr(self.env, "goal", None) if isinstance(self.env, gym.ObservationWrapper) else None
        return goal.copy() if isinstance(goal, np.ndarray) and goal.ndim == 1 else None

    def require_finite(self, observation: np.ndarray) -> None:
        """Passes when an observation of this environment's last step holds neither NaN nor infinity.

        Raises:
            RunError: it does.
        """
        if not np.isfinite(observation).all():
            self.fault("its observation holds NaN or infinity")

    def fault(self, what: str, error: BaseException | None = None) -> NoReturn:
        """Ends the run with what the environment did."""
        when = f"step {self.t}" if self.t else "the reset"
        raise RunError(
            f"environment: {self.name!r}, {when} of episode {self.episode} (seed {self.seed}): {what}"
        ) from error

    def _checked(self, observation: Any) -> np.ndarray:
        if not isinstance(observation, np.ndarray) or observation.dtype.kind not in "fiub":
            self.fault(f"its observation is {shown(observation)}, allowed is an array of numbers")
        if self.shape is None:
            self.shape = observation.shape
        if observation.shape != self.shape:
            self.fault(f"its observation has shape {observation.shape}, allowed is {self.shape}")
        return observation

    def _reward(self, reward: Any) -> float:
        number = reward if isinstance(reward, float) else _only_number(reward)
        if not math.isfinite(number):
            self.fault(f"its reward is {shown(reward)}, allowed is a finite number")
        return float(number)

    def _flag(self, name: str, value: Any) -> bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        number = _only_number(value)
        if number not in (0, 1):
            self.fault(f"its `{name}` is {shown(value)}, allowed are True and False")
        return number == 1


def _only_number(value: Any) -> float:
    """The number that a value is, or holds as its only entry; NaN for anything else."""
    with suppress(Exception):  # arrays of other libraries refuse in their own ways
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "fiub":
            return float(array.item())
    return math.nan
