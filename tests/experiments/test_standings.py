from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmm.errors import InputError
from dmm.experiments.queue import keep_outcome, outcome
from dmm.experiments.reproduce import make_jobs
from dmm.experiments.standings import NOT_THERE, ROWS, load_all, load_standings
from dmm.experiments.tables import find_cells, make_tables

Keep = Callable[..., None]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Puts an outcome for a cell's seed: `scores[checkpoint][target]`, each a list of episodes' returns."""

    def put(name: str, seed: int, scores: list[list[list[float]]]) -> None:
        job = next(job for job in make_jobs(find_cells([name]), "small", tmp_path, tmp_path) if job.seed == seed)
        checkpoints = [
            {
                "step": i,
                "scores": [
                    {"target": 1.0, "ci95": [min(arm) * 100, max(arm) * 100], "returns": " ".join(map(str, arm))}
                    for arm in arms
                ],
            }
            for i, arms in enumerate(scores)
        ]
        row: dict[str, Any] = {"data": {"reference": [0.0, 1.0]}, "checkpoints": checkpoints}
        keep_outcome(job, row)

    return put


def test_a_cell_without_results_says_so(tmp_path: Path) -> None:
    standings = load_standings("table1", rows=tmp_path)
    result = standings.results["hopper-medium"]["dmm"]
    assert result.text() == NOT_THERE and math.isnan(result.mean()) and result.ci95() is None
    assert standings.count() == (0, 81) and standings.datasets() == [] and standings.ranks() == {}
    assert np.isnan(standings.means()).all() and standings.means().shape == (9, 9)


def test_one_seed_has_the_interval_of_its_episodes(tmp_path: Path, keep: Keep) -> None:
    keep("pointmaze/pointmaze-umaze/bc", 0, [[[0, 0, 0, 1]], [[0, 1, 0, 1]]])
    result = load_standings("pointmaze", rows=tmp_path).results["pointmaze-umaze"]["bc"]
    assert result.mean() == 50 and result.ci95() == (0, 100) and result.ci95("best of all") is None
    assert result.text() == "50.0 [0, 100], 1 of 3"


def test_protocols_choose_among_checkpoints_and_targets(tmp_path: Path, keep: Keep) -> None:
    keep("pointmaze/pointmaze-umaze/dmm", 0, [[[0, 0.25], [1, 1]], [[0.5, 1], [0, 0]], [[0.5, 0.5], [0, 0]]])
    result = load_standings("pointmaze", rows=tmp_path).results["pointmaze-umaze"]["dmm"]
    assert (result.mean(), result.mean("best of checkpoints"), result.mean("best of all")) == (50, 75, 100)
    with pytest.raises(InputError, match=r"^protocol: got 'first', allowed are last, best of checkpoints, best of all"):
        result.mean("first")  # type: ignore[arg-type]


def test_several_seeds_have_students_interval(tmp_path: Path, keep: Keep) -> None:
    for seed, score in ((0, 0.4), (2, 0.6)):  # seed 1 has not been done
        keep("pointmaze/pointmaze-umaze/bc", seed, [[[score, score]]])
    result = load_standings("pointmaze", rows=tmp_path).results["pointmaze-umaze"]["bc"]
    low, high = result.ci95() or (0.0, 0.0)
    # two values 20 apart: t = 12.7062, deviation over root 2 is 10
    assert np.allclose(result.seeds(), [40, 60]) and abs(low - (50 - 127.062)) < 1e-3 and abs(low + high - 100) < 1e-9
    assert result.text().endswith("2 of 3")


def test_ranks_are_of_data_sets_where_all_entries_have_a_result(tmp_path: Path, keep: Keep) -> None:
    table = make_tables()["table8"]
    for entry, score in (("random", 0.2), ("hippo", 0.7)):
        keep(f"table8/antmaze-umaze/{entry}", 0, [[[score, score]]])
    keep("table8/pointmaze-umaze/random", 0, [[[1, 1]]])  # hippo is missing there
    standings = load_standings("table8", rows=tmp_path)
    assert [entry.name for entry in table.entries] == standings.entries
    assert standings.datasets() == ["pointmaze-umaze", "antmaze-umaze"]
    assert standings.datasets(complete=True) == ["antmaze-umaze"]
    assert standings.ranks() == {"random": 2.0, "hippo": 1.0} and standings.count() == (3, 6)


def test_the_paper_has_a_column_of_its_own(tmp_path: Path, keep: Keep) -> None:
    keep("table8/antmaze-umaze/random", 0, [[[0.5, 0.5]]])
    standings = load_standings("table8", rows=tmp_path)
    head, _, random, hippo = standings.markdown(["pointmaze-umaze", "antmaze-umaze"]).splitlines()
    assert head == "|  | pointmaze-umaze | antmaze-umaze | paper, on D4RL |"
    assert random == f"| `random` | {NOT_THERE} | 50.0 [50, 50], 1 of 3 | 89.3 |"
    assert hippo == f"| `hippo` | {NOT_THERE} | {NOT_THERE} | 88.3 |"
    with pytest.raises(InputError, match=r"^datasets: got 'maze', allowed are pointmaze-umaze, antmaze-umaze, "):
        standings.markdown(["maze"])


def test_all_policies_are_there_once(tmp_path: Path, keep: Keep) -> None:
    keep("table1/hopper-medium/dmm", 1, [[[0.5, 0.5]]])  # which seven other tables want, too
    keep("table3/hopper-medium/conv", 0, [[[0.2, 0.2]]])
    found = load_all(rows=tmp_path)
    assert sorted(found) == ["hopper-medium/dmm", "hopper-medium/dmm local_mixer=depthwise"]
    assert len(found["hopper-medium/dmm"].rows) == 1 and load_all("full", rows=tmp_path) == {}


def test_unknown_tables_are_refused() -> None:
    with pytest.raises(InputError, match=r"^table: got 'table10', allowed are pointmaze, hopper, table3"):
        load_standings("table10")


def test_every_committed_outcome_is_that_of_a_job() -> None:
    """A file that no job wants, or whose job has changed since, would be shown nowhere."""
    jobs = [job for scale in ("small", "full") for job in make_jobs(find_cells(), scale, Path("runs"), ROWS)]
    committed = set(ROWS.rglob("*.json"))
    assert committed and {job.row_file for job in jobs if outcome(job) is not None} == committed
