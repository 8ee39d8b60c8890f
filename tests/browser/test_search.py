"""The site's search, also for words that JavaScript's own objects know."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import HTML


def _results(browser: Browser, address: str) -> tuple[str, int]:
    """What the search says in the end, and the number of its results."""
    page: Page = browser.new_context().new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address, wait_until="load")
    page.locator("#search-results h2", has_text="Search Results").wait_for(state="attached")  # the theme hides it
    said = page.locator("#search-results .search-summary").text_content() or ""
    found = page.locator("#search-results ul.search > li").count()
    page.context.close()
    assert errors == []
    return said, found


@pytest.mark.parametrize(
    "word", ["constructor", "__proto__", "constructor mamba", "mamba -constructor", "hasOwnProperty"]
)
def test_words_of_every_javascript_object_are_words_like_others(browser: Browser, site: str, word: str) -> None:
    said, found = _results(browser, f"{site}search.html?q={word.replace(' ', '+')}")
    assert ("did not match any documents" in said) == (found == 0)


def test_a_word_of_the_book_is_found(browser: Browser, site: str) -> None:
    said, found = _results(browser, f"{site}search.html?q=mamba")
    assert found > 0 and "found" in said


@pytest.mark.parametrize("where", ["server", "disk"])
def test_results_come_with_an_excerpt(browser: Browser, site: str, where: str) -> None:
    page = browser.new_context().new_page()
    base = site if where == "server" else f"{HTML.as_uri()}/"
    page.goto(f"{base}search.html?q=discretization", wait_until="load")
    page.locator("#search-results h2", has_text="Search Results").wait_for(state="attached")
    page.locator("#search-results p.context").first.wait_for(state="attached")
    excerpts = page.locator("#search-results p.context").all_inner_texts()
    page.context.close()
    assert any("discretiz" in excerpt.lower() for excerpt in excerpts)
    assert not any("<" in excerpt for excerpt in excerpts)
