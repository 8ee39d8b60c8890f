"""Decision Mamba-Hybrid against numbers of its authors' code, in other sizes than the published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.contexts import Contexts, ContextSampler, GoalContexts
from dmm.data.trajectories import Trajectories
from dmm.errors import InputError
from dmm.experiments.parity import gradient_shares
from dmm.models.dmh import DecisionMambaHybrid, DMHConfig
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Outcome, Wanted
from dmm.training import TrainConfig
from tests.conftest import MakeTrajectories

GOLDEN = Path(__file__).parents[1] / "golden" / "dmh.npz"


class Golden:
    """What the authors' code computed, our policy with their weights, and our contexts of their data."""

    def __init__(self) -> None:
        with np.load(GOLDEN) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.config = json.loads(str(self.arrays["config"]))
        self.mean, self.std = (self.tensor(f"inputs/data/state_{each}") for each in ("mean", "std"))
        self.policy = self.read()
        self.sampler = ContextSampler(
            self.data(), self.config["context_groups"], interval=self.c, best="out", ends="terminal", goals="released"
        )
        self.contexts = self.sampler.contexts_of(self.runs())

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def read(self, **changes: Any) -> DecisionMambaHybrid:
        policy: Any = from_official("dmh", GOLDEN, self.config | {"state_mean": self.mean, "state_std": self.std})
        other = DecisionMambaHybrid(dataclasses.replace(policy.config, **changes)).eval()
        other.load_state_dict(policy.state_dict())
        return other

    @property
    def c(self) -> int:
        return int(self.config["sub_goal_interval"])

    def data(self) -> Trajectories:
        lengths = self.arrays["inputs/data/lengths"].astype(int)
        ends = lengths.cumsum()
        return Trajectories(
            **{name: self.arrays[f"inputs/data/{name}"] for name in ("observations", "actions", "rewards")},
            starts=ends - lengths,
            lengths=lengths,
            terminated=self.arrays["inputs/data/terminals"][ends - 1] > 0,
            dataset_id="golden",
            env_id="",
        )

    def runs(self) -> list[list[int]]:
        """The drawn episodes, worst first, cut into runs that fill a context; -1 in front of short ones."""
        groups, runs = -(-self.data().lengths // self.c), [[]]  # type: list[int], list[list[int]]
        for episode in self.arrays["inputs/data/drawn"].astype(int).tolist():
            if sum(groups[e] for e in runs[-1]) >= self.config["context_groups"]:
                runs.append([])
            runs[-1].append(episode)
        longest = max(map(len, runs))
        return [[-1] * (longest - len(run)) + run for run in runs]

    def eps(self) -> Tensor:
        return self.tensor("inputs/noise").unflatten(0, (-1, self.config["context_groups"]))

    def near_steps(self, found: Tensor, key: str) -> None:
        """Of real steps, which there stand in one row for each group."""
        real = self.tensor("inputs/batch/mask").bool()
        near(found.reshape(*real.shape, -1)[real], self.tensor(key).reshape(*real.shape, -1)[real])


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


class TestTheAuthorsWeights:
    def test_contexts_of_their_episodes_are_theirs(self, golden: Golden) -> None:
        contexts, mask = golden.contexts, golden.tensor("inputs/batch/mask")
        assert torch.equal(contexts.mask.reshape(mask.shape).float(), mask)
        golden.near_steps((contexts.states - golden.mean) / golden.std, "inputs/batch/s")
        golden.near_steps(contexts.actions, "inputs/batch/a")
        golden.near_steps(contexts.rewards, "inputs/batch/r")
        golden.near_steps(contexts.timesteps.float()[..., None], "inputs/batch/timesteps")

    def test_groups_are_theirs(self, golden: Golden) -> None:
        contexts, groups = golden.contexts, golden.policy.group(golden.contexts)
        assert isinstance(contexts, GoalContexts)
        found = {"h_s": groups.states, "h_rtg": groups.returns_to_go, "h_r": groups.rewards}
        for name, each in found.items():
            near(each, golden.tensor(f"inputs/batch/{name}"))
        near(torch.where(groups.real, groups.ended[..., 0], 2.0), golden.tensor("inputs/batch/h_d"))
        assert torch.equal(groups.real.float(), golden.tensor("inputs/batch/h_mask"))
        learned = contexts.learned[..., 0].unflatten(1, (-1, golden.c)).amax(dim=-1)
        assert torch.equal(learned, golden.tensor("inputs/batch/h_loss_mask"))
        goals = ((contexts.goals - golden.mean) / golden.std)[:, golden.c - 1 :: golden.c]
        near(goals[groups.real], golden.tensor("inputs/batch/h_g")[groups.real])

    def test_plans_and_actions_are_theirs(self, golden: Golden) -> None:
        policy, contexts = golden.policy, golden.contexts
        plan = policy.plans(contexts)
        near(plan, golden.tensor("outputs/z_distribution"))
        golden.near_steps(policy.actions(contexts, policy.plan_of_steps(plan, golden.eps())), "outputs/actions")
        golden.near_steps(policy(contexts), "outputs/actions_mean")
        goals = policy.goal_plans(contexts)
        real = policy.group(contexts).real
        near(goals[:, :, -1][real], golden.tensor("outputs/goal_z")[real])
        golden.near_steps(policy.actions(contexts, goals), "outputs/actions_goal")

    def test_loss_and_gradients_are_theirs(self, golden: Golden) -> None:
        assert isinstance(golden.contexts, GoalContexts)
        terms = golden.policy.terms_of(golden.contexts, golden.eps())
        first, second = golden.tensor("loss_parts")
        torch.testing.assert_close(terms["action"], first, rtol=1e-5, atol=0)
        torch.testing.assert_close(terms["goal"], 0.5 * second, rtol=1e-5, atol=0)
        loss = terms["action"] + terms["goal"]
        assert loss.item() == pytest.approx(float(golden.arrays["loss"]), rel=1e-5)
        shares = gradient_shares(
            "dmh", golden.policy, loss, {k: golden.tensor(k) for k in golden.arrays if "grads/" in k}
        )
        assert len(shares) == 7 and max(shares.values()) < 1e-4

    def test_what_has_no_gradient_there_has_none_here(self, golden: Golden) -> None:
        official, none = MODELS["dmh"].official, json.loads(str(golden.arrays["none_grads"]))
        assert official is not None
        sources = official.sources(golden.policy)
        frozen = {str(sources[name]) for name, w in golden.policy.named_parameters() if not w.requires_grad}
        assert frozen == {key for key in none if "embed_g_to_z" in key}
        assert all(official.unused(key) for key in none if key not in frozen)

    @pytest.mark.parametrize(("norm", "name"), [(False, "released"), (True, "normed")])
    def test_both_recurrences_are_theirs(self, golden: Golden, norm: bool, name: str) -> None:
        policy = golden.read(step_norm=norm)
        with torch.no_grad():
            found = policy.planner.recurrence(policy.group(golden.contexts))
        near(found, golden.tensor(f"outputs/z_distribution_step_{name}"))

    def test_three_episodes_in_a_row_are_theirs(self, golden: Golden) -> None:
        policy, target = golden.policy, float(golden.arrays["inputs/act/target"])
        given = (golden.tensor(f"inputs/act/{name}") for name in ("observations", "rewards", "noise"))
        observations, rewards, noise = given
        state, played, reward, row = policy.init_state(1, target), [], None, 0
        for length in golden.arrays["inputs/act/lengths"].astype(int):
            for _ in range(length):
                action, state = policy.step(state, observations[row, None], reward, noise[row, None])
                played.append(action[0])
                reward, row = rewards[row : row + 1], row + 1
            outcome = Outcome(reward, torch.tensor([True]))
            state, reward = policy.next_episode(state, torch.tensor([0]), target, outcome), torch.zeros(1)
        near(torch.stack(played), golden.tensor("outputs/act/actions"))

    def test_missing_and_left_over_keys_are_named(self, golden: Golden) -> None:
        weights = {k.removeprefix("weights/"): v for k, v in golden.arrays.items() if k.startswith("weights/")}
        with pytest.raises(InputError, match="left over: h_policy/other"):
            from_official("dmh", weights | {"h_policy/other": np.zeros(1)}, golden.config)
        del weights["l_policy/embed_g_to_z.bias"]
        with pytest.raises(InputError, match=r"missing: l_policy/embed_g_to_z\.bias"):
            from_official("dmh", weights, golden.config)


SMALL: dict[str, Any] = {"groups": 9, "interval": 3, "width": 16, "layers": 2, "plan_layers": 2, "max_timestep": 20}


def made(**changes: Any) -> DecisionMambaHybrid:
    torch.manual_seed(1)
    return DecisionMambaHybrid(DMHConfig(**({"state_size": 4, "action_size": 2} | SMALL | changes))).eval()


@pytest.fixture
def data(make_trajectories: MakeTrajectories) -> Trajectories:
    return make_trajectories(lengths=(7, 5, 9, 6))


def replayed(policy: DecisionMambaHybrid, data: Trajectories, contexts: Contexts) -> Tensor:
    """The actions of acting, forced to live through the episodes of a context without padding: `(steps, a)`."""
    rows = contexts.mask[0]
    parts = {f.name: getattr(contexts, f.name)[0][rows] for f in dataclasses.fields(contexts)}
    best = float(parts["returns_to_go"][0])
    state, actions, reward = policy.init_state(1, best), [], None
    for t in range(int(rows.sum())):
        if t and parts["timesteps"][t] == 0:
            state = policy.next_episode(state, torch.tensor([0]), best, Outcome(reward, torch.tensor([False])))
            reward = torch.zeros(1)
        action, state = policy.step(state, parts["states"][t, None], reward, None)
        actions.append(action[0])
        state.actions[:, -1] = parts["actions"][t]  # what was done there
        reward = parts["rewards"][t]
    return torch.stack(actions)


@pytest.mark.parametrize("tokens", ["four", "three"])
def test_acting_over_episodes_is_the_forward(data: Trajectories, tokens: str) -> None:
    """From an empty memory, where each group has a window of its own."""
    policy = made(window="group", tokens=tokens)
    policy.set_state_moments(*map(torch.from_numpy, data.state_moments()))
    groups = int((-(-data.lengths // 3)).sum())
    contexts = ContextSampler(data, groups, interval=3, goals="formula").contexts_of([[1, 0, 3, 2]])
    expected = policy(contexts)[0][contexts.mask[0]].detach()
    torch.testing.assert_close(replayed(policy, data, contexts), expected, rtol=1e-4, atol=1e-5)


def test_a_sliding_window_agrees_with_it_where_a_group_is_full(data: Trajectories) -> None:
    policy = made()
    contexts = ContextSampler(data, 3, interval=3, goals="formula").contexts_of([[2]])  # nine steps
    found, expected = replayed(policy, data, contexts), policy(contexts)[0].detach()
    same = (found - expected).abs().amax(dim=-1) < 1e-5
    assert same.tolist() == [True, True, True, False, False, True, False, False, True]


def test_tasks_side_by_side_at_different_steps_are_each_alone() -> None:
    """Episodes of one to five steps, so that groups and episodes begin at different times."""
    policy, generator = made(), torch.Generator().manual_seed(0)
    lengths, steps = (1, 4, 5), 14
    observations = torch.randn(steps, 3, 4, generator=generator)
    rewards = torch.rand(steps, 3, generator=generator)

    def played(rows: list[int]) -> Tensor:
        wanted = Wanted(3.0, None, torch.Generator().manual_seed(2))
        state, reward, actions = policy.init_state(len(rows), wanted), None, []
        for t in range(steps):
            action, state = policy.act(state, observations[t, rows], reward)
            actions.append(action)
            reward = rewards[t, rows].clone()
            over = torch.tensor([i for i, row in enumerate(rows) if (t + 1) % lengths[row] == 0], dtype=torch.int64)
            if len(over):
                outcome = Outcome(reward[over], torch.zeros(len(over), dtype=torch.bool))
                state = policy.next_episode(state, over, wanted, outcome)
                reward[over] = 0.0
        return torch.stack(actions)

    together = played([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[:, [row]], played([row]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", ["step", "group", "off"])
def test_noise_is_drawn_as_asked(data: Trajectories, noise: str) -> None:
    policy = made(noise=noise, order="learning", learned="all", goals="literal")
    sampler = MODELS["dmh"].sampler(data, policy.config, "cpu")
    contexts: Any = sampler.gather(sampler.draw(1, 3, torch.Generator().manual_seed(0))[0])
    losses = [float(policy.loss(contexts)["action"].detach()) for _ in range(2)]
    assert (losses[0] == losses[1]) == (noise == "off")
    eps = policy._drawn(policy.plans(contexts))
    assert eps.shape == (3, 9, 3, 4) and bool((eps[:, :, 0] == eps[:, :, 1]).all()) == (noise == "group")
    state = policy.init_state(2, Wanted(1.0, None, torch.Generator().manual_seed(0)))
    plans = []
    for _ in range(4):
        _, state = policy.act(state, torch.ones(2, 4), torch.zeros(2))
        plans.append(state.eps)
    assert bool((plans[0] == plans[1]).all()) and bool((plans[0] == plans[3]).all()) == (noise != "group")


def test_a_free_spread_is_not_held_above_0_61() -> None:
    for spread, held in (("squashed", True), ("free", False)):
        policy = made(spread=spread)
        torch.nn.init.constant_(policy.planner.head.bias, -9.0)
        mu, log_variance = policy.planner.squash(policy.planner.head(torch.randn(5, 16))).chunk(2, dim=-1)
        assert bool((mu.abs() <= 1).all()) and bool(((log_variance / 2).exp() > 0.6).all()) == held


def test_both_terms_are_errors_of_actions_and_the_second_can_be_left_out(data: Trajectories) -> None:
    terms = {}
    for weight in (0.0, 0.5, 1.0):
        policy = made(goal_weight=weight, noise="off")
        sampler = MODELS["dmh"].sampler(data, policy.config, "cpu")
        contexts: Any = sampler.gather(sampler.draw(1, 3, torch.Generator().manual_seed(0))[0])
        terms[weight] = {name: float(term.detach()) for name, term in policy.loss(contexts).items()}
    assert terms[0.0]["goal"] == 0 and terms[1.0]["goal"] == pytest.approx(2 * terms[0.5]["goal"])
    assert terms[0.0]["action"] == terms[1.0]["action"]


def test_the_worker_reads_no_more_than_can_be_learned(data: Trajectories) -> None:
    short, whole = (made(noise="off", longest=longest) for longest in (9, 1000))
    sampler = MODELS["dmh"].sampler(data, short.config, "cpu")
    contexts: Any = sampler.gather(sampler.draw(1, 6, torch.Generator().manual_seed(0))[0])
    for name, term in short.loss(contexts).items():
        torch.testing.assert_close(term, whole.loss(contexts)[name])


def test_discrete_actions_get_cross_entropy(data: Trajectories) -> None:
    chosen = np.eye(2, dtype=np.float32)[np.arange(data.transitions) % 2]
    data = dataclasses.replace(data, actions=chosen, discrete_actions=True)
    policy = made(noise="off")
    policy.discrete_actions = True
    sampler = MODELS["dmh"].sampler(data, policy.config, "cpu")
    contexts: Any = sampler.gather(sampler.draw(1, 3, torch.Generator().manual_seed(0))[0])
    logits, learned = policy(contexts), contexts.learned[..., 0].bool()
    expected = torch.nn.functional.cross_entropy(logits[learned], contexts.actions[learned])
    torch.testing.assert_close(policy.loss(contexts)["action"], expected)
    action, _ = policy.act(policy.init_state(2, 1.0), torch.zeros(2, 4))
    assert action.sum(dim=1).tolist() == [1.0, 1.0] and set(action.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("noise", ["off", "step"])
def test_discrete_actions_are_drawn_at_a_temperature_or_the_likeliest(noise: Any) -> None:
    """With the same bias of the head everywhere, the share of an action is known."""
    drawn = made(noise=noise, temperature=0.7)
    drawn.discrete_actions = True
    head: Any = drawn.worker.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias[:] = torch.tensor([0.0, 1.0])
    n, seen = 4000, torch.zeros(4000, 4)
    asked = Wanted(0.0, None, torch.Generator().manual_seed(0), torch.arange(n))
    first, state = drawn.act(drawn.init_state(n, asked), seen)
    second, _ = drawn.act(state, seen, torch.zeros(n))
    share = (torch.tensor([0.0, 1.0]) / 0.7).softmax(dim=0)
    for actions in (first, second):
        assert set(actions.flatten().tolist()) == {0.0, 1.0}
        assert ((actions.mean(dim=0) - share).abs() < 5 * (0.25 / n) ** 0.5).all()
    assert 0 < (first == second).float().mean() < 1  # steps are drawn apart
    again, _ = drawn.act(drawn.init_state(n, asked), seen)
    assert torch.equal(again, first)
    likeliest = made(noise=noise, temperature=0.0)
    likeliest.discrete_actions = True
    likeliest.load_state_dict(drawn.state_dict())
    greedy, _ = likeliest.act(likeliest.init_state(n, asked), seen)
    assert greedy[:, 1].eq(1).all()


SIZES = {("Hopper-v5", 11, 3): 971_306, ("Walker2d-v5", 17, 6): 978_413, ("AntMaze_UMaze-v5", 29, 8): 991_815}
SIZES |= {("FrankaKitchen-v1", 60, 9): 1_026_699}


@pytest.mark.parametrize(("data_of", "count"), SIZES.items())
def test_published_sizes_are_theirs(data_of: tuple[str, int, int], count: int) -> None:
    """But for the weights that nothing reads."""
    env_id, s, a = data_of
    facts = Facts(state_size=s, action_size=a, env_id=env_id)
    changes, _ = read_changes({"sizes": "published"}, MODELS["dmh"], TrainConfig, facts)
    policy = MODELS["dmh"].policy(MODELS["dmh"].config_for(facts, changes))
    unused = (2 * s + 1) * 128 + 129 * s + 2 * 129 + 128  # embed_z, heads for states, rewards and returns; one word
    assert sum(weight.numel() for weight in policy.parameters()) == count - unused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 0}, "groups: got 0"),
        ({"heads": 3}, "heads: got 3, allowed are divisors of width 16"),
        ({"goals": "none"}, "goals: got 'none', allowed are formula, literal, released"),
        ({"goal_weight": -1.0}, "goal_weight: got -1, allowed is 0 or more"),
        ({"plan_size": -1}, "plan_size: got -1"),
        ({"rtg_scale": 0.0}, "rtg_scale: got 0, allowed is a positive number"),
        ({"dropout": 1.0}, "dropout: got 1, allowed is 0 <= dropout < 1"),
        ({"temperature": -1.0}, "temperature: got -1, allowed is 0"),
    ],
)
def test_bad_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        made(**changes)


def test_contexts_without_goals_or_with_broken_groups_are_refused(data: Trajectories) -> None:
    policy = made()
    contexts: Any = ContextSampler(data, 9, interval=3).contexts_of([[2]])
    with pytest.raises(InputError, match=r"^contexts: got Contexts, allowed are GoalContexts"):
        policy.loss(contexts)
    with pytest.raises(InputError, match=r"^contexts: got 26 steps, allowed are groups of 3"):
        policy(contexts.map(lambda field: field[:, 1:]))
