"""What the site's extensions make of docstrings and pages."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import dmm

ROOT = Path(__file__).resolve().parents[2]


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


API, SITE = extension("dmm_api"), extension("dmm_site")


@dataclass
class Small:
    """A config."""

    width: int = 4  # channels
    rate: float = 0.5  # of learning
    name: str = "a"


@dataclass
class Larger(Small):
    """Another."""

    depth: int = 2  # layers


def test_fields_come_with_type_default_and_comment_inherited_ones_first() -> None:
    assert list(API.fields_of(Larger)) == [
        ("width", "int", "4", "channels"),
        ("rate", "float", "0.5", "of learning"),
        ("name", "str", "'a'", ""),
        ("depth", "int", "2", "layers"),
    ]


def test_a_docstring_becomes_rst() -> None:
    written = ["`x`s times *y* and `a\n    b`, name_ and my_name", "Args:", "    x: the |state|"]
    made = API.as_rst("\n".join(written).split("\n"))
    assert made == ["``x``\\ s times \\*y\\* and ``a b``, name\\_ and my_name", "Args:", "    x: the \\|state\\|"]


def test_what_is_indented_in_a_text_gets_air() -> None:
    assert API.as_rst(["Where:", "    h = a", "goes on"]) == ["Where:", "", "    h = a", "", "goes on"]


def test_names_used_by_a_chapter_are_found() -> None:
    used = API.used_by(ROOT / "notebooks" / "08_training.ipynb")
    assert {"dmm.train", "dmm.evaluation.rollout", "dmm.DMMConfig"} <= used
    assert API.named("dmm.evaluation.evaluate") is dmm.evaluate and API.named("dmm.nothing") is None


def test_every_public_name_is_on_the_page_of_the_package() -> None:
    text = (ROOT / "book" / "api.md").read_text("utf8")
    documented = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.MULTILINE))
    assert {f"dmm.{name}" for name in dmm.__all__} <= documented
    assert [name for name in documented if API.named(name) is None] == []


def test_a_copy_without_address_says_so_where_a_link_to_colab_would_lead_nowhere() -> None:
    nowhere = "https://colab.research.google.com/github/OWNER_NAME/decision-metamamba/blob/main/notebooks/a.ipynb"
    for address, stays in ((nowhere, False), (nowhere.replace("OWNER_NAME", "somebody"), True)):
        link = f'<p><a class="reference external" href="{address}">Open this chapter in Colab</a></p>'
        made = SITE.without_address(link)
        assert (made == link) == stays and ("public address" in made) != stays


def test_searched_text_is_the_article_s_words() -> None:
    head = '<h1>A &amp; B<a class="headerlink" href="#a">#</a></h1><style>p {}</style>'
    page = f'<article class="bd-article">{head}<p>one\n <a href="b">two</a>.</p></article><p>x</p>'
    assert SITE.searched_text(page) == '<div role="main">A &amp; B one two.</div>'


@pytest.mark.parametrize("owner", ["OWNER_NAME", "somebody"])
def test_the_set_up_cell_installs_on_colab_or_says_why_not(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    calls: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    spec = importlib.util.spec_from_file_location("setup_cell", ROOT / "book" / "_tools" / "setup_cell.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    cell = re.sub(r"github\.com/[\w.-]+/", f"github.com/{owner}/", tool.SETUP_CELL)
    if owner == "OWNER_NAME":
        with pytest.raises(SystemExit, match="no public address yet"):
            exec(cell, {})
        assert calls == []
    else:
        exec(cell, {})
        assert calls[0][-1] == "git+https://github.com/somebody/decision-metamamba"
