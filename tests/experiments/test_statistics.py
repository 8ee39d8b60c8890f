"""Statistics over tasks and runs: rliable's numbers, the ranks of DMM's tables, and what must hold for any scores.

`tests/golden/rliable.json` has a made-up table, two methods with 5 runs of 9 tasks each, and what rliable 1.2.0 makes
of it; its intervals are of 50,000 resamples.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dmm.errors import InputError
from dmm.experiments import statistics
from dmm.experiments.statistics import (
    CONFIDENCE,
    Estimate,
    aggregates,
    average_ranks,
    average_ranks_of_runs,
    interquartile_mean,
    mean_score,
    median_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rliable.json").read_text())
METHODS = {name: np.array(GOLDEN[name]) for name in "ab"}
AGGREGATES = {
    "iqm": interquartile_mean,
    "mean": mean_score,
    "median": median_score,
    "optimality_gap": optimality_gap,
}

whole_scores = st.integers(-50, 150)  # few enough to tie, and whole, so that sums are exact in any order
run_lists = st.lists(st.lists(whole_scores, min_size=1, max_size=6), min_size=1, max_size=5)


def arrays(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(each, dtype=np.float64) for each in lists]


def close(a: Any, b: Any) -> Any:
    return a == pytest.approx(b, rel=0, abs=1e-9)


class TestAgainstRliable:
    @pytest.mark.parametrize("method", "ab")
    def test_aggregates(self, method: str) -> None:
        found = aggregates(METHODS[method], resamples=10)
        for name, function in AGGREGATES.items():
            theirs = GOLDEN["optimality_gap_100" if name == "optimality_gap" else name][method]
            assert close(function(METHODS[method]), theirs) and close(found[name].value, theirs)

    @pytest.mark.parametrize("method", "ab")
    def test_interval(self, method: str) -> None:
        """Theirs is drawn anew by other random numbers: 0.3 is several times what such an end scatters by."""
        low, high = aggregates(METHODS[method])["iqm"].ci95 or (0, 0)
        assert (low, high) == pytest.approx(GOLDEN["iqm_ci95_stratified_bootstrap_50000"][method], rel=0, abs=0.3)

    def test_probability_of_improvement(self) -> None:
        found = probability_of_improvement(METHODS["a"], METHODS["b"], resamples=10)
        assert close(found.value, GOLDEN["probability_of_improvement_a_over_b"])


class TestAggregates:
    @given(run_lists)
    def test_interquartile_mean_is_scipys_of_all_runs(self, lists: list[list[int]]) -> None:
        assert close(interquartile_mean(arrays(lists)), stats.trim_mean(np.concatenate(lists), 0.25))

    def test_interquartile_mean_forgives_outliers(self) -> None:
        assert interquartile_mean(np.array([[1.0], [2.0], [4.0], [1e9]])) == 3
        assert interquartile_mean(np.array([[1.0], [2.0], [6.0]])) == 3  # too few to leave one out

    @given(run_lists)
    def test_each_task_counts_alike_in_the_others(self, lists: list[list[int]]) -> None:
        tasks = arrays(lists)
        means = [task.mean() for task in tasks]
        assert close(mean_score(tasks), np.mean(means)) and close(median_score(tasks), np.median(means))
        assert close(optimality_gap(tasks, 40), np.mean([np.maximum(40 - task, 0).mean() for task in tasks]))

    @given(run_lists, st.randoms(use_true_random=False))
    def test_order_of_runs_and_tasks_changes_nothing(self, lists: list[list[int]], random: Any) -> None:
        shuffled = [random.sample(runs, len(runs)) for runs in random.sample(lists, len(lists))]
        for function in AGGREGATES.values():
            assert close(function(arrays(shuffled)), function(arrays(lists)))

    @given(run_lists, st.integers(-20, 20), st.integers(1, 5))
    def test_shift_and_scale_go_through(self, lists: list[list[int]], shift: int, scale: int) -> None:
        tasks = arrays(lists)
        moved = [scale * task + shift for task in tasks]
        for function in (interquartile_mean, mean_score, median_score):
            assert close(function(moved), scale * function(tasks) + shift)
        assert close(optimality_gap(moved, scale * 60 + shift), scale * optimality_gap(tasks, 60))

    def test_gap_makes_up_for_nothing(self) -> None:
        assert optimality_gap(np.array([[50.0, 1000.0]])) == 25 and optimality_gap(np.array([[100.0, 1000.0]])) == 0

    def test_matrix_is_a_list_of_its_columns(self) -> None:
        matrix = METHODS["a"]
        assert aggregates(matrix, resamples=50) == aggregates(list(matrix.T), resamples=50)


class TestIntervals:
    def test_seed_repeats_them(self) -> None:
        first, again, other = (aggregates(METHODS["a"], seed=seed, resamples=200) for seed in (3, 3, 4))
        assert (
            first == again and first["mean"].value == other["mean"].value and first["mean"].ci95 != other["mean"].ci95
        )

    def test_memory_does_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whether all resamples are taken at once or seven at a time."""
        a, b = METHODS["a"], list(METHODS["b"].T)
        b[2] = b[2][:3]

        def intervals() -> list[Any]:
            improvement = probability_of_improvement(a, b, resamples=100)
            ranks = average_ranks_of_runs([a, b], resamples=100)
            profile = performance_profile(a, [50], resamples=100)
            return [aggregates(a, resamples=100), improvement, ranks, profile.ci95]

        at_once = intervals()
        monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 7 * 45)
        assert intervals() == at_once

    @pytest.mark.parametrize(
        "call",
        [
            lambda: aggregates(np.ones((1000, 4)), resamples=1000),
            lambda: probability_of_improvement(np.ones((100, 4)), np.zeros((100, 4)), resamples=1000),
            lambda: performance_profile(np.ones((100, 4)), np.arange(400), resamples=200),
            lambda: average_ranks_of_runs([np.ones((2, 4))] * 150, resamples=60),
        ],
        ids=["aggregates", "improvement", "profile", "ranks"],
    )
    def test_memory_is_bounded(self, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Each call has 4 to 40 million numbers to look at, and no more than 64 thousand at once."""
        monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 2**16)
        tracemalloc.start()
        try:
            call()
            assert tracemalloc.get_traced_memory()[1] < 2**22
        finally:
            tracemalloc.stop()

    def test_runs_stay_within_their_task(self) -> None:
        """Runs of a task agree, tasks do not: nothing moves, whereas resampled tasks would."""
        found = aggregates(np.array([[0.0, 50.0, 90.0]] * 4), resamples=100)
        assert all(each.ci95 == (each.value, each.value) for each in found.values())

    def test_one_task_is_the_bootstrap_of_its_mean(self) -> None:
        runs = np.random.default_rng(0).normal(60, 10, size=8)
        found = aggregates(runs[:, None])
        theirs = stats.bootstrap((runs,), np.mean, method="percentile", rng=1).confidence_interval
        # an end of 10,000 resamples scatters by 0.03 standard errors of the mean, 0.1 here
        assert found["mean"].ci95 == pytest.approx((theirs.low, theirs.high), abs=0.5)
        assert found["mean"] == found["median"]

    @pytest.mark.parametrize("scores", [np.array([[1.0, 2.0]]), [np.array([1.0, 2.0, 3.0]), np.array([4.0])]])
    def test_none_where_a_task_has_a_single_run(self, scores: statistics.Scores) -> None:
        found = aggregates(scores)
        assert [each.ci95 for each in found.values()] == [None] * 4
        assert found["mean"] == Estimate(mean_score(scores), None)
        assert probability_of_improvement(scores, scores).ci95 is None
        assert probability_of_improvement([np.arange(3.0)] * 2, scores).ci95 is None
        assert performance_profile(scores, [1]).ci95 is None
        assert [each.ci95 for each in average_ranks_of_runs([scores, [np.arange(3.0)] * 2])] == [None, None]

    def test_coverage_is_what_few_runs_allow(self) -> None:
        """Resamples of `n` runs have `(n - 1) / n` of the variance, known with `tasks (n - 1)` degrees of freedom."""
        generator, runs, tasks, trials, true = np.random.default_rng(0), 5, 9, 400, 50.0
        covered = 0
        for seed in range(trials):
            scores = true + generator.normal(size=(runs, tasks)) * np.linspace(8, 12, tasks)
            low, high = aggregates(scores, seed=seed, resamples=400)["mean"].ci95 or (0, 0)
            covered += low <= true <= high
        reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt((runs - 1) / runs)
        expected = 1 - 2 * stats.t.sf(reach, tasks * (runs - 1))
        assert 0.9 < expected < 0.93
        assert covered / trials == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / trials))


class TestProbabilityOfImprovement:
    @given(run_lists, st.data())
    def test_is_the_mean_of_mann_whitneys(self, lists: list[list[int]], data: st.DataObject) -> None:
        others = [data.draw(st.lists(whole_scores, min_size=1, max_size=6)) for _ in lists]
        a, b = arrays(lists), arrays(others)
        theirs = np.mean([stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(a, b, strict=True)])
        found = probability_of_improvement(a, b, resamples=1)
        assert close(found.value, theirs)
        assert close(probability_of_improvement(b, a, resamples=1).value, 1 - theirs)
        cubed = [x**3 for x in a], [y**3 for y in b]  # only the order counts
        assert close(probability_of_improvement(*cubed, resamples=1).value, theirs)

    def test_ends(self) -> None:
        low, high = np.zeros((3, 2)), np.ones((4, 2))
        assert probability_of_improvement(high, low) == Estimate(1.0, (1.0, 1.0))
        assert probability_of_improvement(low, high) == Estimate(0.0, (0.0, 0.0))
        assert probability_of_improvement(low, low) == Estimate(0.5, (0.5, 0.5))

    def test_interval_holds_the_value(self) -> None:
        found = probability_of_improvement(METHODS["a"], METHODS["b"])
        assert found.ci95 is not None and 0 < found.ci95[0] < found.value < found.ci95[1] < 1

    def test_both_methods_are_resampled(self) -> None:
        """Runs of one method that agree leave the other's to scatter."""
        still, moving = np.full((3, 1), 0.5), np.array([[0.0], [1.0], [0.0], [1.0]])
        for found in (probability_of_improvement(still, moving), probability_of_improvement(moving, still)):
            assert found.value == 0.5 and found.ci95 == (0.0, 1.0)


class TestPerformanceProfile:
    def test_shares(self) -> None:
        tasks = [np.array([10.0, 20.0]), np.array([20.0, 20.0, 30.0, 40.0])]
        found = performance_profile(tasks, [0, 10, 20, 40])
        # per task 1, 1/2, 0, 0 and 1, 1, 1/2, 0: a score equal to the threshold is not above it
        assert found.shares.tolist() == [1, 0.75, 0.25, 0]
        assert found.thresholds.tolist() == [0, 10, 20, 40]

    def test_bands(self) -> None:
        found = performance_profile(METHODS["a"], np.linspace(0, 120, 25))
        assert found.ci95 is not None
        low, high = found.ci95
        assert (low <= found.shares).all() and (found.shares <= high).all()
        assert all((np.diff(curve) <= 0).all() for curve in (low, found.shares, high))
        assert low[0] == high[0] == 1 and low[-1] == high[-1] == 0 and (high - low).max() > 0.1

    def test_area_below_is_the_mean(self) -> None:
        step = 0.01
        found = performance_profile(METHODS["a"], np.arange(0, 120, step), resamples=2)
        assert found.shares.sum() * step == pytest.approx(mean_score(METHODS["a"]), abs=step)


TABLE_1 = {  # DMM's paper, table 1: MuJoCo's nine data sets, and the ranks in its last row
    "TD3+BC": ([59.3, 60.9, 98.0, 83.7, 81.8, 110.1, 48.3, 44.6, 90.7], 3.78),
    "CQL": ([58.5, 95.0, 105.4, 72.5, 77.2, 108.8, 44.0, 45.5, 91.6], 4.11),
    "DT": ([68.4, 82.5, 108.7, 76.6, 65.9, 109.0, 42.8, 39.1, 85.5], 5.89),
    "QLDT": ([66.5, 52.1, 94.2, 67.1, 58.2, 101.7, 42.3, 35.6, 79.0], 8.44),
    "EDT": ([70.4, 89.4, 104.7, 75.8, 73.3, 107.8, 43.0, 37.8, 89.7], 5.56),
    "DC": ([91.2, 87.8, 110.1, 79.6, 77.1, 109.2, 43.0, 41.1, 93.1], 2.89),
    "DS4": ([54.7, 49.6, 110.8, 78.0, 69.0, 105.7, 42.5, 15.2, 92.7], 6.44),
    "DM": ([86.2, 81.7, 111.0, 77.6, 72.5, 108.3, 42.8, 39.8, 90.6], 4.89),
    "DMM": ([96.2, 95.0, 110.2, 83.6, 74.1, 110.2, 43.0, 41.1, 92.6], 2.33),
}
TABLE_2 = {  # table 2: AntMaze umaze, umaze-diverse and their mean; kitchen complete, partial, mixed and their mean
    "TD3+BC": ([78.6, 71.4, 75.0, 25.0, 38.3, 45.1, 36.1], 6.00),
    "CQL": ([74.0, 84.0, 79.0, 43.8, 49.8, 51.0, 48.2], 4.43),
    "IQL": ([87.5, 62.2, 74.9, 62.5, 46.3, 51.0, 53.3], 4.57),
    "DT": ([53.6, 42.2, 47.9, 46.5, 31.4, 25.8, 34.6], 9.43),
    "QLDT": ([67.2, 62.2, 64.7, 38.8, 36.9, 17.7, 30.5], 8.57),
    "WT": ([64.9, 71.5, 68.2, 49.2, 63.8, 70.9, 61.3], 4.85),
    "DC": ([85.0, 78.5, 81.8, 67.1, 73.6, 71.8, 70.8], 2.29),
    "DS4": ([63.4, 64.6, 64.0, 36.3, 52.9, 47.7, 45.6], 7.57),
    "DM": ([68.0, 62.0, 65.0, 46.7, 61.7, 59.3, 55.9], 6.00),
    "DMM": ([91.0, 94.0, 92.5, 76.0, 80.5, 83.0, 79.8], 1.00),
}


class TestAverageRanks:
    def test_paper_ranks_ties_by_the_best_place(self) -> None:
        """Table 1, to its two digits in every column; those that tie share the better rank there."""
        scores, ranks = (np.array(part) for part in zip(*TABLE_1.values(), strict=True))
        assert np.abs(average_ranks(scores, ties="min") - ranks).max() < 0.0051
        usual = dict(zip(TABLE_1, average_ranks(scores).round(2), strict=True))
        assert (usual["DMM"], usual["DC"], usual["QLDT"]) == (2.56, 3.06, 8.44)

    def test_second_table_counts_its_means_as_tasks(self) -> None:
        """Its ranks are sevenths, five data sets and two means, but only these two follow from its scores."""
        scores, ranks = (np.array(part) for part in zip(*TABLE_2.values(), strict=True))
        assert np.abs(7 * ranks - np.round(7 * ranks)).max() < 0.06
        right = np.abs(average_ranks(scores, ties="min") - ranks) < 0.011
        assert [name for name, same in zip(TABLE_2, right, strict=True) if same] == ["DC", "DMM"]

    @given(
        st.integers(1, 5).flatmap(
            lambda tasks: st.lists(st.lists(st.integers(0, 4), min_size=tasks, max_size=tasks), min_size=1, max_size=6)
        )
    )
    def test_are_scipys(self, table: list[list[int]]) -> None:
        for ties, method in (("mean", "average"), ("min", "min")):
            theirs = stats.rankdata(-np.array(table), method=method, axis=0).mean(axis=1)
            assert average_ranks(table, ties=ties) == pytest.approx(theirs)  # type: ignore[arg-type]

    def test_mean_of_all_is_fixed(self) -> None:
        table = np.random.default_rng(0).integers(0, 5, size=(6, 20))
        assert average_ranks(table).mean() == pytest.approx(3.5)
        assert average_ranks(table, ties="min").mean() < 3.4  # with shared places, no longer

    def test_missing_cells_are_left_out(self) -> None:
        table = [[3, 9, None], [2, np.nan, 5], [1, 8, 4]]
        # first task 1, 2, 3; second 1, -, 2; third -, 1, 2
        assert average_ranks(table).tolist() == [1, 1.5, pytest.approx(7 / 3)]  # type: ignore[arg-type]
        cells = [
            [None if not np.isfinite(cell) else np.full(2, cell) for cell in row] for row in np.array(table, float)
        ]
        found = average_ranks_of_runs(cells, resamples=20)
        assert [each.value for each in found] == average_ranks(table).tolist()  # type: ignore[arg-type]
        assert all(each.ci95 == (each.value, each.value) for each in found)

    def test_of_runs_are_those_of_their_means(self) -> None:
        found = average_ranks_of_runs(list(METHODS.values()))
        means = np.stack([scores.mean(axis=0) for scores in METHODS.values()])
        assert [each.value for each in found] == average_ranks(means).tolist()
        (low, high), (other_low, other_high) = (each.ci95 or (0, 0) for each in found)
        assert 1 <= low < found[0].value < high <= 2
        assert (low, high) == pytest.approx((3 - other_high, 3 - other_low))  # of two, one's loss is the other's gain

    def test_tie_rule_reaches_runs(self) -> None:
        same = [np.ones((2, 3))] * 3
        assert [each.value for each in average_ranks_of_runs(same, resamples=2)] == [2, 2, 2]
        assert [each.value for each in average_ranks_of_runs(same, ties="min", resamples=2)] == [1, 1, 1]


GOOD = np.ones((3, 2))


@pytest.mark.parametrize("function", [*AGGREGATES.values(), aggregates])
@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "scores: got no tasks"),
        (np.empty((0, 3)), r"scores: got shape \(0, 3\)"),
        (np.ones(3), r"scores: got shape \(3,\), allowed is an array \(runs, tasks\)"),
        (np.array(1.0), r"scores: got shape \(\)"),
        ([[1.0, 2.0], [3.0, 4.0]], r"scores\[0\]: got list, allowed is an array \(runs,\)"),
        ([np.ones(2), np.empty(0)], r"scores\[1\]: got shape \(0,\)"),
        ([np.ones(2), None], r"scores\[1\]: got NoneType"),
        (np.array([[1, 2], [3, np.nan]]), r"scores: got NaN at \[1, 1\]"),
        ([np.ones(1), np.array([-np.inf])], r"scores\[1\]: got infinity at \[0\]"),
        (np.array([["1", "2"]]), "scores: got something else than numbers"),
        ("scores", "scores: got str"),
        (3, "scores: got int, allowed is a list of tasks"),
    ],
)
def test_bad_scores_are_named(function: Callable[[Any], Any], scores: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        function(scores)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: probability_of_improvement(GOOD, np.ones((3, 3))), "b: got 3 tasks, allowed are as many as a has, 2"),
        (lambda: probability_of_improvement(GOOD * np.nan, GOOD), "a: got NaN"),
        (lambda: probability_of_improvement(GOOD, []), "b: got no tasks"),
        (lambda: performance_profile(GOOD, []), "thresholds: got shape"),
        (lambda: performance_profile(GOOD, 3), "thresholds: got shape"),  # type: ignore[arg-type]
        (lambda: performance_profile(GOOD, [0, np.nan]), r"thresholds: got NaN at \[1\]"),
        (lambda: performance_profile(GOOD, ["all"]), "thresholds: got something else"),  # type: ignore[list-item]
        (lambda: average_ranks([]), "table: got shape"),
        (lambda: average_ranks([1, 2]), "table: got shape"),  # type: ignore[list-item]
        (lambda: average_ranks([[1, 2], [3]]), "table: got something else than numbers in equal rows"),
        (lambda: average_ranks([[1, 2], [3, np.inf]]), r"table: got infinity at \[1, 1\]"),
        (lambda: average_ranks([[1, 2], [np.nan, np.nan]]), r"table\[1\]: got a method without any task"),
        (lambda: average_ranks([[1, 2]], ties="dense"), "ties: got 'dense', allowed are mean, min"),  # type: ignore[arg-type]
        (lambda: average_ranks_of_runs([]), "runs: got no methods"),
        (lambda: average_ranks_of_runs([GOOD, np.ones((3, 3))]), r"runs\[1\]: got 3 tasks, allowed are as many"),
        (lambda: average_ranks_of_runs([GOOD, []]), r"runs\[1\]: got no tasks"),
        (lambda: average_ranks_of_runs([[None], [np.ones(2)]]), r"runs\[0\]: got a method without any task"),
        (lambda: average_ranks_of_runs([[np.ones(2)], [np.array([1, np.nan])]]), r"runs\[1\]\[0\]: got NaN at \[1\]"),
        (lambda: average_ranks_of_runs([GOOD], ties="max"), "ties: got 'max'"),  # type: ignore[arg-type]
        (lambda: aggregates(GOOD, resamples=0), "resamples: got 0"),
        (lambda: aggregates(GOOD, seed=-1), "seed: got -1"),
        (lambda: aggregates(GOOD[:1], seed=-1), "seed: got -1"),
        (lambda: aggregates(GOOD, gamma=np.nan), "gamma: got nan"),
        (lambda: optimality_gap(GOOD, "100"), "gamma: got '100'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        call()


def test_neither_pandas_nor_torch_is_imported() -> None:
    code = (
        "import sys, dmm.experiments.statistics, dmm.experiments.protocols;"
        "print({'pandas', 'rliable', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
