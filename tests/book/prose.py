"""What the book says in its own words: Markdown of pages and notebooks, without code, outputs and maths."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def pages() -> dict[str, str]:
    """Each page's prose by its path, white space as single blanks."""
    found = {path.relative_to(ROOT).as_posix(): path.read_text("utf8") for path in sorted((ROOT / "book").glob("*.md"))}
    found["README.md"] = (ROOT / "README.md").read_text("utf8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        found[path.relative_to(ROOT).as_posix()] = text
    return {name: " ".join(_without_code(text).split()) for name, text in found.items()}


def _without_code(text: str) -> str:
    return re.sub(r"^(`{3,})(?:python|bash|text|json|\{raw\}|\{eval-rst\}).*?^\1$", " ", text, flags=re.M | re.S)


def headings() -> dict[str, set[str]]:
    """The numbered headings of the chapters: chapter -> numbers of its sections."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf8"))["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        found[str(int(path.name[:2]))] = set(re.findall(r"^## (\d+\.\d+)\s", text, re.MULTILINE))
    return found
