"""One style for every picture of the book: colours, sizes, and an opaque ground that reads on light and dark pages."""

from __future__ import annotations

from typing import Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmm.errors import InputError

COLORS: dict[str, str] = {
    "rtg": "#E69F00",
    "state": "#0072B2",
    "action": "#CC3311",
    "green": "#009988",
    "purple": "#AA4499",
    "grey": "#555555",
}
"""The three modalities, then three colours for lines that belong to none of them."""

LINE_CYCLE: tuple[str, ...] = ("state", "action", "green", "purple", "grey", "rtg")
SIZES: dict[str, tuple[float, float]] = {"full": (7.2, 3.4), "half": (3.6, 2.7)}
DPI = 110


def use_style() -> None:
    """Set matplotlib's defaults to the book's: the colours above, a white ground, thin grid lines, an open frame."""
    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=[COLORS[name] for name in LINE_CYCLE]),
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.labelsize": 10,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.transparent": False,
            "savefig.dpi": DPI,
            "figure.dpi": DPI,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.6,
            "image.cmap": "viridis",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            # Fixed ids in svg files, so that a picture made twice has the same bytes.
            "svg.hashsalt": "decision-metamamba",
        }
    )


def figure(width: Literal["full", "half"] = "full", *, height: float | None = None) -> tuple[Figure, Axes]:
    """A figure of the book's full or half text width, and its one axes.

    Args:
        width: "full" (7.2 inches) or "half" (3.6 inches).
        height: inches; the width's usual height if not given.

    Raises:
        InputError: the width is neither "full" nor "half", or the height is not positive.
    """
    if width not in SIZES:
        raise InputError(f"width is {width!r}; allowed: 'full', 'half'")
    if height is not None and height <= 0:
        raise InputError(f"height is {height!r}; it must be positive")
    use_style()
    inches, usual = SIZES[width]
    return plt.subplots(figsize=(inches, usual if height is None else height))
