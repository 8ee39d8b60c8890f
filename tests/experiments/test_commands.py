"""The commands behind the committed result files, at a size that takes seconds."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmm.data import collect as collecting
from dmm.evaluation import evaluate
from dmm.experiments import (
    all_models,
    gating,
    grid,
    hopper,
    in_context,
    kept_run,
    page,
    pointmaze,
    switches,
    windows,
    worlds,
)
from dmm.experiments.grid import Job
from dmm.experiments.reproduce import context_returns
from dmm.models.registry import MODELS
from dmm.widgets import mujoco
from tests.experiments.conftest import do_here

RunCommand = Callable[..., dict[str, Any]]


def folders_are_distinct(jobs: list[Job]) -> bool:
    return len({job.folder for job in jobs}) == len(jobs)


class TestPointmaze:
    def test_writes_its_file(self, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = {"width": 8, "layers": 1, "batch_size": 4}
        entries = {
            "dmm": pointmaze.Entry("dmm", tiny),
            "mamba, long": pointmaze.Entry("mamba", tiny, steps_factor=2, variant=True),
        }
        monkeypatch.setattr(pointmaze, "ENTRIES", entries)
        result = run_command(pointmaze, seeds=2)
        assert [(r["name"], r["seed"]) for r in result["runs"]] == [("dmm", 0), ("dmm", 1), ("mamba, long", 0)]
        assert result["settings"]["entries"] == json.loads(json.dumps(pointmaze.describe_entries()))
        assert result["summary"] == grid.summarize(result["runs"])
        assert 0 <= result["random"]["mean"] <= 100 and 0 <= result["behaviour"]["mean"] <= 100
        assert json.loads(Path("runs/pointmaze/mamba-long-seed0/run.json").read_text())["training"]["steps"] == 4


class TestHopper:
    def test_writes_its_file(self, small_sets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(hopper, "DATASET", "dmm/pointmaze/umaze-v0")
        monkeypatch.setattr(hopper, "run_jobs", lambda work, jobs, workers: [do_here(work, job) for job in jobs])
        for name, value in {"STEPS": 2, "KEEP": 1, "EPISODES": 2}.items():
            monkeypatch.setattr(hopper, name, value)
        monkeypatch.setattr(sys, "argv", ["hopper", "--out", "hopper.json", "--seeds", "1", "--transitions", "100"])
        hopper.main()
        (run,) = json.loads((tmp_path / "hopper.json").read_text())["runs"]
        assert [checkpoint["step"] for checkpoint in run["checkpoints"]] == [1, 2]


class TestWindows:
    def test_writes_its_file_and_keeps_the_first_seed(
        self, run_command: RunCommand, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(windows, "WINDOWS", (1, 12))
        result = run_command(windows, seeds=2)
        assert [(r["name"], r["seed"], r["window"]) for r in result["runs"]] == [
            ("w01", 0, 1),
            ("w12", 0, 12),
            ("w01", 1, 1),
            ("w12", 1, 12),
        ]
        assert [(s["name"], s["target"], s["seeds"]) for s in result["summary"]] == [
            ("w01", 1.0, 2),
            ("w01", 0.0, 2),
            ("w12", 1.0, 2),
            ("w12", 0.0, 2),
        ]
        assert result["settings"]["windows"] == [1, 12] and result["settings"]["seeds"] == 2
        assert sorted(folder.name for folder in (models / "windows").iterdir()) == ["w01", "w12"]
        run = kept_run("windows/w12")
        assert run.info["training"]["seed"] == 0 and run.policy.config.window == 12

    def test_the_policy_that_is_kept_is_the_one_that_is_scored(
        self, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scored, score = [], grid.score_job

        def remember(job: Job, run: Any) -> dict[str, Any]:
            scored.append(run.policy)
            return score(job, run)

        monkeypatch.setattr(windows, "WINDOWS", (3,))
        monkeypatch.setattr(windows, "score_job", remember)
        (row,) = run_command(windows)["runs"]
        kept, (job,) = kept_run("windows/w03"), windows.make_jobs(Path("runs/windows"), seeds=1)
        for name, value in scored[0].state_dict().items():
            assert torch.equal(value, kept.policy.state_dict()[name]), name
        result = evaluate(kept, episodes=job.episodes, targets=job.targets, progress=False)
        assert [s.normalized_score for s in result.scores] == [s["normalized_score"] for s in row["scores"]]

    def test_jobs_change_the_window_alone(self) -> None:
        jobs = windows.make_jobs(Path("runs"), seeds=2)
        assert len(jobs) == 24 and folders_are_distinct(jobs)
        assert [job.changes["window"] for job in jobs] == [*range(1, 13)] * 2
        assert [job.seed for job in jobs] == [0] * 12 + [1] * 12
        assert len({(job.dataset, job.model, job.steps, job.changes["learning_rate"]) for job in jobs}) == 1


class TestWorlds:
    def test_writes_its_file_and_keeps_its_policies(
        self, run_command: RunCommand, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny = {"width": 8, "layers": 1, "batch_size": 4, "learning_rate": 1e-3}
        entries = {
            "maze": (worlds.TMAZE, 2, (1.0,), {"context": 21}),
            "room": ("dmm/darkroom/histories-v0", 2, (1.0,), {"context": 3}),
        }
        for name, value in {"CHANGES": tiny, "ENTRIES": entries, "EPISODES": 2}.items():
            monkeypatch.setattr(worlds, name, value)
        monkeypatch.setattr(worlds, "run_jobs", lambda work, jobs, workers: [do_here(work, job) for job in jobs])
        result = run_command(worlds)
        assert [(row["name"], row["context"]) for row in result["runs"]] == [("maze", 21), ("room", 3)]
        assert result["settings"] == worlds.describe_settings(1)
        kept = kept_run("worlds/maze")
        assert kept.policy.discrete_actions and kept.info["dataset"]["best_share"] == 0.5


class TestPage:
    def test_writes_its_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where there is no MuJoCo for a page, in a world without it."""
        name = "worlds/tmaze-k8"
        cases = [page.Case(name, way, asked) for way in ("window", "recurrent") for asked in (1.0, 0.0)]
        others = [
            page.Case(name, "recurrent", 1.0, then=0.0, times=2),
            page.Case(name, "recurrent", 1.0, padding=False),
        ]
        parts = {"scores": cases, "others": [*others, page.Case(name, "window", 1.0, cut="all gates")]}
        monkeypatch.setattr(page, "PARTS", parts)
        monkeypatch.setattr(page, "OWN_STARTS", cases[:1])
        monkeypatch.setattr(mujoco, "mujoco_file", lambda: {"version": "0", "glue": "", "wasm": ""})
        monkeypatch.setattr(page, "TIMED_STEPS", 24)
        monkeypatch.setattr(sys, "argv", ["page", "--out", str(tmp_path / "page.json"), "--episodes", "3"])
        page.main()
        made = json.loads((tmp_path / "page.json").read_text())
        for part, played in (parts | {"starts": cases[:1]}).items():
            assert [page.Case(**{key: row[key] for key in vars(played[0])}) for row in made[part]] == played
            summaries = [row[where] for row in made[part] for where in ("python", "page") if where in row]
            assert all(0 <= each["mean"] <= 1 and each["steps"] == 21 for each in summaries)
        assert all(row["difference"] == {"mean": 0, "ci95": [0, 0]} for part in parts for row in made[part])
        assert set(made["milliseconds"]) == {"window", "recurrent", "staggered"}
        assert all(time > 0 for time in made["milliseconds"].values())


class TestSwitches:
    def test_writes_its_file(self, run_command: RunCommand, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        entries = {"default": {}, "share_dsm, not trained": {"share_dsm": True, "train_dsm": False}}
        monkeypatch.setattr(switches, "ENTRIES", entries)
        result = run_command(switches)
        assert [r["name"] for r in result["runs"]] == list(entries) == list(result["settings"]["entries"])
        assert result["runs"][1]["weights"] < result["runs"][0]["weights"]
        assert result["summary"] == grid.summarize_pooled(result["runs"])
        assert not models.exists()

    def test_each_entry_is_a_change_of_the_default(self) -> None:
        jobs = switches.make_jobs(Path("runs"), seeds=2)
        assert len(jobs) == 2 * len(switches.ENTRIES) and folders_are_distinct(jobs)
        make = MODELS["dmm"].make_config
        default = make(6, 2, "", rtg_scale=1.0)  # what training chooses for the maze
        for name, changes in switches.ENTRIES.items():
            config = make(6, 2, "", **{"rtg_scale": 1.0, **changes})
            assert (config == default) == (name == "default"), name
        assert switches.ENTRIES["default"] == {}


class TestModels:
    def test_writes_its_file(self, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(all_models, "shown_models", lambda: ["mamba", "dt"])
        result = run_command(all_models)
        assert [(row["name"], row["seed"]) for row in result["runs"]] == [("mamba", 0), ("dt", 0), ("rvs-r, raw", 0)]
        assert result["summary"] == grid.summarize_pooled(result["runs"])
        assert {"random", "behaviour", "dataset"} <= result.keys()

    def test_every_model_that_lists_show_is_a_job(self) -> None:
        jobs = all_models.make_jobs(Path("runs"), seeds=2)
        models = [job.model for job in jobs[::2]]
        assert models == [*all_models.shown_models(), *(model for model, _ in all_models.VARIANTS.values())]
        assert {name for name, model in MODELS.items() if not (model.hidden or model.in_context)} == set(models)
        assert folders_are_distinct(jobs)


class TestInContext:
    def test_writes_its_file(self, datasets_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = {"width": 8, "layers": 1, "batch_size": 2}
        entries = {"ad-mamba": in_context.Entry("ad-mamba", 2), "dt": in_context.Entry("dt", 2)}
        apart = {"dt, once": in_context.Entry("dt", 2, {"dropout": 0.1}, most_seeds=1)}
        for name, value in {"ENTRIES": entries, "APART": apart, "SHARED": tiny, "TASKS": 3, "EPISODES": 2}.items():
            monkeypatch.setattr(in_context, name, value)
        collect = collecting.collect
        monkeypatch.setattr(collecting, "collect", lambda name: collect(name, transitions=2_000, progress=False))
        monkeypatch.setattr(in_context, "run_jobs", lambda work, jobs, workers: [do_here(work, job) for job in jobs])
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["in_context", "--out", "in_context.json", "--seeds", "2"])
        in_context.main()
        result = json.loads(Path("in_context.json").read_text())
        assert [(row["name"], row["seed"]) for row in result["runs"]] == [
            ("ad-mamba", 0),
            ("dt", 0),
            ("dt, once", 0),
            ("ad-mamba", 1),
            ("dt", 1),
        ]
        returns = context_returns(result["runs"][0])
        assert returns.shape == (3, 2)
        assert result["summary"][0]["last"]["mean"] == pytest.approx(returns[:, -1].mean())
        assert result["settings"] == json.loads(json.dumps(in_context.describe_settings(2)))

    def test_every_model_that_learns_in_context_has_an_entry_and_there_is_a_control(self) -> None:
        entries = in_context.ENTRIES.items()
        plain = {name for name, entry in entries if entry.changes.keys() <= {"embed_dropout"} and name == entry.model}
        assert {name for name, model in MODELS.items() if model.in_context} | {"dt"} == plain
        assert {name for name, _ in entries} == plain | {"dmh-learning"}
        jobs = in_context.make_jobs(Path("runs"), seeds=2)
        assert folders_are_distinct(jobs) and {job.episodes_in_context for job in jobs} == {20}

    def test_settings_are_put_back_one_at_a_time(self) -> None:
        whole = in_context.ENTRIES["dmh-learning"]
        apart = dict(in_context.APART)
        assert apart.pop("dmh-learning, all as dmh") == dataclasses.replace(whole, changes={}, most_seeds=1)
        for name, entry in apart.items():
            (back,) = whole.changes.keys() - entry.changes.keys()
            assert back in name and entry == dataclasses.replace(whole, changes=entry.changes, most_seeds=1)
            assert entry.changes.items() <= whole.changes.items()
        assert len(apart) == len(in_context.AS_LEARNED)


class TestGating:
    def test_writes_its_file_and_keeps_the_first_seed(
        self, run_command: RunCommand, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gating, "ENTRIES", ("mamba", "dt"))
        result = run_command(gating, seeds=2)
        names = [f"{task}/{model}" for task in ("pointmaze", "hopper") for model in ("mamba", "dt")]
        assert [(r["name"], r["seed"]) for r in result["runs"]] == [(n, seed) for seed in (0, 1) for n in names]
        assert [(r["task"], r["model"]) for r in result["runs"][:4]] == [tuple(name.split("/")) for name in names]
        assert list(dict.fromkeys(s["name"] for s in result["scores"])) == names
        assert result["ratios"] == gating.summarize_ratios(result["runs"])
        assert result["settings"]["tasks"]["hopper"] == {**vars(gating.TASKS["hopper"]), "targets": [3600.0]}
        kept = sorted(folder.name for folder in (models / "gating").iterdir())
        assert kept == sorted(f"{name.replace('/', '-')}-seed0" for name in names)

        for row in result["runs"]:
            for lists in (row["norms"], row["gradients"], row["gates"]):
                assert all(len(tokens) == 24 for tokens in lists.values())
            assert list(row["gradients"]) == ["action", "loss"]
            assert list(row["gates"]) == ([] if row["model"] == "dt" else ["layer 1", "layer 2", "layer 3"])
            gates = [f"layer {i}, {at}" for i in (1, 2, 3) for at in ("scan", "gate") if row["model"] == "mamba"]
            assert list(row["probes"]) == ["end", *gates]
            if row["seed"] == 0:
                again = gating.measure(kept_run(f"gating/{row['task']}-{row['model']}-seed0").policy, row["task"])
                assert {key: again[key] for key in ("norms", "gradients", "gates")} == {
                    key: row[key] for key in ("norms", "gradients", "gates")
                }

    def test_second_call_trains_nothing(self, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gating, "ENTRIES", ("dmm",))
        monkeypatch.setattr(gating, "TASKS", {"pointmaze": gating.TASKS["pointmaze"]})
        first = run_command(gating)
        monkeypatch.setattr(gating, "train_job", lambda job: pytest.fail("trained again"))
        assert run_command(gating) == first

    def test_measured_windows_are_the_same_every_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = dataclasses.replace(gating.TASKS["pointmaze"], preview_episodes=3)
        monkeypatch.setitem(gating.TASKS, "pointmaze", few)
        first, again = (gating.measured_windows("pointmaze", context=3) for _ in range(2))
        assert first.mask.shape == (128, 3) and bool(first.mask.all())
        assert bool((first.states == again.states).all())

    def test_ratios_by_hand(self) -> None:
        # three time steps; the last is left out, so rtg is (1 + 3) / 2 = 2, state 4 and action 8
        tokens = [1.0, 3.0, 10.0, 3.0, 5.0, 6.0, 100.0, 100.0, 0.0]
        other = [t * 2 if i % 3 == 0 else t for i, t in enumerate(tokens)]
        rows = [
            {"task": "hopper", "model": "dt", "norms": {"layer 1, MLP": t}, "gradients": {"loss": tokens}}
            for t in (tokens, other)
        ]
        found = {(r["kind"], r["stage"], r["modality"]): r for r in gating.summarize_ratios(rows)}
        assert list(found) == [
            ("norms", "layer 1, MLP", "rtg"),
            ("norms", "layer 1, MLP", "state"),
            ("gradients", "loss", "rtg"),
            ("gradients", "loss", "state"),
        ]
        norms = found["norms", "layer 1, MLP", "rtg"]
        logarithms = grid.mean_interval(np.log([0.25, 0.5]))
        assert norms["mean"] == pytest.approx((0.25 * 0.5) ** 0.5) and norms["seeds"] == 2
        assert norms["ci95"] == pytest.approx(np.exp(logarithms["ci95"]))
        assert found["gradients", "loss", "state"]["mean"] == pytest.approx(0.5)
        assert (norms["task"], norms["model"]) == ("hopper", "dt")

    def test_jobs_differ_by_task_and_model_alone(self) -> None:
        jobs = gating.make_jobs(Path("runs"), seeds=2)
        assert len(jobs) == 12 and folders_are_distinct(jobs)
        assert {job.changes["layers"] for job in jobs} == {3}
        assert jobs[0].folder == Path("runs/pointmaze-dmm-seed0") and [job.seed for job in jobs] == [0] * 6 + [1] * 6
