"""Rules for the book's sources: table of contents, notebooks, public address."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

from dmm.widgets import data_names, readout_texts, start_settings, values
from tests.global_state import put_back_after
from tests.live_figures import specifications

Notebook = dict[str, Any]


def _tool(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, root / "book" / "_tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook(notebook_path: Path) -> Notebook:
    loaded: Notebook = json.loads(notebook_path.read_text("utf8"))
    return loaded


def _code(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


def test_every_page_of_the_toc_exists_once(root: Path, toc: list[str]) -> None:
    missing = [page for page in toc if not any((root / f"{page}{suffix}").exists() for suffix in (".md", ".ipynb"))]
    assert not missing
    assert len(toc) == len(set(toc))


def test_every_page_and_notebook_is_in_the_toc(root: Path, toc: list[str]) -> None:
    sources = [*root.glob("book/*.md"), *root.glob("notebooks/*.ipynb")]
    assert {path.relative_to(root).with_suffix("").as_posix() for path in sources} == set(toc)


def test_every_file_agrees_on_the_address(root: Path) -> None:
    assert _tool(root, "address").disagreements() == []


def test_the_address_can_be_changed_everywhere_and_back(root: Path, tmp_path: Path) -> None:
    address = _tool(root, "address")
    for path in [root / "_config.yml", *address.dependants(root)]:
        target = tmp_path / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    old = "https://github.com/" + "/".join(address.configured(tmp_path))
    changed = address.rewrite("https://github.com/New-Owner/other.name.git", tmp_path)
    assert tmp_path / "_config.yml" in changed and tmp_path / "pyproject.toml" in changed
    assert address.configured(tmp_path) == ("New-Owner", "other.name")
    assert address.disagreements(tmp_path) == []
    address.rewrite(old, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_notebook_was_run_from_top_to_bottom(notebook: Notebook) -> None:
    counts = [cell["execution_count"] for cell in _code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run the notebook in one go and store its outputs"
    outputs = [output for cell in _code(notebook) for output in cell["outputs"]]
    assert outputs, "a notebook without outputs would pass whatever it prints"
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_notebook_carries_no_widget_state(notebook: Notebook) -> None:
    assert "widgets" not in notebook["metadata"], "execute with store_widget_state=False"


def test_notebook_begins_with_its_number_the_colab_link_and_the_setup_cell(
    root: Path, notebook: Notebook, notebook_path: Path
) -> None:
    setup = _tool(root, "setup_cell")
    title = "".join(notebook["cells"][0]["source"]).splitlines()[0]
    found = re.fullmatch(r"# (\d+)\s+\S.*", title)
    assert found and int(found.group(1)) == int(notebook_path.name[:2]), title
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert setup.COLAB_LINK.format(name=notebook_path.name) in prose
    assert "".join(_code(notebook)[0]["source"]).strip() == setup.SETUP_CELL


def test_every_picture_has_a_text(notebook: Notebook) -> None:
    silent = []
    for number, cell in enumerate(notebook["cells"]):
        pictures = [
            kind for output in cell.get("outputs", []) for kind in output.get("data", {}) if kind.startswith("image/")
        ]
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        if pictures and len(alt.split()) < 3:
            silent.append(number)
    assert not silent, f"cells {silent} draw a picture and say nothing in metadata mystnb.image.alt"


def test_executing_stores_what_the_cells_gave_and_no_more(root: Path, tmp_path: Path) -> None:
    execute = _tool(root, "execute")
    path = tmp_path / "01_try.ipynb"
    cells = [nbformat.v4.new_code_cell("print('α')\nimport sys; sys.stdout.flush()\nprint(1 + 1)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with put_back_after():  # the client answers Ctrl-C itself from now on
        execute.execute(path)
    (cell,) = json.loads(path.read_text())["cells"]
    assert cell["metadata"] == {} and cell["execution_count"] == 1
    assert [(output["name"], output["text"]) for output in cell["outputs"]] == [("stdout", ["α\n", "2\n"])]


def test_joined_keeps_streams_and_order(root: Path) -> None:
    execute = _tool(root, "execute")
    out, err = ({"output_type": "stream", "name": name} for name in ("stdout", "stderr"))
    picture = {"output_type": "display_data", "data": {}}
    made = execute.joined([out | {"text": "a"}, out | {"text": "b"}, err | {"text": "c"}, picture, out | {"text": "d"}])
    assert made == [out | {"text": "ab"}, err | {"text": "c"}, picture, out | {"text": "d"}]


def test_markdown_that_a_cell_gives_is_read_as_that_of_a_page(notebook: Notebook) -> None:
    """Else its tables are lines of strokes and its boxes colons."""
    plain = [
        number
        for number, cell in enumerate(notebook["cells"])
        if any("text/markdown" in output.get("data", {}) for output in cell.get("outputs", []))
        and cell["metadata"].get("mystnb", {}).get("markdown_format") != "myst"
    ]
    assert not plain, f"cells {plain} give Markdown without metadata mystnb.markdown_format: myst"


def test_stored_live_figures_are_those_of_the_package(notebook: Notebook) -> None:
    """The site that is checked is made of them, and a figure's form may have changed since they were stored."""
    outputs = [output for cell in _code(notebook) for output in cell["outputs"]]
    for output in outputs:
        for spec in specifications("".join(output.get("data", {}).get("text/html", ""))):
            known = values(spec, start_settings(spec))
            drawn = {name for panel in spec["panels"] for name in data_names(panel)}
            assert drawn <= set(known), f"{spec['name']}: execute this notebook again"
            assert readout_texts(spec, known).keys() == {readout["label"] for readout in spec["readouts"]}
