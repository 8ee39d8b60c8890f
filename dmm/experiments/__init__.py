"""Experiments whose results the book shows: each module is a command that remakes one committed result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
"""The committed result files, part of the package so that a notebook finds them wherever it runs."""


def load_result(name: str) -> dict[str, Any]:
    """What `python -m dmm.experiments.<name>` wrote when its result file was committed."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, one value a line, so that versions can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
