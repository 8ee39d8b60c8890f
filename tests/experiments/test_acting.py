"""The experiment on ways of acting, at a size that takes seconds; and its committed result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmm.evaluation import Rollout
from dmm.experiments import MODELS, acting, load_result
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.training import load_run
from tests.close import assert_same_but_for_rounding
from tests.experiments.conftest import MAZE, TINY, do_here

HOPPER_RUN = MODELS / "gating/hopper-dmm-seed0"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two policies of four updates, played for two episodes."""
    monkeypatch.setattr(acting, "TASKS", {"pointmaze": acting.Task(MAZE, 4, 1.0, 2, TINY)})
    monkeypatch.setattr(acting, "STAGGERED", {2: (1,), 4: (1, 2)})
    monkeypatch.setattr(acting, "SHORTER", {2: (1,), 4: (1, 2)})
    monkeypatch.setattr(acting, "run_jobs", lambda work, jobs, workers: [do_here(work, job) for job in jobs])


class TestCommand:
    def test_writes_its_file(self, small: None, run_command: Callable[..., dict[str, Any]]) -> None:
        result = run_command(acting, seeds=2)
        assert [(row["task"], row["context"], row["seed"]) for row in result["runs"]] == [
            ("pointmaze", 2, 0),
            ("pointmaze", 4, 0),
            ("pointmaze", 2, 1),
            ("pointmaze", 4, 1),
        ]
        assert list(result["runs"][1]["ways"]) == [
            *("window", "recurrent", "staggered, m=1", "staggered, m=2"),
            *("recurrent, zero state", "window, no padding", "window, 1 steps", "window, 2 steps"),
        ]
        assert result["summary"] == acting.summarize_ways(result["runs"])
        assert result["overall"] == acting.summarize_overall(result["runs"])
        assert result["settings"]["staggered"] == {"2": [1], "4": [1, 2]}

    def test_latency_is_put_into_the_file(
        self, small: None, run_command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = run_command(acting)
        run = load_run(HOPPER_RUN)
        for name, value in {"TIMED_STEPS": (1, 3), "TIMED_CALLS": 2, "TIMED_EPISODES": 1}.items():
            monkeypatch.setattr(acting, name, value)
        monkeypatch.setattr(acting, "STAGGERED", {8: (2,)})
        monkeypatch.setattr(acting, "kept_run", lambda name: run)
        monkeypatch.setattr(sys, "argv", ["acting", "--out", "acting.json", "--latency"])
        acting.main()
        result = load_result("acting")
        latency = result.pop("latency")
        assert result == scores
        assert [(row["context"], row["way"]) for row in latency["steps"]] == [
            (8, "window"),
            (8, "recurrent"),
            (8, "staggered, m=2"),
        ]
        assert all(set(row["microseconds"]) == {"1", "3"} for row in latency["steps"])
        assert all(row["simulator"] > 0 and row["seconds"] > 0 for row in latency["evaluation"])


class TestWays:
    def test_questions_are_what_their_names_say(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = DecisionMetaMamba(DMMConfig(state_size=3, action_size=2, width=8, layers=1, context=8)).eval()
            torch.nn.init.normal_(policy.embed_norm.bias)
            torch.nn.init.normal_(policy.head.weight, std=0.3)
            for name, weight in policy.named_parameters():  # a memory that lasts
                if "A_log" in name or "dt_proj.bias" in name:
                    torch.nn.init.constant_(weight, -2.0)
                elif "proj" in name:
                    torch.nn.init.normal_(weight)
            observations = torch.randn(20, 2, 3)

        def actions(actor: Any) -> torch.Tensor:
            state, found = actor.init_state(2, 5.0), []
            for observation in observations:
                action, state = actor.act(state, observation)
                found.append(action.clone())
            return torch.stack(found)

        found = {name: actions(make(policy)) for name, make in (acting.ways(8) | acting.questions(8)).items()}
        assert list(found)[:5] == ["window", "recurrent", "staggered, m=1", "staggered, m=2", "staggered, m=4"]
        starts = {name: each[0] for name, each in found.items()}
        for name in ("recurrent", "staggered, m=1", "staggered, m=4"):  # behind the same padding
            torch.testing.assert_close(starts[name], starts["window"])
        for name in ("recurrent, zero state", "window, no padding", "window, 4 steps"):
            assert not torch.allclose(starts[name], starts["window"], atol=1e-3)
        zero, unpadded = found["recurrent, zero state"], found["window, no padding"]
        torch.testing.assert_close(zero[:8], unpadded[:8])
        assert not torch.allclose(zero[8], unpadded[8], atol=1e-3)
        policy.context = 4
        assert torch.equal(actions(policy), found["window, 4 steps"])

    def test_a_way_is_compared_to_the_window_episode_by_episode(self) -> None:
        window, way = (Rollout(np.array(returns), np.array([2, 2, 4]), []) for returns in ([0, 1.0, 1], [1.0, 0, 1]))
        row = acting.compare(way, window, (0.0, 1.0))
        assert row["score"] == pytest.approx(200 / 3) and row["difference"] == 0
        assert (row["episodes"], row["arrived"], row["better"], row["worse"]) == (3, 2, 1, 1)
        assert row["difference_deviation"] == pytest.approx(100) and row["length"] == pytest.approx(8 / 3)

    def test_the_summary_pairs_seeds_and_episodes(self) -> None:
        def run(seed: int, window: float, recurrent: float) -> dict[str, Any]:
            same = {"episodes": 50, "arrived": 9, "better": 1, "worse": 2, "difference_deviation": 20.0}
            ways = {
                "window": {**same, "score": window, "difference": 0.0},
                "recurrent": {**same, "score": recurrent, "difference": recurrent - window},
            }
            return {"task": "t", "context": 8, "seed": seed, "ways": ways}

        _, row = acting.summarize_ways([run(0, 50.0, 60.0), run(1, 70.0, 82.0)])
        assert (row["way"], row["seeds"], row["episodes"], row["worse"]) == ("recurrent", 2, 100, 4)
        assert row["score"]["mean"] == 71 and row["difference"]["mean"] == 11
        assert row["difference"]["ci95"] == pytest.approx([11 - 12.706205, 11 + 12.706205])
        assert row["difference_episodes"] == pytest.approx([11 - 3.92, 11 + 3.92])  # 1.96 x 20 / sqrt(100)

    def test_the_overall_summary_takes_the_ways_that_all_policies_have(self) -> None:
        def run(**differences: float) -> dict[str, Any]:
            return {"ways": {way: {"difference": value} for way, value in differences.items()}}

        window, recurrent = acting.summarize_overall(
            [run(window=0.0, recurrent=-3.0, m4=1.0), run(window=0.0, recurrent=5.0)]
        )
        assert (window["way"], window["difference"]) == ("window", {"mean": 0.0, "ci95": [0.0, 0.0]})
        assert (recurrent["policies"], recurrent["smallest"], recurrent["largest"]) == (2, -3.0, 5.0)
        assert recurrent["difference"]["mean"] == 1.0 and recurrent["deviation"] == pytest.approx(32**0.5)


def test_jobs_differ_in_context_and_task_alone() -> None:
    jobs = acting.make_jobs(Path("runs"), seeds=3)
    assert len(jobs) == len({job.folder for job in jobs}) == 18
    assert {job.changes["context"] for job in jobs} == {8, 24} and {job.model for job in jobs} == {"dmm"}


@pytest.mark.parametrize(("context", "states"), acting.STAGGERED.items())
def test_states_divide_the_context(context: int, states: tuple[int, ...]) -> None:
    assert all(context % m == 0 and m < context for m in states)
    assert all(steps < context for steps in acting.SHORTER[context])


class TestResult:
    """The committed file fits the code that made it."""

    def test_scores(self) -> None:
        stored = load_result("acting")
        tasks = json.loads(json.dumps({name: vars(task) for name, task in acting.TASKS.items()}))
        assert stored["settings"]["tasks"] == tasks
        jobs = acting.make_jobs(Path(), stored["settings"]["seeds"])
        rows = [(f"{row['task']}/k{row['context']}", row["seed"]) for row in stored["runs"]]
        assert rows == [(job.name, job.seed) for job in jobs]
        for row in stored["runs"]:
            assert list(row["ways"]) == [*acting.ways(row["context"]), *acting.questions(row["context"])]
        for name, summarize in {"overall": acting.summarize_overall, "summary": acting.summarize_ways}.items():
            again = json.loads(json.dumps(summarize(stored["runs"])))
            assert_same_but_for_rounding(again, stored[name])

    def test_latencies(self) -> None:
        latency = load_result("acting")["latency"]
        expected = [(context, way) for context in acting.STAGGERED for way in acting.ways(context)]
        assert [(row["context"], row["way"]) for row in latency["steps"]] == expected
        steps = [str(step) for step in acting.TIMED_STEPS]
        assert all(list(row["microseconds"]) == steps for row in latency["steps"])
        assert [row["way"] for row in latency["evaluation"]] == list(acting.ways(8))
