"""Every recipe's data set at its full size: how large, how good, how long it takes to make.

    python -m dmm.experiments.datasets --out runs/datasets.json

makes the sets one after the other where Minari keeps its data sets, and leaves them there; `--transitions 20000` makes
small ones, `--only dmm/kitchen` those whose names begin so. A set that is there already is described, not made again,
and keeps the seconds that the result file tells.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmm.bench import machine
from dmm.data.collect import CollectSummary, collect
from dmm.data.environments import package_versions
from dmm.data.minari_files import dataset_folder
from dmm.data.recipes import RECIPES, Recipe
from dmm.data.scores import normalize
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.experiments import RESULTS, path_argument, write_result

BINS = 30
CELLS = 24
PARTS = 40
COVERED: dict[str, tuple[int, int, str, str]] = {
    "Hopper-v5": (0, 5, "height (m)", "forward velocity (m/s)"),
    "Walker2d-v5": (0, 8, "height (m)", "forward velocity (m/s)"),
    "HalfCheetah-v5": (1, 8, "pitch (rad)", "forward velocity (m/s)"),
    "dmm/AntMaze-v0": (0, 1, "x (m)", "y (m)"),
    "PointMaze_UMaze-v3": (0, 1, "x (m)", "y (m)"),
    "PointMaze_Medium-v3": (0, 1, "x (m)", "y (m)"),
    "dmm/Kitchen-v0": (22, 17, "microwave door (rad)", "light switch (rad)"),
    "dmm/TMaze-v0": (0, 1, "x", "y"),
    "dmm/Darkroom-v0": (0, 1, "x", "y"),
    "dmm/DarkroomHard-v0": (0, 1, "x", "y"),
    "dmm/LargeDarkroom-v0": (0, 1, "x", "y"),
    "dmm/LargeDarkroomHard-v0": (0, 1, "x", "y"),
    "dmm/KeyToDoor-v0": (0, 1, "x", "y"),
    "dmm/LargeKeyToDoor-v0": (0, 1, "x", "y"),
    "dmm/DarkroomDynamic-v0": (0, 1, "x", "y"),
    "dmm/LargeDarkroomDynamic-v0": (0, 1, "x", "y"),
}
"""Two entries of the state that show how far a data set reaches, and what they are."""


def describe(recipe: Recipe, made: CollectSummary, data: Trajectories) -> dict[str, Any]:
    """A data set's row: sizes, returns, lengths, coverage. Returns are undiscounted, in the environment's units.

    Of histories it also has `learning`: the mean return in each of up to `PARTS` stretches of a history.
    """
    returns = data.returns()
    return {
        "name": recipe.name,
        "environment": recipe.env_id,
        "transitions": data.transitions,
        "episodes": data.episodes,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_range": [float(returns.min()), float(returns.max())],
        "normalized_mean": float(normalize(returns.mean(), recipe.reference)),
        "normalized_std": float(np.std(normalize(returns, recipe.reference))),
        "length_mean": float(data.lengths.mean()),
        "terminated": float(data.terminated.mean()),
        "fingerprint": data.fingerprint(),
        "megabytes": round(sum(file.stat().st_size for file in Path(made.path).rglob("*") if file.is_file()) / 1e6, 1),
        "returns": _histogram(returns),
        "lengths": _histogram(data.lengths.astype(float)),
        "coverage": _coverage(recipe.env_id, data.observations),
        "returns_in_order": _blocks_of(returns, PARTS),
        **({} if data.histories is None else {"learning": _learning(returns, data.histories)}),
    }


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    low, high = float(values.min()), float(values.max())
    room = 0.0 if high > low else max(0.5, abs(low) / 2000)  # a picture has to tell its edges apart
    counts, edges = np.histogram(values, bins=BINS, range=(low - room, high + room))
    return {"counts": counts.tolist(), "edges": np.round(edges, 4).tolist()}


def _coverage(env_id: str, states: np.ndarray) -> dict[str, Any]:
    """How often each of `CELLS x CELLS` cells of two state entries was visited, between their 0.1 and 99.9 %."""
    first, second, *labels = COVERED[env_id]
    pairs = states[:, [first, second]].astype(np.float64)
    low, high = np.quantile(pairs, [0.001, 0.999], axis=0)
    high = np.where(high > low, high, low + 1.0)
    counts, _ = np.histogramdd(pairs, bins=CELLS, range=list(zip(low.tolist(), high.tolist(), strict=True)))
    shares = counts / counts.sum()
    return {
        "labels": labels,
        "low": low.round(4).tolist(),
        "high": high.round(4).tolist(),
        "shares": shares.round(6).tolist(),
        "entropy_bits": float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()),
    }


def _blocks_of(returns: np.ndarray, parts: int) -> list[float]:
    """The mean return in each of `parts` stretches of the data set, in stored order."""
    return [float(part.mean()) for part in np.array_split(returns, min(parts, len(returns)))]


def _learning(returns: np.ndarray, histories: np.ndarray) -> list[float]:
    """As `_blocks_of` of a history, averaged over the histories; the last one is left out if it was cut short."""
    each = np.split(returns, np.flatnonzero(np.diff(histories)) + 1)
    whole = [history for history in each if len(history) == len(each[0])]
    return _blocks_of(np.mean(whole, axis=0), PARTS)


def _row(recipe: Recipe, transitions: int | None, workers: int | None, known: dict[str, Any]) -> dict[str, Any]:
    there = dataset_folder(recipe.name).exists()
    made = collect(recipe, transitions=transitions, workers=workers)
    row = describe(recipe, made, load_trajectories(recipe.name))
    before = known.get(recipe.name, {})
    same = before.get("fingerprint") == row["fingerprint"]
    # a set that was there is returned at once: the time that counts is the one it took to make
    row["seconds"] = before["seconds"] if same else None if there else round(made.seconds, 1)
    row["cores"] = before["cores"] if same else machine()["cores"]
    return row


def _known(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {row["name"]: {"cores": stored["machine"]["cores"], **row} for row in stored["rows"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make every data set and describe it.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "datasets.json")
    parser.add_argument("--transitions", type=int, help="size of each set; the recipe's own if left out")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--only", default="", metavar="PREFIX", help="names that begin so")
    args = parser.parse_args(arguments)

    known = _known(args.out)
    for recipe in RECIPES.values():
        if recipe.name.startswith(args.only):
            known[recipe.name] = _row(recipe, args.transitions, args.workers, known)
            rows = [known[name] for name in RECIPES if name in known]
            result = {"machine": machine(), "packages": package_versions(), "bins": BINS, "rows": rows}
            write_result(args.out, result)  # after each set: a killed run loses only the one under way


if __name__ == "__main__":
    main()
