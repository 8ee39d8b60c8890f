"""Which functions an answer calls, by whatever name it has imported them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

import dmm

PACKAGE = str(Path(dmm.__file__).parent)
CONVOLUTIONS = tuple(f"conv{transposed}{n}d" for transposed in ("", "_transpose") for n in (1, 2, 3))
"""torch's own, which its layers and functions end in."""


class Call(NamedTuple):
    """One call that was seen."""

    name: str
    arguments: dict[str, Any]
    """As they were handed in; empty for a built-in function."""


class Calls:
    """Notes calls of some functions in the context `seen_by`, in this thread.

    A function is known by its code and not by its name, so that it is seen however it was imported or wrapped.

    Attributes:
        made: the calls so far, in their order.
    """

    def __init__(self, *functions: Callable[..., Any], builtins: Sequence[str] = (), folder: str = "") -> None:
        """Watches these functions, those of C with these names, and every one that is defined under `folder`."""
        self._codes = {inspect.unwrap(function).__code__ for function in functions}
        self._builtins, self._folder = frozenset(builtins), folder
        self.made: list[Call] = []

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls."""
        if event == "call":
            code = frame.f_code
            inside = self._folder and code.co_filename.startswith(self._folder) and code.co_name != "<module>"
            if (inside and not code.co_filename.startswith(_OWN)) or code in self._codes:
                self.made.append(Call(code.co_name, dict(frame.f_locals)))
        elif event == "c_call" and getattr(argument, "__name__", "") in self._builtins:
            self.made.append(Call(argument.__name__, {}))

    @staticmethod
    @contextmanager
    def seen_by(watched: Sequence[Calls]) -> Iterator[None]:
        """The context: what is called in it, all of them see. There may be none."""
        if not watched:
            yield
            return
        before = sys.getprofile()

        def note(frame: FrameType, event: str, argument: Any) -> None:
            for calls in watched:
                calls.note(frame, event, argument)

        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(before)


_OWN = str(Path(__file__).parent)


def package() -> Calls:
    """Every function of this package but the checks, and the making of any layer."""
    return Calls(nn.Module.__init__, folder=PACKAGE)


def convolutions() -> Calls:
    """torch's convolutions."""
    return Calls(builtins=CONVOLUTIONS)
