"""Pages whose Python runs as it stands, in order, and prints what they show."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    return BLOCK.findall(page.read_text("utf8"))


def run_blocks(page: Path, folder: Path) -> int:
    """Run the page's Python in one namespace, and hold each block of `text` against what the block before it printed.

    A block that begins with the name of a file is that file, written to `folder`. Returns how many texts were compared.
    """
    names: dict[str, object] = {"__name__": "page"}
    printed, shown = "", 0
    for language, text in blocks_of(page):
        if language == "text":
            assert printed == text
            shown += 1
        elif language == "python" and (file := re.match(r"# (\w+\.py)\n", text)):
            (folder / file[1]).write_text(text, "utf8")
        elif language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, str(page), "exec"), names)
            printed = out.getvalue()
    return shown
