"""Checks for chapter 16: data sets, their episodes, their rewards and the behaviours behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks import CheckFailed, call, mistaken, passed, require
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


def check_episodes(answer: Callable[..., Any]) -> None:
    """`answer(terminals (N,), timeouts (N,))` must give `(starts (E,), lengths (E,))` of the episodes in N rows."""
    _EPISODES(answer)


def check_rtg(answer: Callable[..., Any]) -> None:
    """`answer(cumulative (l,))` must give Algorithm 1's returns-to-go `(l,)` of an episode with stored running sums."""
    _RTG(answer)


def check_mixture(answer: Callable[..., Any]) -> None:
    """`answer(first, second, share)` must be a behaviour that plays `first` in that share of the episodes."""
    share, episodes = 0.3, 2000
    first, second = _Stub("first"), _Stub("second")
    mixture = call(answer, first, second, share)
    for method in ("begin", "act"):
        require(callable(getattr(mixture, method, None)), f"your behaviour has no method {method}")
    played = [_play(mixture, number, first, second) for number in range(episodes)]
    if len(set(played)) == 1:
        raise mistaken(f"the same behaviour in every episode: {played[0]}; choose in begin, with rng.random()")
    _require_own_choice(lambda: call(answer, first, second, share), played[:50], first, second)
    found = played.count("first") / episodes
    hint = f"`first` plays in {found:.0%} of the episodes, not in {share:.0%}"
    if abs(found - (1 - share)) < 0.05:
        raise mistaken(f"{hint}: the two are swapped; rng.random() < share is true in a share of the episodes")
    require(abs(found - share) < 0.05, f"{hint}: the share that you were given decides")
    passed(f"`first` played in {found:.0%} of the episodes, and each episode depends on its own rng alone.")


# Where episodes end


def _files() -> list[Case]:
    """Rows of D4RL files, with rows after the last mark and without, no mark at all, and ends next to each other.

    In the first: fallen after 3 rows, time limit after 4 more, both flags at once after 2 more; then 3 rows left over.
    """
    marks = [((2, 8), (6, 8), 12), ((2, 8), (6, 8), 9), ((), (), 5), ((0, 1), (4,), 7), ((), (3,), 4), ((), (0,), 1)]
    return [(_flags(terminals, rows), _flags(timeouts, rows)) for terminals, timeouts, rows in marks]


def _flags(rows: tuple[int, ...], size: int) -> Flags:
    flags = np.zeros(size, dtype=bool)
    flags[list(rows)] = True
    return flags


def _complaint(case: Case, got: Array, right: Array) -> str:
    return f"other episodes are in these {len(case[0])} rows"


def _cut(ends: Flags) -> tuple[Array, Array]:
    """Starts and lengths when an episode ends with each marked row, and with the last."""
    last = np.append(np.flatnonzero(ends[:-1]), len(ends) - 1)
    starts = np.append(0, last[:-1] + 1)
    return starts.astype(float), (last - starts + 1).astype(float)


def _episode_mistakes(terminals: Flags, timeouts: Flags) -> dict[str, tuple[Array, Array]]:
    starts, lengths = _cut(terminals | timeouts)
    marks = np.flatnonzero(terminals | timeouts)
    both = np.sort(np.concatenate([np.flatnonzero(terminals), np.flatnonzero(timeouts)]))
    twice = np.diff(np.append(-1, both)).astype(float)
    complete = len(marks)
    early = np.append(0, marks)
    return {
        "a time limit ends an episode, too: you looked at terminals only": _cut(terminals),
        "falling ends an episode, too: you looked at timeouts only": _cut(timeouts),
        "an end is where either flag stands, not only where both do": _cut(terminals & timeouts),
        "the rows after the last mark are an episode, too; yours drops them": (starts[:complete], lengths[:complete]),
        "one row early: the marked row is the last of its episode, not the first of the next": (
            early.astype(float),
            np.diff(np.append(early, len(terminals))).astype(float),
        ),
        "an episode without rows at the end: the last mark is the last row here": (
            np.append(0, marks + 1).astype(float),
            np.diff(np.append(np.append(0, marks + 1), len(terminals))).astype(float),
        ),
        "these are the last rows of the episodes: an episode starts after the end of the one before": (
            starts + lengths - 1,
            lengths,
        ),
        "one row too few in each: a length counts both the first and the last row": (starts, lengths - 1),
        "one row with both flags counted as two ends": (np.cumsum(twice) - twice, twice),
        "lengths and starts are swapped": (lengths, starts),
    }


_EPISODES = Check(
    reference=lambda terminals, timeouts: _cut(terminals | timeouts),
    cases=_files,
    mistakes=_episode_mistakes,
    parts=("starts", "lengths"),
    praise="every row belongs to one episode, and none is empty.",
    otherwise=_complaint,
)


# Sums undone


def _stored() -> list[Case]:
    sums = ([0, 0, 1, 1, 1, 2, 2, 4, 4], [1, 1, 2, 2, 2, 2, 3], [0, 0, 0, 0], [2], [0.5, -1.0, -1.0, 3.25, 3.0], [3, 1])
    return [(np.array(each, dtype=np.float64),) for each in sums] + [(np.array([0, 1, 1, 3]),)]


def _differences(cumulative: Array, first: float = 0.0) -> Array:
    return np.append(first, np.diff(cumulative))


def _rtg(rewards: Array) -> Array:
    return np.cumsum(rewards[::-1])[::-1]


def _rtg_mistakes(stored: Array) -> dict[str, Array]:
    rewards = _differences(stored)
    return {
        "r_0 = c_0 is the released code's choice: in Algorithm 1 the first reward is 0": _rtg(
            _differences(stored, stored[0])
        ),
        "the stored sums were added up again: undo them first, r_t = c_t - c_{t-1}": _rtg(stored),
        "one step early: r_t = c_t - c_{t-1} belongs to the later step, and at step t it is still to come": _rtg(
            np.append(np.diff(stored), 0.0)
        ),
        "these are the rewards: add up those that are still to come": rewards,
        "these are the rewards so far: what is to come counts from the other end": np.cumsum(rewards),
        "these are the stored sums: they say what has been earned, not what is to come": stored,
        "the differences have the wrong sign: r_t = c_t - c_{t-1}": -_rtg(rewards),
        "in reverse order: turn the sums around again": _rtg(rewards)[::-1],
        "one number too few: np.diff gives l - 1 differences, and r_0 comes before them": _rtg(np.diff(stored)),
    }


_RTG = Check(
    reference=lambda cumulative: _rtg(_differences(cumulative)),
    cases=_stored,
    mistakes=_rtg_mistakes,
    parts=("returns-to-go",),
    praise="the sums are undone first, and what one task earns is still to come until it is done.",
    otherwise=lambda case, got, right: f"wrong for the stored sums {case[0].tolist()}",
)


# A mixture of two


class _Stub:
    """A behaviour that plays its own name, and remembers what it was handed."""

    def __init__(self, name: str):
        self.name = name
        self.begun: list[tuple[Any, Any, Any]] = []

    def begin(self, env: Any, observation: Any, rng: np.random.Generator) -> None:
        self.begun.append((env, observation, rng))

    def act(self, observation: Any, rng: np.random.Generator) -> str:
        require(isinstance(rng, np.random.Generator), "act has to hand on the rng that it was given")
        require(observation in ("seen 1", "seen 2", "seen 3"), "act has to hand on the observation that it was given")
        return self.name


def _play(mixture: Any, number: int, first: _Stub, second: _Stub) -> str:
    """Who plays episode `number`: three steps, with a generator of its own."""
    rng, env = np.random.default_rng([7, number]), object()
    first.begun, second.begun = [], []
    _quietly(mixture.begin, env, "seen 0", rng)
    played = [_quietly(mixture.act, f"seen {step}", rng) for step in (1, 2, 3)]
    require(
        all(name in ("first", "second") for name in played),
        f"act has to return the chosen behaviour's action; got {played[0]!r}",
    )
    if len(set(played)) > 1:
        raise mistaken("another behaviour at every step: choose in begin, once for the whole episode")
    chosen = first if played[0] == "first" else second
    require(bool(chosen.begun), "the chosen behaviour's begin was not called: it plans there, before its first action")
    handed = chosen.begun[0]
    right = handed[0] is env and handed[1] == "seen 0" and handed[2] is rng
    require(right, "the chosen behaviour's begin needs env, observation and rng, in this order")
    return str(played[0])


def _quietly(method: Callable[..., Any], *arguments: Any) -> Any:
    """What a method of the answer returns; what it raises becomes `CheckFailed`."""
    try:
        return method(*arguments)
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"{method.__name__} raised {type(error).__name__}: {error}") from error


def _require_own_choice(make: Callable[[], Any], played: list[str], first: _Stub, second: _Stub) -> None:
    """Whether an episode's choice follows from its own generator: again, in another order, in another process."""
    other = make()
    backwards = [_play(other, number, first, second) for number in reversed(range(len(played)))][::-1]
    require(
        backwards == played,
        "an episode's choice must follow from its own rng alone: no counter, no generator of your own, no np.random; "
        "else other processes would record other data",
    )
