"""Tables in Markdown, as pages and notebooks show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dmm.errors import InputError


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table in Markdown: the first `words` columns to the left, the others, which hold numbers, to the right.

    Raises:
        InputError: a row has more or fewer cells than the head.
    """
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    for place, line in enumerate(lines):
        if len(line) != len(head):
            raise InputError(f"rows: row {place - 2} has {len(line)} cells, allowed are {len(head)}, as in the head")
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
