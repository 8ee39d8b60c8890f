"""What the committed outcomes of `dmm reproduce` come to: the cells of a table under a protocol, and their ranking.

A cell may have all of its seeds, some, or none. Each place of a table says how many it has; rankings are made where
every column has a result, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dmm.errors import InputError, require_choice
from dmm.experiments import RESULTS
from dmm.experiments.grid import mean_interval
from dmm.experiments.protocols import PROTOCOLS, ProtocolName
from dmm.experiments.queue import outcome
from dmm.experiments.reproduce import (
    ScaleName,
    context_returns,
    entry_name,
    episode_scores,
    find_scale,
    make_jobs,
)
from dmm.experiments.statistics import Ties, average_ranks
from dmm.experiments.tables import Cell, Table, dataset_name, every_table, find_cells
from dmm.markdown import table

ROWS = RESULTS / "reproduce"
"""The committed outcomes, by scale and data set."""
NOT_THERE = "no result yet"


@dataclass(frozen=True)
class Result:
    """A cell and the seeds of it that there are."""

    cell: Cell
    wanted: int  # seeds
    rows: tuple[dict[str, Any], ...]  # outcomes, in the order of their seeds

    @cached_property
    def scores(self) -> list[list[list[np.ndarray]]]:
        """Normalised returns `(episodes,)`, in rooms and mazes plain ones, by seed, checkpoint and target."""
        return [episode_scores(row, self.cell.kind) for row in self.rows]

    @cached_property
    def in_context(self) -> np.ndarray:
        """In rooms: the returns of the last checkpoint, `(seeds, tasks, episodes in a row)`; seeds may be none."""
        if self.cell.kind != "rooms":
            raise InputError(f"cell: {self.cell.name} is of kind {self.cell.kind!r}, allowed is 'rooms'")
        return np.stack([context_returns(row) for row in self.rows]) if self.rows else np.empty((0, 0, 0))

    @cached_property
    def _numbers(self) -> dict[ProtocolName, np.ndarray]:
        return {name: np.array([protocol.score(each) for each in self.scores]) for name, protocol in PROTOCOLS.items()}

    def seeds(self, protocol: ProtocolName = "last") -> np.ndarray:
        """Each seed's one number, `(seeds,)`.

        Raises:
            InputError: no such protocol.
        """
        require_choice("protocol", protocol, ProtocolName)
        return self._numbers[protocol]

    def mean(self, protocol: ProtocolName = "last") -> float:
        """Over the seeds there are; NaN without any."""
        numbers = self.seeds(protocol)
        return float(numbers.mean()) if len(numbers) else float("nan")

    def ci95(self, protocol: ProtocolName = "last") -> tuple[float, float] | None:
        """The mean's interval over seeds (Student's t).

        A single seed has one by the last checkpoint alone: over the episodes of that policy (bootstrap). It says
        nothing of other seeds and is therefore too narrow.
        """
        numbers = self.seeds(protocol)
        if len(numbers) > 1:
            low, high = mean_interval(numbers)["ci95"]
            return float(low), float(high)
        if len(numbers) == 1 and protocol == "last":
            if self.cell.kind != "episodes":
                from dmm.evaluation import bootstrap_interval

                return bootstrap_interval(self.scores[0][-1][0])
            low, high = self.rows[0]["checkpoints"][-1]["scores"][0]["ci95"]
            return float(low), float(high)
        return None

    def text(self, protocol: ProtocolName = "last") -> str:
        """`81.3 [76.0, 86.1], 2 of 3`, or that there is none."""
        if not self.rows:
            return NOT_THERE
        ends = self.ci95(protocol)
        digits = 0 if self.cell.kind == "episodes" else 2
        interval = "" if ends is None else f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
        return f"{self.mean(protocol):.{max(digits, 1)}f}{interval}, {len(self.rows)} of {self.wanted}"


@dataclass(frozen=True)
class Standings:
    """A table with its results."""

    table: Table
    scale: str
    results: dict[str, dict[str, Result]]  # by name of the data set, then of the entry; every cell of the table

    @property
    def entries(self) -> list[str]:
        """Names of the columns."""
        return [entry.name for entry in self.table.entries]

    def datasets(self, complete: bool = False) -> list[str]:
        """Names of the data sets: those with any result, or those where every entry has one."""
        enough = all if complete else any
        return [name for name, row in self.results.items() if enough(result.rows for result in row.values())]

    def count(self) -> tuple[int, int]:
        """Cells with a result, and cells."""
        there = [bool(result.rows) for row in self.results.values() for result in row.values()]
        return sum(there), len(there)

    def means(self, protocol: ProtocolName = "last") -> np.ndarray:
        """`(entries, data sets)` of the whole table, NaN where there is no result."""
        return np.array([[row[name].mean(protocol) for row in self.results.values()] for name in self.entries])

    def ranks(self, protocol: ProtocolName = "last", ties: Ties = "mean") -> dict[str, float]:
        """Average rank of each entry over the data sets where all entries have a result; empty if there is none."""
        rows = [self.results[name] for name in self.datasets(complete=True)]
        if not rows:
            return {}
        table = np.array([[row[name].mean(protocol) for row in rows] for name in self.entries])
        return dict(zip(self.entries, average_ranks(table, ties=ties).tolist(), strict=True))

    def markdown(self, datasets: Sequence[str] | None = None, protocol: ProtocolName = "last") -> str:
        """A Markdown table: a row for each entry, and for each data set ours, and the paper's in a column of its own.

        Columns of the paper are left out where it has nothing. The cells of ours are those of `Result.text`.

        Raises:
            InputError: no such data set or protocol.
        """
        chosen = list(self.results) if datasets is None else list(datasets)
        if unknown := [name for name in chosen if name not in self.results]:
            raise InputError(f"datasets: got {unknown[0]!r}, allowed are {', '.join(self.results)}")
        digits = 1 if self.table.kind == "episodes" else 2
        heads, columns = [""], [[f"`{name}`" for name in self.entries]]
        for name in chosen:
            row = list(self.results[name].values())
            heads.append(name)
            columns.append([result.text(protocol) for result in row])
            papers = [result.cell.paper for result in row]
            if any(value is not None for value in papers):
                heads.append(self.table.papers_data)
                columns.append(["–" if value is None else f"{value:.{digits}f}" for value in papers])
        return table(heads, zip(*columns, strict=True))


def load_all(scale: ScaleName = "small", rows: Path = ROWS) -> dict[str, Result]:
    """Every policy that some table wants and that has a seed, once, by `data set/model and what is changed`.

    Raises:
        InputError: no such scale.
    """
    found: dict[str, Result] = {}
    for cell in find_cells():
        name = f"{dataset_name(cell.dataset)}/{entry_name(cell.entry, scale)}"
        if name not in found:
            found[name] = _load(cell, scale, rows)
    return {name: result for name, result in found.items() if result.rows}


def load_standings(table: str, scale: ScaleName = "small", rows: Path = ROWS) -> Standings:
    """A table of either paper with the outcomes there are.

    Args:
        table: its name, such as `table1`.
        scale: a name of `dmm.experiments.reproduce.SCALES`.
        rows: folder of the outcomes; the committed ones if not given.

    Raises:
        InputError: no such table or scale.
    """
    tables = every_table()
    if table not in tables:
        raise InputError(f"table: got {table!r}, allowed are {', '.join(tables)}")
    results: dict[str, dict[str, Result]] = {}
    for cell in find_cells([table]):
        results.setdefault(dataset_name(cell.dataset), {})[cell.entry.name] = _load(cell, scale, rows)
    return Standings(tables[table], scale, results)


def _load(cell: Cell, scale: ScaleName, rows: Path) -> Result:
    found = (outcome(job) for job in make_jobs([cell], scale, Path("runs"), rows))
    return Result(cell, find_scale(scale, cell.kind).seeds, tuple(row for row in found if row is not None))
