"""The page's address carries the settings of its live figures: whoever opens a shared link sees what was shared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page

from dmm.widgets import start_settings
from tests.browser.conftest import HTML, built_figures
from tests.browser.reading import Spec, check_drawn, settings_of

Settings = dict[str, float | str]
PAGES = list(dict.fromkeys(page for page, _, _ in built_figures()))
WRITTEN = 400  # milliseconds after which a setting stands in the address


@pytest.fixture
def pages(browser: Browser) -> Iterator[Any]:
    """Opens pages in contexts of their own and, in the end, holds against them what they reported as errors."""
    opened: list[Page] = []
    errors: list[str] = []

    def open_page(address: str, *, permissions: list[str] | None = None) -> Page:
        context = browser.new_context(viewport={"width": 1200, "height": 900}, permissions=permissions or [])
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address, wait_until="load")
        page.wait_for_function("document.querySelectorAll('figure.dmm-widget:not(.dmm-live)').length === 0")
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.context.close()
    assert errors == []


def _figure(page: Page, index: int) -> Locator:
    return page.locator("figure.dmm-widget").nth(index)


def _moved(spec: Spec) -> Settings:
    """A setting in which no control is at its start."""
    return {
        control["name"]: next(value for value in reversed(control["values"]) if value != control["start"])
        for control in spec["controls"]
    }


def _move(page: Page, index: int, spec: Spec, target: Settings) -> None:
    """Bring each control to its target the way a reader does."""
    for control in spec["controls"]:
        value = target[control["name"]]
        if control["kind"] == "select":
            _figure(page, index).locator(f"select[name='{control['name']}']").select_option(str(value))
        else:
            slider = _figure(page, index).locator(f"input[name='{control['name']}']")
            slider.focus()
            page.keyboard.press("Home" if control["values"].index(value) == 0 else "End")
            if control["values"].index(value) == len(control["values"]) - 2:
                page.keyboard.press("ArrowLeft")


@pytest.mark.parametrize("path", PAGES)
def test_an_address_restores_every_figure_of_its_page(pages: Any, site_without_math: str, path: str) -> None:
    figures = [(index, spec) for page, index, spec in built_figures() if page == path]
    first = pages(site_without_math + path)
    for index, spec in figures:
        _move(first, index, spec, _moved(spec))
        assert settings_of(_figure(first, index)) == _moved(spec)
    names = [spec["name"] for _, spec in figures]
    first.wait_for_function("names => names.every(name => location.hash.includes(name))", arg=names)
    first.wait_for_timeout(WRITTEN)
    second = pages(first.url)
    for index, spec in figures:
        assert settings_of(_figure(second, index)) == _moved(spec)
        check_drawn(_figure(second, index), spec)
    second.wait_for_timeout(WRITTEN)
    assert second.url == first.url
    last = _figure(second, figures[-1][0])
    assert 0 <= last.evaluate("e => e.getBoundingClientRect().top") < 300, "the figure changed last must be in view"
    for index, _ in figures:
        _figure(second, index).get_by_role("button", name="Reset", exact=True).click()
    second.wait_for_timeout(WRITTEN)
    assert second.url == site_without_math + path


def test_a_copied_link_opens_its_figure(pages: Any, site_without_math: str, figure: tuple[str, int, Spec]) -> None:
    path, index, spec = figure
    first = pages(site_without_math + path, permissions=["clipboard-read", "clipboard-write"])
    shared = start_settings(spec)
    for label, settings in list(spec["presets"].items())[-1:]:
        _figure(first, index).get_by_role("button", name=label, exact=True).click()
        shared = settings
    _figure(first, index).get_by_role("button", name="Copy link").click()
    _figure(first, index).get_by_text("Copied").wait_for()
    second = pages(first.evaluate("navigator.clipboard.readText()"))
    assert settings_of(_figure(second, index)) == shared
    check_drawn(_figure(second, index), spec)
    second.wait_for_timeout(WRITTEN)
    assert 0 <= _figure(second, index).evaluate("e => e.getBoundingClientRect().top") < 300


def test_a_link_can_be_copied_by_hand_where_no_clipboard_answers(pages: Any) -> None:
    path, index, spec = built_figures()[0]
    first = pages(f"{HTML.as_uri()}/{path}")
    first.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed')); }")
    first.evaluate("() => { document.execCommand = () => false; }")
    _move(first, index, spec, _moved(spec))
    _figure(first, index).get_by_role("button", name="Copy link").click()
    field = _figure(first, index).get_by_label("Link to this setting")
    field.wait_for()
    assert settings_of(_figure(pages(field.input_value()), index)) == _moved(spec)
    _figure(first, index).get_by_role("button", name="Reset", exact=True).click()
    assert not field.is_visible(), "the link no longer is the figure's setting"


@pytest.mark.parametrize(
    "query", ["?", "?start", "?nothing=1", "?{control}=unheard-of", "?{control}", "?%E0%A4%A=1;;?&="]
)
def test_an_address_that_means_nothing_leaves_the_start(pages: Any, site: str, query: str) -> None:
    path, index, spec = built_figures()[0]
    page = pages(f"{site}{path}#{spec['name']}{query.format(control=spec['controls'][0]['name'])}")
    assert settings_of(_figure(page, index)) == start_settings(spec)
    check_drawn(_figure(page, index), spec)


LONG = 1_000_000  # characters
REQUEST = 60_000  # the most that this server takes as a query


def _processor_seconds(page: Page) -> float:
    metrics = page.context.new_cdp_session(page)
    metrics.send("Performance.enable")
    page.wait_for_timeout(WRITTEN)
    entries = metrics.send("Performance.getMetrics")["metrics"]
    return next(entry["value"] for entry in entries if entry["name"] == "TaskDuration")


@pytest.mark.parametrize("flood", ["{figure}?{control};", "{figure}?{control}&{control};", "a;", "&"])
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_megabyte_in_the_address_costs_nothing(pages: Any, site: str, scheme: str, flood: str) -> None:
    path, index, spec = built_figures()[0]
    base = site + path if scheme == "http" else f"{HTML.as_uri()}/{path}"
    control = spec["controls"][0]
    part = flood.format(figure=spec["name"], control=f"{control['name']}={control['values'][-1]}")
    plain = _processor_seconds(pages(base))
    page = pages(f"{base}#{spec['name']}?" + part * (LONG // len(part)))
    assert _processor_seconds(page) < 2 * plain + 1
    assert settings_of(_figure(page, index)) == start_settings(spec)


@pytest.mark.parametrize("path", [PAGES[0], "search.html"] if PAGES else ["search.html"])
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_many_words_in_the_query_cost_nothing(pages: Any, site: str, scheme: str, path: str) -> None:
    base = site + path if scheme == "http" else f"{HTML.as_uri()}/{path}"
    words = "".join(f"+word{i}" for i in range((REQUEST if scheme == "http" else LONG) // 11))
    plain = _processor_seconds(pages(base))
    page = pages(f"{base}?{'q' if path == 'search.html' else 'highlight'}={words}")
    assert _processor_seconds(page) < 2 * plain + 1


def test_the_last_word_on_a_figure_counts(pages: Any, site: str) -> None:
    path, index, spec = built_figures()[0]
    control = spec["controls"][0]
    parts = [f"{spec['name']}?{control['name']}={value}" for value in (control["values"][0], control["values"][-1])]
    page = pages(f"{site}{path}#{';'.join(parts)}")
    assert settings_of(_figure(page, index))[control["name"]] == control["values"][-1]


def test_anchors_of_the_page_still_work(pages: Any, site: str) -> None:
    path, index, spec = built_figures()[0]
    page = pages(site + path)
    _move(page, index, spec, _moved(spec))
    page.wait_for_timeout(WRITTEN)
    shared = page.url
    anchor = page.locator(".bd-sidebar-secondary a[href^='#']").last
    anchor.click()
    page.wait_for_timeout(WRITTEN)
    assert page.url == f"{site}{path}{anchor.get_attribute('href')}"
    assert settings_of(_figure(page, index)) == _moved(spec), "going elsewhere on the page changes no figure"
    _figure(page, index).get_by_role("button", name="Reset", exact=True).click()
    page.go_back()
    page.wait_for_timeout(WRITTEN)
    assert page.url == shared
    assert settings_of(_figure(page, index)) == _moved(spec), "an address opened later counts too"
