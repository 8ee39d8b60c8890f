"""The live figure itself: one JSON specification that Jupyter, Colab and the static site draw with the same script."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray

from dmm.errors import InputError
from dmm.widgets.controls import Control, Spec, checked_settings, start_settings
from dmm.widgets.panels import Panel, Range, Readout, data_names, readout_texts
from dmm.widgets.sources import Source, all_numbers, values

PAYLOAD_LIMIT = 300_000
ASSETS = Path(__file__).parents[1] / "_assets"


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

    _esm = ASSETS / "widgets.js"
    _css = ASSETS / "widgets.css"
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
        _check_names(spec, panels)
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
        from dmm.widgets.picture import draw

        start = start_settings(self.spec)
        known = values(self.spec, start)
        return draw(self.spec, start, known, readout_texts(self.spec, known))

    def html(self) -> str:
        """The figure for a static page: the still picture, and the specification that a script brings to life."""
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
            all_numbers(spec["data"][name]) for name in names if spec["data"].get(name, {}).get("kind") == "table"
        ]
        finite = np.concatenate(numbers)[np.isfinite(np.concatenate(numbers))] if numbers else np.zeros(0)
        return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)

    written = [panel.fitted(panel.spec(), ranges) for panel in panels]
    plain: list[Spec] = json.loads(json.dumps(written, default=list))
    return plain


def _corner_values(spec: Spec) -> list[dict[str, NDArray[Any]]]:
    """The start, the presets, and the controls at their ends: enough to fix the scale of computed data."""
    start = start_settings(spec)
    settings = [start, *spec["presets"].values()]
    for end in (0, -1):
        settings.append({control["name"]: control["values"][end] for control in spec["controls"]})
        settings += [start | {control["name"]: control["values"][end]} for control in spec["controls"]]
    return [values(spec, setting) for setting in settings]


def _check_names(spec: Spec, panels: Sequence[Panel]) -> None:
    start = start_settings(spec)
    known = values(spec, start)
    choices = [c for c in spec["controls"] if c["kind"] == "select"]
    others = [
        values(spec, start | {choice["name"]: option}) for choice in choices for option in choice["values"]
    ]  # a drop-down may choose among things of different build
    for panel, written in zip(panels, spec["panels"], strict=True):
        for name in data_names(written):
            if name not in known:
                raise InputError(f"a {panel.kind} panel draws {name!r}; the data entries are {sorted(known)}")
        for setting in (known, *others):
            panel.check(setting)
    for readout in spec["readouts"]:
        if readout["data"] not in known or known[readout["data"]].size != 1:
            raise InputError(
                f"read-out {readout['label']!r} needs one number; {readout['data']!r} is not one of {sorted(known)}"
            )
