"""Live figures as they stand in a page or in a notebook's outputs."""

from __future__ import annotations

import html
import json
import re
from typing import Any

FIGURE = re.compile(
    r'<figure class="dmm-widget" data-widget="([^"]+)">.*?<script type="application/json">(.*?)</script>', re.S
)

ACTING = re.compile(
    r'<figure class="dmm-policy" data-widget="([^"]+)">.*?<script type="application/json">(.*?)</script>', re.S
)


def specifications(text: str, kind: re.Pattern[str] = FIGURE) -> list[dict[str, Any]]:
    """Of the live figures in a text, in order."""
    found = []
    for match in kind.finditer(text):
        found.append(json.loads(match.group(2)))
        assert html.unescape(match.group(1)) == found[-1]["name"]
    return found


def acting_figures(text: str) -> list[dict[str, Any]]:
    """Specifications of the figures in which a policy acts."""
    return specifications(text, ACTING)
