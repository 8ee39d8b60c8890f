"""Windows over the episodes of a task, read anew at each step and with a key-value cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmm.acting import make_actor
from dmm.errors import InputError
from dmm.models.across import AcrossEpisodes, CachedActor
from dmm.models.ad import ADMambaConfig, ADTransformerConfig, AlgorithmDistillation, AlgorithmDistillationMamba
from dmm.models.at import AgenticTransformer, ATConfig
from dmm.policy import Outcome

SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "width": 16, "layers": 3, "heads": 2}
KINDS: dict[str, Any] = {
    "ad": (AlgorithmDistillation, ADTransformerConfig, {"embedding": 10}),
    "at": (AgenticTransformer, ATConfig, {"rtg_scale": 2.0}),
    "at, four tokens": (AgenticTransformer, ATConfig, {"rtg_scale": 2.0, "tokens": "four"}),
}


def made(name: str, context: int = 24) -> Any:
    kind, config, more = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = kind(config(**SMALL, **more, context=context)).double().eval()
        for weight in policy.blocks.parameters():
            if weight.ndim == 2:
                weight.data.mul_(4)
    return policy


def played(actor: Any, lengths: tuple[int, ...], steps: int, leave: int | None = None) -> list[Tensor]:
    """Actions `(n, a)` of each step; tasks have episodes of these lengths, and the second leaves at step `leave`."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(steps, 3, 4, generator=generator, dtype=torch.float64)
    rewards = torch.rand(steps, 3, generator=generator, dtype=torch.float64)
    state, reward, actions, rows = actor.init_state(3, 2.0), None, [], [0, 1, 2]
    for t in range(steps):
        if t == leave:
            state, reward = actor.select(state, torch.tensor([0, 2])), reward[[0, 2]]  # type: ignore[index]
            rows = [0, 2]
        action, state = actor.act(state, observations[t, rows], reward)
        actions.append(action)
        reward = rewards[t, rows].clone()
        over = torch.tensor([i for i, row in enumerate(rows) if (t + 1) % lengths[row] == 0], dtype=torch.int64)
        if len(over):
            outcome = Outcome(reward[over], torch.zeros(len(over), dtype=torch.bool))
            state = actor.next_episode(state, over, 2.0, outcome)
            reward[over] = 9.0  # is passed over
    return actions


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("context", [2, 9, 24])
def test_with_a_cache_the_actions_are_those_of_the_window(name: str, context: int) -> None:
    """Over three episodes and more, of tasks that end them at different times, until the window is full and beyond."""
    policy = made(name, context)
    expected, found = (played(make_actor(policy, way), (4, 7, 5), 21, leave=10) for way in ("window", "cached"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", KINDS)
def test_it_does_read_the_cache(name: str) -> None:
    actor: Any = make_actor(made(name), "cached")
    observation = torch.ones(1, 4, dtype=torch.float64)
    _, state = actor.act(actor.init_state(1, 2.0), observation)
    action, after = actor.act(state, observation, torch.ones(1))
    again, _ = actor.act(state, observation, torch.ones(1))
    other = state.map(lambda field: field + 1 if field.ndim > 5 else field)  # keys and values
    assert torch.equal(action, again) and not torch.allclose(actor.act(other, observation, torch.ones(1))[0], action)
    assert after.cache.steps.tolist() == [2] and state.cache.steps.tolist() == [1]


def test_who_has_no_cache_is_told() -> None:
    policy = AlgorithmDistillationMamba(ADMambaConfig(state_size=4, action_size=2, width=8))
    with pytest.raises(
        InputError, match=r"^acting: got 'cached' for a AlgorithmDistillationMamba, allowed are ad and at"
    ):
        make_actor(policy, "cached")
    with pytest.raises(InputError, match=r"^acting: got 'cached' for a window of 1 step, allowed are 2 or more"):
        make_actor(made("ad", context=1), "cached")
    assert isinstance(make_actor(made("ad"), "cached"), CachedActor) and isinstance(made("at"), AcrossEpisodes)
