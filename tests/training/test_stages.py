"""Losses of several terms, and what is trained before a model: kept, resumed and taken over with the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmm.data.trajectories import Trajectories
from dmm.data.windows import RewardedWindows, WindowDraws
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.entry import Model, Stage
from dmm.models.registry import MODELS
from dmm.policy import Policy, action_loss, masked_mean, of_merged
from dmm.training import Run, load_run, train, train_seeds

SMALL: dict[str, Any] = {"width": 8, "layers": 1, "context": 4, "batch_size": 8, "log_every": 2, "checkpoint_every": 4}


class TwoTerms(DecisionMetaMamba):
    """Also predicts each step's reward."""

    batch = RewardedWindows
    terms = ("action", "reward")

    def __init__(self, config: DMMConfig):
        super().__init__(config)
        self.reward_head = nn.Linear(config.action_size, 1)

    def loss(self, batch: RewardedWindows) -> dict[str, Tensor]:
        predicted = of_merged(self, batch)
        reward = of_merged(lambda windows: self.reward_head(self(windows)), batch)
        return {
            "action": action_loss(predicted, batch),
            "reward": 0.5 * masked_mean((reward - batch.rewards).square(), batch.mask),
        }


class Valued(DecisionMetaMamba):
    """Keeps what its first stage learned as a frozen weight."""

    def __init__(self, config: DMMConfig):
        super().__init__(config)
        self.learned = nn.Parameter(torch.zeros(config.action_size), requires_grad=False)

    def adopt(self, stages: Sequence[Policy]) -> None:
        with torch.no_grad():
            self.learned.copy_(stages[0].head.bias)  # type: ignore[arg-type]


def relabelled(trajectories: Trajectories, config: Any, stages: Sequence[Policy]) -> Trajectories:
    """Rewards moved by a number that the first stage learned."""
    shift = float(stages[0].head.bias[0])  # type: ignore[index]
    return dataclasses.replace(trajectories, rewards=trajectories.rewards + np.float32(shift))


def shorter(config: DMMConfig) -> Mapping[str, Any]:
    return SMALL | {"steps": 6, "width": 4}


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"config": DMMConfig, "description": "for a test"}
    for model in (
        Model(name="two-terms", policy=TwoTerms, sampler=WindowDraws(RewardedWindows), **made),
        Model(name="first", policy=DecisionMetaMamba, hidden=True, **made),
        Model(name="valued", policy=Valued, before=(Stage("first", shorter),), prepare=relabelled, **made),
    ):
        monkeypatch.setitem(MODELS, model.name, model)


def quick(data: Trajectories, out: Path, model: str, steps: int = 8, **more: Any) -> Run:
    changes = SMALL | more.pop("changes", {})
    return train(data, model, steps=steps, out=out, changes=changes, device="cpu", progress=False, **more)


def same_weights(one: Policy, other: Policy) -> bool:
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


class TestTerms:
    def test_the_log_has_a_column_for_each_and_the_loss_is_their_sum(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        run = quick(trajectories, tmp_path / "run", "two-terms")
        assert list(run.log) == ["step", "loss", "learning_rate", "seconds", "action", "reward"]
        np.testing.assert_allclose(run.log["loss"], run.log["action"] + run.log["reward"], rtol=1e-6)
        assert (run.log["reward"] > 0).all()

    def test_it_resumes_to_the_same_bits(self, trajectories: Trajectories, tmp_path: Path) -> None:
        whole = quick(trajectories, tmp_path / "whole", "two-terms")
        with pytest.MonkeyPatch.context() as patch:
            calls = []

            def stop(*arguments: Any) -> Tensor:
                calls.append(None)
                if len(calls) == 6:
                    raise KeyboardInterrupt
                return masked_mean(*arguments)

            patch.setattr(f"{__name__}.masked_mean", stop)
            with pytest.raises(KeyboardInterrupt):
                quick(trajectories, tmp_path / "run", "two-terms")
        again = quick(trajectories, tmp_path / "run", "two-terms", resume=True)
        assert same_weights(again.policy, whole.policy)
        assert (again.path / "log.csv").read_text().split("\n")[0] == "step,loss,learning_rate,seconds,action,reward"
        np.testing.assert_array_equal(again.log["reward"], whole.log["reward"])

    def test_several_seeds_as_one_program_are_each_alone(self, trajectories: Trajectories, tmp_path: Path) -> None:
        options: Any = {"changes": SMALL, "device": "cpu", "progress": False, "workers": 1}
        runs = train_seeds(trajectories, "two-terms", seeds=(3, 4), steps=8, out=tmp_path / "both", **options)
        for run in runs:
            alone = quick(trajectories, tmp_path / run.path.name, "two-terms", seed=run.info["training"]["seed"])
            np.testing.assert_allclose(run.log["reward"], alone.log["reward"], rtol=1e-5)


class TestStages:
    def test_the_first_is_a_run_in_the_runs_folder(self, trajectories: Trajectories, tmp_path: Path) -> None:
        run = quick(trajectories, tmp_path, "valued")
        first = load_run(tmp_path / "first")
        assert (first.step, first.policy.config.width, first.info["model"]) == (6, 4, "first")
        assert torch.equal(run.policy.learned, first.policy.head.bias) and run.policy.learned.any()
        assert torch.equal(load_run(tmp_path).policy.learned, first.policy.head.bias)  # it travels in the weights

    def test_the_data_are_prepared_with_what_it_learned(self, trajectories: Trajectories, tmp_path: Path) -> None:
        run = quick(trajectories, tmp_path / "run", "valued")
        shift = np.float32(load_run(tmp_path / "run/first").policy.head.bias[0].item())
        moved = dataclasses.replace(trajectories, rewards=trajectories.rewards + shift)
        by_hand = quick(moved, tmp_path / "by hand", "first", changes={"rtg_scale": run.policy.config.rtg_scale})
        own = {name: weight for name, weight in run.policy.state_dict().items() if name != "learned"}
        assert all(torch.equal(weight, by_hand.policy.state_dict()[name]) for name, weight in own.items())

    @pytest.mark.parametrize("stopped_after", [3, 5, 9, 12])  # losses: 6 of the first stage, 8 of the second
    def test_stopped_anywhere_it_goes_on_to_the_same_bits(
        self, trajectories: Trajectories, tmp_path: Path, stopped_after: int
    ) -> None:
        whole = quick(trajectories, tmp_path / "whole", "valued")
        calls: list[None] = []

        def stop(*arguments: Any) -> Tensor:
            calls.append(None)
            if len(calls) == stopped_after:
                raise KeyboardInterrupt
            return action_loss(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dmm.policy.action_loss", stop)
            with pytest.raises(KeyboardInterrupt):
                quick(trajectories, tmp_path / "run", "valued")
        again = quick(trajectories, tmp_path / "run", "valued", resume=True)
        assert same_weights(again.policy, whole.policy)
        assert same_weights(load_run(tmp_path / "run/first").policy, load_run(tmp_path / "whole/first").policy)

    def test_each_seed_has_its_own(
        self, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options: Any = {"changes": SMALL, "device": "cpu", "progress": False, "workers": 2}
        runs = train_seeds(trajectories, "valued", seeds=(3, 4), steps=8, out=tmp_path / "both", **options)
        assert "one after the other: each has a first stage of its own" in capsys.readouterr().err
        for run in runs:
            alone = quick(trajectories, tmp_path / run.path.name, "valued", seed=run.info["training"]["seed"])
            assert same_weights(run.policy, alone.policy)

    def test_lists_do_not_show_it(self) -> None:
        from dmm.errors import InputError
        from dmm.models.registry import find_model

        with pytest.raises(InputError, match=r"^model: got 'gpt', allowed are .*valued") as caught:
            find_model("gpt")
        assert "first" not in str(caught.value).split("allowed are ")[1].split(", ")
