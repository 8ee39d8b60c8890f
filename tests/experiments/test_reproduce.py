from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmm.data.scores import normalize
from dmm.errors import InputError, RunError
from dmm.evaluation import evaluate
from dmm.experiments import reproduce as module
from dmm.experiments.grid import Job
from dmm.experiments.queue import outcome
from dmm.experiments.reproduce import (
    SCALES,
    Scale,
    cells_for,
    context_returns,
    describe_cell,
    episode_scores,
    hears_returns,
    make_jobs,
    norm_ratios,
    reproduce,
    score_checkpoints,
    smoke_cells,
    train_and_score,
)
from dmm.experiments.tables import find_cells, make_tables
from dmm.experiments.tables_in_context import MAZES, cells_in_context, make_tables_in_context
from dmm.models.registry import MODELS
from dmm.training import load_run
from tests.experiments.conftest import do_here


def jobs_of(*names: str, scale: str = "small", seeds: int | None = None) -> list[Job]:
    return make_jobs(find_cells(names), scale, Path("runs"), Path("rows"), seeds)


class TestJobs:
    def test_each_policy_once_and_seed_0_of_all_first(self) -> None:
        jobs = jobs_of("table3", "table9", "figure7", seeds=2)
        assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
        assert len({(job.name, job.seed) for job in jobs}) == len(jobs) == 2 * (20 + 4)
        assert len({job.folder for job in jobs}) == len({job.row for job in jobs}) == len(jobs)

    def test_tables_share_policies_that_are_the_same_under_other_names(self) -> None:
        assert jobs_of("table8/antmaze-umaze/hippo") == jobs_of("table2/antmaze-umaze/dmm")
        assert jobs_of("table7/hopper-medium/width 64") == jobs_of("table1/hopper-medium/dmm")
        (published,) = jobs_of("table7/hopper-medium/width 64", scale="full", seeds=1)
        assert published.changes["width"] == 64  # the authors' sizes need not be these

    def test_scales(self) -> None:
        (small,) = jobs_of("table1/hopper-medium/dt", seeds=1)
        assert (small.steps, small.episodes, small.checkpoints) == (5_000, 50, 10)
        assert small.targets == (3600.0, 7200.0) and small.changes == {"learning_rate": 1e-3}
        (full,) = jobs_of("table1/hopper-medium/dt", scale="full", seeds=1)
        assert (full.steps, full.episodes, len(full.targets)) == (100_000, 100, 4)
        assert full.changes == {"sizes": "published"}
        assert len(jobs_of("table1/hopper-medium/dt", scale="full")) == SCALES["full"].seeds == 5

    def test_who_hears_no_return_is_asked_for_one(self) -> None:
        assert [len(job.targets) for job in jobs_of("hopper/hopper-medium/bc", "hopper/hopper-medium/wt", seeds=1)] == [
            1,
            2,
        ]
        assert [name for name, m in MODELS.items() if not (m.hidden or m.in_context or hears_returns(name))] == [
            "starformer",
            "rvs-g",
            "bc",
            "bc-10",
            "td3bc",
            "cql",
            "iql",
        ]

    def test_smoke_has_every_kind_of_policy_and_all_data(self) -> None:
        cells, tables = smoke_cells(), [*make_tables().values(), *make_tables_in_context().values()]
        long = {data for data, steps in MAZES.items() if steps > 1_000}
        assert {cell.dataset for cell in cells} == {data for table in tables for data in table.datasets} - long
        assert {cell.entry.model for cell in cells} == {name for name, model in MODELS.items() if not model.hidden}
        fields = {field for cell in cells for field in cell.entry.changes}
        hierarchy = {"goals", "goal_weight", "interval", "groups"}
        assert fields == {"local_mixer", "global_mixer", "a_init", "context", "window", "width"} | hierarchy
        assert cells_for(["table9"], "smoke") == find_cells(["table9"]) and cells_for([], "smoke") == cells
        assert cells_for([], "small") == find_cells() + cells_in_context()

    @pytest.mark.parametrize("scale", ["", "large", "Small"])
    def test_no_such_scale(self, scale: str) -> None:
        with pytest.raises(InputError, match=r"^scale: got .*, allowed are smoke, small, full$"):
            jobs_of("table3", scale=scale)

    def test_bad_numbers_and_names(self) -> None:
        with pytest.raises(InputError, match=r"^seeds: got 0, allowed is a whole number of at least 1$"):
            jobs_of("table3", seeds=0)
        with pytest.raises(InputError, match=r"^runner: got 'slurm', allowed are local, ray$"):
            reproduce(["table3"], "smoke", runner="slurm")


@pytest.fixture
def job(maze_job: Any) -> Job:
    made: Job = dataclasses.replace(maze_job(log_every=1, checkpoint_every=1), checkpoints=2)
    return made


class TestWork:
    def test_row(self, job: Job) -> None:
        row = train_and_score(job)
        assert [checkpoint["step"] for checkpoint in row["checkpoints"]] == [2, 4]
        last = evaluate(load_run(job.folder), episodes=2, targets=job.targets, progress=False)
        for kept, score in zip(row["checkpoints"][-1]["scores"], last.scores, strict=True):
            assert kept["target"] == score.target and kept["normalized_score"] == score.normalized_score
        scores = episode_scores(row)
        assert [[len(arm) for arm in checkpoint] for checkpoint in scores] == [[2, 2], [2, 2]]
        assert scores[1][0] == pytest.approx(normalize(last.scores[0].returns, (0.0, 1.0)))
        info = load_run(job.folder).info
        assert row["data"]["fingerprint"] == info["dataset"]["fingerprint"] and row["versions"]["torch"]
        assert row["weights"] == load_run(job.folder).policy.parameter_count()
        assert not list(job.folder.glob("weights-*"))  # they are scored

    def test_it_is_a_function_of_the_job(self, job: Job) -> None:
        rows = [train_and_score(dataclasses.replace(job, folder=job.folder.parent / f"{i}")) for i in range(2)]
        for row in rows:
            assert row.pop("seconds") > 0
        assert json.dumps(rows[0]) == json.dumps(rows[1])

    def test_checkpoints_scored_before_a_kill_are_not_played_again(
        self, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dmm import evaluation

        run, played, real = module.train_job(job), [], evaluation.evaluate

        def die_at_the_last(run: Any, **more: Any) -> Any:
            played.append(run.step)
            if played == [2, 4]:
                raise KeyboardInterrupt
            return real(run, **more)

        monkeypatch.setattr(evaluation, "evaluate", die_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            score_checkpoints(job, run)
        again = score_checkpoints(job, run)
        assert played == [2, 4, 4] and [row["step"] for row in again] == [2, 4]
        other = dataclasses.replace(job, episodes=1)  # what is asked now is another thing
        assert len(score_checkpoints(other, run)[0]["scores"][0]["returns"].split()) == 1

    def test_checkpoints_must_divide_the_run(self, job: Job) -> None:
        with pytest.raises(InputError, match=r"^checkpoints: got 3, allowed are divisors of the job's 4 updates$"):
            train_and_score(dataclasses.replace(job, checkpoints=3))

    def test_tokens_are_measured_where_nothing_is_changed(self, job: Job) -> None:
        assert "tokens" not in train_and_score(job)  # its width and layers are others
        plain = dataclasses.replace(job, changes={"batch_size": 4}, folder=job.folder.parent / "plain")
        tokens = train_and_score(plain)["tokens"]
        assert list(tokens["gradients"]) == ["action", "loss"]
        assert all(len(norms) == 24 for stages in tokens.values() for norms in stages.values())
        ratios = norm_ratios([tokens["gradients"], tokens["gradients"]])
        assert ratios["loss"] == pytest.approx(norm_ratios([tokens["gradients"]])["loss"])


def test_ratios_by_hand() -> None:
    steps = [1.0, 3.0, 10.0, 3.0, 5.0, 6.0, 100.0, 100.0, 0.0]  # without the last: rtg 2, state 4, action 8
    twice = [x * 2 if i % 3 == 0 else x for i, x in enumerate(steps)]
    found = norm_ratios([{"end": steps}, {"end": twice}])["end"]
    assert found == pytest.approx({"rtg": (0.25 * 0.5) ** 0.5, "state": 0.5})


class TestReproduction:
    def row(self, last: float, best: float) -> dict[str, Any]:
        """Two checkpoints, one target, two episodes."""
        returns = (f"{best - 1:g} {best + 1:g}", f"{last - 1:g} {last + 1:g}")
        checkpoints = [{"step": i, "scores": [{"target": 1.0, "returns": r}]} for i, r in enumerate(returns)]
        return {"data": {"reference": [0.0, 100.0]}, "checkpoints": checkpoints}

    def test_a_cell_has_its_seeds_in_two_protocols_beside_the_paper(self) -> None:
        (cell,) = find_cells(["table1/hopper-medium/dmm"])
        found = {("hopper-medium/dmm", 0): self.row(40.0, 50.0), ("hopper-medium/dmm", 2): self.row(60.0, 50.0)}
        made = describe_cell(cell, "small", 3, {**found, ("hopper-medium/dmm", 1): None})
        assert (made["seeds"], made["wanted"], made["paper"]) == (2, 3, 96.2)
        assert made["last"]["mean"] == pytest.approx(50.0) and made["best"]["mean"] == pytest.approx(55.0)
        assert made["last"]["ci95"] is not None
        none = describe_cell(cell, "small", 3, {})
        assert none["seeds"] == 0 and "last" not in none

    def test_text(self) -> None:
        cells = find_cells(["table1/hopper-medium"])[-2:]
        rows = {("hopper-medium/dmm", 0): self.row(40.0, 50.0)}
        made = module.Reproduction("small", [describe_cell(cell, "small", 3, rows) for cell in cells], 6, 1)
        lines = made.text().splitlines()
        assert "no result yet" in lines[1] and "86.2" in lines[1]
        assert "1/3" in lines[2] and "40.0 (one seed)" in lines[2] and lines[2].split()[-2:] == ["50.0", "96.2"]
        assert lines[-1] == "1 of 6 jobs are done at the scale small"

    def test_status_trains_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "work_off", lambda *_, **__: pytest.fail("worked"))
        places: Any = {"runs": tmp_path / "runs", "rows": tmp_path / "rows"}
        made = reproduce(["table9"], "small", work=False, **places)
        assert (made.jobs, made.done) == (3 * 8, 0) and not list(tmp_path.iterdir())
        assert json.loads(json.dumps(made.to_json()))["cells"][0]["name"] == "table9/pointmaze-umaze/dmm"

    def test_data_of_another_size_are_refused(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        from dmm.data import collect

        def refuse(*_: Any, **__: Any) -> Any:
            raise InputError("transitions: got 7, but there is a data set of 100")

        monkeypatch.setattr(collect, "collect", refuse)
        with pytest.raises(InputError, match="transitions: got 7"):
            train_and_score(dataclasses.replace(job, transitions=7))


def test_smoke_runs_every_kind_of_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, on data that it makes itself, in processes."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))  # to be put back
    places: Any = {"runs": tmp_path / "runs", "rows": tmp_path / "rows"}
    made = reproduce([], "smoke", workers=2, **places)
    jobs = make_jobs(smoke_cells(), "smoke", **places)
    assert made.failed == {} and made.done == made.jobs == made.finished == len(jobs)
    assert Path(os.environ["MINARI_DATASETS_PATH"]) == tmp_path / "runs" / "smoke" / "data"
    for job in jobs:
        row: Any = outcome(job)
        assert [checkpoint["step"] for checkpoint in row["checkpoints"]] == [2, 4]
        for checkpoint in row["checkpoints"]:
            assert [score["target"] for score in checkpoint["scores"]] == list(job.targets)
            assert all(np.isfinite(score["normalized_score"]) for score in checkpoint["scores"])
    again = reproduce([], "smoke", **places)
    assert again.finished == 0 and again.done == made.jobs
    assert all("seeds" in cell and cell["seeds"] == 1 for cell in again.cells)

    job = jobs[0]  # done again, in this process: the same bytes but for the seconds
    before: Any = outcome(job)
    other = dataclasses.replace(job, folder=tmp_path / "again" / job.folder.name, row=None)
    after: Any = do_here(train_and_score, other)
    assert json.dumps({**before, "seconds": 0}) == json.dumps({**after, "seconds": 0})


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_checkpoints_of_a_scale_divide_its_runs(scale: Scale) -> None:
    assert scale.steps % scale.checkpoints == 0


def test_a_full_disk_is_one_line(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmm.training import checkpoints

    run = module.train_job(job)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    with pytest.raises(RunError, match=r"^reproduce: .*scores\.json cannot be written \(No space left on device\)$"):
        score_checkpoints(job, run)


def test_a_job_in_context_keeps_every_episode(datasets_path: Path, tmp_path: Path) -> None:
    tiny = {"width": 8, "layers": 1, "batch_size": 2, "log_every": 1, "checkpoint_every": 1}
    dataset = "dmm/darkroom/histories-v0"
    asked: Any = {"transitions": 2_000, "checkpoints": 2, "episodes_in_context": 3}
    job = Job("ad-mamba", 0, tmp_path / "run", dataset, "ad-mamba", 2, (20.0,), 4, changes=tiny, **asked)
    row = train_and_score(job)
    found = evaluate(load_run(job.folder), episodes_in_context=3, tasks=4, targets=20.0, progress=False)
    (score,) = row["checkpoints"][-1]["scores"]
    assert context_returns(row).tolist() == found.returns.tolist()
    assert episode_scores(row, "rooms")[-1][0].tolist() == found.returns[:, -1].tolist()
    assert episode_scores(row)[-1][0] == pytest.approx(normalize(found.returns[:, -1], (20 / 81, 1340 / 81)))
    assert [json.loads(task) for task in score["tasks"]] == json.loads(json.dumps(list(found.tasks)))
    assert score["memory"] == "kept" and score["normalized_score"] == found.to_json()["normalized_score"]
    older = {key: value for key, value in job.described().items() if key != "episodes_in_context"}
    assert dataclasses.replace(job, episodes_in_context=0).is_described_by(older) and not job.is_described_by(older)
