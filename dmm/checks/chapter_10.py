"""Checks for the exercises of chapter 10: what a prediction depends on, bins there and back, relabelled windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import as_array, call, close, match, passed, require

Array = NDArray[np.float64]
Predict = Callable[[Tensor], Tensor]
STEPS, SIZE = 6, 3
"""Of the actions that `check_depends` tries: k and a."""
ENTRY, COPY, CONSTANT = "a model of one entry", "a copy of the label", "a constant"


def check_depends(answer: Callable[..., Any]) -> None:
    """`answer(predict, actions (k, a))` must say, as `(k, k)`, whether prediction t depends on action u."""
    actions = torch.from_numpy(np.random.default_rng(10).uniform(0.2, 0.8, size=(STEPS, SIZE)))
    actions = actions.to(torch.get_default_dtype())
    rules, found = _predictions(), []
    for predict, _ in rules.values():
        before = actions.clone()
        got = as_array(call(answer, predict, actions), (STEPS, STEPS), "depends(...)")
        require(torch.equal(actions, before), "your function changed its input actions: push a copy")
        require(bool(np.isin(got, (0, 1)).all()), "expected True or False for each pair of steps")
        found.append(got)
    _name_dependence(np.stack(found), np.stack([expected for _, expected in rules.values()]), list(rules))
    passed("what each prediction reads, the future included.")


def check_decode(answer: Callable[..., Any]) -> None:
    """`answer(b, low, high, n)` must give the middle of bin b, and `high` for the last."""
    for low, high, n in ((0.0, 1.0, 5), (-0.02, 3.2343, 12), (-20.0, 100.0, 60)):
        got = np.array([float(as_array(call(answer, b, low, high, n), (), "decode(...)")) for b in range(n)])
        b, width = np.arange(n), (high - low) / (n - 1)
        expected = np.minimum(low + (b + 0.5) * width, high)
        mistakes = {
            "that is the released decoding: encoding has n - 1 intervals, so b >= 1 comes back as b - 1": (
                low + b * (high - low) / n
            ),
            "the middle of n intervals: encoding has n - 1 of them": low + (b + 0.5) * (high - low) / n,
            "the lower edge of the bin: rounding can push it into the bin below; take the middle": low + b * width,
            "the upper edge, which already belongs to the next bin": low + (b + 1) * width,
            "the last bin is the single number high: nothing above it can be encoded": low + (b + 0.5) * width,
            "the middles are counted from 0: add low": expected - low,
            "that is the normalised bin which the network reads, not a return": (b - n / 2) / (n / 2),
            "the bins are in reverse order: bin 0 holds the lowest returns": expected[::-1],
        }
        wrong = int(np.flatnonzero(np.abs(got - expected) > 1e-4 * (high - low))[:1].sum())
        match(got, expected, mistakes, f"bin {wrong} of {n} between {low} and {high} has another middle", 1e-6)
        again = [min(math.floor((value - low) / width), n - 1) for value in got]
        require(again == list(range(n)), "a middle does not encode to its own bin")
    passed("every bin comes back as itself.")


def check_window_returns(answer: Callable[..., Any]) -> None:
    """`answer(rewards (T,), values (T,), first, last)` must give the relabelled returns of the window's steps."""
    draw = np.random.default_rng(3)
    cases = [(np.array([1.0, 0, 2]), np.array([9.0, 5, 1]), first, last) for first, last in ((0, 2), (0, 1), (0, 0))]
    for length in (1, 5, 7):
        rewards, values = draw.normal(size=length), draw.normal(2.0, 3.0, size=length)
        cases += [(rewards, values, first, last) for last in range(length) for first in {0, max(0, last - 2)}]
    found = []
    for rewards, values, first, last in cases:
        given = rewards.copy(), values.copy()
        found.append(as_array(call(answer, rewards, values, first, last), (last - first + 1,), "window_returns(...)"))
        unchanged = np.array_equal(rewards, given[0]) and np.array_equal(values, given[1])
        require(unchanged, "your function changed its input: work on a copy")
    right = [window_returns(*case) for case in cases]
    wrong = [_relabelling_mistakes(*case, expected) for case, expected in zip(cases, right, strict=True)]
    mistakes = {hint: np.concatenate([each[hint] for each in wrong]) for hint in wrong[0]}
    differ = [case for case, got, expected in zip(cases, found, right, strict=True) if not close(got, expected, 1e-6)]
    rewards, _, first, last = (differ or cases)[0]
    hint = f"a window from step {first} to {last} of an episode of {len(rewards)} steps has other returns"
    match(np.concatenate(found), np.concatenate(right), mistakes, hint, 1e-6)
    passed("the window's last return is relabelled, and within it returns fit the rewards.")


# What a prediction depends on


def _predictions() -> dict[str, tuple[Predict, Array]]:
    """By name: a rule, and which of its predictions depend on which action."""
    k = STEPS
    mix = torch.tril(torch.ones(k, k), -1)
    tile = torch.zeros(k, k)
    for t in range(k):
        tile[t, : (3 * t + 1) % k + 1] = 1  # the released layout: group (3t + 1) mod k holds all steps up to it
    second = torch.tensor([0.0, 1.0, 0.0])
    signs = torch.tensor([1.0, -1.0, 0.0])

    def summed(weight: Tensor) -> Predict:
        return lambda actions: torch.tanh(weight.to(actions) @ actions)

    def one_entry(actions: Tensor) -> Tensor:  # reads the second entry of the step before, writes the second entry
        before = torch.cat([actions[:1] * 0, actions[:-1]])
        return before * second.to(actions)

    def cancelling(actions: Tensor) -> Tensor:  # its entries move in opposite directions
        return actions.sum(-1, keepdim=True) * signs.to(actions)

    def constant(actions: Tensor) -> Tensor:
        return 0 * actions + 0.5

    causal, leaking = mix.numpy().astype(float), tile.numpy().astype(float)
    return {
        "a causal model": (summed(mix), causal),
        "the released layout": (summed(tile), leaking),
        ENTRY: (one_entry, np.eye(k, k=-1)),
        COPY: (cancelling, np.eye(k)),
        CONSTANT: (constant, np.zeros((k, k))),
    }


def _name_dependence(got: Array, expected: Array, names: list[str]) -> None:
    k, (entry, copy, constant) = expected.shape[-1], (got[names.index(name)] for name in (ENTRY, COPY, CONSTANT))
    mistakes = {
        "rows and columns are swapped: row t is the prediction": expected.mT,
        "the future is left out: a prediction that reads later actions is what this is to find": np.tril(expected),
        "the own action is left out: to read it is the leak": expected * (1 - np.eye(k)),
        "only the own action is looked at: push every step": expected * np.eye(k),
        "only the future is looked at: the past is asked for, too": np.triu(expected),
        "only the last prediction is looked at": expected * (np.arange(k) == k - 1)[:, None],
        "True and False are swapped": 1 - expected,
        "pushes pile up: start from the given actions for every step": np.maximum.accumulate(expected, axis=-1),
    }
    for hint, wrong in mistakes.items():
        require(not close(got, wrong), hint)
    require(not constant.any(), "a constant depends on nothing: compare with the prediction before the push")
    require(bool(entry.any()), "a dependence on the second entry of an action is missed: push every entry")
    hint = "opposite changes cancel in a sum over the prediction's entries: look at each entry, or at its size"
    require(bool(copy.any()), hint)
    if not close(got, expected):
        rule, t, u = (int(i) for i in np.argwhere(got != expected)[0])
        word = "does not depend" if expected[rule, t, u] == 0 else "depends"
        require(False, f"{names[rule]}: prediction {t} {word} on action {u}")


# Relabelled windows


def window_returns(rewards: Array, values: Array, first: int, last: int) -> Array:
    """The right answer: the recursion from the episode's end to the window's, then plain sums inside the window."""
    relabelled = _recursion(rewards, values)[last]
    return _sums(rewards, first, last, relabelled)


def _recursion(rewards: Array, values: Array) -> Array:
    found = rewards.astype(np.float64).copy()
    for t in range(len(rewards) - 2, -1, -1):
        found[t] = rewards[t] + max(found[t + 1], values[t + 1])
    return found


def _sums(rewards: Array, first: int, last: int, final: float) -> Array:
    return np.array([rewards[t:last].sum() + final for t in range(first, last + 1)])


def _relabelling_mistakes(rewards: Array, values: Array, first: int, last: int, expected: Array) -> dict[str, Array]:
    T, window = len(rewards), slice(first, last + 1)
    plain, chain = np.cumsum(rewards[::-1])[::-1], _recursion(rewards, values)
    following, best = np.append(values[1:], -np.inf), np.append(plain[1:], 0.0)
    behind = np.append(rewards, 0.0), np.append(values, values[-1])
    dropped = _recursion(np.append(rewards[:-1], 0.0), values)
    own = rewards.astype(np.float64).copy()
    for t in range(T - 2, -1, -1):
        own[t] = rewards[t] + max(own[t + 1], values[t])
    outside = rewards.astype(np.float64).copy()
    for t in range(T - 2, -1, -1):
        outside[t] = max(rewards[t] + outside[t + 1], values[t + 1])
    return {
        "nothing is relabelled: the critic's values play no part": _sums(rewards, first, last, plain[last]),
        "every step has its own relabelled return: inside a window each is its reward plus the next one": chain[window],
        "the last reward is dropped: the recursion starts with it, not with 0": (
            _sums(rewards, first, last, dropped[last])
        ),
        "V(s_t) in place of V(s_{t+1}): what can still be had lies behind the step": (
            _sums(rewards, first, last, own[last])
        ),
        "the maximum comes before the reward is added: r_t + max(R_{t+1}, V(s_{t+1}))": (
            _sums(rewards, first, last, outside[last])
        ),
        "compared with the plain return of the next step: it is the relabelled one": (
            _sums(rewards, first, last, float((rewards + np.maximum(best, following))[last]))
        ),
        "the value behind the episode's end enters: nothing can be had there": (
            _sums(rewards, first, last, _recursion(*behind)[last])
        ),
        "the reward of the window's last step is counted twice": _sums(
            rewards, first, last, chain[last] + rewards[last]
        ),
        "the window is in reverse order: the first step's return first": expected[::-1],
        "the recursion begins at the window's end: it begins at the episode's": (
            _sums(rewards, first, last, rewards[last])
        ),
        "a value takes the return's place even where it is smaller: take the larger": (
            _sums(rewards, first, last, rewards[last] + (values[last + 1] if last + 1 < T else 0.0))
        ),
    }
