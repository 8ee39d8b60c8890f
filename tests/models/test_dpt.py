"""Decision-Pretrained Transformer against numbers of its authors' code, and its set of transitions over episodes."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.errors import InputError
from dmm.experiments.parity import gradient_shares
from dmm.models.dpt import DecisionPretrainedTransformer, DPTConfig, Queries, QuerySampler
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Outcome, Wanted
from dmm.training import TrainConfig
from tests.conftest import MakeTrajectories

GOLDEN = Path(__file__).parents[1] / "golden" / "in_context_dpt.npz"


class Golden:
    """What the authors' code computed, and our policy with their weights."""

    def __init__(self) -> None:
        with np.load(GOLDEN) as arrays:
            self.arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}
            self.config = json.loads(str(arrays["config"]))
        self.policy: Any = from_official("dpt", GOLDEN, self.config)
        known = (self.arrays[f"inputs/context_{name}"] for name in ("states", "actions", "rewards", "next_states"))
        self.batch = Queries(self.arrays["inputs/query_states"], self.arrays["inputs/optimal_actions"], *known)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_logits_are_theirs(golden: Golden) -> None:
    near(golden.policy(golden.batch), golden.arrays["outputs/logits"])
    read = golden.policy.read(golden.batch.queries, golden.batch)
    for count, name in ((golden.config["horizon"], ""), (3, "_context3"), (0, "_context0")):
        near(read[:, count], golden.arrays[f"outputs/logits_acting{name}"])


def test_loss_and_gradients_are_theirs(golden: Golden) -> None:
    loss = golden.policy.loss(golden.batch)["action"]
    assert loss.item() == pytest.approx(float(golden.arrays["loss"]), rel=1e-5)
    shares = gradient_shares("dpt", golden.policy, loss, golden.arrays)
    assert len(shares) == 3 and max(shares.values()) < 1e-4


def test_acting_after_an_episode_is_theirs(golden: Golden) -> None:
    """Three tasks that live through the recorded transitions as one episode, and are then asked."""
    policy, batch, known = copy.copy(golden.policy), golden.batch, {}
    policy.config = dataclasses.replace(policy.config, acts="likeliest")
    state, reward = policy.init_state(3, 0.0), None
    for t in range(golden.config["horizon"]):
        _, state = policy.act(state, batch.states[:, t], reward)
        state = dataclasses.replace(state, action=batch.actions[:, t])
        reward = batch.rewards[:, t, 0]
        if t + 1 in (3, golden.config["horizon"]):
            outcome = Outcome(reward, torch.zeros(3, dtype=torch.bool), batch.next_states[:, t])
            known[t + 1] = policy.next_episode(state, torch.arange(3), 0.0, outcome)
    # where one transition leads and the next begins is one observation here, and two in the recorded set
    for count, after in known.items():
        expected = batch.map(lambda field: field)
        following = torch.cat([batch.states[:, 1:count], batch.next_states[:, count - 1 : count]], dim=1)
        expected = dataclasses.replace(
            expected.map(lambda field: field[:, :count] if field.ndim == 3 else field),  # noqa: B023 (called at once)
            next_states=following,
        )
        logits = policy.read(batch.queries, expected)[:, -1]
        action, _ = policy.act(after, batch.queries, torch.zeros(3))
        assert torch.equal(action.argmax(dim=1), logits.argmax(dim=1))
        found = after.known.map(lambda field: field[:, -count:])  # noqa: B023
        for name in ("states", "actions", "rewards", "next_states"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
        assert after.known.real.sum(dim=1).flatten().tolist() == [count] * 3


SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 8, "width": 16, "layers": 2}


def made(**changes: Any) -> DecisionPretrainedTransformer:
    torch.manual_seed(1)
    policy = DecisionPretrainedTransformer(DPTConfig(**(SMALL | changes))).eval()
    policy.discrete_actions = True
    return policy


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    data = make_trajectories(lengths=(7, 5, 9, 6, 4))
    return dataclasses.replace(data, histories=np.array([1, 0, 1, 1, 0]))


def test_queries_are_of_the_best_episodes_and_all_is_of_one_task(data: Trajectories) -> None:
    config = made(share=0.5).config
    sampler = QuerySampler(data, config, "cpu")
    index = sampler.draw(1, 300, torch.Generator().manual_seed(0))[0]
    assert data.histories is not None
    episode = np.repeat(np.arange(data.episodes), data.lengths)[index.numpy()]
    tasks = data.histories[episode]
    assert (tasks == tasks[:, :1]).all() and set(tasks[:, 0]) == {0, 1}
    returns = data.returns()
    best = {task: max(np.flatnonzero(data.histories == task), key=lambda e: returns[e]) for task in (0, 1)}
    assert set(episode[:, 0]) == set(best.values())
    made_of = sampler.gather(index)
    np.testing.assert_array_equal(made_of.next_states.numpy(), data.next_observations()[index[:, 1:].numpy()])
    np.testing.assert_array_equal(made_of.best.numpy(), data.actions[index[:, 0].numpy()])
    counts = np.bincount(episode[:, 1:].flatten(), minlength=5) / episode[:, 1:].size
    np.testing.assert_allclose(counts, data.lengths / data.transitions, atol=0.06)  # by steps, good or bad


def test_the_set_is_that_of_the_last_transitions_of_whole_episodes() -> None:
    policy, generator = made(context=5), torch.Generator().manual_seed(0)
    observations, rewards = torch.randn(9, 1, 4, generator=generator), torch.rand(9, 1, generator=generator)
    behind = torch.randn(2, 1, 4, generator=generator)
    state, reward, actions = policy.init_state(1, 0.0), None, []
    for t in range(9):
        action, state = policy.act(state, observations[t], reward)
        actions.append(action)
        if t < 3:
            assert not state.known.real.any()
        reward = rewards[t]
        if t in (2, 6):  # episodes of three and four steps
            outcome = Outcome(reward, torch.tensor([False]), behind[int(t == 6)])
            state, reward = policy.next_episode(state, torch.tensor([0]), 0.0, outcome), torch.zeros(1)
    known = state.known
    assert known.real.all()
    assert torch.equal(known.states[0], observations[2:7, 0]) and torch.equal(known.rewards[0], rewards[2:7])
    assert torch.equal(known.actions[0], torch.cat(actions[2:7]))
    following = torch.cat([behind[0], observations[4:7, 0], behind[1]])
    assert torch.equal(known.next_states[0], following)
    assert state.present.real.sum() == 1  # the step before the last


def test_an_unknown_last_observation_is_its_own_step() -> None:
    policy = made()
    _, state = policy.act(policy.init_state(1, 0.0), torch.full((1, 4), 3.0))
    outcome = Outcome(torch.ones(1), torch.tensor([True]))
    after = policy.next_episode(state, torch.tensor([0]), 0.0, outcome)
    assert after.known.next_states[0, -1].tolist() == [3.0] * 4 and after.known.rewards[0, -1].item() == 1


def test_actions_are_drawn_as_likely_as_they_are() -> None:
    policy, n = made(), 4000
    observation = torch.linspace(-1, 1, n)[:, None].expand(n, 4) * 1e-3
    wanted = Wanted(0.0, None, torch.Generator().manual_seed(0))
    action, _ = policy.act(policy.init_state(n, wanted), observation)
    likely = policy.read(observation, policy.init_state(n, wanted).known.map(lambda f: f[:, :0]))[:, 0].softmax(dim=-1)
    torch.testing.assert_close(action.mean(dim=0), likely.mean(dim=0).detach(), rtol=0, atol=0.03)


def test_published_size_is_theirs() -> None:
    facts = Facts(state_size=2, action_size=5, env_id="dmm/Darkroom-v0")
    changes, _ = read_changes({"sizes": "published"}, MODELS["dpt"], TrainConfig, facts)
    policy = MODELS["dpt"].policy(MODELS["dpt"].config_for(facts, changes | {"positions": 4 * 101}))
    assert policy.parameter_count() == 64_325


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads: got 3"),
        ({"share": 0.0}, "share: got 0, allowed is above 0 and at most 1"),
        ({"positions": 8}, "positions: got 8, allowed is more than context 8, or 0"),
        ({"acts": "x"}, "acts: got 'x', allowed are drawn, likeliest"),
        ({"dropout": 1.0}, "dropout: got 1"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        made(**changes)
