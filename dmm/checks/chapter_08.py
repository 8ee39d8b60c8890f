"""Checks for the exercises of chapter 8: the loss, the learning rate, the interval of a score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dmm.checks import as_array, call, close, passed, require
from dmm.data.windows import Windows
from dmm.policy import action_loss

LossFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]


def check_loss(answer: LossFunction) -> None:
    """Exercise 8.1: `answer(predicted (b, k, a), actions (b, k, a), mask (b, k))` is the mean over real steps."""
    generator = torch.Generator().manual_seed(8)
    predicted, actions = (torch.randn(4, 5, 2, generator=generator) for _ in range(2))
    mask = torch.arange(5) >= torch.tensor([0, 1, 3, 4])[:, None]  # left padding
    got = float(as_array(call(answer, predicted, actions, mask), (), "masked_loss(...)"))
    squared = (predicted - actions).square()
    real = squared[mask]
    require(
        not close(got, squared.mean()),
        "the mean runs over padded steps too: keep only the entries where mask is True",
    )
    require(
        not close(got, (squared * mask[..., None]).mean()),
        "the sum is right, but it is divided by all steps: count only the entries where mask is True",
    )
    require(
        not close(got, real.sum() / mask.sum()), "divide by the number of action entries, not by the number of steps"
    )
    require(not close(got, squared[~mask].mean()), "the mask is upside down: True marks a real step")
    per_window = torch.stack([one[real].mean() for one, real in zip(squared, mask, strict=True)])
    require(
        not close(got, per_window.mean()),
        "windows count alike, however many real steps they have: take one mean over all real steps",
    )
    require(
        not close(got, (predicted - actions)[mask].abs().mean()), "square the difference; this is the absolute error"
    )
    windows = Windows(actions[..., :1], actions, actions, torch.zeros(4, 5, dtype=torch.int64), mask)
    require(close(got, action_loss(predicted, windows)), f"expected {float(real.mean()):.4f}, got {got:.4f}")
    passed("the loss sees real steps only")


def check_warmup(answer: Callable[[int, int, float], float]) -> None:
    """Exercise 8.2: `answer(step, warmup, peak)` for the update after `step` finished ones."""
    warmup, peak = 10, 1e-3
    steps = np.arange(30)
    got = np.array([float(as_array(call(answer, step, warmup, peak), (), "warmup_rate(...)")) for step in range(30)])
    share = np.minimum(1.0, (steps + 1) / warmup)
    require(not close(got, share, 1e-9), "the factor peak is missing: this is the share of the peak")
    require(bool(got[: warmup - 1].any()), "it is 0 until the warm-up is over: let it rise a little with each update")
    require(got[0] > 0, "the first update has learning rate 0 and is wasted: count from step + 1")
    mistakes = {
        "it goes on rising after the warm-up: cap it at the peak": (steps + 1) / warmup,
        "it is constant: let it rise over the first `warmup` updates": np.ones(30),
        "off by one: the peak is reached an update too early; the first update gets peak / warmup": np.minimum(
            1.0, (steps + 2) / warmup
        ),
        "one update late after the first: use step + 1 throughout": np.minimum(1.0, np.maximum(steps, 1) / warmup),
        "it falls from the peak: that is a decay, the warm-up rises": np.maximum(0.0, 1 - steps / warmup),
    }
    for hint, wrong in mistakes.items():
        require(not close(got, peak * wrong, 1e-9), hint)
    require(
        bool(np.all(got[warmup:] == got[warmup])), "it changes after the warm-up: from there on the rate is the peak"
    )
    expected = peak * share
    require(
        close(got, expected, 1e-9), f"at steps 0, 4, 9, 20 expected {expected[[0, 4, 9, 20]]}, got {got[[0, 4, 9, 20]]}"
    )
    passed("linear up to the peak, constant from there")


def check_interval(answer: Callable[[np.ndarray, np.random.Generator], tuple[float, float]]) -> None:
    """Exercise 8.3: `answer(values, rng)` is the 95 % percentile bootstrap interval of the mean."""
    values = np.random.default_rng(3).normal(50.0, 20.0, size=100)
    rng, unused = np.random.default_rng(0), np.random.default_rng(0)
    low, high = as_array(call(answer, values, rng), (2,), "interval(...)")
    again = as_array(call(answer, values, np.random.default_rng(1)), (2,), "interval(...)")
    half, mean = 1.96 * values.std() / np.sqrt(len(values)), values.mean()
    require(
        not (abs(low - mean) < 0.1 * half and 0 < high < 1.3 * half),
        "return (low, high), not the mean and a half-width",
    )
    require(
        abs(high - low) > 1e-6, "no spread at all: draw with replacement, and take the mean of each resample by itself"
    )
    require(low < high, "the lower end must come first")
    require(
        not (-2.4 < (low - mean) / half < -1.45 and -1.35 < (high - mean) / half < -1.05),
        "np.percentile wants per cent, 2.5 and 97.5; np.quantile wants 0.025 and 0.975",
    )
    width = (high - low) / (2 * half)
    if 0.1 < width < 0.25:
        require(_widths_vary(answer), "a resample has as many values as the data; 4,000 is how many resamples")
    require(not 0.1 < width < 0.25, "wrong axis: average the values of a resample, not the resamples of a value")
    require(
        width < 0.9 * values.std() * 1.96 / half or width > 1.1 * values.std() * 1.96 / half,
        "this is the spread of single episodes: resample, take the mean of each resample, then quantiles",
    )
    require(width < 1.6, "far too wide: each resample has as many values as there are, not fewer")
    require(abs(width - 1.645 / 1.96) > 0.04, "this is the 90 % interval: cut off 2.5 % on each side")
    require(abs(width - 1 / 1.96) > 0.04, "this is one standard error on each side, 68 %: cut off 2.5 % on each side")
    right = abs(low - (mean - half)) < 0.15 * half and abs(high - (mean + half)) < 0.15 * half
    require(right, f"expected about {mean - half:.1f} to {mean + half:.1f}, got {low:.1f} to {high:.1f}")
    rare = np.repeat([0.0, 1.0], [9, 1])  # few ones: the percentile interval begins at 0, a symmetric one below
    below = as_array(call(answer, rare, np.random.default_rng(2)), (2,), "interval(...)")[0]
    require(
        below > -0.04,
        "with nine zeros and a one it begins below 0: take quantiles of the resamples' means, not mean ± 1.96 sd",
    )
    require(
        rng.bit_generator.state != unused.bit_generator.state and not np.array_equal(again, [low, high]),
        "rng was not used: draw the resamples with it, and do not seed your own",
    )
    passed("the interval of the mean")


def _widths_vary(answer: Callable[[np.ndarray, np.random.Generator], tuple[float, float]]) -> bool:
    """Whether the width for five values is mostly chance: so it is with five means, not with thousands."""
    values = np.array([1.0, 2.0, 4.0, 7.0, 9.0])
    ends = [as_array(call(answer, values, np.random.default_rng(seed)), (2,), "interval(...)") for seed in range(6)]
    widths = np.diff(ends, axis=1)
    return bool(widths.std() > 0.12 * widths.mean())
