from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.data.windows import HistoryWindows
from dmm.errors import InputError
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import read_changes
from dmm.models.starformer import MODEL, StARformer, StARformerConfig
from dmm.policy import Outcome
from dmm.training import TrainConfig

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 5, "width": 8, "layers": 2, "heads": 2}
SMALL |= {"local_width": 6, "local_heads": 3, "dropout": 0.0}
KINDS = ("imitation", "reward")
PUBLISHED = {
    "Hopper-v5": (11, 3, 686_191, 692_367),
    "Walker2d-v5": (17, 6, 725_128, 731_304),
    "antmaze-umaze-v2": (29, 8, 802_422, 808_598),
    "kitchen-complete-v0": (60, 9, 1_001_494, 1_007_670),
}
"""State size, action size, and the weights of `star` and `star_rwd`, with their heads that are not trained."""


def small(**changes: Any) -> StARformer:
    """In float64, with weights that are strong enough for every dependence to show, and moments of states."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = StARformer(StARformerConfig(**(SMALL | changes))).double()
        for weight in policy.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
    size = policy.state_size
    policy.set_state_moments(torch.linspace(-1, 1, size), torch.linspace(0.5, 2, size))
    return policy.eval()


def episode(steps: int, seed: int = 1) -> HistoryWindows:
    """One whole episode as one window, in float64."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(1, steps, 4, generator=draw, dtype=torch.float64)
    actions = torch.rand(1, steps, 2, generator=draw, dtype=torch.float64)
    rewards = torch.rand(1, steps, 1, generator=draw, dtype=torch.float64)
    return HistoryWindows(
        returns_to_go=torch.zeros_like(rewards),
        states=states,
        actions=actions,
        timesteps=torch.arange(steps)[None],
        mask=torch.ones(1, steps, dtype=torch.bool),
        rewards=rewards,
        previous_actions=torch.nn.functional.pad(actions, (0, 0, 1, -1)),
        previous_rewards=torch.nn.functional.pad(rewards, (0, 0, 1, -1)),
    )


def cut(windows: HistoryWindows, first: int, end: int) -> HistoryWindows:
    return windows.map(lambda field: field[:, first:end])


def padded(windows: HistoryWindows, k: int = 5) -> HistoryWindows:
    """With zeros on the left, to `k` steps."""
    more = k - windows.mask.shape[1]
    return windows.map(lambda field: torch.cat([torch.zeros_like(field[:, :1]).repeat_interleave(more, 1), field], 1))


class Recorded:
    """What the authors' code computed, and our policy with the same weights."""

    def __init__(self, name: str):
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
            self.sizes = json.loads(str(file["config"]))
        self.policy = cast(StARformer, from_official("starformer", GOLDEN / f"{name}.npz", self.sizes))

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def windows(self) -> HistoryWindows:
        """As a sampler gives them: the second begins with its episode, the others later, the third ends with it."""
        mask = self["inputs/mask"]
        first = torch.tensor([[7], [0], [3]])
        before = self["inputs/previous_actions"]
        return HistoryWindows(
            returns_to_go=torch.zeros_like(self["inputs/rewards"]),
            states=self["inputs/states"],
            actions=self["inputs/target_actions"],
            timesteps=(first + mask.cumsum(dim=1) - 1) * mask,
            mask=mask,
            rewards=self["inputs/rewards"],
            previous_actions=torch.where(before == -10, 0.0, before),
            previous_rewards=torch.nn.functional.pad(self["inputs/rewards"], (0, 0, 1, -1)),
        )


@pytest.fixture(params=["starformer", "starformer_imitation"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    with torch.random.fork_rng():
        return Recorded(request.param)


class TestOfficial:
    def test_actions_equal_the_authors(self, recorded: Recorded) -> None:
        windows = recorded.windows()
        before = recorded["inputs/previous_actions"]
        assert bool((before == -10).any()) and not bool((windows.previous_actions == -10).any())
        torch.testing.assert_close(recorded.policy(windows), recorded["outputs/actions"], rtol=0, atol=1e-5)
        given = dataclasses.replace(windows, previous_actions=before)  # -10 where the authors have it
        assert torch.equal(recorded.policy(given), recorded.policy(windows))

    def test_short_histories_have_the_first_places(self, recorded: Recorded) -> None:
        whole = recorded.windows().map(lambda field: field[:1])
        torch.testing.assert_close(
            recorded.policy(cut(whole, 0, 4)), recorded["outputs/actions_short"], rtol=0, atol=1e-5
        )

    def test_acts_as_the_authors_do_on_a_short_history(self, recorded: Recorded) -> None:
        # their `rewards` hold what was received before each step; `act` is given the last of them, and its windows
        # hold the others a step earlier, beside the step that earned them
        whole = cut(recorded.windows().map(lambda field: field[:1]), 0, 4)
        whole = dataclasses.replace(whole, previous_rewards=whole.rewards, rewards=whole.rewards.roll(-1, dims=1))
        whole = dataclasses.replace(whole, actions=whole.previous_actions.roll(-1, dims=1))
        state = padded(cut(whole, 0, 3), k=6)
        action, after = recorded.policy.act(state, whole.states[:, 3], whole.previous_rewards[:, 3, 0])
        torch.testing.assert_close(action[0], recorded["act/action"], rtol=0, atol=1e-5)
        assert after.timesteps.tolist() == [[0, 0, 7, 8, 9, 10]]

    def test_loss_and_gradients_equal_the_authors(self, recorded: Recorded) -> None:
        policy = recorded.policy
        loss = policy.loss(recorded.windows())["action"]
        torch.testing.assert_close(loss, recorded["loss/total"], rtol=1e-4, atol=0)
        assert MODEL.official is not None
        sources = MODEL.official.sources(policy)
        ours = {source if isinstance(source, str) else source[0]: name for name, source in sources.items()}
        weights = dict(policy.named_parameters())
        keys = [key.removeprefix("grads/") for key in recorded.arrays if key.startswith("grads/")]
        assert len(keys) == 3
        found = torch.autograd.grad(loss, [weights[ours[key]] for key in keys])
        for key, gradient in zip(keys, found, strict=True):
            expected = recorded[f"grads/{key}"].view_as(gradient)
            atol = 1e-4 * float(expected.abs().max())
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=atol, msg=key)

    @pytest.mark.parametrize("kind", KINDS)
    def test_weights_of_other_sizes_are_read(self, kind: Any) -> None:
        policy = small(kind=kind, layers=3, width=12, heads=4, local_width=10, local_heads=5, context=7)
        assert MODEL.official is not None
        own, theirs = policy.state_dict(), {}
        for name, source in MODEL.official.sources(policy).items():
            key = source if isinstance(source, str) else source[0]
            theirs[key] = own[name] if isinstance(source, str) else own[name][None]
        theirs |= {"state_head.weight": torch.zeros(4, 12), "reward_head.bias": torch.zeros(1)}
        theirs |= {f"blocks.{i}.mask": torch.ones(1, 1, 14, 14) for i in range(3)}
        sizes = dataclasses.asdict(policy.config) | {"kind": {"imitation": "star", "reward": "star_rwd"}[kind]}
        moments = {"state_mean": policy.state_mean, "state_std": policy.state_std}
        read = from_official("starformer", theirs, sizes | moments).double()
        torch.testing.assert_close(read(episode(7)), policy(episode(7)), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"kind": "star_fusion"}, "kind: got 'star_fusion', allowed are star, star_rwd"),
            ({"kind": "star"}, "left over: token_emb.reward_emb.0.bias, token_emb.reward_emb.0.weight"),
            ({"heads": 5}, "heads: got 5, allowed are divisors of width 32"),
            ({"layers": 1}, "left over: blocks.1.global_block.attn.key.bias"),
        ],
    )
    def test_wrong_sizes_are_named(self, changes: dict[str, Any], message: str) -> None:
        recorded = Recorded("starformer")
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            from_official("starformer", GOLDEN / "starformer.npz", recorded.sizes | changes)
        assert "\n" not in str(caught.value)


class TestSizes:
    @pytest.mark.parametrize("env_id", PUBLISHED)
    @pytest.mark.parametrize("kind", KINDS)
    def test_published_sizes_have_the_authors_number_of_weights(self, env_id: str, kind: str) -> None:
        state_size, action_size, *theirs = PUBLISHED[env_id]
        facts = Facts(state_size=state_size, action_size=action_size, env_id=env_id)
        changes, recipe = read_changes({"sizes": "published", "kind": kind}, MODEL, TrainConfig, facts)
        policy = MODEL.policy(MODEL.config_for(facts, changes))
        untrained = 129 * state_size + 129  # heads for the next state and for the reward
        assert policy.parameter_count() + untrained == theirs[KINDS.index(kind)]
        training = TrainConfig(**recipe)
        assert (training.beta2, training.decay, training.warmup * training.steps) == (0.95, "matrices", 10_000)

    def test_frame_sizes_for_hopper(self) -> None:
        # d = 64, e = 16, P = 12. Embeddings 64 + 32 + 768, tables 176 + 512, last norm 128, head 195; layer: local
        # block 1,088 + 2,128 + 64 = 3,280, its norm 32, projection 12,352, norm 128, block 16,640 + 33,088 + 256
        assert 864 + 688 + 323 + 3 * (3_280 + 32 + 12_352 + 128 + 49_984) == 199_203
        assert MODEL.policy(MODEL.make_config(11, 3, "Hopper-v5")).parameter_count() == 199_203

    def test_starts_as_the_authors_do(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy: Any = MODEL.policy(MODEL.make_config(11, 3, kind="reward"))
        for layer in (policy.blocks[0].project, policy.blocks[2].block.mlp[0], policy.embed_state):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05) and not layer.bias.any()
        assert not policy.entries.weight.any() and not policy.places.weight.any()


def reached(policy: StARformer, windows: HistoryWindows) -> dict[str, Tensor]:
    """Which prediction depends on which step's input, by the Jacobian: field -> `(k, k)`, row t for step t's action."""
    names = ("states", "previous_actions", "rewards", "actions", "returns_to_go", "previous_rewards")
    given = {name: getattr(windows, name).clone().requires_grad_() for name in names}
    predicted = policy(dataclasses.replace(windows, **given))[0]
    found = {name: torch.zeros(len(predicted), len(predicted), dtype=torch.bool) for name in names}
    for t, row in enumerate(predicted):
        gradients = torch.autograd.grad(row.sum(), list(given.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            found[name][t] = False if gradient is None else gradient[0].abs().sum(-1) > 0
    return found


class TestReach:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("layers", [1, 2])
    def test_predictions_see_the_past_and_their_own_state(self, kind: Any, layers: int) -> None:
        found = reached(small(kind=kind, layers=layers), cut(episode(8), 2, 7))
        past, nothing = torch.ones(5, 5, dtype=torch.bool).tril(), torch.zeros(5, 5, dtype=torch.bool)
        assert torch.equal(found["states"], past) and torch.equal(found["previous_actions"], past)
        assert torch.equal(found["rewards"], past if kind == "reward" else nothing)  # that of the action itself, too
        for name in ("actions", "returns_to_go", "previous_rewards"):
            assert torch.equal(found[name], nothing), name

    def test_all_pieces_of_a_step_see_each_other(self) -> None:
        block: Any = small().blocks[0].local_block  # type: ignore[union-attr]
        pieces = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
        for piece in range(5):
            gradient = torch.autograd.grad(block(pieces)[0, piece].sum(), pieces)[0]
            assert bool((gradient[0].abs().sum(-1) > 0).all())


class TestInputs:
    def test_action_before_the_first_is_minus_ten(self) -> None:
        policy, windows = small(), cut(episode(8), 0, 5)
        assert not windows.previous_actions[:, 0].any()
        told = windows.previous_actions.clone()
        told[:, 0] = -10
        assert torch.equal(policy(windows), policy(dataclasses.replace(windows, previous_actions=told)))
        later = dataclasses.replace(windows, timesteps=windows.timesteps + 1)  # an action of zeros is one
        assert not torch.allclose(policy(windows), policy(later))

    def test_padding_is_read_as_zero_states_and_actions_of_minus_ten(self) -> None:
        policy, windows = small(kind="reward"), padded(cut(episode(8), 0, 3))
        told = torch.where(windows.mask[..., None], windows.previous_actions, -10.0)
        told[:, 2] = -10
        whole = dataclasses.replace(
            windows, mask=torch.ones_like(windows.mask), timesteps=windows.timesteps + 3, previous_actions=told
        )
        assert torch.equal(policy(windows), policy(whole))
        assert not torch.allclose(policy(windows)[:, 2:], policy(cut(windows, 2, 5)), atol=1e-3)

    @pytest.mark.parametrize("kind", KINDS)
    def test_rewards_count_where_they_are_a_piece_and_are_not_scaled(self, kind: Any) -> None:
        policy, windows = small(kind=kind), cut(episode(8), 2, 7)
        moved = policy(dataclasses.replace(windows, rewards=windows.rewards + 0.5)) - policy(windows)
        assert bool(moved.abs().max() > 1e-3) == (kind == "reward")
        assert not hasattr(policy.config, "rtg_scale")

    def test_windows_know_the_action_before_their_first_step(self, trajectories: Trajectories) -> None:
        # as the authors' `get_batch`: the trajectory's own where there is one, -10 at its start and in padding
        config = MODEL.make_config(4, 2, context=5)
        sampler: Any = MODEL.sampler(trajectories, config, "cpu")
        windows = sampler.gather(torch.arange(trajectories.transitions))
        seen: list[Tensor] = []
        policy: Any = MODEL.policy(config)
        policy.embed_action.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        policy(windows)
        row = 0
        for start, length in zip(trajectories.starts, trajectories.lengths, strict=True):
            actions = trajectories.actions[start : start + length]
            for first in range(length):
                real = min(5, length - first)
                earlier = actions[first - 1 : first] if first else np.full((1, 2), -10.0)
                before = [np.full((5 - real, 2), -10.0), earlier, actions[first : first + real - 1]]
                np.testing.assert_allclose(seen[0][row].numpy(), np.concatenate(before).astype(np.float32))
                row += 1
        assert row == trajectories.transitions


def play(policy: StARformer, whole: HistoryWindows, t: int, taken: list[Tensor]) -> Tensor:
    """The action at step t by definition: the last steps of the history, not padded, with the reward before each."""
    first = max(0, t + 1 - policy.context)
    part = cut(whole, first, t + 1)
    before = torch.cat([torch.zeros(1, 1, policy.action_size, dtype=torch.float64), *taken], dim=1)[:, first : t + 1]
    return policy(dataclasses.replace(part, rewards=part.previous_rewards, previous_actions=before))[:, -1]


class TestActing:
    @pytest.mark.parametrize("kind", KINDS)
    def test_acts_by_the_last_steps_without_padding(self, kind: Any) -> None:
        policy, whole = small(kind=kind), episode(9)
        state = policy.init_state(1, 3.0)
        taken: list[Tensor] = []
        for t in range(9):
            reward = whole.rewards[:, t - 1, 0] if t else None
            action, state = policy.act(state, whole.states[:, t], reward)
            with torch.no_grad():
                torch.testing.assert_close(action, play(policy, whole, t, taken))
            taken.append(action[:, None])

    def test_return_asked_for_does_not_matter(self) -> None:
        policy, whole = small(kind="reward"), episode(3)
        found = [policy.act(policy.init_state(1, target), whole.states[:, 0])[0] for target in (0.0, 1e3)]
        assert torch.equal(*found)

    def test_episodes_of_several_ages_go_on_together(self) -> None:
        policy, old, new = small(kind="reward"), episode(7), episode(4, seed=2)
        state = policy.init_state(2, 0.0)
        alone: list[Tensor] = []
        for t in range(3):
            reward = old.rewards[:, t - 1, 0].expand(2) if t else None
            action, state = policy.act(state, old.states[:, t].expand(2, -1), reward)
            alone.append(action[:1, None])
        state = policy.next_episode(state, torch.tensor([1]), 0.0, Outcome(torch.zeros(1), torch.ones(1).bool()))
        begun: list[Tensor] = []
        for t in range(4):
            rewards = torch.cat([old.rewards[:, t + 2, 0], new.rewards[:, t - 1, 0] if t else torch.zeros(1)])
            action, state = policy.act(state, torch.cat([old.states[:, t + 3], new.states[:, t]]), rewards)
            with torch.no_grad():
                torch.testing.assert_close(action[:1], play(policy, old, t + 3, alone))
                torch.testing.assert_close(action[1:], play(policy, new, t, begun))
            alone.append(action[:1, None])
            begun.append(action[1:, None])

    def test_discrete_actions_are_seen_as_played(self) -> None:
        policy, whole = small(), episode(2)
        policy.discrete_actions = True
        action, state = policy.act(policy.init_state(1, 0.0), whole.states[:, 0])
        assert sorted(action[0].tolist()) == [0, 1]
        _, state = policy.act(state, whole.states[:, 1], whole.rewards[:, 0, 0])
        assert torch.equal(state.previous_actions[:, -1], action)


def test_dropout_acts_in_training_only() -> None:
    policy, windows = small(dropout=0.5), cut(episode(8), 2, 7)
    assert torch.equal(policy(windows), policy(windows))
    policy.train()
    assert not torch.equal(policy(windows), policy(windows))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("kind", "star", "imitation, reward"),
        ("heads", 3, "divisors of width 8"),
        ("local_heads", 4, "divisors of local_width 6"),
        ("local_width", 0, "at least 1"),
        ("context", 0, "at least 1"),
        ("dropout", 1.0, "0 <= dropout < 1"),
    ],
)
def test_wrong_field_is_named(field: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, allowed .*{allowed}") as caught:
        StARformerConfig(**(SMALL | {field: value}))
    assert "\n" not in str(caught.value)
