from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmm.acting import ACTING, Actor, RecurrentActor, StaggeredActor, make_actor
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.models.dc import DCConfig, DecisionConvFormer
from dmm.models.dm import DecisionMamba, DMConfig
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.frame import TokenPolicy
from dmm.models.mamba import MambaConfig, MambaPolicy
from dmm.policy import Policy

SIZES: dict[str, Any] = {"state_size": 3, "action_size": 2, "width": 8, "layers": 2, "ssm_state": 3, "rtg_scale": 5.0}
FRAME = {name: value for name, value in SIZES.items() if name != "ssm_state"}
TIMED = {"max_timestep": 12}  # fewer than the episodes have
MODELS = {
    "dmm": lambda **changes: DecisionMetaMamba(DMMConfig(**(SIZES | changes))),
    "dmm, paper": lambda **changes: DecisionMetaMamba(DMMConfig.paper(**(SIZES | changes))),
    "dmm, released": lambda **changes: DecisionMetaMamba(DMMConfig.released(**(SIZES | changes))),
    "dmm, depthwise": lambda **changes: DecisionMetaMamba(
        DMMConfig(**(SIZES | changes), local_mixer="depthwise", dsm_bias=True)
    ),
    "dmm, multimodal": lambda **changes: DecisionMetaMamba(
        DMMConfig(**(SIZES | changes), local_mixer="multimodal", residual="normalized")
    ),
    "dmm, mamba2": lambda **changes: DecisionMetaMamba(
        DMMConfig(**(SIZES | changes), global_mixer="mamba2", head_size=4)
    ),
    "dmm, s4": lambda **changes: DecisionMetaMamba(
        DMMConfig(**(SIZES | changes | {"ssm_state": 4}), global_mixer="s4")
    ),
    "dmm, gelu": lambda **changes: DecisionMetaMamba(DMMConfig(**(SIZES | changes), activation="gelu", skip=False)),
    "mamba": lambda **changes: MambaPolicy(MambaConfig(**(SIZES | changes))),
    "dm": lambda **changes: DecisionMamba(DMConfig(**(SIZES | TIMED | changes))),
    "dc": lambda **changes: DecisionConvFormer(DCConfig(**(FRAME | TIMED | changes))),
    "dc-no-actions": lambda **changes: DecisionConvFormer(DCConfig(**(FRAME | TIMED | changes), action_tokens=False)),
}
STEPS, EPISODES, TARGET = 17, 3, 6.0


def make_policy(model: str = "dmm", context: int = 6) -> TokenPolicy:
    """In float64, with weights so large that every token matters and moments that are not trivial."""
    window = {} if model in ("mamba", "dm") else {"window": min(6, 3 * context)}
    policy = MODELS[model](context=context, **window).double().eval()
    for name, weight in policy.named_parameters():
        if weight.ndim > 1 and "A_log" not in name:
            nn.init.normal_(weight, std=0.4)
    nn.init.normal_(policy.embed_norm.bias, std=0.4)  # else padded steps are zeros and leave no trace
    if policy.embed_timestep is not None:
        policy.embed_timestep.weight.data *= 0.4 / policy.embed_timestep.weight.std()
    policy.set_state_moments(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, 1.0]))
    return policy


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield


def episode(steps: int = STEPS, n: int = EPISODES) -> tuple[Tensor, Tensor]:
    """Observations `(steps, n, 3)` and what the actions earn `(steps, n)`."""
    generator = torch.Generator().manual_seed(1)
    observations = 2 * torch.randn(steps, n, 3, generator=generator, dtype=torch.float64)
    return observations, torch.rand(steps, n, generator=generator, dtype=torch.float64)


def play(actor: Actor, target: Any = TARGET, steps: int = STEPS, n: int = EPISODES) -> Tensor:
    """All actions `(steps, n, a)`."""
    observations, rewards = episode(steps, n)
    state, actions = actor.init_state(n, target), []
    for t, observation in enumerate(observations):
        action, state = actor.act(state, observation, rewards[t - 1] if t else None)
        actions.append(action.clone())
    return torch.stack(actions)


def forward_over(policy: Policy, actions: Tensor, first: int, last: int) -> Tensor:
    """The prediction at step `last`, `(n, a)`, of one forward from step `first` on; steps below 0 are padded."""
    observations, rewards = episode()
    n, k = observations.shape[1], last - first + 1
    sizes = {"returns_to_go": 1, "states": 3, "actions": 2}
    parts = {name: torch.zeros(n, k, size, dtype=torch.float64) for name, size in sizes.items()}
    mask, timesteps = torch.zeros(n, k, dtype=torch.bool), torch.arange(first, last + 1).clamp(min=0).expand(n, k)
    for place, step in enumerate(range(first, last + 1)):
        if step >= 0:
            parts["returns_to_go"][:, place, 0] = TARGET - rewards[:step].sum(0)
            parts["states"][:, place] = observations[step]
            mask[:, place] = True
            if step < last:
                parts["actions"][:, place] = actions[step]
    with torch.no_grad():
        return policy(Windows(**parts, timesteps=timesteps, mask=mask))[:, -1]


class TestFiniteReach:
    @pytest.mark.parametrize("model", ["dc", "dc-no-actions"])
    @pytest.mark.parametrize("window", [2, 4, 6])
    def test_recurrent_is_the_window_where_the_context_reaches_as_far(self, model: str, window: int) -> None:
        tokens = 2 if model == "dc-no-actions" else 3
        reach = SIZES["layers"] * (window - 1) + 1
        least = 1 + -(-(reach - 2) // tokens)  # steps in whose window the last state's token is that far from the first
        for context, equal in ((least, True), (least + 3, True), (max(1, least - 1), least == 1)):
            policy = MODELS[model](context=context, window=window).double().eval()
            assert policy.reach == reach
            nn.init.normal_(policy.embed_norm.bias)
            difference = (play(make_actor(policy, "recurrent")) - play(policy)).abs().max()
            assert (float(difference) < 1e-12) == equal

    def test_long_episodes_in_single_precision(self) -> None:
        policy = make_policy("dc", context=8).float()
        actor, rewards = make_actor(policy, "recurrent"), torch.rand(300, 2)
        window, state = policy.init_state(2, TARGET), actor.init_state(2, TARGET)
        for t, observation in enumerate(torch.randn(300, 2, 3)):
            earned = rewards[t - 1] if t else None
            action, window = policy.act(window, observation, earned)
            found, state = actor.act(state, observation, earned)
            torch.testing.assert_close(found, action, rtol=0, atol=1e-6)
            state = state._replace(action=action)


def length_seen(t: int, context: int, states: int) -> int:
    """Steps that the oldest of the staggered states has seen at step `t`: restarts lie at `1 - K + j K/m`."""
    spacing, first = context // states, 1 - context
    restarts = range(first, t + 1, spacing)
    return t - min(r for r in restarts if t - r < context) + 1


@pytest.mark.parametrize("model", MODELS)
class TestEveryModel:
    @pytest.mark.parametrize("context", [1, 2, 5, 6])
    def test_as_many_states_as_steps_are_the_window(self, model: str, context: int) -> None:
        policy = make_policy(model, context)
        window = play(policy)
        assert window.std(dim=(0, 1)).min() > 0.02
        torch.testing.assert_close(play(make_actor(policy, "staggered", context)), window)

    @pytest.mark.parametrize(("context", "states"), [(6, 1), (6, 2), (6, 3), (9, 3), (5, 1)])
    def test_staggered_is_a_forward_over_what_the_oldest_state_has_seen(
        self, model: str, context: int, states: int
    ) -> None:
        policy = make_policy(model, context)
        actions = play(make_actor(policy, "staggered", states))
        for t in range(STEPS):
            first = t - length_seen(t, context, states) + 1
            torch.testing.assert_close(actions[t], forward_over(policy, actions, first, t))

    @pytest.mark.parametrize("context", [1, 2, 6])
    def test_recurrent_is_a_forward_over_the_padding_and_the_whole_episode(self, model: str, context: int) -> None:
        policy = make_policy(model, context)
        actions = play(make_actor(policy, "recurrent"))
        for t in range(STEPS):
            torch.testing.assert_close(actions[t], forward_over(policy, actions, 1 - context, t))

    @pytest.mark.parametrize("acting", ["recurrent", "staggered"])
    def test_discrete_actions_are_one_hot_and_seen_as_such(self, model: str, acting: str) -> None:
        policy = make_policy(model, context=4)
        if "action" in policy.TOKENS:
            policy.embed_action.weight.data *= 0.3  # else one action calls for the same again
        policy.head.bias.data -= play(policy).atanh().mean((0, 1))  # so that neither action is the best at every step
        policy.discrete_actions = True
        actions = play(make_actor(policy, acting, 4))
        assert bool(((actions == 0) | (actions == 1)).all()) and bool((actions.sum(-1) == 1).all())
        assert 0 < actions[..., 0].mean() < 1
        if acting == "staggered":
            assert torch.equal(actions, play(policy))
        for t in range(STEPS):
            first = 1 - 4 if acting == "recurrent" else t - 3
            assert torch.equal(actions[t].argmax(-1), forward_over(policy, actions, first, t).argmax(-1))


WAYS = [("window", 4), ("recurrent", 4), ("staggered", 1), ("staggered", 2), ("staggered", 6)]


@pytest.mark.parametrize(("acting", "states"), WAYS)
class TestEveryWay:
    @pytest.mark.parametrize("model", ["dmm", "dmm, multimodal", "mamba", "dc"])
    def test_act_and_select_leave_the_old_state_alone(self, acting: str, states: int, model: str) -> None:
        actor, (observations, rewards) = make_actor(make_policy(model), acting, states), episode()
        state = actor.init_state(EPISODES, TARGET)
        for t in range(8):
            first, after = actor.act(state, observations[t], rewards[t])
            actor.act(after, observations[t + 1], rewards[t + 1])
            actor.select(state, torch.tensor([1]))
            again, _ = actor.act(state, observations[t], rewards[t])
            assert torch.equal(first, again)
            state = after

    @pytest.mark.parametrize("dropped_at", [1, 5, 9])
    def test_episodes_may_leave(self, acting: str, states: int, dropped_at: int) -> None:
        actor, (observations, rewards) = make_actor(make_policy("dmm, multimodal"), acting, states), episode()
        everyone, kept = play(actor), torch.tensor([2, 0])
        state = actor.init_state(EPISODES, TARGET)
        for t in range(STEPS):
            rows = torch.arange(EPISODES) if t < dropped_at else kept
            if t == dropped_at:
                state = actor.select(state, kept)
            action, state = actor.act(state, observations[t, rows], rewards[t - 1, rows] if t else None)
            torch.testing.assert_close(action, everyone[t, rows])

    def test_episodes_side_by_side_equal_episodes_alone(self, acting: str, states: int) -> None:
        actor = make_actor(make_policy(), acting, states)
        together, (observations, rewards) = play(actor, torch.tensor([2.0, 30.0, 6.0])), episode()
        for i, target in enumerate((2.0, 30.0, 6.0)):
            state = actor.init_state(1, target)
            for t in range(STEPS):
                row = slice(i, i + 1)
                action, state = actor.act(state, observations[t, row], rewards[t - 1, row] if t else None)
                torch.testing.assert_close(action, together[t, row])
        assert not torch.allclose(together, play(actor, 2.0))

    def test_follows_the_policys_precision_whatever_the_observations(self, acting: str, states: int) -> None:
        policy = make_policy()
        single = play(make_actor(policy.float(), acting, states), 6)
        assert single.dtype == torch.float32
        double = play(make_actor(policy.double(), acting, states))
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-4)

    def test_dropout_is_off(self, acting: str, states: int) -> None:
        policy = make_policy().train()
        actor = make_actor(policy, acting, states)
        assert torch.equal(play(actor), play(actor))

    def test_state_has_one_size_for_ever(self, acting: str, states: int) -> None:
        actor, (observations, rewards) = make_actor(make_policy(), acting, states), episode()
        state = actor.init_state(EPISODES, TARGET)
        before = count(state)
        for t in range(STEPS):
            _, state = actor.act(state, observations[t], rewards[t])
            assert count(state) == before


def count(state: Any) -> int:
    """Numbers in a state."""
    if isinstance(state, Tensor):
        return state.numel()
    parts = vars(state).values() if isinstance(state, Windows) else state if isinstance(state, tuple) else ()
    return sum(count(part) for part in parts)


class TestMakeActor:
    def test_the_window_is_the_default_and_the_policy_itself(self) -> None:
        policy = make_policy()
        assert make_actor(policy) is policy and ACTING == ("window", "recurrent", "staggered", "cached")

    @pytest.mark.parametrize("acting", ACTING[:3])  # the last is for other models
    def test_a_policy_in_training_stays_there(self, acting: str) -> None:
        policy = make_policy().train()
        make_actor(policy, acting, 2)
        assert all(module.training for module in policy.modules())

    @pytest.mark.parametrize("acting", ["recurrent", "staggered"])
    def test_acts_with_the_weights_of_now_and_leaves_the_policy_alone(self, acting: str) -> None:
        policy = make_policy()
        policy.train()
        actor = make_actor(policy, acting, 2)
        assert policy.training and all(weight.requires_grad for weight in policy.parameters())
        before = play(actor)
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(0.3)
        assert torch.equal(play(actor), before)
        assert not torch.allclose(play(make_actor(policy, acting, 2)), before)

    def test_four_staggered_states_unless_told_otherwise(self) -> None:
        actor = make_actor(make_policy(context=8), "staggered")
        assert isinstance(actor, StaggeredActor) and actor.states == 4

    @pytest.mark.parametrize("states", [0, -2, 4, 7, 12])
    def test_states_that_do_not_divide_the_context_are_refused(self, states: int) -> None:
        message = rf"^states: got {states}, allowed are the divisors of the context 6: 1, 2, 3, 6$"
        with pytest.raises(InputError, match=message):
            make_actor(make_policy(context=6), "staggered", states)

    def test_another_way_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"^acting: got 'x', allowed are window, recurrent, staggered, cached$"):
            make_actor(make_policy(), "x")

    @pytest.mark.parametrize("acting", ["recurrent", "staggered"])
    def test_a_model_without_a_recurrence_is_refused(self, acting: str) -> None:
        policy = DecisionTransformer(DTConfig(state_size=3, action_size=2, width=8, layers=1, heads=2)).eval()
        assert make_actor(policy, "window") is policy
        with pytest.raises(
            InputError, match=rf"^acting: got '{acting}' for a DecisionTransformer, .*allowed is window"
        ):
            make_actor(policy, acting)

    def test_a_model_with_tokens_of_its_own_is_refused(self) -> None:
        class Other(DecisionMetaMamba):
            def embed(self, windows: Windows) -> Tensor:
                return super().embed(windows) + windows.timesteps.repeat_interleave(3, 1)[..., None]

        policy = Other(DMMConfig(state_size=3, action_size=2, width=8, layers=1))
        with pytest.raises(InputError, match=r"^acting: got 'recurrent' for a Other"):
            make_actor(policy, "recurrent")


class TestBeginning:
    """What the padding is: steps taken in before the episode, so it can be left out by a sub-class."""

    @pytest.mark.parametrize("model", ["dmm", "dmm, multimodal", "mamba", "dm", "dc-no-actions"])
    def test_without_padding_recurrent_is_a_forward_over_the_episode(self, model: str) -> None:
        class FromZero(RecurrentActor):
            def beginning(self) -> Any:
                return self.nothing()

        policy = make_policy(model)
        actions = play(FromZero(policy))
        for t in range(STEPS):
            torch.testing.assert_close(actions[t], forward_over(policy, actions, 0, t))
        assert not torch.allclose(actions, play(RecurrentActor(policy)))

    @pytest.mark.parametrize("model", ["dmm", "dmm, multimodal", "mamba"])
    @pytest.mark.parametrize("states", [1, 2, 6])
    def test_without_padding_staggered_is_a_forward_from_the_last_restart(self, model: str, states: int) -> None:
        class FromZero(StaggeredActor):
            def beginning(self) -> Any:
                return self.nothing()

        policy = make_policy(model)
        actions = play(FromZero(policy, states))
        for t in range(STEPS):
            restarts = range(0, t + 1, 6 // states)
            first = min(r for r in restarts if t - r < 6)
            torch.testing.assert_close(actions[t], forward_over(policy, actions, first, t))

    def test_the_target_is_nothing_that_the_padding_knows(self) -> None:
        actor = RecurrentActor(make_policy())
        low, high = actor.init_state(2, 1.0), actor.init_state(2, torch.tensor([5.0, 9.0]))
        assert low.target.tolist() == [[1.0], [1.0]] and high.target.tolist() == [[5.0], [9.0]]
        assert low.clock == high.clock == 5
        assert all(torch.equal(a.overall.ssm, b.overall.ssm) for a, b in zip(low.blocks, high.blocks, strict=True))


@pytest.mark.parametrize("acting", ["window", "recurrent", "staggered"])
def test_no_episodes_are_played_too(acting: str) -> None:
    policy = DecisionMetaMamba(DMMConfig(state_size=3, action_size=2, width=8, layers=1)).eval()
    actor = make_actor(policy, acting)
    state = actor.select(actor.init_state(2, 1.0), torch.zeros(0, dtype=torch.int64))
    action, _ = actor.act(state, torch.zeros(0, 3))
    assert action.shape == (0, 2)


def test_a_policy_with_a_forward_of_its_own_is_no_recurrence() -> None:
    class Other(DecisionMetaMamba):
        def forward(self, windows: Any) -> torch.Tensor:
            return super().forward(windows) * 0

    policy = Other(DMMConfig(state_size=3, action_size=2, width=8, layers=1))
    with pytest.raises(InputError, match=r"^acting: got 'recurrent' for a Other, which is no recurrence"):
        make_actor(policy, "recurrent")


@pytest.mark.parametrize("acting", ["recurrent", "staggered"])
def test_attention_as_the_global_mixer_is_no_recurrence(acting: str) -> None:
    config = DMMConfig(state_size=3, action_size=2, width=8, layers=1, global_mixer="attention")
    with pytest.raises(InputError, match=rf"^acting: got '{acting}' for a DecisionMetaMamba, which is no recurrence"):
        make_actor(DecisionMetaMamba(config), acting)
