"""The benchmark of the training step measures what it says. No test depends on how fast the machine is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dmm.bench import train as module
from dmm.bench.peers import Compiled, disagreement, find_scans, plain_loop, versions
from dmm.bench.scan import backends_on, make_inputs
from dmm.bench.train import (
    TrainingStep,
    bench_train,
    choose_backend,
    draw,
    gradients,
    no_recurrence,
    no_scan,
    random_trajectories,
    report,
    scan_replaced,
)
from dmm.cli import app
from dmm.data.windows import WindowSampler
from dmm.errors import InputError
from dmm.layers import mamba
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.registry import MODELS
from dmm.policy import Policy
from dmm.scan import selective_scan
from dmm.training import TrainConfig, train

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"state_size": 11, "action_size": 3, "context": 3, "width": 8, "layers": 2, "window": 2}


def small_policy(seed: int = 0) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DecisionMetaMamba(DMMConfig(**SMALL, ssm_state=4))


def absent() -> dict[str, str]:
    """The models that are not trained on windows by this package, and why they are left out."""
    learned = {name: module.ANOTHERS for name, entry in MODELS.items() if entry.learner is not None}
    return learned | {name: module.IN_CONTEXT for name, entry in MODELS.items() if entry.in_context}


@pytest.fixture(scope="module")
def result() -> Any:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "THREADS", (1,))
        patch.setattr(module, "random_trajectories", lambda: random_trajectories(episodes=4, length=20))
        patch.setattr(module, "TRANSCRIBED", {"dc": {"width": 16}, "dm": {"width": 16, "context": 4}})
        patch.setattr(module, "compiled_loop", lambda inputs: Compiled(plain_loop, "", 0.0))
        patch.setattr(module, "versions", lambda: versions() | {"d3rlpy": None})
        found = bench_train(seeds=2, repeats=1, progress=False)
    yield found
    assert torch.get_num_threads() == before


def test_every_scan_and_model_is_timed(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    backends = [f"dmm, {name}" for name in backends_on(CPU)]
    peers = ["selective_scan_ref", "mambapy", "transformers", "torch.compile"]
    assert [row["scan"] for row in result["scans"]] == [
        *("dmm", "dmm, modules", *backends, *peers, "no recurrence", "no scan")
    ]
    own = [name for name, entry in MODELS.items() if not entry.hidden and name not in absent()]
    models = [row["model"] for row in result["models"]]
    assert models == [*own, "dt, paper's size", "transformers' dt, paper's size"]
    assert [row["model"] for row in result["published"]] == ["dc, published", "dm, published"]
    assert result["left_out"] == absent() | {"d3rlpy's dt, paper's size": "not installed"}
    assert [row["threads"] for row in result["threads_scaling"]] == [1]


def test_ratios_are_those_of_the_times(result: dict[str, Any]) -> None:
    rows = {row["scan"]: row for row in result["scans"]}
    plain, modules = rows["dmm"]["median"], rows["dmm, modules"]["median"]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["median"] / modules)
        assert row["over_no_recurrence"] == pytest.approx(row["median"] / rows["no recurrence"]["median"])
        assert row["over_no_scan"] == pytest.approx(row["median"] / rows["no scan"]["median"])
    assert result["sampling"]["share"] == pytest.approx(result["sampling"]["median"] / plain)
    for row in result["published"]:
        assert row["speedup"] == pytest.approx(row["transcribed"]["median"] / row["median"])
    alone = result["products"]["median"]
    assert result["products"]["over"] == pytest.approx({"step": plain / alone, "modules": modules / alone})
    seeds = result["seeds"]["rows"]
    assert list(seeds) == ["2 seeds, stacked", "2 seeds, separate"]
    together, apart = (row["median"] for row in seeds.values())
    assert result["seeds"]["stacked_speedup"] == pytest.approx(apart / together)
    assert result["projected_seconds"] == pytest.approx(
        {"dmm": 1e5 * plain, "2 seeds, stacked": 1e5 * together, "2 seeds, separate": 1e5 * apart}
    )


def test_each_peer_had_the_gradients_of_the_package(result: dict[str, Any]) -> None:
    differences = {row["scan"]: row["difference"] for row in result["scans"] if row["difference"] is not None}
    assert list(differences) == ["selective_scan_ref", "mambapy", "transformers", "torch.compile"]
    assert max(differences.values()) < module.TOLERANCE


def test_report_and_picture(result: dict[str, Any], tmp_path: Path) -> None:
    text = report(result)
    assert (
        "its matrix products alone" in text
        and "no recurrence" in text
        and "2 seeds, stacked" in text
        and "left out: not installed" in text
        and "times as fast as transcribed" in text
    )
    draw(result, tmp_path / "train.png")
    assert (tmp_path / "train.png").stat().st_size > 5_000


def test_command(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(module, "bench_train", lambda **more: asked.update(more) or result)
    run = CliRunner().invoke(app, ["bench", "train", "--json", "--seeds", "2", "--threads", "3"])
    assert run.exit_code == 0 and json.loads(run.stdout) == result
    assert asked["seeds"] == 2 and asked["threads"] == 3
    assert "one training step" in CliRunner().invoke(app, ["bench", "train"]).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds: got 0"),
        ({"repeats": 0}, "repeats: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"device": "nonsense"}, "device: got 'nonsense'"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_train(**arguments, progress=False)


class TestSwappedScans:
    @pytest.mark.parametrize("name", [*backends_on(CPU), *(peer.name for peer in find_scans()[0])])
    def test_outputs_and_gradients_of_the_model_stay_the_same(self, name: str) -> None:
        policy, data = small_policy(), random_trajectories(episodes=3, length=7)
        windows = WindowSampler(data, 3, generator=torch.Generator().manual_seed(0)).sample(6)
        expected = gradients(choose_backend(policy, "sequential"), windows)
        peers = {peer.name: peer.scan for peer in find_scans()[0]}
        if name not in peers:
            choose_backend(policy, name)
        with scan_replaced(peers.get(name)):
            found = gradients(policy, windows)
        assert len(found) == 1 + len(list(policy.parameters()))
        assert disagreement(found, expected) < 1e-4

    def test_the_scan_that_was_put_in_is_called_and_taken_out_again(self) -> None:
        calls, before = [], mamba.selective_scan  # type: ignore[attr-defined]

        def counting(*inputs: Any, **options: Any) -> Any:
            calls.append(inputs[0].shape)
            return selective_scan(*inputs, **options)

        policy = small_policy()
        windows = WindowSampler(random_trajectories(3, 7), 3, generator=torch.Generator()).sample(2)
        with pytest.raises(KeyError), scan_replaced(counting):
            policy(windows)
            raise KeyError
        assert calls == [(2, 9, 8)] * 2 and mamba.selective_scan is before  # type: ignore[attr-defined]


class TestWithoutItsScan:
    def test_no_recurrence_is_the_scan_of_sequences_of_one_token(self) -> None:
        inputs = make_inputs(4, 1, 3, 2, CPU)
        inputs["delta_bias"] = torch.zeros(3)
        torch.testing.assert_close(no_recurrence(**inputs), selective_scan(**inputs))
        longer = make_inputs(2, 5, 3, 2, CPU)
        apart = {k: v.reshape(10, 1, -1) if torch.is_tensor(v) and v.ndim == 3 else v for k, v in longer.items()}
        expected = selective_scan(**apart)
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(no_recurrence(**longer), expected.view(2, 5, 3))

    @pytest.mark.parametrize(
        ("scan", "unused"), [(no_recurrence, {"A_log"}), (no_scan, {"A_log", "D", "x_proj", "dt_proj"})]
    )
    def test_what_is_still_trained(self, scan: Any, unused: set[str]) -> None:
        policy = small_policy()
        windows = WindowSampler(random_trajectories(3, 7), 3, generator=torch.Generator()).sample(4)
        with scan_replaced(scan):
            policy(windows).square().sum().backward()
        idle = {name for name, weight in policy.named_parameters() if weight.grad is None}
        expected = {n for n, _ in policy.named_parameters() if any(part in unused for part in n.split("."))}
        assert idle == expected and idle


class TestTrainingStep:
    def test_it_is_the_update_of_training(self, tmp_path: Path) -> None:
        """From the same start and with the same seed of the windows it comes to the weights of `train`."""
        data = random_trajectories(episodes=3, length=9)
        sizes = {name: value for name, value in SMALL.items() if name not in ("state_size", "action_size")}
        changes = {**sizes, "ssm_state": 4, "dropout": 0.0, "batch_size": 5, "rtg_scale": 1000.0}
        run = train(data, steps=3, device="cpu", out=tmp_path / "run", progress=False, changes=changes)
        policy = small_policy()
        policy.set_state_moments(*map(torch.from_numpy, data.state_moments()))
        policy.dropout.p = 0.0  # type: ignore[union-attr]
        step = TrainingStep([policy], data, CPU, config=TrainConfig(steps=3, batch_size=5))
        for _ in range(3):
            step()
        for (name, found), expected in zip(policy.named_parameters(), run.policy.parameters(), strict=True):
            torch.testing.assert_close(found, expected, msg=name)

    def test_stacked_policies_take_their_own_steps(self) -> None:
        data = random_trajectories(episodes=3, length=9)
        apart, together = ([small_policy(seed) for seed in range(2)] for _ in range(2))
        for policy in (*apart, *together):
            policy.dropout.p = 0.0  # type: ignore[union-attr]
        alone = [TrainingStep([policy], data, CPU) for policy in apart]
        alone[1].draws[0].manual_seed(1)  # the second of the stack draws with seed 1
        stacked = TrainingStep(together, data, CPU)
        for _ in range(2):
            for step in (*alone, stacked):
                step()
        for one, other in zip(apart, together, strict=True):
            for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)

    def test_windows_are_drawn_anew_for_each_step(self) -> None:
        step = TrainingStep([small_policy()], random_trajectories(3, 9), CPU)
        first, second = step.sample(), step.sample()
        assert first.states.shape == (1, 64, 3, 11) and not torch.equal(first.states, second.states)


def test_a_scan_with_wrong_gradients_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "random_trajectories", lambda: random_trajectories(4, 20))
    bench = module._Bench(CPU)
    step, reason = bench._swapped("wrong", no_recurrence)
    assert step is None and "gradients of the model are off" in reason
    step, reason = bench._swapped("broken", lambda *_, **__: 1 / 0)  # type: ignore[arg-type, return-value]
    assert step is None and "does not work here (division by zero)" in reason
    step, reason = bench._swapped("right", plain_loop)
    assert step is not None and not reason


def test_d3rlpy_gets_batches_of_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is given can be checked where it is not installed, too."""
    given: list[Any] = []

    class Batch:
        def __init__(self, **fields: Any):
            vars(self).update(fields)

    dataset = type(sys)("d3rlpy.dataset")
    dataset.TrajectoryMiniBatch = Batch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "d3rlpy", type(sys)("d3rlpy"))
    monkeypatch.setitem(sys.modules, "d3rlpy.dataset", dataset)
    monkeypatch.setattr(module, "versions", lambda: {"d3rlpy": "2", "transformers": None})
    monkeypatch.setattr(module, "random_trajectories", lambda: random_trajectories(4, 30))
    algorithm = type("Algorithm", (), {"update": lambda self, batch: given.append(batch)})()
    monkeypatch.setattr(module, "d3rlpy_dt", lambda *sizes, device: algorithm)
    steps, left_out = module._Bench(CPU).models()
    assert left_out.pop("transformers' dt, paper's size") == "not installed"
    assert left_out == absent()
    steps["d3rlpy's dt, paper's size"]()
    (batch, again) = given
    assert batch is again and batch.observations.shape == (64, 20, 11) and batch.masks.dtype == "float32"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_every_step_is_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "random_trajectories", lambda: random_trajectories(4, 20))
    found = bench_train(seeds=2, repeats=1, device="cuda", progress=False)
    assert json.loads(json.dumps(found)) == found and not found["threads_scaling"]
    assert {"dmm", "mambapy", "no recurrence", "no scan"} <= {row["scan"] for row in found["scans"]}
    assert all(seconds > 0 for seconds in found["projected_seconds"].values()) and report(found)


def test_seconds_of_whole_trainings_are_projected_for_one_seed_and_for_several() -> None:
    found = module.seconds_of_training(2, torch.device("cpu"), updates=(1, 3))
    assert list(found) == ["dmm", "2 seeds, stacked"] and all(np.isfinite(list(found.values())))
