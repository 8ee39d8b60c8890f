"""Pictures under a finger and from the keyboard: on a phone each opens in its full size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import HTML, built_pages

PHONE = {"width": 390, "height": 844}
PICTURES = ".bd-article img.can-enlarge"
WITH_PICTURES = [page for page in built_pages() if (HTML / page).exists() and "<img" in (HTML / page).read_text("utf8")]


@pytest.fixture(scope="module")
def phone(browser: Browser) -> Iterator[Page]:
    page = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2).new_page()
    yield page
    page.context.close()


def _open(page: Page, address: str) -> None:
    page.goto(address, wait_until="load")
    page.wait_for_timeout(200)


@pytest.mark.parametrize("path", WITH_PICTURES)
def test_a_tap_enlarges_and_escape_leads_back(phone: Page, site_without_math: str, path: str) -> None:
    _open(phone, site_without_math + path)
    shrunk = phone.locator(".bd-article img").evaluate_all(
        "all => all.filter(e => e.clientWidth > 0 && e.clientWidth < 0.8 * e.naturalWidth && !e.closest('a, button'))"
        ".map(e => e.classList.contains('can-enlarge'))"
    )
    assert all(shrunk), "each picture that is shown much smaller than it is can be opened"
    if not shrunk:
        return
    picture = phone.locator(PICTURES).first
    picture.scroll_into_view_if_needed()
    picture.tap()
    large = phone.locator("dialog[open] .enlarged-frame img")
    expect(large).to_be_visible()
    assert large.evaluate("e => [e.clientWidth, e.alt]") == picture.evaluate("e => [e.naturalWidth, e.alt]")
    frame = phone.locator(".enlarged-frame")
    box = frame.bounding_box()
    assert box is not None and box["width"] <= PHONE["width"] and box["height"] <= PHONE["height"]
    phone.keyboard.press("Escape")
    expect(phone.locator("dialog.enlarged")).not_to_be_visible()
    assert picture.evaluate("e => e === document.activeElement")
    phone.keyboard.press("Enter")
    expect(large).to_be_visible()
    phone.get_by_role("button", name="Close", exact=True).tap()
    expect(phone.locator("dialog.enlarged")).not_to_be_visible()


def test_pictures_open_from_disk_too(phone: Page) -> None:
    _open(phone, f"{HTML.as_uri()}/{WITH_PICTURES[-1]}")
    phone.locator(PICTURES).first.focus()
    phone.keyboard.press(" ")
    expect(phone.locator("dialog[open] .enlarged-frame img")).to_be_visible()


def test_on_a_wide_screen_a_picture_that_fits_is_a_picture(browser: Browser, site_without_math: str) -> None:
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    _open(page, site_without_math + WITH_PICTURES[-1])
    widths = page.locator(PICTURES).evaluate_all("all => all.map(e => e.clientWidth / e.naturalWidth)")
    page.context.close()
    assert all(ratio < 0.85 for ratio in widths)
