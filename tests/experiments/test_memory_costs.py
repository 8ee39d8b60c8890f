"""What the costs of memories are read from, and that the command writes it. No test depends on a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmm.experiments import load_result, memory_costs
from dmm.experiments.memory_costs import CONTEXTS, FLAT, PAPER, SYSTEMS, Costs, crossings, paper_rows, read_costs
from tests.close import assert_same_but_for_rounding


def made(**us: list[float]) -> Costs:
    contexts = np.array([100.0, 1_000.0, 10_000.0])
    columns = {name: np.array(values) for name, values in us.items()}
    memory = {name: values * 2 for name, values in columns.items()}
    return Costs(contexts, columns, memory, {}, dict.fromkeys(us, ""))


def test_crossings_by_hand() -> None:
    nan = float("nan")
    costs = made(flat=[5.0, 5.0, 5.0], linear=[0.5, 5.0, 50.0], square=[5e-2, 5.0, nan], dear=[60.0, 60.0, 60.0])
    assert costs.crossing("linear", "flat") == pytest.approx(1_000.0)
    assert costs.crossing("flat", "linear") is None and costs.crossing("dear", "flat") == 0.0
    assert costs.crossing("square", "flat") is None  # where both are measured it is not dearer yet
    half = made(flat=[5.0, 5.0, 5.0], linear=[5 / 10**1.5, 5 / 10**0.5, 5 * 10**0.5])
    assert half.crossing("linear", "flat") == pytest.approx(10**3.5)
    assert costs.at("linear", 10**2.5) == pytest.approx(0.5 * 10**0.5) and np.isnan(costs.at("square", 5_000))
    assert costs.over("dear", "flat").tolist() == [12.0, 12.0, 12.0]
    found = {(row["of"], row["system"], row["takes_more_than"]) for row in crossings(costs)}
    assert found == {(of, "linear", "flat") for of in ("us", "memory")}


def test_longer_contexts_by_hand() -> None:
    points = [{"context": T, "us": {"median": 3.0 * T + 2.0 * T**2}, "memory": 1} for T in (1, 10)]
    result = {"settings": {"contexts": [1, 10, 100]}, "systems": {"ad": {"label": "", "points": points}}}
    costs = read_costs(result)
    np.testing.assert_allclose(costs.extrapolated["ad"], [np.nan, np.nan, 20_300.0])
    assert np.isnan(costs.us["ad"][2])


def test_what_the_papers_print() -> None:
    """The factors that both papers print beside a transformer's minutes are those over IDT."""
    rows = {row["task"]: row for row in paper_rows()}
    printed = {"large-darkroom": 9, "large-darkroom-hard": 7, "large-darkroom-dynamic": 8, "large-key-to-door": 12}
    printed |= {"halfcheetah": 28, "walker2d": 26, "hopper": 26}
    assert {task: round(rows[task]["ad_over_idt"]) for task in printed} == printed
    assert rows["halfcheetah"]["ad_over_ad-mamba"] > rows["halfcheetah"]["ad_over_idt"] and rows.keys() == PAPER.keys()


def check(result: dict[str, Any], contexts: tuple[int, ...]) -> None:
    assert result["systems"].keys() == SYSTEMS.keys() and tuple(result["settings"]["contexts"]) == contexts
    costs = read_costs(result)
    for name in SYSTEMS:
        known = np.isfinite(costs.us[name])
        assert known.all() or (SYSTEMS[name].full and known[:2].all())
        assert (costs.us[name][known] > 0).all() and (costs.memory[name][known] > 0).all()
        if SYSTEMS[name].constant:
            assert len(set(costs.memory[name].tolist())) == 1
    assert_same_but_for_rounding(result["crossings"], crossings(costs))
    assert len(result["paper"]) == len(PAPER)


def test_the_command_writes_its_file(tmp_path: Path) -> None:
    memory_costs.main(["--quick", "--out", str(tmp_path / "costs.json")])
    result = json.loads((tmp_path / "costs.json").read_text())
    check(result, memory_costs.QUICK)
    assert result["flat"]["dmh"]["steps"] == [10, 100]


def test_the_committed_file() -> None:
    result = load_result("memory_costs")
    check(result, CONTEXTS)
    costs = read_costs(result)
    assert all(row["steps"] == list(FLAT) for row in result["flat"].values())
    cached = costs.memory["ad cached"]
    assert cached[-1] / cached[0] == pytest.approx(200, rel=0.05)  # in proportion to the context
