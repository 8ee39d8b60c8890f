"""Live figures under a finger, on a phone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page

from tests.browser.reading import Spec, check_drawn, settings_of

Figure = tuple[str, int, Spec]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def touched(browser: Browser, site_without_math: str, figure: Figure) -> Iterator[tuple[Page, Locator, Spec]]:
    path, index, spec = figure
    page = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2).new_page()
    page.goto(site_without_math + path, wait_until="load")
    element = page.locator("figure.dmm-widget").nth(index)
    element.locator(".dmm-explorer").wait_for()
    page.wait_for_timeout(300)
    yield page, element, spec
    page.context.close()


def _tap(page: Page, target: Locator, across: float = 0.5) -> None:
    target.evaluate("e => e.scrollIntoView({ block: 'center', behavior: 'instant' })")
    box = target.bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + across * box["width"], box["y"] + box["height"] / 2)


def test_a_tap_on_a_picture_shows_its_numbers_until_the_next(touched: tuple[Page, Locator, Spec]) -> None:
    page, element, _ = touched
    for panel in element.locator(".dmm-panel").all():
        _tap(page, panel.locator("canvas"))
        page.wait_for_timeout(50)
        assert panel.locator(".dmm-probe").inner_text().strip()
    _tap(page, element.locator(".dmm-title"))
    assert not "".join(element.locator(".dmm-probe").all_inner_texts()).strip()


def test_sliders_follow_a_finger(touched: tuple[Page, Locator, Spec]) -> None:
    page, element, spec = touched
    for control in spec["controls"]:
        if control["kind"] != "slider":
            continue
        slider = element.locator(f"input[name='{control['name']}']")
        for across, position in ((0.99, -1), (0.01, 0)):
            _tap(page, slider, across)
            assert settings_of(element)[control["name"]] == control["values"][position]
        check_drawn(element, spec)
