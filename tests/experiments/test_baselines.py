"""The experiments of chapter 10: parity with the authors' numbers, what slips do, what an action costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmm.errors import InputError
from dmm.experiments import costs, flaws, grid, load_result, parity
from dmm.models.entry import Facts
from dmm.models.registry import MODELS, split_changes
from dmm.training import TrainConfig
from tests.experiments.conftest import TINY
from tests.experiments.test_results import assert_close_entries, weights_of

GOLDEN = Path(__file__).parents[1] / "golden"
NO_POLICY = {"ds4", "dmh", "in_context_hdt", "in_context_ad", "in_context_dpt"}
"""Golden files of a layer alone and of models that learn in context, which their own tests read."""


class TestParity:
    def test_every_golden_file_is_compared(self) -> None:
        assert {case.file for case in parity.CASES} | NO_POLICY == {file.stem for file in GOLDEN.glob("*.npz")}

    def test_the_committed_rows_are_of_these_files(self) -> None:
        rows = load_result("parity")["files"]
        assert [(row["file"], row["model"]) for row in rows] == [(case.file, case.model) for case in parity.CASES]
        assert all(row["source"] == MODELS[row["model"]].source for row in rows)

    @pytest.mark.parametrize("case", parity.CASES, ids=lambda case: case.file)
    def test_the_committed_row_is_what_the_file_gives(self, case: parity.Case) -> None:
        stored = {row["file"]: row for row in load_result("parity")["files"]}[case.file]
        found = parity.compare(case)
        for key in ("actions", "episode", "loss", "gradients"):
            assert (found[key] is None) == (stored[key] is None)
            assert found[key] is None or found[key] < 1e-5 > stored[key], key
        assert {**found, **dict.fromkeys(("actions", "episode", "loss", "gradients"))} == {
            **stored,
            **dict.fromkeys(("actions", "episode", "loss", "gradients")),
        }

    def test_without_the_files_it_says_where_they_are(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"golden: no file dt.npz in .*clone of the repository"):
            parity.compare(parity.CASES[2], tmp_path)

    def test_another_number_is_seen(self, tmp_path: Path) -> None:
        case = next(case for case in parity.CASES if case.file == "dc")
        with np.load(GOLDEN / "dc.npz") as file:
            arrays = dict(file)
        arrays["outputs/action_preds"] = arrays["outputs/action_preds"] + np.float32(0.25)
        arrays["loss"] = 2 * arrays["loss"]
        np.savez(tmp_path / "dc.npz", **arrays)
        found = parity.compare(case, tmp_path)
        assert found["actions"] == pytest.approx(0.25, abs=1e-5) and found["loss"] == pytest.approx(0.5, abs=1e-5)
        assert found["gradients"] < 1e-5


class TestFlaws:
    def test_writes_its_file(self, run_command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"SMALL": TINY, "STEPS": 2, "EPISODES": 2, "HELD_OUT": 4, "WINDOWS": 8}.items():
            monkeypatch.setattr(flaws, name, value)
        result = run_command(flaws)
        runs = {run["name"]: run for run in result["runs"]}
        assert list(runs) == list(flaws.ENTRIES) == list(result["settings"]["entries"])
        assert len(runs["leak, released"]["errors"]) == 8
        assert runs["bins"]["moved"]["largest"] >= runs["bins"]["moved"]["mean"] >= 0
        episode = runs["bins"]["episode"]
        assert len(episode["steps"]) == len(episode["positions"])
        assert episode["steps"][0]["lengths"] == [1] and episode["steps"][-1]["lengths"] == [8, 6, 4, 2]
        assert 0 <= runs["reward, released"]["raised"] <= 1
        assert result["settings"]["steps"] == 2 and result["settings"]["targets"] == [1.0]
        assert result["summary"] == grid.summarize_pooled(result["runs"])

    def test_entries_come_in_pairs_that_differ_in_the_slip_alone(self) -> None:
        jobs = {job.name: job for job in flaws.make_jobs(Path("runs"), seeds=1)}
        for flaw, field in (("leak", "groups"), ("reward", "last_reward")):
            released, corrected = jobs[f"{flaw}, released"], jobs[f"{flaw}, corrected"]
            assert released.model == corrected.model
            differing = {key for key in released.changes if released.changes[key] != corrected.changes[key]}
            assert differing == {field}
        assert len({job.folder for job in flaws.make_jobs(Path("runs"), seeds=2)}) == 2 * len(flaws.ENTRIES)

    def test_the_committed_file(self) -> None:
        stored = load_result("flaws")
        settings = stored["settings"]
        own = {"entries": flaws.ENTRIES, "small": flaws.SMALL, "steps": flaws.STEPS, "episodes": flaws.EPISODES}
        own |= {"targets": flaws.TARGETS, "held_out": flaws.HELD_OUT, "windows": flaws.WINDOWS}
        assert {key: settings[key] for key in own} == json.loads(json.dumps(own))
        jobs = flaws.make_jobs(Path(), settings["seeds"])
        assert [(run["name"], run["seed"]) for run in stored["runs"]] == [(job.name, job.seed) for job in jobs]
        for run, job in zip(stored["runs"], jobs, strict=True):
            assert run["weights"] == weights_of(job.model, _maze(job)), job.name
        assert_close_entries(stored["summary"], grid.summarize_pooled(stored["runs"]))
        assert [run["seed"] for run in stored["runs"] if "episode" in run] == [0]


class TestCosts:
    def test_measures_every_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "systems", lambda: ["bc", "dmm", "ds4"])
        found = {row["name"]: row for row in costs.measure(steps=2, rounds=2)}
        assert set(found["dmm"]["ratio"].values()) == {1.0} and all(row["us"] > 0 for row in found.values())
        assert found["bc"]["weights"] == sum(w.numel() for w in MODELS["bc"].policy(_hopper("bc")).parameters())

    def test_the_committed_file(self) -> None:
        stored = load_result("costs")
        assert [row["name"] for row in stored["models"]] == costs.systems()
        assert stored["settings"]["steps"] == costs.STEPS and stored["settings"]["rounds"] == costs.ROUNDS


def _maze(job: grid.Job) -> Any:
    """The config that training on the maze leads to, whose episodes last 150 steps at most."""
    facts = Facts(state_size=6, action_size=2, env_id="PointMaze_UMaze-v3", longest=150)
    return MODELS[job.model].config_for(facts, split_changes(job.changes, MODELS[job.model], TrainConfig)[0])


def _hopper(name: str) -> Any:
    with torch.device("meta"):
        return MODELS[name].make_config(11, 3, "Hopper-v5")
