"""The page of the package's interface: docstrings as Sphinx reads them, fields of configs, and links from the chapters.

Docstrings are written for `help()`: names in single backticks, and a config's fields explained by the comment behind
each. Here both become what Sphinx's autodoc expects. Every chapter ends with links to what it uses of the package.
"""

from __future__ import annotations

import ast
import dataclasses
import html
import importlib
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PAGE = "book/api"
LITERAL = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SECTION = re.compile(r"\s*(Args|Returns|Raises|Yields|Attributes|Example|Note):\s*$")


def as_rst(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText: code as literals, no other marks, and air around what is indented."""
    text = "\n".join(lines)
    parts = LITERAL.split(text)  # text, code, text, code, ...
    parts[::2] = [re.sub(r"([*|\\])|(?<=\w)_(?!\w)", lambda found: "\\" + found[0], part) for part in parts[::2]]
    parts[2::2] = [re.sub(r"^(?=\w)", r"\\ ", part) for part in parts[2::2]]  # `Slider`s: rst wants an end of the word
    parts[1::2] = [f"``{' '.join(code.split())}``" for code in parts[1::2]]
    made: list[str] = []
    inside = False  # of a section, whose indentation means something
    for line in "".join(parts).split("\n"):
        depth, before = _depth(line), made[-1] if made else ""
        if SECTION.match(line):
            inside = True
        elif line.strip() and depth == 0:
            inside = False
        if line.strip() and before.strip() and not inside and depth != _depth(before):
            made.append("")
        made.append(line)
    return made


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def fields_of(config: type) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and comment of each field of a dataclass, inherited ones first.

    The comment stands behind a field, or behind the last line of a field of several lines; "" where there is none.
    """
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = inspect.cleandoc("\n" + inspect.getsource(owner))
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        own = {field.name for field in dataclasses.fields(owner)}
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in own:
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                comment = " ".join(comments[line] for line in lines if line in comments)
                default = ast.unparse(node.value) if node.value else ""
                yield node.target.id, ast.unparse(node.annotation), default, comment


def _mend_docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    written = list(lines)
    if inspect.isclass(found) and dataclasses.is_dataclass(found):
        if written and written[0].startswith(f"{found.__name__}("):
            written = []  # what Python makes up for a dataclass without a docstring
        fields = list(fields_of(found))
        if any(comment for *_, comment in fields):
            written += ["", "Fields:", ""]
            for field, kind, default, comment in fields:
                written.append(f"- `{field}: {kind}{' = ' + default if default else ''}` {comment}".rstrip())
    lines[:] = as_rst(written)


def _shorten_signature(
    app: Sphinx, what: str, name: str, found: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """A dataclass has its fields listed, with comments; its signature would say them once more."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(found) else None


def named(path: str) -> object | None:
    """What `dmm.a.b.c` is, or None: as much of it as can be imported is a module, the rest its attributes."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def used_by(notebook: Path) -> set[str]:
    """Full names of what a notebook's code imports from the package or reads as an attribute of it."""
    names: set[str] = set()
    for cell in json.loads(notebook.read_text("utf8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse("".join(cell["source"]))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dmm":
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and (path := ast.unparse(node)).startswith("dmm."):
                names.add(path)
    return names


def _link_from_chapters(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """At the end of a chapter: what it uses of the package, each a link to its docstring."""
    notebook = ROOT / f"{page}.ipynb"
    if not page.startswith("notebooks/") or not notebook.exists():
        return
    documented = app.env.domaindata["py"]["objects"]
    here = sorted((name for name, entry in documented.items() if entry.docname == PAGE), key=len, reverse=True)
    homes = {id(named(name)): (name, documented[name].node_id) for name in here}  # of two names the shorter one
    used = {homes[id(found)] for name in used_by(notebook) if (found := named(name)) is not None and id(found) in homes}
    to = app.builder.get_relative_uri(page, PAGE)  # type: ignore[union-attr]
    links = [
        f'<a href="{to}#{html.escape(anchor)}"><code>{html.escape(name)}</code></a>' for name, anchor in sorted(used)
    ]
    everything = f'<a href="{to}">all that the package offers</a>'
    sentence = f"Used here of the package: {', '.join(links)}; see {everything}." if links else f"See {everything}."
    context["body"] = context.get("body", "") + f'\n<p class="api-used">{sentence}</p>\n'


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", _mend_docstring, priority=100)  # before napoleon reads it
    app.connect("autodoc-process-signature", _shorten_signature)
    app.connect("html-page-context", _link_from_chapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
