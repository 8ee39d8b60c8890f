"""The figures of the Decision Mamba-Hybrid paper as tables for `dmm reproduce`: learning in context, and long mazes.

    dmh-figure2     all models that learn in context, in small and large dark rooms
    dmh-figure3     a cue remembered over 1,000 to 20,000 steps: DM-H, DM, DT
    dmh-figure4a    sub-goals by each rule, and none
    dmh-figure4b    steps of a group: c = 1, 5, 10, 15, 20

In the rooms a policy plays 20 episodes in a row of each held-out task, and what counts is the return of the last one,
as in the paper. A maze has one task, so its context is one episode. Values are returns, not scores; the paper's
(`paper_dmh.json`) are of its own data and networks, and stand beside ours.

Source: Huang et al. 2024, arXiv 2406.00079, figures 2, 3a, 4a and 4b. Figure 4a and 3a are read exactly off the
figures' vector files, the others off pictures, to about 3 % of an axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dmm.experiments.tables import Cell, Entry, Table, models

DARKROOM, HARD, KEY, DYNAMIC = (
    f"dmm/{room}/histories-v0" for room in ("darkroom", "darkroom-hard", "keytodoor", "darkroom-dynamic")
)
LARGE, LARGE_HARD, LARGE_KEY = (
    f"dmm/{room}/histories-v0" for room in ("darkroom-large", "darkroom-large-hard", "keytodoor-large")
)
DMH = Entry("dmh", "dmh")
STEPS = {DARKROOM: 20, HARD: 20, KEY: 50, DYNAMIC: 20, LARGE: 200, LARGE_HARD: 200, LARGE_KEY: 500}
"""Of an episode."""
HORIZONS = (1_000, 2_000, 5_000, 10_000, 20_000)
MAZES = {f"dmm/tmaze/noisy-{steps}-v0": steps for steps in HORIZONS}
GROUP = 20
"""Steps of a group in the long mazes (the paper's text; its table has 5)."""


class Mazes(Table):
    """Every context is as long as the maze."""

    def entry_for(self, dataset: str, entry: Entry) -> Entry:
        steps = MAZES[dataset]
        hierarchy = {"interval": GROUP, "groups": -(-steps // GROUP)}
        return dataclasses.replace(entry, changes=hierarchy if entry.model == "dmh" else {"context": steps})


class Intervals(Table):
    """Groups of c steps, as many as the same episodes make; with the c that the model has anyway, nothing changes."""

    def entry_for(self, dataset: str, entry: Entry) -> Entry:
        from dmm.models.entry import Facts
        from dmm.models.hierarchy import EPISODES, MOST_GROUPS, by_data

        usual = by_data(Facts(state_size=2, action_size=5, longest=STEPS[dataset]))
        c = entry.changes["interval"]
        groups = min(EPISODES * -(-STEPS[dataset] // c), MOST_GROUPS)
        return dataclasses.replace(entry, changes={} if c == usual["interval"] else {"interval": c, "groups": groups})


def make_tables_in_context() -> dict[str, Table]:
    """Every figure by name, in the order in which their jobs tell most."""
    goals = (
        Entry("with", "dmh", {"goals": "formula"}),
        Entry("literal", "dmh", {"goals": "literal"}),
        Entry("released", "dmh", {"goals": "released"}),
        Entry("without", "dmh", {"goal_weight": 0.0}),
    )
    intervals = tuple(Entry(f"c={c}", "dmh", {"interval": c}) for c in (1, 5, 10, 15, 20))
    everyone = models("dmh", "hdt", "ad", "ad-mamba", "at", "dpt")
    rooms = (DARKROOM, HARD, KEY, DYNAMIC, LARGE, LARGE_HARD, LARGE_KEY)
    tables = [
        Table("dmh-figure2", "Dark rooms, learned in context", rooms, everyone, kind="rooms"),
        Table("dmh-figure4a", "Sub-goals", (HARD, KEY, LARGE_HARD, LARGE_KEY), goals, kind="rooms"),
        Intervals("dmh-figure4b", "Steps of a group", (HARD, KEY, LARGE_HARD, LARGE_KEY), intervals, kind="rooms"),
        Mazes("dmh-figure3", "A cue, remembered", tuple(MAZES), models("dmh", "dm", "dt"), kind="mazes"),
    ]
    return {table.name: table for table in tables}


def cells_in_context(tables: Sequence[str] = ()) -> list[Cell]:
    """The cells of these figures, of all for none."""
    made = make_tables_in_context()
    return [cell for name in (tables or made) for cell in made[name].cells()]
