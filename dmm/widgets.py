"""Live figures that need no server: Python computes every number once, and the page only chooses which ones to draw.

An `Explorer` is controls, data, panels and read-outs, written down as one JSON specification. The same script draws it
in Jupyter and Colab (through anywidget) and on the static site (through the figure's own HTML), and the functions
`values` and `readout_texts` repeat its arithmetic here, so that a test can compare what a page shows with what Python
says for the same setting.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import anywidget
import numpy as np
import traitlets
from numpy.typing import ArrayLike, NDArray

from dmm.errors import InputError
from dmm.plots import COLORS, LINE_CYCLE

Spec = dict[str, Any]
Settings = Mapping[str, float | str]
Series = Mapping[str, "str | Line"]
Range = tuple[float, float]

PAYLOAD_LIMIT = 300_000
SIGNIFICANT_DIGITS = 5
_FORMAT = re.compile(r"d|\.\d[feg%]|s")
_ASSETS = Path(__file__).parent / "_assets"


# Controls


def steps(low: float, high: float, step: float) -> list[float]:
    """The values low, low + step, ..., high of a slider, without rounding dust."""
    if not (step > 0 and high > low):
        raise InputError(f"steps(low={low}, high={high}, step={step}): need high > low and step > 0")
    return [float(f"{low + i * step:.10g}") for i in range(round((high - low) / step) + 1)]


@dataclass(frozen=True)
class Slider:
    """A native range input over a list of values, in the order given.

    `format` is a number format such as ".2f", ".3g", ".1e", ".0%" or "d"; `play=True` adds a button that walks it.
    """

    name: str
    label: str
    values: Sequence[float]
    start: float | None = None
    unit: str = ""
    format: str = ".4g"
    play: bool = False

    def spec(self) -> Spec:
        values = [float(value) for value in self.values]
        start = values[0] if self.start is None else float(self.start)
        if len(values) < 2 or start not in values:
            raise InputError(
                f"slider {self.name!r}: needs at least 2 values, start among them; got start={start}, {values}"
            )
        unit = f" {self.unit}" if self.unit else ""
        texts = [format_value(value, self.format) + unit for value in values]
        shown: Spec = {"kind": "slider", "name": self.name, "label": self.label, "values": values, "texts": texts}
        return shown | {"start": start, "play": self.play}


@dataclass(frozen=True)
class Select:
    """A native drop-down of named options; the option's text is its value."""

    name: str
    label: str
    options: Sequence[str]
    start: str | None = None

    def spec(self) -> Spec:
        options = list(self.options)
        start = options[0] if self.start is None else self.start
        if len(options) < 2 or start not in options:
            raise InputError(
                f"select {self.name!r}: needs at least 2 options, start among them; got start={start!r}, {options}"
            )
        return {
            "kind": "select",
            "name": self.name,
            "label": self.label,
            "values": options,
            "texts": options,
            "start": start,
        }


Control = Slider | Select


# Sources of numbers


class Table:
    """Numbers (or texts) that Python computed for every setting of some controls.

    Args:
        array: the leading axes are indexed by the positions of the controls in `by`; the rest is what one setting
            shows. Numbers are rounded to 5 significant digits; NaN and infinities become gaps. Complex numbers gain a
            last axis (real, imaginary).
        by: names of controls, one per leading axis. Without any, the table is the same at every setting.
    """

    def __init__(self, array: ArrayLike, by: Sequence[str] = ()) -> None:
        values = np.asarray(array)
        if np.iscomplexobj(values):
            values = np.stack([values.real, values.imag], axis=-1)
        self.array: NDArray[Any] = values if values.dtype.kind in "US" else values.astype(np.float64)
        self.by = (by,) if isinstance(by, str) else tuple(by)

    def spec(self, controls: Mapping[str, Spec], name: str) -> Spec:
        for control in self.by:
            if control not in controls:
                raise InputError(f"data[{name!r}]: by names {control!r}; the controls are {sorted(controls)}")
        expected = tuple(len(controls[control]["values"]) for control in self.by)
        if self.array.shape[: len(expected)] != expected:
            raise InputError(
                f"data[{name!r}]: shape {self.array.shape} must begin with {expected}, the sizes of {self.by}"
            )
        flat = [_rounded(value) for value in self.array.reshape(-1).tolist()]
        return {"kind": "table", "by": list(self.by), "shape": list(self.array.shape), "values": flat}


@dataclass(frozen=True)
class ScanSource:
    """A small selective scan, computed in the page because its settings are too many for a table.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t with h_{-1} = 0, l tokens and n states.
    A parameter is nested lists of numbers and names of sliders, or the name of another entry of `data`.

    Args:
        u, delta: (l,).
        A: (n,).
        B, C: (l, n), or (n,) for the same at each token.

    Outputs, named "<name>.<output>" in panels and read-outs:
        decay (l, n) = exp(delta_t A); states (l, n); y (l,);
        contributions (l, n): what is left in the last state of each token's input (they add up to it);
        attribution (l,): the same seen by the last output, C_{l-1} . contributions_t (they add up to y_{l-1});
        kept (l,): the share of each token's input that is still there at the end, averaged over the states;
        last_y (): the last output; first_kept (): the first entry of kept. These two are for read-outs.
    """

    u: Sequence[float | str] | str
    delta: Sequence[float | str] | str
    A: Sequence[float | str] | str
    B: Sequence[Any] | str
    C: Sequence[Any] | str

    OUTPUTS: ClassVar[tuple[str, ...]] = (
        "decay",
        "states",
        "y",
        "contributions",
        "attribution",
        "kept",
        "last_y",
        "first_kept",
    )

    def spec(self, controls: Mapping[str, Spec], name: str) -> Spec:
        del controls, name
        parameters = {key: _plain(getattr(self, key)) for key in ("u", "delta", "A", "B", "C")}
        return {"kind": "selective-scan", "outputs": list(self.OUTPUTS), **parameters}


Source = Table | ScanSource


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _rounded(value: float | str) -> float | int | str | None:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _table_values(source: Spec, settings: Settings, controls: Mapping[str, Spec]) -> NDArray[Any]:
    kind: type = str if any(isinstance(value, str) for value in source["values"]) else np.float64
    array: NDArray[Any] = np.array(source["values"], dtype=kind).reshape(source["shape"])
    return np.asarray(array[tuple(controls[name]["values"].index(settings[name]) for name in source["by"])])


def _scan_values(source: Spec, known: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    u, delta, A, B, C = (_bound(source[key], known) for key in ("u", "delta", "A", "B", "C"))
    tokens, states = len(u), len(A)
    B, C = np.broadcast_to(B, (tokens, states)), np.broadcast_to(C, (tokens, states))
    decay = np.exp(delta[:, None] * A)
    hidden, rows = np.zeros(states), []
    for t in range(tokens):
        hidden = decay[t] * hidden + delta[t] * B[t] * u[t]
        rows.append(hidden)
    left = np.ones((tokens, states))
    for t in range(tokens - 2, -1, -1):
        left[t] = left[t + 1] * decay[t + 1]
    contributions = left * (delta * u)[:, None] * B
    y, kept = (C * np.stack(rows)).sum(-1), left.mean(-1)
    sequences = {"decay": decay, "states": np.stack(rows), "y": y, "contributions": contributions, "kept": kept}
    return sequences | {
        "attribution": contributions @ C[-1],
        "last_y": np.asarray(y[-1]),
        "first_kept": np.asarray(kept[0]),
    }


def _bound(value: Any, known: Mapping[str, Any]) -> NDArray[np.float64]:
    if isinstance(value, str):
        return np.asarray(known[value], dtype=np.float64)
    if isinstance(value, list | tuple):
        return np.array([_bound(entry, known) for entry in value])
    return np.asarray(value, dtype=np.float64)


# A source that needs more than a table look-up: add it here and, under the same name, in widgets.js.
COMPUTED: dict[str, Callable[[Spec, Mapping[str, Any]], dict[str, NDArray[Any]]]] = {"selective-scan": _scan_values}


# Panels


@dataclass(frozen=True)
class Line:
    """One line of a `Lines` panel: the data it draws, a colour of `dmm.plots.COLORS`, and how it is drawn."""

    data: str
    color: str | None = None
    style: Literal["line", "dashed", "dots", "steps"] = "line"


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
    """Named lines over one x axis. `x` is numbers, the name of a data entry, or None for 0, 1, 2, ..."""

    y: Series
    x: Sequence[float] | NDArray[Any] | str | None = None
    x_label: str = ""
    y_label: str = ""
    x_range: Range | None = None
    y_range: Range | None = None
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[Mark] = ()

    kind: ClassVar[str] = "lines"

    def spec(self) -> Spec:
        spec = super().spec()
        lines = {name: Line(entry) if isinstance(entry, str) else entry for name, entry in self.y.items()}
        colors = [line.color or LINE_CYCLE[i % len(LINE_CYCLE)] for i, line in enumerate(lines.values())]
        spec["y"] = [
            {"name": name, "data": line.data, "color": _color(color), "style": line.style}
            for (name, line), color in zip(lines.items(), colors, strict=True)
        ]
        return spec

    def fitted(self, spec: Spec, ranges: Callable[[Sequence[str]], Range]) -> Spec:
        fitted: Spec = {}
        keys = [line["data"] for line in spec["y"]]
        if spec["y_range"] is None:
            fitted["y_range"] = (
                ranges(keys) if spec["log_y"] else _padded(ranges(keys), (mark.y for mark in self.marks))
            )
        if spec["x_range"] is None and spec["x"] is not None:
            x = spec["x"]
            fitted["x_range"] = ranges([x]) if isinstance(x, str) else (min(x), max(x))
        return spec | fitted


@dataclass(frozen=True, kw_only=True)
class Heatmap(Panel):
    """A matrix (rows, columns) as colours on one scale for all settings; `transpose` swaps the two axes."""

    data: str
    x_label: str = ""
    y_label: str = ""
    x_ticks: Sequence[str] | None = None
    y_ticks: Sequence[str] | None = None
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
    """Named bars (m,), one colour or one per bar, with optional intervals, a data entry (m, 2) of (low, high)."""

    data: str
    names: Sequence[str]
    intervals: str | None = None
    x_label: str = ""
    y_label: str = ""
    y_range: Range | None = None
    color: str | Sequence[str] = "state"
    format: str = ".3g"

    kind: ClassVar[str] = "bars"

    def spec(self) -> Spec:
        colors = [self.color] * len(self.names) if isinstance(self.color, str) else list(self.color)
        if len(colors) != len(self.names):
            raise InputError(f"Bars: color has {len(colors)} entries for {len(self.names)} names")
        return super().spec() | {"color": [_color(color) for color in colors]}

    def fitted(self, spec: Spec, ranges: Callable[[Sequence[str]], Range]) -> Spec:
        if self.y_range is not None:
            return spec
        low, high = ranges([self.data, *([self.intervals] if self.intervals else [])])
        low, high = _padded((min(low, 0.0), max(high, 0.0)), ())
        return spec | {"y_range": [low if low < -1e-12 and ranges([self.data])[0] < 0 else 0.0, high]}


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
    """Routes on a floor plan: data entries (t, 2); walls (x, y, width, height); with `time`, drawn up to that step."""

    paths: Series
    walls: Sequence[tuple[float, float, float, float]] = ()
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    time: str | None = None
    x_range: Range = (0.0, 1.0)
    y_range: Range = (0.0, 1.0)
    x_label: str = "x"
    y_label: str = "y"
    height: int = 320

    kind: ClassVar[str] = "paths"

    def spec(self) -> Spec:
        return super().spec() | {"paths": _colored(self.paths)}


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


@dataclass(frozen=True)
class Readout:
    """A sentence part under the figure: label, then the one number (or text) of a data entry."""

    label: str
    data: str
    format: str = ".3g"
    unit: str = ""

    def spec(self) -> Spec:
        if not _FORMAT.fullmatch(self.format):
            raise InputError(
                f"format {self.format!r}: allowed are 'd', 's' and '.1f', '.1e', '.1g', '.1%' with any digit"
            )
        return dict(vars(self))


def format_value(value: float | str | None, form: str) -> str:
    """One number as the page shows it; a gap is a dash."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "–"
    if isinstance(value, str):
        return value
    text = f"{round(value)}" if form == "d" else f"{value:{form}}"
    return text.removeprefix("-") if re.fullmatch(r"-[0.]+%?", text) else text


# Reading a specification: what the script in the page does, done here


def values(spec: Spec, settings: Settings) -> dict[str, NDArray[Any]]:
    """All data entries at one setting, by name, and the controls' own values under their names."""
    controls = {control["name"]: control for control in spec["controls"]}
    known: dict[str, Any] = {name: np.asarray(value) for name, value in settings.items()}
    computed = [(name, source) for name, source in spec["data"].items() if source["kind"] != "table"]
    for name, source in spec["data"].items():
        if source["kind"] == "table":
            known[name] = _table_values(source, settings, controls)
    for name, source in computed:
        outputs = COMPUTED[source["kind"]](source, known)
        known |= {f"{name}.{output}": array for output, array in outputs.items()}
    return known


def data_names(panel: Spec) -> list[str]:
    """The data entries that a panel draws, in the order of its specification."""
    names = [entry["data"] for key in ("y", "points", "paths") for entry in _entries(panel.get(key))]
    for key in ("data", "intervals", "strength", "present", "highlight", "time", "x", "labels"):
        if isinstance(panel.get(key), str):
            names.append(panel[key])
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


class Explorer(anywidget.AnyWidget):
    """A live figure: controls choose a setting, panels and read-outs show the numbers that belong to it.

    Args:
        title: the figure's caption, one plain sentence without a full stop.
        alt: what the still picture shows at the starting setting, for readers who cannot see it.
        controls: `Slider`s and `Select`s.
        data: named `Table`s and `ScanSource`s.
        panels: what is drawn, in reading order; two neighbouring panels of width "half" share a row.
        readouts: numbers repeated as text.
        presets: named settings; controls that a preset does not name go to their start.
        name: id in the page; made from the title if not given.

    Raises:
        InputError: unknown names, shapes that do not fit the controls, or more than 300 kB of numbers.
    """

    _esm = _ASSETS / "widgets.js"
    _css = _ASSETS / "widgets.css"
    spec = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        title: str,
        alt: str,
        *,
        controls: Sequence[Control],
        data: Mapping[str, Source],
        panels: Sequence[Panel],
        readouts: Sequence[Readout] = (),
        presets: Mapping[str, Mapping[str, float | str]] | None = None,
        name: str | None = None,
    ) -> None:
        slug = name or re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        spec = _written(slug, title, alt, controls, data, presets or {})
        spec["readouts"] = [readout.spec() for readout in readouts]
        spec["panels"] = _fitted_panels(spec, panels)
        _check_names(spec)
        size = len(json.dumps(spec, separators=(",", ":")))
        if size > PAYLOAD_LIMIT:
            raise InputError(
                f"widget {slug!r} carries {size:,} bytes; at most {PAYLOAD_LIMIT:,} are allowed: thin out its tables"
            )
        super().__init__(spec=spec, state=start_settings(spec))

    def at(self, **settings: float | str) -> dict[str, NDArray[Any]]:
        """All data entries at a setting, by name; controls that are not named stay at their start."""
        return values(self.spec, checked_settings(self.spec, settings))

    def readouts_at(self, **settings: float | str) -> dict[str, str]:
        """The read-outs' texts at a setting, by label."""
        return readout_texts(self.spec, self.at(**settings))

    @traitlets.validate("state")
    def _known_state(self, proposal: Any) -> dict[str, float | str]:
        return checked_settings(self.spec, proposal["value"])

    def picture(self) -> bytes:
        """The figure at its starting setting as a png, for pages without scripts."""
        from dmm.widget_picture import draw

        start = start_settings(self.spec)
        known = values(self.spec, start)
        return draw(self.spec, start, known, readout_texts(self.spec, known))

    def html(self) -> str:
        """The figure for a static page: the still picture, and the specification that a script brings to life."""
        from base64 import b64encode

        # "<" would let a text in the data close the script element.
        payload = json.dumps(self.spec, separators=(",", ":")).replace("<", "\\u003c")
        name, alt, title = (html.escape(self.spec[key], quote=True) for key in ("name", "alt", "title"))
        source = f"data:image/png;base64,{b64encode(self.picture()).decode()}"
        return (
            f'<figure class="dmm-widget" data-widget="{name}"><img src="{source}" alt="{alt}">'
            f'<figcaption>{title}</figcaption><script type="application/json">{payload}</script></figure>'
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        content, metadata = bundle
        text = f"Explorer({self.spec['title']!r})"
        return content | {"text/html": self.html(), "text/plain": text}, metadata


def start_settings(spec: Spec) -> dict[str, float | str]:
    """The setting a widget opens with."""
    return {control["name"]: control["start"] for control in spec["controls"]}


def checked_settings(spec: Spec, settings: Settings) -> dict[str, float | str]:
    """Full settings: the given values, snapped to the control's own list, and the start for the rest."""
    full = start_settings(spec)
    controls = {control["name"]: control for control in spec["controls"]}
    for name, value in settings.items():
        if name not in controls:
            raise InputError(f"{name!r} is no control of widget {spec['name']!r}; it has {sorted(controls)}")
        full[name] = _snapped(controls[name], value)
    return full


def _snapped(control: Spec, value: float | str) -> float | str:
    allowed: list[float | str] = control["values"]
    if value in allowed:
        return value if isinstance(value, str) else float(value)
    for candidate in allowed:
        if isinstance(candidate, str) or isinstance(value, str):
            continue
        if math.isclose(candidate, value, rel_tol=1e-6, abs_tol=1e-12):
            return candidate
    raise InputError(f"{control['name']}={value!r}: allowed are {allowed}")


def _written(
    slug: str,
    title: str,
    alt: str,
    controls: Sequence[Control],
    data: Mapping[str, Source],
    presets: Mapping[str, Mapping[str, float | str]],
) -> Spec:
    if not (title.strip() and alt.strip()):
        raise InputError("title and alt must both say something: the page and its readers without pictures need them")
    written = {control.name: control.spec() for control in controls}
    if len(written) != len(controls) or set(written) & set(data):
        raise InputError(
            f"names of controls and data must all differ; got {[c.name for c in controls]} and {list(data)}"
        )
    sources = {name: source.spec(written, name) for name, source in data.items()}
    spec: Spec = {"name": slug, "title": title, "alt": alt, "controls": list(written.values()), "data": sources}
    spec["presets"] = {label: checked_settings(spec, settings) for label, settings in presets.items()}
    return spec


def _fitted_panels(spec: Spec, panels: Sequence[Panel]) -> list[Spec]:
    """Each panel's specification, its open scales fixed once over all settings so that colours and axes never jump."""
    corners = _corner_values(spec)

    def ranges(names: Sequence[str]) -> Range:
        numbers = [
            np.asarray(known[name], dtype=np.float64).ravel() for name in names for known in corners if name in known
        ]
        numbers += [
            _all_numbers(spec["data"][name]) for name in names if spec["data"].get(name, {}).get("kind") == "table"
        ]
        finite = np.concatenate(numbers)[np.isfinite(np.concatenate(numbers))] if numbers else np.zeros(0)
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)

    written = [panel.fitted(panel.spec(), ranges) for panel in panels]
    plain: list[Spec] = json.loads(json.dumps(written, default=list))
    return plain


def _all_numbers(source: Spec) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in source["values"]], dtype=np.float64)


def _corner_values(spec: Spec) -> list[dict[str, NDArray[Any]]]:
    """The start, the presets, and the controls at their ends: enough to fix the scale of computed data."""
    start = start_settings(spec)
    settings = [start, *spec["presets"].values()]
    for end in (0, -1):
        settings.append({control["name"]: control["values"][end] for control in spec["controls"]})
        settings += [start | {control["name"]: control["values"][end]} for control in spec["controls"]]
    return [values(spec, setting) for setting in settings]


def _check_names(spec: Spec) -> None:
    known = values(spec, start_settings(spec))
    for panel in spec["panels"]:
        for name in data_names(panel):
            if name not in known:
                raise InputError(f"a {panel['kind']} panel draws {name!r}; the data entries are {sorted(known)}")
    for readout in spec["readouts"]:
        if readout["data"] not in known or known[readout["data"]].size != 1:
            raise InputError(
                f"read-out {readout['label']!r} needs one number; {readout['data']!r} is not one of {sorted(known)}"
            )
