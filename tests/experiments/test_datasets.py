"""The table of all data sets: its rows are what the data say, and a second run does not make them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dmm.data.collect import collect
from dmm.data.recipes import RECIPES
from dmm.data.scores import normalize
from dmm.data.trajectories import load_trajectories
from dmm.experiments import datasets

MAZE = RECIPES["dmm/pointmaze/umaze-v0"]


def test_a_row_is_what_the_data_say(datasets_path: Path) -> None:
    made = collect(MAZE, transitions=2000, workers=1, progress=False)
    data = load_trajectories(MAZE.name)
    row = datasets.describe(MAZE, made, data)
    assert json.loads(json.dumps(row)) == row
    returns = data.returns()
    assert (row["transitions"], row["episodes"]) == (data.transitions, data.episodes)
    assert row["return_mean"] == returns.mean() and row["return_std"] == returns.std()
    assert row["normalized_mean"] == pytest.approx(normalize(returns.mean(), MAZE.reference))
    assert row["normalized_std"] == pytest.approx(100 * returns.std())
    assert row["terminated"] == data.terminated.mean() and row["fingerprint"] == data.fingerprint()
    assert sum(row["returns"]["counts"]) == sum(row["lengths"]["counts"]) == data.episodes
    shares = np.array(row["coverage"]["shares"])
    assert shares.shape == (datasets.CELLS, datasets.CELLS) and shares.sum() == pytest.approx(1, abs=1e-3)
    assert row["coverage"]["entropy_bits"] == pytest.approx(
        -(shares[shares > 0] * np.log2(shares[shares > 0])).sum(), 1e-3
    )
    x = data.observations[:, 0]
    column = shares.sum(axis=1)
    edges = np.linspace(row["coverage"]["low"][0], row["coverage"]["high"][0], datasets.CELLS + 1)
    inside = np.histogram(x, edges)[0]
    np.testing.assert_allclose(column, inside / inside.sum(), atol=0.01)


def test_equal_returns_make_one_full_bin() -> None:
    histogram = datasets._histogram(np.full(7, 3.0))
    assert sum(histogram["counts"]) == max(histogram["counts"]) == 7


def test_a_histories_row_tells_how_a_history_goes_on() -> None:
    returns, histories = np.arange(10.0), np.array([0] * 4 + [1] * 4 + [2] * 2)
    assert datasets._learning(returns, histories) == [2.0, 3.0, 4.0, 5.0]  # the last one is cut short
    assert datasets._learning(np.arange(80.0), np.zeros(80, dtype=int)) == [2 * i + 0.5 for i in range(40)]


def test_every_environment_has_its_two_entries() -> None:
    assert {recipe.env_id for recipe in RECIPES.values()} <= datasets.COVERED.keys()


def test_the_command_describes_sets_that_are_there_and_keeps_the_time_they_took(
    datasets_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "datasets.json"
    arguments = ["--out", str(out), "--transitions", "500", "--workers", "1", "--only"]
    datasets.main([*arguments, "dmm/pointmaze"])
    first = json.loads(out.read_text())
    assert [row["name"] for row in first["rows"]] == ["dmm/pointmaze/umaze-v0", "dmm/pointmaze/medium-v0"]
    first["rows"][0]["seconds"] = 123.0
    out.write_text(json.dumps(first))
    datasets.main([*arguments, "dmm/tmaze"])
    datasets.main([*arguments, "dmm/pointmaze/umaze"])
    again = json.loads(out.read_text())
    assert [row["name"] for row in again["rows"]] == [
        name for name in RECIPES if name in {r["name"] for r in again["rows"]}
    ]
    assert again["rows"][0]["seconds"] == 123.0 and again["rows"][0] == first["rows"][0]
    assert {"machine", "packages", "rows"} <= again.keys()
    assert {row["cores"] for row in again["rows"]} == {again["machine"]["cores"]}
    del again["rows"][0]["cores"]  # a file from before it was kept for each row
    again["machine"]["cores"] = 99
    out.write_text(json.dumps(again))
    datasets.main([*arguments, "dmm/tmaze/noisy-v0"])
    assert json.loads(out.read_text())["rows"][0]["cores"] == 99
