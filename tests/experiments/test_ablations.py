from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dmm.errors import InputError
from dmm.experiments import ablations
from dmm.experiments.ablations import (
    CHANGES,
    Difference,
    by_seed,
    compare,
    coverage,
    load_pairs,
    markdown,
    over_windows,
    paired,
    paper_difference,
    pooled_deviation,
    power,
    seed_effect,
    seeds_needed,
)
from dmm.experiments.queue import keep_outcome
from dmm.experiments.reproduce import make_jobs
from dmm.experiments.standings import NOT_THERE, load_standings
from dmm.experiments.tables import CONTEXTS, DMM, WINDOWS, Entry, find_cells, make_tables

Keep = Callable[..., None]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Puts a seed's outcome for a cell: the same share of arrivals at its one checkpoint."""

    def put(name: str, seed: int, score: float) -> None:
        job = next(job for job in make_jobs(find_cells([name]), "small", tmp_path, tmp_path) if job.seed == seed)
        arm = {"target": 1.0, "ci95": [0.0, 100.0], "returns": f"{score} {score}"}
        row: dict[str, Any] = {"seed": seed, "data": {"reference": [0.0, 1.0]}}
        keep_outcome(job, row | {"checkpoints": [{"step": 1, "scores": [arm]}]})

    return put


def test_differences_are_of_seeds_that_both_have() -> None:
    found = paired({2: 5.0, 0: 1.0, 7: 90.0}, {0: 4.0, 2: 3.0, 1: -50.0})
    assert found.values == {0: -3.0, 2: 2.0} and found.mean == -0.5
    low, high = found.ci95 or (0.0, 0.0)
    half = stats.t.ppf(0.975, 1) * 2.5  # deviation 5 / sqrt(2), over root 2
    assert np.allclose((low, high), (-0.5 - half, -0.5 + half)) and found.sign == 0
    assert found.text() == f"-0.5 [{low:+.0f}, {high:+.0f}], 2 seeds"


def test_one_seed_has_no_interval_and_none_no_number() -> None:
    one, none = Difference({4: 3.25}), Difference({})
    assert one.ci95 is None and one.sign == 0 and one.text() == "+3.2, 1 seed"
    assert none.ci95 is None and none.sign == 0 and math.isnan(none.mean) and none.text() == NOT_THERE


def test_signs_are_of_intervals_without_zero() -> None:
    assert Difference({0: 5.0, 1: 5.1, 2: 4.9}).sign == 1
    assert Difference({0: -5.0, 1: -5.1, 2: -4.9}).sign == -1


def test_cells_are_paired_whatever_seed_is_missing(tmp_path: Path, keep: Keep) -> None:
    for entry, scores in (("dmm", {0: 0.5, 2: 0.7}), ("conv", {1: 0.9, 2: 0.4})):
        for seed, score in scores.items():
            keep(f"table3/pointmaze-umaze/{entry}", seed, score)
    row = load_standings("table3", rows=tmp_path).results["pointmaze-umaze"]
    assert by_seed(row["conv"]) == {1: 90.0, 2: 40.0}
    found = compare(row["conv"], row["dmm"], "best of all")
    assert list(found.values) == [2] and abs(found.values[2] + 30) < 1e-9
    assert compare(row["s4"], row["dmm"]).text() == NOT_THERE
    other = load_standings("table3", rows=tmp_path).results["hopper-medium"]
    with pytest.raises(InputError, match=r"^base: got a cell of dmm/hopper/medium-v0, allowed are those of dmm/point"):
        compare(row["conv"], other["dmm"])


def test_every_change_is_two_columns_of_a_table_and_changes_something() -> None:
    tables = make_tables()
    for change in CHANGES:
        entries = {entry.name: entry for entry in tables[change.table].entries}
        assert entries[change.entry].changes != entries[change.base].changes
    pairs = list(load_pairs())
    assert len(pairs) == sum(len(tables[change.table].datasets) for change in CHANGES)
    for change, dataset, changed, base in pairs:
        assert (changed.cell.entry.name, base.cell.entry.name) == (change.entry, change.base)
        assert changed.cell.dataset == base.cell.dataset and dataset in changed.cell.name


def test_the_papers_differences_are_between_its_own_numbers() -> None:
    row = load_standings("table3").results
    assert abs((paper_difference(row["kitchen-mixed"]["conv"], row["kitchen-mixed"]["dmm"]) or 0) + 8.7) < 1e-9
    assert paper_difference(row["pointmaze-umaze"]["conv"], row["pointmaze-umaze"]["dmm"]) is None


def test_the_table_holds_ours_and_the_papers_apart(tmp_path: Path, keep: Keep) -> None:
    for entry, score in (("random", 0.25), ("hippo", 0.5)):
        for seed in (0, 1):
            keep(f"table8/antmaze-umaze/{entry}", seed, score)
    standings = load_standings("table8", rows=tmp_path)
    lines = markdown(standings, "hippo").splitlines()
    assert lines[0] == "| data set |  | weights | ours | minus `hippo` | paper, on D4RL | minus `hippo` |"
    size = f"{ablations.weights(DMM):,}"
    assert (
        f"| antmaze-umaze | `random` | {size} | 25.0 [25, 25], 2 of 3 | -25.0 [-25, -25], 2 seeds | 89.3 | +1.0 |"
        in lines
    )
    assert f"|  | `hippo` | {size} | 50.0 [50, 50], 2 of 3 |  | 88.3 |  |" in lines
    assert f"| pointmaze-umaze | `random` | {size} | {NOT_THERE} | {NOT_THERE} | – | – |" in lines
    assert coverage(standings) == "2 of 6 cells have a result, 4 of 18 seeds"
    with pytest.raises(InputError, match=r"^entries: got 'dmm', allowed are random, hippo"):
        markdown(standings, "dmm")


def test_a_table_without_numbers_of_the_papers_has_no_columns_for_them(tmp_path: Path) -> None:
    text = markdown(load_standings("figure6", rows=tmp_path), "K=8, w=6", ["K=8, w=6", "K=8, w=24"])
    assert "paper" not in text and len({line.count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize(("done", "found"), [((), 0), (("K=20, w=12",), 1), (None, 12)])
def test_maps_have_gaps_where_nothing_is(tmp_path: Path, keep: Keep, done: Any, found: int) -> None:
    names = [f"K={k}, w={w}" for k in CONTEXTS for w in WINDOWS] if done is None else done
    for i, name in enumerate(names):
        keep(f"figure6/antmaze-umaze-diverse/{name}", 0, i / 20)
    standings = load_standings("figure6", rows=tmp_path)
    scores = over_windows(standings, "antmaze-umaze-diverse", lambda result: result.mean())
    assert scores.shape == (3, 4) and np.isfinite(scores).sum() == found
    if found == 1:
        assert scores[1, 2] == 0
    elif found:
        assert np.allclose(scores.ravel(), 5 * np.arange(12))
    assert np.isnan(over_windows(standings, "pointmaze-umaze", lambda result: result.mean())).all()
    with pytest.raises(InputError, match=r"^dataset: got 'maze', allowed are pointmaze-umaze, antmaze-umaze-diverse"):
        over_windows(standings, "maze", lambda result: result.mean())


def test_weights_are_those_of_a_policy() -> None:
    from dmm.inspection.cards import fresh
    from dmm.models.registry import MODELS

    for entry in (DMM, Entry("", "dmm", {"window": 24}), Entry("", "dc", {"context": 20})):
        model = MODELS[entry.model]
        policy = fresh(model, model.config_for(ablations.MAZE, entry.changes))
        assert ablations.weights(entry) == policy.parameter_count()


def test_pooled_deviations_have_a_mean_for_each_group() -> None:
    found, freedom = pooled_deviation([[1.0, 3.0], [100.0, 104.0, 108.0], [7.0], []])
    assert freedom == 3 and abs(found - math.sqrt((2 + 32) / 3)) < 1e-12
    with pytest.raises(InputError, match=r"^groups: got 2 with no two numbers"):
        pooled_deviation([[1.0], [2.0]])


def test_seeds_in_common_are_found_and_their_absence_too() -> None:
    draw = np.random.default_rng(0)
    noise, entries = draw.normal(size=(40, 5)), draw.normal(size=(40, 1))
    share, p = seed_effect(entries + noise)
    assert abs(share) < 0.1 and p > 0.01
    share, p = seed_effect(entries + noise + 3 * np.arange(5))
    assert share > 0.8 and p < 1e-6
    assert seed_effect(np.array([[1.0, 2.0], [5.0, 6.0]])) == (1.0, 0.0)
    assert seed_effect(np.ones((2, 3))) == (0.0, 1.0)
    with pytest.raises(InputError, match=r"^scores: got shape \(1, 3\)"):
        seed_effect(np.ones((1, 3)))


def test_the_share_is_what_pairing_takes_from_the_variance() -> None:
    draw = np.random.default_rng(1)
    table = draw.normal(size=(4, 9)) + draw.normal(size=9)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    apart = np.mean([(table[a] - table[b]).var(ddof=1) for a, b in pairs])
    alone = 2 * table.var(axis=1, ddof=1).mean()
    assert abs(seed_effect(table)[0] - (1 - apart / alone)) < 1e-12


def test_power_is_what_tests_find() -> None:
    draw, n, runs = np.random.default_rng(2), 7, 20_000
    first, second = draw.normal(0, 3, (runs, n)), draw.normal(4, 3, (runs, n))
    found = (stats.ttest_ind(first, second, axis=1).pvalue < 0.05).mean()
    assert abs(power(n, 4, 3) - found) < 4 * math.sqrt(0.25 / runs)
    assert abs(power(n, 0, 3) - 0.05) < 1e-9 and power(n, -4, 3) == power(n, 4, 3)
    assert power(2, 1e6, 0.01) == 1


@pytest.mark.parametrize(
    ("difference", "deviation", "wanted"), [(5, 9.2, 0.8), (20, 9.2, 0.8), (-3, 1.1, 0.95), (9, 1, 0.5)]
)
def test_seeds_needed_are_the_fewest(difference: float, deviation: float, wanted: float) -> None:
    n = seeds_needed(difference, deviation, wanted)
    assert power(n, difference, deviation) >= wanted
    assert n == 2 or power(n - 1, difference, deviation) < wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (partial(power, 1, 5, 9), "^seeds: got 1"),
        (partial(power, 3, math.nan, 9), "^difference: got"),
        (partial(power, 3, 5, 0), "^deviation: got 0, allowed are numbers over 0"),
        (partial(power, 3, 5, 9, 1.0), "^level: got 1.0"),
        (partial(seeds_needed, 0, 9), "^difference: got 0, which more than 100,000 seeds"),
        (partial(seeds_needed, 5, 9, 1.0), "^wanted: got 1.0"),
    ],
)
def test_what_cannot_be_is_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()
