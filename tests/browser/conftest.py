"""The built site in a real browser; pages and live figures are found in the table of contents and the built files."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.live_figures import specifications

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def built_pages() -> list[str]:
    """The site's pages, as the table of contents names them."""
    files = re.findall(r"^\s*(?:-\s*)?(?:file|root):\s*(\S+)", (ROOT / "_toc.yml").read_text("utf8"), re.MULTILINE)
    return [f"{name}.html" for name in files]


def built_figures() -> list[tuple[str, int, dict[str, Any]]]:
    """Page, position on it and specification of every live figure."""
    found: list[tuple[str, int, dict[str, Any]]] = []
    for page in built_pages():
        text = (HTML / page).read_text("utf8") if (HTML / page).exists() else ""
        found += [(page, index, spec) for index, spec in enumerate(specifications(text))]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page_path" in metafunc.fixturenames:
        metafunc.parametrize("page_path", built_pages(), scope="module")  # all tests of a page in turn
    if "figure" in metafunc.fixturenames:
        figures = built_figures()
        ids = [f"{page}-{index}" for page, index, _ in figures]
        metafunc.parametrize("figure", figures, ids=ids, scope="module")  # all tests of a figure in turn


def _chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("DMM_CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if not found:
        pytest.fail("no Chromium found: install Debian's chromium, or name a browser in DMM_CHROMIUM")
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not (HTML / "index.html").exists():
        pytest.fail("the site is not built: run `make site` first")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=_chromium(), args=FLAGS)
        yield started
        started.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


class _WithoutMath(_Quiet):
    """Formulas stay as they are written: to set them is most of the work of opening a page."""

    def do_GET(self) -> None:
        if "/mathjax/" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """Address of a local server over the built pages."""
    yield from _served(_Quiet)


@pytest.fixture(scope="session")
def site_without_math() -> Iterator[str]:
    """The same for tests that look at figures alone."""
    yield from _served(_WithoutMath)


def _served(handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
