"""axe-core on every page: no serious or critical violation, in both themes, wide and narrow, everything unfolded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.sync_api import Browser, Page

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf8")

UNFOLD = """() => {
    document.querySelectorAll('details').forEach(box => { box.open = true; });
    document.querySelectorAll('.toggle-hidden .toggle-button, .toggle-button-hidden').forEach(button => button.click());
}"""
# The rules that another theme or another width can break.
THEME_RULES = ["color-contrast", "link-in-text-block"]


def _violations(page: Page, rules: list[str] | None = None) -> list[str]:
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = page.evaluate("options => axe.run(options)", options)["violations"]
    return [
        f"{entry['impact']} {entry['id']} at {node['target'][0]}: {node['failureSummary']}"
        for entry in found
        if entry["impact"] in ("serious", "critical")
        for node in entry["nodes"][:3]
    ]


@pytest.mark.parametrize("width", [1200, 390])
def test_no_serious_violation(browser: Browser, site: str, page_path: str, width: int) -> None:
    page = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="light", reduced_motion="reduce"
    ).new_page()
    page.goto(site + page_path, wait_until="load")
    page.evaluate(UNFOLD)
    page.evaluate(AXE)
    page.wait_for_timeout(1000)  # what is unfolded fades in
    found = _violations(page)
    if width > 1000:
        page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
        page.wait_for_timeout(1000)
        found += _violations(page, THEME_RULES)
    page.context.close()
    assert not found, "\n".join(found)
