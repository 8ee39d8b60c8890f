"""The page on adding a model: its Python runs and prints what it shows, and its model keeps the contract."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dmm
from dmm.inspection.cards import card
from dmm.inspection.reach import reach
from dmm.models.registry import MODELS
from tests.book.running import blocks_of, run_blocks
from tests.conftest import tiny_trajectories

PAGE = Path(__file__).resolve().parents[2] / "book" / "adding_a_model.md"
BLOCKS = blocks_of(PAGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one to work in, whose files can be imported, and a registry that is as it was in the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = dict(MODELS)
    yield tmp_path
    MODELS.clear()
    MODELS.update(known)
    sys.modules.pop("ema", None)


def test_python_blocks_run_in_order_and_print_what_the_page_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maze = tiny_trajectories(state_size=6, env_id="PointMaze_UMaze-v3", lengths=(9, 12))
    maze = dataclasses.replace(maze, observation_keys=("observation", "desired_goal"))  # as in the recipe
    monkeypatch.setattr(dmm, "load_trajectories", lambda name: maze)  # making the real one takes minutes
    assert run_blocks(PAGE, folder) == 1


def test_its_model_keeps_what_all_models_keep(folder: Path) -> None:
    text = next(text for _, text in BLOCKS if text.startswith("# ema.py"))
    (folder / "ema.py").write_text(text, "utf8")
    model = importlib.import_module("ema").MODEL
    MODELS[model.name] = model
    assert card(model)["reach"]["actions"] == (-7, -1)
    data = tiny_trajectories()
    small = {"width": 8, "layers": 2, "context": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 1}
    options = {"steps": 3, "changes": small, "device": "cpu", "progress": False}
    runs = dmm.train_seeds(data, "ema", seeds=(0, 1), out=folder / "both", workers=1, **options)
    for seed, run in enumerate(runs):  # as one program: it is made of layers that can be stacked
        alone = dmm.train(data, "ema", seed=seed, out=folder / f"{seed}", **options)
        torch.testing.assert_close(run.policy.state_dict(), alone.policy.state_dict(), rtol=1e-4, atol=1e-6)
    assert reach(runs[0].policy).is_causal()


@pytest.mark.parametrize("name", re.findall(r"`(dmm\.[\w.]+)`", PAGE.read_text("utf8")))
def test_what_it_names_is_there(name: str) -> None:
    found: object = dmm
    for part in name.split(".")[1:]:
        found = getattr(found, part, None) or importlib.import_module(name.rpartition(".")[0])
    assert found


def test_files_it_names_are_there() -> None:
    for file in re.findall(r"`((?:dmm|tests)/[\w/]+\.py)`", PAGE.read_text("utf8")):
        assert (PAGE.parents[1] / file).is_file(), file
