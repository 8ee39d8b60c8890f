"""The three lists of pins against `pyproject.toml`, each other, and what the set-up makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LISTS = {"book": "requirements.txt", "classroom": ".ci/pins-classroom.txt", "test": ".ci/pins-test.txt"}
EXTRAS = {
    "book": ["book"],
    "classroom": ["classroom"],
    "test": ["test", "behaviours", "bench", "value-based", "cluster"],
}
FIXED = "torch mamba-ssm jupyter-book matplotlib ipywidgets minari gymnasium mujoco numpy nbval"
HEAVY = {"triton", "transformers", "playwright", "pandas", "mypy", "ruff", "otter-grader", "jax", "tensorflow"}


def own_pins(name: str) -> dict[str, Requirement]:
    return read_pins(LISTS[name])


def read_pins(path: str) -> dict[str, Requirement]:
    lines = [line.strip() for line in (ROOT / path).read_text("utf8").splitlines()]
    found = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    assert len({canonicalize_name(one.name) for one in found}) == len(found), "a package twice"
    return {canonicalize_name(one.name): one for one in found}


def wanted(name: str) -> list[Requirement]:
    """What the project's metadata ask for, by the sections of `pyproject.toml`."""
    text = (ROOT / "pyproject.toml").read_text("utf8")
    sections = ["dependencies", *EXTRAS["book"]] if name == "book" else EXTRAS[name]
    found = []
    for section in sections:
        block = re.search(rf"^{section} = \[\n?(.*?)\]$", text, re.MULTILINE | re.DOTALL)
        assert block, section
        code = [line for line in block[1].splitlines() if not line.strip().startswith("#")]
        found += [Requirement(one) for one in re.findall(r'"([^"]+)"', "\n".join(code))]
    return found


def test_every_pin_is_one_version_and_stands_in_one_list() -> None:
    pins = [own_pins(name) for name in LISTS]
    assert all(re.fullmatch(r"==[\w.]+", str(one.specifier)) for each in pins for one in each.values())
    names = [name for each in pins for name in each]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", LISTS)
def test_all_that_is_asked_for_is_pinned_where_it_is_needed(name: str) -> None:
    here = {key: pin for each in list(LISTS)[: list(LISTS).index(name) + 1] for key, pin in own_pins(each).items()}
    asked = wanted(name)
    assert asked
    for one in asked:
        if one.name not in ("setuptools", "wheel"):
            version = str(here[canonicalize_name(one.name)].specifier).removeprefix("==")
            assert one.specifier.contains(version), one


def test_python_3_10_has_a_pin_for_all_that_is_asked_for() -> None:
    here = read_pins(".ci/pins-python3.10.txt")
    for one in (each for name in LISTS for each in wanted(name)):
        version = str(here[canonicalize_name(one.name)].specifier).removeprefix("==")
        assert one.specifier.contains(version), one
    assert here["torch"].specifier == own_pins("book")["torch"].specifier
    assert not [name for name in here if name.startswith(("nvidia", "cuda"))]


def test_the_book_takes_none_of_the_heavy_packages_of_the_others() -> None:
    assert not HEAVY & own_pins("book").keys()


def test_each_list_brings_the_one_before_it() -> None:
    assert "\n-r ../requirements.txt\n" in (ROOT / LISTS["classroom"]).read_text("utf8")
    assert "\n-r pins-classroom.txt\n" in (ROOT / LISTS["test"]).read_text("utf8")


def test_the_book_names_the_packages_it_stands_on() -> None:
    text = (ROOT / "requirements.txt").read_text("utf8")
    for name in FIXED.split():
        assert re.search(rf"^{name}==|^# .*\b{name}\b", text, re.MULTILINE), name


def test_torch_is_pinned_by_its_public_version() -> None:
    assert re.fullmatch(r"==\d+\.\d+\.\d+", str(own_pins("book")["torch"].specifier))


def test_the_readme_names_the_pinned_torch() -> None:
    assert f"install_torch.py torch{own_pins('book')['torch'].specifier} " in (ROOT / "README.md").read_text("utf8")
