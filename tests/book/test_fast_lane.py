"""Long chapters say at their top what to read of them in twenty minutes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONG = 7500  # words of text and code
MINUTES = 20
PROSE, CODE = 200, 300  # words a minute: of text, and of code, which is rather looked at than read
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def sections(path: Path) -> dict[str, tuple[int, int]]:
    """Words of text and of code of each section, by its number; "" is what stands before the first."""
    found: dict[str, list[int]] = {"": [0, 0]}
    now = ""
    for cell in json.loads(path.read_text("utf8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            found[now][1] += len(source.split())
            continue
        for part in re.split(r"^(## .*)$", source, flags=re.MULTILINE):
            if part.startswith("## "):
                now = part.split()[1]
                found[now] = [0, 0]
            else:
                found[now][0] += len(part.split())
    return {name: (text, code) for name, (text, code) in found.items()}


def lane(path: Path) -> list[str]:
    """The sections that the fast lane names."""
    first = "".join(json.loads(path.read_text("utf8"))["cells"][0]["source"])
    box = re.search(r":class: seealso fast-lane\n(.*?)\n:::", first, re.DOTALL)
    return re.findall(r"\[(\d+\.\d+)\]", box[1]) if box else []


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_long_chapter_has_a_lane_of_twenty_minutes(path: Path) -> None:
    words, named = sections(path), lane(path)
    if sum(map(sum, words.values())) > LONG:
        assert named, "a chapter of this length begins with a fast lane"
    assert set(named) <= set(words)
    minutes = sum(words[name][0] / PROSE + words[name][1] / CODE for name in named)
    assert minutes <= MINUTES, f"its sections take {minutes:.0f} minutes"
