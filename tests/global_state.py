"""What all tests of a process share: read before a test, compared with it afterwards, and put back.

A test that leaves any of it changed decides what later tests compute, and which ones these are depends on their order
and on the number of workers. The fixtures of `tests/conftest.py` fail it for that. Not here: warning filters, which
pytest itself puts back after every test.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.utils import seeding

SEED = 0
# Set by pytest for each phase of a test, and by torch when its compiler is first imported, which an optimizer may do.
NOT_OURS = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_", "_TORCHINDUCTOR_")
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


class Shared(NamedTuple):
    """One kind of shared state: how to read it, and how to put back what was read."""

    read: Callable[[], Any]
    restore: Callable[[Any], Any]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}


def _restore_environment(before: dict[str, str]) -> None:
    for name in _environment().keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "a folder that is gone"


def _umask() -> int:
    mask = os.umask(0o077)  # only setting it tells what it was
    os.umask(mask)
    return mask


def _restore_signals(before: dict[Any, Any]) -> None:
    for number, handler in before.items():
        if handler is not None:  # None: not set by Python, which cannot set it either
            signal.signal(number, handler)


def _restore_registry(before: dict[str, Any]) -> None:
    gym.registry.clear()
    gym.registry.update(before)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


SHARED: dict[str, Shared] = {
    "torch's default dtype": Shared(torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": Shared(
        torch.get_default_device, lambda before: torch.set_default_device(None if before.type == "cpu" else before)
    ),
    "torch's threads": Shared(torch.get_num_threads, torch.set_num_threads),
    "torch's grad mode": Shared(torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's deterministic algorithms": Shared(
        _deterministic, lambda before: torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    ),
    "torch's precision of products": Shared(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "numpy's handling of errors": Shared(np.geterr, lambda before: np.seterr(**before)),
    "environment variables": Shared(_environment, _restore_environment),
    "working directory": Shared(_directory, os.chdir),
    "umask": Shared(_umask, os.umask),
    "signal handlers": Shared(lambda: {number: signal.getsignal(number) for number in SIGNALS}, _restore_signals),
    "import path": Shared(lambda: list(sys.path), lambda before: sys.path.__setitem__(slice(None), before)),
    "registered environments": Shared(lambda: dict(gym.registry), _restore_registry),
}


def shared_state() -> dict[str, Any]:
    return {name: shared.read() for name, shared in SHARED.items()}


def put_back(before: dict[str, Any]) -> list[str]:
    """Makes everything as it was in `before`; one line for each kind that was not."""
    lines = []
    for name, shared in SHARED.items():
        after = shared.read()
        if after != before[name]:
            shared.restore(before[name])
            lines.append(f"{name}: {_difference(before[name], after)}")
    return lines


@contextmanager
def put_back_after() -> Iterator[None]:
    """For a test whose very subject changes what is shared: a page's code, a student's notebook."""
    before = shared_state()
    try:
        yield
    finally:
        put_back(before)


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict):
        names = [str(name) for name in before | after if before.get(name) != after.get(name)]
        return ", ".join(names)
    return f"{before!r:.120} before, {after!r:.120} after"


class _Drawn:
    """Seeds for Gymnasium's generators that nobody has seeded: another for each, the same in every run of a test."""

    plain = staticmethod(seeding.np_random)
    count = itertools.count()

    @classmethod
    def np_random(cls, seed: int | None = None) -> Any:
        return cls.plain(2**40 + next(cls.count) if seed is None else seed)


seeding.np_random = _Drawn.np_random


def seed_everything() -> None:
    """The process's random generators at one fixed state, so that no test's numbers depend on the tests before it."""
    _Drawn.count = itertools.count()
    random.seed(SEED)
    np.random.seed(SEED)
    torch.default_generator.manual_seed(SEED)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(SEED)


@contextmanager
def seeded() -> Iterator[None]:
    """Inside the block the random generators begin at the fixed state; afterwards they go on where they were."""
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_everything()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torchs)
