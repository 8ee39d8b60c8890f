"""What this site needs beyond Jupyter Book: live figures, a cache that knows the package, exercises by chapter."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "dmm" / "_assets"
PLACEHOLDER = "OWNER_NAME"
NO_ADDRESS = (
    "Colab opens what has a public address, and this copy has none yet. "
    "<code>make address URL=...</code> tells every page of one."
)
MODULE_END = "export default { render };"
START_PAGE = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={first}">
<link rel="canonical" href="{first}">
<link rel="icon" href="_static/{icon}">
</head>
<body>
<main><p><a href="{first}">{title}: to the first page</a></p></main>
</body>
</html>
"""


def classic_script(module: str, page: str) -> str:
    """The widget's ES module and the page's part as one plain script: modules do not load from file:// pages."""
    if module.count(MODULE_END) != 1:
        raise ValueError(f"widgets.js must end with {MODULE_END!r} once")
    return f'(() => {{\n"use strict";\n{module.replace(MODULE_END, "")}\n{page}}})();\n'


def execution_key(root: Path = ROOT) -> str:
    """A short hash of what decides a notebook's output besides its cells: package, stored results, pins and Python."""
    digest = hashlib.sha256(sys.version.encode())
    files = [path for path in (root / "dmm").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in [*sorted(files), root / "requirements.txt"]:
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _use_keyed_cache(app: Sphinx, config: Config) -> None:
    if os.environ.get("DMM_BOOK_EXECUTES") == "no":  # the site shows the outputs that the notebooks hold
        config.nb_execution_mode = "off"
    build = ROOT / "_build"
    config.execution_key = execution_key()
    cache = build / f"cache-{config.execution_key}"
    for stale in build.glob("cache-*"):
        if stale != cache:
            shutil.rmtree(stale)
    if not cache.exists():  # policies trained by another state of the package are trained anew
        shutil.rmtree(ROOT / "notebooks" / "runs", ignore_errors=True)
    config.nb_execution_cache_path = str(cache)


def _write_assets(app: Sphinx) -> None:
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    module, page = ((ASSETS / name).read_text("utf8") for name in ("widgets.js", "page.js"))
    (static / "dmm-widgets.js").write_text(classic_script(module, page), "utf8")
    shutil.copyfile(ASSETS / "widgets.css", static / "dmm-widgets.css")


def _number_exercises(app: Sphinx, env: BuildEnvironment) -> None:
    """Count exercises by chapter, 4.1, 4.2, ..., so that a new chapter does not renumber those of the others."""
    for page, kinds in env.toc_fignumbers.items():
        chapter = re.match(r"notebooks/(\d+)_", page)
        if chapter and "exercise" in kinds:
            kinds["exercise"] = {name: (int(chapter[1]), i) for i, name in enumerate(kinds["exercise"], 1)}


def _drop_foreign_scripts(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Leave out thebe, which would fetch from a CDN, and the kernel's widget state, which nothing here reads."""
    context["script_files"] = [script for script in context["script_files"] if not _is_foreign(script)]


def _is_foreign(script: Any) -> bool:
    attributes = getattr(script, "attributes", {})
    described = f"{script} {getattr(script, 'filename', '')} {attributes.get('body', '')[:2000]}"
    return "thebe" in described or attributes.get("type") == "application/vnd.jupyter.widget-state+json"


def _mend_roles(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Make citations items of their list: docutils gives the list and its entries roles that do not fit together."""
    citation = r'(<div class="citation" id="[^"]*" )role="doc-biblioentry"'
    context["body"] = re.sub(citation, r'\1role="listitem"', context.get("body", ""))


def _mend_search(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if page == "search":
        app.add_js_file("search-words.js", loading_method="defer")


def searched_text(page: str) -> str:
    """A built page as the search needs it for excerpts: the words of its article inside one element of role main."""
    article = re.search(r'<article class="bd-article"[^>]*>(.*?)</article>', page, re.S)
    body = re.sub(r"<(script|style|svg)\b.*?</\1>", " ", article[1] if article else "", flags=re.S)
    body = re.sub(r"<a class=\"headerlink\".*?</a>", "", body, flags=re.S)
    body = re.sub(r"</?(?:a|b|code|em|i|span|strong|sub|sup)\b[^>]*>", "", body)
    words = html.unescape(re.sub(r"<[^>]+>", " ", body))
    return f'<div role="main">{html.escape(" ".join(words.split()), quote=False)}</div>'


def _write_search_texts(app: Sphinx, error: Exception | None) -> None:
    """For pages that are opened from disk, where no script may read another page."""
    if error is None and app.builder.name == "html":
        folder = Path(app.outdir)
        texts = {name: searched_text((folder / f"{name}.html").read_text("utf8")) for name in app.env.found_docs}
        script = f"window.dmmSearchTexts = {json.dumps(texts, ensure_ascii=False)};\n"
        (folder / "_static" / "search-texts.js").write_text(script, "utf8")


def has_address(config: Config) -> bool:
    """Whether the repository has a public address, and not the placeholder that GitHub cannot give to anybody."""
    return PLACEHOLDER not in str(config.html_theme_options.get("repository_url", ""))


def _drop_buttons_to_nowhere(app: Sphinx, config: Config) -> None:
    """Without a public address the buttons to repository, issues and Colab lead nowhere."""
    if not has_address(config):
        kept = {"launch_buttons": {}, "use_repository_button": False, "use_issues_button": False}
        config.html_theme_options = {**config.html_theme_options, **kept}


def without_address(body: str) -> str:
    """A page of a copy that has no public address: its links to Colab say so."""
    link = rf'<a class="reference external" href="[^"]*colab[^"]*/{PLACEHOLDER}/[^"]*">.*?</a>'
    return re.sub(link, '<span class="no-address">' + NO_ADDRESS + "</span>", body)


def _mend_links_to_nowhere(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if not has_address(app.config):
        context["body"] = without_address(context.get("body", ""))


def start_page(title: str, first: str, icon: str, language: str) -> str:
    """The site's `index.html`, which leads to its first page: a whole page, with an icon of its own, since browsers ask
    for `/favicon.ico` where none is named."""
    words = {"title": title, "first": first, "icon": icon, "language": language}
    return START_PAGE.format(**{name: html.escape(word) for name, word in words.items()})


def _write_start_page(app: Sphinx, error: Exception | None) -> None:
    """In place of the bare redirect that the table of contents' extension writes."""
    if error is None and app.builder.name == "html":
        config = app.config
        text = start_page(
            config.html_title, f"{config.root_doc}.html", Path(config.html_favicon).name, config.language or "en"
        )
        (Path(app.outdir) / "index.html").write_text(text, "utf8")


def _drop_icon_script(app: Sphinx, error: Exception | None) -> None:
    """Empty the 1.5 MB script that would redraw the icons which the theme's style sheet already draws."""
    script = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if script.exists():
        script.write_text("// The style sheet draws the icons.\n", "utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("execution_key", "", "env", types=[str])
    app.connect("config-inited", _use_keyed_cache)
    app.connect("config-inited", _drop_buttons_to_nowhere)
    app.connect("builder-inited", _write_assets)
    app.connect("env-check-consistency", _number_exercises)
    app.connect("html-page-context", _drop_foreign_scripts, priority=900)
    app.connect("html-page-context", _mend_roles)
    app.connect("html-page-context", _mend_links_to_nowhere)
    app.connect("html-page-context", _mend_search)
    app.connect("build-finished", _drop_icon_script)
    app.connect("build-finished", _write_search_texts)
    app.connect("build-finished", _write_start_page, priority=900)
    app.add_js_file("short-address.js", priority=100)  # before every script that reads the address
    app.add_js_file("dmm-widgets.js", loading_method="defer")
    app.add_js_file("scrollers.js", loading_method="defer")
    app.add_js_file("enlarge.js", loading_method="defer")
    app.add_js_file("fast-lane.js", loading_method="defer")
    app.add_css_file("dmm-widgets.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
