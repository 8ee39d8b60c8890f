"""Checks for chapter 16: data sets, their episodes, their rewards and the behaviours behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks import CheckFailed, as_array, call, close, match, passed, require

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Rows of a D4RL file: fallen after 3, time limit after 4 more, both flags at once after 2 more; then 3 rows left over.
_TERMINALS, _TIMEOUTS, _ROWS = (2, 8), (6, 8), 12


def check_episodes(answer: Callable[..., Any]) -> None:
    """`answer(terminals (N,), timeouts (N,))` must give `(starts (E,), lengths (E,))` of the episodes in N rows."""
    for rows in (_ROWS, _ROWS - 3):  # with rows after the last mark, and without
        terminals, timeouts = _flags(_TERMINALS, rows), _flags(_TIMEOUTS, rows)
        _compare_episodes(answer, terminals, timeouts)
    _compare_episodes(answer, _flags((), 5), _flags((), 5))  # no mark at all
    passed("every row belongs to one episode, and none is empty.")


def check_rtg(answer: Callable[..., Any]) -> None:
    """`answer(cumulative (l,))` must give Algorithm 1's returns-to-go `(l,)` of an episode with stored running sums."""
    for cumulative in ([0, 0, 1, 1, 1, 2, 2, 4, 4], [1, 1, 2, 2, 2, 2, 3], [0, 0, 0, 0], [2]):
        stored = np.array(cumulative, dtype=np.float64)
        kept = stored.copy()
        result = call(answer, stored)
        require(np.array_equal(stored, kept), "your function changed the rewards that it was given: work on a copy")
        shape = tuple(getattr(result, "shape", np.shape(result)))
        require(
            len(stored) == 1 or shape != (len(stored) - 1,),
            "one number too few: np.diff gives l - 1 differences, and r_0 comes before them",
        )
        rtg = as_array(result, stored.shape, "returns-to-go")
        match(rtg, _rtg(_differences(stored)), _rtg_mistakes(stored), f"wrong for the stored sums {cumulative}")
    passed("the sums are undone first, and what one task earns is still to come until it is done.")


def check_mixture(answer: Callable[..., Any]) -> None:
    """`answer(first, second, share)` must be a behaviour that plays `first` in that share of the episodes."""
    share, episodes = 0.3, 2000
    first, second = _Stub("first"), _Stub("second")
    mixture = call(answer, first, second, share)
    for method in ("begin", "act"):
        require(callable(getattr(mixture, method, None)), f"your behaviour has no method {method}")
    played = [_play(mixture, number, first, second) for number in range(episodes)]
    require(
        len(set(played)) > 1, f"the same behaviour in every episode: {played[0]}; choose in begin, with rng.random()"
    )
    _require_own_choice(lambda: call(answer, first, second, share), played[:50], first, second)
    found = played.count("first") / episodes
    hint = f"`first` plays in {found:.0%} of the episodes, not in {share:.0%}"
    swapped = abs(found - (1 - share)) < 0.05
    require(not swapped, f"{hint}: the two are swapped; rng.random() < share is true in a share of the episodes")
    require(abs(found - share) < 0.05, f"{hint}: the share that you were given decides")
    passed(f"`first` played in {found:.0%} of the episodes, and each episode depends on its own rng alone.")


def _flags(rows: tuple[int, ...], size: int) -> Flags:
    flags = np.zeros(size, dtype=bool)
    flags[list(rows)] = True
    return flags


def _compare_episodes(answer: Callable[..., Any], terminals: Flags, timeouts: Flags) -> None:
    before = terminals.copy(), timeouts.copy()
    starts, lengths = _pair(call(answer, terminals, timeouts))
    same = np.array_equal(terminals, before[0]) and np.array_equal(timeouts, before[1])
    require(same, "your function changed the flags that it was given: work on a copy")
    right = _cut(terminals | timeouts)
    got = as_array(starts, np.shape(starts), "starts"), as_array(lengths, np.shape(lengths), "lengths")
    if _same(got, right):
        return
    for hint, wrong in _episode_mistakes(terminals, timeouts).items():
        require(not _same(got, wrong), hint)
    _explain(got, right, len(terminals))


def _explain(got: tuple[Array, Array], right: tuple[Array, Array], rows: int) -> None:
    """The general complaints about episodes that no known mistake explains."""
    starts, lengths = got
    require(starts.ndim == 1 and starts.shape == lengths.shape, "starts and lengths: one number for each episode")
    require(bool((lengths > 0).all()), "an episode without rows: nothing begins after the last row")
    require(lengths.sum() == rows, f"the lengths add up to {lengths.sum():.0f}; there are {rows} rows")
    require(False, f"for {rows} rows: expected starts {right[0].astype(int).tolist()}, got {starts.tolist()}")


def _pair(result: Any) -> tuple[Any, Any]:
    require(isinstance(result, tuple) and len(result) == 2, "return two arrays: starts and lengths")
    return result[0], result[1]


def _same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    return all(close(a, b) for a, b in zip(one, other, strict=True))


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
        "one step early: r_t = c_t - c_{t-1} belongs to the later step; 0 comes in front, not at the end": _rtg(
            np.append(np.diff(stored), 0.0)
        ),
        "the reward of step t is still to come at step t: R_t = r_t + R_{t+1}": _rtg(rewards) - rewards,
        "these are the rewards: add up those that are still to come": rewards,
        "these are the rewards so far: what is to come counts from the other end": np.cumsum(rewards),
        "these are the stored sums: they say what has been earned, not what is to come": stored,
        "the differences have the wrong sign: r_t = c_t - c_{t-1}": -_rtg(rewards),
        "in reverse order: turn the sums around again": _rtg(rewards)[::-1],
    }


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
    require(len(set(played)) == 1, "another behaviour at every step: choose in begin, once for the whole episode")
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
