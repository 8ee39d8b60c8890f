"""Checks for the exercises of chapter 1, "Decisions as sequences"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dmm.checks import as_array, call, close, passed, require

Answer = Callable[..., Any]

_LENGTHS = np.array([4, 1, 3])
_STARTS = np.array([0, 4, 5])
_REWARDS = np.array([1.0, 0.0, 2.0, 3.0, 5.0, 4.0, 0.0, 7.0])


def check_discounted(answer: Answer) -> None:
    """`answer(rewards (N,), starts (E,), lengths (E,), gamma) -> R (N,)` with `R_t = r_t + gamma R_{t+1}` per episode.

    Raises:
        CheckFailed: it does not, with the likely mistake.
    """
    for gamma in (0.5, 1.0, 0.0):
        got = as_array(call(answer, _REWARDS.copy(), _STARTS, _LENGTHS, gamma), _REWARDS.shape, "the result")
        wrong = {hint: values for hint, values in _discounting_mistakes(gamma).items() if gamma == 0.5}
        _judge(got, _discounted(_REWARDS, _STARTS, gamma), wrong, f"not right for gamma = {gamma}")
    passed("discounted returns-to-go, each episode by itself")


def check_window(answer: Answer) -> None:
    """`answer(states (N, s), start, row, k) -> (window (k, s), mask (k,))`: the k steps that end at `row`, left-padded.

    Raises:
        CheckFailed: it does not, with the likely mistake.
    """
    states = np.arange(1.0, 25.0).reshape(12, 2)
    for start, row, k in ((4, 10, 4), (4, 4, 3), (4, 5, 4), (0, 2, 4), (4, 11, 1)):
        where = f"for start={start}, row={row}, k={k}"
        result = call(answer, states.copy(), start, row, k)
        pair = isinstance(result, tuple | list) and len(result) == 2
        require(pair, "return two things, the window (k, s) and the mask (k,)")
        window, mask = as_array(result[0], (k, 2), "the window"), as_array(result[1], (k,), "the mask")
        expected, real = _window(states, start, row, k)
        _judge(window, expected, _window_mistakes(states, start, row, k), f"the window is not right {where}")
        _judge(mask, real, _mask_mistakes(real), f"the window is right, but the mask is not, {where}")
    passed("the window ends at the present step, with padding and mask on the left")


def check_sampler(answer: Answer) -> None:
    """`answer(starts (E,), lengths (E,), batch, rng) -> rows (batch,)`, uniform over all rows of the flat table.

    Raises:
        CheckFailed: it does not, with the likely mistake.
    """
    lengths, draws = np.array([2, 4, 20, 75]), 40_000
    starts, total = np.cumsum(lengths) - lengths, int(lengths.sum())
    rng = np.random.default_rng(0)
    rows = as_array(call(answer, starts, lengths, draws, rng), (draws,), "the rows")
    require(bool(np.all(rows == np.round(rows))), "the rows must be whole numbers")
    outside = f"rows must lie in 0 .. {total - 1}, got {rows.min():g} .. {rows.max():g}: a start leaves its episode"
    require(bool(rows.min() >= 0 and rows.max() < total), outside)
    counts = np.bincount(rows.astype(int), minlength=total)
    _judge_counts(counts, np.add.reduceat(counts, starts), lengths)
    again = as_array(call(answer, starts, lengths, draws, rng), (draws,), "the rows")
    require(not np.array_equal(rows, again), "two calls gave the same rows: draw from rng, and do not seed it yourself")
    passed("every transition is equally often the first of a window")


def _judge(got: np.ndarray, right: np.ndarray, wrong: dict[str, np.ndarray], otherwise: str) -> None:
    """Passes if `got` is right; else names the mistake whose result it equals."""
    if close(got, right):
        return
    hint = next((hint for hint, values in wrong.items() if close(got, values)), otherwise)
    expected = np.array2string(right, precision=3, separator=", ").replace("\n", "")
    require(False, f"{hint}; expected {expected}")


def _discounted(rewards: np.ndarray, starts: np.ndarray, gamma: float) -> np.ndarray:
    result, total = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        total = rewards[t] + gamma * total
        result[t] = total
        if t in starts:
            total = 0.0
    return result


def _discounting_mistakes(gamma: float) -> dict[str, np.ndarray]:
    right = _discounted(_REWARDS, _STARTS, gamma)
    steps = np.arange(len(_REWARDS)) - np.repeat(_STARTS, _LENGTHS)
    from_start = _discounted(_REWARDS * gamma**steps, _STARTS, 1.0)
    forward = np.concatenate([np.cumsum(part) for part in np.split(_REWARDS, _STARTS[1:])])
    return {
        "the sum runs on into the next episode; start from 0 at each episode's end": _discounted(
            _REWARDS, np.array([0]), gamma
        ),
        "off by one: the return-to-go of step t must contain the reward of step t": right - _REWARDS,
        "the first reward is discounted already; R_t = r_t + gamma R_{t+1} leaves r_t as it is": gamma * right,
        "gamma has no effect": _discounted(_REWARDS, _STARTS, 1.0),
        "discounted from the episode's start; discount from step t on": from_start,
        "this is the sum of the past; sum from the episode's end": forward,
    }


def _window(states: np.ndarray, start: int, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    real = states[max(start, row - k + 1) : row + 1]
    padding = k - len(real)
    return _padded(real, k), np.arange(k) >= padding


def _padded(real: np.ndarray, k: int) -> np.ndarray:
    return np.concatenate([np.zeros((k - len(real), real.shape[1])), real])


def _window_mistakes(states: np.ndarray, start: int, row: int, k: int) -> dict[str, np.ndarray]:
    real = states[max(start, row - k + 1) : row + 1]
    filler = np.repeat(real[:1], k - len(real), axis=0)
    return {
        "off by one: the present row must be the window's last": _padded(states[max(start, row - k) : row], k),
        "off by one: the window ends after the present row": _padded(states[max(start, row - k + 2) : row + 2], k),
        "leak: rows of the episode before are in the window; cut at start": _padded(
            states[max(0, row - k + 1) : row + 1], k
        ),
        "the padding is on the right; put it on the left, so that the last place is the present": np.concatenate(
            [real, np.zeros((k - len(real), 2))]
        ),
        "the window begins at the present row; it must end there": _padded(states[row : row + k], k),
        "the padding must be zeros, not copies of the first row": np.concatenate([filler, real]),
    }


def _mask_mistakes(real: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "the mask marks padding as real": np.ones(len(real)),
        "the mask is upside down: True (1) is a real step": ~real,
        "the mask is mirrored: padding is on the left": real[::-1],
        "the mask is all False": np.zeros(len(real)),
    }


def _judge_counts(counts: np.ndarray, per_episode: np.ndarray, lengths: np.ndarray) -> None:
    """`counts (N,)` of each row and `per_episode (E,)` against uniform ones, at six standard deviations."""
    draws = counts.sum()
    equal, fair = draws / len(lengths), draws * lengths / lengths.sum()
    drawn, longest = np.flatnonzero(counts), int(np.argmax(lengths))
    # steps counted from each episode's start: all small numbers occur, and none beyond the longest episode
    forgotten = bool(drawn[-1] < lengths.max() and counts[: len(counts) - lengths.max()].all())
    require(not forgotten, "these are steps counted within an episode: add starts[i] to get rows of the flat table")
    if per_episode[longest]:
        unused = int(np.argmax(np.split(counts, np.cumsum(lengths)[:-1])[longest][::-1] > 0))
        hint = f"the last {unused} steps of a long episode are never drawn: a window that needs padding counts, too"
        require(unused < 2, hint)
    single = np.count_nonzero(per_episode) == 1
    require(not single, "the whole batch comes from one episode: draw an episode for each of the batch's rows")
    if np.all(np.abs(per_episode - equal) < 6 * np.sqrt(equal)):
        require(False, "each episode is drawn equally often; draw it in proportion to its length")
    ends = np.cumsum(lengths) - 1
    require(
        bool(counts[ends].all()), "off by one: the last step of an episode is never drawn; it may begin a window, too"
    )
    require(bool(counts[(ends - lengths + 1)[1:]].all()), "off by one: the first step of an episode is never drawn")
    proportional = bool(np.all(np.abs(per_episode - fair) < 6 * np.sqrt(fair)))
    require(proportional, f"episodes of lengths {lengths.tolist()} were drawn {per_episode.tolist()} times")
    uniform = bool(np.all(np.abs(counts - draws / len(counts)) < 6 * np.sqrt(draws / len(counts))))
    require(uniform, "the episodes are drawn in proportion to their lengths, but the start is not uniform in them")
