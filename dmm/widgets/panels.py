"""What a live figure shows: its panels and read-outs, each written down as a plain specification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dmm.errors import InputError
from dmm.plots import COLORS, LINE_CYCLE
from dmm.widgets.controls import Spec
from dmm.widgets.formats import FORMAT, format_value

Series = Mapping[str, "str | Line"]
Range = tuple[float, float]
Numbers = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Line:
    """One line of a `Lines` panel: the data it draws, a colour of `dmm.plots.COLORS`, and how it is drawn.

    `low` and `high`, two data entries of the line's length, add an interval: a band, or a bar at each dot.
    """

    data: str
    color: str | None = None
    style: Literal["line", "dashed", "dots", "steps"] = "line"
    low: str | None = None
    high: str | None = None

    def spec(self) -> Spec:
        if (self.low is None) != (self.high is None):
            raise InputError(f"Line {self.data!r}: an interval needs both low and high; got {self.low}, {self.high}")
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Skeleton:
    """One stick figure of a `Paths` panel.

    Args:
        points: data entry (p, 2), where its points are; a point with a gap is left out, and so are its segments.
        segments: pairs of point numbers that a line joins, or a data entry (s, 2) of them in which rows of gaps are
            left out, for figures whose build depends on a control.
        color: a colour of `dmm.plots.COLORS`.
    """

    points: str
    segments: Sequence[tuple[int, int]] | str = ()
    color: str | None = None


@dataclass(frozen=True)
class Mark:
    """A reference line at x or at y: a number, or the name of a data entry or slider that moves it."""

    x: float | str | None = None
    y: float | str | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What all panels share: a caption above, "full" or "half" width, and a height in pixels."""

    caption: str = ""
    width: Literal["full", "half"] = "full"
    height: int = 240

    kind: ClassVar[str] = ""

    def spec(self) -> Spec:
        fields = {name: _panel_value(value) for name, value in vars(self).items()}
        return {"kind": self.kind, **fields}

    def fitted(self, spec: Spec, ranges: Callable[[Sequence[str]], Range]) -> Spec:
        """The specification with each scale that was left open fixed over all settings."""
        del ranges
        return spec

    def check(self, known: Numbers) -> None:
        """Refuse what does not fit the data of one setting."""


def _panel_value(value: Any) -> Any:
    if isinstance(value, Line | Mark):
        return vars(value)
    if isinstance(value, Mapping):
        return {key: _panel_value(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_panel_value(entry) for entry in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value


@dataclass(frozen=True, kw_only=True)
class Lines(Panel):
    """Named lines over one x axis. `x` is numbers, the name of a data entry, or None for 0, 1, 2, ...

    A range that is left open is the same at all settings; one that names a data entry (2,) changes with the controls.
    """

    y: Series
    x: Sequence[float] | NDArray[Any] | str | None = None
    x_label: str = ""
    y_label: str = ""
    x_range: Range | str | None = None
    y_range: Range | str | None = None
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[Mark] = ()

    kind: ClassVar[str] = "lines"

    def spec(self) -> Spec:
        spec = super().spec()
        lines = {name: Line(entry) if isinstance(entry, str) else entry for name, entry in self.y.items()}
        colors = [line.color or LINE_CYCLE[i % len(LINE_CYCLE)] for i, line in enumerate(lines.values())]
        spec["y"] = [
            {"name": name, **line.spec(), "color": _color(color)}
            for (name, line), color in zip(lines.items(), colors, strict=True)
        ]
        return spec

    def fitted(self, spec: Spec, ranges: Callable[[Sequence[str]], Range]) -> Spec:
        fitted: Spec = {}
        keys = [line[key] for line in spec["y"] for key in ("data", "low", "high") if key in line]
        if spec["y_range"] is None:
            limits = ranges(keys)
            extra = [mark.y for mark in self.marks]
            fitted["y_range"] = _padded_in_powers(limits) if spec["log_y"] else _padded(limits, extra)
        if spec["x_range"] is None and spec["x"] is not None:
            x = spec["x"]
            fitted["x_range"] = ranges([x]) if isinstance(x, str) else (min(x), max(x))
        return spec | fitted

    def check(self, known: Numbers) -> None:
        _check_limits(self, known)


@dataclass(frozen=True, kw_only=True)
class Heatmap(Panel):
    """A matrix (rows, columns) as colours on one scale for all settings.

    Args:
        x_ticks, y_ticks: a text per column and per row; their numbers if not given.
        x_kinds, y_kinds: "rtg", "state", "action" (or another colour name) per column and per row: a thin band beside.
        transpose: swap the axes of the data; ticks and kinds belong to what is drawn.
    """

    data: str
    x_label: str = ""
    y_label: str = ""
    x_ticks: Sequence[str] | None = None
    y_ticks: Sequence[str] | None = None
    x_kinds: Sequence[str] | None = None
    y_kinds: Sequence[str] | None = None
    value_label: str = ""
    colors: Literal["sequential", "diverging"] = "sequential"
    range: Range | None = None
    transpose: bool = False
    format: str = ".3g"

    kind: ClassVar[str] = "heatmap"

    def fitted(self, spec: Spec, ranges: Callable[[Sequence[str]], Range]) -> Spec:
        low, high = self.range or ranges([self.data])
        if self.colors == "diverging" and self.range is None:
            high = max(abs(low), abs(high))
            low = -high
        return spec | {"range": [low, high]}

    def check(self, known: Numbers) -> None:
        shape = np.shape(known[self.data])
        if len(shape) != 2:
            raise InputError(f"Heatmap: {self.data!r} has shape {shape} at one setting; allowed: (rows, columns)")
        rows, columns = shape[::-1] if self.transpose else shape
        for name, size in (("x_ticks", columns), ("x_kinds", columns), ("y_ticks", rows), ("y_kinds", rows)):
            entries = getattr(self, name)
            if entries is not None and len(entries) != size:
                raise InputError(f"Heatmap {self.data!r}: {name} has {len(entries)} entries; {size} are drawn")
        for kind in (*(self.x_kinds or ()), *(self.y_kinds or ())):
            _color(kind)


@dataclass(frozen=True, kw_only=True)
class Plane(Panel):
    """Points of the complex plane, each data entry (m, 2) of (real, imaginary); `stable` shades where modes die out."""

    points: Series
    stable: Literal["disc", "half-plane"] | None = None
    unit_circle: bool = True
    x_range: Range = (-1.25, 1.25)
    y_range: Range = (-1.25, 1.25)
    x_label: str = "real part"
    y_label: str = "imaginary part"
    width: Literal["full", "half"] = "half"
    height: int = 300

    kind: ClassVar[str] = "plane"

    def spec(self) -> Spec:
        return super().spec() | {"points": _colored(self.points)}


@dataclass(frozen=True, kw_only=True)
class Bars(Panel):
    """Named bars (m,), one colour or one per bar, with optional intervals, a data entry (m, 2) of (low, high).

    Args:
        names: a text per bar, or a data entry of texts (m,), so that bars may change places; `color` is one then.
        intervals: a row of gaps for a bar without one.
        horizontal: bars lie, the first on top, each with its name before it; bars that are gaps at the end of the list
            take no room. `y_label` and `y_range` are still those of the numbers, `x_label` that of the names.
        highlight: a data entry, the place of the bar that stands out among pale ones; a gap for none.
    """

    data: str
    names: Sequence[str] | str
    intervals: str | None = None
    x_label: str = ""
    y_label: str = ""
    y_range: Range | None = None
    color: str | Sequence[str] = "state"
    format: str = ".3g"
    horizontal: bool = False
    highlight: str | None = None

    kind: ClassVar[str] = "bars"

    def spec(self) -> Spec:
        written = super().spec()
        for name in ("horizontal", "highlight"):
            if not written[name]:
                del written[name]
        if isinstance(self.names, str):
            if not isinstance(self.color, str):
                raise InputError(f"Bars: color has {len(self.color)} entries; one is allowed where names are data")
            return written | {"color": _color(self.color)}
        colors = [self.color] * len(self.names) if isinstance(self.color, str) else list(self.color)
        if len(colors) != len(self.names):
            raise InputError(f"Bars: color has {len(colors)} entries for {len(self.names)} names")
        return written | {"color": [_color(color) for color in colors]}

    def fitted(self, spec: Spec, ranges: Callable[[Sequence[str]], Range]) -> Spec:
        if self.y_range is not None:
            return spec
        low, high = ranges([self.data, *([self.intervals] if self.intervals else [])])
        low, high = _padded((min(low, 0.0), max(high, 0.0)), ())
        return spec | {"y_range": [low if low < -1e-12 and ranges([self.data])[0] < 0 else 0.0, high]}

    def check(self, known: Numbers) -> None:
        if isinstance(self.names, str) and known[self.names].shape != known[self.data].shape:
            shapes = known[self.names].shape, known[self.data].shape
            raise InputError(f"Bars: {self.names!r} has shape {shapes[0]} at one setting, {self.data!r} {shapes[1]}")
        if self.highlight is not None and known[self.highlight].size != 1:
            raise InputError(f"Bars: {self.highlight!r} has shape {known[self.highlight].shape}; allowed: one number")


@dataclass(frozen=True, kw_only=True)
class Strip(Panel):
    """The tokens of a sequence as boxes coloured by modality.

    Args:
        kinds: one of "rtg", "state", "action" (or another colour name) per token.
        labels: a text per token, or a data entry of texts or numbers (l,); None for none.
        strength: data entry (l,), 0 (pale) to 1 (full colour).
        present: data entry (l,), 0 for a token that is only padding (dashed and hollow).
        highlight: data entry (2,): the window [first, end) that gets a frame.
    """

    kinds: Sequence[str]
    labels: Sequence[str] | str | None = None
    strength: str | None = None
    present: str | None = None
    highlight: str | None = None
    format: str = ".2g"
    height: int = 90

    kind: ClassVar[str] = "strip"

    def spec(self) -> Spec:
        return super().spec() | {"kinds": list(self.kinds), "color": [_color(kind) for kind in self.kinds]}


@dataclass(frozen=True, kw_only=True)
class Paths(Panel):
    """A floor plan or a side view, both axes on one scale: routes and stick figures among walls and named points.

    Args:
        paths: data entries (t, 2): routes, gaps left out.
        figures: stick figures by name, drawn as they stand at the setting.
        walls: rectangles (x, y, width, height), or a data entry (m, 4) of them in which rows of gaps are left out.
        points: places by name, each (x, y) or a data entry (2,); one with a gap is left out.
        time: data entry or slider that says how many steps of each route lie behind: these are drawn in full colour.
        x_range, y_range: limits, or a data entry (2,) of them, so that they change with a control.
    """

    paths: Series = field(default_factory=dict)
    figures: Mapping[str, Skeleton] = field(default_factory=dict)
    walls: Sequence[tuple[float, float, float, float]] | str = ()
    points: Mapping[str, tuple[float, float] | str] = field(default_factory=dict)
    time: str | None = None
    x_range: Range | str = (0.0, 1.0)
    y_range: Range | str = (0.0, 1.0)
    x_label: str = "x"
    y_label: str = "y"
    height: int = 320

    kind: ClassVar[str] = "paths"

    def spec(self) -> Spec:
        if not (self.paths or self.figures):
            raise InputError("Paths: paths and figures are both empty; at least one of them must name something")
        cycle = [LINE_CYCLE[i % len(LINE_CYCLE)] for i in range(len(self.paths), len(self.paths) + len(self.figures))]
        figures = [
            {"name": name, "data": figure.points, "segments": _panel_value(figure.segments),
             "color": _color(figure.color or color)}
            for (name, figure), color in zip(self.figures.items(), cycle, strict=True)
        ]  # fmt: skip
        return super().spec() | {"paths": _colored(self.paths), "figures": figures}

    def check(self, known: Numbers) -> None:
        _check_limits(self, known)
        for name, figure in self.figures.items():
            _check_figure(name, figure, known)
        expected: dict[str, tuple[str, int | None, int]] = {
            entry if isinstance(entry, str) else entry.data: ("(t, 2)", None, 2) for entry in self.paths.values()
        }
        if isinstance(self.walls, str):
            expected[self.walls] = ("(m, 4)", None, 4)
        for data, (text, _, last) in expected.items():
            if known[data].ndim != 2 or known[data].shape[-1] != last:
                raise InputError(f"Paths: {data!r} has shape {known[data].shape} at one setting; allowed: {text}")
        for place in self.points.values():
            if isinstance(place, str) and known[place].shape != (2,):
                raise InputError(f"Paths: {place!r} has shape {known[place].shape} at one setting; allowed: (2,)")


def _check_figure(name: str, figure: Skeleton, known: Numbers) -> None:
    points = known[figure.points]
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(f"figure {name!r}: {figure.points!r} has shape {points.shape} at one setting; allowed: (p, 2)")
    given = known[figure.segments] if isinstance(figure.segments, str) else figure.segments
    segments = np.asarray(given, dtype=np.float64)
    if segments.size == 0:
        return
    if segments.ndim != 2 or segments.shape[1] != 2:
        raise InputError(f"figure {name!r}: segments have shape {segments.shape} at one setting; allowed: (s, 2)")
    numbers = segments[np.isfinite(segments).all(1)]
    wrong = numbers[(numbers < 0) | (numbers >= len(points)) | (numbers % 1 != 0)]
    if wrong.size:
        raise InputError(f"figure {name!r}: segments name point {wrong[0]:g}; allowed: 0 to {len(points) - 1}")


def _check_limits(panel: Lines | Paths, known: Numbers) -> None:
    for axis in ("x_range", "y_range"):
        name = getattr(panel, axis)
        if not isinstance(name, str):
            continue
        limits = known[name]
        if limits.shape != (2,) or not (np.isfinite(limits).all() and limits[0] < limits[1]):
            raise InputError(f"{axis}: {name!r} is {limits.tolist()} at one setting; allowed: (low, high), low < high")


def _color(name: str) -> str:
    if name not in COLORS:
        raise InputError(f"color {name!r} is not one of {list(COLORS)}")
    return name


def _colored(series: Series) -> list[Spec]:
    lines = {name: Line(entry) if isinstance(entry, str) else entry for name, entry in series.items()}
    cycle = [line.color or LINE_CYCLE[i % len(LINE_CYCLE)] for i, line in enumerate(lines.values())]
    return [
        {"name": name, "data": line.data, "color": _color(color)}
        for (name, line), color in zip(lines.items(), cycle, strict=True)
    ]


def _padded(limits: Range, extra: Any) -> Range:
    low, high = limits
    numbers = [value for value in extra if isinstance(value, int | float)]
    low, high = min([low, *numbers]), max([high, *numbers])
    pad = 0.05 * (high - low) or 0.5
    return low - pad, high + pad


def _padded_in_powers(limits: Range) -> Range:
    low, high = limits
    factor = float((high / low) ** 0.05) if 0 < low < high else 1.0
    return low / factor, high * factor


@dataclass(frozen=True)
class Readout:
    """A sentence part under the figure: label, then the one number (or text) of a data entry."""

    label: str
    data: str
    format: str = ".3g"
    unit: str = ""

    def spec(self) -> Spec:
        if not FORMAT.fullmatch(self.format):
            raise InputError(
                f"format {self.format!r}: allowed are 'd', 's' and '.1f', '.1e', '.1g', '.1%' with any digit"
            )
        return dict(vars(self))


def data_names(panel: Spec) -> list[str]:
    """The data entries that a panel draws, in the order of its specification."""
    entries = [entry for key in ("y", "points", "paths", "figures") for entry in _entries(panel.get(key))]
    names = [entry[key] for entry in entries for key in ("data", "low", "high", "segments") if key in entry]
    keys = ("data", "names", "intervals", "strength", "present", "highlight", "time", "x", "labels", "walls")
    names += [panel.get(key) for key in (*keys, "x_range", "y_range")]
    names += panel["points"].values() if isinstance(panel.get("points"), dict) else []
    names = [name for name in names if isinstance(name, str)]
    names += [mark[axis] for mark in panel.get("marks", ()) for axis in ("x", "y") if isinstance(mark[axis], str)]
    return list(dict.fromkeys(names))


def _entries(value: Any) -> list[Spec]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def readout_texts(spec: Spec, known: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """The read-outs' texts at one setting, by label."""
    texts = {}
    for readout in spec["readouts"]:
        unit = f" {readout['unit']}" if readout["unit"] else ""
        texts[readout["label"]] = format_value(known[readout["data"]].item(), readout["format"]) + unit
    return texts
