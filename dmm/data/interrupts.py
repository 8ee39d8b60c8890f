"""Ctrl-C that is not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Inside, an interrupt waits; at the end it takes effect.

    h5py runs Python code in callbacks of weak references, and Python prints and drops whatever is raised there: a
    KeyboardInterrupt that falls into one would be lost. Off the main thread, which alone receives signals, and where
    the handler is not Python's, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    asked: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: asked.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        signal.raise_signal(signal.SIGINT)
