"""What the book says about D4RL's own data sets has a source, and what it says about ours was measured at full size."""

from __future__ import annotations

from dmm.data.recipes import RECIPES
from dmm.experiments import load_result


def test_every_published_figure_names_its_source() -> None:
    published = load_result("d4rl")
    used = set()
    for row in published["rows"]:
        figures = [key for key in ("transitions", "episodes") if key in row]
        assert figures and set(row) == {"ours", "theirs", *figures, *(f"{key}_from" for key in figures)}
        assert all(isinstance(row[key], int) and row[key] > 0 for key in figures)
        used |= {row[f"{key}_from"] for key in figures}
    assert used == set(published["sources"])


def test_each_set_is_published_once() -> None:
    rows = load_result("d4rl")["rows"]
    for key in ("ours", "theirs"):
        assert len({row[key] for row in rows}) == len(rows)
    named = ("dmm/hopper", "dmm/walker2d", "dmm/halfcheetah", "dmm/antmaze", "dmm/kitchen")
    assert {name for name in RECIPES if name.startswith(named)} <= {row["ours"] for row in rows}


def test_ours_were_made_at_full_size() -> None:
    """The gallery's file is made by `python -m dmm.experiments.datasets`, without `--transitions`."""
    rows = {row["name"]: row for row in load_result("datasets")["rows"]}
    assert set(rows) == set(RECIPES)
    assert [name for name, row in rows.items() if row["transitions"] < RECIPES[name].transitions] == []
