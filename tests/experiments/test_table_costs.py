"""`sleep` is found by workers in this module."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmm.experiments import load_result, table_costs
from dmm.experiments.grid import Job
from dmm.experiments.queue import outcome, work_off
from dmm.experiments.reproduce import SCALES
from dmm.experiments.table_costs import NOT_MEASURED, WORKERS, bound, job_hours, kind, kinds, schedule, tables_text
from dmm.experiments.tables import make_tables
from tests.close import assert_same_but_for_rounding

DURATIONS = (1.6, 0.4, 0.9, 0.2, 0.7, 1.1, 0.3, 0.8)


def test_a_model_that_is_too_large_lies_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(job: Job, folder: Path) -> dict[str, Any]:
        asked.append(job.changes["layers"])
        return {"update": 1.0 + 0.5 * job.changes["layers"], "action": 0.1 * job.changes["layers"], "before": []}

    [large] = [job for name, job in kinds().items() if json.loads(name)[:2] == ["hopper", "dm-multigrained"]]
    monkeypatch.setattr(table_costs, "_measure", measured)
    monkeypatch.setattr(
        table_costs, "_plan", lambda job, folder: SimpleNamespace(model_config=SimpleNamespace(layers=24))
    )
    made = table_costs.measure_policy(large, Path("x"))
    assert asked == [2, 4] and made["update"] == pytest.approx(13.0) and made["action"] == pytest.approx(2.4)
    assert (made["layers"], made["extended_from_layers"]) == (24, [2, 4])


class TestSchedule:
    @pytest.mark.parametrize(("jobs", "workers"), [(1, 1), (7, 1), (7, 2), (8, 2), (3, 64), (1000, 64), (1025, 512)])
    def test_equal_jobs_go_in_rounds(self, jobs: int, workers: int) -> None:
        rounds = -(-jobs // workers)
        assert schedule([0.25] * jobs, workers) == 0.25 * rounds

    def test_by_hand(self) -> None:
        # one: 3, then 2 -> 5; the other: 1, 1, 4 -> 6
        assert schedule([3, 1, 1, 4, 2], 2) == 6 and schedule([3, 1, 1, 4, 2], 1) == 11
        assert schedule([4, 3, 2, 1, 1], 2) == 6 and bound([4, 3, 2, 1, 1], 2) == 5.5

    @pytest.mark.parametrize("workers", [1, 2, 8, 64])
    def test_lies_between_what_no_order_beats_and_what_any_order_keeps(self, workers: int) -> None:
        hours = np.random.default_rng(workers).exponential(size=100).tolist()
        # Graham's bound for any list: less than the even spread and the longest job together
        assert bound(hours, workers) <= schedule(hours, workers) <= sum(hours) / workers + max(hours)
        assert bound([], workers) == schedule([], workers) == 0.0

    def test_is_what_two_workers_really_take(self, tmp_path: Path) -> None:
        """Sleep takes no core, so it is as long on a busy machine. Beside it a job costs its claim, an outcome's file
        and two messages: a second for the four or five of one worker; one worker alone would take 2.7 s longer."""
        jobs = [
            Job(f"{i}", i, tmp_path / f"{i}", "", "", 1, (), 1, {"sleep": sleep}) for i, sleep in enumerate(DURATIONS)
        ]
        work_off(rest, jobs, workers=2, progress=False)
        rows: list[Any] = [outcome(job) for job in jobs]
        took = max(row["end"] for row in rows) - max(row["begin"] for row in rows[:2])
        expected = schedule(DURATIONS, 2)
        assert expected - 0.05 <= took <= expected + 1.0
        assert sum(DURATIONS) > expected + 1.0 and len({row["worker"] for row in rows}) == 2


def rest(job: Job) -> dict[str, Any]:
    """Sleep as long as the job says; the first two wait for each other, since processes start at different times."""
    import importlib
    import os

    importlib.import_module("dmm.training.checkpoints")  # by which outcomes are written; it takes seconds

    if job.seed < 2:
        (job.folder / "here").touch()
        while not all((job.folder.parent / f"{i}" / "here").exists() for i in range(2)):
            time.sleep(0.01)
    begin = time.monotonic()
    time.sleep(job.changes["sleep"])
    return {"begin": begin, "end": time.monotonic(), "worker": os.getpid()}


class TestCosts:
    def job(self, **more: Any) -> Job:
        how: dict[str, Any] = {"steps": 3600, "targets": (1.0, 2.0), "episodes": 9, "checkpoints": 10} | more
        return Job("x", 0, Path("x"), "dmm/hopper/medium-v0", "dmm", **how)

    def test_of_a_job_by_hand(self) -> None:
        costs = {kind(self.job()): {"update": 0.5, "action": 0.01, "before": [{"steps": 7200, "update": 1.0}]}}
        steps, lengths = {"hopper": 0.03}, {"dmm/hopper/medium-v0": 200.0}
        trained, played = 0.5 + 2.0, 10 * 2 * 9 * 0.04 / 3600
        assert job_hours(self.job(), costs, steps, lengths) == pytest.approx(trained + 200 * played)
        assert job_hours(self.job(max_steps=20), costs, steps, lengths) == pytest.approx(trained + 20 * played)

    def test_kinds_are_those_of_all_scales_and_robots_share_them(self) -> None:
        found = kinds()
        domains = {name: json.loads(name)[0] for name in found}
        assert set(domains.values()) - {"any"} == set(table_costs.MEASURED_ON)
        assert {where for name, where in domains.items() if "published" in name} == set(table_costs.MEASURED_ON)
        assert {job.episodes for job in found.values()} == {SCALES[scale].episodes for scale in table_costs.SCALED}
        assert all(kind(job) == name for name, job in found.items())

    def test_a_policy_and_what_is_trained_before_it_are_measured(
        self, datasets_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dmm.data.collect import collect

        maze = table_costs.MEASURED_ON["pointmaze"]
        collect(maze, transitions=400, workers=1, progress=False)
        monkeypatch.setattr(table_costs, "MANY", 4)
        small = {"width": 8, "layers": 1, "heads": 1, "batch_size": 4, "critic_width": 8, "critic_layers": 1}
        job = Job("x", 0, tmp_path, maze, "qldt", 100, (1.0,), 3, small)
        made = table_costs.measure_policy(job, tmp_path / "run")
        [before] = made["before"]
        assert before["model"] == "conservative-q" and before["steps"] == 100 and before["update"] > 0
        assert made["update"] > 0 and made["action"] > 0 and not (tmp_path / "run").exists()
        goals = Job("x", 0, tmp_path, maze, "rvs-g", 100, (1.0,), 3, {"width": 8, "batch_size": 4})
        assert table_costs.measure_policy(goals, tmp_path / "run")["action"] > 0  # a goal for each episode
        assert 1e-6 < table_costs.measure_environment(maze) < 0.1


class TestResult:
    def test_adds_up_to_what_it_says(self) -> None:
        result = load_result("table_costs")
        again = table_costs.add_up(result["policies"], result["environments"], table_costs.data_lengths())
        assert_same_but_for_rounding(json.loads(json.dumps(again)), {name: result[name] for name in again})

    def test_no_queue_beats_its_bound_and_more_cores_never_cost_time(self) -> None:
        for queue in load_result("table_costs")["queues"]:
            hours = [row["hours"] for row in queue["workers"]]
            assert [row["workers"] for row in queue["workers"]] == list(WORKERS)
            assert all(row["hours"] >= row["bound"] - 1e-9 for row in queue["workers"])
            assert hours == sorted(hours, reverse=True) and hours[0] == pytest.approx(queue["core_hours"])
            assert hours[-1] >= queue["longest_job"]

    def test_tables_have_every_table_and_no_hour_of_a_gpu(self) -> None:
        result = load_result("table_costs")
        text = tables_text(result)
        assert all(f"\n| {name} |" in text for name in make_tables())
        assert {row["gpu_hours"] for row in result["tables"]} == {result["gpu_hours"]} == {NOT_MEASURED}
