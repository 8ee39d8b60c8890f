"""The scripts of the live figures, put together from the parts in `dmm/_assets` for a notebook and for the site.

| script | parts | where |
|---|---|---|
| worker | policy.js, worlds.js, physics.js, worker.js | a text inside the other two, run in a worker made of a Blob |
| notebook's module | widgets.js, the worker's text, live.js, kernel.js | `LivePolicy`, through anywidget |
| dmm-live.js | the worker's text, live.js | `_static` of the site, loaded when a reader starts a figure |
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "_assets"
MODULE_END = "export default { render };"
"""How widgets.js ends."""
WORKER_PARTS = ("policy.js", "worlds.js", "physics.js", "worker.js")
_SHARED = re.compile(r"globalThis\.dmmWidgets = \{(.*?)\};", re.DOTALL)


def asset(name: str) -> str:
    """The text of one part."""
    return (ASSETS / name).read_text("utf8")


def worker_script() -> str:
    """What the worker runs: a classic script."""
    return "\n".join(asset(name) for name in WORKER_PARTS)


def notebook_module() -> str:
    """The ES module that anywidget loads for a `LivePolicy`."""
    widgets = asset("widgets.js")
    if widgets.count(MODULE_END) != 1:
        raise ValueError(f"widgets.js must end with {MODULE_END!r} once")
    parts = [widgets.replace(MODULE_END, ""), _worker_constant(), asset("live.js"), asset("kernel.js")]
    return "\n".join(parts)


def site_script() -> str:
    """The site's dmm-live.js, a classic script that defines `globalThis.dmmLive`; it needs dmm-widgets.js before it."""
    shared = _SHARED.search(asset("page.js"))
    if shared is None:
        raise ValueError("page.js must say once what globalThis.dmmWidgets has")
    names = f"const {{{' '.join(shared.group(1).split())}}} = globalThis.dmmWidgets;"
    body = "\n".join(
        ['"use strict";', names, _worker_constant(), asset("live.js"), "globalThis.dmmLive = renderPolicy;"]
    )
    return f"(() => {{\n{body}\n}})();\n"


def _worker_constant() -> str:
    return f"const WORKER = {json.dumps(worker_script())};"
