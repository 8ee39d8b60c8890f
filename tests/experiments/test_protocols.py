"""Reporting protocols: what each reads from a run's scores, and what selection does where nothing differs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dmm.errors import InputError
from dmm.experiments.protocols import (
    PROTOCOLS,
    RunScores,
    best_of_all,
    best_of_checkpoints,
    expected_maximum,
    flattery_of_equals,
    last_checkpoint,
    split_selection,
)

SCORES = [  # three checkpoints, two targets, means 3, 1 / 7, 9 / 4, 8
    [np.array([2.0, 4.0]), np.array([0.0, 2.0])],
    [np.array([7.0, 7.0]), np.array([9.0, 9.0])],
    [np.array([4.0, 4.0]), np.array([6.0, 10.0])],
]
CHECKPOINTS, TARGETS, EPISODES = 10, 4, 20
ARMS = CHECKPOINTS * TARGETS


# split: 9 is the best of the first episodes and has 9 in the second, 10 of the second ones and has 6 in the first
@pytest.mark.parametrize(
    ("protocol", "score"), [(last_checkpoint, 4), (best_of_checkpoints, 7), (best_of_all, 9), (split_selection, 7.5)]
)
def test_what_each_reads(protocol: Callable[[RunScores], float], score: float) -> None:
    assert protocol(SCORES) == score and protocol(np.array(SCORES)) == score
    assert type(protocol(SCORES)) is float


def test_table_holds_all_four() -> None:
    functions = [last_checkpoint, best_of_checkpoints, best_of_all, split_selection]
    assert [protocol.score for protocol in PROTOCOLS.values()] == functions
    descriptions = [protocol.description for protocol in PROTOCOLS.values()]
    assert len(set(descriptions)) == 4 and not any("\n" in text or len(text) < 20 for text in descriptions)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_agree_where_there_is_no_choice(protocol: Any) -> None:
    (episodes,) = np.random.default_rng(0).normal(50, 10, size=(1, 12))
    assert protocol.score([[episodes]]) == pytest.approx(episodes.mean())


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_shift_and_scale_go_through(protocol: Any) -> None:
    scores = np.random.default_rng(1).normal(50, 10, size=(3, 2, 12))
    assert protocol.score(3 * scores - 20) == pytest.approx(3 * protocol.score(scores) - 20)


class TestSplitSelection:
    def test_an_arm_far_ahead_keeps_its_mean(self) -> None:
        scores = np.random.default_rng(0).normal(size=(3, 2, 10))
        scores[1, 1] += 100
        assert split_selection(scores) == pytest.approx(scores[1, 1].mean()) == pytest.approx(best_of_all(scores))

    def test_arms_that_tie_share_the_choice(self) -> None:
        """On either half the first two arms tie, and the third never is the best."""
        scores = np.array([[[1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]]])
        assert split_selection(scores) == split_selection(scores[:, ::-1]) == 0.5
        # chosen on the second episode, where both have 5: 0 or 8 in the first; chosen on the first, the second arm's 5
        assert split_selection(np.array([[[0.0, 5.0], [8.0, 5.0]]])) == pytest.approx((4 + 5) / 2)

    def test_seed_repeats_it(self) -> None:
        scores = np.random.default_rng(0).normal(size=(4, 2, 9))
        first = split_selection(scores, seed=1)
        assert split_selection(scores, seed=1) == first == split_selection(scores.tolist(), seed=1)
        assert split_selection(scores, seed=2) != first

    def test_hangs_little_on_the_halvings(self) -> None:
        """Its scatter over seeds is small beside its scatter over runs."""
        generator = np.random.default_rng(0)
        runs = [generator.normal(size=(4, 2, 20)) for _ in range(20)]
        over_seeds = np.std([split_selection(runs[0], seed=seed) for seed in range(20)])
        assert 0 < over_seeds < 0.2 * np.std([split_selection(run) for run in runs])

    def test_is_unbiased_where_the_maximum_is_not(self) -> None:
        """Equal arms. Each mean over runs is known to its standard error, a tenth of the maximum's bias or less."""
        generator, true, spread, runs = np.random.default_rng(0), 50.0, 10.0, 80
        scores = generator.normal(true, spread, size=(runs, CHECKPOINTS, TARGETS, EPISODES))
        error = spread / math.sqrt(EPISODES)  # of an arm's mean
        for protocol, expected in (
            (last_checkpoint, 0.0),
            (best_of_checkpoints, error * expected_maximum(CHECKPOINTS)),
            (best_of_all, error * expected_maximum(ARMS)),
            (split_selection, 0.0),
        ):
            excess = np.array([protocol(run) for run in scores]) - true
            uncertain = excess.std(ddof=1) / math.sqrt(runs)
            assert uncertain < error * expected_maximum(ARMS) / 10
            assert excess.mean() == pytest.approx(expected, abs=3 * uncertain), protocol.__name__

    def test_never_expects_more_than_the_best_arm(self) -> None:
        """Arms that differ by about an error: the choice gains on the mean arm and stays below the best."""
        generator, runs = np.random.default_rng(0), 80
        true = np.linspace(0, 2, 8)
        scores = true[:, None] + generator.normal(0, math.sqrt(EPISODES), size=(runs, 8, EPISODES))
        found = np.array([split_selection(run[:, None]) for run in scores])
        uncertain = found.std(ddof=1) / math.sqrt(runs)
        assert true.mean() + 3 * uncertain < found.mean() < true.max() - 3 * uncertain
        assert np.mean([best_of_all(run[:, None]) for run in scores]) > true.max() + 3 * uncertain


class TestExpectedMaximum:
    @pytest.mark.parametrize(
        ("k", "known", "digits"),
        [
            (1, 0, 1e-12),
            (2, 1 / math.sqrt(math.pi), 1e-12),
            (3, 3 / (2 * math.sqrt(math.pi)), 1e-12),
            (10, 1.53875, 5e-6),
            (40, 2.16078, 5e-6),
        ],
    )
    def test_known_values(self, k: int, known: float, digits: float) -> None:
        assert expected_maximum(k) == pytest.approx(known, rel=0, abs=digits)

    def test_large_k(self) -> None:
        """Grows for ever, below the bound `sqrt(2 ln k)`."""
        found = [expected_maximum(10**power) for power in range(7)]
        assert (np.diff(found) > 0).all() and found[-1] < math.sqrt(2 * math.log(10**6))

    def test_correlated_arms_have_less(self) -> None:
        generator, rho, k, runs = np.random.default_rng(0), 0.75, 10, 20_000
        shared, own = generator.normal(size=(runs, 1)), generator.normal(size=(runs, k))
        maxima = (math.sqrt(rho) * shared + math.sqrt(1 - rho) * own).max(axis=1)
        uncertain = maxima.std() / math.sqrt(runs)
        assert maxima.mean() == pytest.approx(math.sqrt(1 - rho) * expected_maximum(k), abs=3 * uncertain)

    @pytest.mark.parametrize("k", [0, -1, 2.5, "3", 10**6 + 1])
    def test_bad_k(self, k: Any) -> None:
        with pytest.raises(InputError, match=r"^k: got"):
            expected_maximum(k)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "scores: got no checkpoints"),
        (None, "scores: got NoneType, allowed is a list of checkpoints"),
        (np.array(1.0), "scores: got ndarray"),
        ([[]], r"scores\[0\]: got no targets"),
        ([[np.ones(2)], []], r"scores\[1\]: got no targets"),
        ([[np.ones(2)], [np.ones(2), np.ones(2)]], r"scores\[1\]: got 2 targets, allowed are as many .* 1$"),
        ([[np.ones(2), np.ones(3)]], r"scores\[0\]\[1\]: got 3 episodes, allowed are as many .* 2$"),
        ([[np.ones(2)], [np.empty(0)]], r"scores\[1\]\[0\]: got no episodes"),
        (np.empty((1, 1, 0)), r"scores\[0\]\[0\]: got no episodes"),
        (np.ones((2, 3)), r"scores\[0\]\[0\]: got shape \(\)"),
        (np.ones(2), r"scores\[0\]: got float64"),
        ([[np.ones((2, 2))]], r"scores\[0\]\[0\]: got shape \(2, 2\)"),
        ([[np.array([1.0, np.nan])]], r"scores\[0\]\[0\]: got NaN at \[1\]"),
        ([[["good", "bad"]]], r"scores\[0\]\[0\]: got something else than numbers"),
    ],
)
def test_bad_scores_are_named(protocol: Any, scores: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        protocol.score(scores)


def test_bad_split_is_named() -> None:
    with pytest.raises(InputError, match=r"^scores: got 1 episode of each arm, allowed are at least 2"):
        split_selection([[np.ones(1)]])
    with pytest.raises(InputError, match=r"^seed: got -1"):
        split_selection(SCORES, seed=-1)


class TestFlatteryOfEquals:
    @pytest.mark.parametrize("shared", [0.0, 0.6])
    def test_is_what_the_best_of_equals_exceeds_their_value_by(self, shared: float) -> None:
        """`shared` is the part of an episode's variance that all arms have in common: their correlation."""
        generator, runs = np.random.default_rng(3), 400
        common = generator.normal(size=(runs, 1, 1, 25)) * math.sqrt(shared)
        scores = 40 + 10 * (common + generator.normal(size=(runs, 5, 3, 25)) * math.sqrt(1 - shared))
        told = np.array([flattery_of_equals(run) for run in scores])
        assert told.mean() == pytest.approx(10 / 5 * math.sqrt(1 - shared) * expected_maximum(15), rel=0.02)
        excess = np.array([best_of_all(run) for run in scores]) - 40
        assert excess.mean() == pytest.approx(told.mean(), abs=4 * excess.std() / math.sqrt(runs))

    def test_nothing_where_nothing_can_be_chosen(self) -> None:
        same = np.random.default_rng(0).normal(size=9)
        assert flattery_of_equals([[same]]) == 0 and flattery_of_equals([[same, same], [same, same]]) == 0

    def test_one_episode_says_nothing(self) -> None:
        with pytest.raises(InputError, match=r"^scores: got 1 episode of each arm"):
            flattery_of_equals(np.ones((2, 1, 1)))
