"""A figure in which a policy acts, in the other browser: from the disk, with nothing asked of anybody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.live_page import figures, write_page
from tests.browser.marionette import Firefox, firefox, firefox_path

FIGURE = "document.querySelector('.dmm-widget')"
ERRORS = """window.wrong = []; addEventListener("error", event => window.wrong.push(event.message));
addEventListener("unhandledrejection", event => window.wrong.push(String(event.reason)));"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firefox]:
    path = firefox_path()
    if path is None:
        words = "no Firefox found: install Debian's firefox-esr, or name a browser in DMM_FIREFOX"
        pytest.fail(words) if os.environ.get("CI") else pytest.skip(words)
    with firefox(str(path), tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("name", list(figures()))
def test_a_policy_acts_in_firefox_from_the_disk(browser: Firefox, tmp_path: Path, name: str) -> None:
    page = write_page(tmp_path, figures()[name])
    browser.open(page.as_uri())
    browser.run(ERRORS)
    assert browser.run(f"return {FIGURE}.querySelector('img').getBoundingClientRect().width") > 300
    browser.run("document.querySelector('.dmm-start').click()")
    browser.wait(f"({FIGURE}.dmm?.view.pictures?.[0].steps ?? 0) > 20")
    browser.run("document.querySelector('.dmm-play').click()")
    browser.wait("document.querySelector('.dmm-said').textContent.startsWith('Paused')")
    elsewhere = "performance.getEntriesByType('resource').filter(each => !/^(file|data|blob):/.test(each.name)).length"
    assert browser.run(f"return {elsewhere}") == 0
    assert browser.run("return window.wrong") == []
