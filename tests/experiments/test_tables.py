from __future__ import annotations

import re

import pytest

from dmm.data.recipes import RECIPES
from dmm.errors import InputError
from dmm.experiments import load_result
from dmm.experiments.tables import Cell, dataset_name, find_cells, make_tables, paper
from dmm.models.registry import MODELS, split_changes
from dmm.training import TrainConfig

TABLES = make_tables()


def test_every_table_and_figure_of_results_is_there() -> None:
    """Tables 5 and 6 are settings, figures 2 and 8 drawings."""
    assert {f"table{i}" for i in (1, 2, 3, 4, 7, 8, 9)} | {f"figure{i}" for i in (1, 3, 4, 5, 6, 7)} <= TABLES.keys()
    assert all(name == table.name for name, table in TABLES.items())


@pytest.mark.parametrize("cell", find_cells(), ids=lambda cell: cell.name)
def test_a_cell_can_be_trained(cell: Cell) -> None:
    recipe, model = RECIPES[cell.dataset], MODELS[cell.entry.model]
    config, recipe_changes = split_changes(cell.entry.changes, model, TrainConfig)
    assert not recipe_changes  # what differs between columns is the model
    made = model.make_config(11, 3, recipe.env_id, **config)
    assert all(getattr(made, name) == value for name, value in cell.entry.changes.items())


def test_names_of_cells_are_distinct_and_find_them() -> None:
    cells = find_cells()
    assert len({cell.name for cell in cells}) == len(cells) > 250
    for cell in cells[::17]:
        assert find_cells([cell.name]) == [cell]
    assert cells[0].table == "pointmaze"  # what tells most comes first


def test_names_of_tables_and_rows_stand_for_their_cells() -> None:
    assert find_cells(["table2"]) == TABLES["table2"].cells()
    row = find_cells(["table1/hopper-medium"])
    assert [cell.entry.name for cell in row] == [entry.name for entry in TABLES["table1"].entries]
    assert {cell.dataset for cell in row} == {"dmm/hopper/medium-v0"}  # not medium-replay's, whose name begins alike
    assert find_cells(["table1/hopper-medium/", "table1"])[:9] == row and len(find_cells(["table1", "table1"])) == 81


@pytest.mark.parametrize(
    "name", ["", "table10", "table1/hopper", "table1/hopper-medium/dnn", "table5", "constructor", "/"]
)
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(
        InputError, match=rf"^name: no table, row or cell {re.escape(repr(name))}; allowed are, for exa"
    ):
        find_cells([name])


def test_the_papers_values_are_those_of_its_cells() -> None:
    stored = load_result("paper")
    for name, table in stored.items():
        if name in ("source", "table4", "table5", "table6"):
            continue
        cells = {(dataset_name(cell.dataset), cell.entry.name): cell for cell in TABLES[name].cells()}
        for data, row in table["cells"].items():
            for entry, value in row.items():
                assert cells[data, entry].paper == value
    assert find_cells(["table2/kitchen-mixed/dmm"])[0].paper == 83.0
    assert find_cells(["pointmaze/pointmaze-umaze/dmm"])[0].paper is None
    assert find_cells(["table4/hopper-medium/dmm"])[0].paper is None  # weights, not a score
    assert find_cells(["table3/antmaze-umaze/dmm"])[0].paper is None  # the paper's row is labelled umaze-diverse


@pytest.mark.parametrize(
    ("table", "rows", "printed"),
    [  # the paper's own mean rows; QLDT's for the kitchen is printed as 30.5
        ("table1", None, {"td3bc": 75.3, "cql": 77.6, "dt": 75.4, "qldt": 66.3, "edt": 76.9, "dc": 81.4, "dmm": 82.9}),
        ("table2", "kitchen", {"td3bc": 36.1, "cql": 48.2, "iql": 53.3, "dt": 34.6, "qldt": 31.1, "dmm": 79.8}),
        ("table2", "antmaze", {"td3bc": 75.0, "cql": 79.0, "dt": 47.9, "wt": 68.2, "dc": 81.8, "dmm": 92.5}),
    ],
)
def test_the_papers_values_have_its_means(table: str, rows: str | None, printed: dict[str, float]) -> None:
    cells = [row for name, row in paper(table)["cells"].items() if rows is None or name.startswith(rows)]
    for entry, mean in printed.items():
        assert sum(row[entry] for row in cells) / len(cells) == pytest.approx(mean, abs=0.0501)
