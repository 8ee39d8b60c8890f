"""Every live figure, driven as a reader would: what it draws must be what Python says for that setting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page

from dmm.widgets import data_names, start_settings, values
from tests.browser.reading import Spec, check_drawn, pixels_of, settings_of

Figure = tuple[str, int, Spec]

# A change this small, as a share of a panel's scale, need not move a pixel.
VISIBLE = 0.03


@pytest.fixture(scope="module")
def page_of_figure(browser: Browser, site_without_math: str, figure: Figure) -> Iterator[Page]:
    page = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
    page.goto(site_without_math + figure[0], wait_until="load")
    yield page
    page.context.close()


@pytest.fixture
def opened(page_of_figure: Page, figure: Figure) -> Iterator[tuple[Page, Locator, Spec]]:
    """The figure as it is at first, on a page that its tests share; each leaves it as it was."""
    page, (_, index, spec) = page_of_figure, figure
    element = page.locator("figure.dmm-widget").nth(index)
    element.locator(".dmm-explorer").wait_for()
    element.scroll_into_view_if_needed()
    page.wait_for_timeout(150)
    theme = page.evaluate("document.documentElement.dataset.theme")
    yield page, element, spec
    page.mouse.move(0, 0)
    page.evaluate("theme => { document.documentElement.dataset.theme = theme; document.activeElement.blur(); }", theme)
    element.get_by_role("button", name="Reset", exact=True).click()


def _clipped(panel: Spec, known: dict[str, Any], name: str) -> np.ndarray[Any, Any] | None:
    """A data entry as far as the panel's scale shows it, in units of that scale."""
    limits = panel.get("range") or panel.get("y_range")
    numbers = np.asarray(known[name])
    limits = known[limits] if isinstance(limits, str) else limits
    if limits is None or numbers.dtype.kind == "U" or panel["kind"] not in ("lines", "bars", "heatmap"):
        return None
    return np.asarray((np.clip(numbers.astype(float), *limits) - limits[0]) / ((limits[1] - limits[0]) or 1))


def _check_repainted(spec: Spec, before: dict[str, Any], after: dict[str, Any], old: list[str], new: list[str]) -> None:
    for panel, pixels, now in zip(spec["panels"], old, new, strict=True):
        for name in data_names(panel):
            first, second = _clipped(panel, before, name), _clipped(panel, after, name)
            if first is None or second is None or panel.get("log_y") or name == panel.get("x"):
                continue
            if np.nan_to_num(np.abs(first - second)).max(initial=0) > VISIBLE:
                assert pixels != now, f"{panel['kind']} shows {name}, which changed, but its picture did not"


def test_starts_with_the_numbers_of_the_start(opened: tuple[Page, Locator, Spec]) -> None:
    _, element, spec = opened
    assert settings_of(element) == start_settings(spec)
    check_drawn(element, spec)
    assert not element.locator(":scope > img").is_visible()
    assert element.get_by_role("group").first.get_attribute("aria-label") == spec["title"]
    for canvas in element.locator("canvas").all():
        assert canvas.get_attribute("role") == "img"
        assert len((canvas.get_attribute("aria-label") or "").split()) > 3


def test_every_control_answers_to_the_keyboard(opened: tuple[Page, Locator, Spec]) -> None:
    page, element, spec = opened
    repaints = 0
    for control in spec["controls"]:
        if control["kind"] != "slider":
            continue
        element.locator(f"input[name='{control['name']}']").focus()
        for key, position in (("Home", 0), ("ArrowRight", 1), ("End", -1), ("ArrowLeft", -2)):
            before, old = values(spec, settings_of(element)), pixels_of(element)
            page.keyboard.press(key)
            assert settings_of(element)[control["name"]] == control["values"][position]
            after, new = check_drawn(element, spec), pixels_of(element)
            _check_repainted(spec, before, after, old, new)
            repaints += old != new
        element.get_by_role("button", name="Reset", exact=True).click()
    if any(control["kind"] == "slider" for control in spec["controls"]):
        assert repaints, "no slider changes any picture"


def test_every_choice_can_be_made(opened: tuple[Page, Locator, Spec]) -> None:
    _, element, spec = opened
    for control in spec["controls"]:
        if control["kind"] == "select":
            for option in control["values"]:
                before, old = values(spec, settings_of(element)), pixels_of(element)
                element.locator(f"select[name='{control['name']}']").select_option(option)
                assert settings_of(element)[control["name"]] == option
                _check_repainted(spec, before, check_drawn(element, spec), old, pixels_of(element))


def test_every_slider_answers_to_the_mouse(opened: tuple[Page, Locator, Spec]) -> None:
    page, element, spec = opened
    for control in spec["controls"]:
        if control["kind"] != "slider":
            continue
        slider = element.locator(f"input[name='{control['name']}']")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 3, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 3, middle, steps=6)
        page.mouse.up()
        assert settings_of(element)[control["name"]] == control["values"][-1]
        check_drawn(element, spec)


def test_presets_and_reset(opened: tuple[Page, Locator, Spec]) -> None:
    _, element, spec = opened
    for label, settings in spec["presets"].items():
        element.get_by_role("button", name=label, exact=True).click()
        assert settings_of(element) == settings
        check_drawn(element, spec)
    element.get_by_role("button", name="Reset", exact=True).click()
    assert settings_of(element) == start_settings(spec)
    check_drawn(element, spec)


def test_pictures_tell_their_numbers_to_pointer_and_keyboard(opened: tuple[Page, Locator, Spec]) -> None:
    page, element, spec = opened
    for number in range(len(spec["panels"])):
        panel = element.locator(".dmm-panel").nth(number)
        panel.locator("canvas").focus()
        page.keyboard.press("ArrowRight")
        first = panel.locator(".dmm-probe").inner_text()
        assert first.strip()
        panel.locator("canvas").blur()
        assert not panel.locator(".dmm-probe").inner_text().strip()
        panel.locator("canvas").hover()
        assert panel.locator(".dmm-probe").inner_text().strip()
        page.mouse.move(0, 0)


def test_dark_mode_repaints(opened: tuple[Page, Locator, Spec]) -> None:
    page, element, _ = opened
    grounds, pictures = [], []
    for theme in ("light", "dark"):
        page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
        page.wait_for_timeout(100)
        grounds.append(element.locator(".dmm-explorer").evaluate("e => getComputedStyle(e).backgroundColor"))
        pictures.append(pixels_of(element))
    assert grounds[0] != grounds[1]
    assert all(light != dark for light, dark in zip(*pictures, strict=True))


def test_the_theme_button_of_the_page_reaches_the_figure(opened: tuple[Page, Locator, Spec]) -> None:
    page, element, _ = opened
    ground = element.locator(".dmm-explorer")
    seen = {ground.evaluate("e => getComputedStyle(e).backgroundColor")}
    for _ in range(2):
        page.locator("button.theme-switch-button").first.evaluate("e => e.click()")
        page.wait_for_timeout(100)
        seen.add(ground.evaluate("e => getComputedStyle(e).backgroundColor"))
    assert len(seen) == 2


def test_without_scripts_the_picture_is_there(browser: Browser, site_without_math: str, figure: Figure) -> None:
    path, index, spec = figure
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1200, "height": 1000})
    page = context.new_page()
    page.goto(site_without_math + path, wait_until="load")
    picture = page.locator("figure.dmm-widget > img").nth(index)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    alt = picture.get_attribute("alt")
    caption = page.locator("figure.dmm-widget > figcaption").nth(index).inner_text()
    context.close()
    assert box is not None and box["width"] > 300 and box["height"] > 100
    assert (alt, caption) == (spec["alt"], spec["title"])
