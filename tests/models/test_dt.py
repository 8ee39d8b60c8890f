from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.layers.attention import CausalAttention, attention_mask
from dmm.models.dt import DecisionTransformer, DTConfig, DTLayer
from dmm.models.registry import MODELS
from tests.peers import transformers_dt

SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 5, "width": 8, "layers": 2, "heads": 2}
SMALL |= {"dropout": 0.0, "max_timestep": 40, "rtg_scale": 1.0}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(**changes: Any) -> DecisionTransformer:
    """With strong weights everywhere, so that every dependence shows."""
    policy = DecisionTransformer(DTConfig(**(SMALL | changes)))
    with torch.no_grad():
        for parameter in policy.parameters():
            nn.init.normal_(parameter, std=0.3)
    return policy


def random_windows(padded: tuple[int, ...] = (0, 2, 4), k: int = 5, dtype: torch.dtype = torch.float32) -> Windows:
    """One window for each number of padded steps, at different places of their episodes."""
    b = len(padded)
    mask = torch.arange(k) >= torch.tensor(padded)[:, None]
    real = mask[..., None]
    first = torch.randint(0, 20, (b, 1)) * (torch.tensor(padded) == 0)[:, None]
    return Windows(
        returns_to_go=torch.rand(b, k, 1, dtype=dtype) * real,
        states=torch.randn(b, k, 4, dtype=dtype) * real,
        actions=torch.rand(b, k, 2, dtype=dtype) * real,
        timesteps=(torch.arange(k) - torch.tensor(padded)[:, None] + first) * mask,
        mask=mask,
    )


def pairs(ours: DecisionTransformer, theirs: Any) -> list[tuple[Tensor, Tensor, bool]]:
    """Weights that mean the same: ours, theirs, and whether theirs is stored transposed."""
    same: list[tuple[Any, Any, bool]] = [
        (ours.embed_timestep, theirs.embed_timestep, False),
        (ours.embed_rtg, theirs.embed_return, False),
        (ours.embed_state, theirs.embed_state, False),
        (ours.embed_action, theirs.embed_action, False),
        (ours.embed_norm, theirs.embed_ln, False),
        (ours.norm, theirs.encoder.ln_f, False),
        (ours.head, theirs.predict_action[0], False),
    ]
    for layer, block in zip(ours.blocks, theirs.encoder.h, strict=True):
        assert isinstance(layer, DTLayer)
        same += [
            (layer.attention_norm, block.ln_1, False),
            (layer.mlp_norm, block.ln_2, False),
            (layer.attention.project_in, block.attn.c_attn, True),
            (layer.attention.project_out, block.attn.c_proj, True),
            (layer.mlp[0], block.mlp.c_fc, True),
            (layer.mlp[2], block.mlp.c_proj, True),
        ]
    return [
        (own, getattr(other, name), transposed and name == "weight")
        for module, other, transposed in same
        for name, own in module.named_parameters()
    ]


def peer_of(ours: DecisionTransformer) -> Any:
    """transformers' model with the weights of `ours`."""
    c = ours.config
    theirs = transformers_dt(c.state_size, c.action_size, c.width, c.layers, c.heads, c.max_timestep)
    theirs.to(next(ours.parameters()).dtype)
    with torch.no_grad():
        for own, other, transposed in pairs(ours, theirs):
            other.copy_(own.T if transposed else own)
    return theirs


def predicted_by(peer: Any, windows: Windows) -> Tensor:
    output = peer(
        states=windows.states,
        actions=windows.actions,
        rewards=None,
        returns_to_go=windows.returns_to_go,
        timesteps=windows.timesteps,
        attention_mask=windows.mask.long(),
    )
    return output.action_preds


class TestPeer:
    @pytest.mark.parametrize("heads", [1, 2, 4])
    def test_actions_equal_those_of_transformers_with_the_same_weights(self, heads: int) -> None:
        ours, windows = small(heads=heads).eval(), random_windows()
        theirs = predicted_by(peer_of(ours), windows)
        torch.testing.assert_close(ours(windows)[windows.mask], theirs[windows.mask], rtol=1e-5, atol=1e-6)

    def test_every_weight_has_its_counterpart(self) -> None:
        ours = small()
        assert {id(own) for own, _, _ in pairs(ours, peer_of(ours))} == {id(p) for p in ours.parameters()}

    def test_gradients_equal_those_of_transformers(self) -> None:
        ours, windows = small().double().eval(), random_windows(dtype=torch.float64)
        theirs = peer_of(ours)
        states = [windows.states.clone().requires_grad_() for _ in range(2)]
        given = [dataclasses.replace(windows, states=state) for state in states]
        weight = torch.randn(int(windows.mask.sum()), 2, dtype=torch.float64)
        for actions in (ours(given[0]), predicted_by(theirs, given[1])):
            (actions[windows.mask] * weight).sum().backward()
        torch.testing.assert_close(states[0].grad, states[1].grad)
        for own, other, transposed in pairs(ours, theirs):
            assert own.grad is not None and other.grad is not None
            torch.testing.assert_close(own.grad, other.grad.T if transposed else other.grad)


class TestAttention:
    def test_mask_lets_a_token_see_itself_and_earlier_real_ones(self) -> None:
        seen = attention_mask(torch.tensor([[False, True, True]]))
        assert seen.shape == (1, 1, 9, 9) and seen.dtype == torch.bool
        expected = [
            [int(3 <= column <= row) if row >= 3 else int(column <= row) for column in range(9)] for row in range(9)
        ]
        assert seen[0, 0].int().tolist() == expected

    def test_every_row_of_the_mask_sees_something(self) -> None:
        # a softmax over nothing would be NaN, and so would its gradient
        assert bool(attention_mask(torch.zeros(1, 4, dtype=torch.bool)).any(-1).all())

    @pytest.mark.parametrize("heads", [1, 2])
    def test_equals_its_formula(self, heads: int) -> None:
        attention, x = CausalAttention(4, heads, 0.0).double(), torch.randn(1, 6, 4, dtype=torch.float64)
        allowed = attention_mask(torch.ones(1, 2, dtype=torch.bool))
        q, k, v = (x[0] @ attention.project_in.weight.T + attention.project_in.bias).split(4, dim=-1)
        rows, size = torch.zeros(6, 4, dtype=torch.float64), 4 // heads
        for t in range(6):
            for h in range(heads):
                own = slice(h * size, (h + 1) * size)
                weights = torch.softmax(k[: t + 1, own] @ q[t, own] / size**0.5, dim=0)
                rows[t, own] = weights @ v[: t + 1, own]
        torch.testing.assert_close(attention(x, allowed)[0], attention.project_out(rows))

    def test_layer_is_two_residuals_with_norms_before(self) -> None:
        policy, x = small(), torch.randn(2, 15, 8)
        layer, allowed = policy.blocks[0], attention_mask(torch.ones(2, 5, dtype=torch.bool))
        h = x + layer.attention(layer.attention_norm(x), allowed)
        up, _, down = layer.mlp
        expected = h + down(F.relu(up(layer.mlp_norm(h))))
        torch.testing.assert_close(layer(x, allowed), expected)
        assert list(layer.parts()) == ["attention", "MLP"]


class TestPolicy:
    @pytest.mark.parametrize("t", [0, 2, 4])
    def test_an_action_depends_on_the_past_its_own_state_and_return_and_nothing_else(self, t: int) -> None:
        policy, windows = small().double(), random_windows((0,), dtype=torch.float64)
        for field, first in (("returns_to_go", t), ("states", t), ("actions", t + 1)):
            changed = getattr(windows, field).clone()
            changed[:, t] += 1
            moved = policy(dataclasses.replace(windows, **{field: changed})) - policy(windows)
            reached = moved[0].abs().amax(-1)
            assert bool((reached[:first] == 0).all()) and bool((reached[first:] > 0).all()), field

    def test_what_stands_in_padded_steps_does_not_matter(self) -> None:
        policy, windows = small(), random_windows()
        padding = ~windows.mask
        filled = {}
        for field in ("returns_to_go", "states", "actions", "timesteps"):
            filled[field] = getattr(windows, field).clone()
            filled[field][padding] = 7
        assert torch.equal(policy(dataclasses.replace(windows, **filled))[windows.mask], policy(windows)[windows.mask])

    @pytest.mark.parametrize("padded", [1, 4])
    def test_padding_changes_no_action(self, padded: int) -> None:
        # nothing looks at padding and nothing counts places in the window, so the window can as well be shorter
        windows = random_windows((padded,), dtype=torch.float64)
        policy = small().double()
        fields = [getattr(windows, field.name)[:, padded:] for field in dataclasses.fields(windows)]
        torch.testing.assert_close(policy(Windows(*fields)), policy(windows)[:, padded:])

    def test_padding_gets_no_gradient(self) -> None:
        policy, windows = small(), random_windows()
        windows.states.requires_grad_()
        policy(windows)[windows.mask].square().sum().backward()
        assert windows.states.grad is not None
        assert not windows.states.grad[~windows.mask].any() and bool(windows.states.grad[windows.mask].any())
        assert all(bool(p.grad.isfinite().all()) for p in policy.parameters() if p.grad is not None)

    def test_time_of_the_episode_matters(self) -> None:
        policy, windows = small(), random_windows((0,))
        later = dataclasses.replace(windows, timesteps=windows.timesteps + 1)
        assert not torch.allclose(policy(later), policy(windows))

    def test_each_token_of_a_step_gets_the_steps_embedding(self) -> None:
        policy, windows = small(), random_windows()
        times = policy.embed_timestep.weight[windows.timesteps].detach().clone()  # (b, k, d)
        whole = policy.embed(windows)
        policy.embed_timestep.weight.data.zero_()
        torch.testing.assert_close(
            (whole - policy.embed(windows)).view(3, 5, 3, 8), times[:, :, None].expand(3, 5, 3, 8)
        )

    def test_steps_beyond_the_last_embedding_share_it(self) -> None:
        policy, windows = small(max_timestep=10), random_windows((0,))
        at = {step: dataclasses.replace(windows, timesteps=torch.full((1, 5), step)) for step in (8, 9, 10, 10_000)}
        assert torch.equal(policy(at[10]), policy(at[9])) and torch.equal(policy(at[10_000]), policy(at[9]))
        assert not torch.allclose(policy(at[8]), policy(at[9]))

    def test_dropout_acts_in_training_only(self) -> None:
        policy, windows = small(dropout=0.5), random_windows()
        assert not torch.equal(policy(windows), policy(windows))
        policy.eval()
        assert torch.equal(policy(windows), policy(windows))

    def test_dropout_falls_on_attention_and_on_what_is_added(self) -> None:
        layer, x = DTLayer(DTConfig(**(SMALL | {"dropout": 0.5}))), torch.randn(1, 15, 8)
        allowed = attention_mask(torch.ones(1, 5, dtype=torch.bool))
        assert not torch.equal(layer.attention(x, allowed), layer.attention(x, allowed))
        with torch.no_grad():
            for part in (layer.attention.project_out, layer.mlp[2]):
                part.weight.zero_()
                part.bias.fill_(1.0)
        added = (layer(x, allowed) - x).detach().round()
        assert set(added.unique().tolist()) == {0.0, 2.0, 4.0}  # each part adds 0 or 1 / (1 - 0.5)


class TestConfig:
    def test_parameter_count_for_hopper(self) -> None:
        # d = 64: frame 1,475 (see test_dmm.py), final norm 128, 1,000 embeddings of time 64,000; in each of 3
        # layers norms 256, attention in 12,480 and out 4,160, MLP up 16,640 and down 16,448 = 49,984
        assert 1_475 + 128 + 64_000 + 3 * 49_984 == 215_555
        assert DecisionTransformer(DTConfig(state_size=11, action_size=3)).parameter_count() == 215_555

    def test_registry_passes_changes_on(self) -> None:
        config = MODELS["dt"].make_config(4, 2, "", heads=2, max_timestep=7)
        assert (config.heads, config.max_timestep, config.context, config.width, config.layers) == (2, 7, 8, 64, 3)

    def test_starts_as_gpt_2_does(self) -> None:
        policy = DecisionTransformer(DTConfig(state_size=11, action_size=3))
        layer = policy.blocks[0]
        for linear in (layer.attention.project_in, layer.attention.project_out, layer.mlp[0], layer.mlp[2]):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05) and not linear.bias.any()
        assert policy.embed_timestep.weight.std().item() == pytest.approx(0.02, rel=0.05)

    @pytest.mark.parametrize(
        ("field", "value", "allowed"),
        [
            ("heads", 0, "at least 1"),
            ("heads", 3, "divisors of width 8"),
            ("heads", 16, "divisors of width 8"),
            ("max_timestep", 0, "at least 1"),
            ("layers", 0, "at least 1"),
            ("dropout", 1.0, "0 <= dropout < 1"),
            ("padding", "none", "zeros, released"),
        ],
    )
    def test_wrong_field_is_named(self, field: str, value: Any, allowed: str) -> None:
        with pytest.raises(InputError, match=f"^{field}: got .*, allowed .*{allowed}") as caught:
            DTConfig(**(SMALL | {field: value}))
        assert "\n" not in str(caught.value)
