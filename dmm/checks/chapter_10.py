"""Checks for the exercises of chapter 10: what a prediction depends on, bins there and back, relabelled windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmm.checks import call, numbers, require
from dmm.checks.check import Case, Check

Array = NDArray[np.float64]


def check_depends(answer: Callable[..., Any]) -> None:
    """`answer(predict, actions (k, a))` must say, as `(k, k)`, whether prediction t depends on action u."""
    _DEPENDS(answer)


def check_decode(answer: Callable[..., Any]) -> None:
    """`answer(b, low, high, n)` must give the middle of bin b, and `high` for the last."""
    _DECODE(answer)


def check_window_returns(answer: Callable[..., Any]) -> None:
    """`answer(rewards (T,), values (T,), first, last)` must give the relabelled returns of the window's steps."""
    _WINDOW_RETURNS(answer)


# What a prediction depends on


@dataclass(frozen=True)
class Model:
    """A rule that predicts actions from actions, and what it reads."""

    name: str
    depends: Array
    """Whether prediction t depends on action u, `(k, k)`, 0 or 1."""
    reads: Array
    """What of each entry of an action it reads, `(a,)`."""
    writes: Array
    """How much of that is in each entry of a prediction, `(a,)`."""
    gated: bool = False
    """Whether what it predicts is multiplied by the first action, which it then has to read everywhere."""

    def __call__(self, actions: Tensor) -> Tensor:
        weight, reads, writes = (torch.as_tensor(part).to(actions) for part in (self.depends, self.reads, self.writes))
        read = actions @ reads
        size = torch.tanh(0.3 * weight @ read) * (read[0] if self.gated else 1)
        return size[:, None] * writes + 0.1


def _models(k: int, a: int) -> list[Model]:
    mix, tile = np.tri(k, k=-1), np.zeros((k, k))
    for t in range(k):
        tile[t, : (3 * t + 1) % k + 1] = 1  # the released layout: group (3t + 1) mod k holds all steps up to it
    whole, last, second = np.ones(a), np.eye(a)[-1], np.eye(a)[min(1, a - 1)]
    apart = second - np.eye(a)[0] if a > 1 else whole  # how far two entries are apart
    return [
        Model("a causal model", mix, whole, whole),
        Model("a model that its first action gates", mix, whole, whole, gated=True),
        Model("the released layout", tile, whole, whole),
        Model("a model that reads one entry", np.eye(k, k=-1), last, whole),
        Model("a model that writes one entry", np.eye(k, k=-1), whole, last),
        Model("a model that reads how two entries differ", np.tri(k), apart, whole),
        Model("a copy of the label", np.eye(k), whole, apart),
        Model("a constant", np.zeros((k, k)), whole, whole),
    ]


def _predictions() -> list[Case]:
    draw, cases = np.random.default_rng(10), []
    for k, a in ((6, 3), (5, 2), (4, 7), (1, 2)):
        actions = torch.as_tensor(draw.uniform(-0.8, 0.8, size=(k, a)), dtype=torch.get_default_dtype())
        cases += [(model, actions) for model in _models(k, a)]
    return cases


def _pushed(push: Callable[[int], Array], size: Callable[[Array], Array]) -> Callable[..., Array]:
    """Pushes one action after the other, by `push(a)`; a difference is seen if `size` of it, over entries, is not 0."""

    def found(predict: Model, actions: Tensor) -> Array:
        before, columns = predict(actions), []
        for u in range(len(actions)):
            moved = actions.clone()
            moved[u] += torch.as_tensor(push(actions.shape[1])).to(actions)
            columns.append(np.abs(size((predict(moved) - before).double().numpy())) > 1e-6)
        return np.stack(columns, 1).astype(np.float64)

    return found


def _unlike(a: int) -> Array:
    return np.linspace(0.1, 0.2, a)


def _largest(change: Array) -> Array:
    return np.asarray(np.abs(change).max(-1))


def _changed(change: Callable[[Array], Array]) -> Callable[..., Array]:
    return lambda predict, actions: change(predict.depends)


_DEPENDS = Check(
    reference=lambda predict, actions: predict.depends,
    cases=_predictions,
    mistakes={
        "rows and columns are swapped: row t is the prediction": _changed(lambda right: right.T),
        "the future is left out: a prediction that reads later actions is what this is to find": _changed(np.tril),
        "the own action is left out: to read it is the leak": _changed(lambda right: right * (1 - np.eye(len(right)))),
        "only the own action is looked at: push every step": _changed(lambda right: right * np.eye(len(right))),
        "only the future is looked at: the past is asked for, too": _changed(np.triu),
        "only the last prediction is looked at": _changed(
            lambda right: right * (np.arange(len(right)) == len(right) - 1)[:, None]
        ),
        "True and False are swapped": _changed(lambda right: 1 - right),
        "pushes pile up: start from the given actions for every step": _changed(
            lambda right: np.maximum.accumulate(right, axis=-1)
        ),
        "only the first entry of an action is pushed: push every entry": _pushed(
            lambda a: 0.1 * np.eye(a)[0], _largest
        ),
        "all entries are pushed alike, which a model that reads their difference does not notice": (
            _pushed(lambda a: 0.1 * np.ones(a), _largest)
        ),
        "opposite changes cancel in a sum over the prediction's entries: look at each entry, or at its size": (
            _pushed(_unlike, lambda change: change.sum(-1))
        ),
        "only the first entry of a prediction is looked at: it may show in any": _pushed(
            _unlike, lambda change: change[..., 0]
        ),
        "pushed from zeros, where a gate is shut: begin with the actions that are given": (
            lambda predict, actions: _pushed(_unlike, _largest)(predict, 0 * actions)
        ),
        "a constant depends on nothing: compare with the prediction before the push": (
            lambda predict, actions: np.ones((len(actions), len(actions)))
        ),
    },
    parts=("depends(...)",),
    praise="what each prediction reads, the future included.",
    otherwise=lambda case, got, right: _first_wrong_pair(case[0].name, got, right),
)


def _first_wrong_pair(name: str, got: Array, right: Array) -> str:
    if not np.isin(got, (0, 1)).all():
        return "expected True or False for each pair of steps"
    t, u = (int(i) for i in np.argwhere(got != right)[0])
    return f"{name}: prediction {t} {'depends' if right[t, u] else 'does not depend'} on action {u}"


# Bins there and back


_RANGES = ((0.0, 1.0, 5), (-0.02, 3.2343, 12), (-20.0, 100.0, 60), (3, 10, 8), (-7.5, -2.5, 2))


def _bins() -> list[Case]:
    return [(b, low, high, n) for low, high, n in _RANGES for b in range(n)]


def _width(low: float, high: float, n: int) -> float:
    return (high - low) / (n - 1)


def _middle(b: int, low: float, high: float, n: int) -> float:
    return min(low + (b + 0.5) * _width(low, high, n), high)


def _require_own_bin(answer: Callable[..., Any]) -> None:
    for b, low, high, n in _bins():
        again = min(math.floor((float(numbers(call(answer, b, low, high, n))) - low) / _width(low, high, n)), n - 1)
        require(again == b, f"the middle of bin {b} of {n} between {low} and {high} does not encode to its own bin")


_DECODE = Check(
    reference=_middle,
    cases=_bins,
    mistakes={
        "that is the released decoding: encoding has n - 1 intervals, so b >= 1 comes back as b - 1": (
            lambda b, low, high, n: low + b * (high - low) / n
        ),
        "the middle of n intervals: encoding has n - 1 of them": lambda b, low, high, n: (
            low + (b + 0.5) * (high - low) / n
        ),
        "the lower edge of the bin: rounding can push it into the bin below; take the middle": (
            lambda b, low, high, n: low + b * _width(low, high, n)
        ),
        "the upper edge, which already belongs to the next bin": (
            lambda b, low, high, n: low + (b + 1) * _width(low, high, n)
        ),
        "the last bin is the single number high: nothing above it can be encoded": (
            lambda b, low, high, n: low + (b + 0.5) * _width(low, high, n)
        ),
        "the middles are counted from 0: add low": lambda b, low, high, n: _middle(b, low, high, n) - low,
        "that is the normalised bin which the network reads, not a return": lambda b, low, high, n: (
            (b - n / 2) / (n / 2)
        ),
        "the bins are in reverse order: bin 0 holds the lowest returns": (
            lambda b, low, high, n: _middle(n - 1 - b, low, high, n)
        ),
        "every bin but the first is one too low": lambda b, low, high, n: _middle(max(0, b - 1), low, high, n),
        "the width is that of n + 1 bins: there are n - 1 intervals and the number high": (
            lambda b, low, high, n: min(low + (b + 0.5) * (high - low) / (n + 1), high)
        ),
    },
    parts=("decode(...)",),
    praise="every bin comes back as itself.",
    otherwise="another middle",
    tolerance=1e-6,
    also=_require_own_bin,
)


# Relabelled windows


def _episodes() -> list[Case]:
    draw = np.random.default_rng(3)
    cases: list[Case] = [
        (np.array(rewards), np.array([9.0, 5, 1]), first, last)
        for rewards in ([1.0, 0, 2], [1, 0, 2])
        for first, last in ((0, 2), (0, 1), (0, 0))
    ]
    for length in (1, 5, 7):
        rewards, values = draw.normal(size=length), draw.normal(2.0, 3.0, size=length)
        cases += [(rewards, values, first, last) for last in range(length) for first in {0, max(0, last - 2)}]
    losses, doubts = -np.exp(draw.normal(size=11)), -np.exp(draw.normal(1.0, 1.0, size=11))
    return [*cases, *((losses, doubts, first, last) for first, last in ((2, 8), (4, 10), (9, 9)))]


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


def _relabelling_mistakes(rewards: Array, values: Array, first: int, last: int) -> dict[str, Array]:
    expected = window_returns(rewards, values, first, last)
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


_WINDOW_RETURNS = Check(
    reference=window_returns,
    cases=_episodes,
    mistakes=_relabelling_mistakes,
    parts=("window_returns(...)",),
    praise="the window's last return is relabelled, and within it returns fit the rewards.",
    otherwise=lambda case, got, right: f"a window of an episode of {len(case[0])} steps has other returns",
    tolerance=1e-6,
)
