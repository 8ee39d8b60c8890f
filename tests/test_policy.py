from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from dmm.configs import config_fields
from dmm.data.windows import Windows
from dmm.errors import InputError, require_choice
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.frame import TokenPolicy, TokenPolicyConfig
from dmm.models.mamba import MambaConfig, MambaPolicy
from dmm.policy import Policy, Wanted

FRAME: dict[str, Any] = {"state_size": 3, "action_size": 2, "context": 4, "width": 8, "layers": 2}
SIZES: dict[str, Any] = FRAME | {"ssm_state": 3}
POLICIES = {
    "dmm": lambda **changes: DecisionMetaMamba(DMMConfig(**(SIZES | changes))),
    "dmm, released": lambda **changes: DecisionMetaMamba(DMMConfig.released(**(SIZES | changes))),
    "dmm, multimodal": lambda **changes: DecisionMetaMamba(DMMConfig(**(SIZES | changes), local_mixer="multimodal")),
    "mamba": lambda **changes: MambaPolicy(MambaConfig(**(SIZES | changes))),
    "dt": lambda **changes: DecisionTransformer(DTConfig(**(FRAME | changes), heads=2)),
}


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Any:
    """In evaluation mode, with moments that are not trivial and a return scale that lets the return matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = POLICIES[request.param](rtg_scale=5.0)
        policy.set_state_moments(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, 1.0]))
        yield policy.eval()


def episode(n: int = 2, steps: int = 7) -> tuple[Tensor, Tensor]:
    """Observations `(steps, n, 3)` and the reward `(steps, n)` that each action earns."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, n, 3, generator=generator), torch.rand(steps, n, generator=generator)


def play(policy: Policy, target: Any, observations: Tensor, rewards: Tensor) -> tuple[Tensor, list[Windows]]:
    """All actions `(steps, n, a)` and the state after each."""
    state, actions, states = policy.init_state(observations.shape[1], target), [], []
    for t, observation in enumerate(observations):
        action, state = policy.act(state, observation, rewards[t - 1] if t else None)
        actions.append(action)
        states.append(state)
    return torch.stack(actions), states


def window_by_hand(
    t: int, targets: Tensor, observations: Tensor, rewards: Tensor, actions: Tensor, k: int = 4
) -> Windows:
    """What the policy sees at step `t`: the last `k` steps, left-padded, the present action not known yet."""
    n, first = observations.shape[1], max(0, t - k + 1)
    windows = Windows(
        returns_to_go=torch.zeros(n, k, 1),
        states=torch.zeros(n, k, 3),
        actions=torch.zeros(n, k, 2),
        timesteps=torch.zeros(n, k, dtype=torch.int64),
        mask=torch.zeros(n, k, dtype=torch.bool),
    )
    for step in range(first, t + 1):
        place = k - 1 - (t - step)
        windows.returns_to_go[:, place, 0] = targets - rewards[:step].sum(0)
        windows.states[:, place] = observations[step]
        windows.timesteps[:, place] = step
        windows.mask[:, place] = True
        if step < t:
            windows.actions[:, place] = actions[step]
    return windows


class TestAct:
    def test_equals_forward_on_windows_built_by_hand(self, policy: Policy) -> None:
        observations, rewards = episode()
        actions, _ = play(policy, 6.0, observations, rewards)
        for t in range(len(observations)):
            windows = window_by_hand(t, torch.full((2,), 6.0), observations, rewards, actions)
            torch.testing.assert_close(actions[t], policy(windows)[:, -1])

    def test_state_is_the_window_built_by_hand(self, policy: Policy) -> None:
        observations, rewards = episode()
        actions, states = play(policy, 6.0, observations, rewards)
        for t, state in enumerate(states):
            expected = window_by_hand(t, torch.full((2,), 6.0), observations, rewards, actions)
            expected.actions[:, -1] = actions[t]
            assert torch.equal(state.mask, expected.mask)
            for field in ("returns_to_go", "states", "actions", "timesteps"):
                ours, other = (getattr(windows, field)[expected.mask] for windows in (state, expected))
                torch.testing.assert_close(ours, other)

    def test_padding_of_the_state_is_zero(self, policy: Policy) -> None:
        observations, rewards = episode()
        _, states = play(policy, 6.0, observations, rewards)
        for state in states:
            for field in ("returns_to_go", "states", "actions", "timesteps"):
                assert not getattr(state, field)[~state.mask].any(), field

    def test_return_asked_for_falls_by_what_was_earned(self, policy: Policy) -> None:
        observations, rewards = episode()
        _, states = play(policy, 6.0, observations, rewards)
        expected = 6 - torch.cat([torch.zeros(1, 2), rewards[:-1].cumsum(0)])
        torch.testing.assert_close(torch.stack([state.returns_to_go[:, -1, 0] for state in states]), expected)

    def test_target_may_differ_between_episodes(self, policy: Policy) -> None:
        observations, rewards = episode()
        actions, _ = play(policy, torch.tensor([2.0, 30.0]), observations, rewards)
        for i, target in enumerate((2.0, 30.0)):
            alone, _ = play(policy, target, observations[:, i : i + 1], rewards[:, i : i + 1])
            torch.testing.assert_close(actions[:, i : i + 1], alone)
        assert not torch.allclose(actions, play(policy, 2.0, observations, rewards)[0])

    def test_episodes_side_by_side_equal_episodes_alone(self, policy: Policy) -> None:
        observations, rewards = episode(n=5)
        together, _ = play(policy, 6.0, observations, rewards)
        for i in range(5):
            alone, _ = play(policy, 6.0, observations[:, i : i + 1], rewards[:, i : i + 1])
            torch.testing.assert_close(together[:, i : i + 1], alone)

    def test_more_episodes_take_no_more_weights(self, policy: Policy) -> None:
        before = {name: (p.data_ptr(), p.detach().clone()) for name, p in policy.named_parameters()}
        play(policy, 6.0, *episode(n=9))
        assert {name: p.data_ptr() for name, p in policy.named_parameters()} == {n: v[0] for n, v in before.items()}
        assert all(torch.equal(p, before[name][1]) for name, p in policy.named_parameters())

    def test_old_state_is_not_changed(self, policy: Policy) -> None:
        observations, rewards = episode()
        state = policy.init_state(2, 6.0)
        _, state = policy.act(state, observations[0])
        before = [
            getattr(state, field).clone() for field in ("returns_to_go", "states", "actions", "timesteps", "mask")
        ]
        policy.act(state, observations[1], rewards[0])
        after = [getattr(state, field) for field in ("returns_to_go", "states", "actions", "timesteps", "mask")]
        assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))

    def test_episodes_may_leave(self, policy: Policy) -> None:
        observations, rewards = episode(n=4)
        together, states = play(policy, 6.0, observations, rewards)
        kept, state = torch.tensor([3, 1]), states[2]
        before = state.states.clone()
        state = policy.select(state, kept)
        for t in range(3, 7):
            action, state = policy.act(state, observations[t, kept], rewards[t - 1, kept])
            torch.testing.assert_close(action, together[t, kept])
        assert torch.equal(states[2].states, before)

    def test_rewards_and_observations_may_be_float64(self, policy: Policy) -> None:
        observations, rewards = episode()
        actions, states = play(policy, 6.0, observations, rewards.double())
        torch.testing.assert_close(actions, play(policy, 6.0, observations, rewards)[0])
        wide, _ = play(policy, 6.0, observations.double(), rewards)
        torch.testing.assert_close(wide, actions)
        assert actions.dtype == states[-1].returns_to_go.dtype == torch.float32

    def test_records_no_gradient(self, policy: Policy) -> None:
        actions, states = play(policy, 6.0, *episode())
        assert not actions.requires_grad and not states[-1].actions.requires_grad


class TestDecode:
    """`forward` in two halves, so that what lies between them can be looked at."""

    @staticmethod
    def windows() -> Windows:
        observations, rewards = episode()
        return window_by_hand(2, torch.full((2,), 6.0), observations, rewards, torch.zeros(2, 2, 2))

    def test_of_the_embedding_is_forward(self, policy: Policy) -> None:
        windows = self.windows()
        tokens = policy.embed(windows)
        assert tokens.shape == (2, 12, 8)
        assert torch.equal(policy.decode(tokens, windows), policy(windows))

    def test_mix_is_what_lies_between_the_norms(self, policy: Policy) -> None:
        windows = self.windows()
        x = policy.mix(policy.embed_norm(policy.embed(windows)), windows)
        assert x.shape == (2, 12, 8)
        torch.testing.assert_close(torch.tanh(policy.head(policy.norm(x[:, 1::3]))), policy(windows))

    def test_takes_gradients_back_to_the_tokens(self, policy: Policy) -> None:
        windows = self.windows()
        tokens = policy.embed(windows).detach().requires_grad_()
        policy.decode(tokens, windows)[:, -1].sum().backward()
        reached = tokens.grad.abs().sum((0, 2))
        assert bool((reached[-6:-1] > 0).all()) and reached[-1] == 0  # the last two steps, up to the state token


class TestInitState:
    def test_is_all_padding_with_the_target_in_the_last_place(self, policy: Policy) -> None:
        state = policy.init_state(3, 7.0)
        assert not state.mask.any() and not state.states.any() and not state.actions.any()
        assert state.returns_to_go[:, -1, 0].tolist() == [7.0] * 3 and not state.returns_to_go[:, :-1].any()
        assert state.states.shape == (3, 4, 3) and state.actions.shape == (3, 4, 2) and state.mask.shape == (3, 4)

    def test_follows_the_policys_precision(self) -> None:
        policy = POLICIES["dmm"]().double()
        assert policy.init_state(1, 1.0).states.dtype == torch.float64

    def test_a_context_of_one_step_works(self) -> None:
        policy = POLICIES["dmm"](context=1, window=3).eval()
        observations, rewards = episode()
        actions, _ = play(policy, 6.0, observations, rewards)
        for t in range(len(observations)):
            windows = window_by_hand(t, torch.full((2,), 6.0), observations, rewards, actions, k=1)
            torch.testing.assert_close(actions[t], policy(windows)[:, -1])


class TestHelpers:
    def test_parameter_count_leaves_out_what_is_frozen(self) -> None:
        policy = POLICIES["dmm"]()
        total = policy.parameter_count()
        policy.head.requires_grad_(False)
        assert total - policy.parameter_count() == 8 * 2 + 2

    def test_forward_is_left_to_the_model(self) -> None:
        with pytest.raises(NotImplementedError):
            Policy(1, 1, 1)(Policy(1, 1, 1).init_state(1, 0.0))

    def test_require_choice_lists_what_is_allowed(self) -> None:
        with pytest.raises(InputError, match=r"^padding: got 'x', allowed are zeros, released$"):
            TokenPolicyConfig(state_size=1, action_size=1, padding="x")  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"^n: got 3, allowed are 1, 2$"):
            require_choice("n", 3, Literal[1, 2])

    def test_config_fields_lists_names_and_types(self) -> None:
        fields = config_fields(MambaConfig)
        assert fields["width"] == "int" and fields["dropout"] == "float" and "conv_width" in fields


def test_the_frame_alone_acts() -> None:
    """A head on the embedded state, as chapter 1 shows it."""
    policy = TokenPolicy(TokenPolicyConfig(**FRAME))
    action, state = policy.eval().act(policy.init_state(2, 1.0), torch.zeros(2, 3))
    torch.testing.assert_close(action, policy(state)[:, -1])
    assert policy.train()(state).shape == (2, 4, 2)


def test_episodes_with_numbers_draw_apart_and_others_alike() -> None:
    generator = torch.Generator().manual_seed(3)
    alike = Wanted(1.0, None, generator).seeds(3)
    apart = Wanted(1.0, None, generator, torch.tensor([0, 1, 5])).seeds(3)
    assert len(set(alike.tolist())) == 1 and (apart - alike).tolist() == [0, 1, 5]
