"""The built pages with figures in which a policy acts: from the disk and from a server, with nothing from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser

from dmm.experiments import kept_run
from tests.browser.conftest import HTML, built_pages
from tests.live_figures import acting_figures

PAGES = [page for page in built_pages() if (HTML / page).exists() and acting_figures((HTML / page).read_text("utf8"))]
STEPPED = "e => (e.dmm?.view.pictures?.[0].steps ?? 0) >= 3"
ADDED = 1_600_000  # bytes, compressed, that a page with one figure loads when all of its worlds are looked at


def test_the_book_has_such_figures() -> None:
    assert "book/intro.html" in PAGES and len(PAGES) >= 4


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_every_figure_of_a_page_acts(browser: Browser, site_without_math: str, path: str, scheme: str) -> None:
    base = site_without_math if scheme == "http" else f"{HTML.as_uri()}/"
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    errors: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(base + path, wait_until="load")
    assert not [address for address in asked if "dmm-files" in address or "dmm-live" in address]
    for figure in page.locator("figure.dmm-policy .dmm-widget").all():
        figure.scroll_into_view_if_needed()
        figure.get_by_role("button", name=re.compile("^Start")).click()
        page.wait_for_function(STEPPED, arg=figure.element_handle(), timeout=60_000)
    page.context.close()
    assert errors == []
    assert [address for address in asked if not address.startswith((base, "data:", "blob:"))] == []


def test_what_a_start_loads_is_small() -> None:
    import gzip

    static = HTML / "_static"
    sizes = {path.name: len(gzip.compress(path.read_bytes(), 6)) for path in (static / "dmm-files").glob("*.js")}
    shared = sizes.pop("mujoco.js") + len(gzip.compress((static / "dmm-live.js").read_bytes(), 6))
    two = sum(sorted(sizes.values())[-2:])
    assert len(sizes) > 2 and shared + two < ADDED, (shared, sizes)


def test_the_site_has_the_physics_with_its_licences() -> None:
    folder = HTML / "_static" / "dmm-files"
    assert '"missing"' not in (folder / "mujoco.js").read_text("utf8")[:300]
    assert "Apache License" in (folder / "mujoco-LICENSE.txt").read_text("utf8")
    assert (folder / "mujoco-LICENSES_THIRD_PARTY.md").exists()


@pytest.mark.parametrize("path", PAGES)
def test_policies_of_a_page_are_kept_with_the_package(path: str) -> None:
    specs: list[dict[str, Any]] = acting_figures((HTML / path).read_text("utf8"))
    lanes = [lane for spec in specs for scene in spec["scenes"].values() for lane in scene["lanes"]]
    assert lanes
    for lane in lanes:
        assert kept_run(lane["policy"]).policy.context > 0
        assert (HTML / "_static" / "dmm-files" / f"{lane['policy'].replace('/', '-')}.js").exists()


def test_names_of_figures_differ_in_a_page() -> None:
    for path in PAGES:
        text = (HTML / path).read_text("utf8")
        names = re.findall(r'<figure class="dmm-(?:widget|policy)" data-widget="([^"]+)">', text)
        assert len(names) == len(set(names)), path
