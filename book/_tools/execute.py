"""Run chapters and store their outputs, in the form in which they are committed.

    python book/_tools/execute.py 11_tables 12_ablations     these
    python book/_tools/execute.py                            all

Outputs lose what differs from run to run without a meaning: times of execution, the states of widgets, and how a text
that is printed was cut into messages. A notebook is written only when all of its cells have run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
Notebook = dict[str, Any]


def execute(path: Path) -> None:
    """Run a notebook where it lies, and store it with what its cells gave."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    clean(notebook)
    path.write_text(nbformat.writes(notebook, ensure_ascii=False, indent=1) + "\n")


def clean(notebook: Notebook) -> None:
    """Take out what says nothing."""
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"] = joined(cell["outputs"])


def joined(outputs: list[Notebook]) -> list[Notebook]:
    """Neighbouring pieces of one stream as one output."""
    found: list[Notebook] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] += output["text"]
        else:
            found.append(output)
    return found


def main(names: list[str]) -> None:
    there = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    if unknown := [name for name in names if name not in there]:
        sys.exit(f"no chapter {unknown[0]}; there are {', '.join(there)}")
    for name in names or there:
        print(name, flush=True)
        execute(there[name])


if __name__ == "__main__":
    main(sys.argv[1:])
