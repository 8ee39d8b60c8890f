"""A slider that plays, and the stick figures it moves: a page of its own, driven as a reader would."""

from __future__ import annotations

import importlib.util
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from dmm.widgets import Explorer, Lines, Mark, Paths, Readout, Select, Skeleton, Slider, Table, start_settings
from dmm.widgets.explorer import ASSETS
from tests.browser.reading import check_drawn, pixels_of, settings_of
from tests.browser.test_module import SHIM

ROOT = Path(__file__).resolve().parents[2]
AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf8")
ADDRESS = "http://book.test/page.html"
STEPS, PACE = 40, 20  # values, and values per second
WRITTEN = 400  # milliseconds after which a setting stands in the address
COUNT_WRITES = """() => {
    window.writes = [];
    const write = history.replaceState.bind(history);
    history.replaceState = (state, title, address) => { window.writes.push(address); write(state, title, address); };
}"""

Opener = Callable[..., tuple[Page, Locator]]


def _explorer() -> Explorer:
    """A leg that swings over a floor, its last point a gap at step 5, and a walker of one point in a maze."""
    angle = np.linspace(0, 6, STEPS)
    hip = np.stack([0.05 * np.arange(STEPS), 1 + 0.1 * np.sin(angle)], -1)
    knee = hip + 0.5 * np.stack([np.sin(np.sin(angle)), -np.cos(np.sin(angle))], -1)
    foot = knee - [0.1, 0.45]
    foot[5] = np.nan
    leg = np.stack([hip, knee, foot], 1)
    walker = np.full_like(leg, np.nan)
    walker[:, 0] = np.stack([np.linspace(1, 8, STEPS), np.full(STEPS, 1.5)], -1)
    gaps = [np.nan] * 4
    return Explorer(
        "Two episodes",
        "A leg from the side on a floor, above a line that rises.",
        name="episodes",
        controls=[
            Select("set", "Data set", ["leg", "maze"]),
            Slider("step", "Step", range(STEPS), format="d", play=PACE),
        ],
        data={
            "body": Table(np.stack([leg, walker]), by=("set", "step"), bits=16),
            "bones": Table([[[0, 1], [1, 2]], [[np.nan] * 2] * 2], by="set"),
            "walls": Table([[[-1, -0.1, 5, 0.1], gaps], [[0, 0, 9, 1], [0, 2, 9, 1]]], by="set"),
            "trail": Table(np.stack([leg[:, 0], walker[:, 0]]), by="set", bits=16),
            "goal": Table([[np.nan] * 2, [8.0, 1.5]], by="set"),
            "x": Table([[-1.0, 3.0], [0.0, 9.0]], by="set"),
            "y": Table([[-0.1, 1.5], [0.0, 3.0]], by="set"),
            "reward": Table(np.stack([angle, 1000 * angle]), by="set", bits=8),
            "now": Table(np.stack([angle, 1000 * angle]), by=("set", "step")),
            "limits": Table([[0.0, 6.0], [0.0, 6000.0]], by="set"),
        },
        panels=[
            Paths(paths={"trail": "trail"}, figures={"body": Skeleton("body", "bones")}, walls="walls",
                  points={"goal": "goal"}, time="step", x_range="x", y_range="y", width="half"),
            Lines(y={"reward": "reward"}, y_range="limits", marks=[Mark(x="step", label="now")], width="half"),
        ],
        readouts=[Readout("Reward", "now", ".2f")],
    )  # fmt: skip


FIGURE = _explorer()


def _script() -> str:
    """The script as the site's build writes it."""
    found = importlib.util.spec_from_file_location("dmm_site", ROOT / "book" / "_ext" / "dmm_site.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    script: str = module.classic_script(*((ASSETS / name).read_text("utf8") for name in ("widgets.js", "page.js")))
    return script


@pytest.fixture(scope="module")
def html() -> str:
    style = (ASSETS / "widgets.css").read_text("utf8")
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Player</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body><main><h1>Player</h1>'
        f'{FIGURE.html()}<div style="height: 3000px"></div></main><script>{_script()}</script></body></html>'
    )


@pytest.fixture
def opened(browser: Browser, html: str) -> Iterator[Opener]:
    """Opens the page in a context of its own and, in the end, holds against it what it reported as errors."""
    contexts, errors = [], []

    def open_page(query: str = "", pace: float = PACE, **options: Any) -> tuple[Page, Locator]:
        context = browser.new_context(**({"viewport": {"width": 900, "height": 800}} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        body = html.replace(f'"play":{float(PACE)}', f'"play":{float(pace)}')
        page.route("http://book.test/**", lambda route: route.fulfill(body=body, content_type="text/html"))
        page.add_init_script(f"({COUNT_WRITES})()")
        page.goto(ADDRESS + query, wait_until="load")
        page.locator(".dmm-explorer").wait_for()
        return page, page.locator("figure.dmm-widget")

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def _button(figure: Locator) -> Locator:
    return figure.locator(".dmm-play")


def _step(figure: Locator) -> float:
    return float(settings_of(figure)["step"])


def _wait_for_step(page: Page, step: int) -> None:
    page.wait_for_function(f"document.querySelector('figure.dmm-widget').dmm.settings().step >= {step}")


def _check_at_rest(page: Page, figure: Locator) -> None:
    assert _button(figure).inner_text() == "Play"
    step = _step(figure)
    page.wait_for_timeout(5000 / PACE)
    assert _step(figure) == step, "it still plays"


def test_nothing_plays_by_itself(opened: Opener) -> None:
    page, figure = opened("#episodes?step=7")
    _check_at_rest(page, figure)
    assert _step(figure) == 7


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_play_goes_from_value_to_value_and_stops_at_the_end(opened: Opener, motion: str) -> None:
    page, figure = opened(reduced_motion=motion)
    page.evaluate("""() => {
        window.seen = [];
        const look = () => { window.seen.push([performance.now(), +document.querySelector('.dmm-slider').value]); };
        new MutationObserver(look).observe(document.querySelector('.dmm-value'), { childList: true });
    }""")
    _button(figure).click()
    expect(_button(figure)).to_have_text("Pause")
    _wait_for_step(page, STEPS - 1)
    _check_at_rest(page, figure)
    seen = page.evaluate("window.seen")
    walked = list(dict.fromkeys(value for _, value in seen))
    assert walked == list(range(1, STEPS)), "no value is left out"
    assert seen[-1][0] - seen[0][0] > 0.9 * 1000 * (STEPS - 2) / PACE, "not faster than asked for"
    check_drawn(figure, FIGURE.spec)
    _button(figure).click()
    page.wait_for_function(f"document.querySelector('figure.dmm-widget').dmm.settings().step < {STEPS - 1}")
    expect(_button(figure)).to_have_text("Pause")


def test_pause_stops_and_play_goes_on_from_there(opened: Opener) -> None:
    page, figure = opened()
    _button(figure).click()
    _wait_for_step(page, 3)
    _button(figure).click()
    _check_at_rest(page, figure)
    paused = _step(figure)
    assert 3 <= paused < STEPS - 1
    _button(figure).click()
    _wait_for_step(page, int(paused) + 1)


def test_the_keyboard_plays_and_pauses(opened: Opener) -> None:
    page, figure = opened()
    figure.locator(".dmm-slider").focus()
    page.keyboard.press("Tab")
    for key, label in (("Enter", "Pause: Step"), ("Space", "Play: Step"), ("Space", "Pause: Step")):
        page.keyboard.press(key)
        expect(page.locator(":focus")).to_have_attribute("aria-label", label)
        assert page.locator(":focus").inner_text() == label.split(":")[0]
    assert _button(figure).get_attribute("aria-pressed") is None, "the label already says it"


def _press_key(page: Page, figure: Locator) -> None:
    figure.locator(".dmm-slider").press("Home")


def _hold_thumb(page: Page, figure: Locator) -> None:
    box = figure.locator(".dmm-slider").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()


def _reset(page: Page, figure: Locator) -> None:
    figure.get_by_role("button", name="Reset", exact=True).click()


def _scroll_away(page: Page, figure: Locator) -> None:
    page.evaluate("scrollTo(0, 2500)")


def _open_address(page: Page, figure: Locator) -> None:
    page.evaluate("location.hash = 'episodes?step=1'")


@pytest.mark.parametrize("action", [_press_key, _hold_thumb, _reset, _scroll_away, _open_address])
def test_it_stops_for_its_reader(opened: Opener, action: Callable[[Page, Locator], None]) -> None:
    page, figure = opened()
    _button(figure).click()
    _wait_for_step(page, 2)
    action(page, figure)
    page.wait_for_timeout(100)
    _check_at_rest(page, figure)
    assert _step(figure) < STEPS - 1, "it stopped only at its end"
    check_drawn(figure, FIGURE.spec)


def test_another_data_set_can_be_chosen_while_it_plays(opened: Opener) -> None:
    page, figure = opened()
    _button(figure).click()
    _wait_for_step(page, 2)
    figure.locator("select").select_option("maze")
    _wait_for_step(page, int(_step(figure)) + 2)
    assert settings_of(figure)["set"] == "maze"


def test_the_address_gets_the_last_value_only(opened: Opener) -> None:
    page, figure = opened(pace=4)  # slow enough that each value could get there
    length = page.evaluate("history.length")
    _button(figure).click()
    _wait_for_step(page, 6)
    assert page.evaluate("writes") == []
    _button(figure).click()
    page.wait_for_timeout(WRITTEN)
    assert page.evaluate("writes") == [f"#episodes?step={_step(figure):g}"]
    assert page.evaluate("history.length") == length
    _, again = opened(page.evaluate("location.hash"))
    assert settings_of(again) == settings_of(figure)


def test_a_link_copied_while_it_plays_is_of_now(opened: Opener) -> None:
    page, figure = opened()
    page.evaluate("""() => { window.copied = []; document.execCommand = () => {
        window.copied.push(document.activeElement.value); return true; }; }""")
    _button(figure).click()
    _wait_for_step(page, 4)
    figure.get_by_role("button", name="Copy link").click()
    figure.get_by_text("Copied").wait_for()
    link = page.evaluate("window.copied")[0]
    assert int(link.split("step=")[1]) >= 4


def test_a_screen_reader_hears_where_it_stops(opened: Opener) -> None:
    page, figure = opened()
    readout = figure.locator(".dmm-readout")
    assert readout.get_attribute("aria-live") == "polite"
    _button(figure).click()
    _wait_for_step(page, 2)
    assert readout.get_attribute("aria-live") == "off"
    _button(figure).click()
    assert readout.get_attribute("aria-live") == "polite"


@pytest.mark.parametrize(
    ("options", "least"),
    [({}, 24), ({"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}, 44)],
)
def test_the_button_is_large_enough_and_nothing_moves(opened: Opener, options: dict[str, Any], least: int) -> None:
    page, figure = opened(**options)
    nodes = ".dmm-play, .dmm-slider, .dmm-canvas, .dmm-button"
    boxes = f"() => [...document.querySelectorAll('{nodes}')].map(e => JSON.stringify(e.getBoundingClientRect()))"
    before = page.evaluate(boxes)
    box = _button(figure).bounding_box()
    assert box is not None and box["width"] >= least and box["height"] >= least
    _button(figure).click()
    expect(_button(figure)).to_have_text("Pause")
    assert page.evaluate(boxes) == before
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("name", ["leg", "maze"])
def test_the_figure_moves(opened: Opener, name: str) -> None:
    page, figure = opened()
    figure.locator("select").select_option(name)
    slider = figure.locator(".dmm-slider")
    pictures = []
    for _ in range(8):
        check_drawn(figure, FIGURE.spec)
        pictures.append(pixels_of(figure))
        slider.press("ArrowRight")
    for panel in zip(*pictures, strict=True):
        assert len(set(panel)) == len(panel)
    page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
    page.wait_for_timeout(100)
    assert pixels_of(figure)[0] not in [picture[0] for picture in pictures]


def test_points_and_steps_are_read_with_the_keyboard(opened: Opener) -> None:
    page, figure = opened()
    known = FIGURE.at()
    figure.locator("canvas").first.focus()
    probe = figure.locator(".dmm-probe").first
    page.keyboard.press("ArrowRight")
    x, y = known["trail"][0]
    assert probe.inner_text() == f"step 0: trail at ({x:.3g}, {y:.3g})"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    x, y = known["body"][1]
    assert probe.inner_text() == f"body, point 1: ({x:.3g}, {y:.3g})"
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert "point 2" in probe.inner_text(), "the goal is a gap here"


@pytest.mark.parametrize("width", [900, 390])
def test_no_serious_violation(opened: Opener, width: int) -> None:
    page, figure = opened(viewport={"width": width, "height": 800})
    page.evaluate(AXE)
    found = []
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        for _ in range(2):  # at rest and while it plays
            result = page.evaluate("axe.run('figure', { resultTypes: ['violations'] })")["violations"]
            found += [entry["id"] for entry in result if entry["impact"] in ("serious", "critical")]
            _button(figure).click()
    assert found == []


def test_a_kernel_hears_once_where_it_stops(browser: Browser) -> None:
    page = browser.new_context(viewport={"width": 900, "height": 900}).new_page()
    page.set_content('<!doctype html><html lang="en"><body><div id="cell"></div></body></html>')
    source = b64encode((ASSETS / "widgets.js").read_bytes()).decode()
    page.evaluate(SHIM, {"source": source, "spec": FIGURE.spec, "state": start_settings(FIGURE.spec)})
    cell = page.locator("#cell")
    _button(cell).click()
    page.wait_for_function("document.querySelector('#cell').dmm.settings().step >= 5")
    assert page.evaluate("kernel.saved") == []
    _button(cell).click()
    assert page.evaluate("kernel.saved") == [settings_of(cell)]
    _button(cell).click()
    page.evaluate("kernel.end()")
    expect(_button(cell)).to_have_text("Play")
    page.context.close()
