"""The papers' tables and figures as lists of cells: which policies each wants trained, on what, and what the paper has.

A table has rows, data sets, and columns, entries; a cell is named `table/data set/entry`, such as
`table2/kitchen-mixed/dmm`. Cells of several tables may want the same policies, which are trained once.

Source: the Decision MetaMamba paper, tables 1 to 9 and figures 1 and 3 to 7. Its values (`paper.json`) are for D4RL's
own data and stand beside ours, never among them. `pointmaze`, `hopper` and `released` are tables of this project; and
the ablations have a row on the point maze beside the paper's, since a policy takes minutes there, on any machine. The
tables of the Decision Mamba-Hybrid paper are in `dmm.experiments.tables_in_context`, and their values in
`paper_dmh.json`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NoReturn

from dmm.errors import InputError
from dmm.experiments import load_result


def dataset_name(dataset_id: str) -> str:
    """`dmm/hopper/medium-v0` -> `hopper-medium`."""
    return re.sub(r"-v\d+$", "", dataset_id.removeprefix("dmm/")).replace("/", "-")


Kind = Literal["episodes", "rooms", "mazes"]
"""How policies are played: single episodes, scored; episodes in a row of held-out tasks, whose last return counts; or
single episodes of long mazes, whose return counts."""


@dataclass(frozen=True)
class Entry:
    """A column: a model and what is changed about it."""

    name: str
    model: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One place of a table."""

    table: str
    dataset: str  # id of the data set
    entry: Entry
    kind: Kind = "episodes"

    @property
    def name(self) -> str:
        return f"{self.table}/{dataset_name(self.dataset)}/{self.entry.name}"

    @property
    def paper(self) -> float | None:
        """What the paper has there, on its own data; None where it has nothing."""
        value = paper(self.table).get("cells", {}).get(dataset_name(self.dataset), {}).get(self.entry.name)
        return value if isinstance(value, int | float) else None


@dataclass(frozen=True)
class Table:
    """A table or figure: every entry on every data set."""

    name: str
    title: str
    datasets: tuple[str, ...]
    entries: tuple[Entry, ...]
    kind: Kind = "episodes"

    def cells(self) -> list[Cell]:
        """Row by row."""
        return [
            Cell(self.name, dataset, self.entry_for(dataset, entry), self.kind)
            for dataset in self.datasets
            for entry in self.entries
        ]

    def entry_for(self, dataset: str, entry: Entry) -> Entry:
        """An entry with what a data set changes about it: here nothing."""
        return entry

    @property
    def papers_data(self) -> str:
        """The head of a column of the paper's values."""
        return "paper, on D4RL" if self.kind == "episodes" else "paper, its own data"


@cache
def paper(table: str) -> dict[str, Any]:
    """What the paper has of a table: `cells`, and `ranks`, `deviations` and `notes` where there are any."""
    stored = load_result("paper_dmh" if table.startswith("dmh-") else "paper")
    found: dict[str, Any] = stored.get(table, {})
    return found


def models(*names: str) -> tuple[Entry, ...]:
    return tuple(Entry(name, name) for name in names)


def _all_models() -> tuple[Entry, ...]:
    from dmm.models.registry import MODELS

    return models(*(name for name, model in MODELS.items() if not (model.hidden or model.in_context)))


def _on_hopper() -> tuple[Entry, ...]:
    """All models but those that want goals, which Hopper has none of."""
    from dmm.inspection.cards import HOPPER, facts_for
    from dmm.models.registry import MODELS

    return tuple(entry for entry in _all_models() if facts_for(MODELS[entry.model], HOPPER) is HOPPER)


POINTMAZE = "dmm/pointmaze/umaze-v0"
HOPPER, WALKER, CHEETAH = (
    tuple(f"dmm/{robot}/{kind}-v0" for kind in ("medium", "medium-replay", "medium-expert"))
    for robot in ("hopper", "walker2d", "halfcheetah")
)
ANTMAZE = ("dmm/antmaze/umaze-v0", "dmm/antmaze/umaze-diverse-v0")
KITCHEN = tuple(f"dmm/kitchen/{kind}-v0" for kind in ("complete", "partial", "mixed"))
SPARSE = (ANTMAZE[0], KITCHEN[2])
DMM = Entry("dmm", "dmm")
CONV = Entry("conv", "dmm", {"local_mixer": "depthwise"})
MULTIMODAL = Entry("multimodal", "dmm", {"local_mixer": "multimodal"})
CONTEXTS = (8, 20, 30)
"""Time steps, of figures 5 and 6."""
WINDOWS = (3, 6, 12, 24)
"""Tokens, of figure 6: one, two, four and eight time steps."""


def make_tables() -> dict[str, Table]:
    """Every table and figure of the first paper by name, in the order in which their jobs tell most."""
    mixers: tuple[Entry, ...] = (DMM, CONV, Entry("transformer", "dmm", {"global_mixer": "attention"}))
    mixers += (Entry("s4", "dmm", {"global_mixer": "s4"}),)
    contexts = tuple(Entry(f"{m}, K={k}", m, {"context": k}) for m in ("dt", "dc", "dm", "dmm") for k in CONTEXTS)
    windows = tuple(
        Entry(f"K={k}, w={w}", "dmm", {"context": k, "window": w}) for k in CONTEXTS for w in WINDOWS if w <= 3 * k
    )
    widths = tuple(Entry(f"width {width}", "dmm", {"width": width}) for width in (128, 64))
    starts = (Entry("random", "dmm", {"a_init": "uniform"}), Entry("hippo", "dmm"))
    table1 = models("td3bc", "cql", "dt", "qldt", "edt", "dc", "ds4", "dm", "dmm")
    table2 = models("td3bc", "cql", "iql", "dt", "qldt", "wt", "dc", "ds4", "dm", "dmm")
    tables = [
        Table("pointmaze", "Every model on the point maze", (POINTMAZE,), _all_models()),
        Table("hopper", "Every model on Hopper medium", HOPPER[:1], _on_hopper()),
        Table("table3", "Local and global mixers", (POINTMAZE, SPARSE[0], HOPPER[0], ANTMAZE[1], KITCHEN[2]), mixers),
        Table("table9", "A mixer for each modality", (POINTMAZE, HOPPER[0], *SPARSE), (DMM, MULTIMODAL)),
        Table("figure7", "Altered local mixers", (POINTMAZE, HOPPER[0], *SPARSE), (DMM, CONV, MULTIMODAL)),
        Table("table8", "How A begins", (POINTMAZE, *ANTMAZE), starts),
        Table("figure6", "Context and window", (POINTMAZE, ANTMAZE[1]), windows),
        Table("figure1", "Size and score", (HOPPER[0], *SPARSE), models("dc", "dt", "edt", "dm", "dmm")),
        Table("figure3", "Norms of activations", (HOPPER[0], ANTMAZE[0]), models("mamba", "dmm")),
        Table("figure4", "Norms of gradients", (HOPPER[0], ANTMAZE[0]), models("mamba", "dmm")),
        Table("table4", "Weights, and weights per point", (HOPPER[0], ANTMAZE[0]), models("dmm", "dt", "dc")),
        Table("table2", "Sparse rewards", (*ANTMAZE, *KITCHEN), table2),
        Table("table1", "Dense rewards", (*HOPPER, *WALKER, *CHEETAH), table1),
        Table("table7", "Width", (POINTMAZE, HOPPER[0], WALKER[0], CHEETAH[0]), widths),
        Table("figure5", "Context", (POINTMAZE, HOPPER[0], ANTMAZE[1], KITCHEN[2]), contexts),
        Table("released", "The released code's model", HOPPER[:1], models("dmm-released")),
    ]
    return {table.name: table for table in tables}


def find_cells(names: Sequence[str] = ()) -> list[Cell]:
    """The cells that names of tables, of rows (`table1/hopper-medium`) and of cells stand for.

    None stands for all of the first paper: those on the point maze come first, then a table after the other.

    Raises:
        InputError: a name of nothing.
    """
    if not names:
        cells = [cell for table in make_tables().values() for cell in table.cells()]
        return sorted(cells, key=lambda cell: cell.dataset != POINTMAZE)
    tables = every_table()
    found: dict[str, Cell] = {}
    for name in names:
        found |= {cell.name: cell for cell in _named(name, tables)}
    return list(found.values())


def every_table() -> dict[str, Table]:
    """Those of both papers."""
    from dmm.experiments.tables_in_context import make_tables_in_context

    return make_tables() | make_tables_in_context()


def _named(name: str, tables: dict[str, Table]) -> Iterator[Cell]:
    table = tables.get(name.split("/")[0])
    if table is None:
        _refuse(name, tables)
    cells = [cell for cell in table.cells() if f"{cell.name}/".startswith(f"{name.rstrip('/')}/")]
    if not cells:
        _refuse(name, [cell.name for cell in table.cells()])
    yield from cells


def _refuse(name: str, allowed: Iterable[str]) -> NoReturn:
    allowed = list(allowed)
    near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.3) or allowed
    raise InputError(f"name: no table, row or cell {name!r}; allowed are, for example, {', '.join(near)}")
