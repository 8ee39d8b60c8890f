"""The exercises of a chapter as its page shows them, and as its classroom source holds them.

The classroom source `notebooks/exercises/NN_topic.ipynb` is a notebook in the format of Otter Assign: raw cells mark
questions, solutions and tests. A test compares its prompts and solutions with those of the page.

    python book/_tools/exercises.py draft 03_selective_scan    writes the source from the page, and runs it
    python book/_tools/exercises.py check                      prints what differs between pages and sources, exits 1
"""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from setup_cell import COLAB_LINK, SETUP_CELL

ROOT = Path(__file__).resolve().parents[2]
Notebook = dict[str, Any]

CONFIG = """\
# ASSIGNMENT CONFIG
init_cell: false
export_cell: false
tests:
  files: true
  ok_format: false
generate:
  show_all_public: true
python_version: "3.12"
requirements:
  - decision-metamamba[classroom] @ git+https://github.com/OWNER_NAME/decision-metamamba"""

INTRODUCTION = """\
# {number}  Exercises: {title}

These are the exercises of chapter {number}, to be handed in. To read it up:
[Open this chapter in Colab]({link})

Write your answer where a cell says `...`, run the cell, and then the one below it. It tells you that your answer is
right, or what is probably wrong with it. Check as often as you like. Before you hand the notebook in, run it once from
the top and save it."""

_BLOCK = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<kind>exercise|solution-start|solution-end)\}[ \t]*(?P<argument>.*?)[ \t]*\n"
    r"(?P<body>.*?)^(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_CHECK = re.compile(r"^(?:chapter_\d+\.)?(check_\w+)\((\w+)\)[ \t]*$\n?", re.MULTILINE)
_RUN_THE_CHECK = re.compile(r"\s*\bThen\s+run\s+`chapter_\d+\.check_\w+\(\w+\)`\.")
_MARKER = re.compile(r"^\s*# (BEGIN|END) SOLUTION( NO PROMPT)?$")


@dataclass(frozen=True)
class Exercise:
    """One exercise: the same whether read from a page or from a classroom source."""

    title: str
    prompt: str
    code: str  # the solution
    remarks: str  # what follows the solution in words
    check: str  # the function of dmm.checks.chapter_NN
    answer: str  # what is handed to it

    def differences(self, other: Exercise) -> list[str]:
        """Names of the fields in which two exercises differ; line breaks and the solution's markers do not count."""
        return [
            field.name
            for field in fields(self)
            if _flat(field.name, getattr(self, field.name)) != _flat(field.name, getattr(other, field.name))
        ]


def page_path(name: str) -> Path:
    return ROOT / "notebooks" / f"{name}.ipynb"


def source_path(name: str) -> Path:
    return ROOT / "notebooks" / "exercises" / f"{name}.ipynb"


def names() -> list[str]:
    """Every chapter that has a classroom source."""
    return sorted(path.stem for path in (ROOT / "notebooks" / "exercises").glob("*.ipynb"))


def read(path: Path) -> Notebook:
    notebook: Notebook = nbformat.read(path, as_version=4)
    return notebook


def page_exercises(notebook: Notebook) -> list[Exercise]:
    """The exercises of a chapter's page, in its order."""
    prompts: dict[str, tuple[str, str]] = {}
    solutions: dict[str, list[tuple[str, str]]] = {}
    solving = ""
    for kind, argument, text in _page_parts(notebook):
        if kind == "exercise":
            label = re.findall(r"^:label:\s*(\S+)", text, re.MULTILINE)[0]
            prompts[label] = (argument, clean(re.sub(r"^:\w+:.*\n", "", text, flags=re.MULTILINE)))
        elif kind == "solution-start":
            solving = argument
            solutions[solving] = []
        elif kind == "solution-end":
            solving = ""
        elif solving:
            solutions[solving].append((kind, text))
    return [_from_page(*prompts[label], solutions.get(label, [])) for label in prompts]


def source_exercises(notebook: Notebook) -> list[Exercise]:
    """The exercises of a classroom source, in its order."""
    found, inside, cells = [], "", {"question": [], "solution": [], "tests": []}
    for cell in notebook["cells"]:
        marker = re.match(r"# (BEGIN|END) (QUESTION|SOLUTION|TESTS)", cell["source"])
        if cell["cell_type"] != "raw" or not marker:
            if inside:
                cells[inside].append((cell["cell_type"], cell["source"]))
        elif marker.groups() == ("END", "QUESTION"):
            found.append(_from_source(cells))
            inside, cells = "", {"question": [], "solution": [], "tests": []}
        else:
            inside = marker.group(2).lower() if marker.group(1) == "BEGIN" else "question"
    return found


def clean(text: str) -> str:
    """A prompt as it reads outside the book: no link into it, no line that calls the check by hand."""
    text = _RUN_THE_CHECK.sub("", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text).strip()


def disagreements() -> list[str]:
    """One line for each difference between a page's exercises and its classroom source."""
    lines = []
    pages = [
        path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb") if "{exercise}" in path.read_text("utf8")
    ]
    for name in sorted({*names(), *pages}):
        if not source_path(name).exists() or not page_path(name).exists():
            lines.append(f"{name}: there is only one of page and notebooks/exercises/{name}.ipynb")
            continue
        page, source = page_exercises(read(page_path(name))), source_exercises(read(source_path(name)))
        if [exercise.title for exercise in page] != [exercise.title for exercise in source]:
            lines.append(f"{name}: page and source have other exercises, or another order")
            continue
        for one, other in zip(page, source, strict=True):
            lines += [f"{name}, {one.title}: the {field} differs" for field in one.differences(other)]
    return lines


def draft(name: str) -> list[str]:
    """Writes the classroom source of chapter `name` from its page, runs it, and returns names that it does not know.

    An existing source's set-up cells, between the first code cell and the first question, are kept.
    """
    page, path = read(page_path(name)), source_path(name)
    exercises = page_exercises(page)
    own = _own_setup(read(path)) if path.exists() else [_imports(page, exercises)]
    cells = [_markdown("introduction", _introduction(name, page)), _raw("config", CONFIG), _code("colab", SETUP_CELL)]
    cells[-1]["metadata"]["tags"] = ["hide-input"]
    cells += [_code(f"setup-{i}", text) for i, text in enumerate(own)]
    for place, exercise in enumerate(exercises, 1):
        cells += _question(name, place, exercise)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=page["metadata"])
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    for command in (["check", "--fix", "--select", "I"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", str(path)], check=True)
    unknown = _unknown([*own, *(exercise.code for exercise in exercises)])
    if not unknown:
        run(path)
    return unknown


def run(path: Path) -> None:
    """Executes a notebook in its folder and stores its outputs."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, resources=resources, store_widget_state=False).execute()
    for cell in notebook["cells"]:
        cell["metadata"].pop("execution", None)
    nbformat.write(notebook, path)


def _flat(field: str, text: str) -> list[str]:
    if field != "code":
        return text.split()
    return [line.rstrip() for line in text.splitlines() if line.strip() and not _MARKER.match(line)]


def _page_parts(notebook: Notebook) -> Iterator[tuple[str, str, str]]:
    """Yields `(kind, argument, text)` of each directive; `kind` is "markdown" or "code" for what lies between them."""
    for cell in notebook["cells"]:
        place = 0
        if cell["cell_type"] == "markdown":
            for found in _BLOCK.finditer(cell["source"]):
                yield "markdown", "", cell["source"][place : found.start()]
                yield found["kind"], found["argument"], found["body"]
                place = found.end()
        yield cell["cell_type"], "", cell["source"][place:]


def _from_page(title: str, prompt: str, solution: list[tuple[str, str]]) -> Exercise:
    code = "\n\n\n".join(text for kind, text in solution if kind == "code")
    check, answer = (_CHECK.findall(code) or [("", "")])[0]
    remarks = "\n\n".join(text.strip() for kind, text in solution if kind == "markdown" and text.strip())
    return Exercise(title, prompt, _CHECK.sub("", code).strip(), clean(remarks), check, answer)


def _from_source(cells: dict[str, list[tuple[str, str]]]) -> Exercise:
    heading, _, prompt = next(text for kind, text in cells["question"] if kind == "markdown").partition("\n")
    title = re.sub(r"^## Exercise [\d.]+\s+", "", heading)
    code = "\n\n\n".join(text for kind, text in cells["solution"] if kind == "code")
    remarks = "\n\n".join(text for kind, text in cells["solution"] if kind == "markdown")
    test = cells["tests"][0][1]
    answer, check = re.findall(r"def \w+\((\w+)\)", test)[0], re.findall(r"import (check_\w+)", test)[0]
    return Exercise(title.strip(), prompt.strip(), code, remarks, check, answer)


def _introduction(name: str, page: Notebook) -> str:
    title = re.sub(r"^# \d+\s+", "", page["cells"][0]["source"].splitlines()[0])
    link = re.findall(r"\((.*)\)", COLAB_LINK.format(name=f"{name}.ipynb"))[0]
    return INTRODUCTION.format(number=int(name[:2]), title=title, link=link)


def _question(name: str, place: int, exercise: Exercise) -> list[Notebook]:
    """The cells of one question, between its markers."""
    label = exercise.check.removeprefix("check_")
    module = f"dmm.checks.chapter_{name[:2]}"
    test = (
        f"def test_{label}({exercise.answer}):\n    from {module} import {exercise.check}\n\n"
        f"    {exercise.check}({exercise.answer})\n\n\ntest_{label}({exercise.answer})  # IGNORE"
    )
    prompt = f"## Exercise {int(name[:2])}.{place}  {exercise.title}\n\n{exercise.prompt}"
    remarks = [_markdown(f"{label}-remarks", exercise.remarks)] if exercise.remarks else []
    return [
        _raw(f"{label}-begin", f"# BEGIN QUESTION\nname: {label}\npoints: 1"),
        _markdown(f"{label}-prompt", prompt),
        _raw(f"{label}-solution-begin", "# BEGIN SOLUTION"),
        _code(f"{label}-solution", marked(exercise.code, exercise.answer)),
        *remarks,
        _raw(f"{label}-solution-end", "# END SOLUTION"),
        _raw(f"{label}-tests-begin", "# BEGIN TESTS"),
        _code(f"{label}-test", test),
        _raw(f"{label}-tests-end", "# END TESTS"),
        _raw(f"{label}-end", "# END QUESTION"),
    ]


def marked(code: str, answer: str) -> str:
    """`code` with Otter's markers: of `answer`, the student edition keeps the heads of functions and methods."""
    lines, marks, cut = code.splitlines(), {}, 0
    for node in ast.parse(code).body:
        if getattr(node, "name", None) == answer and isinstance(node, ast.FunctionDef | ast.ClassDef):
            cut = 0
            functions = [node] if isinstance(node, ast.FunctionDef) else node.body
            for function in functions:
                if isinstance(function, ast.FunctionDef):
                    marks |= _body_marks(function)
        else:
            cut = cut or _first_line(node)  # neighbours are cut as one
            marks[cut] = (0, "# BEGIN SOLUTION NO PROMPT", node.end_lineno)
    result, ends = [], {}
    for number, line in enumerate(lines, 1):
        if number in marks:
            indent, begin, end = marks[number]
            result.append(" " * indent + begin)
            ends[end] = " " * indent + "# END SOLUTION"
        result.append(line)
        if number in ends:
            result.append(ends[number])
    return "\n".join(result)


def _body_marks(function: ast.FunctionDef) -> dict[int, tuple[int, str, int | None]]:
    """First line of a function's body, its docstring left out, with the marks around it."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return {body[0].lineno: (body[0].col_offset, "# BEGIN SOLUTION", body[-1].end_lineno)} if body else {}


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def _own_setup(notebook: Notebook) -> list[str]:
    own = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "raw" and cell["source"].startswith("# BEGIN QUESTION"):
            break
        if cell["cell_type"] == "code" and cell["source"].strip() != SETUP_CELL:
            own.append(cell["source"])
    return own


def _imports(page: Notebook, exercises: list[Exercise]) -> str:
    """numpy, torch, and those of the page's other imports that its solutions use."""
    used = {"np", "torch"} | {
        node.id for exercise in exercises for node in ast.walk(ast.parse(exercise.code)) if isinstance(node, ast.Name)
    }
    code = "\n".join(cell["source"] for cell in page["cells"] if cell["cell_type"] == "code")
    lines = dict.fromkeys(("import numpy as np", "import torch"))
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name.split(".")[0]) in used:
                    kept = type(node)(**{**vars(node), "names": [alias]})
                    lines[ast.unparse(kept)] = None
    if re.search(r"^torch\.set_default_dtype\(\s*torch\.float64\s*\)", code, re.MULTILINE):
        lines["\ntorch.set_default_dtype(torch.float64)"] = None
    return "\n".join(lines)


def _unknown(parts: list[str]) -> list[str]:
    """Names that the parts use and nobody defines."""
    known, used = {*dir(builtins), "sys", "subprocess"}, set()
    for node in ast.walk(ast.parse("\n".join(parts))):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else known).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.alias):
            known.add((node.asname or node.name).split(".")[0])
    return sorted(used - known)


def _cell(kind: str, place: str, text: str) -> Notebook:
    cell: Notebook = getattr(nbformat.v4, f"new_{kind}_cell")(text, id=place.replace("_", "-")[:64])
    return cell


def _markdown(place: str, text: str) -> Notebook:
    return _cell("markdown", place, text)


def _raw(place: str, text: str) -> Notebook:
    return _cell("raw", place, text)


def _code(place: str, text: str) -> Notebook:
    return _cell("code", place, textwrap.dedent(text))


def main(arguments: list[str]) -> int:
    if arguments == ["check"]:
        lines = disagreements()
        print("\n".join(lines) or "every page and its classroom source agree")
        return 1 if lines else 0
    if len(arguments) != 2 or arguments[0] != "draft":
        print(__doc__)
        return 2
    unknown = draft(arguments[1])
    if unknown:
        print(f"{source_path(arguments[1])}: define {', '.join(unknown)} in the set-up cell, then draft again")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
