"""Checks for chapter 16: data sets, their episodes, their rewards and the behaviours behind them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dmm.checks import call, require
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

    @functools.wraps(answer, updated=())
    def played(share: float, episodes: int) -> tuple[float, float]:
        first, second = _Stub("first"), _Stub("second")
        mixture = _made(answer, first, second, share)
        played = [_play(mixture, number, first, second) for number in range(episodes)]
        changes = [len(set(names)) > 1 for names in played]
        return float(np.mean([names[0] == "first" for names in played])), float(np.mean(changes))

    _MIXTURE(played if callable(answer) else answer)


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
        "the last episode has no length: it reaches to the last row": (starts, np.diff(starts)),
        "the first episode has no start: it begins at row 0": (starts[1:], lengths),
        "the first episode is missing: it begins at row 0": (starts[1:], lengths[1:]),
        "these are the rows behind the episodes: a length is how many rows there are": (starts, starts + lengths),
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
        "that is the whole return at every step: what has been earned is not to come any more": np.full(
            len(rewards), rewards.sum()
        ),
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


_SEEN = ("seen 1", "seen 2", "seen 3")
"""What is observed in an episode, behind its beginning."""


class _Stub:
    """A behaviour that plays its own name, and remembers what it was handed."""

    def __init__(self, name: str):
        self.name = name
        self.begun: list[tuple[Any, Any, Any]] = []

    def begin(self, env: Any, observation: Any, rng: np.random.Generator) -> None:
        self.begun.append((env, observation, rng))

    def act(self, observation: Any, rng: np.random.Generator) -> str:
        require(isinstance(rng, np.random.Generator), "act has to hand on the rng that it was given")
        require(observation in _SEEN, "act has to hand on the observation that it was given")
        return self.name


def _made(answer: Callable[..., Any], first: _Stub, second: _Stub, share: float) -> Any:
    mixture = call(answer, first, second, share)
    for method in ("begin", "act"):
        require(callable(getattr(mixture, method, None)), f"your behaviour has no method {method}")
    return mixture


def _play(mixture: Any, number: int, first: _Stub, second: _Stub) -> tuple[str, ...]:
    """Who plays each step of episode `number`, which has a generator of its own."""
    rng, env = np.random.default_rng([7, number]), object()
    first.begun, second.begun = [], []
    mixture.begin(env, "seen 0", rng)
    played = tuple(call(mixture.act, seen, rng) for seen in _SEEN)
    known = all(name in ("first", "second") for name in played)
    require(known, f"act has to return the chosen behaviour's action; got {played[0]!r}")
    chosen = first if played[0] == "first" else second
    require(bool(chosen.begun), "the chosen behaviour's begin was not called: it plans there, before its first action")
    handed = chosen.begun[0]
    right = handed[0] is env and handed[1] == "seen 0" and handed[2] is rng
    require(right, "the chosen behaviour's begin needs env, observation and rng, in this order")
    return played


def _mixtures() -> list[Case]:
    """Shares of which each is another, also when it is taken for another's; in the last two there is no choice."""
    return [(0.3, 2000), (0.85, 2100), (0.55, 1900), (0, 90), (1.0, 70)]


def _any_step(share: float) -> float:
    """How likely not all steps of an episode are the same behaviour's, if each is drawn by itself."""
    return 1 - share ** len(_SEEN) - (1 - share) ** len(_SEEN)


def _shares(of: Callable[[float], float]) -> Callable[[float, int], tuple[float, float]]:
    """`first` plays in the share `of(share)` of the episodes."""
    return lambda share, episodes: (of(share), 0.0)


def _found(case: Case, got: Array, right: Array) -> str:
    share, episodes = case
    if right == share and got in (0, 1):
        name = "first" if got else "second"
        return f"the same behaviour in every one of {episodes} episodes, {name}: choose in begin, with rng.random()"
    return "the share that you were given decides in how many episodes `first` plays, and it plays to their end"


def _require_own_choice(played: Callable[..., Any]) -> None:
    """Whether an episode's choice follows from its own generator: again, in another order, in another process."""
    answer, (share, _) = inspect.unwrap(played), _mixtures()[0]
    orders = (range(50), reversed(range(50)), range(25, 50))
    by_order = []
    for order in orders:
        first, second = _Stub("first"), _Stub("second")
        mixture = _made(answer, first, second, share)
        by_order.append({number: _play(mixture, number, first, second) for number in order})
    one, *others = by_order
    require(
        all(one[number] == names for other in others for number, names in other.items()),
        "an episode's choice must follow from its own rng alone: no counter, no generator of your own, no np.random; "
        "else other processes would record other data",
    )


_MIXTURE = Check(
    reference=lambda share, episodes: (float(share), 0.0),
    cases=_mixtures,
    mistakes={
        "the two are swapped: rng.random() < share is true in a share of the episodes": _shares(
            lambda share: 1 - share
        ),
        "`first` plays in every episode: choose in begin, with rng.random()": _shares(lambda share: 1.0),
        "`second` plays in every episode: rng.random() lies between 0 and 1, and so does share": (
            _shares(lambda share: 0.0)
        ),
        "both play in half of the episodes: the share that you were given decides": _shares(lambda share: 0.5),
        "`first` plays in 40 % of the episodes, as in the example: the share that you were given decides": (
            _shares(lambda share: 0.4)
        ),
        "a share is not odds: with 0.3, `first` plays in 3 of 10 episodes, not in 3 of 13": (
            _shares(lambda share: share / (1 + share))
        ),
        "rng.normal() is not uniform between 0 and 1: rng.random() is": _shares(
            lambda share: float(stats.norm.cdf(share))
        ),
        "the draw is uniform between -1 and 1: rng.random() is between 0 and 1": _shares(lambda share: (1 + share) / 2),
        "another behaviour at every step: choose in begin, once for the whole episode": (
            lambda share, episodes: (share, _any_step(share))
        ),
        "another behaviour at every step, and the two are swapped: choose in begin, once for the whole episode": (
            lambda share, episodes: (1 - share, _any_step(share))
        ),
    },
    parts=("the share of the episodes that `first` plays", "the share of those in which the behaviour changes"),
    praise="`first` plays in its share of the episodes, and each episode depends on its own rng alone.",
    otherwise=_found,
    tolerance=0.04,
    also=_require_own_choice,
)
