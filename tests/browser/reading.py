"""Reading live figures: what a page shows, held against what Python says for the same setting."""

from __future__ import annotations

from typing import Any

import numpy as np
from playwright.sync_api import Locator

from dmm.widgets import data_names, readout_texts, values

Spec = dict[str, Any]

# What each slider says to screen readers and shows beside its label.
SLIDER_TEXTS = """e => Object.fromEntries([...e.querySelectorAll('input[type=range]')].map(input =>
    [input.name, [input.getAttribute('aria-valuetext'), e.querySelector(`output[for='${input.id}']`).textContent]]))"""


def settings_of(element: Locator) -> dict[str, float | str]:
    found: dict[str, float | str] = element.evaluate("e => e.dmm.settings()")
    return found


def pixels_of(element: Locator) -> list[str]:
    found: list[str] = element.evaluate("e => [...e.querySelectorAll('canvas')].map(c => c.toDataURL())")
    return found


def _numbers(value: Any) -> np.ndarray[Any, Any]:
    array = np.array(value, dtype=object)
    if any(isinstance(entry, str) for entry in array.ravel()):
        return array.astype(str)
    return np.where(array == None, np.nan, array).astype(float)  # noqa: E711


def check_drawn(element: Locator, spec: Spec) -> dict[str, Any]:
    """Compare all that the page shows with Python's values at the page's setting; returns those values."""
    settings = settings_of(element)
    known = values(spec, settings)
    drawn = element.evaluate("e => e.dmm.drawn()")
    assert [set(panel) for panel in drawn] == [set(data_names(panel)) for panel in spec["panels"]]
    for panel in drawn:
        for name, shown in panel.items():
            expected = np.asarray(known[name])
            if expected.dtype.kind == "U":
                assert _numbers(shown).tolist() == expected.tolist()
            else:
                np.testing.assert_allclose(_numbers(shown), expected, rtol=1e-9, atol=1e-12, err_msg=name)
    texts = readout_texts(spec, known)
    assert element.locator(".dmm-reading strong").all_inner_texts() == list(texts.values())
    shown_texts = element.evaluate(SLIDER_TEXTS)
    for control in spec["controls"]:
        if control["kind"] == "slider":
            text = control["texts"][control["values"].index(settings[control["name"]])]
            assert shown_texts[control["name"]] == [text, text]
    return known
