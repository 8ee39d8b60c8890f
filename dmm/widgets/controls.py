"""Controls of a live figure, and the settings they allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmm.errors import InputError
from dmm.widgets.formats import format_value

Spec = dict[str, Any]
Settings = Mapping[str, float | str]


def steps(low: float, high: float, step: float) -> list[float]:
    """The values low, low + step, ..., high of a slider, without rounding dust."""
    if not (step > 0 and high > low):
        raise InputError(f"steps(low={low}, high={high}, step={step}): need high > low and step > 0")
    return [float(f"{low + i * step:.10g}") for i in range(round((high - low) / step) + 1)]


@dataclass(frozen=True)
class Slider:
    """A native range input over a list of values, in the order given.

    `format` is a number format such as ".2f", ".3g", ".1e", ".0%" or "d". `play` adds a button that walks from value to
    value up to the last: so many values per second, at most 60; True takes about 4 seconds for all of them.
    """

    name: str
    label: str
    values: Sequence[float]
    start: float | None = None
    unit: str = ""
    format: str = ".4g"
    play: bool | float = False

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
        return shown | {"start": start, "play": self._pace(len(values))}

    def _pace(self, count: int) -> float | None:
        """Values per second; None without a button."""
        if isinstance(self.play, bool):
            return min(12.5, count / 4) if self.play else None
        if not 0 < self.play <= 60:
            raise InputError(
                f"slider {self.name!r}: play is {self.play!r}; allowed: True, False, or values per second, over 0 to 60"
            )
        return float(self.play)


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
