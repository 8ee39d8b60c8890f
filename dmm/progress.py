"""Progress on stderr: a bar where somebody watches, a line a minute in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from tqdm.auto import tqdm

SECONDS_PER_LINE = 60.0
LINE = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    desc: str = "",
    unit: str = "it",
    delay: float = 0.0,
    disable: bool = False,
) -> Any:
    """What all progress of this package is shown by: tqdm's own bar on a terminal and in a notebook, else `Lines`.

    Both are context managers with `update(n)` and `set_postfix(name=text)`, and iterate over `iterable` if given one.

    Args:
        iterable: what to iterate over.
        total: how many there are; that of `iterable` if not given.
        initial: how many are done before.
        desc, unit: what is done, and what is counted.
        delay: seconds before a first bar, so that short work shows none.
        disable: show nothing.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    about: dict[str, Any] = {"total": total, "initial": initial, "desc": desc, "unit": unit}
    if disable or is_watched():
        return tqdm(iterable, **about, delay=delay, disable=disable)
    return Lines(iterable, **about, delay=delay)


def is_watched() -> bool:
    """Whether what is written to stderr shows up before somebody who can see a bar move."""
    notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return notebook or bool(sys.stderr and sys.stderr.isatty())


class Lines:
    """A line at the beginning, one a minute, and one at the end; see `progress_bar`.

    A line that cannot be written, because the disk of the log is full, is left out: it must not end the work.
    """

    def __init__(
        self, iterable: Iterable[Any] | None, *, total: int | None, initial: int, desc: str, unit: str, delay: float
    ):
        self.iterable, self.total, self.initial, self.n = iterable, total, initial, initial
        self.desc, self.unit = desc, unit
        self.postfix, self.closed, self.began = "", False, time.monotonic()
        self.due = self.began + (delay or 0.0)  # of the next line
        self.written = -1  # count of the last line
        if not delay:
            self._write(self.began)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.n += n
        if (now := time.monotonic()) >= self.due:
            self._write(now)

    def set_postfix(self, **values: Any) -> None:
        """What further lines end with."""
        self.set_postfix_str(", ".join(f"{name}={value}" for name, value in values.items()))

    def set_postfix_str(self, text: str) -> None:
        """The same, in words."""
        self.postfix = text

    def close(self) -> None:
        """Write the last line, unless there is nothing new to say or the work was too short for a first one."""
        now = time.monotonic()
        if not self.closed and self.n != self.written and (self.written >= 0 or now >= self.due):
            self._write(now)
        self.closed = True

    def _write(self, now: float) -> None:
        self.due, self.written = now + SECONDS_PER_LINE, self.n
        text = tqdm.format_meter(
            **{"n": self.n, "total": self.total, "initial": self.initial, "elapsed": now - self.began},
            **{"unit": self.unit, "prefix": self.desc, "postfix": self.postfix or None},
            bar_format=LINE if self.total else None,
        )
        with suppress(OSError, ValueError, AttributeError):  # full, closed, none at all
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
