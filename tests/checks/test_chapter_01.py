from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dmm.checks import CheckFailed, as_array, call, close
from dmm.checks import chapter_01 as checks


def _sum_to_end(rewards: np.ndarray, gamma: float, later: float = 0.0) -> np.ndarray:
    result = np.zeros(len(rewards))
    for t in reversed(range(len(rewards))):
        result[t] = later = rewards[t] + gamma * later
    return result


def _per_episode(one: Callable[[np.ndarray, float], np.ndarray]) -> Callable[..., np.ndarray]:
    def answer(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
        parts = [rewards[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        return np.concatenate([one(part, gamma) for part in parts])

    return answer


discounted = _per_episode(_sum_to_end)


def in_place(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    for start, length in zip(starts, lengths, strict=True):
        for t in reversed(range(start, start + length - 1)):
            rewards[t] += gamma * rewards[t + 1]
    return rewards


def whole_numbers(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    result = np.zeros_like(rewards)
    result[:] = discounted(rewards, starts, lengths, gamma)
    return result


def divided(rewards: np.ndarray, starts: np.ndarray, lengths: np.ndarray, gamma: float) -> np.ndarray:
    if gamma == 0:
        return rewards
    with np.errstate(all="ignore"):
        powers = _per_episode(lambda part, gamma: gamma ** np.arange(len(part)))(rewards, starts, lengths, gamma)
        return discounted(rewards * powers, starts, lengths, 1.0) / powers


@pytest.mark.parametrize("convert", [lambda values: values, list, torch.from_numpy])
def test_right_discounting_passes_with_one_line(convert: Callable, capsys: pytest.CaptureFixture) -> None:
    checks.check_discounted(lambda *arguments: convert(discounted(*arguments)))
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda rewards, starts, lengths, gamma: _sum_to_end(rewards, gamma), "next episode"),
        (_per_episode(lambda rewards, gamma: _sum_to_end(rewards, gamma) - rewards), "off by one"),
        (_per_episode(lambda rewards, gamma: gamma * _sum_to_end(rewards, gamma)), "discounted already"),
        (_per_episode(lambda rewards, gamma: _sum_to_end(rewards, 1.0)), "gamma has no effect"),
        (
            _per_episode(lambda rewards, gamma: _sum_to_end(rewards * gamma ** np.arange(len(rewards)), 1.0)),
            "episode's start",
        ),
        (_per_episode(lambda rewards, gamma: np.cumsum(rewards)), "sum of the past"),
        (_per_episode(lambda rewards, gamma: np.ones(len(rewards))), "not right for gamma = 0.5"),
        (in_place, "changed its input rewards"),
        (whole_numbers, "lose their fractions"),
        (divided, "0 / 0"),
        (lambda *arguments: None, "return missing"),
        (lambda *arguments: np.zeros(3), "expected shape"),
        (lambda *arguments: np.full(8, np.nan), "NaN"),
        (lambda *arguments: "text", "expected numbers"),
        (lambda *arguments: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_wrong_discounting_is_named(answer: Callable, hint: str) -> None:
    with pytest.raises(CheckFailed, match=hint) as caught:
        checks.check_discounted(answer)
    assert "\n" not in str(caught.value)


def _window(states: np.ndarray, start: int, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    real = states[max(start, row - k + 1) : row + 1]
    padding = k - len(real)
    return np.vstack([np.zeros((padding, states.shape[1])), real]), np.arange(k) >= padding


def _with_mask(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def answer(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        window, mask = _window(*arguments)
        return window, change(mask)

    return answer


def _with_values(rule: Callable[[np.ndarray], np.ndarray]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def answer(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        window, _ = _window(*arguments)
        return window, rule(window)

    return answer


def _right_padded(states: np.ndarray, start: int, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    window, mask = _window(states, start, row, k)
    return np.vstack([window[mask], window[~mask]]), mask[::-1]


def _copied(states: np.ndarray, start: int, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    window, mask = _window(states, start, row, k)
    window[~mask] = states[max(start, row - k + 1)]
    return window, mask


def test_right_window_passes(capsys: pytest.CaptureFixture) -> None:
    checks.check_window(_window)
    assert capsys.readouterr().out.startswith("Correct")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (_right_padded, "padding is on the right"),
        (_copied, "must be zeros"),
        (lambda states, start, row, k: _window(states, start, row - 1, k), "off by one: the present row"),
        (lambda states, start, row, k: _window(states, start, row + 1, k), "off by one: the window ends after"),
        (lambda states, start, row, k: _window(states, 0, row, k), "leak"),
        (
            lambda states, start, row, k: _window(states, row, min(row + k, len(states)) - 1, k),
            "begins at the present row",
        ),
        (_with_mask(lambda mask: np.ones_like(mask)), "padding as real"),
        (_with_mask(np.logical_not), "upside down"),
        (_with_mask(lambda mask: mask[::-1]), "mirrored"),
        (_with_values(lambda window: (window != 0).any(axis=1)), "made from the values"),
        (_with_values(lambda window: window[:, 0] > 0), "first entry of each state"),
        (lambda *arguments: _window(*arguments)[0], "two things"),
    ],
)
def test_wrong_window_is_named(answer: Callable, hint: str) -> None:
    with pytest.raises(CheckFailed, match=hint):
        checks.check_window(answer)


def _two_draws(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    numbers = rng.choice(len(lengths), size=batch, p=lengths / lengths.sum())
    return starts[numbers] + rng.integers(lengths[numbers])


def _starts_changed(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Callable[..., np.ndarray]:
    def answer(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        numbers = rng.choice(len(lengths), size=batch, p=lengths / lengths.sum())
        return starts[numbers] + change(lengths[numbers], rng)

    return answer


def _start_forgotten(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(rng.choice(lengths, size=batch, p=lengths / lengths.sum()))


def _one_episode(number: int) -> Callable[..., np.ndarray]:
    return lambda starts, lengths, batch, rng: starts[number] + rng.integers(lengths[number], size=batch)


def one_episode_a_batch(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Fair over many batches, as the check with one large batch cannot tell from a draw for each row."""
    if batch > lengths.sum():
        return rng.integers(lengths.sum(), size=batch)
    number = rng.choice(len(lengths), p=lengths / lengths.sum())
    return starts[number] + rng.integers(lengths[number], size=batch)


def without_replacement(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    total = lengths.sum()
    if batch > total:
        return rng.integers(total, size=batch)
    return rng.permutation(total)[:batch]


def _full_windows(k: int) -> Callable[..., np.ndarray]:
    def answer(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        room = np.maximum(lengths - k + 1, 0)
        numbers = rng.choice(len(lengths), size=batch, p=room / room.sum())
        return starts[numbers] + rng.integers(room[numbers])

    return answer


def _uniform_episodes(starts: np.ndarray, lengths: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    numbers = rng.integers(len(lengths), size=batch)
    return starts[numbers] + rng.integers(lengths[numbers])


@pytest.mark.parametrize("answer", [_two_draws, lambda s, lengths, b, rng: rng.integers(lengths.sum(), size=b)])
def test_right_sampler_passes(answer: Callable, capsys: pytest.CaptureFixture) -> None:
    checks.check_sampler(answer)
    assert capsys.readouterr().out.startswith("Correct")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (_uniform_episodes, "equally often"),
        (_start_forgotten, r"add starts\[i\]"),
        *[(_one_episode(number), "comes from one episode") for number in range(4)],
        *[(_full_windows(k), f"the last {k - 1} steps of a long episode") for k in (3, 8, 20, 30, 60)],
        (_starts_changed(lambda lengths, rng: rng.integers(np.maximum(lengths - 19, 1))), "the last 19 steps"),
        (_starts_changed(lambda lengths, rng: rng.integers(lengths - 1)), "last step"),
        (_starts_changed(lambda lengths, rng: rng.integers(1, lengths)), "first step"),
        (_starts_changed(lambda lengths, rng: rng.integers(lengths + 1)), "leaves its episode"),
        (_starts_changed(lambda lengths, rng: (lengths * rng.random(len(lengths)) ** 2).astype(int)), "not uniform"),
        (lambda s, lengths, b, rng: np.random.default_rng(0).integers(lengths.sum(), size=b), "same rows"),
        (lambda s, lengths, b, rng: (rng.integers(lengths.sum()) + np.arange(b)) % lengths.sum(), "follow one another"),
        (lambda s, lengths, b, rng: rng.permutation(np.arange(b) % lengths.sum()), "only the first 13 rows"),
        (lambda s, lengths, b, rng: np.sort(rng.integers(lengths.sum(), size=b)), "ascending order"),
        (one_episode_a_batch, "all rows of a batch come from one episode"),
        (without_replacement, "no row comes twice"),
        (lambda s, lengths, b, rng: np.random.randint(lengths.sum(), size=b), "the same seed gave other rows"),
        (lambda s, lengths, b, rng: copy.deepcopy(rng).integers(lengths.sum(), size=b), "a copy of it"),
        (lambda s, lengths, b, rng: rng.random(b), "whole numbers"),
        (lambda s, lengths, b, rng: rng.integers(lengths.sum()), "expected shape"),
    ],
)
def test_wrong_sampler_is_named(answer: Callable, hint: str) -> None:
    with pytest.raises(CheckFailed, match=hint):
        checks.check_sampler(answer)


def test_helpers() -> None:
    assert close([1.0, 2.0], torch.tensor([1.0, 2.0 + 1e-7])) and not close([1.0], [1.0, 1.0])
    assert as_array(torch.ones(2, requires_grad=True), (2,), "x").tolist() == [1, 1]
    with pytest.raises(CheckFailed, match="returned nothing"):
        call(lambda: ...)
    with pytest.raises(CheckFailed, match="no answer yet"):
        call(lambda: None)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "raised ValueError: one"),
        (ValueError("\none"), "raised ValueError: one"),
        (KeyError(), "raised KeyError"),
    ],
)
def test_foreign_errors_are_cut_to_one_line(error: Exception, line: str) -> None:
    def answer() -> None:
        raise error

    with pytest.raises(CheckFailed, match=f"^answer {line}$") as caught:
        call(answer)
    assert "\n" not in str(caught.value)
