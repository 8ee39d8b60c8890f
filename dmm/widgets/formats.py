"""Numbers as text, in Python's own formats; widgets.js writes the same texts."""

from __future__ import annotations

import math
import re

import numpy as np

FORMAT = re.compile(r"d|\.\d[feg%]|s")
"""The formats that both sides know."""


def format_value(value: float | str | None, form: str) -> str:
    """One number as the page shows it; a gap is a dash."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    text = f"{round(value)}" if form == "d" else f"{value:{form}}"
    return text.removeprefix("-") if re.fullmatch(r"-[0.]+%?", text) else text
