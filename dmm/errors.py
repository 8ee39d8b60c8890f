"""The two ways in which a call of this package can fail on purpose."""

from __future__ import annotations


class InputError(ValueError):
    """What the caller passed is wrong: names the argument, what came and what is allowed. The command exits with 2."""


class RunError(RuntimeError):
    """The input was fine and the run failed all the same, as on a non-finite loss. The command exits with 1."""
