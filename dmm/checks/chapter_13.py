"""Checks for the exercises of chapter 13: valuable sub-goals, what a planner reads, pairs that attention computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmm.checks.check import Case, Check

Array = NDArray[np.float64]
Episodes = Sequence[Sequence[float]]
REWARDS: tuple[tuple[list[float], int], ...] = (
    ([0.0, 1.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 2.0, 1.0], 5),
    ([0.5, -1.0, 2.0, 2.0, 0.0, 3.0, -2.0, 1.0, 1.0, 1.0, 4.0], 3),
    ([1, 1, 1, 0, 2, 2, 0], 2),
    ([-3.0, -1.0, -2.0, -1.0, -4.0, -0.5, -0.5, -6.0, -1.5, -2.5, -3.5, -9.0, -7.0], 4),
    ([0.0, 0.0, 7.0, 1.0, 0.0], 1),
    ([2.0, 1.0, 9.0], 2),
    ([1, 0, 1, 0, 0, 8], 4),
)
"""Rewards of an episode and steps of a group that `check_goal_states` tries."""
CONTEXTS: tuple[tuple[list[list[float]], int], ...] = (
    ([[0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 2.0, 1.0, 1.0]], 3),
    ([[2.5, -1.0, 0.5, 3.0, -0.5], [0.25, 0.25], [4.0, -2.0, 1.5, 0.0, 1.0, 0.75, -1.0, 2.0, 0.5]], 2),
    ([[3, 0, 0, 2, 1, 1, 4, 0, 0, 5, 1], [1, 0, 2]], 4),
)
"""Rewards of the episodes of a context, and steps of a group, that `check_planner_tokens` tries."""
LENGTHS = ((20, 5), (23, 4), (7, 7), (11, 3), (5, 9), (1, 1), (40, 1))
"""Steps of a task and of a group that `check_attention_pairs` tries."""


def check_goal_states(answer: Callable[..., Any]) -> None:
    """`answer(rewards, interval)` must give the number of the sub-goal's state for each group of an episode."""
    _GOALS(answer)


def check_planner_tokens(answer: Callable[..., Any]) -> None:
    """`answer(episodes, interval)` must give return-to-go, reward and end of every group: `(K, 3)`."""
    _PLANNER(answer)


def check_attention_pairs(answer: Callable[..., Any]) -> None:
    """`answer(steps, interval)` must give pairs of query and key: flat anew, flat with a cache, two transformers."""
    _ATTENTION(answer)


# Valuable sub-goals


def _best(rewards: Sequence[float], i: int, shift: int = 0, *, last: bool = False, until: int | None = None) -> int:
    """The state `j`, up to `T - shift`, of the largest mean reward of the actions `i + shift .. j + shift - 1`."""
    end = len(rewards) - shift if until is None else min(until, len(rewards) - shift)
    means = [float(np.mean(rewards[i + shift : j + shift])) for j in range(i + 1, end + 1)]
    if not means:
        return i
    best = int(np.argmax(means))
    if last:
        best = len(means) - 1 - int(np.argmax(np.isclose(means, max(means))[::-1]))
    return i + 1 + best


def _by_group(of: Callable[[Sequence[float], int, int], float]) -> Callable[[Sequence[float], int], Array]:
    return lambda rewards, c: np.array([of(rewards, i, c) for i in range(0, len(rewards), c)], dtype=np.float64)


def _capped(rewards: Sequence[float], j: int) -> int:
    return min(j, len(rewards) - 1)


_goal_states = _by_group(lambda r, i, c: _capped(r, _best(r, i)))


def _by_score(score: Callable[[Sequence[float], int, int], float]) -> Callable[[Sequence[float], int], Array]:
    """The first largest `score(rewards, i, j)`, i < j <= T."""

    def of(r: Sequence[float], i: int, c: int) -> float:
        del c
        return _capped(r, i + 1 + int(np.argmax([score(r, i, j) for j in range(i + 1, len(r) + 1)])))

    return _by_group(of)


_GOAL_MISTAKES: dict[str, Callable[[Sequence[float], int], Array]] = {
    "r[k] is what the action in state k paid, so it belongs to state k + 1: state j has the mean of r[i] to r[j-1]": (
        _by_group(lambda r, i, c: _best(r, i, 1))
    ),
    "of several states with the largest value take the earliest": (
        _by_group(lambda r, i, c: _capped(r, _best(r, i, last=True)))
    ),
    "that is the largest sum: divide it by the number of steps it takes": (
        _by_score(lambda r, i, j: float(np.sum(r[i:j])))
    ),
    "divide by the steps from i on, j - i, not by j": _by_score(lambda r, i, j: float(np.sum(r[i:j])) / j),
    "nobody saw the state behind the last action: the last one, T - 1, stands for it": (
        _by_group(lambda r, i, c: _best(r, i))
    ),
    "the mean up to the end counts, too: its state is T - 1, the last one": (
        _by_group(lambda r, i, c: _best(r, i, until=len(r) - 1))
    ),
    "asked for is the state's number in the episode, not how many steps ahead it lies": (
        _by_group(lambda r, i, c: _capped(r, _best(r, i)) - i)
    ),
    "a sub-goal may lie far behind its group: look at all later states of the episode": (
        _by_group(lambda r, i, c: _capped(r, _best(r, i, until=i + c)))
    ),
    "that is the state behind the largest single reward; the steps up to it count, too": (
        _by_group(lambda r, i, c: _capped(r, i + 1 + int(np.argmax(r[i:]))))
    ),
    "the state that an action is taken in is not what it earned: one state further": (
        _by_group(lambda r, i, c: _best(r, i) - 1)
    ),
    "every group has a sub-goal of its own: begin at its first step": (
        _by_group(lambda r, i, c: _capped(r, _best(r, 0)))
    ),
}


def _first_wrong_group(case: Case, got: Array, right: Array) -> str:
    rewards, c = case
    group = int(np.flatnonzero(got != right)[0])
    return f"rewards {rewards}, step {group * c}: the sub-goal is state {right[group]:g}, not {got[group]:g}"


_GOALS = Check(
    reference=lambda rewards, interval: _goal_states(rewards, interval),
    cases=lambda: list(REWARDS),
    mistakes=_GOAL_MISTAKES,
    parts=("goal_states(...)",),
    praise="the later state that pays the most per step, and the last one for what lies behind it.",
    otherwise=_first_wrong_group,
    tolerance=1e-9,
)


# What a planner reads


def _groups(rewards: Sequence[float], c: int) -> list[Sequence[float]]:
    return [rewards[i : i + c] for i in range(0, len(rewards), c)]


def _tokens(
    episodes: Episodes,
    c: int,
    hoped: Callable[[Episodes, int], float] | None = None,
    left: Callable[[Sequence[float], int, int], float] | None = None,
    paid: Callable[[Sequence[float]], float] = lambda group: float(np.sum(group)),
    over: Callable[[int, int, int, int], bool] = lambda group, groups, e, n: group == groups - 1,
) -> Array:
    """R, r, d of every group.

    Args:
        episodes: their rewards.
        c: steps of a group.
        hoped: the return that episode `e` begins with.
        left: what is off it at the group of steps `i .. i + c - 1`.
        paid: r of a group.
        over: d of a group, by its number, that of its episode's groups, its episode's, and that of episodes.
    """
    hoped = hoped or (lambda all_of, e: max(float(np.sum(rewards)) for rewards in all_of))
    left = left or (lambda rewards, i, c: float(np.sum(rewards[:i])))
    rows = []
    for e, rewards in enumerate(episodes):
        groups = _groups(rewards, c)
        for g, group in enumerate(groups):
            target = hoped(episodes, e) - left(rewards, g * c, c)
            rows.append((target, paid(group), float(over(g, len(groups), e, len(episodes)))))
    return np.array(rows, dtype=np.float64)


def _count_on(episodes: Episodes, e: int) -> float:
    before = sum(float(np.sum(rewards)) for rewards in episodes[:e])
    return max(float(np.sum(rewards)) for rewards in episodes) - before


def _across(episodes: Episodes, c: int) -> Array:
    """As if all episodes were one, as far as there are rows."""
    joined = [reward for rewards in episodes for reward in rewards]
    made = _tokens([joined], c, lambda _, e: max(float(np.sum(rewards)) for rewards in episodes))
    right = _tokens(episodes, c)
    rows = min(len(made), len(right))
    return np.concatenate([made[:rows], right[rows:]])


_TOKEN_MISTAKES: dict[str, Callable[[Episodes, int], Array]] = {
    "every episode begins with its own return: all of a context begin with the largest": (
        lambda episodes, c: _tokens(episodes, c, lambda all_of, e: float(np.sum(all_of[e])))
    ),
    "that begins with the last episode's return, which is the largest only where they are sorted": (
        lambda episodes, c: _tokens(episodes, c, lambda all_of, e: float(np.sum(all_of[-1])))
    ),
    "R is what is left at the group's first step, before its rewards": (
        lambda episodes, c: _tokens(episodes, c, left=lambda r, i, c: float(np.sum(r[: i + c])))
    ),
    "R counts down within an episode: take off what it earned before the group": (
        lambda episodes, c: _tokens(episodes, c, left=lambda r, i, c: 0.0)
    ),
    "R begins anew with each episode": lambda episodes, c: _tokens(episodes, c, _count_on),
    "groups end where episodes do: the last one of an episode may be short": _across,
    "r is the sum over the group, not the mean": (
        lambda episodes, c: _tokens(episodes, c, paid=lambda group: float(np.mean(group)))
    ),
    "r is the sum over the group, not its last reward": (
        lambda episodes, c: _tokens(episodes, c, paid=lambda group: float(group[-1]))
    ),
    "d is 1 for the last group of every episode, not of the context alone": (
        lambda episodes, c: _tokens(episodes, c, over=lambda g, n, e, m: g == n - 1 and e == m - 1)
    ),
    "d marks the group with which an episode ends, not the one with which it begins": (
        lambda episodes, c: _tokens(episodes, c, over=lambda g, n, e, m: g == 0)
    ),
    "d is 0 for all groups but the last one of an episode": (
        lambda episodes, c: _tokens(episodes, c, over=lambda g, n, e, m: True)
    ),
    "the columns are R, r, d, in this order": lambda episodes, c: _tokens(episodes, c)[:, [1, 0, 2]],
}


def _wrong_columns(case: Case, got: Array, right: Array) -> str:
    columns = [name for i, name in enumerate(("R", "r", "d")) if not np.allclose(got[:, i], right[:, i])]
    return f"not right yet: {' and '.join(columns)}"


_PLANNER = Check(
    reference=lambda episodes, interval: _tokens(episodes, interval),
    cases=lambda: list(CONTEXTS),
    mistakes=_TOKEN_MISTAKES,
    parts=("planner_tokens(...)",),
    praise="all episodes hope for the best one's return, and every group counts down from what is left.",
    otherwise=_wrong_columns,
    tolerance=1e-9,
)


# Pairs that attention computes


def _half(tokens: int) -> int:
    """Pairs of causal attention over so many tokens."""
    return tokens * (tokens + 1) // 2


def _worker(steps: int, c: int, of_group: Callable[[int], int] = lambda m: _half(4 * m - 2)) -> int:
    full, rest = divmod(steps, c)
    return full * of_group(c) + (of_group(rest) if rest else 0)


def _pairs(steps: int, c: int) -> tuple[int, int, int]:
    anew = sum(_half(3 * t - 2) for t in range(1, steps + 1))
    return anew, _half(3 * steps - 2), _half(4 * -(-steps // c) - 2) + _worker(steps, c)


def _third(change: Callable[[int, int], int]) -> Callable[[int, int], tuple[int, int, int]]:
    return lambda steps, c: (*_pairs(steps, c)[:2], change(steps, c))


def _planner(steps: int, c: int) -> int:
    return _half(4 * -(-steps // c) - 2)


_PAIR_MISTAKES: dict[str, Callable[[int, int], Sequence[int]]] = {
    "a token attends to itself, too: l tokens make l (l + 1) / 2 pairs, not l (l - 1) / 2": lambda steps, c: (
        sum(_half(3 * t - 3) for t in range(1, steps + 1)),
        _half(3 * steps - 3),
        _half(4 * -(-steps // c) - 3) + _worker(steps, c, lambda m: _half(4 * m - 3)),
    ),
    "attention is causal here: no token looks at later ones, so it is not l times l": lambda steps, c: (
        sum((3 * t - 2) ** 2 for t in range(1, steps + 1)),
        (3 * steps - 2) ** 2,
        (4 * -(-steps // c) - 2) ** 2 + _worker(steps, c, lambda m: (4 * m - 2) ** 2),
    ),
    "the newest step has no action and no reward yet: they come with the next one": lambda steps, c: (
        sum(_half(3 * t) for t in range(1, steps + 1)),
        _half(3 * steps),
        _half(4 * -(-steps // c)) + _worker(steps, c, lambda m: _half(4 * m)),
    ),
    "computed anew means at every step: add up over the steps": lambda steps, c: (
        _pairs(steps, c)[1],
        *_pairs(steps, c)[1:],
    ),
    "with a cache each token is computed once: its pairs are those of one pass over all of them": lambda steps, c: (
        _pairs(steps, c)[0],
        *_pairs(steps, c)[::2],
    ),
    "a flat transformer has three tokens for each step": lambda steps, c: (
        sum(_half(t) for t in range(1, steps + 1)),
        _half(steps),
        _pairs(steps, c)[2],
    ),
    "the worker's pairs are missing": _third(_planner),
    "the planner's pairs are missing": _third(_worker),
    "the worker begins anew with each group: it never sees the one before": (
        _third(lambda steps, c: _planner(steps, c) + _half(4 * steps - 2))
    ),
    "the planner has four tokens for a group, not for a step": (
        _third(lambda steps, c: _half(4 * steps - 2) + _worker(steps, c))
    ),
    "the planner has a cache, too: each of its tokens is computed once": (
        _third(lambda steps, c: sum(_half(4 * g - 2) for g in range(1, -(-steps // c) + 1)) + _worker(steps, c))
    ),
    "the last group may be short: it has as many steps as are left": (
        _third(lambda steps, c: _planner(steps, c) + -(-steps // c) * _half(4 * c - 2))
    ),
    "a short last group is a group, too": (
        _third(lambda steps, c: _half(max(0, 4 * (steps // c) - 2)) + (steps // c) * _half(4 * c - 2))
    ),
}


def _wrong_numbers(case: Case, got: Array, right: Array) -> str:
    names = ("flat and computed anew", "flat with a cache", "a planner and a worker")
    return f"not right yet: {'; '.join(name for i, name in enumerate(names) if got[i] != right[i])}"


_ATTENTION = Check(
    reference=lambda steps, interval: _pairs(steps, interval),
    cases=lambda: list(LENGTHS),
    mistakes=_PAIR_MISTAKES,
    parts=("attention_pairs(...)",),
    praise="anew costs a cube of the steps, a cache a square, and groups divide the square by that of their length.",
    otherwise=_wrong_numbers,
    tolerance=1e-9,
)
