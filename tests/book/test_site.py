"""Rules for the built site, read from its files."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

# Attributes by which a page makes the browser fetch something without a click.
FETCHING = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "use": ("href", "xlink:href"),
    "image": ("href", "xlink:href"),
}
FETCHING_LINKS = {
    "stylesheet",
    "icon",
    "shortcut icon",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "manifest",
}
FOREIGN_CSS = re.compile(r"""@import\s+(?:url\()?["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//""")


class Page(HTMLParser):
    """What a page links to, fetches, names and shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.pictures: list[dict[str, str]] = []
        self.text = path.read_text("utf8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.fetched += [given[name] for name in FETCHING.get(tag, ()) if given.get(name)]
        if tag == "link" and given.get("rel", "").lower() in FETCHING_LINKS:
            self.fetched.append(given.get("href", ""))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append(given)


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in html.rglob("*.html") if "_static" not in path.relative_to(html).parts}


def _own(address: str) -> bool:
    return not urlsplit(address).scheme and not address.startswith("//")


def test_every_page_of_the_toc_was_built(html: Path, toc: list[str]) -> None:
    assert not [page for page in toc if not (html / f"{page}.html").exists()]


def test_no_broken_link_inside_the_site(html: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for address in {*page.links, *page.fetched}:
            if not _own(address):
                continue
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            named = parts.fragment == "" or target not in pages or unquote(parts.fragment) in pages[target].ids
            if not target.exists() or not named:
                broken.append(f"{path.relative_to(html)} -> {address}")
    assert not broken


def test_no_page_fetches_from_another_host(html: Path, pages: dict[Path, Page]) -> None:
    foreign = [
        f"{path.relative_to(html)}: {address[:100]}"
        for path, page in pages.items()
        for address in page.fetched
        if not _own(address) and not address.startswith("data:")
    ]
    assert not foreign


def test_no_style_fetches_from_another_host(html: Path, pages: dict[Path, Page]) -> None:
    styles = {path: path.read_text("utf8") for path in html.rglob("*.css")}
    styles |= {
        path: "\n".join(re.findall(r"<style.*?</style>|style=\"[^\"]*\"", p.text, re.S)) for path, p in pages.items()
    }
    assert not [path for path, text in styles.items() if FOREIGN_CSS.search(text)]


def test_no_script_of_a_cdn_is_named(pages: dict[Path, Page]) -> None:
    hosts = re.compile(r"unpkg\.com|jsdelivr\.net|cdnjs\.cloudflare\.com|fonts\.googleapis\.com")
    # What a reader clicks on is free to live elsewhere; only what the page itself may load counts.
    scripts = {path: "".join(re.findall(r"<script\b.*?</script>", page.text, re.S)) for path, page in pages.items()}
    assert not [path for path, text in scripts.items() if hosts.search(text)]


def test_every_picture_has_a_text(html: Path, pages: dict[Path, Page]) -> None:
    silent = [
        f"{path.relative_to(html)}: {picture.get('src', '')[:80]}"
        for path, page in pages.items()
        for picture in page.pictures
        if not picture.get("alt", "").strip() or picture["alt"].startswith(("../", "data:", "_images"))
    ]
    assert not silent


def test_every_chapter_leads_to_the_page_of_the_package(html: Path, pages: dict[Path, Page]) -> None:
    chapters = sorted((html / "notebooks").glob("*.html"))
    names = {path.name: [a for a in pages[path].links if a.startswith("../book/api.html#dmm.")] for path in chapters}
    assert chapters and not [name for name, links in names.items() if not links]
