from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import stats

from dmm import policy
from dmm.errors import InputError
from dmm.evaluation import evaluate
from dmm.experiments import RESULTS, kept_run
from dmm.experiments.grid import (
    Job,
    arguments,
    keep_model,
    mean_interval,
    round_weights,
    score_job,
    slug,
    summarize,
    summarize_pooled,
    train_and_score,
    train_job,
)

MakeJob = Callable[..., Job]


def weights(policy: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


class TestJobs:
    def test_a_killed_one_goes_on_where_it_stopped(self, maze_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
        # checkpoints after 2 and 4 updates; the process dies in the fourth
        every = {"log_every": 1, "checkpoint_every": 2}
        undisturbed, loss, calls = weights(train_job(maze_job("whole", **every)).policy), policy.action_loss, []

        def die(*args: Any) -> Any:
            calls.append(None)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return loss(*args)

        monkeypatch.setattr(policy, "action_loss", die)
        with pytest.raises(KeyboardInterrupt):
            train_job(maze_job("killed", **every))
        run = train_job(maze_job("killed", **every))
        assert len(calls) == 4 + 2 and run.step == 4
        assert all(torch.equal(value, undisturbed[name]) for name, value in weights(run.policy).items())

    def test_a_finished_one_is_scored_again_to_the_same_row(self, maze_job: MakeJob) -> None:
        row = train_and_score(maze_job())
        assert [score["target"] for score in row["scores"]] == [1.0, 0.0]
        assert (row["name"], row["seed"]) == ("dmm", 0) and row["loss"] > 0 and row["seconds"] > 0
        assert train_and_score(maze_job()) == row

    def test_row_counts_the_weights_that_are_trained(self, maze_job: MakeJob) -> None:
        job = maze_job("frozen", train_dsm=False, share_dsm=True, layers=2)
        run = train_job(job)
        frozen = run.policy.blocks[0].local_mixer.linear.weight.numel()
        assert score_job(job, run)["weights"] == sum(p.numel() for p in run.policy.parameters()) - frozen

    def test_changes_and_seed_reach_the_run(self, maze_job: MakeJob) -> None:
        run = train_job(maze_job("dt", seed=3, model="dt", heads=4, learning_rate=0.01))
        assert run.info["model"] == "dt" and run.info["config"]["heads"] == 4
        assert (run.info["training"]["seed"], run.info["training"]["learning_rate"]) == (3, 0.01)
        assert run.info["training"]["steps"] == 4


def row(name: str, seed: int, *scores: float) -> dict[str, Any]:
    targets = (1.0, 0.0)
    return {
        "name": name,
        "seed": seed,
        "scores": [{"target": t, "normalized_score": s} for t, s in zip(targets, scores, strict=False)],
    }


class TestSummaries:
    def test_interval_is_students(self) -> None:
        half = 4.302653 * 10 / np.sqrt(3)  # t quantile of two degrees of freedom, standard deviation 10
        made = mean_interval([70.0, 80.0, 90.0])
        assert made["mean"] == 80.0 and made["ci95"] == pytest.approx([80 - half, 80 + half], rel=1e-6)

    @pytest.mark.parametrize("n", [2, 5, 30])
    def test_interval_equals_scipys(self, n: int) -> None:
        values = np.random.default_rng(n).normal(size=n)
        expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
        made = mean_interval(values)
        assert made["mean"] == pytest.approx(values.mean()) and made["ci95"] == pytest.approx(expected)
        assert json.dumps(made)  # plain numbers

    def test_interval_of_equal_values_is_a_point(self) -> None:
        assert mean_interval([3.0, 3.0]) == {"mean": 3.0, "ci95": [3.0, 3.0]}

    def test_one_value_has_no_interval(self) -> None:
        assert mean_interval([3.0]) == {"mean": 3.0, "ci95": None}

    def test_one_entry_for_each_name_and_target_in_order(self) -> None:
        rows = [row("b", 0, 10.0, 0.0), row("a", 0, 50.0, 7.0), row("b", 1, 20.0, 4.0)]
        summary = summarize(rows)
        assert [(s["name"], s["target"], s["mean"], s["seeds"]) for s in summary] == [
            ("b", 1.0, 15.0, 2),
            ("b", 0.0, 2.0, 2),
            ("a", 1.0, 50.0, 1),
            ("a", 0.0, 7.0, 1),
        ]
        assert summary[0]["ci95"] == mean_interval([10.0, 20.0])["ci95"] and summary[2]["ci95"] is None

    def test_entries_may_have_targets_of_their_own(self) -> None:
        assert [s["target"] for s in summarize([row("maze", 0, 1.0, 2.0), row("hopper", 0, 3.0)])] == [1.0, 0.0, 1.0]

    def test_pooled_interval_takes_one_deviation_from_all_entries(self) -> None:
        rows = [row("a", 0, 10.0, 1.0), row("a", 1, 20.0, 1.0), row("b", 0, 50.0, 2.0), row("b", 1, 80.0, 2.0)]
        rows += [row("c", 0, 7.0, 3.0)]
        summary = summarize_pooled(rows)
        pooled = np.sqrt((2 * 5.0**2 + 2 * 15.0**2) / 2)  # the one seed of c has no deviation to add
        half = stats.t.ppf(0.975, 2) * pooled
        found = {s["name"]: s for s in summary if s["target"] == 1.0}
        assert found["a"]["ci95"] == pytest.approx([15 - half / 2**0.5, 15 + half / 2**0.5])
        assert found["b"]["ci95"] == pytest.approx([65 - half / 2**0.5, 65 + half / 2**0.5])
        assert found["c"]["ci95"] == pytest.approx([7 - half, 7 + half])
        assert [s["ci95"] for s in summary if s["target"] == 0.0] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]

    def test_pooled_interval_needs_two_seeds_somewhere(self) -> None:
        assert summarize_pooled([row("a", 0, 10.0)])[0]["ci95"] is None


class TestKeptModels:
    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            ("dmm", {}),
            ("dmm-released", {"share_dsm": True, "train_dsm": False, "layers": 2}),
            ("mamba", {}),
            ("dt", {"heads": 2}),
        ],
    )
    def test_come_back_with_weights_rounded_to_half_precision(
        self, model: str, changes: dict[str, Any], maze_job: MakeJob, models: Path
    ) -> None:
        run = train_job(maze_job(model, model=model, **changes))
        parameters = {name for name, _ in run.policy.named_parameters(remove_duplicate=False)}
        expected = {
            name: value.half().float() if name in parameters else value for name, value in weights(run.policy).items()
        }
        keep_model(run, "set/one")
        again = kept_run("set/one")
        found = weights(again.policy)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        assert all(p.dtype == torch.float32 for p in again.policy.parameters())
        assert not again.policy.training and again.step == 4
        assert again.info == json.loads(json.dumps(run.info)) and again.policy.config == run.policy.config

    def test_lie_in_half_precision_but_for_the_moments_of_states(self, maze_job: MakeJob, models: Path) -> None:
        run = train_job(maze_job())
        keep_model(run, "set/one")
        with safe_open(models / "set/one/checkpoint.safetensors", framework="pt") as file:
            kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        wide = {name for name, kind in kinds.items() if kind != torch.float16}
        assert wide == {"policy.state_mean", "policy.state_std"}
        assert {kinds[name] for name in wide} == {torch.float32}
        assert sorted(file.name for file in (models / "set/one").iterdir()) == ["checkpoint.safetensors", "run.json"]

    def test_of_rounded_weights_score_what_the_run_scored(self, maze_job: MakeJob, models: Path) -> None:
        run = train_job(maze_job(learning_rate=0.01))
        round_weights(run.policy)
        keep_model(run, "set/one")
        ours, kept = (evaluate(r, episodes=3, targets=(1.0,), progress=False) for r in (run, kept_run("set/one")))
        assert ours.to_json()["scores"] == kept.to_json()["scores"]

    def test_rounding_is_to_half_precision_and_rounds_once(self, maze_job: MakeJob) -> None:
        policy = train_job(maze_job()).policy
        before, (mean, std) = weights(policy), (policy.state_mean.clone(), policy.state_std.clone())
        round_weights(policy)
        once = weights(policy)
        round_weights(policy)
        for name, p in policy.named_parameters():
            assert torch.equal(p, before[name].half().float()) and torch.equal(p, once[name])
        assert torch.equal(policy.state_mean, mean) and torch.equal(policy.state_std, std)

    def test_are_replaced_when_kept_again(self, maze_job: MakeJob, models: Path) -> None:
        for seed in (0, 1):
            keep_model(train_job(maze_job(seed=seed)), "set/one")
        assert kept_run("set/one").info["training"]["seed"] == 1

    def test_unknown_name_is_answered_with_the_known_ones(self, maze_job: MakeJob, models: Path) -> None:
        run = train_job(maze_job())
        for name in ("set/two", "set/one"):
            keep_model(run, name)
        with pytest.raises(InputError, match=r"^name: no committed run 'set/three', allowed are set/one, set/two$"):
            kept_run("set/three")


class TestArguments:
    def test_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["any"])
        args = arguments("any", "Something.", seeds=7)
        assert (args.out, args.runs) == (RESULTS / "any.json", Path("runs/any"))
        assert (args.seeds, args.workers) == (7, 2)

    def test_can_be_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["any", "--out", "o.json", "--runs", "r", "--seeds", "2", "--workers", "1"])
        args = arguments("any", "Something.", seeds=7)
        assert (args.out, args.runs, args.seeds, args.workers) == (Path("o.json"), Path("r"), 2, 1)

    @pytest.mark.parametrize(
        ("name", "folder"),
        [("dmm", "dmm"), ("share_dsm, not trained", "share-dsm-not-trained"), ("expand: 2", "expand-2")],
    )
    def test_names_of_entries_become_names_of_folders(self, name: str, folder: str) -> None:
        assert slug(name) == folder
