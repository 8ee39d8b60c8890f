"""Checks for the exercises of chapter 1, "Decisions as sequences"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks import as_array, call, close, mistaken, passed, require
from dmm.checks.check import Case, Check
from dmm.checks.randomness import require_own_generator

Answer = Callable[..., Any]
Array = NDArray[Any]
Pair = tuple[Array, Array]


def check_discounted(answer: Answer) -> None:
    """`answer(rewards (N,), starts (E,), lengths (E,), gamma) -> R (N,)` with `R_t = r_t + gamma R_{t+1}` per episode.

    Raises:
        CheckFailed: it does not, with the likely mistake.
    """
    _DISCOUNTED(answer)


def check_window(answer: Answer) -> None:
    """`answer(states (N, s), start, row, k) -> (window (k, s), mask (k,))`: the k steps that end at `row`, left-padded.

    Raises:
        CheckFailed: it does not, with the likely mistake.
    """
    _WINDOW(answer)


def check_sampler(answer: Answer) -> None:
    """`answer(starts (E,), lengths (E,), batch, rng) -> rows (batch,)`, uniform over all rows of the flat table.

    Raises:
        CheckFailed: it does not, with the likely mistake.
    """
    lengths, draws = np.array([2, 4, 20, 75]), 40_000
    rows = _drawn(answer, lengths, draws, np.random.default_rng(0))
    _judge_counts(np.bincount(rows, minlength=int(lengths.sum())), lengths)
    starts = np.cumsum(lengths) - lengths
    require_own_generator(answer, lambda rng: (starts, lengths, 50, rng), "rows")
    _judge_batches(answer, np.array([3, 1, 50, 11, 7]))
    passed("every transition is equally often the first of a window, whatever else is in the batch")


# Discounted returns


def _discounting_cases() -> list[Case]:
    draw = np.random.default_rng(1)

    def case(rewards: Any, lengths: list[int], gamma: float) -> Case:
        sizes = np.array(lengths)
        return np.asarray(rewards), np.cumsum(sizes) - sizes, sizes, gamma

    return [
        case([1.0, 0.0, 2.0, 3.0, 5.0, 4.0, 0.0, 7.0], [4, 1, 3], 0.5),
        case(draw.integers(-3, 4, size=14), [2, 5, 1, 6], 0.9),
        case(-np.exp(draw.normal(size=9)), [9], 1.0),
        case([2, 0, 0, 1, 5], [3, 2], 0.0),
        case(np.ones(1208), [1201, 7], 0.5),  # 0.5 to the power of 1,200 is 0 for a computer
    ]


def _discounted(rewards: Array, starts: Array, lengths: Array, gamma: float) -> Array:
    result = np.zeros(len(rewards))
    for start, length in zip(starts, lengths, strict=True):
        total = 0.0
        for t in reversed(range(start, start + length)):
            result[t] = total = rewards[t] + gamma * total
    return result


def _discounting_mistakes(rewards: Array, starts: Array, lengths: Array, gamma: float) -> dict[str, Array]:
    right = _discounted(rewards, starts, lengths, gamma)
    steps = np.arange(len(rewards)) - np.repeat(starts, lengths)
    powers = float(gamma) ** steps
    plain = _discounted(rewards * powers, starts, lengths, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        divided = plain / powers if gamma else rewards
    return {
        "the sum runs on into the next episode; start from 0 at each episode's end": _discounted(
            rewards, np.array([0]), np.array([len(rewards)]), gamma
        ),
        "off by one: the return-to-go of step t must contain the reward of step t": right - rewards,
        "the first reward is discounted already; R_t = r_t + gamma R_{t+1} leaves r_t as it is": gamma * right,
        "gamma has no effect": _discounted(rewards, starts, lengths, 1.0),
        "discounted from the episode's start; discount from step t on": plain,
        "this is the sum of the past; sum from the episode's end": np.concatenate(
            [np.cumsum(part) for part in np.split(rewards, starts[1:])]
        ),
        "the past is discounted, too: what was earned before step t does not count any more": np.concatenate(
            [
                _discounted(part[::-1], np.array([0]), np.array([len(part)]), gamma)[::-1]
                for part in np.split(rewards, starts[1:])
            ]
        ),
        "whole-number rewards lose their fractions: the result needs an array of floats": right.astype(rewards.dtype),
        "gamma ** t is 0 late in a long episode, and the division by it 0 / 0: go backwards step by step": divided,
        "the reward of the next step alone is added: R_{t+1} holds all later ones": (
            rewards + gamma * np.where([*steps[1:].tolist(), 0], np.append(rewards[1:], 0), 0)
        ),
    }


_DISCOUNTED = Check(
    reference=_discounted,
    cases=_discounting_cases,
    mistakes=_discounting_mistakes,
    praise="discounted returns-to-go, each episode by itself",
    otherwise=lambda case, got, right: f"not right for gamma = {case[3]}",
    tolerance=1e-5,
)


# The window that a policy acts on


def _window_cases() -> list[Case]:
    draw = np.random.default_rng(2)
    counted = np.arange(1.0, 25.0).reshape(12, 2)
    whole = draw.integers(-1, 2, size=(17, 3))  # many entries are zero, and some rows throughout
    whole[[6, 7, 9]] = 0
    negative = -np.exp(draw.normal(size=(9, 1)))
    return [
        *[(counted, start, row, k) for start, row, k in ((4, 10, 4), (4, 4, 3), (4, 5, 4), (0, 2, 4), (4, 11, 1))],
        *[(whole, start, row, k) for start, row, k in ((5, 9, 4), (6, 9, 7), (0, 16, 5), (7, 7, 2), (3, 8, 40))],
        *[(negative, start, row, k) for start, row, k in ((0, 0, 6), (2, 8, 7), (1, 8, 8))],
    ]


def _window(states: Array, start: int, row: int, k: int) -> Pair:
    real = states[max(start, row - k + 1) : row + 1]
    return _padded(real, k), np.arange(k) >= k - len(real)


def _padded(real: Array, k: int) -> Array:
    return np.concatenate([np.zeros((k - len(real), real.shape[1])), real])


def _window_mistakes(states: Array, start: int, row: int, k: int) -> dict[str, Pair]:
    window, mask = _window(states, start, row, k)
    real, missing = window[mask], int((~mask).sum())
    behind = states[row : row + k]
    wrong_windows = {
        "the padding must be zeros, not copies of the first row": np.concatenate(
            [np.repeat(real[:1], missing, axis=0), real]
        ),
        "leak: rows of the episode before are in the window; cut at start": _padded(
            states[max(0, row - k + 1) : row + 1], k
        ),
        "the window is in reverse order: the oldest row comes first": _padded(real[::-1], k),
    }
    wrong_masks = {
        "the mask marks padding as real": np.ones(k),
        "the mask is upside down: True (1) is a real step": ~mask,
        "the mask is mirrored: padding is on the left": mask[::-1],
        "the mask is all False": np.zeros(k),
        "the mask is made from the values: a real state may be zero, so count the real rows instead": (
            (window != 0).any(axis=1)
        ),
        "the mask is made from the first entry of each state, which may be zero or negative in a real one": (
            window[:, 0] > 0
        ),
    }
    return {
        "off by one: the present row must be the window's last": _shifted(states, start, row, k, -1),
        "off by one: the window ends after the present row": _shifted(states, start, row, k, 1),
        "leak: the window begins in the episode before; cut at start": _window(states, 0, row, k),
        "the padding is on the right; put it on the left, so that the last place is the present": (
            np.concatenate([real, np.zeros((missing, states.shape[1]))]),
            mask[::-1],
        ),
        "the window begins at the present row; it must end there": (
            _padded(behind, k),
            np.arange(k) >= k - len(behind),
        ),
        **{hint: (wrong, mask) for hint, wrong in wrong_windows.items()},
        **{hint: (window, wrong) for hint, wrong in wrong_masks.items()},
    }


def _shifted(states: Array, start: int, row: int, k: int, by: int) -> Pair:
    real = states[max(start, row + by - k + 1) : row + by + 1][-k:]
    return _padded(real, k), np.arange(k) >= k - len(real)


_WINDOW = Check(
    reference=_window,
    cases=_window_cases,
    mistakes=_window_mistakes,
    parts=("the window", "the mask"),
    praise="the window ends at the present step, with padding and mask on the left",
    tolerance=1e-6,
)


# A fair sampler


def _drawn(answer: Answer, lengths: Array, batch: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of a batch, each a whole number within the table."""
    starts, total = np.cumsum(lengths) - lengths, int(lengths.sum())
    given = starts.copy(), lengths.copy()
    rows = as_array(call(answer, *given, batch, rng), (batch,), "the rows")
    unchanged = np.array_equal(given[0], starts) and np.array_equal(given[1], lengths)
    require(unchanged, "your function changed its input: work on a copy")
    require(bool(np.all(rows == np.round(rows))), "the rows must be whole numbers")
    outside = f"rows must lie in 0 .. {total - 1}, got {rows.min():g} .. {rows.max():g}: a start leaves its episode"
    require(bool(rows.min() >= 0 and rows.max() < total), outside)
    return rows.astype(np.int64)


def _judge_counts(counts: NDArray[np.int64], lengths: Array) -> None:
    """How often each row was drawn, `(N,)`, against uniform draws and those of known mistakes, at six deviations."""
    draws, uniform = int(counts.sum()), np.full(len(counts), 1 / len(counts))
    if _fits(counts, uniform):
        return
    for hint, likely in _unfair(lengths):
        if _fits(counts, likely):
            raise mistaken(hint)
    starts = np.cumsum(lengths) - lengths
    per_episode, fair = np.add.reduceat(counts, starts), draws * lengths / lengths.sum()
    proportional = bool(np.all(np.abs(per_episode - fair) < 6 * np.sqrt(fair)))
    require(proportional, f"episodes of lengths {lengths.tolist()} were drawn {per_episode.tolist()} times")
    require(False, "the episodes are drawn in proportion to their lengths, but the start is not uniform in them")


def _fits(counts: NDArray[np.int64], likely: Array) -> bool:
    expected = counts.sum() * likely
    return bool(np.all(np.abs(counts - expected) <= 6 * np.sqrt(expected)))


def _unfair(lengths: Array) -> Iterator[tuple[str, Array]]:
    """Known mistakes, each with how likely it draws each row, `(N,)`."""
    total, equal = int(lengths.sum()), np.full(len(lengths), 1 / len(lengths))
    share = lengths / total

    def spread(episodes: Array, first: Array, behind: Array) -> Array:
        """Episode i with probability `episodes[i]`, then uniform among its steps `first[i] .. behind[i] - 1`."""
        found, start = np.zeros(total), 0
        for likely, begin, end, length in zip(episodes, first, behind, lengths, strict=True):
            found[start + begin : start + end] = likely / max(1, end - begin)
            start += length
        return found

    zero = np.zeros_like(lengths)
    within = sum(likely / length * (np.arange(total) < length) for likely, length in zip(share, lengths, strict=True))
    yield "these are steps counted within an episode: add starts[i] to get rows of the flat table", within
    yield "each episode is drawn equally often; draw it in proportion to its length", spread(equal, zero, lengths)
    for i in range(len(lengths)):
        one = spread(np.eye(len(lengths))[i], zero, lengths)
        yield "the whole batch comes from one episode: draw an episode for each of the batch's rows", one
    yield "off by one: the first step of an episode is never drawn", spread(share, zero + 1, lengths)
    yield (
        "off by one: the last step of an episode is never drawn; it may begin a window, too",
        spread(share, zero, lengths - 1),
    )
    for unused in range(1, int(lengths.max())):
        room = np.maximum(lengths - unused, 0)
        hint = f"the last {unused} steps of a long episode are never drawn: a window that needs padding counts, too"
        yield hint, spread(room / room.sum(), zero, room)
        yield hint, spread(share, zero, np.maximum(lengths - unused, 1))
        only_long = np.where(lengths > unused, lengths - unused, lengths)
        yield hint, spread(share, zero, only_long)


def _judge_batches(answer: Answer, lengths: Array, batch: int = 13, batches: int = 2000) -> None:
    """Whether the rows of small batches are independent of one another and of their place in the batch."""
    total, rng = int(lengths.sum()), np.random.default_rng(3)
    rows = np.stack([_drawn(answer, lengths, batch, rng) for _ in range(batches)])  # (batches, batch)
    before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    episode = np.repeat(np.arange(len(lengths)), lengths)

    def share(of: NDArray[np.bool_], likely: float) -> bool:
        return bool(abs(of.mean() - likely) < 6 * np.sqrt(likely / of.size))

    following = (after - before) % total == 1
    require(following.mean() < 0.9, "a batch is a stretch of rows that follow one another: draw each by itself")
    first_only = f"a batch of {batch} has only the first {batch} rows: draw from all {total}"
    require(rows.max() >= batch, first_only)
    together = (np.diff(episode[rows], axis=1) == 0).mean()
    require(together < 1, "all rows of a batch come from one episode: draw an episode for each of them")
    require(bool((after == before).any()), "no row comes twice in a batch: draw each independently of the others")
    ascending = all(bool(np.all(one <= other)) for one, other in pairwise(rows.T))
    require(not ascending, "the rows of a batch are in ascending order: the place in the batch must not matter")
    likely = float(((lengths / total) ** 2).sum())
    pairs = (
        share(following, 1 / total)
        and share(after == before, 1 / total)
        and share(episode[before] == episode[after], likely)
    )
    require(pairs, "the rows of a batch depend on one another: draw each independently of the others")
    for place in range(batch):
        fits = _fits(np.bincount(rows[:, place], minlength=total), np.full(total, 1 / total))
        require(fits, f"row {place} of a batch is not uniform over the table: its place in the batch must not matter")
    require(close(rows.mean() / total, 0.5, 0.03), "small batches are not uniform over the table")
