"""A folder with one page and one figure in which a policy acts, with the scripts as the site's build writes them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dmm.errors import RunError
from dmm.experiments import kept_run
from dmm.export import describe_policy
from dmm.widgets.acting import (
    ask_for_a_return,
    beside_recordings,
    remember_a_cue,
    take_something_away,
    ways_of_acting,
)
from dmm.widgets.live import LivePolicy
from dmm.widgets.mujoco import file_script, mujoco_script
from dmm.widgets.parts import ASSETS, asset, site_script

ROOT = Path(__file__).resolve().parents[2]
MAZE, HOPPER = "gating/pointmaze-dmm-seed0", "gating/hopper-dmm-seed0"
MAZE_MAMBA = "gating/pointmaze-mamba-seed0"
CUE = ("worlds/tmaze-k21", "worlds/tmaze-k8")


@functools.cache
def figures() -> dict[str, LivePolicy]:
    """The figures that the tests drive, by name."""
    both = {name: kept_run(name) for name in (MAZE, HOPPER)}
    return {
        "return": ask_for_a_return(both, "return"),
        "ways": ways_of_acting({MAZE: both[MAZE]}, "ways"),
        "cuts": take_something_away({MAZE: both[MAZE], MAZE_MAMBA: kept_run(MAZE_MAMBA)}, "cuts"),
        "cue": remember_a_cue({name: kept_run(name) for name in CUE}, "cue"),
        "recordings": beside_recordings(both, "recordings", 4),
    }


@functools.cache
def physics() -> str:
    """The script with MuJoCo. Without network there may be none: a test of it is skipped, but not in CI."""
    try:
        return mujoco_script()
    except RunError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def widgets_script() -> str:
    """dmm-widgets.js as the site's build writes it."""
    found = importlib.util.spec_from_file_location("dmm_site", ROOT / "book" / "_ext" / "dmm_site.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    script: str = module.classic_script(asset("widgets.js"), asset("page.js"))
    return script


def export(name: str) -> dict[str, Any]:
    """What the site has of a policy."""
    return describe_policy(kept_run(name))


def write_page(folder: Path, figure: LivePolicy, changed: dict[str, Any] | None = None) -> Path:
    """The page, its scripts and files; returns its path.

    Args:
        folder: an empty one.
        figure: the figure; its policies are exported.
        changed: what the file of a name holds instead, None for a file that is not there.
    """
    static = folder / "_static"
    files = static / "dmm-files"
    files.mkdir(parents=True)
    (static / "dmm-widgets.js").write_text(widgets_script(), "utf8")
    (static / "dmm-live.js").write_text(site_script(), "utf8")
    (static / "dmm-widgets.css").write_text((ASSETS / "widgets.css").read_text("utf8"), "utf8")
    contents: dict[str, Any] = {name: export(name) for name in figure.policies} | (changed or {})
    for name, content in contents.items():
        if content is not None:
            (files / f"{name.replace('/', '-')}.js").write_text(file_script(name, content), "utf8")
    if "mujoco" not in contents:
        (files / "mujoco.js").write_text(physics(), "utf8")
    page = folder / "page.html"
    page.write_text(
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Live</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="_static/dmm-widgets.css"><script src="_static/dmm-widgets.js" defer></script>'
        f"</head><body><main><h1>Live</h1>{figure.html()}"
        '<div style="height: 3000px"></div></main></body></html>',
        "utf8",
    )
    return page


def damaged(name: str, how: str) -> Any:
    """A policy's file that is of no use."""
    good: dict[str, Any] = json.loads(json.dumps(export(name)))
    if how == "no export":
        return {"weights": [1, 2, 3]}
    if how == "another version":
        return good | {"version": 99}
    import base64

    import numpy as np

    numbers = np.frombuffer(base64.b64decode(good["weights"]["data"]), "<f2").copy()
    numbers[100] = np.nan
    good["weights"]["data"] = base64.b64encode(numbers.tobytes()).decode()
    return good
