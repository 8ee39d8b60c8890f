"""The widget's module as Jupyter and Colab run it: its `render` on a model that Python can set and read."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page

from dmm.widgets import Bars, Explorer, Heatmap, Line, Lines, Readout, Select, Slider, Table
from dmm.widgets.explorer import ASSETS
from tests.browser.reading import check_drawn, pixels_of, settings_of

KINDS = ["rtg", "state", "action"] * 2

# What anywidget gives to a module: a model with change events, and an element to draw in.
SHIM = """async ({ source, spec, state }) => {
    const { default: widget } = await import(`data:text/javascript;base64,${source}`);
    const values = { spec, state };
    const listeners = [];
    const saved = [];
    const model = {
        get: key => values[key],
        set: (key, value) => { values[key] = value; },
        save_changes: () => saved.push(JSON.parse(JSON.stringify(values.state))),
        on: (event, listener) => listeners.push([event, listener]),
        off: (event, listener) => listeners.splice(listeners.findIndex(([, known]) => known === listener), 1),
    };
    const el = document.querySelector('#cell');
    const end = await widget.render({ model, el });
    const push = state => { values.state = state; listeners.filter(([event]) => event === 'change:state').forEach(([, tell]) => tell()); };
    window.kernel = { push, saved, end, listeners };
}"""  # noqa: E501


def _explorer() -> Explorer:
    numbers = np.random.default_rng(0).normal(size=(2, 3, 6, 40))
    numbers[0, 0, 0, :2] = np.nan
    mean = numbers[:, :, :, 5:].mean(-1)
    return Explorer(
        "A figure in a notebook",
        "A heat map over a line with a band.",
        controls=[Select("model", "Model", ["dmm", "a & b"]), Slider("layer", "Layer", [1, 2, 3], start=2)],
        data={
            "map": Table(numbers, by=("model", "layer"), bits=8),
            "mean": Table(mean, by=("model", "layer")),
            "low": Table(mean - 0.1, by=("model", "layer")),
            "high": Table(mean + 0.1, by=("model", "layer")),
            "ends": Table(np.stack([mean - 0.1, mean + 0.1], -1), by=("model", "layer")),
            "first": Table(mean[..., 0], by=("model", "layer")),
            "names": Table([KINDS, KINDS[::-1]], by=("model",)),
            "some": Table([[np.nan, np.nan]] * len(KINDS)),
            "place": Table([0, 1, np.nan], by=("layer",)),
        },
        panels=[
            Heatmap(data="map", y_kinds=KINDS, y_ticks=[f"{kind} {i}" for i, kind in enumerate(KINDS)], y_label="token",
                    x_label="channel", value_label="activation", colors="diverging"),
            Lines(y={"mean": Line("mean", low="low", high="high"),
                     "dots": Line("mean", style="dots", low="low", high="high")}),
            Bars(data="mean", names=KINDS, color=KINDS, intervals="ends"),
            Bars(data="mean", names="names", intervals="some", highlight="place", horizontal=True, y_label="score"),
        ],
        readouts=[Readout("First", "first", ".2f")],
        presets={"Last": {"model": "a & b", "layer": 3}},
    )  # fmt: skip


@pytest.fixture
def notebook(browser: Browser) -> Iterator[tuple[Page, Locator, Explorer]]:
    explorer = _explorer()
    page = browser.new_context(viewport={"width": 900, "height": 900}).new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content('<!doctype html><html lang="en"><body><div id="cell"></div></body></html>')
    page.add_style_tag(content=(ASSETS / "widgets.css").read_text("utf8"))
    source = b64encode((ASSETS / "widgets.js").read_bytes()).decode()
    page.evaluate(SHIM, {"source": source, "spec": explorer.spec, "state": explorer.state})
    yield page, page.locator("#cell"), explorer
    page.context.close()
    assert errors == []


def test_it_starts_as_python_says(notebook: tuple[Page, Locator, Explorer]) -> None:
    _, cell, explorer = notebook
    assert settings_of(cell) == explorer.state
    check_drawn(cell, explorer.spec)


def test_a_state_set_in_python_is_drawn(notebook: tuple[Page, Locator, Explorer]) -> None:
    page, cell, explorer = notebook
    for change in ({"model": "a & b"}, {"layer": 1.0}, {"model": "a & b", "layer": 3.0}):
        explorer.state = change
        before = pixels_of(cell)
        page.evaluate("state => kernel.push(state)", explorer.state)
        assert settings_of(cell) == explorer.state
        check_drawn(cell, explorer.spec)
        assert all(old != new for old, new in zip(before, pixels_of(cell), strict=True))
    assert page.evaluate("kernel.saved") == [], "what Python sets is not sent back to it"


def test_what_the_reader_sets_comes_back_to_python(notebook: tuple[Page, Locator, Explorer]) -> None:
    page, cell, explorer = notebook
    cell.get_by_role("button", name="Last").click()
    cell.locator("select").select_option("dmm")
    cell.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    saved = page.evaluate("kernel.saved")
    assert saved == [{"model": "a & b", "layer": 3}, {"model": "dmm", "layer": 3}, {"model": "dmm", "layer": 1}]
    explorer.state = saved[-1]
    assert explorer.state == {"model": "dmm", "layer": 1.0}


def test_a_notebook_has_no_address_to_share(notebook: tuple[Page, Locator, Explorer]) -> None:
    page, cell, _ = notebook
    address = page.url
    cell.get_by_role("button", name="Last").click()
    page.wait_for_timeout(400)
    assert page.url == address
    assert cell.get_by_role("button", name="Copy link").count() == 0


def test_pictures_say_their_numbers_with_row_column_and_interval(notebook: tuple[Page, Locator, Explorer]) -> None:
    page, cell, explorer = notebook
    known = explorer.at()
    for _ in range(2):
        cell.locator("canvas").nth(0).focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        said = cell.locator(".dmm-probe").nth(0).inner_text()
        assert said == f"token state 1, channel 1: activation {known['map'][1, 1]:.3g}"
        cell.locator("canvas").nth(1).focus()
        page.keyboard.press("ArrowRight")
        mean, low, high = (f"{known[name][0]:.4g}" for name in ("mean", "low", "high"))
        assert f"mean {mean} ({low} to {high})" in cell.locator(".dmm-probe").nth(1).inner_text()
        lying = cell.locator("canvas").nth(3)
        for key, place, end in (("ArrowDown", 0, ""), ("ArrowDown", 1, ", highlighted"), ("ArrowDown", 2, "")):
            lying.press(key)
            words = f"{known['names'][place]}: {known['mean'][place]:.3g}{end}"
            assert cell.locator(".dmm-probe").nth(3).inner_text() == words, "no interval where both ends are gaps"


def test_a_closed_view_listens_no_longer(notebook: tuple[Page, Locator, Explorer]) -> None:
    page, _, _ = notebook
    page.evaluate("kernel.end()")
    assert page.evaluate("kernel.listeners.length") == 0
