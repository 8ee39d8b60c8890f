"""Algorithm Distillation against numbers of a third party's code, and both of its memories over episodes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dmm.data.trajectories import Trajectories
from dmm.data.windows import RewardedWindows
from dmm.errors import InputError
from dmm.experiments.parity import gradient_shares
from dmm.models.ad import (
    ADMambaConfig,
    ADTransformerConfig,
    AlgorithmDistillation,
    AlgorithmDistillationMamba,
    Distilled,
    sinusoids,
)
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Outcome, Wanted
from dmm.training import TrainConfig
from tests.conftest import MakeTrajectories

GOLDEN = Path(__file__).parents[1] / "golden" / "in_context_ad.npz"


class Golden:
    """What their code computed, and our policy with their weights."""

    def __init__(self) -> None:
        with np.load(GOLDEN) as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}
            self.config = json.loads(str(arrays["config"]))
        self.policy: Any = from_official("ad", GOLDEN, self.config)
        b, k = self.arrays["inputs/states"].shape
        self.windows = RewardedWindows(
            returns_to_go=torch.zeros(b, k, 1),
            states=one_hot(self.arrays["inputs/states"].long(), self.config["states"]).float(),
            actions=one_hot(self.arrays["inputs/actions"].long(), self.config["actions"]).float(),
            timesteps=torch.zeros(b, k, dtype=torch.int64),
            mask=torch.ones(b, k, dtype=torch.bool),
            rewards=self.arrays["inputs/rewards"][..., None],
        )


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_logits_are_theirs(golden: Golden) -> None:
    assert golden.policy.discrete_actions
    near(golden.policy(golden.windows), golden.arrays["outputs/logits"])
    first = golden.windows.map(lambda field: field[:, :3])
    near(golden.policy(first), golden.arrays["outputs/logits_first3"])


def test_loss_and_gradients_are_theirs(golden: Golden) -> None:
    loss = golden.policy.loss(golden.windows)["action"]
    assert loss.item() == pytest.approx(float(golden.arrays["loss"]), rel=1e-5)
    shares = gradient_shares("ad", golden.policy, loss, golden.arrays)
    assert len(shares) == 3 and max(shares.values()) < 1e-4


def test_places_are_theirs(golden: Golden) -> None:
    assert torch.equal(golden.policy.places, golden.arrays["weights/pos_emb.pos_emb"][0])
    assert sinusoids(5, 3).shape == (5, 3)


def test_acting_begins_as_their_first_steps_do(golden: Golden) -> None:
    """Greedy, in windows of one, two, ... steps; the actions and rewards that they had are put in."""
    policy, windows = golden.policy, golden.windows
    b, k = windows.mask.shape
    state, reward = policy.init_state(b, 0.0), None
    for t in range(k):
        action, state = policy.act(state, windows.states[:, t], reward)
        assert torch.equal(action.argmax(dim=1), golden.arrays["outputs/logits"][:, t].argmax(dim=1))
        state.windows.actions[:, -1] = windows.actions[:, t]
        reward = windows.rewards[:, t, 0]


SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 30, "width": 16, "layers": 2, "embedding": 10}
KINDS = {
    "ad": (AlgorithmDistillation, ADTransformerConfig),
    "ad-mamba": (AlgorithmDistillationMamba, ADMambaConfig),
}


def made(name: str, **changes: Any) -> Distilled:
    torch.manual_seed(1)
    policy, config = KINDS[name]
    return policy(config(**(SMALL | changes))).eval()  # type: ignore[arg-type]


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    data = make_trajectories(lengths=(7, 5, 9, 6, 4))
    return dataclasses.replace(data, histories=np.array([1, 0, 1, 1, 0]))


def replayed(policy: Any, windows: RewardedWindows, over: list[int]) -> Tensor:
    """The actions of acting, forced to live through windows whose episodes end behind these steps: `(b, k, a)`."""
    b, k = windows.mask.shape
    state, actions, reward = policy.init_state(b, 0.0), [], None
    for t in range(k):
        action, state = policy.act(state, windows.states[:, t], reward)
        actions.append(action)
        reward = windows.rewards[:, t, 0]
        if hasattr(state, "windows"):
            state.windows.actions[:, -1] = windows.actions[:, t]
        else:
            state = dataclasses.replace(state, action=windows.actions[:, t])
        if t in over:
            outcome = Outcome(reward, torch.zeros(b, dtype=torch.bool))
            state = policy.next_episode(state, torch.arange(b), 0.0, outcome)
            reward = torch.full((b,), 9.0)  # is passed over
    return torch.stack(actions, dim=1)


@pytest.mark.parametrize("name", KINDS)
def test_acting_over_three_episodes_is_the_forward_of_all(name: str, data: Trajectories) -> None:
    policy = made(name)
    policy.set_state_moments(*map(torch.from_numpy, data.state_moments()))
    sampler = MODELS[name].sampler(data, dataclasses.replace(policy.config, context=22), "cpu")
    windows: Any = sampler.gather(torch.tensor([9]))  # the history of task 1: episodes of 7, 9 and 6 steps
    assert bool(windows.mask.all())
    expected = policy(windows).detach()
    torch.testing.assert_close(replayed(policy, windows, [6, 15]), expected, rtol=1e-4, atol=1e-5)


def test_a_full_window_forgets_its_oldest_step_and_mamba_nothing(data: Trajectories) -> None:
    windows = RewardedWindows(
        returns_to_go=torch.zeros(1, 12, 1),
        states=torch.randn(1, 12, 4),
        actions=torch.randn(1, 12, 2),
        timesteps=torch.zeros(1, 12, dtype=torch.int64),
        mask=torch.ones(1, 12, dtype=torch.bool),
        rewards=torch.randn(1, 12, 1),
    )
    policy = made("ad", context=5)
    last = policy(windows.map(lambda field: field[:, -5:]))[:, -1].detach()
    torch.testing.assert_close(replayed(policy, windows, [3, 8])[:, -1], last, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"^windows: got 12 steps, allowed are at most 5"):
        policy(windows)
    whole = made("ad-mamba", context=5)
    torch.testing.assert_close(
        replayed(whole, windows, [3])[:, -1], whole(windows)[:, -1].detach(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", KINDS)
def test_tasks_whose_episodes_end_at_different_times_are_each_alone(name: str) -> None:
    policy, generator, lengths = made(name, context=6), torch.Generator().manual_seed(0), (1, 4, 5)
    observations, rewards = torch.randn(14, 3, 4, generator=generator), torch.rand(14, 3, generator=generator)

    def played(rows: list[int]) -> Tensor:
        state: Any = policy.init_state(len(rows), 0.0)
        reward, actions = None, []
        for t in range(14):
            action, state = policy.act(state, observations[t, rows], reward)
            actions.append(action)
            reward = rewards[t, rows].clone()
            over = torch.tensor([i for i, row in enumerate(rows) if (t + 1) % lengths[row] == 0], dtype=torch.int64)
            if len(over):
                outcome = Outcome(reward[over], torch.zeros(len(over), dtype=torch.bool))
                state = policy.next_episode(state, over, 0.0, outcome)
                reward[over] = 0.0
        return torch.stack(actions)

    together = played([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[:, [row]], played([row]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_windows_are_of_one_history(name: str, data: Trajectories) -> None:
    policy = made(name, context=8)
    sampler = MODELS[name].sampler(data, policy.config, "cpu")
    windows: Any = sampler.gather(sampler.draw(1, 200, torch.Generator().manual_seed(0))[0])
    assert data.histories is not None
    of_step = np.repeat(data.histories, data.lengths)
    task_of = {tuple(row): int(task) for row, task in zip(data.observations, of_step, strict=True)}
    tasks = [{task_of[tuple(row.tolist())] for row in rows} for rows in windows.states]
    assert {len(seen) for seen in tasks} == {1} and len(set.union(*tasks)) == 2
    assert windows.mask.all()  # both histories are longer than a window


def test_published_size_is_theirs() -> None:
    """In a room of 81 cells, with states and actions one-hot: two biases more than their tables."""
    facts = Facts(state_size=81, action_size=5, env_id="dmm/Darkroom-v0", longest=20)
    changes, recipe = read_changes({"sizes": "published"}, MODELS["ad"], TrainConfig, facts)
    policy = MODELS["ad"].policy(MODELS["ad"].config_for(facts, changes))
    assert policy.context == 80 and recipe["batch_size"] == 512
    assert policy.parameter_count() == 12_651_013 + 2 * 64


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ad", {"heads": 3}, "heads: got 3, allowed are divisors of width 16"),
        ("ad", {"attention_dropout": 1.0}, "attention_dropout: got 1, allowed is 0 <= attention_dropout < 1"),
        ("ad", {"embed_dropout": -0.5}, "embed_dropout: got -0.5"),
        ("ad-mamba", {"ssm_state": 0}, "ssm_state: got 0"),
        ("ad-mamba", {"temperature": -1.0}, "temperature: got -1, allowed is 0"),
        ("ad-mamba", {"step_init": "x"}, "step_init: got 'x', allowed are mamba, wiped"),
    ],
)
def test_bad_configs(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        made(name, **changes)


@pytest.mark.parametrize("name", KINDS)
def test_discrete_actions_are_drawn_at_a_temperature_or_the_likeliest(name: str) -> None:
    policy = made(name, context=6, temperature=0.7)
    policy.discrete_actions = True
    with torch.no_grad():
        policy.head.bias[:] = torch.tensor([0.0, 1.0])
    n, seen = 4000, torch.zeros(4000, 4)
    asked = Wanted(0.0, None, torch.Generator().manual_seed(0), torch.arange(n))
    windows: Any = None
    for step in range(2):  # the second one with what was drawn behind it
        if step == 0:
            action, state = policy.act(policy.init_state(n, asked), seen)
            first = action
        else:
            action, state = policy.act(state, seen, torch.zeros(n))
    assert set(first.flatten().tolist()) == {0.0, 1.0}
    windows = RewardedWindows(
        returns_to_go=torch.zeros(n, 2, 1),
        states=torch.zeros(n, 2, 4),
        actions=torch.stack([first, torch.zeros_like(first)], dim=1),
        timesteps=torch.zeros(n, 2, dtype=torch.int64),
        mask=torch.ones(n, 2, dtype=torch.bool),
        rewards=torch.zeros(n, 2, 1),
    )
    for step, drawn in enumerate((first, action)):
        share = (policy(windows)[:, step] / 0.7).softmax(dim=-1).detach().mean(dim=0)
        assert ((drawn.mean(dim=0) - share).abs() < 5 * (0.25 / n) ** 0.5).all()
    likeliest = made(name, context=6, temperature=0.0)
    likeliest.discrete_actions = True
    likeliest.load_state_dict(policy.state_dict())
    greedy, _ = likeliest.act(likeliest.init_state(n, asked), seen)
    assert torch.equal(greedy, policy.played(policy(windows)[:, 0].detach()))
