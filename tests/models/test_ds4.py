"""Decision S4 against numbers made with its successor's code (`tests/golden/ds4_actor.npz`), and by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmm.acting import RecurrentActor, make_actor
from dmm.data.trajectories import Trajectories
from dmm.data.windows import HistoryWindows
from dmm.errors import InputError
from dmm.layers.s4 import LONGEST_PRODUCT
from dmm.models import ds4
from dmm.models.ds4 import MODEL, DecisionS4, DS4Config, DS4State
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import read_changes
from dmm.policy import Outcome, Wanted
from dmm.training import TrainConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "ds4_actor.npz"
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 7, "width": 6, "layers": 2}
SMALL |= {"embedding": 5, "ssm_state": 4, "rtg_scale": 10.0}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        read = {key: arrays[key] for key in arrays.files}
    return {key: json.loads(str(array)) if key == "config" else torch.from_numpy(array) for key, array in read.items()}


def official(golden: dict[str, Any], **changes: Any) -> DecisionS4:
    weights = {key.removeprefix("weights/"): w for key, w in golden.items() if key.startswith("weights/")}
    policy = from_official("ds4", weights, golden["config"] | changes)
    assert isinstance(policy, DecisionS4)
    return policy


def golden_windows(golden: dict[str, Any]) -> HistoryWindows:
    mask = golden["inputs/mask"]
    nothing = torch.zeros(*mask.shape, 1)
    return HistoryWindows(
        returns_to_go=golden["inputs/returns_to_go"],
        states=golden["inputs/states"],
        actions=golden["inputs/target_actions"],
        timesteps=torch.arange(mask.shape[1]).expand(mask.shape),
        mask=mask,
        rewards=nothing,
        previous_actions=golden["inputs/previous_actions"],
        previous_rewards=nothing,
    )


def small(**changes: Any) -> DecisionS4:
    """In float64, with weights so large that every input matters."""
    policy = DecisionS4(DS4Config(**(SMALL | changes))).double().eval()
    for layer in policy.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.7)
    policy.set_state_moments(torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor([0.5, 2.0, 1.0, 3.0]))
    return policy


def random_windows(b: int = 3, k: int = 7, real: int = 7) -> HistoryWindows:
    """Padded on the right behind `real` steps; previous actions are those of the step before."""
    mask = torch.arange(k).expand(b, k) < real
    states, actions = torch.randn(b, k, 4).double(), torch.rand(b, k, 2).double()
    rewards = torch.rand(b, k, 1).double()
    returns = 6 - torch.cat([torch.zeros(b, 1, 1), rewards[:, :-1]], dim=1).cumsum(1)
    before = [torch.cat([torch.zeros(b, 1, x.shape[-1]), x[:, :-1]], dim=1) for x in (actions, rewards)]
    fields = [x * mask[..., None] for x in (returns, states, actions, rewards, *before)]
    return HistoryWindows(*fields[:3], torch.arange(k).expand(b, k), mask, *fields[3:])


class TestOfficial:
    def test_actions_by_convolution(self, golden: dict[str, Any]) -> None:
        windows = golden_windows(golden)
        actions, expected = official(golden)(windows), golden["outputs/actions"]
        torch.testing.assert_close(actions[windows.mask], expected[windows.mask], **CLOSE)

    @pytest.mark.parametrize("way", ["act", "frozen"])
    def test_actions_by_steps(self, golden: dict[str, Any], way: str) -> None:
        policy, windows, steps = official(golden), golden_windows(golden), []
        actor: Any = policy if way == "act" else make_actor(policy, "recurrent")
        state: DS4State = actor.init_state(3, 0.0)
        for t in range(12):  # what the recorded episode did and earned takes the place of what would be played
            state = state._replace(target=windows.returns_to_go[:, t], action=windows.previous_actions[:, t])
            action, state = actor.act(state, windows.states[:, t])
            steps.append(action)
        found, expected = torch.stack(steps, 1), golden["outputs/actions_by_steps"]
        torch.testing.assert_close(found[windows.mask], expected[windows.mask], **CLOSE)

    def test_loss_and_gradients(self, golden: dict[str, Any]) -> None:
        policy, names = official(golden), [key for key in golden if key.startswith("grads/")]
        loss = policy.loss(golden_windows(golden))["action"]
        torch.testing.assert_close(loss, golden["loss/total"], **CLOSE)
        loss.backward()
        assert MODEL.official is not None and len(names) == 4
        for key, source in MODEL.official.sources(policy).items():
            theirs, function = (source, lambda x: x) if isinstance(source, str) else source
            if f"grads/{theirs}" in names:
                names.remove(f"grads/{theirs}")
                expected = function(golden[f"grads/{theirs}"])
                size = 1e-4 * expected.abs().max().item()
                torch.testing.assert_close(policy.get_parameter(key).grad, expected, rtol=0, atol=size, msg=key)
        assert not names

    @pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"layer_norm": True}, {"residual": False}], ids=str)
    def test_other_sizes_and_options_are_read(self, changes: dict[str, Any]) -> None:
        theirs = {"state_size": 3, "action_size": 2, "embedding": 4, "channels": 6, "state": 2, "layers": 3} | changes
        assert MODEL.official is not None
        policy = DecisionS4(MODEL.official.config(theirs))
        ours, weights = policy.state_dict(), {}
        for key, source in MODEL.official.sources(policy).items():
            name, heads = (source, False) if isinstance(source, str) else (source[0], True)
            weights[name] = torch.randn_like(ours[key])[None] if heads else torch.randn_like(ours[key])
        read = from_official("ds4", weights, theirs).state_dict()
        for key, source in MODEL.official.sources(policy).items():
            theirs_now = weights[source] if isinstance(source, str) else weights[source[0]][0]
            assert torch.equal(read[key], theirs_now)
        norms = {name for name in weights if "beforeblock" in name and "s4_mods" in name}
        assert bool(norms) == changes.get("layer_norm", False)

    def test_missing_sizes_and_weights_are_named(self, golden: dict[str, Any]) -> None:
        config = {key: value for key, value in golden["config"].items() if key != "channels"}
        with pytest.raises(InputError, match=r"^config: 'channels' is missing, which ds4 needs"):
            from_official("ds4", {}, config)
        with pytest.raises(InputError, match=r"^weights: .*left over: s4_mods\.1"):
            official(golden, layers=1)


class TestWeights:
    # at embedding 128, width and state 96: embeddings 128 (s + a + 1 + 3), 384 -> 96 36,960, 96 -> 96 9,312, three
    # layers of 18,624, head 96 a
    @pytest.mark.parametrize(
        ("env_id", "sizes", "count"),
        [
            ("Hopper-v5", (11, 3), 104_736),
            ("Walker2d-v5", (17, 6), 106_176),
            ("AntMaze_UMaze-v4", (29, 8), 108_160),
            ("FrankaKitchen-v1", (60, 9), 112_352),
        ],
    )
    @pytest.mark.parametrize("published", [True, False])
    def test_counts(self, env_id: str, sizes: tuple[int, int], count: int, published: bool) -> None:
        facts = Facts(state_size=sizes[0], action_size=sizes[1], env_id=env_id)
        chosen = {"sizes": "published"} if published else {}
        config, _ = read_changes(chosen, MODEL, TrainConfig, facts)
        assert 128 * (sum(sizes) + 4) + 36_960 + 9_312 + 3 * 18_624 + 96 * sizes[1] == count
        assert DecisionS4(MODEL.config_for(facts, config)).parameter_count() == count

    def test_a_layer(self) -> None:
        layer = DecisionS4(DS4Config(state_size=11, action_size=3)).layers[0]
        assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 18_624

    def test_dynamics_are_trained_if_asked(self) -> None:
        # one A and B for all channels: log_A_real and A_imag 2, B and P 4 each; dt of 6 channels
        assert small(train_dynamics=True).parameter_count() - small().parameter_count() == 2 * (4 + 8 + 6)

    def test_published_recipe(self) -> None:
        facts = Facts(state_size=29, action_size=8, env_id="AntMaze_UMaze-v4", longest=700)
        config, recipe = read_changes({"sizes": "published"}, MODEL, TrainConfig, facts)
        assert config["context"] == 700 and config["rtg_scale"] == 0.33
        assert TrainConfig(**recipe).learning_rate == 1e-4 and TrainConfig(**recipe).clip == 0.25


@pytest.mark.parametrize("changes", [{}, {"residual": True, "layer_norm": True}, {"train_dynamics": True}], ids=str)
class TestActing:
    @pytest.mark.parametrize("acting", ["window", "recurrent"])
    def test_acting_is_a_forward_over_the_whole_episode(self, changes: Any, acting: str) -> None:
        policy, windows = small(**changes), random_windows(k=20, real=20)  # far longer than the context
        actor = make_actor(policy, acting)
        state, actions = actor.init_state(3, 6.0), torch.zeros(3, 20, 2).double()
        for t in range(20):
            reward = windows.rewards[:, t - 1, 0] if t else None
            actions[:, t], state = actor.act(state, windows.states[:, t], reward)
        before = torch.cat([torch.zeros(3, 1, 2), actions[:, :-1]], dim=1)
        expected = policy(dataclasses.replace(windows, actions=actions, previous_actions=before))
        assert actions.std(dim=(0, 1)).min() > 0.01
        torch.testing.assert_close(actions, expected)

    def test_an_action_depends_on_all_before_it_and_its_own_state_and_return(self, changes: Any) -> None:
        policy, windows = small(**changes), random_windows()
        for name in ("returns_to_go", "states", "previous_actions"):
            values = getattr(windows, name).requires_grad_()
            (reach,) = torch.autograd.grad(policy(windows)[:, 3].sum(), values)
            assert reach[:, :4].abs().amax(dim=(0, 2)).min() > 1e-9 and not reach[:, 4:].any()


class TestPolicy:
    def test_right_padding_leaves_real_steps_as_they_are(self) -> None:
        policy, windows = small(), random_windows(real=4)
        short = windows.map(lambda field: field[:, :4])
        torch.testing.assert_close(policy(windows)[:, :4], policy(short))

    def test_actions_are_linear_in_what_the_layers_give(self) -> None:
        # neither bias nor tanh: actions beyond 1 and -1 can be predicted
        policy = small()
        before = policy(random_windows()) if policy.head.bias is None else None
        policy.head.weight.data *= 1000
        assert before is not None and policy(random_windows()).abs().max() > 1

    def test_rewards_come_off_the_return_asked_for(self) -> None:
        policy = small()
        state = policy.init_state(2, Wanted(returns=torch.tensor([5.0, 9.0])))
        _, state = policy.act(state, torch.zeros(2, 4).double())
        _, state = policy.act(state, torch.zeros(2, 4).double(), torch.tensor([1.0, 2.0]))
        assert state.target[:, 0].tolist() == [4.0, 7.0]

    def test_states_are_handed_on_and_not_changed(self) -> None:
        policy, seen = small(), torch.randn(3, 4).double()
        first = policy.init_state(3, 1.0)
        _, second = policy.act(first, seen)
        assert not any(tensor.any() for tensor in first.layers) and all(tensor.any() for tensor in second.layers)
        assert [tensor.shape for tensor in second.layers] == [(3, 6, 4), (3, 6, 4)]

    def test_some_episodes_may_go_on_alone(self) -> None:
        policy, seen = small(), torch.randn(3, 4).double()
        _, state = policy.act(policy.init_state(3, torch.tensor([1.0, 2.0, 3.0])), seen)
        both, _ = policy.act(state, seen)
        rows = torch.tensor([2, 0])
        some, _ = policy.act(policy.select(state, rows), seen[rows])
        torch.testing.assert_close(some, both[rows])

    def test_the_next_episode_begins_with_nothing(self) -> None:
        policy, seen, rows = small(), torch.randn(3, 4).double(), torch.tensor([1])
        _, state = policy.act(policy.init_state(3, 1.0), seen)
        after = policy.next_episode(state, rows, 4.0, Outcome(torch.zeros(1), torch.ones(1, dtype=torch.bool)))
        action, _ = policy.act(after, seen)
        fresh, _ = policy.act(policy.init_state(1, 4.0), seen[1:2])
        kept, _ = policy.act(state, seen)
        torch.testing.assert_close(action[1:2], fresh)
        torch.testing.assert_close(action[[0, 2]], kept[[0, 2]])

    def test_discrete_actions_are_one_hot(self) -> None:
        policy = small()
        policy.discrete_actions = True
        action, state = policy.act(policy.init_state(3, 1.0), torch.randn(3, 4).double())
        assert bool((action.sum(-1) == 1).all()) and torch.equal(state.action, action)

    def test_recurrent_acting_freezes_a_copy_and_staggered_is_refused(self) -> None:
        policy = small()
        actor = make_actor(policy, "recurrent")
        assert isinstance(actor, DecisionS4) and not isinstance(actor, RecurrentActor) and actor is not policy
        assert all(layer.ssm._frozen is not None for layer in actor.layers)  # type: ignore[union-attr]
        assert all(layer.ssm._frozen is None for layer in policy.layers)  # type: ignore[union-attr]
        with pytest.raises(InputError, match=r"^acting: got 'staggered' for a DecisionS4, .* window and recurrent$"):
            make_actor(policy, "staggered")

    def test_dropout_acts_in_training_only(self) -> None:
        policy, windows = small(dropout=0.5), random_windows()
        assert torch.equal(policy(windows), policy(windows))
        policy.train()
        assert not torch.equal(policy(windows), policy(windows))


class Flat(nn.Module):
    """A policy that takes the fields of its windows one by one, as a program does."""

    def __init__(self, policy: DecisionS4):
        super().__init__()
        self.policy = policy

    def forward(self, *fields: Tensor) -> Tensor:
        return self.policy(HistoryWindows(*fields))  # type: ignore[no-any-return]


@pytest.mark.parametrize("context", [7, LONGEST_PRODUCT + 1])
def test_can_be_exported(context: int) -> None:
    policy, windows = small(context=context), random_windows(k=context, real=context)
    fields = tuple(getattr(windows, field.name) for field in dataclasses.fields(windows))
    program = torch.export.export(Flat(policy), fields).module()
    torch.testing.assert_close(program(*fields), policy(windows))


class TestSampler:
    def test_whole_trajectories_begin_at_their_first_step(self, trajectories: Trajectories) -> None:
        longest = int(trajectories.lengths.max())
        sampler = MODEL.sampler(trajectories, DS4Config(**SMALL | {"context": longest}), "cpu")
        index = sampler.draw(1, 4000, torch.Generator().manual_seed(0))[0]
        starts = torch.from_numpy(trajectories.starts)
        assert set(index.tolist()) == set(starts.tolist())
        share = (index[:, None] == starts).double().mean(0)  # in proportion to their lengths
        lengths = torch.from_numpy(trajectories.lengths).double()
        torch.testing.assert_close(share, lengths / lengths.sum(), rtol=0, atol=0.03)

    def test_windows_are_padded_on_the_right_and_know_the_action_before(self, trajectories: Trajectories) -> None:
        longest = int(trajectories.lengths.max())
        sampler = MODEL.sampler(trajectories, DS4Config(**SMALL | {"context": longest + 2}), "cpu")
        drawn = sampler.gather(torch.from_numpy(trajectories.starts))
        assert isinstance(drawn, HistoryWindows)
        assert drawn.mask.sum(1).tolist() == trajectories.lengths.tolist()
        assert not drawn.mask[:, -1].any() and bool(drawn.mask[:, 0].all())
        assert not drawn.previous_actions[:, 0].any()
        torch.testing.assert_close(
            drawn.previous_actions[:, 1:] * drawn.mask[:, 1:, None], drawn.actions[:, :-1] * drawn.mask[:, 1:, None]
        )

    def test_of_longer_ones_every_full_window_is_drawn(self, trajectories: Trajectories) -> None:
        sampler = MODEL.sampler(trajectories, DS4Config(**SMALL | {"context": 2}), "cpu")
        drawn = set(sampler.draw(1, 5000, torch.Generator().manual_seed(0)).flatten().tolist())
        full = zip(trajectories.starts, trajectories.lengths, strict=True)
        assert drawn == {start + i for start, length in full for i in range(max(1, length - 1))}

    def test_the_context_is_the_longest_episode(self, trajectories: Trajectories) -> None:
        facts = Facts.of(trajectories)
        assert MODEL.config_for(facts, {}).context == facts.longest == int(trajectories.lengths.max())


def test_says_that_it_is_a_reconstruction() -> None:
    assert "reconstruction" in MODEL.description and "reconstruction" in str(ds4.__doc__)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in ("state_size", "action_size", "context", "width", "layers", "embedding", "ssm_state")),
        ("ssm_state", 3),
        ("dropout", 1.0),
        ("rtg_scale", 0.0),
    ],
)
def test_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{field}: got .*, allowed"):
        small(**{field: value})
