"""Agentic Transformer: nobody's numbers are to be had, so what it says of itself is looked at."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.contexts import Contexts, ContextSampler
from dmm.data.trajectories import Trajectories
from dmm.errors import InputError
from dmm.models.at import AgenticTransformer, ATConfig
from dmm.models.entry import Facts
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Outcome
from dmm.training import TrainConfig
from tests.conftest import MakeTrajectories

SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 30, "width": 16, "layers": 2, "rtg_scale": 10.0}


def made(**changes: Any) -> AgenticTransformer:
    torch.manual_seed(1)
    return AgenticTransformer(ATConfig(**(SMALL | changes))).eval()


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    return make_trajectories(lengths=(7, 5, 9, 6))


def contexts_of(data: Trajectories, k: int = 30) -> Contexts:
    """One context of all four episodes, the worst first, as drawn."""
    order = np.argsort(data.returns()).tolist()
    return ContextSampler(data, k).contexts_of([order])


def test_d_marks_the_end_of_the_episode_that_reached_the_best_return(data: Trajectories) -> None:
    contexts, policy = contexts_of(data), made()
    marks = policy.reached(contexts)[0, :, 0].tolist()
    assert marks == [0.0] * 29 + [1.0]  # three shorter episodes ended before
    assert contexts.ended.sum() == 4


def test_the_loss_is_of_the_best_episode_alone(data: Trajectories) -> None:
    contexts, policy = contexts_of(data), made()
    length = int(data.lengths[data.returns().argmax()])
    error = (policy(contexts) - contexts.actions)[0, -length:].square().mean()
    torch.testing.assert_close(policy.loss(contexts)["action"], error)


def replayed(policy: AgenticTransformer, contexts: Contexts) -> Tensor:
    """The actions of acting, forced to live through the real steps of one context: `(steps, a)`."""
    rows = contexts.mask[0]
    parts = {f.name: getattr(contexts, f.name)[0][rows] for f in dataclasses.fields(contexts)}
    best, reward, actions = float(parts["returns_to_go"][0]), None, []
    state = policy.init_state(1, best)
    for t in range(int(rows.sum())):
        if t and parts["timesteps"][t] == 0:
            state = policy.next_episode(state, torch.tensor([0]), best, Outcome(reward, torch.tensor([False])))
            reward = torch.full((1,), 9.0)  # is passed over
        action, state = policy.act(state, parts["states"][t, None], reward)
        actions.append(action[0])
        state.windows.actions[:, -1] = parts["actions"][t]
        reward = parts["rewards"][t]
    return torch.stack(actions)


@pytest.mark.parametrize("tokens", ["five", "four"])
def test_acting_over_four_episodes_is_the_forward_of_all(data: Trajectories, tokens: str) -> None:
    policy = made(tokens=tokens)
    policy.set_state_moments(*map(torch.from_numpy, data.state_moments()))
    contexts = contexts_of(data)
    expected = policy(contexts)[contexts.mask].detach()
    torch.testing.assert_close(replayed(policy, contexts), expected, rtol=1e-4, atol=1e-5)


def test_rewards_are_seen_where_they_have_a_token_and_padding_is_not(data: Trajectories) -> None:
    contexts = contexts_of(data)
    other = dataclasses.replace(contexts, rewards=contexts.rewards - 0.01)  # none of which reaches more, or less
    for tokens, same in (("five", False), ("four", True)):
        policy = made(tokens=tokens)
        assert torch.equal(policy(contexts)[contexts.mask], policy(other)[contexts.mask]) == same
    policy, garbage = made(), torch.where(contexts.mask[..., None], contexts.states, 7.0)
    filled = dataclasses.replace(contexts, states=garbage)
    assert torch.equal(policy(contexts)[contexts.mask], policy(filled)[contexts.mask])


def test_discrete_actions_get_cross_entropy(data: Trajectories) -> None:
    chosen = np.eye(2, dtype=np.float32)[np.arange(data.transitions) % 2]
    contexts, policy = contexts_of(dataclasses.replace(data, actions=chosen, discrete_actions=True)), made()
    policy.discrete_actions = True
    learned = contexts.learned[..., 0].bool()
    expected = torch.nn.functional.cross_entropy(policy(contexts)[learned], contexts.actions[learned])
    torch.testing.assert_close(policy.loss(contexts)["action"], expected)


def test_published_is_four_whole_episodes() -> None:
    facts = Facts(state_size=11, action_size=3, env_id="Hopper-v5", longest=300)
    changes, recipe = read_changes({"sizes": "published"}, MODELS["at"], TrainConfig, facts)
    policy = MODELS["at"].policy(MODELS["at"].config_for(facts, changes | {"tokens": "four"}))
    assert policy.context == 1200 and recipe["warmup"] == 0.1
    # the code that was read has a table of 1500 places across episodes
    assert policy.parameter_count() == 790_275 - 1200 * 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads: got 3, allowed are divisors of width 16"),
        ({"tokens": "six"}, "tokens: got 'six', allowed are five, four"),
        ({"rtg_scale": -1.0}, "rtg_scale: got -1, allowed is a positive number"),
        ({"max_timestep": 0}, "max_timestep: got 0"),
        ({"dropout": 1.0}, "dropout: got 1"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        made(**changes)
