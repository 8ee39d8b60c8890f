"""The fast lane of a long chapter: the rest folds to its headings and opens again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import HTML, built_pages

LANES = [
    page for page in built_pages() if (HTML / page).exists() and "seealso fast-lane" in (HTML / page).read_text("utf8")
]
FOLDED = "section.folded"


@pytest.fixture
def page(browser: Browser, site_without_math: str) -> Iterator[Page]:
    opened = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    opened.goto(site_without_math + LANES[0], wait_until="load")
    yield opened
    opened.context.close()


@pytest.mark.parametrize("path", LANES)
def test_the_lane_s_sections_stay_and_the_others_fold(browser: Browser, site_without_math: str, path: str) -> None:
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(site_without_math + path, wait_until="load")
    assert page.locator(FOLDED).count() == 0, "nothing is folded that nobody has folded"
    named = set(re.findall(r"\d+\.\d+", page.locator(".fast-lane").inner_text()))
    page.get_by_role("button", name="Fold the rest of the chapter").click()
    heads = page.locator(f"{FOLDED} > h2").all_inner_texts()
    assert heads and not [head for head in heads if head.split()[0] in named]
    shown = page.locator(".bd-article section > section:not(.folded) > h2").all_inner_texts()
    assert {head.split()[0] for head in shown if re.match(r"\d+\.\d+", head)} == named
    page.context.close()


def test_a_folded_section_opens_by_its_button_by_a_link_and_with_all(page: Page) -> None:
    page.get_by_role("button", name="Fold the rest of the chapter").click()
    count = page.locator(FOLDED).count()
    page.get_by_role("button", name="Show the section").first.click()
    expect(page.locator(FOLDED)).to_have_count(count - 1)
    target = page.locator(FOLDED).last.get_attribute("id")
    page.evaluate("id => { location.hash = id; }", target)
    expect(page.locator(FOLDED)).to_have_count(count - 2)
    page.reload(wait_until="load")
    assert page.locator(FOLDED).count() == count - 1, "what was folded stays so, but for what the address names"
    page.get_by_role("button", name="Show the whole chapter").click()
    expect(page.locator(FOLDED)).to_have_count(0)


def test_what_is_folded_takes_no_room_is_found_and_is_printed(page: Page) -> None:
    page.get_by_role("button", name="Fold the rest of the chapter").click()
    name = page.locator(FOLDED).first.get_attribute("id")
    section = page.locator(f"section[id='{name}']")
    last = section.locator(":scope > :not(h2, span)").last
    expect(last).to_have_attribute("hidden", "until-found")
    folded = section.bounding_box()
    assert folded and folded["height"] < 100, "a heading, and nothing of the boxes below it"
    page.emulate_media(media="print")
    printed = section.bounding_box()
    assert printed and printed["height"] > 2 * folded["height"], "on paper everything is open"
    page.emulate_media(media="screen")
    last.evaluate("part => part.dispatchEvent(new Event('beforematch', { bubbles: true }))")
    expect(page.locator(f"{FOLDED}[id='{name}']")).to_have_count(0)
    assert last.get_attribute("hidden") is None
    page.goto(page.url.split("#")[0] + "?highlight=gate", wait_until="load")
    expect(page.locator(FOLDED)).to_have_count(0)
