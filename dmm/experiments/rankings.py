"""What a protocol does to an order of models: places, moves, and the numbers of a live figure that shows them.

Results are taken by task, that is by data set, and by model; a model without a seed has no place on a task.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dmm.errors import InputError
from dmm.experiments.protocols import PROTOCOLS, ProtocolName
from dmm.experiments.standings import Result, Standings
from dmm.experiments.statistics import Ties, average_ranks
from dmm.widgets import Table

ByModel = Mapping[str, Result]
ByTask = Mapping[str, ByModel]
ABSENT = "–"
"""What a figure says of a model that a task does not have."""


def tasks_of(tables: Iterable[Standings], least: int = 1) -> dict[str, dict[str, Result]]:
    """The results there are of some tables, by data set and entry; data sets with fewer than `least` are left out.

    Entries of one name on one data set must be one policy, as models without changes are.
    """
    found: dict[str, dict[str, Result]] = {}
    for table in tables:
        for dataset, row in table.results.items():
            found.setdefault(dataset, {}).update({name: result for name, result in row.items() if result.rows})
    return {dataset: results for dataset, results in found.items() if len(results) >= max(1, least)}


def places(results: ByModel, protocol: ProtocolName = "last", ties: Ties = "mean") -> dict[str, float]:
    """The rank of each model's mean score under a protocol, the best first.

    Models that tie stand in the order in which they were given.
    """
    if not results:
        return {}
    scores = {name: result.mean(protocol) for name, result in results.items()}
    ranks = average_ranks([[score] for score in scores.values()], ties=ties)
    by_name = dict(zip(scores, ranks.tolist(), strict=True))
    return {name: by_name[name] for name in sorted(scores, key=lambda name: -scores[name])}


def swapped(results: ByModel, before: ProtocolName, after: ProtocolName) -> tuple[int, int]:
    """Pairs of models whose order differs between two protocols, a new or a broken tie included, and all pairs."""
    first, second = places(results, before), places(results, after)
    pairs = list(itertools.combinations(results, 2))
    changed = [np.sign(first[a] - first[b]) != np.sign(second[a] - second[b]) for a, b in pairs]
    return sum(map(bool, changed)), len(pairs)


def shared_runs(
    tasks: ByTask, ours: str, theirs: str, protocol: ProtocolName = "last"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The seeds' numbers of two models, `(seeds,)` each, by the tasks on which both have any."""
    return {
        task: (results[ours].seeds(protocol), results[theirs].seeds(protocol))
        for task, results in tasks.items()
        if ours in results and theirs in results
    }


def ranking_tables(tasks: ByTask, models: Sequence[str]) -> dict[str, Table]:
    """The entries of a live figure with the controls `task` (if there are several), `protocol` and `model`.

    `score` and `name` (places), `ends` (places, 2) are the bars of a task under a protocol, the best first, with gaps
    where a task has fewer models than another; `place` is where the model stands among them. The texts `rank`, `shown`,
    `rank_last` and `shown_last` say it in words, under the chosen protocol and by the last checkpoint.

    Raises:
        InputError: no tasks, or no models.
    """
    if not tasks or not models:
        raise InputError(f"tasks, models: got {len(tasks)} and {len(models)}, allowed are at least one of each")
    most = max(map(len, tasks.values()))
    bars = [[_bars(results, protocol, most) for protocol in PROTOCOLS] for results in tasks.values()]
    words = [
        [[_words(results, protocol, model) for model in models] for protocol in PROTOCOLS] for results in tasks.values()
    ]
    last = list(PROTOCOLS).index("last")
    several = len(tasks) > 1
    by = ("task", "protocol") if several else ("protocol",)

    def table(values: list[Any], by: tuple[str, ...]) -> Table:
        return Table(values if several else values[0], by)

    tables = {
        key: table([[each[i] for each in row] for row in bars], by) for i, key in enumerate(("name", "score", "ends"))
    }
    for i, key in enumerate(("place", "rank", "shown")):
        tables[key] = table([[[each[i] for each in row] for row in rows] for rows in words], (*by, "model"))
        if key != "place":
            of_last = [[each[i] for each in rows[last]] for rows in words]
            tables[f"{key}_last"] = Table(of_last if several else of_last[0], (*by[:-1], "model"))
    return tables


def _bars(
    results: ByModel, protocol: ProtocolName, most: int
) -> tuple[list[str], list[float], list[tuple[float, float]]]:
    names = list(places(results, protocol))
    gap, gaps = math.nan, most - len(names)
    scores = [results[name].mean(protocol) for name in names] + [gap] * gaps
    ends = [results[name].ci95(protocol) or (gap, gap) for name in names] + [(gap, gap)] * gaps
    return names + [""] * gaps, scores, ends


def _words(results: ByModel, protocol: ProtocolName, model: str) -> tuple[float, str, str]:
    if model not in results:
        return math.nan, ABSENT, ABSENT
    ranks = places(results, protocol)
    return float(list(ranks).index(model)), f"{ranks[model]:g} of {len(ranks)}", results[model].text(protocol)
