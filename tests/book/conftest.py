from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def _files(node: object) -> list[str]:
    if isinstance(node, list):
        return [file for entry in node for file in _files(entry)]
    if isinstance(node, dict):
        own = [str(node["file"])] if "file" in node else []
        return own + [file for entry in node.values() for file in _files(entry)]
    return []


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def toc() -> list[str]:
    """Every page of the table of contents, without its suffix."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    return [contents["root"], *_files(contents)]


@pytest.fixture(scope="session")
def html() -> Path:
    built = ROOT / "_build" / "html"
    if not (built / "index.html").exists():
        pytest.fail("the site is not built: run `make site` first")
    return built


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "notebook_path" in metafunc.fixturenames:
        paths = sorted((ROOT / "notebooks").rglob("*.ipynb"))
        metafunc.parametrize("notebook_path", paths, ids=[path.stem for path in paths])
