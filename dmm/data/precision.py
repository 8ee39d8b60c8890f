"""Numbers as they are stored, and what float32 keeps of them.

A column such as seconds since 1970 differs from step to step by less than float32 can tell apart at its size. What such
columns have in common is taken off before they are rounded: whole numbers, exact in float64 and in integers alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dmm.errors import InputError, warn

EXACT = tuple(np.dtype(name) for name in ("bool", "int8", "uint8", "int16", "uint16", "float16", "float32"))
"""Types of which float32 holds every number."""
SMALLEST_CHANGE = 5e-7
"""Smaller changes from one step to the next are the noise of a simulator at rest, and no policy sees them: it divides
by standard deviation + 1e-6."""
MOST_LOST = 0.05
"""Part of a column's changes that may vanish in float32."""


def real_array(name: str, values: Any) -> np.ndarray:
    """`values` as an array of real numbers or truth values, of the type in which they come.

    Raises:
        InputError: text, objects, complex numbers, rows of different lengths, or a tensor that numpy cannot see.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{name}: allowed is an array of real numbers ({reason})") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: got shape {array.shape} of {array.dtype}, allowed are real numbers")
    return array


def not_finite(rows: np.ndarray) -> tuple[int, str] | None:
    """The first of `rows (n, ...)` that float32 cannot hold, and what is there; None if it can hold all."""
    if rows.dtype.kind != "f" or not rows.size:
        return None
    with np.errstate(invalid="ignore"):
        sound = np.abs(rows) <= np.finfo(np.float32).max
    if sound.all():
        return None
    row = int(np.argmin(sound.reshape(len(rows), -1).all(axis=1)))
    value = rows[row][~sound[row]].flat[0] if rows.ndim > 1 else rows[row]
    return row, f"{value:g}, more than float32 holds," if np.isfinite(value) else "NaN or infinity"


def subtract(rows: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """`rows (..., s) - offset (s,)`, whole numbers, with no digit of 64-bit integers lost: float64 or int64."""
    if rows.dtype.kind in "iu":  # modulo 2**64, so that unsigned ones may go below zero
        common = np.array([int(value) % 2**64 for value in offset], dtype=np.uint64)
        rows, offset = rows.astype(np.int64), common.astype(np.int64)
    else:
        rows = rows.astype(np.float64)
    difference: np.ndarray = rows - offset
    return difference


class ChangesLost:
    """Which columns change by less than float32 can tell apart, seen episode by episode."""

    def __init__(self) -> None:
        self.firsts: list[np.ndarray] = []  # row of each episode, float64
        self.last: np.ndarray | None = None
        self.moved: Any = 0  # changes of each column that are more than noise
        self.lost: Any = 0  # and how many of them are none in float32
        self.size = 0

    def add(self, rows: np.ndarray) -> None:
        """`rows (l, s)` of the next episode."""
        self.size = rows.shape[1]
        if rows.dtype in EXACT or not len(rows):
            return
        self.firsts.append(rows[0].astype(np.float64))
        pairs = rows if self.last is None else np.concatenate([self.last, rows])
        self.last = rows[-1:].copy()
        kept = pairs.astype(np.float32)
        if (np.abs(kept) < 8).all():  # there, float32 tells all such changes apart
            return
        signed = pairs.astype(np.int64) if pairs.dtype.kind == "u" else pairs
        moved = np.abs(np.diff(signed, axis=0).astype(np.float64)) > SMALLEST_CHANGE
        self.moved = self.moved + moved.sum(axis=0)
        self.lost = self.lost + (moved & (kept[1:] == kept[:-1])).sum(axis=0)

    def columns(self) -> np.ndarray:
        """The numbers of the columns of which float32 loses more than `MOST_LOST` of the changes."""
        return np.flatnonzero(self.lost > MOST_LOST * self.moved)

    def offset(self) -> np.ndarray:
        """What those columns have in common, `(s,)` whole numbers in float64; 0 for others."""
        offset = np.zeros(self.size)
        for column in self.columns():
            offset[column] = np.rint(np.median([first[column] for first in self.firsts]))
        return offset


def common_offset(parts: Sequence[ChangesLost]) -> np.ndarray | None:
    """The offset of columns side by side, `(s,)`; None where nothing has to be taken off."""
    offset = np.concatenate([part.offset() for part in parts])
    return offset if offset.any() else None


def warn_of_lost_changes(parts: Sequence[ChangesLost], names: Sequence[str]) -> None:
    """Say which columns change by less than float32 holds even without what they have in common."""
    lost = [f"column {column} of {name}" for name, part in zip(names, parts, strict=True) for column in part.columns()]
    if lost:
        warn(
            f"{', '.join(lost[:3])}{' ...' * (len(lost) > 3)}: most changes from step to step are too small for "
            "float32 beside the column's range; store the changes, or the number in parts, as columns of their own"
        )
