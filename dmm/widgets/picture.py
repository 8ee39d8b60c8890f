"""The still picture of a live figure: the same specification, drawn once by matplotlib for pages without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory
from numpy.typing import NDArray

from dmm.plots import COLORS
from dmm.widgets.controls import Spec
from dmm.widgets.formats import format_value

Known = Mapping[str, NDArray[Any]]

KIND_NAMES = {"rtg": "return-to-go", "state": "state", "action": "action"}
_WIDTH = 7.2
_DPI = 100
_ROOM = 0.94 * 72 * _WIDTH  # for a line of text, in points
_PIXELS_PER_INCH = 96
_FORMATS = {"line": "-", "dashed": "--", "dots": "o"}


def draw(spec: Spec, settings: Mapping[str, float | str], known: Known, readouts: Mapping[str, str]) -> bytes:
    """A png of all panels at one setting, with the setting and the read-outs written below."""
    rows = _rows(spec["panels"])
    heights = [max(panel["height"] for panel in row) / _PIXELS_PER_INCH + 0.35 for row in rows]
    lines = _sentence(spec, settings, readouts)
    foot = 0.2 * len(lines) + 0.1
    with mpl.rc_context(mpl.rcParamsDefault | {"font.size": 9, "axes.grid": False}):
        figure = Figure(figsize=(_WIDTH, sum(heights) + foot), dpi=_DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(len(rows) + 1, 2, height_ratios=[*heights, foot])
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                axes = figure.add_subplot(grid[i, j] if len(row) == 2 else grid[i, :])
                axes.set_title(panel["caption"], fontsize=9, loc="left")
                _PAINTERS[panel["kind"]](axes, panel, known)
        words = figure.add_subplot(grid[len(rows), :])
        words.axis("off")
        place = blended_transform_factory(figure.transFigure, words.transAxes)
        words.text(0.015, 1, "\n".join(lines), va="top", fontsize=9, transform=place, in_layout=False)
        target = BytesIO()
        figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _rows(panels: list[Spec]) -> list[list[Spec]]:
    rows: list[list[Spec]] = []
    for panel in panels:
        joins = rows and len(rows[-1]) == 1 and panel["width"] == rows[-1][0]["width"] == "half"
        rows[-1].append(panel) if joins else rows.append([panel])
    return rows


def _sentence(spec: Spec, settings: Mapping[str, float | str], readouts: Mapping[str, str]) -> list[str]:
    texts = {c["label"]: c["texts"][c["values"].index(settings[c["name"]])] for c in spec["controls"]}
    parts = [f"{label}: {text}" for label, text in texts.items()]
    return _wrapped(parts) + _wrapped([f"{label} {text}" for label, text in readouts.items()])


def _wrapped(parts: list[str]) -> list[str]:
    """The parts behind one another, in lines as long as the picture is wide; a part breaks only if it must."""
    lines: list[str] = []
    for part in (text + ";" for text in parts):
        joined = f"{lines[-1]} {part}" if lines else part
        if lines and _points(joined) <= _ROOM:
            lines[-1] = joined
            continue
        lines.append("")
        for word in part.split():
            longer = f"{lines[-1]} {word}".lstrip()
            if lines[-1] and _points(longer) > _ROOM:
                lines.append(word)
            else:
                lines[-1] = longer
    return [*lines[:-1], lines[-1].removesuffix(";")] if lines else []


def _points(text: str) -> float:
    """How long a text is in the size of the read-outs, in points."""
    return float(TextPath((0, 0), text.replace("$", "S"), size=9).get_extents().width)


def _labelled(axes: Axes, panel: Spec) -> None:
    axes.set_xlabel(panel["x_label"])
    axes.set_ylabel(panel["y_label"])
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Axes, panel: Spec, known: Known) -> None:
    for entry in panel["y"]:
        y = known[entry["data"]]
        x = known[panel["x"]] if isinstance(panel["x"], str) else (panel["x"] or np.arange(len(y)))
        color = COLORS[entry["color"]]
        if entry["style"] == "steps":
            axes.step(x, y, where="post", color=color, label=entry["name"])
        else:
            axes.plot(x, y, _FORMATS[entry["style"]], color=color, label=entry["name"], markersize=4)
        if "low" in entry:
            _interval(axes, x, known[entry["low"]], known[entry["high"]], color, entry["style"])
    for mark in panel["marks"]:
        for axis, line in (("x", axes.axvline), ("y", axes.axhline)):
            if mark[axis] is not None:
                line(_number(mark[axis], known), color="#555555", linewidth=1, linestyle=":")
    axes.set_xscale("log" if panel["log_x"] else "linear")
    axes.set_yscale("log" if panel["log_y"] else "linear")
    axes.set(xlim=_limits(panel["x_range"], known), ylim=_limits(panel["y_range"], known))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    _labelled(axes, panel)


def _interval(axes: Axes, x: Any, low: Any, high: Any, color: str, style: str) -> None:
    if style == "dots":
        axes.vlines(x, low, high, color=color, linewidth=1.5)
    else:
        axes.fill_between(x, low, high, step="post" if style == "steps" else None, color=color, alpha=0.2, linewidth=0)


def _limits(value: Any, known: Known) -> Any:
    return known[value] if isinstance(value, str) else value


def _number(value: Any, known: Known) -> float:
    return float(known[value] if isinstance(value, str) else value)


def _heatmap(axes: Axes, panel: Spec, known: Known) -> None:
    matrix = known[panel["data"]].T if panel["transpose"] else known[panel["data"]]
    colors = "RdBu_r" if panel["colors"] == "diverging" else "viridis"
    low, high = panel["range"]
    image = axes.imshow(matrix, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    beside, above = _letters(panel) - 20, panel["height"] / 16
    for names, axis, room in ((panel["x_ticks"], axes.xaxis, beside), (panel["y_ticks"], axes.yaxis, above)):
        if names is not None:
            every = math.ceil(sum(len(name) + 2 if axis is axes.xaxis else 1 for name in names) / room)
            axis.set_ticks(range(0, len(names), every), names[::every])
        else:
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.figure.colorbar(image, ax=axes, label=panel["value_label"])
    _labelled(axes, panel)
    _kind_bands(axes, panel)


def _kind_bands(axes: Axes, panel: Spec) -> None:
    """A thin strip of modality colours left of the rows and below the columns, and which colour is which."""
    columns, rows = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    for i, kind in enumerate(panel["x_kinds"] or ()):
        axes.add_patch(Rectangle((i - 0.5, -0.03), 1, 0.025, color=COLORS[kind], transform=columns, clip_on=False))
    for i, kind in enumerate(panel["y_kinds"] or ()):
        axes.add_patch(Rectangle((-0.015, i - 0.5), 0.012, 1, color=COLORS[kind], transform=rows, clip_on=False))
    shown = dict.fromkeys([*(panel["y_kinds"] or ()), *(panel["x_kinds"] or ())])
    if shown:
        entries = [Rectangle((0, 0), 1, 1, color=COLORS[kind], label=KIND_NAMES.get(kind, kind)) for kind in shown]
        look: Spec = {"frameon": False, "fontsize": 8, "ncols": 3, "columnspacing": 1, "handlelength": 1}
        axes.legend(handles=entries, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, **look)
        axes.set_title(panel["caption"], fontsize=9, loc="left", pad=20)  # above the legend
        axes.tick_params(length=0, pad=8)


def _plane(axes: Axes, panel: Spec, known: Known) -> None:
    if panel["stable"] == "disc":
        axes.add_patch(Circle((0, 0), 1, color="#E8F3EE"))
    if panel["stable"] == "half-plane":
        axes.axvspan(panel["x_range"][0], 0, color="#E8F3EE")
    if panel["unit_circle"]:
        axes.add_patch(Circle((0, 0), 1, fill=False, linestyle="--", color="#555555"))
    for entry in panel["points"]:
        points = known[entry["data"]]
        axes.plot(points[:, 0], points[:, 1], "o", color=COLORS[entry["color"]], label=entry["name"])
    axes.axhline(0, color="#555555", linewidth=0.6)
    axes.axvline(0, color="#555555", linewidth=0.6)
    axes.set(xlim=panel["x_range"], ylim=panel["y_range"], aspect="equal")
    if len(panel["points"]) > 1:
        axes.legend(frameon=False, fontsize=8)
    _labelled(axes, panel)


def _letters(panel: Spec) -> int:
    """How many letters fit below a panel's axis."""
    return 95 if panel["width"] == "full" else 45


def _bars(axes: Axes, panel: Spec, known: Known) -> None:
    heights = known[panel["data"]]
    names = [str(name) for name in (known[panel["names"]] if isinstance(panel["names"], str) else panel["names"])]
    ends = known[panel["intervals"]] if panel["intervals"] else np.full((len(heights), 2), np.nan)
    if panel.get("horizontal"):
        shown = np.flatnonzero(np.isfinite(heights)).max(initial=-1) + 1
        heights, names, ends = heights[:shown], names[:shown], ends[:shown]
    colors = [COLORS[color] for color in _bar_colors(panel, len(heights))]
    chosen = _number(panel["highlight"], known) if panel.get("highlight") else math.nan
    pale = [0.35 if math.isfinite(chosen) and i != chosen else 1.0 for i in range(len(heights))]
    if panel.get("horizontal"):
        _lying_bars(axes, panel, heights, names, ends, colors, pale)
        return
    for bar, alpha in zip(axes.bar(range(len(heights)), heights, color=colors), pale, strict=True):
        bar.set_alpha(None if alpha == 1 else alpha)
    every = math.ceil(sum(len(name) + 2 for name in names) / _letters(panel))
    axes.set_xticks(range(0, len(heights), every), names[::every])
    for i, (low, high) in enumerate(ends):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([i, i], [low, high], color="#1F2328", linewidth=1.5)
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_ylim(panel["y_range"])
    _labelled(axes, panel)


def _bar_colors(panel: Spec, bars: int) -> list[str]:
    return [panel["color"]] * bars if isinstance(panel["color"], str) else panel["color"][:bars]


def _lying_bars(
    axes: Axes, panel: Spec, heights: Any, names: list[str], ends: Any, colors: list[str], pale: list[float]
) -> None:
    for i, (value, color, alpha) in enumerate(zip(heights, colors, pale, strict=True)):
        axes.barh(i, value, color=color, alpha=alpha)
        if np.isfinite(ends[i]).all():
            axes.plot(ends[i], [i, i], color="#1F2328", linewidth=1.5)
    axes.set_yticks(range(len(heights)), names)
    for label, alpha in zip(axes.get_yticklabels(), pale, strict=True):
        label.set_fontweight("bold" if alpha == 1 and min(pale) < 1 else "normal")
    axes.axvline(0, color="#555555", linewidth=0.8)
    axes.set(xlim=panel["y_range"], ylim=(max(len(heights), 1) - 0.5, -0.5))
    _labelled(axes, panel | {"x_label": panel["y_label"], "y_label": panel["x_label"]})


def _strip(axes: Axes, panel: Spec, known: Known) -> None:
    tokens = len(panel["kinds"])
    strength = known[panel["strength"]] if panel["strength"] else np.ones(tokens)
    present = known[panel["present"]] if panel["present"] else np.ones(tokens)
    labels = known[panel["labels"]] if isinstance(panel["labels"], str) else panel["labels"]
    for i, color in enumerate(panel["color"]):
        filled = {"facecolor": COLORS[color], "alpha": 0.15 + 0.85 * float(np.clip(strength[i], 0, 1))}
        empty = {"facecolor": "none", "edgecolor": COLORS[color], "linestyle": ":"}
        axes.add_patch(Rectangle((i + 0.04, 0), 0.92, 1, **(filled if present[i] > 0 else empty)))
        if labels is not None:
            strong = present[i] > 0 and strength[i] > 0.45
            axes.text(i + 0.5, 0.5, _text(labels[i], panel["format"]), ha="center", va="center", fontsize=7,
                      color="white" if strong else "black")  # fmt: skip
    if panel["highlight"]:
        first, end = known[panel["highlight"]]
        axes.plot([first + 0.04, end - 0.04], [-0.2, -0.2], color="#1F2328", linewidth=3)
    axes.set(xlim=(0, tokens), ylim=(-0.4, 1.05))
    axes.axis("off")


def _text(value: Any, form: str) -> str:
    return format_value(value if isinstance(value, str) else float(value), form)


def _paths(axes: Axes, panel: Spec, known: Known) -> None:
    for left, bottom, width, height in _whole_rows(_limits(panel["walls"], known)):
        axes.add_patch(Rectangle((left, bottom), width, height, color="#8B949E", linewidth=0))
    for entry in panel["paths"]:
        _route(axes, entry, panel, known)
    for entry in panel["figures"]:
        _skeleton(axes, entry, panel, known)
    for name, place in panel["points"].items():
        x, y = known[place] if isinstance(place, str) else place
        if math.isfinite(x) and math.isfinite(y):
            axes.plot(x, y, "*", color="#1F2328", markersize=9)
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(7, -3))
    axes.set(xlim=_limits(panel["x_range"], known), ylim=_limits(panel["y_range"], known), aspect="equal")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    _labelled(axes, panel)


def _whole_rows(rows: Any) -> Any:
    """The rows without a gap."""
    array = np.asarray(rows, dtype=np.float64)
    return array[np.isfinite(array).all(-1)] if array.size else ()


def _route(axes: Axes, entry: Spec, panel: Spec, known: Known) -> None:
    route, color = known[entry["data"]], COLORS[entry["color"]]
    real = np.flatnonzero(np.isfinite(route).all(1))
    if not real.size:
        return
    past = real if panel["time"] is None else real[real <= max(round(_number(panel["time"], known)), real[0])]
    axes.plot(route[:, 0], route[:, 1], color=color, alpha=0.3)
    axes.plot(route[: past[-1] + 1, 0], route[: past[-1] + 1, 1], color=color, label=entry["name"])
    if not any(np.isfinite(known[figure["data"]]).any() for figure in panel["figures"]):
        axes.plot(*route[past[-1]], "o", color=color)


def _skeleton(axes: Axes, entry: Spec, panel: Spec, known: Known) -> None:
    points, color = known[entry["data"]], COLORS[entry["color"]]
    if not np.isfinite(points).any():
        return
    low, high = _limits(panel["y_range"], known)
    segments = np.asarray(_whole_rows(_limits(entry["segments"], known)), dtype=np.int64).reshape(-1, 2)
    limbs = points[segments]  # (s, 2 ends, 2)
    limbs = limbs[np.isfinite(limbs).all((1, 2))]
    length = np.linalg.norm(limbs[:, 1] - limbs[:, 0], axis=1).mean() if len(limbs) else 0.0
    width = np.clip(length / (high - low) * panel["height"] / 13, 1.1, 4)
    axes.plot(*limbs.transpose(2, 1, 0), color=color, linewidth=width, solid_capstyle="round")
    axes.plot(points[:, 0], points[:, 1], "o", color=color, markersize=1.6 * width if len(limbs) else 7)
    axes.plot([], [], "-" if len(limbs) else "o", color=color, label=entry["name"])


_PAINTERS: dict[str, Callable[[Axes, Spec, Known], None]] = {
    "lines": _lines,
    "heatmap": _heatmap,
    "plane": _plane,
    "bars": _bars,
    "strip": _strip,
    "paths": _paths,
}
