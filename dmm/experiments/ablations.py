"""The ablations among the papers' tables: a cell beside the one that it is a change of, seed by seed.

Two policies of one seed share the seed's batches and start states, and no more than that: where the change alters
which weights are drawn, they begin elsewhere. Seeds of one cell without a partner in the other are left out of a
difference. The paper's differences are between its own numbers; its numbers and ours are never subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dmm.errors import InputError, finite_number, whole_number
from dmm.experiments.grid import mean_interval
from dmm.experiments.protocols import ProtocolName
from dmm.experiments.standings import NOT_THERE, Result, Standings, load_standings
from dmm.experiments.statistics import finite_numbers
from dmm.experiments.tables import CONTEXTS, WINDOWS, Entry
from dmm.markdown import table
from dmm.models.entry import Facts

MAZE = Facts(state_size=6, action_size=2, env_id="PointMaze_UMaze-v3")
"""The data whose sizes weights are counted for: those of `dmm/pointmaze/umaze-v0`."""
MOST_SEEDS = 100_000
"""Beyond which `seeds_needed` does not look."""


@dataclass(frozen=True)
class Change:
    """One thing that an ablation changes: two columns of a table."""

    text: str
    table: str
    entry: str  # with the change
    base: str  # without


CHANGES: tuple[Change, ...] = (
    Change("depth-wise local mixer", "table3", "conv", "dmm"),
    Change("a local mixer per modality", "table9", "multimodal", "dmm"),
    Change("attention for Mamba", "table3", "transformer", "dmm"),
    Change("S4 for Mamba", "table3", "s4", "dmm"),
    Change("A begins uniform", "table8", "random", "hippo"),
    Change("width 128 for 64", "table7", "width 128", "width 64"),
)
"""Those of the paper's tables. Figures 5 and 6 vary a size over several values."""


@dataclass(frozen=True)
class Difference:
    """What a change makes, seed by seed: the score with it minus the score without."""

    values: dict[int, float]  # by seed, of those that both have

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return float(np.mean(list(self.values.values()))) if self.values else float("nan")

    @property
    def ci95(self) -> tuple[float, float] | None:
        """The mean's interval over seeds (Student's t); None with fewer than two."""
        if len(self.values) < 2:
            return None
        low, high = mean_interval(list(self.values.values()))["ci95"]
        return float(low), float(high)

    @property
    def sign(self) -> int:
        """Of the interval, where zero is not in it; else 0."""
        low, high = self.ci95 or (-math.inf, math.inf)
        return int(low > 0) - int(high < 0)

    def text(self) -> str:
        """`+3.2 [-4.0, 10.4], 3 seeds`; without an interval for one seed; that there is none without any."""
        if not self.values:
            return NOT_THERE
        interval = "" if self.ci95 is None else " [{:+.0f}, {:+.0f}]".format(*self.ci95)
        return f"{self.mean:+.1f}{interval}, {len(self.values)} seed{'s' * (len(self.values) > 1)}"


def paired(changed: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """Of scores by seed, over the seeds that both have."""
    return Difference({seed: changed[seed] - base[seed] for seed in sorted(changed.keys() & base.keys())})


def by_seed(result: Result, protocol: ProtocolName = "last") -> dict[int, float]:
    """A cell's numbers by training seed.

    Raises:
        InputError: no such protocol.
    """
    return {int(row["seed"]): float(x) for row, x in zip(result.rows, result.seeds(protocol), strict=True)}


def compare(changed: Result, base: Result, protocol: ProtocolName = "last") -> Difference:
    """`paired` of two cells.

    Raises:
        InputError: no such protocol, or cells of two data sets.
    """
    if changed.cell.dataset != base.cell.dataset:
        raise InputError(f"base: got a cell of {base.cell.dataset}, allowed are those of {changed.cell.dataset}")
    return paired(by_seed(changed, protocol), by_seed(base, protocol))


def paper_difference(changed: Result, base: Result) -> float | None:
    """What the paper has with the change minus what it has without, on D4RL's data; None where either is missing."""
    after, before = changed.cell.paper, base.cell.paper
    return None if after is None or before is None else after - before


def load_pairs(
    changes: Sequence[Change] = CHANGES, load: Callable[[str], Standings] = load_standings
) -> Iterator[tuple[Change, str, Result, Result]]:
    """Every change on every data set of its table: the change, the data set's name, the cell with it and without.

    Args:
        changes: those that are wanted.
        load: of a table's name, as `load_standings`.
    """
    tables = {name: load(name) for name in dict.fromkeys(change.table for change in changes)}
    for change in changes:
        for dataset, row in tables[change.table].results.items():
            yield change, dataset, row[change.entry], row[change.base]


def coverage(standings: Standings) -> str:
    """`7 of 20 cells have a result, 9 of 60 seeds`."""
    results = [result for row in standings.results.values() for result in row.values()]
    cells, wanted = standings.count()
    seeds = sum(len(result.rows) for result in results)
    return f"{cells} of {wanted} cells have a result, {seeds} of {sum(result.wanted for result in results)} seeds"


def weights(entry: Entry, facts: Facts = MAZE) -> int:
    """How many an entry's policy has at the sizes that all models share."""
    import torch

    from dmm.models.registry import find_model

    model = find_model(entry.model)
    with torch.device("meta"):  # counted without taking memory for them
        policy = model.policy(model.config_for(facts, entry.changes))
    return sum(weight.numel() for weight in policy.parameters())


def markdown(
    standings: Standings, base: str, entries: Sequence[str] | None = None, protocol: ProtocolName = "last"
) -> str:
    """A Markdown table: a row for each data set and entry, with weights, ours, the difference to `base`, the paper's.

    The paper's two columns are left out where it has nothing.

    Raises:
        InputError: no such entry or protocol.
    """
    chosen = standings.entries if entries is None else list(entries)
    if unknown := [name for name in [base, *chosen] if name not in standings.entries]:
        raise InputError(f"entries: got {unknown[0]!r}, allowed are {', '.join(standings.entries)}")
    size = {entry.name: weights(entry) for entry in standings.table.entries if entry.name in chosen}
    shown = [row[name].cell.paper is not None for row in standings.results.values() for name in chosen]
    heads = ["data set", "", "weights", "ours", f"minus `{base}`"] + ["paper, on D4RL", f"minus `{base}`"] * any(shown)
    lines: list[list[str]] = []
    for dataset, row in standings.results.items():
        for place, name in enumerate(chosen):
            result, own = row[name], name == base
            apart = "" if own else compare(result, row[base], protocol).text()
            line = [dataset if place == 0 else "", f"`{name}`", f"{size[name]:,}", result.text(protocol), apart]
            theirs = None if own else paper_difference(result, row[base])
            line += [_number(result.cell.paper, ".1f"), "" if own else _number(theirs, "+.1f")] * any(shown)
            lines.append(line)
    return table(heads, lines, words=2)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


# Context and window, figure 6


def over_windows(standings: Standings, dataset: str, value: Callable[[Result], float]) -> np.ndarray:
    """A number of each cell of `figure6`: `(contexts, windows)` in the order of `CONTEXTS` and `WINDOWS`.

    NaN where there is no such cell, or no result in it.

    Raises:
        InputError: no such data set.
    """
    if dataset not in standings.results:
        raise InputError(f"dataset: got {dataset!r}, allowed are {', '.join(standings.results)}")
    row = standings.results[dataset]
    found = np.full((len(CONTEXTS), len(WINDOWS)), np.nan)
    for i, context in enumerate(CONTEXTS):
        for j, window in enumerate(WINDOWS):
            result = row.get(f"K={context}, w={window}")
            if result is not None and result.rows:
                found[i, j] = value(result)
    return found


# How many seeds a difference needs


def pooled_deviation(groups: Sequence[Sequence[float] | np.ndarray]) -> tuple[float, int]:
    """One standard deviation for groups that scatter alike about means of their own, and its degrees of freedom.

    Raises:
        InputError: no group has two numbers, or some are not finite.
    """
    numbers = [finite_numbers(f"groups[{i}]", group, "a list of numbers") for i, group in enumerate(groups)]
    freedom = sum(len(group) - 1 for group in numbers if len(group))
    if freedom < 1:
        raise InputError(f"groups: got {len(numbers)} with no two numbers in any, allowed is one with two at least")
    squares = sum(((group - group.mean()) ** 2).sum() for group in numbers if len(group))
    return float(np.sqrt(squares / freedom)), freedom


def seed_effect(scores: np.ndarray) -> tuple[float, float]:
    """What seeds have in common over entries: `scores (entries, seeds)` -> share of variance, p-value.

    The share is what subtracting seed by seed takes from a difference's variance, in the mean over all pairs of
    entries; it is negative where pairing costs. The p-value is that of no common effect (two-way analysis of variance).

    Raises:
        InputError: fewer than two entries or seeds, or numbers that are not finite.
    """
    table = finite_numbers("scores", scores, "an array (entries, seeds)")
    if table.ndim != 2 or min(table.shape) < 2:
        raise InputError(f"scores: got shape {table.shape}, allowed is (entries, seeds) with at least two of each")
    entries, seeds = table.shape
    within = table - table.mean(1, keepdims=True)
    common = within.mean(0)
    left = within - common
    free = (entries - 1) * (seeds - 1)
    alone = (within**2).sum() / (entries * (seeds - 1))
    rest = (left**2).sum() / free
    effect = entries * (common**2).sum() / (seeds - 1)
    if rest == 0:  # all entries move alike with the seed, or not at all
        return float(alone > 0), 0.0 if alone else 1.0
    return float(1 - rest / alone), float(stats.f.sf(effect / rest, seeds - 1, free))


def power(seeds: int, difference: float, deviation: float, level: float = 0.05) -> float:
    """How likely a t-test of two entries tells them apart, `seeds` each, whose true means differ by `difference`.

    Args:
        seeds: of each entry, at least 2.
        difference: of the true means, in points.
        deviation: between seeds of one entry, in points.
        level: how often it may find a difference where there is none.

    Raises:
        InputError: fewer than two seeds, a deviation that is not positive, or a level outside 0 to 1.
    """
    n, d, s = whole_number("seeds", seeds, 2), finite_number("difference", difference), _positive(deviation)
    if not 0 < finite_number("level", level) < 1:
        raise InputError(f"level: got {level}, allowed is over 0 to below 1")
    free, shift = 2 * n - 2, abs(d) / (s * math.sqrt(2 / n))
    edge = stats.t.ppf(1 - level / 2, free)
    found = float(stats.nct.sf(edge, free, shift) + stats.nct.cdf(-edge, free, shift))
    return found if math.isfinite(found) else 1.0  # so far apart that the distribution's tail is no number


def seeds_needed(difference: float, deviation: float, wanted: float = 0.8, level: float = 0.05) -> int:
    """The fewest seeds of each entry with which `power` reaches `wanted`.

    Raises:
        InputError: a difference of zero, `wanted` outside 0 to 1, more than 100,000 seeds, or as `power`.
    """
    if not 0 < finite_number("wanted", wanted) < 1:
        raise InputError(f"wanted: got {wanted}, allowed is over 0 to below 1")
    if power(MOST_SEEDS, difference, deviation, level) < wanted:
        raise InputError(f"difference: got {difference}, which more than {MOST_SEEDS:,} seeds would not tell from zero")
    low, high = 1, 2
    while power(high, difference, deviation, level) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, deviation, level) >= wanted else (middle, high)
    return high


def _positive(deviation: float) -> float:
    found = finite_number("deviation", deviation)
    if found <= 0:
        raise InputError(f"deviation: got {deviation}, allowed are numbers over 0")
    return found
