"""The classroom tools on the path, and each chapter's set built once per test process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import classroom

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "book" / "_tools"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def edition(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], classroom.Edition]:
    """`edition(name)` is the built set of one chapter."""
    import classroom

    folder = tmp_path_factory.mktemp("classroom")
    made: dict[str, classroom.Edition] = {}

    def build(name: str) -> classroom.Edition:
        if name not in made:
            made[name] = classroom.build(name, folder)
        return made[name]

    return build


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    import exercises

    if "chapter" in metafunc.fixturenames:
        metafunc.parametrize("chapter", exercises.names())
    if "exercise" in metafunc.fixturenames:
        cases = [
            pytest.param(name, exercise, id=f"{name[:2]}-{exercise.check}")
            for name in exercises.names()
            for exercise in exercises.source_exercises(exercises.read(exercises.source_path(name)))
        ]
        metafunc.parametrize(("name", "exercise"), cases)
