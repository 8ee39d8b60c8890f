"""Acting in a hierarchy, step by step, against its forward over whole contexts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dmm.acting import make_actor
from dmm.data.contexts import ContextSampler, GoalContexts
from dmm.data.trajectories import Trajectories
from dmm.draws import normal
from dmm.models.dmh import DecisionMambaHybrid, DMHConfig
from dmm.models.hdt import HDTConfig, HierarchicalTransformer, Planned
from dmm.models.hierarchy import HierarchicalPolicy
from dmm.policy import Outcome, Wanted
from tests.conftest import MakeTrajectories

SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "interval": 3, "width": 16, "layers": 2, "heads": 2}
KINDS: dict[str, Any] = {"dmh": (DecisionMambaHybrid, DMHConfig), "hdt": (HierarchicalTransformer, HDTConfig)}
RUNS = [[1, 0, 3, 2], [2, 3, 1]]
"""Episodes that two tasks live through: at different times, the second task one less."""


def made(name: str, **changes: Any) -> HierarchicalPolicy:
    """In float64; weights large enough that what is wrong shows."""
    kind, config = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = (
            kind(config(**(SMALL | {"groups": 10, "max_timestep": 20, "window": "group"} | changes))).double().eval()
        )
        for layer in (policy.worker.blocks, getattr(policy.planner, "blocks", ())):
            for weight in layer.parameters():
                if weight.ndim == 2:
                    weight.data.mul_(3)
    return policy  # type: ignore[no-any-return]


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    return make_trajectories(lengths=(7, 5, 9, 6))


def context_of(data: Trajectories, run: list[int]) -> GoalContexts:
    """Of one row, without padded groups in front."""
    groups = int((-(-data.lengths[run] // 3)).sum())
    context = ContextSampler(data, groups, interval=3, goals="formula").contexts_of([run])
    assert isinstance(context, GoalContexts)
    return context.map(lambda field: field.double() if field.is_floating_point() else field)


def lived(policy: HierarchicalPolicy, contexts: list[GoalContexts], eps: list[Tensor]) -> list[Tensor]:
    """The actions of acting, forced to live through the real steps of contexts side by side, with their noise."""
    masks = [each.mask[0] for each in contexts]
    names = [field.name for field in dataclasses.fields(GoalContexts)]
    parts = {n: [getattr(each, n)[0][m] for each, m in zip(contexts, masks, strict=True)] for n in names}
    noise = [each.flatten(0, 2)[mask] for each, mask in zip(eps, masks, strict=True)]
    best = torch.stack([returns[0, 0] for returns in parts["returns_to_go"]])
    state, going, reward = policy.init_state(len(masks), best), list(range(len(masks))), None
    actions: list[list[Tensor]] = [[] for _ in masks]
    for t in range(max(map(len, noise))):
        left = [i for i, row in enumerate(going) if t < len(noise[row])]
        if len(left) < len(going):
            rows = torch.tensor(left)
            going, state, reward = [going[i] for i in left], policy.select(state, rows), reward[rows]  # type: ignore[index]
        over = torch.tensor(
            [i for i, row in enumerate(going) if t and parts["timesteps"][row][t] == 0], dtype=torch.int64
        )
        if len(over):
            outcome = Outcome(reward[over], torch.zeros(len(over), dtype=torch.bool))  # type: ignore[index]
            state = policy.next_episode(state, over, best[going][over], outcome)
            reward[over] = 9.0  # type: ignore[index]  # is passed over
        observation, drawn = (torch.stack([each[row][t] for row in going]) for each in (parts["states"], noise))
        action, state = policy.step(state, observation, reward, drawn[:, None])
        for row, each in zip(going, action, strict=True):
            actions[row].append(each)
        state.actions[:, -1] = torch.stack([parts["actions"][row][t] for row in going])
        reward = torch.stack([parts["rewards"][row][t, 0] for row in going])
    return [torch.stack(each) for each in actions]


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("changes", [{}, {"tokens": "three"}, {"noise": "group"}, {"heads": 1, "plan_size": 3}])
def test_acting_over_episodes_is_the_forward(data: Trajectories, name: str, changes: dict[str, Any]) -> None:
    """With the noise of each step or group, for tasks side by side at different steps, one of which ends first."""
    policy = made(name, **changes)
    policy.set_state_moments(*map(torch.from_numpy, data.state_moments()))
    contexts, generator = [context_of(data, run) for run in RUNS], torch.Generator().manual_seed(3)
    eps = []
    for each in contexts:
        drawn = torch.randn(1, each.mask.shape[1] // 3, 3, policy.config.z, generator=generator, dtype=torch.float64)
        eps.append(drawn[:, :, :1].expand_as(drawn) if policy.config.noise == "group" else drawn)
    for found, each, noise in zip(lived(policy, contexts, eps), contexts, eps, strict=True):
        expected = policy.actions(each, policy.plan_of_steps(policy.plans(each), noise))
        same(found, expected[each.mask])


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("acting", ["window", "recurrent"])
def test_what_acts_draws_once_for_a_step_is_what_forward_reads(name: str, acting: str) -> None:
    """Nine steps of one episode, played with noise of its own; `forward` with the same noise says the same actions."""
    policy = made(name, groups=3)
    actor: Any = make_actor(policy, acting)
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(9, 2, 4, generator=generator, dtype=torch.float64)
    rewards = torch.rand(9, 2, generator=generator, dtype=torch.float64)
    state, actions, eps = actor.init_state(2, Wanted(3.0, None, torch.Generator().manual_seed(2))), [], []
    for t in range(9):
        action, state = actor.act(state, observations[t], rewards[t - 1] if t else None)
        actions.append(action)
        eps.append(normal(state.stream, torch.full((2,), t), policy.config.z).double())
    left = 3.0 - torch.cat([torch.zeros(1, 2), rewards[:-1].cumsum(dim=0)])
    contexts = GoalContexts(
        returns_to_go=left.T[..., None],
        states=observations.transpose(0, 1),
        actions=torch.stack(actions, dim=1),
        timesteps=torch.arange(9).expand(2, 9),
        mask=torch.ones(2, 9, dtype=torch.bool),
        rewards=rewards.T[..., None],
        ended=torch.zeros(2, 9, 1, dtype=torch.float64),
        learned=torch.zeros(2, 9, 1, dtype=torch.float64),
        goals=torch.zeros(2, 9, 4, dtype=torch.float64),
    )
    noise = torch.stack(eps, dim=1).unflatten(1, (3, 3))
    same(torch.stack(actions, dim=1), policy.actions(contexts, policy.plan_of_steps(policy.plans(contexts), noise)))


@torch.no_grad()
def test_a_transformers_plans_are_those_of_its_last_groups() -> None:
    """While its groups become more, and when it forgets the first of them; of tasks out of step."""
    policy, generator = made("hdt", groups=3, acts="mean"), torch.Generator().manual_seed(0)
    lengths = (1, 4, 5)
    state, reward = policy.init_state(3, 2.0), None
    for t in range(24):
        observation = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        begins = (state.clock % 3 == 0).nonzero()[:, 0]
        _, state = policy.act(state, observation, reward)
        window = Planned.of(state.planner).window
        same(state.plan[begins], policy.planner(window)[begins, -1])
        reward = torch.rand(3, generator=generator, dtype=torch.float64)
        over = torch.tensor([i for i, length in enumerate(lengths) if (t + 1) % length == 0], dtype=torch.int64)
        if len(over):
            outcome = Outcome(reward[over], torch.zeros(len(over), dtype=torch.bool))
            state = policy.next_episode(state, over, 2.0, outcome)
    assert bool((state.planned > 3).all()) and len(set(state.planned.tolist())) > 1


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("window", ["group", "sliding"])
def test_no_step_changes_the_memory_before_it(name: str, window: str) -> None:
    policy, generator = made(name, window=window), torch.Generator().manual_seed(0)
    observations = torch.randn(8, 1, 4, generator=generator, dtype=torch.float64)
    state = policy.init_state(1, Wanted(2.0, None, torch.Generator().manual_seed(2)))
    for observation in observations:
        other, _ = policy.act(state, observation + 1, torch.ones(1))
        action, after = policy.act(state, observation, torch.ones(1))
        again, _ = policy.act(state, observation, torch.ones(1))
        assert torch.equal(action, again) and not torch.equal(action, other)
        state = after


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_both_windows_act_alike_in_a_first_group(name: str) -> None:
    policies = [made(name, window=window, noise="group") for window in ("group", "sliding")]
    observations = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    played = []
    for policy in policies:
        state, actions = policy.init_state(2, Wanted(2.0, None, torch.Generator().manual_seed(2))), []
        for t, observation in enumerate(observations):
            action, state = policy.act(state, observation, torch.ones(2) if t else None)
            actions.append(action)
        played.append(torch.stack(actions))
    same(played[0][:3], played[1][:3])
    assert float((played[0] - played[1])[3].abs().max()) > 1e-6


@pytest.mark.parametrize("window", ["group", "sliding"])
def test_it_can_be_made_without_memory(window: str) -> None:
    """As lists of models do, which only count weights; both windows have the same ones."""
    with torch.device("meta"):
        policy = HierarchicalTransformer(HDTConfig(**SMALL, groups=3, window=window))
    assert all(tensor.device.type == "meta" for tensor in (*policy.parameters(), *policy.buffers()))
    assert policy.state_dict().keys() == made("hdt").state_dict().keys()
