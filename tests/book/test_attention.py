"""The page on attention: its Python runs and prints what it shows, and its hand calculation is right."""

from __future__ import annotations

from pathlib import Path

from tests.book.running import run_blocks

PAGE = Path(__file__).resolve().parents[2] / "book" / "attention.md"


def test_python_blocks_run_in_order_and_print_what_the_page_shows(tmp_path: Path) -> None:
    assert run_blocks(PAGE, tmp_path) == 2
