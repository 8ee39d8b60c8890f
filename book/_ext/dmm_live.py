"""The site's part of the figures in which a policy acts: a directive for pages without code, files beside the pages.

    ```{live-policy} ask_for_a_return
    gating/pointmaze-dmm-seed0
    gating/hopper-dmm-seed0
    ```

calls that function of `dmm.widgets.acting` with these runs, which are kept with the package. Behind the last page,
`_static` gets dmm-live.js and, in `dmm-files`, what the figures of all pages name: the policies and the physics.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from sphinx.util import logging

from dmm.errors import InputError, RunError
from dmm.experiments import kept_run
from dmm.export import describe_policy
from dmm.widgets import acting
from dmm.widgets.mujoco import file_script, licenses, missing_script, mujoco_script
from dmm.widgets.parts import site_script

logger = logging.getLogger(__name__)
FIGURE = re.compile(r'<figure class="dmm-policy".*?<script type="application/json">(.*?)</script>', re.DOTALL)


class LivePolicyDirective(Directive):
    """A figure of `dmm.widgets.acting` in a page that executes nothing."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        names = [line.strip() for line in self.content if line.strip()]
        try:
            figure = getattr(acting, self.arguments[0])({name: kept_run(name) for name in names})
        except (AttributeError, InputError) as error:
            raise self.error(f"live-policy: {error}") from error
        return [nodes.raw("", figure.html(), format="html")]


def specifications(pages: Path) -> Iterator[dict[str, Any]]:
    """Of all figures in which a policy acts, in all pages."""
    for page in sorted(pages.rglob("*.html")):
        for match in FIGURE.finditer(page.read_text("utf8")):
            yield json.loads(match.group(1))


def needed_files(specs: Iterator[dict[str, Any]]) -> tuple[list[str], bool]:
    """The names of the policies that act in some figures, and whether one needs the physics."""
    scenes = [scene for spec in specs for scene in spec["scenes"].values()]
    policies = {lane["policy"] for scene in scenes for lane in [*scene["lanes"], *scene["arms"]]}
    return sorted(policies), any(scene["physics"] for scene in scenes)


def _write_files(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    static = Path(app.outdir) / "_static"
    policies, physics = needed_files(specifications(Path(app.outdir)))
    (static / "dmm-live.js").write_text(site_script(), "utf8")
    folder = static / "dmm-files"
    folder.mkdir(exist_ok=True)
    for name in policies:
        try:
            script = file_script(name, describe_policy(kept_run(name)))
        except InputError as wrong:
            logger.warning("a figure's policy cannot be put beside the pages: %s", wrong)
            continue
        (folder / f"{name.replace('/', '-')}.js").write_text(script, "utf8")
    if physics:
        _write_physics(folder)


def _write_physics(folder: Path) -> None:
    """MuJoCo, and its licences; where it cannot be had, the figures say so, and the rest of the site is as it is."""
    try:
        script, texts = mujoco_script(), licenses()
    except RunError as error:
        logger.info("the physics of live figures is left out: %s", error)
        script, texts = missing_script(str(error)), {}
    (folder / "mujoco.js").write_text(script, "utf8")
    for name, text in texts.items():
        (folder / name).write_text(text, "utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("live-policy", LivePolicyDirective)
    app.connect("build-finished", _write_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
