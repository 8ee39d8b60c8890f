"""A test that leaves something changed fails, and the next one does not notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.global_state import SHARED

ROOT = Path(__file__).parents[1]
LEAKS = {
    "torch's default dtype": "torch.set_default_dtype(torch.float64)",
    "torch's default device": "torch.set_default_device('meta')",
    "torch's threads": "torch.set_num_threads(2)",
    "torch's grad mode": "torch.set_grad_enabled(False)",
    "torch's deterministic algorithms": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "torch's precision of products": "torch.set_float32_matmul_precision('medium')",
    "numpy's handling of errors": "np.seterr(divide='raise')",
    "environment variables": "os.environ['LEAK'] = '1'; os.environ.pop('PRESENT'); os.environ['CHANGED'] = 'new'",
    "working directory": "os.chdir('/')",
    "umask": "os.umask(0o123)",
    "signal handlers": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "import path": "sys.path.append('/nowhere')",
    "registered environments": "gym.register('Leak-v0', entry_point='os:abort')",
}
HEAD = """
import os, random, signal, sys, warnings
import gymnasium as gym, numpy as np, pytest, torch
from tests.global_state import shared_state

def drawn():
    return random.random(), np.random.rand(), torch.rand(1).item(), gym.spaces.Discrete(2**40).sample()

START, FIRST = shared_state(), []

@pytest.fixture(scope="module")
def wide():
    return drawn()

def test_clean_first(wide):
    FIRST.append((drawn(), wide))

def test_random_state_is_the_same_for_each(monkeypatch):
    monkeypatch.setenv("PASSING", "1")
    assert FIRST[0][0] == drawn() and FIRST[0][0][:3] == FIRST[0][1][:3]
    random.seed(5), np.random.seed(6), torch.manual_seed(7)

def test_warning_filters_are_pytests_own():
    warnings.simplefilter("error")

def test_clean_after_seeds():
    assert FIRST[0][0] == drawn()
    warnings.warn("no error")
"""
LEAK = """
def test_leak_{i}():
    {code}

def test_clean_{i}():
    assert shared_state() == START
"""
WIDE = """
@pytest.fixture(scope="module")
def left_open():
    os.environ["WIDE"] = "1"

def test_clean_with_a_wide_fixture(left_open):
    pass
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each test of a file full of leaks ends with: nothing, or the message of its failure."""
    folder = tmp_path_factory.mktemp("leaking")
    codes = [LEAK.format(i=i, code=code) for i, code in enumerate(LEAKS.values())]
    (folder / "test_leaking.py").write_text("".join([HEAD, *codes]), "utf8")
    (folder / "test_wide.py").write_text(HEAD + WIDE, "utf8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PRESENT": "1", "CHANGED": "old"}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "--junitxml=out.xml"]
    subprocess.run(
        [*command, "--rootdir=."], cwd=folder, env=environment, capture_output=True, timeout=300, check=False
    )
    cases = ElementTree.parse(folder / "out.xml").iter("testcase")
    said: dict[str, str] = {}
    for case in cases:
        key = f"{case.get('classname')}.{case.get('name')}"
        said[key] = said.get(key, "") + "".join(f"{problem.get('message')} {problem.text}" for problem in case)
    return said


def test_every_kind_is_tried() -> None:
    assert LEAKS.keys() == SHARED.keys()


@pytest.mark.parametrize("kind", LEAKS)
def test_a_test_that_leaks_fails_and_says_what(outcomes: dict[str, str], kind: str) -> None:
    i = list(LEAKS).index(kind)
    said = outcomes[f"test_leaking.test_leak_{i}"]
    assert "leaves behind" in said and f"{kind}: " in said
    assert outcomes[f"test_leaking.test_clean_{i}"] == ""


def test_what_differs_is_named(outcomes: dict[str, str]) -> None:
    said = outcomes[f"test_leaking.test_leak_{list(LEAKS).index('environment variables')}"]
    assert all(name in said for name in ("LEAK", "PRESENT", "CHANGED")) and "PASSING" not in said


def test_other_tests_pass(outcomes: dict[str, str]) -> None:
    clean = [name for name in outcomes if "leak_" not in name and "wide_fixture" not in name]
    assert len(clean) == 8 + len(LEAKS) and not [outcomes[name] for name in clean if outcomes[name]]


def test_a_fixture_of_a_whole_file_may_not_leak_either(outcomes: dict[str, str]) -> None:
    assert "environment variables: WIDE" in outcomes["test_wide.test_clean_with_a_wide_fixture"]
