"""Whether an answer that draws does so with the generator that it is given, and with nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dmm.checks import call, numbers, require


def require_own_generator(
    answer: Callable[..., Any], arguments: Callable[[np.random.Generator], tuple[Any, ...]], what: str
) -> None:
    """Holds four calls of `answer(*arguments(rng))` against one another: two seeds, one of them twice, then on from it.

    Raises:
        CheckFailed: what came depends on something else than the generator, or not on it.
    """
    rng = np.random.default_rng(5)
    first = numbers(call(answer, *arguments(rng)))
    following = numbers(call(answer, *arguments(rng)))
    again = numbers(call(answer, *arguments(np.random.default_rng(5))))
    other = numbers(call(answer, *arguments(np.random.default_rng(6))))
    # a seed of one's own, or none at all, gives the same whatever the generator is
    unused = np.array_equal(first, following) and np.array_equal(first, other)
    require(not unused, f"rng was not used: two calls gave the same {what}; draw from rng, and do not seed your own")
    reproduced = f"the same seed gave other {what}: every draw has to come from rng, none from np.random or torch"
    require(np.array_equal(first, again), reproduced)
    require(not np.array_equal(first, other), f"two seeds gave the same {what}: draw from rng, do not seed your own")
    moved = f"a second call with the same rng gave the same {what}: draw from rng itself, not from a copy of it"
    require(not np.array_equal(first, following), moved)
