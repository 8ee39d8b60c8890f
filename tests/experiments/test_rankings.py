"""Places under a protocol, what swaps between two of them, and the live figure's numbers, for few and many results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dmm.errors import InputError
from dmm.experiments.protocols import PROTOCOLS
from dmm.experiments.rankings import ABSENT, ByTask, places, ranking_tables, shared_runs, swapped, tasks_of
from dmm.experiments.standings import Result, Standings
from dmm.experiments.tables import find_cells, make_tables
from dmm.widgets import Bars, Explorer, Readout, Select


def result(*seeds: list[list[float]]) -> Result:
    """Each seed as checkpoints of episodes' returns, for one target, of which 1 is 100 points."""
    rows = [
        {
            "data": {"reference": [0.0, 1.0]},
            "checkpoints": [
                {"step": i, "scores": [{"target": 1.0, "ci95": [0.0, 100.0], "returns": " ".join(map(str, arm))}]}
                for i, arm in enumerate(seed)
            ],
        }
        for seed in seeds
    ]
    return Result(find_cells(["pointmaze"])[0], 3, tuple(rows))


STEADY = result([[0.5, 0.5], [0.5, 0.5]])
SWINGING = result([[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.5]])
TASKS: ByTask = {"maze": {"dmm": STEADY, "bc": SWINGING, "dt": STEADY}, "hopper": {"dmm": SWINGING, "bc": STEADY}}


def test_places_depend_on_the_protocol() -> None:
    assert places(TASKS["maze"]) == {"dmm": 1.5, "dt": 1.5, "bc": 3.0}
    assert places(TASKS["maze"], "best of all") == {"bc": 1.0, "dmm": 2.5, "dt": 2.5}
    assert places(TASKS["maze"], ties="min") == {"dmm": 1.0, "dt": 1.0, "bc": 3.0}
    assert places({}) == {}


def test_swapped_counts_pairs() -> None:
    assert swapped(TASKS["maze"], "last", "best of all") == (2, 3)
    assert swapped(TASKS["maze"], "last", "last") == (0, 3)
    assert swapped({"dmm": STEADY}, "last", "split") == (0, 0) == swapped({}, "last", "split")


def test_shared_runs_are_of_tasks_that_both_have() -> None:
    found = shared_runs(TASKS, "bc", "dt")
    assert list(found) == ["maze"]
    assert found["maze"][0].tolist() == [0, 25] and found["maze"][1].tolist() == [50]
    assert shared_runs(TASKS, "dmm", "edt") == {}


def test_tasks_join_tables_by_data_set() -> None:
    tables = make_tables()
    none = result()
    first = Standings(tables["pointmaze"], "small", {"maze": {"dmm": STEADY, "bc": none}, "other": {"dmm": none}})
    second = Standings(tables["pointmaze"], "small", {"maze": {"dt": SWINGING}})
    assert {task: list(found) for task, found in tasks_of([first, second]).items()} == {"maze": ["dmm", "dt"]}
    assert tasks_of([first, second], least=3) == {} == tasks_of([])


@pytest.mark.parametrize("tasks", [TASKS, {"maze": TASKS["maze"]}], ids=["two tasks", "one task"])
def test_live_figure_shows_the_order_of_each_setting(tasks: ByTask) -> None:
    models = ["dmm", "dt", "edt"]
    controls = [Select("protocol", "Protocol", list(PROTOCOLS)), Select("model", "Model", models)]
    if len(tasks) > 1:
        controls.insert(0, Select("task", "Task", list(tasks)))
    figure = Explorer(
        "An order",
        "Bars.",
        controls=controls,
        data=ranking_tables(tasks, models),
        panels=[Bars(data="score", names="name", intervals="ends", highlight="place", horizontal=True)],
        readouts=[Readout(name, name, "s") for name in ("rank", "shown", "rank_last", "shown_last")],
    )
    at = figure.at(protocol="best of all", model="dt")
    assert at["name"].tolist() == ["bc", "dmm", "dt"] and at["score"].tolist() == [100, 50, 50] and at["place"] == 2
    assert figure.readouts_at(protocol="best of all", model="dt") == {
        "rank": "2.5 of 3",
        "shown": "50.0, 1 of 3",
        "rank_last": "1.5 of 3",
        "shown_last": "50.0 [0, 100], 1 of 3",
    }
    assert figure.readouts_at(model="edt")["rank_last"] == ABSENT and math.isnan(figure.at(model="edt")["place"])
    assert figure.at()["ends"][0].tolist() == [0, 100], "one seed has the interval of its episodes"
    assert np.isnan(figure.at(protocol="split")["ends"][1]).all()
    if len(tasks) > 1:
        other = figure.at(task="hopper")
        assert other["name"].tolist() == ["bc", "dmm", ""] and math.isnan(other["score"][2])
    assert figure.picture().startswith(b"\x89PNG")


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match=r"^tasks, models: got 0 and 1"):
        ranking_tables({}, ["dmm"])
