from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dmm import training
from dmm.data.arrays import write_dataset
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError, RunError
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.registry import MODELS, find_model
from dmm.policy import Policy, action_loss
from dmm.training import (
    Run,
    TrainConfig,
    choose_device,
    default_out,
    default_rtg_scale,
    kept_name,
    load_run,
    plan,
    train,
    train_seeds,
)
from dmm.training import run as run_folder
from tests.conftest import ROOT, MakeTrajectories, tiny_trajectories

SMALL: dict[str, Any] = {"width": 8, "layers": 2, "context": 4, "ssm_state": 3, "batch_size": 8}
RESUMED: dict[str, Any] = SMALL | {"log_every": 2, "checkpoint_every": 6}
STEPS = 30


def quick(data: Trajectories, out: Path, steps: int = STEPS, changes: dict[str, Any] | None = None, **more: Any) -> Run:
    more = {"device": "cpu", "progress": False} | more
    return train(data, steps=steps, out=out, changes=RESUMED | (changes or {}), **more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, trajectories: Trajectories) -> Run:
    """A whole run of 30 steps, which other runs are compared with."""
    return quick(trajectories, tmp_path_factory.mktemp("runs") / "undisturbed")


def read(path: Path) -> tuple[dict[str, Tensor], int]:
    """Every tensor of a run's checkpoint, and its step."""
    file = path / "checkpoint.safetensors"
    with safe_open(file, framework="pt") as opened:
        return load_file(file), int(opened.metadata()["step"])


def assert_same_run(path: Path, other: Path) -> None:
    """Bit for bit: weights, moments, generators, step, and the log but for its seconds."""
    (ours, step), (expected, expected_step) = read(path), read(other)
    assert step == expected_step and ours.keys() == expected.keys()
    assert {name.split(".")[0] for name in ours} == {"policy", "optimizer", "generator"}
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    assert columns(path) == columns(other)


def columns(path: Path) -> list[list[str]]:
    return [line.split(",")[:3] for line in (path / "log.csv").read_text().splitlines()]


@contextmanager
def replaced_loss(replacement: Callable[[Tensor, Windows, int], Tensor]) -> Iterator[list[int]]:
    """Training calls `replacement(predicted, windows, number of the update)` for its loss, inside the block."""
    updates: list[int] = []

    def loss(predicted: Tensor, windows: Windows) -> Tensor:
        updates.append(len(updates) + 1)
        return replacement(predicted, windows, updates[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmm.policy.action_loss", loss)
        yield updates


@contextmanager
def watched_optimizer(watch: Callable[[torch.optim.Optimizer], None]) -> Iterator[None]:
    """Calls `watch(optimizer)` right before each of its steps."""
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: watch(optimizer))
    try:
        yield
    finally:
        handle.remove()


class Interrupted(Exception):
    pass


def interrupt_at(update: int) -> Callable[[Tensor, Windows, int], Tensor]:
    def loss(predicted: Tensor, windows: Windows, number: int) -> Tensor:
        if number == update:
            raise Interrupted
        return action_loss(predicted, windows)

    return loss


class TestLearning:
    @pytest.mark.parametrize("model", ["dmm", "dmm-paper", "dmm-released", "mamba"])
    def test_loss_falls(self, make_trajectories: MakeTrajectories, tmp_path: Path, model: str) -> None:
        data = make_trajectories(lengths=(20,) * 10)
        changes = SMALL | {"learning_rate": 1e-2, "dropout": 0.0, "log_every": 10, "checkpoint_every": 10, "clip": 1.0}
        log = train(data, model, steps=80, out=tmp_path, changes=changes, device="cpu", progress=False).log
        assert log["loss"][-1] < 0.4 * log["loss"][0]

    def test_loss_by_hand(self) -> None:
        # two windows of two steps and one action; the first step of the second is padding
        predicted = torch.tensor([[[1.0], [2.0]], [[99.0], [3.0]]])
        actions = torch.tensor([[[0.0], [0.0]], [[0.0], [1.0]]])
        mask = torch.tensor([[True, True], [False, True]])
        windows = Windows(
            torch.zeros(2, 2, 1), torch.zeros(2, 2, 3), actions, torch.zeros(2, 2, dtype=torch.int64), mask
        )
        assert action_loss(predicted, windows).item() == pytest.approx((1 + 4 + 4) / 3)

    def test_padding_gets_no_gradient(self, trajectories: Trajectories) -> None:
        windows = WindowSampler(trajectories, 4, generator=torch.Generator()).window_at(12)  # an episode of one step
        predicted = torch.zeros(1, 4, 2, requires_grad=True)
        action_loss(predicted, windows).backward()
        assert predicted.grad is not None
        assert predicted.grad[0].any(-1).tolist() == [False, False, False, True]

    def test_whole_run_equals_a_loop_written_by_hand(self, trajectories: Trajectories, tmp_path: Path) -> None:
        changes = RESUMED | {"log_every": 1, "learning_rate": 3e-3, "weight_decay": 0.05, "warmup": 0.5}
        run = train(trajectories, steps=12, seed=5, out=tmp_path, changes=changes, device="cpu", progress=False)
        policy, losses = by_hand(trajectories, steps=12, seed=5, learning_rate=3e-3, weight_decay=0.05, warmup_steps=6)
        np.testing.assert_allclose(run.log["loss"], losses, rtol=1e-5)
        for name, weight in policy.state_dict().items():
            torch.testing.assert_close(run.policy.state_dict()[name], weight, rtol=1e-4, atol=1e-6, msg=name)

    def test_states_are_normalised_by_the_moments_of_the_data(
        self, undisturbed: Run, trajectories: Trajectories
    ) -> None:
        states = trajectories.observations
        np.testing.assert_allclose(undisturbed.policy.state_mean, states.mean(0), rtol=1e-5)
        np.testing.assert_allclose(undisturbed.policy.state_std, states.std(0) + 1e-6, rtol=1e-5)


def by_hand(
    data: Trajectories, steps: int, seed: int, learning_rate: float, weight_decay: float, warmup_steps: int
) -> tuple[DecisionMetaMamba, list[float]]:
    """The recipe of the paper's appendix A in plain torch, for the sizes of `SMALL`."""
    model = {name: SMALL[name] for name in ("width", "layers", "context", "ssm_state")}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = DecisionMetaMamba(DMMConfig(state_size=4, action_size=2, rtg_scale=1.0, **model))
        policy.state_mean, policy.state_std = (torch.from_numpy(moment) for moment in data.state_moments())
        sampler = WindowSampler(data, SMALL["context"], generator=torch.Generator().manual_seed(seed))
        optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=weight_decay, foreach=False, fused=False)
        losses = []
        for step in range(1, steps + 1):
            windows = sampler.sample(SMALL["batch_size"])
            error = ((policy(windows) - windows.actions) ** 2).mean(-1)
            loss = (error * windows.mask).sum() / windows.mask.sum()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()
            for parameter in policy.parameters():
                assert parameter.grad is not None
                parameter.grad *= min(1.0, 0.25 / norm.item())
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, step / warmup_steps)
            optimizer.step()
            losses.append(loss.item())
    return policy, losses


class TestOptimizer:
    def test_learning_rate_rises_over_the_first_part_and_stays(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        rates: list[float] = []
        with watched_optimizer(lambda optimizer: rates.append(float(optimizer.param_groups[0]["lr"]))):
            quick(trajectories, tmp_path, steps=20, changes={"warmup": 0.25, "learning_rate": 1e-3})
        assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3] + [1e-3] * 15)

    def test_no_warm_up(self, trajectories: Trajectories, tmp_path: Path) -> None:
        rates: list[float] = []
        with watched_optimizer(lambda optimizer: rates.append(float(optimizer.param_groups[0]["lr"]))):
            quick(trajectories, tmp_path, steps=3, changes={"warmup": 0.0, "learning_rate": 1e-3})
        assert rates == pytest.approx([1e-3] * 3)

    def test_log_has_the_learning_rate_of_the_update_that_it_names(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        rates: list[float] = []
        with watched_optimizer(lambda optimizer: rates.append(float(optimizer.param_groups[0]["lr"]))):
            log = quick(trajectories, tmp_path, steps=10, changes={"warmup": 1.0}).log
        assert log["learning_rate"] == pytest.approx([rates[int(step) - 1] for step in log["step"]])

    @pytest.mark.parametrize("clip", [1e-3, 1e6])
    def test_norm_of_the_gradient_is_clipped(self, trajectories: Trajectories, tmp_path: Path, clip: float) -> None:
        norms: list[float] = []

        def watch(optimizer: torch.optim.Optimizer) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norms.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm().item())

        with watched_optimizer(watch):
            quick(trajectories, tmp_path, steps=6, changes={"clip": clip})
        if clip < 1:
            assert norms == pytest.approx([clip] * 6, rel=1e-3)
        else:
            assert min(norms) > 1e-3 and len(set(norms)) == 6

    def test_every_weight_decays(self, trajectories: Trajectories, tmp_path: Path) -> None:
        # norms and biases too (paper, appendix A)
        one = {"warmup": 0.0, "learning_rate": 0.5}
        plain, decayed = (
            quick(trajectories, tmp_path / str(decay), steps=1, changes=one | {"weight_decay": decay}).policy
            for decay in (0.0, 0.125)
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = DecisionMetaMamba(plain.config)  # type: ignore[arg-type]
        for ours, without, before in zip(decayed.parameters(), plain.parameters(), start.parameters(), strict=True):
            torch.testing.assert_close(ours, without - 0.5 * 0.125 * before)

    def test_frozen_mixer_is_not_touched(self, trajectories: Trajectories, tmp_path: Path) -> None:
        name = "blocks.0.local_mixer.linear.weight"
        runs = [quick(trajectories, tmp_path / str(n), steps=n, changes={"train_dsm": False}) for n in (1, 9)]
        first, later = (run.policy.state_dict() for run in runs)
        assert torch.equal(first[name], later[name]) and not torch.equal(first["head.weight"], later["head.weight"])


class TestSeeds:
    def test_same_seed_same_run(self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path) -> None:
        torch.manual_seed(123)  # what the caller's generator holds does not matter
        quick(trajectories, tmp_path)
        assert_same_run(tmp_path, undisturbed.path)

    def test_other_seed_other_start_and_other_windows(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        other = quick(trajectories, tmp_path, seed=1)
        assert not torch.equal(other.policy.embed_state.weight, undisturbed.policy.embed_state.weight)
        (ours, _), (theirs, _) = read(tmp_path), read(undisturbed.path)
        assert not torch.equal(ours["generator.sampler"], theirs["generator.sampler"])

    @pytest.mark.parametrize("ends_badly", [False, True])
    def test_global_generators_are_left_alone(
        self, trajectories: Trajectories, tmp_path: Path, ends_badly: bool
    ) -> None:
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes())
        with replaced_loss(interrupt_at(5 if ends_badly else 0)):
            try:
                quick(trajectories, tmp_path)
            except Interrupted:
                assert ends_badly
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tobytes()) == before[1:]


def several(
    data: Trajectories, out: Path, seeds: Sequence[int] = (3, 4, 5), changes: dict[str, Any] | None = None, **more: Any
) -> list[Run]:
    more = {"steps": STEPS, "device": "cpu", "progress": False} | more
    return train_seeds(data, seeds=seeds, out=out, changes=RESUMED | (changes or {}), **more)


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory, trajectories: Trajectories) -> list[Run]:
    """Runs of seeds 3, 4 and 5, one after the other, which stacked ones are compared with."""
    folder = tmp_path_factory.mktemp("separate")
    return [quick(trajectories, folder / f"seed{seed}", seed=seed) for seed in (3, 4, 5)]


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory, trajectories: Trajectories) -> list[Run]:
    """The same seeds as one program."""
    return several(trajectories, tmp_path_factory.mktemp("stacked"))


def assert_close_runs(ours: Run, expected: Run, rtol: float = 1e-4) -> None:
    """As one run of the same seed: generators and steps to the bit, losses, weights and moments to float tolerance."""
    (there, step), (wanted, wanted_step) = read(ours.path), read(expected.path)
    assert step == wanted_step == ours.step and there.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if name.startswith(("generator.", "optimizer.step.")):
            assert torch.equal(there[name], tensor), name
        else:
            torch.testing.assert_close(there[name], tensor, rtol=rtol, atol=1e-6, msg=name)
    np.testing.assert_allclose(ours.log["loss"], expected.log["loss"], rtol=rtol)
    assert ours.log["step"].tolist() == expected.log["step"].tolist()
    assert ours.log["learning_rate"].tolist() == expected.log["learning_rate"].tolist()


class TestSeveralSeeds:
    @pytest.mark.parametrize(
        ("model", "changes"),
        [
            *((name, {}) for name in ("dt", "mamba", "dmm-paper", "dmm-released")),
            ("dmm", {"local_mixer": "depthwise"}),
            ("dmm", {"local_mixer": "multimodal"}),
            ("dmm", {"share_dsm": True, "share_norms": True}),
            ("dmm", {"share_dsm": True, "train_dsm": False}),
        ],
        ids=str,
    )
    def test_each_is_the_run_of_its_seed(
        self, trajectories: Trajectories, tmp_path: Path, model: str, changes: dict[str, Any]
    ) -> None:
        sizes = {name: value for name, value in RESUMED.items() if name != "ssm_state"}
        options: dict[str, Any] = {"model": model, "steps": 8, "changes": sizes | {"dropout": 0.3} | changes}
        more: dict[str, Any] = {"device": "cpu", "progress": False}
        runs = train_seeds(trajectories, seeds=[7, 1], out=tmp_path, **options, **more)
        for seed, run in zip((7, 1), runs, strict=True):
            alone = train(trajectories, seed=seed, out=tmp_path / f"alone{seed}", **options, **more)
            assert_close_runs(run, alone)

    def test_over_200_updates(self, trajectories: Trajectories, tmp_path: Path) -> None:
        more: dict[str, Any] = {"steps": 200, "changes": {"layers": 1, "learning_rate": 1e-3}}
        for run in several(trajectories, tmp_path, seeds=(3, 4), **more):
            seed = run.info["training"]["seed"]
            assert_close_runs(run, quick(trajectories, tmp_path / f"alone{seed}", seed=seed, **more))

    def test_each_has_a_folder_like_that_of_a_single_run(self, stacked: list[Run], separate: list[Run]) -> None:
        for run, alone in zip(stacked, separate, strict=True):
            assert_close_runs(run, alone)
            assert run.path.name == alone.path.name and run.info == alone.info and not run.policy.training
            assert sorted(file.name for file in run.path.iterdir()) == sorted(f.name for f in alone.path.iterdir())
            assert (run.path / "run.json").read_text() == (alone.path / "run.json").read_text()
            loaded = load_run(run.path).policy
            assert all(torch.equal(w, loaded.state_dict()[name]) for name, w in run.policy.state_dict().items())

    def test_returned_policies_share_no_memory(self, stacked: list[Run]) -> None:
        weights = [weight for run in stacked for weight in run.policy.parameters()]
        assert len({weight.untyped_storage().data_ptr() for weight in weights}) == len(weights)

    def test_an_interrupted_program_goes_on_to_the_same_bits(
        self, stacked: list[Run], trajectories: Trajectories, tmp_path: Path
    ) -> None:
        with replaced_loss(interrupt_at(15)), pytest.raises(Interrupted):
            several(trajectories, tmp_path)
        with replaced_loss(interrupt_at(0)) as updates:
            resumed = several(trajectories, tmp_path, resume=True)
        assert len(updates) == STEPS - 12
        for run, undisturbed in zip(resumed, stacked, strict=True):
            assert_same_run(run.path, undisturbed.path)

    def test_interrupted_while_it_saves_the_seeds_behind_are_trained_first(
        self, separate: list[Run], trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write, saved = run_folder.write_checkpoint, []

        def stop_at_the_fifth(path: Path, *arguments: Any) -> None:
            saved.append(path)
            if len(saved) == 5:  # of the second time: the first seed has its checkpoint of step 12
                raise Interrupted
            write(path, *arguments)

        monkeypatch.setattr(run_folder, "write_checkpoint", stop_at_the_fifth)
        with pytest.raises(Interrupted):
            several(trajectories, tmp_path)
        monkeypatch.setattr(run_folder, "write_checkpoint", write)
        assert [read(tmp_path / f"seed{seed}")[1] for seed in (3, 4, 5)] == [12, 6, 6]
        with replaced_loss(interrupt_at(0)) as updates:
            resumed = several(trajectories, tmp_path, resume=True)
        assert len(updates) == (12 - 6) + (STEPS - 12)
        for run, alone in zip(resumed, separate, strict=True):
            assert_close_runs(run, alone)

    def test_runs_begun_by_themselves_go_on_together_and_the_other_way_round(
        self, separate: list[Run], trajectories: Trajectories, tmp_path: Path
    ) -> None:
        shutil.copytree(separate[0].path, tmp_path / "seed3")  # finished; 4 is at step 18 and 5 has not begun
        with replaced_loss(interrupt_at(19)), pytest.raises(Interrupted):
            quick(trajectories, tmp_path / "seed4", seed=4)
        with replaced_loss(interrupt_at(28)), pytest.raises(Interrupted):
            several(trajectories, tmp_path, resume=True)
        steps = [read(tmp_path / f"seed{seed}")[1] for seed in (3, 4, 5)]
        assert steps == [30, 24, 24]  # 18 updates of seed 5, then of both
        assert_same_run(tmp_path / "seed3", separate[0].path)
        for seed, alone in zip((4, 5), separate[1:], strict=True):
            assert_close_runs(quick(trajectories, tmp_path / f"seed{seed}", seed=seed, resume=True), alone)

    def test_finished_ones_are_returned_at_once(
        self, stacked: list[Run], trajectories: Trajectories, tmp_path: Path
    ) -> None:
        for run in stacked:
            shutil.copytree(run.path, tmp_path / run.path.name)
        with replaced_loss(interrupt_at(1)) as updates:
            again = several(trajectories, tmp_path, resume=True)
        assert updates == [] and [run.step for run in again] == [STEPS] * 3

    def test_one_that_diverges_is_named_and_every_checkpoint_is_kept(
        self, separate: list[Run], trajectories: Trajectories, tmp_path: Path
    ) -> None:
        factor = torch.tensor([1.0, float("nan"), 1.0])
        with (
            replaced_loss(lambda p, w, number: action_loss(p, w) * (factor if number >= 10 else 1.0)),
            pytest.raises(RunError, match=r"^loss of seed 4: nan between steps 9 and 10; the checkpoint of step 6"),
        ):
            several(trajectories, tmp_path)
        assert [read(tmp_path / f"seed{seed}")[1] for seed in (3, 4, 5)] == [6, 6, 6]
        resumed = several(trajectories, tmp_path, seeds=(3, 5), resume=True)
        for run, alone in zip(resumed, (separate[0], separate[2]), strict=True):
            assert_close_runs(run, alone)

    def test_weights_that_are_not_finite_are_never_saved(self, trajectories: Trajectories, tmp_path: Path) -> None:
        def loss(predicted: Tensor, windows: Windows, number: int) -> Tensor:
            plain = action_loss(predicted, windows)
            return plain + torch.sqrt(0 * plain[2:]) * torch.tensor([0.0, 0.0, 1.0]) if number == 6 else plain

        with replaced_loss(loss), pytest.raises(RunError, match=r"^weights of seed 5: not finite after step 6"):
            several(trajectories, tmp_path)
        assert list(tmp_path.glob("*/checkpoint.safetensors")) == []

    def test_models_that_cannot_be_stacked_are_trained_one_after_the_other(
        self,
        separate: list[Run],
        trajectories: Trajectories,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def refuse(*arguments: Any) -> Policy:
            raise InputError("policies: got a layer GRU, allowed are others")

        monkeypatch.setattr(training, "stack", refuse)
        runs = several(trajectories, tmp_path)
        for run, alone in zip(runs, separate, strict=True):
            assert_same_run(run.path, alone.path)
        said = capsys.readouterr()
        assert said.out == "" and said.err.splitlines() == [
            "dmm: seeds are trained one after the other: policies: got a layer GRU, allowed are others"
        ]

    def test_global_generators_are_left_alone(self, trajectories: Trajectories, tmp_path: Path) -> None:
        before = torch.get_rng_state()
        several(trajectories, tmp_path, steps=2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_weights_are_kept_for_each(self, trajectories: Trajectories, tmp_path: Path) -> None:
        for run in several(trajectories, tmp_path, steps=9, changes={"keep_every": 3}):
            files = [file.name for file in sorted(run.path.glob("weights-*"))]
            assert files == [kept_name(step) for step in (3, 6, 9)]
            kept = load_run(run.path, 9).policy.state_dict()
            assert all(torch.equal(weight, kept[name]) for name, weight in run.policy.state_dict().items())

    def test_default_folders_are_those_of_single_runs(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        runs = train_seeds(trajectories, "dmm", seeds=[2], steps=1, changes=SMALL, device="cpu", progress=False)
        assert [run.path for run in runs] == [default_out("tiny/linear-v0", "dmm", 2)]

    def test_a_folder_with_another_run_is_refused_before_any_is_begun(
        self, separate: list[Run], trajectories: Trajectories, tmp_path: Path
    ) -> None:
        shutil.copytree(separate[1].path, tmp_path / "seed4")
        with pytest.raises(InputError, match=r"^out: .*seed4 already holds a run"):
            several(trajectories, tmp_path)
        with pytest.raises(InputError, match=r"^resume: .*seed4 holds another run \(training: clip is 0.25 there, 1.0"):
            several(trajectories, tmp_path, changes={"clip": 1.0}, resume=True)
        assert [folder.name for folder in tmp_path.iterdir()] == ["seed4"]

    @pytest.mark.parametrize("seeds", [(), (1, 2, 1)])
    def test_seeds_must_differ(self, trajectories: Trajectories, tmp_path: Path, seeds: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"^seeds: got \[.*\], allowed are different seeds, at least one"):
            several(trajectories, tmp_path, seeds=seeds)

    def test_wrong_seed_is_named(self, trajectories: Trajectories, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^seed: got -1, allowed is a whole number from 0 to"):
            several(trajectories, tmp_path / "runs", seeds=(0, -1))
        assert not (tmp_path / "runs").exists()

    def test_progress_has_one_bar_with_the_mean_loss(
        self, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs = several(trajectories, tmp_path, progress=True)
        said = capsys.readouterr()
        mean = np.mean([run.log["loss"][-1] for run in runs])
        assert said.out == "" and "30/30" in said.err and f"loss={mean:.4f}" in said.err.splitlines()[-1]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    @pytest.mark.parametrize("model", ["dmm", "dt", "mamba"])
    def test_on_cuda_each_is_the_run_of_its_seed_and_resumes(
        self, trajectories: Trajectories, tmp_path: Path, model: str
    ) -> None:
        sizes = {name: value for name, value in RESUMED.items() if name != "ssm_state"}
        options: dict[str, Any] = {"model": model, "device": "cuda", "progress": False, "changes": sizes}
        runs = train_seeds(trajectories, seeds=[3, 4], steps=30, out=tmp_path, **options)
        for seed, run in zip((3, 4), runs, strict=True):
            alone = train(trajectories, seed=seed, steps=30, out=tmp_path / f"alone{seed}", **options)
            assert_close_runs(run, alone, rtol=1e-3)
        write = run_folder.write_checkpoint
        with pytest.MonkeyPatch.context() as patch:

            def stop(path: Path, *arguments: Any) -> None:
                write(path, *arguments)
                raise Interrupted

            patch.setattr(run_folder, "write_checkpoint", stop)
            with pytest.raises(Interrupted):
                train(trajectories, seed=3, steps=30, out=tmp_path / "again", **options)
        train(trajectories, seed=3, steps=30, out=tmp_path / "again", resume=True, **options)
        assert_same_run(tmp_path / "again", tmp_path / "alone3")


KILLED_RUN = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from dmm import policy
from dmm.training import run as run_folder
from tests.conftest import tiny_trajectories
from tests.training.test_training import quick

where, out = sys.argv[1], Path(sys.argv[2])
loss, replace, count = policy.action_loss, os.replace, {"updates": 0, "checkpoints": 0}

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def counted_loss(*arguments):
    count["updates"] += 1
    if where == "between two checkpoints" and count["updates"] == 16:
        kill()
    return loss(*arguments)

def counted_replace(source, target):
    count["checkpoints"] += Path(target).name == "checkpoint.safetensors"
    if where == "log written, checkpoint not" and count["checkpoints"] == 3:
        kill()
    replace(source, target)

policy.action_loss, os.replace = counted_loss, counted_replace
quick(tiny_trajectories(), out)
"""


class TestResume:
    @pytest.mark.parametrize("where", ["between two checkpoints", "log written, checkpoint not"])
    def test_after_sigkill_equals_an_undisturbed_run(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path, where: str
    ) -> None:
        out = tmp_path / "run"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        killed = subprocess.run([sys.executable, "-c", KILLED_RUN, where, str(out)], env=environment, cwd=tmp_path)
        assert killed.returncode == -signal.SIGKILL
        assert read(out)[1] == 12  # the last of its checkpoints, every 6 updates
        torch.manual_seed(99)
        resumed = quick(trajectories, out, resume=True)
        assert resumed.step == STEPS and not resumed.policy.training
        assert_same_run(out, undisturbed.path)

    @pytest.mark.parametrize("update", [1, 6, 7, 30])
    def test_after_an_exception_equals_an_undisturbed_run(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path, update: int
    ) -> None:
        with replaced_loss(interrupt_at(update)), pytest.raises(Interrupted):
            quick(trajectories, tmp_path)
        with replaced_loss(interrupt_at(0)) as updates:
            quick(trajectories, tmp_path, resume=True)
        assert len(updates) == STEPS - (update - 1) // 6 * 6  # work since the last checkpoint is done again, no more
        assert_same_run(tmp_path, undisturbed.path)

    def test_may_be_interrupted_again_and_again(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        for _ in range(3):
            with replaced_loss(interrupt_at(8)), pytest.raises(Interrupted):
                quick(trajectories, tmp_path, resume=True)
        quick(trajectories, tmp_path, resume=True)
        assert_same_run(tmp_path, undisturbed.path)

    def test_of_a_finished_run_returns_it_at_once(self, trajectories: Trajectories, tmp_path: Path) -> None:
        run = quick(trajectories, tmp_path)
        before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()}
        with replaced_loss(interrupt_at(1)) as updates:
            again = quick(trajectories, tmp_path, resume=True)
        assert updates == [] and again.step == STEPS
        assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.iterdir()} == before
        for name, weight in run.policy.state_dict().items():
            assert torch.equal(again.policy.state_dict()[name], weight)

    def test_where_nothing_is_yet_begins_a_run(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        quick(trajectories, tmp_path / "new", resume=True)
        assert_same_run(tmp_path / "new", undisturbed.path)

    def test_seconds_add_up(self, trajectories: Trajectories, tmp_path: Path) -> None:
        with replaced_loss(interrupt_at(13)), pytest.raises(Interrupted):
            quick(trajectories, tmp_path)
        seconds = quick(trajectories, tmp_path, resume=True).log["seconds"]
        assert bool((np.diff(seconds) >= 0).all())

    def test_is_asked_for_before_a_run_is_touched(self, undisturbed: Run, trajectories: Trajectories) -> None:
        before = (undisturbed.path / "checkpoint.safetensors").read_bytes()
        with pytest.raises(InputError, match=r"^out: .* already holds a run; --resume goes on with it"):
            quick(trajectories, undisturbed.path)
        assert (undisturbed.path / "checkpoint.safetensors").read_bytes() == before

    def test_with_other_data_is_refused(self, undisturbed: Run, make_trajectories: MakeTrajectories) -> None:
        with pytest.raises(InputError, match=r"^resume: the checkpoint in .* is of data set 'tiny/linear-v0' \("):
            quick(make_trajectories(seed=1), undisturbed.path, resume=True)

    @pytest.mark.parametrize(
        ("more", "differing"),
        [
            ({"seed": 1}, "training: seed is 0 there, 1 asked for"),
            ({"model": "mamba"}, "model: 'dmm' there, 'mamba' asked for"),
            ({"changes": {"width": 16}}, "config: width is 8 there, 16 asked for"),
            (
                {"changes": {"batch_size": 9, "clip": 1.0}},
                "training: batch_size is 8 .*, clip is 0.25 there, 1.0 asked",
            ),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_of_another_run_is_refused(
        self, undisturbed: Run, trajectories: Trajectories, more: dict[str, Any], differing: str
    ) -> None:
        with pytest.raises(InputError, match=rf"^resume: .* holds another run \({differing}") as caught:
            quick(trajectories, undisturbed.path, resume=True, **more)
        assert "\n" not in str(caught.value)

    def test_from_a_truncated_checkpoint_is_refused(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        shutil.copytree(undisturbed.path, tmp_path / "run")
        file = tmp_path / "run" / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(InputError, match=r"^checkpoint: .* is damaged or truncated"):
            quick(trajectories, tmp_path / "run", resume=True)

    @pytest.mark.parametrize("damage", [None, "step,loss\n1,x\n"])
    def test_from_a_damaged_log_is_refused(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path, damage: str | None
    ) -> None:
        shutil.copytree(undisturbed.path, tmp_path / "run")
        log = tmp_path / "run" / "log.csv"
        log.unlink() if damage is None else log.write_text(damage)
        with pytest.raises(InputError, match=r"log\.csv"):
            quick(trajectories, tmp_path / "run", resume=True)


class TestFurther:
    """A run that is resumed with more steps."""

    def test_goes_on_with_the_warm_up_that_it_had(self, trajectories: Trajectories, tmp_path: Path) -> None:
        quick(trajectories, tmp_path, steps=12, changes={"warmup": 1.0, "learning_rate": 1.2e-3, "log_every": 1})
        run = quick(
            trajectories,
            tmp_path,
            steps=18,
            resume=True,
            changes={"warmup": 1.0, "learning_rate": 1.2e-3, "log_every": 1},
        )
        assert run.step == read(tmp_path)[1] == 18 and run.log["step"].tolist() == list(range(1, 19))
        np.testing.assert_allclose(run.log["learning_rate"], [min(n, 12) * 1e-4 for n in range(1, 19)])
        info = json.loads((tmp_path / "run.json").read_text())
        assert info["training"]["steps"] == 18 and info["first_steps"] == 12 and info == run.info
        assert load_run(tmp_path).step == 18

    def test_without_a_number_of_steps_goes_on_to_the_end_that_it_had(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        with replaced_loss(interrupt_at(8)), pytest.raises(Interrupted):
            quick(trajectories, tmp_path)
        assert quick(trajectories, tmp_path, steps=None, resume=True).step == STEPS  # type: ignore[arg-type]
        assert_same_run(tmp_path, undisturbed.path)

    def test_may_be_interrupted_at_any_time(self, trajectories: Trajectories, tmp_path: Path) -> None:
        for name in ("straight", "stopped"):
            quick(trajectories, tmp_path / name, steps=6)
        quick(trajectories, tmp_path / "straight", steps=18, resume=True)
        for update in (1, 8):
            with replaced_loss(interrupt_at(update)), pytest.raises(Interrupted):
                quick(trajectories, tmp_path / "stopped", steps=18, resume=True)
        quick(trajectories, tmp_path / "stopped", steps=18, resume=True)
        assert_same_run(tmp_path / "stopped", tmp_path / "straight")
        assert (tmp_path / "stopped/run.json").read_text() == (tmp_path / "straight/run.json").read_text()

    def test_rows_of_the_log_are_means_over_what_follows_the_old_end(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        logs = {}
        for every in (1, 4):
            changes = {"log_every": every, "checkpoint_every": 8, "warmup": 0.0}
            quick(trajectories, tmp_path / str(every), steps=9, changes=changes)
            logs[every] = quick(trajectories, tmp_path / str(every), steps=16, resume=True, changes=changes).log
        assert logs[4]["step"].tolist() == [4, 8, 9, 12, 16]
        np.testing.assert_allclose(logs[4]["loss"][3], logs[1]["loss"][9:12].mean(), rtol=1e-6)

    def test_fewer_steps_than_it_has_are_refused(self, trajectories: Trajectories, tmp_path: Path) -> None:
        quick(trajectories, tmp_path, steps=12)
        before = (tmp_path / "run.json").read_bytes()
        with pytest.raises(InputError, match=r"^steps: got 6, allowed are 12, which .* has already, or more$"):
            quick(trajectories, tmp_path, steps=6, resume=True)
        assert (tmp_path / "run.json").read_bytes() == before

    def test_several_seeds_each_keep_their_warm_up(self, trajectories: Trajectories, tmp_path: Path) -> None:
        changes = {"warmup": 1.0, "log_every": 1}
        several(trajectories, tmp_path, seeds=(3, 4), steps=6, changes=changes)
        runs = several(trajectories, tmp_path, steps=12, changes=changes, resume=True)  # seed 5 is new
        for run, warm_up in zip(runs, (6, 6, 12), strict=True):
            rates = [1e-4 * min(1.0, step / warm_up) for step in range(1, 13)]
            np.testing.assert_allclose(run.log["learning_rate"], rates)


STILL: dict[str, Any] = {"learning_rate": 1e-30, "weight_decay": 0.0}
"""With these an update changes no weight."""


class TestStartFrom:
    """A new run that starts from another's weights."""

    def test_begins_as_the_policy_that_the_other_run_ended_with(
        self, undisturbed: Run, make_trajectories: MakeTrajectories, tmp_path: Path
    ) -> None:
        other = make_trajectories(seed=1, scale=100.0)  # other moments, another scale of returns
        run = quick(other, tmp_path, steps=1, start_from=undisturbed.path, changes=STILL)
        for name, tensor in undisturbed.policy.state_dict().items():
            assert torch.equal(run.policy.state_dict()[name], tensor), name
        assert run.policy.config == undisturbed.policy.config
        said = json.loads((tmp_path / "run.json").read_text())["from"]
        assert said["run"] == str(undisturbed.path) and said["step"] == STEPS
        assert said["dataset"]["fingerprint"] == undisturbed.info["dataset"]["fingerprint"] != other.fingerprint()

    def test_takes_a_run_as_it_is_in_memory(self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path) -> None:
        doubled = load_run(undisturbed.path)
        with torch.no_grad():
            doubled.policy.head.weight.mul_(2)
        run = quick(trajectories, tmp_path, steps=1, start_from=doubled, changes=STILL)
        assert torch.equal(run.policy.head.weight, 2 * undisturbed.policy.head.weight)

    @pytest.mark.parametrize(
        ("data", "more", "message"),
        [
            ({}, {"model": "mamba"}, "^from: .* differs in its model: 'dmm' there, 'mamba' asked for"),
            ({"state_size": 5}, {}, "^from: .* differs in its state_size: 4 there, 5 asked for"),
            ({"action_size": 1}, {}, "^from: .* differs in its action_size: 2 there, 1 asked for"),
            ({}, {"changes": {"width": 16}}, r"^from: \d+ weights of .* do not fit \(width is 8 there, 16 asked for\)"),
        ],
    )
    def test_what_differs_is_named_and_nothing_is_begun(
        self,
        undisturbed: Run,
        make_trajectories: MakeTrajectories,
        tmp_path: Path,
        data: dict[str, Any],
        more: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(InputError, match=message):
            quick(make_trajectories(**data), tmp_path / "run", start_from=undisturbed.path, **more)
        assert not (tmp_path / "run").exists()

    def test_is_resumed_to_the_same_bits_named_again_or_not(
        self, undisturbed: Run, separate: list[Run], trajectories: Trajectories, tmp_path: Path
    ) -> None:
        start = {"start_from": undisturbed.path}
        quick(trajectories, tmp_path / "straight", steps=18, **start)
        for name, again in (("named", start), ("not named", {})):
            with replaced_loss(interrupt_at(8)), pytest.raises(Interrupted):
                quick(trajectories, tmp_path / name, steps=18, **start)
            quick(trajectories, tmp_path / name, steps=18, resume=True, **again)
            assert_same_run(tmp_path / name, tmp_path / "straight")
        with pytest.raises(InputError, match=r"^resume: .* started from .*undisturbed \(.*seed3 \(.*without --from"):
            quick(trajectories, tmp_path / "named", steps=18, resume=True, start_from=separate[0].path)

    def test_before_its_first_checkpoint_the_other_run_must_be_named_again(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        with replaced_loss(interrupt_at(2)), pytest.raises(Interrupted):
            quick(trajectories, tmp_path, start_from=undisturbed.path)
        with pytest.raises(InputError, match=r"^from: .* has no checkpoint; name the run that it starts from"):
            quick(trajectories, tmp_path, resume=True)

    def test_several_seeds_start_from_one_run(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        for run in several(trajectories, tmp_path, steps=1, start_from=undisturbed, changes=STILL):
            assert torch.equal(run.policy.head.weight, undisturbed.policy.head.weight)


class TestApart:
    """Several seeds, each in a process of its own."""

    def test_each_is_bit_for_bit_the_run_of_its_seed(
        self,
        separate: list[Run],
        trajectories: Trajectories,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        shutil.copytree(separate[0].path, tmp_path / "seed3")  # finished, nothing to do
        monkeypatch.setattr("dmm.processes.LARGE", 100)  # so that the data are in files that both map
        runs = several(trajectories, tmp_path, workers=2, resume=True, progress=True)
        for run, alone in zip(runs, separate, strict=True):
            assert_same_run(run.path, alone.path)
            assert json.dumps(run.info) == json.dumps(alone.info) and not run.policy.training
            assert all(torch.equal(w, alone.policy.state_dict()[name]) for name, w in run.policy.state_dict().items())
        last = capsys.readouterr().err.splitlines()[-1]
        assert "60/60" in last and f"loss={np.mean([run.log['loss'][-1] for run in runs[1:]]):.4f}" in last

    def test_one_that_diverges_is_named_and_the_others_can_go_on(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        with pytest.raises(RunError, match=r"^(loss|weights) of seed [34]: .*a lower learning_rate"):
            several(trajectories, tmp_path, seeds=(3, 4), workers=2, changes={"learning_rate": 1e30})
        assert all((tmp_path / f"seed{seed}/run.json").exists() for seed in (3, 4))

    def test_models_from_elsewhere_are_one_program(self, trajectories: Trajectories, tmp_path: Path) -> None:
        class Mine(DecisionMetaMamba):
            pass

        own = dataclasses.replace(find_model("dmm"), policy=Mine)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "mine", own)
            runs = several(trajectories, tmp_path, seeds=(3, 4), model="mine", steps=2, workers=2)
        assert all(type(run.policy) is Mine for run in runs)


class TestFailure:
    @pytest.mark.parametrize(("fails_at", "kept"), [(3, 2), (4, 2), (5, 4), (6, 4)])
    def test_loss_that_is_not_finite_ends_the_run_and_keeps_its_checkpoint(
        self, trajectories: Trajectories, tmp_path: Path, fails_at: int, kept: int
    ) -> None:
        often = {"log_every": 1, "checkpoint_every": 2}
        with (
            replaced_loss(lambda p, w, number: action_loss(p, w) * (float("nan") if number >= fails_at else 1.0)),
            pytest.raises(RunError, match=rf"^loss: nan between steps {fails_at} and {fails_at};") as caught,
        ):
            quick(trajectories, tmp_path, changes=often)
        assert read(tmp_path)[1] == kept
        assert f"the checkpoint of step {kept} is kept" in str(caught.value) and "\n" not in str(caught.value)
        assert all(bool(tensor.isfinite().all()) for tensor in read(tmp_path)[0].values())

    def test_goes_on_from_the_kept_checkpoint_once_the_cause_is_gone(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        with (
            replaced_loss(lambda p, w, number: action_loss(p, w) / (number < 15)),
            pytest.raises(RunError, match=r"^loss: (inf|nan) between steps 15 and 16"),
        ):
            quick(trajectories, tmp_path)
        quick(trajectories, tmp_path, resume=True)
        assert_same_run(tmp_path, undisturbed.path)

    def test_before_the_first_checkpoint_promises_none(self, trajectories: Trajectories, tmp_path: Path) -> None:
        with replaced_loss(lambda p, w, number: action_loss(p, w) * float("nan")), pytest.raises(RunError) as caught:
            quick(trajectories, tmp_path)
        assert not (tmp_path / "checkpoint.safetensors").exists()
        assert "is kept" not in str(caught.value)

    def test_learning_rate_that_is_far_too_high_is_a_failed_run(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        with pytest.raises(RunError, match=r"a lower learning_rate \(now 1e\+30\)"):
            quick(trajectories, tmp_path, changes={"learning_rate": 1e30})

    def test_weights_that_are_not_finite_are_never_saved(self, trajectories: Trajectories, tmp_path: Path) -> None:
        # the loss of update 6 is finite and its gradient is not; after it a checkpoint is due
        def loss(predicted: Tensor, windows: Windows, number: int) -> Tensor:
            plain = action_loss(predicted, windows)
            return plain + torch.sqrt(0 * plain) if number == 6 else plain

        with replaced_loss(loss), pytest.raises(RunError):
            quick(trajectories, tmp_path)
        if (tmp_path / "checkpoint.safetensors").exists():
            assert all(bool(tensor.isfinite().all()) for tensor in read(tmp_path)[0].values())

    @pytest.mark.parametrize("below", ["", "run", "a/b/run"])
    def test_folder_that_cannot_be_made_is_named(self, trajectories: Trajectories, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(InputError, match=r"^out: .* cannot be written \(.+\)"):
            quick(trajectories, tmp_path / "file" / below)

    @pytest.mark.parametrize("keep_every", [0, 4])
    def test_folder_that_is_gone_while_training_is_a_failed_run(
        self, trajectories: Trajectories, tmp_path: Path, keep_every: int
    ) -> None:
        def loss(predicted: Tensor, windows: Windows, number: int) -> Tensor:
            if number == 3:
                shutil.rmtree(tmp_path / "run")
            return action_loss(predicted, windows)

        with replaced_loss(loss), pytest.raises(RunError, match=r"^checkpoint: .* cannot be written"):
            quick(trajectories, tmp_path / "run", changes={"keep_every": keep_every})


class TestRunFolder:
    def test_holds_three_files_and_nothing_else(self, undisturbed: Run) -> None:
        assert sorted(file.name for file in undisturbed.path.iterdir()) == [
            "checkpoint.safetensors",
            "log.csv",
            "run.json",
        ]

    def test_run_json_describes_data_model_and_training(self, undisturbed: Run, trajectories: Trajectories) -> None:
        info = json.loads((undisturbed.path / "run.json").read_text())
        assert info == json.loads(json.dumps(undisturbed.info))
        assert info["model"] == "dmm" and info["training"]["steps"] == STEPS and info["config"]["width"] == 8
        data = info["dataset"]
        assert data["id"] == "tiny/linear-v0" and data["fingerprint"] == trajectories.fingerprint()
        assert data["transitions"] == 32 and data["max_return"] == pytest.approx(trajectories.returns().max())
        assert data["mean_return"] == pytest.approx(trajectories.returns().mean())

    def test_log_has_a_row_per_interval(self, undisturbed: Run) -> None:
        log = undisturbed.log
        assert log["step"].tolist() == list(range(2, STEPS + 1, 2))
        assert set(log) == {"step", "loss", "learning_rate", "seconds"} and bool((log["loss"] > 0).all())

    def test_last_steps_are_logged_and_saved_whatever_the_intervals(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        run = quick(trajectories, tmp_path, steps=9, changes={"log_every": 4, "checkpoint_every": 8})
        assert run.log["step"].tolist() == [4, 8, 9] and read(tmp_path)[1] == run.step == 9

    def test_row_of_the_log_is_the_mean_over_its_interval(self, trajectories: Trajectories, tmp_path: Path) -> None:
        each, three = (
            quick(trajectories, tmp_path / str(n), steps=8, changes={"log_every": n, "checkpoint_every": 6}).log["loss"]
            for n in (1, 3)
        )
        np.testing.assert_allclose(three, [each[:3].mean(), each[3:6].mean(), each[6:].mean()], rtol=1e-6)

    def test_default_folder_names_data_model_and_seed(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run = train(trajectories, "mamba", steps=1, seed=3, changes=SMALL, device="cpu", progress=False)
        assert run.path == default_out("tiny/linear-v0", "mamba", 3) == Path("runs/tiny_linear-v0/mamba-seed3")
        assert (tmp_path / run.path / "checkpoint.safetensors").exists()

    def test_progress_goes_to_stderr(
        self, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        quick(trajectories, tmp_path / "loud", progress=True)
        loud = capsys.readouterr()
        quick(trajectories, tmp_path / "quiet")
        quiet = capsys.readouterr()
        assert loud.out == quiet.out == quiet.err == "" and "train: 100%" in loud.err and "30/30" in loud.err


class TestKeepEvery:
    def test_keeps_weights_beside_the_last(self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path) -> None:
        run = quick(trajectories, tmp_path, changes={"keep_every": 10})
        assert sorted(file.name for file in tmp_path.glob("weights-*")) == [
            f"weights-{step:07d}.safetensors" for step in (10, 20, 30)
        ]
        for name, weight in undisturbed.policy.state_dict().items():
            assert torch.equal(run.policy.state_dict()[name], weight)
            assert torch.equal(load_run(tmp_path, 30).policy.state_dict()[name], weight)

    def test_kept_weights_are_those_of_their_step(self, trajectories: Trajectories, tmp_path: Path) -> None:
        quick(trajectories, tmp_path / "long", changes={"keep_every": 9, "warmup": 0.0})
        short = quick(trajectories, tmp_path / "short", steps=18, changes={"warmup": 0.0})
        kept = load_run(tmp_path / "long", 18)
        assert kept.step == 18
        for name, weight in short.policy.state_dict().items():
            assert torch.equal(kept.policy.state_dict()[name], weight)

    def test_step_that_was_not_kept_is_named(self, undisturbed: Run) -> None:
        with pytest.raises(InputError, match=r"^checkpoint: .*weights-0000010.safetensors does not exist"):
            load_run(undisturbed.path, 10)


class TestLoadRun:
    def test_equals_the_run_that_train_returned(self, undisturbed: Run, trajectories: Trajectories) -> None:
        loaded = load_run(str(undisturbed.path))
        windows = WindowSampler(trajectories, 4, generator=torch.Generator()).sample(5)
        assert torch.equal(loaded.policy(windows), undisturbed.policy(windows))
        assert loaded.step == STEPS and loaded.info == json.loads(json.dumps(undisturbed.info))
        assert not loaded.policy.training and not undisturbed.policy.training

    def test_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^run: no run at .*nowhere \(run.json is missing\)"):
            load_run(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "cannot be read"),
            ("[]", "got a list of 0 entries, allowed is a JSON object"),
            ("{}", "lacks config, dataset, model, training"),
            ('{"model": "dmm", "config": {}, "training": {}}', "lacks dataset"),
            ('{"model": "dmm", "config": {"depth": 1}, "training": {}, "dataset": {}}', "does not fit this version"),
        ],
    )
    def test_damaged_description_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=rf"^run: .*run\.json:?.* {message}"):
            load_run(tmp_path)

    def test_description_that_is_not_text_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match=r"^run: .*run\.json cannot be read"):
            load_run(tmp_path)

    def test_unknown_model_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"model": "gpt", "config": {}, "training": {}, "dataset": {}}')
        with pytest.raises(InputError, match=r"^run: .*run\.json: model: got 'gpt'"):
            load_run(tmp_path)

    def test_run_without_a_checkpoint_says_so(self, undisturbed: Run, tmp_path: Path) -> None:
        shutil.copy(undisturbed.path / "run.json", tmp_path)
        with pytest.raises(InputError, match=r"^checkpoint: .* does not exist"):
            load_run(tmp_path)


class TestArguments:
    def test_dataset_may_be_an_id(
        self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = {"tiny/linear-v0": trajectories}
        monkeypatch.setattr(plan, "load_trajectories", known.__getitem__)
        quick("tiny/linear-v0", tmp_path)  # type: ignore[arg-type]
        assert_same_run(tmp_path, undisturbed.path)

    def test_numbers_may_be_numpys(self, separate: list[Run], trajectories: Trajectories, tmp_path: Path) -> None:
        numbers = {name: np.float64(value) if name == "width" else np.int64(value) for name, value in RESUMED.items()}
        options: dict[str, Any] = {"steps": np.float32(STEPS), "device": "cpu", "progress": False}
        run = train(trajectories, seed=np.int64(3), out=tmp_path / "one", changes=numbers, **options)  # type: ignore[arg-type]
        assert_same_run(run.path, separate[0].path)
        assert (run.path / "run.json").read_text() == (separate[0].path / "run.json").read_text()
        runs = several(trajectories, tmp_path / "many", seeds=np.arange(3, 5), steps=1)  # type: ignore[arg-type]
        assert [run.path.name for run in runs] == ["seed3", "seed4"]

    @pytest.mark.parametrize(
        "wrong",
        [{"steps": 10.5}, {"steps": True}, {"seed": None}, {"seed": "0"}, {"changes": {"width": 8.5}}],
        ids=str,
    )
    def test_what_is_no_number_is_refused_and_nothing_is_begun(
        self, trajectories: Trajectories, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        name = next(iter(wrong.get("changes", wrong)))
        with pytest.raises(InputError, match=f"^{name}: got "):
            quick(trajectories, tmp_path / "run", **wrong)
        assert not (tmp_path / "run").exists()

    def test_a_home_folder_may_be_written_as_a_tilde(
        self, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = tmp_path / "home dir ä"
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("USERPROFILE", str(home))
        monkeypatch.chdir(tmp_path)
        assert quick(trajectories, "~/runs/mine/", steps=1).path == home / "runs/mine"  # type: ignore[arg-type]
        assert load_run("~/runs/mine").step == 1
        several(trajectories, "~/many", seeds=(3,), steps=1, start_from="~/runs/mine")  # type: ignore[arg-type]
        assert (home / "many/seed3/run.json").exists() and [f.name for f in tmp_path.iterdir()] == ["home dir ä"]

    def test_unknown_model_is_named(self, trajectories: Trajectories, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^model: got 'gpt'"):
            quick(trajectories, tmp_path, model="gpt")

    def test_unknown_field_is_named_and_nothing_is_written(self, trajectories: Trajectories, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^set: no field 'depth'"):
            quick(trajectories, tmp_path / "run", changes={"depth": 3})
        assert not (tmp_path / "run").exists()

    def test_changes_may_be_text(self, undisturbed: Run, trajectories: Trajectories, tmp_path: Path) -> None:
        text = {name: str(value) for name, value in RESUMED.items()}
        train(trajectories, steps=STEPS, out=tmp_path, changes=text, device="cpu", progress=False)
        assert_same_run(tmp_path, undisturbed.path)

    def test_actions_beyond_the_range_of_tanh_are_refused(self, trajectories: Trajectories, tmp_path: Path) -> None:
        data = dataclasses.replace(trajectories, actions=3 * trajectories.actions)
        with pytest.raises(InputError, match=r"^dataset: actions of 'tiny/linear-v0' reach 2\.\d+, allowed is -1 to 1"):
            quick(data, tmp_path)

    @pytest.mark.parametrize(("scale", "changes"), [(-1.5e38, {}), (1e30, {}), (1e3, {"rtg_scale": 1e-20})])
    def test_returns_beyond_float32_are_refused_before_anything_is_written(
        self, make_trajectories: MakeTrajectories, tmp_path: Path, scale: float, changes: dict[str, float]
    ) -> None:
        with pytest.raises(InputError, match=r"^rewards: the returns-to-go of 'tiny/linear-v0' reach"):
            quick(make_trajectories(scale=scale), tmp_path / "run", changes=changes)
        assert not (tmp_path / "run").exists()

    def test_a_selection_of_episodes_is_trained_on(self, datasets_path: Path, tmp_path: Path) -> None:
        rng, ends = np.random.default_rng(0), np.tile([0, 0, 1], 4)
        rows = rng.normal(size=(12, 3)), rng.uniform(-1, 1, (12, 2)), np.arange(12.0), ends, 0 * ends
        write_dataset("mine/all-v0", *rows, progress=False)
        view = minari.load_dataset("mine/all-v0").filter_episodes(lambda episode: bool(episode.rewards[0] > 4))
        run = train(view, steps=2, out=tmp_path / "run", changes=SMALL, device="cpu", progress=False)
        assert run.info["dataset"]["transitions"] == 6 and run.info["dataset"]["id"] == "mine/all-v0"

    @pytest.mark.parametrize("device", ["tpu", "cuda:99", "meta"])
    def test_device_that_is_not_there_is_named(self, trajectories: Trajectories, tmp_path: Path, device: str) -> None:
        with pytest.raises(InputError, match=f"^device: got '{device}', allowed are auto, cpu") as caught:
            quick(trajectories, tmp_path, device=device)
        assert "\n" not in str(caught.value)

    def test_auto_device_is_cuda_where_there_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for available, kind in ((True, "cuda"), (False, "cpu")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
            assert choose_device("auto").type == kind
        assert choose_device("cpu").type == "cpu"

    @pytest.mark.parametrize(
        ("scale", "expected"), [(1.0, 1.0), (100.0, 1000.0), (-100.0, 1000.0), (1e-3, 0.01), (-1e6, 1e7)]
    )
    def test_returns_decide_on_their_scale(
        self, make_trajectories: MakeTrajectories, tmp_path: Path, scale: float, expected: float
    ) -> None:
        data = make_trajectories(scale=scale)
        assert default_rtg_scale(data) == pytest.approx(expected)
        assert quick(data, tmp_path / "a", steps=1).policy.config.rtg_scale == pytest.approx(expected)
        assert quick(data, tmp_path / "b", steps=1, changes={"rtg_scale": 7.0}).policy.config.rtg_scale == 7.0

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *((name, value) for name in ("steps", "batch_size", "log_every", "checkpoint_every") for value in (0, -1)),
            *((name, value) for name in ("learning_rate", "epsilon") for value in (0.0, -1.0, float("nan"))),
            *(("clip", value) for value in (-1.0, float("nan"))),
            *(("beta2", value) for value in (-0.1, 1.0)),
            ("decay", "biases"),
            ("learning_rate", float("inf")),
            ("warmup", -0.1),
            ("warmup", 1.1),
            ("warmup", float("nan")),
            ("weight_decay", -0.1),
            ("weight_decay", float("nan")),
            ("keep_every", -1),
            ("checkpoint_every", 250),
        ],
    )
    def test_wrong_field_is_named(self, field: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"^{field}: got .*, allowed") as caught:
            TrainConfig(**{field: value})
        assert "\n" not in str(caught.value)

    def test_defaults_are_those_of_the_paper(self) -> None:
        config = TrainConfig()
        assert (config.steps, config.batch_size, config.learning_rate) == (100_000, 64, 1e-4)
        assert (config.warmup * config.steps, config.weight_decay, config.clip) == (10_000, 1e-4, 0.25)


def test_tiny_data_is_the_same_in_every_process(trajectories: Trajectories) -> None:
    assert tiny_trajectories().fingerprint() == trajectories.fingerprint()
