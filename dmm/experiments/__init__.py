"""Experiments whose results the book shows: each module is a command that remakes one committed result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmm.files import strict_json, user_path

if TYPE_CHECKING:
    from dmm.training import Run

RESULTS = Path(__file__).parent / "results"
"""The committed result files, part of the package so that a notebook finds them wherever it runs."""


MODELS = Path(__file__).parent / "models"
"""Committed runs of some of these experiments, weights rounded to half precision."""


def load_result(name: str) -> dict[str, Any]:
    """What `python -m dmm.experiments.<name>` wrote when its result file was committed."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def path_argument(text: str) -> Path:
    """A path as the experiments' commands take it, `~` included."""
    return user_path("path", text)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, one value a line, so that versions can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(strict_json(result, indent=1) + "\n")


def kept_run(name: str) -> Run:
    """A committed run, such as `gating/pointmaze-dmm-seed0`, its policy in float32 and evaluation mode.

    Raises:
        InputError: no such run; the message lists what there is.
    """
    from dmm.errors import InputError
    from dmm.training import load_run

    if not (MODELS / name / "run.json").exists():
        there = sorted(file.parent.relative_to(MODELS).as_posix() for file in MODELS.rglob("run.json"))
        raise InputError(f"name: no committed run {name!r}, allowed are {', '.join(there)}")
    return load_run(MODELS / name)
