from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.fused import branches
from dmm.fused.kernel import status
from dmm.layers.attention import CausalAttention
from dmm.layers.local import DenseSequenceMixer, DepthwiseConv, ModalityMixer
from dmm.layers.mamba import MambaBlock
from dmm.layers.mamba2 import Mamba2Block
from dmm.layers.s4 import S4, S4Block
from dmm.models.dmm import DecisionMetaMamba, DMMBlock, DMMConfig

SMALL: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 5, "width": 8, "layers": 2, "ssm_state": 3}
SMALL |= {"dropout": 0.0}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(**changes: Any) -> DecisionMetaMamba:
    return DecisionMetaMamba(DMMConfig(**(SMALL | changes)))


def released(*sizes: int, **changes: Any) -> DecisionMetaMamba:
    return DecisionMetaMamba(DMMConfig.released(*sizes, **changes))


def random_windows(b: int = 3, k: int = 5, s: int = 4, a: int = 2, padded: int = 0) -> Windows:
    mask = torch.ones(b, k, dtype=torch.bool)
    mask[:, :padded] = False
    real = mask[..., None]
    return Windows(
        returns_to_go=torch.rand(b, k, 1) * 1000 * real,
        states=torch.randn(b, k, s) * real,
        actions=torch.rand(b, k, a) * real,
        timesteps=torch.arange(k).expand(b, k),
        mask=mask,
    )


def total(policy: nn.Module) -> int:
    """All weights, trained or not, shared ones once."""
    return sum(p.numel() for p in policy.parameters())


# Sizes below: s, a of the environment and d channels.
#   frame   rtg 2d, state (s+1)d, action (a+1)d, head (d+1)a, LayerNorm of the embedding 2d
#   norms   final 2d, and 4d for each pair of LayerNorms
#   Mamba   in 2d*d, x_proj d(r+32) with r = d/16, dt (r+1)d, A 16d, D d, out d*d
#   DSM     6d*d without bias
class TestParameterCounts:
    def test_hopper_of_table_4(self) -> None:
        # frame 128 + 768 + 256 + 195 + 128 = 1,475; norms 128 + 256 = 384;
        # Mamba 8,192 + 2,304 + 320 + 1,024 + 64 + 4,096 = 16,000 in each of 3 layers; one shared DSM 24,576
        assert 1_475 + 384 + 3 * 16_000 + 24_576 == 74_435
        assert released(11, 3, share_dsm=True).parameter_count() == 74_435

    def test_antmaze_of_table_4_which_is_a_walker2d(self) -> None:
        # d = 32, r = 2: frame 64 + 576 + 224 + 198 + 64 = 1,126; norms 64 + 128 = 192;
        # Mamba 2,048 + 1,088 + 96 + 512 + 32 + 1,024 = 4,800; one shared DSM 6,144
        assert 1_126 + 192 + 3 * 4_800 + 6_144 == 21_862
        assert released(17, 6, width=32, share_dsm=True).parameter_count() == 21_862

    def test_hopper_of_the_released_code(self) -> None:
        # as in table 4, with a DSM in each layer: two more of 24,576
        assert 74_435 + 2 * 24_576 == 123_587
        assert released(11, 3).parameter_count() == 123_587

    def test_walker2d_of_the_released_code(self) -> None:
        # hopper, with 6 more state entries (6d = 384) and 3 more actions (3d in, 3(d + 1) out = 387)
        assert 123_587 + 384 + 387 == 124_358
        assert released(17, 6).parameter_count() == 124_358

    def test_walker2d_with_the_papers_width(self) -> None:
        # as the 21,862 above, with a DSM in each layer
        assert 21_862 + 2 * 6_144 == 34_150
        assert released(17, 6, width=32).parameter_count() == 34_150

    def test_antmaze_of_the_released_code(self) -> None:
        # d = 128, r = 8: frame 256 + 3,840 + 1,152 + 1,032 + 256 = 6,536; norms 256 + 512 = 768;
        # Mamba 32,768 + 5,120 + 1,152 + 2,048 + 128 + 16,384 = 57,600; the DSM, 6 * 128 * 128, is never trained
        policy = released(29, 8, domain="antmaze")
        assert 6_536 + 768 + 3 * 57_600 == 180_104 == policy.parameter_count()
        assert 180_104 + 98_304 == 278_408 == total(policy)

    def test_kitchen_of_the_released_code(self) -> None:
        # antmaze, with 31 more state entries (31d = 3,968) and one more action (d in, d + 1 out = 257)
        policy = released(60, 9, domain="kitchen")
        assert 180_104 + 3_968 + 257 == 184_329 == policy.parameter_count()
        assert 184_329 + 98_304 == 282_633 == total(policy)

    @pytest.mark.parametrize(("local_mixer", "one"), [("depthwise", 6 * 64), ("multimodal", 3 * 24_576)])
    def test_hopper_with_another_local_mixer(self, local_mixer: Any, one: int) -> None:
        # as the package's defaults: frame 1,475, final norm 128, and in each layer norms 256 and Mamba 16,000
        policy = DecisionMetaMamba(DMMConfig(state_size=11, action_size=3, local_mixer=local_mixer))
        assert policy.parameter_count() == 1_475 + 128 + 3 * (256 + 16_000 + one)

    @pytest.mark.parametrize(
        ("global_mixer", "one"),
        [
            # in 64 (2 * 64 + 2 * 16 + 4) = 10,496, out 4,096, norm 64, dt, A and D of 4 heads 12
            ("mamba2", 14_668),
            # four projections with bias
            ("attention", 16_640),
            # dt 64, C 1,024, A 1,024, B and P 2,048, D 64, and 64 -> 128 with bias 8,320
            ("s4", 12_544),
        ],
    )
    def test_hopper_with_another_global_mixer(self, global_mixer: Any, one: int) -> None:
        # the package's defaults: frame 1,475, final norm 128, and in each layer norms 256 and a DSM of 24,576
        policy = DecisionMetaMamba(DMMConfig(state_size=11, action_size=3, global_mixer=global_mixer))
        assert policy.parameter_count() == 1_475 + 128 + 3 * (256 + 24_576 + one)

    def test_without_skip_there_is_no_weight_for_it(self) -> None:
        with_skip, without = (DecisionMetaMamba(DMMConfig(state_size=11, action_size=3, skip=s)) for s in (True, False))
        assert with_skip.parameter_count() - without.parameter_count() == 3 * 64


def block_parts(d: int = 8) -> tuple[nn.LayerNorm, DenseSequenceMixer, nn.LayerNorm, MambaBlock]:
    norms = nn.LayerNorm(d), nn.LayerNorm(d)
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norms[0], DenseSequenceMixer(d, 6, bias=True), norms[1], MambaBlock(d, conv_width=None)


class TestBlock:
    def test_normalized_residual_is_equation_3(self) -> None:
        LN1, DSM, LN2, Mamba = parts = block_parts()
        X = torch.randn(2, 9, 8)
        x = LN1(X)
        z = x + DSM(x)
        z = LN2(z)
        Y = z + Mamba(z)
        torch.testing.assert_close(DMMBlock(*parts, residual="normalized")(X), Y)

    def test_raw_residual_is_the_released_code(self) -> None:
        ln1, dsm, ln2, mamba = parts = block_parts()
        x = torch.randn(2, 9, 8)
        h = x + dsm(ln1(x))
        h = h + mamba(ln2(h))
        torch.testing.assert_close(DMMBlock(*parts, residual="raw")(x), h)

    @pytest.mark.parametrize("residual", ["raw", "normalized"])
    def test_config_reaches_every_block(self, residual: Any) -> None:
        policy = small(residual=residual, expand=3, window=4, dsm_bias=True)
        for block in policy.blocks:
            assert block.residual == residual
            assert block.global_mixer.inner == 24 and block.global_mixer.state_size == 3
            assert block.global_mixer.conv1d is None
            assert block.local_mixer.window == 4 and block.local_mixer.linear.bias is not None

    @pytest.mark.parametrize("residual", ["normalized", "raw"])
    @pytest.mark.parametrize("parts", [(9,), (3, 3, 3), (1, 4, 4)])
    def test_a_few_tokens_at_a_time_equal_forward(self, residual: Any, parts: tuple[int, ...]) -> None:
        block, x = DMMBlock(*block_parts(), residual).double(), torch.randn(2, 9, 8, dtype=torch.float64)
        state, outputs = block.init_state(2), []
        for part in x.split(parts, dim=1):
            y, state = block.extend(part, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), block(x))

    def test_parts_are_what_a_block_adds_in_order(self) -> None:
        block = small().blocks[0]
        assert list(block.parts().items()) == [("DSM", block.local_mixer), ("Mamba", block.global_mixer)]


class TestLocalMixer:
    @pytest.mark.parametrize(
        ("name", "kind"), [("dense", DenseSequenceMixer), ("depthwise", DepthwiseConv), ("multimodal", ModalityMixer)]
    )
    @pytest.mark.parametrize("bias", [True, False])
    def test_every_layer_gets_one_of_that_kind(self, name: Any, kind: type, bias: bool) -> None:
        for block in small(local_mixer=name, window=4, dsm_bias=bias).blocks:
            assert type(block.local_mixer) is kind and block.local_mixer.window == 4
            assert any(name.endswith("bias") for name, _ in block.local_mixer.named_parameters()) == bias

    def test_dense_is_the_default(self) -> None:
        assert type(small().blocks[0].local_mixer) is DenseSequenceMixer

    def test_each_modalitys_mixer_gets_the_generic_start(self) -> None:
        for dense in small(local_mixer="multimodal", width=32, dsm_bias=True).blocks[0].local_mixer.mixers:
            assert dense.linear.weight.std().item() == pytest.approx(0.02, rel=0.05) and not dense.linear.bias.any()

    def test_a_depthwise_one_starts_as_torchs_convolutions_do(self) -> None:
        # as inside Mamba, whose convolution no generic initialisation reaches: U(-1/sqrt(taps), 1/sqrt(taps))
        weight = small(local_mixer="depthwise", width=64).blocks[0].local_mixer.conv1d.weight
        assert 0.98 * 6**-0.5 < weight.abs().max().item() <= 6**-0.5

    @pytest.mark.parametrize("name", ["depthwise", "multimodal"])
    def test_may_be_shared_or_left_untrained(self, name: Any) -> None:
        policy = small(local_mixer=name, share_dsm=True, train_dsm=False)
        assert policy.blocks[0].local_mixer is policy.blocks[1].local_mixer
        assert not any(p.requires_grad for p in policy.blocks[0].local_mixer.parameters())

    def test_an_action_looks_through_its_own_modalitys_mixer_alone(self) -> None:
        # one layer: the last state token's mixer is that of states
        policy, windows = with_strong_weights(small(local_mixer="multimodal", layers=1, window=2)), random_windows()
        windows = dataclasses.replace(
            windows, **{name: getattr(windows, name).double() for name in ("returns_to_go", "states", "actions")}
        )
        policy.blocks[0].global_mixer.out_proj.weight.data.zero_()
        policy(windows)[:, -1].sum().backward()
        used = [bool(dense.linear.weight.grad.any()) for dense in policy.blocks[0].local_mixer.mixers]
        assert used == [False, True, False]


MIXERS: dict[str, Any] = {"mamba": MambaBlock, "mamba2": Mamba2Block, "attention": CausalAttention, "s4": S4Block}
EVEN: dict[str, Any] = {"ssm_state": 4, "head_size": 4}


class TestGlobalMixer:
    @pytest.mark.parametrize("name", MIXERS)
    def test_every_layer_gets_one_of_that_kind(self, name: Any) -> None:
        policy = small(**EVEN, global_mixer=name)
        assert [type(block.global_mixer) for block in policy.blocks] == 2 * [MIXERS[name]]
        shown = {"mamba": "Mamba", "mamba2": "Mamba-2", "attention": "attention", "s4": "S4"}[name]
        assert list(policy.blocks[0].parts()) == ["DSM", shown]

    def test_mamba_is_the_default_with_silu_and_skip(self) -> None:
        mixer = small().blocks[0].global_mixer
        assert type(mixer) is MambaBlock and mixer.activation == "silu" and mixer.D is not None

    @pytest.mark.parametrize("name", ["mamba", "mamba2", "s4"])
    @pytest.mark.parametrize("parts", [(9,), (3, 3, 3), (1, 4, 4)])
    def test_a_few_tokens_at_a_time_equal_forward(self, name: Any, parts: tuple[int, ...]) -> None:
        block, x = small(**EVEN, global_mixer=name).double().blocks[0], torch.randn(2, 9, 8, dtype=torch.float64)
        state, outputs = block.init_state(2), []
        for part in x.split(parts, dim=1):
            y, state = block.extend(part, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), block(x))

    @pytest.mark.parametrize("name", ["mamba", "mamba2"])
    @pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
    @pytest.mark.parametrize("skip", [True, False])
    def test_activation_and_skip_reach_every_block(self, name: Any, activation: Any, skip: bool) -> None:
        for block in small(**EVEN, global_mixer=name, activation=activation, skip=skip).blocks:
            assert block.global_mixer.activation == activation and (block.global_mixer.D is not None) == skip

    def test_skip_reaches_s4(self) -> None:
        layers = [small(**EVEN, global_mixer="s4", skip=skip).blocks[0].global_mixer.ssm for skip in (True, False)]
        assert [type(layer) for layer in layers] == [S4, S4] and [layer.D is None for layer in layers] == [False, True]

    @pytest.mark.parametrize("name", ["mamba", "mamba2", "attention", "s4"])
    def test_projections_get_the_generic_start(self, name: Any) -> None:
        mixer = small(width=64, global_mixer=name, ssm_state=4).blocks[0].global_mixer
        linear = {key: layer for key, layer in mixer.named_modules() if isinstance(layer, nn.Linear)}
        linear.pop("dt_proj", None)  # a start of its own
        assert linear
        for layer in linear.values():
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)

    def test_heads_are_as_wide_as_said_or_as_the_channels(self) -> None:
        wide: dict[str, Any] = {"width": 32, "ssm_state": 4}
        assert small(**wide, global_mixer="mamba2", head_size=8, expand=2).blocks[0].global_mixer.A_log.shape == (8,)
        assert small(**wide, global_mixer="attention", head_size=8).blocks[0].global_mixer.heads == 4
        assert small(global_mixer="mamba2").blocks[0].global_mixer.head_size == 8

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"global_mixer": "mamba2", "head_size": 3}, r"^head_size: got 3, allowed are divisors of the 8 channels"),
            ({"global_mixer": "attention", "head_size": 5}, r"^head_size: got 5, allowed are divisors of the 8"),
            ({"global_mixer": "s4", "ssm_state": 3}, r"^ssm_state: got 3, allowed for s4 are even numbers$"),
        ],
    )
    def test_sizes_that_do_not_fit_are_named(self, changes: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            small(**changes)

    @pytest.mark.parametrize(
        "changes",
        [{"activation": "gelu"}, {"skip": False}, {"global_mixer": "mamba2"}, {"global_mixer": "s4"}],
        ids=str,
    )
    def test_the_fused_branch_stands_back_where_it_computes_something_else(self, changes: Any) -> None:
        policy, windows = small(**EVEN | changes), random_windows()
        with branches("plain"):
            expected = policy(windows)
        torch.testing.assert_close(policy(windows), expected)
        if status().library is not None:
            with branches("fused"), pytest.raises(InputError, match=r"^branches: got 'fused', allowed here is plain"):
                policy(windows)
            with branches("fused"):
                small(**EVEN)(windows)


class TestSharing:
    def test_each_layer_has_its_own_by_default(self) -> None:
        first, second = small().blocks
        for part in ("local_norm", "local_mixer", "global_norm", "global_mixer"):
            assert getattr(first, part) is not getattr(second, part)

    @pytest.mark.parametrize(
        ("field", "shared"),
        [("share_norms", ("local_norm", "global_norm")), ("share_dsm", ("local_mixer",))],
    )
    def test_shared_parts_are_one_object(self, field: str, shared: tuple[str, ...]) -> None:
        first, second = small(**{field: True}).blocks
        for part in ("local_norm", "local_mixer", "global_norm", "global_mixer"):
            assert (getattr(first, part) is getattr(second, part)) == (part in shared)
        assert first.local_norm is not first.global_norm

    def test_shared_dsm_gets_the_sum_of_the_gradients_of_its_layers(self) -> None:
        shared, apart, windows = small(share_dsm=True), small(), random_windows()
        apart.load_state_dict(shared.state_dict())
        for policy in (shared, apart):
            policy(windows).square().sum().backward()
        parts = [block.local_mixer.linear.weight.grad for block in apart.blocks]
        torch.testing.assert_close(shared.blocks[0].local_mixer.linear.weight.grad, parts[0] + parts[1])

    def test_frozen_dsm_stays_at_its_start_through_training(self) -> None:
        policy = small(train_dsm=False)
        before = {name: p.detach().clone() for name, p in policy.named_parameters()}
        optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
        policy(random_windows()).square().mean().backward()
        optimizer.step()
        still = {name for name, p in policy.named_parameters() if torch.equal(p, before[name])}
        assert still == {f"blocks.{i}.local_mixer.linear.weight" for i in range(2)}

    def test_frozen_dsm_keeps_torchs_initialisation(self) -> None:
        # U(-1/sqrt(fan in), ...), fan in 6 * 32, since the released code's generic one does not reach it
        frozen, trained = (small(width=32, train_dsm=train).blocks[0].local_mixer.linear for train in (False, True))
        bound = (6 * 32) ** -0.5
        assert bound * 0.99 < frozen.weight.abs().max().item() <= bound
        assert trained.weight.std().item() == pytest.approx(0.02, rel=0.05)


class TestConfig:
    def test_paper_reading(self) -> None:
        config = DMMConfig.paper(11, 3)
        assert (config.residual, config.dsm_bias, config.expand, config.window) == ("normalized", True, 2, 6)
        assert (config.share_norms, config.share_dsm, config.train_dsm) == (False, False, True)
        assert (config.step_init, config.padding) == ("mamba", "zeros")
        assert (config.local_mixer, config.a_init) == ("dense", "s4d-real")
        assert (config.context, config.layers, config.width, config.rtg_scale) == (8, 3, 64, 1000.0)

    def test_released_reading_for_mujoco(self) -> None:
        config = DMMConfig.released(11, 3)
        assert (config.residual, config.dsm_bias, config.expand, config.window) == ("raw", False, 1, 6)
        assert (config.share_norms, config.share_dsm, config.train_dsm) == (True, False, True)
        assert (config.step_init, config.padding) == ("wiped", "released")
        assert (config.local_mixer, config.a_init) == ("dense", "s4d-real")
        assert (config.context, config.layers, config.width, config.rtg_scale) == (8, 3, 64, 1000.0)

    @pytest.mark.parametrize("domain", ["antmaze", "kitchen"])
    def test_released_reading_for_sparse_domains(self, domain: Any) -> None:
        config = DMMConfig.released(29, 8, domain=domain)
        assert (config.width, config.share_dsm, config.train_dsm, config.rtg_scale) == (128, True, False, 1.0)

    @pytest.mark.parametrize("reading", [DMMConfig.paper, DMMConfig.released])
    def test_readings_take_changes(self, reading: Any) -> None:
        assert reading(11, 3, width=32, expand=4, share_norms=False).width == 32
        assert reading(11, 3, width=32, expand=4, share_norms=False).expand == 4

    def test_is_frozen(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            DMMConfig(**SMALL).width = 2  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *((name, 0) for name in ("state_size", "action_size", "context", "width", "layers", "window")),
            ("dropout", 1.0),
            ("dropout", -0.1),
            ("dropout", float("nan")),
            ("rtg_scale", 0.0),
            ("rtg_scale", -1.0),
            ("padding", "ones"),
            ("window", 16),  # context 5 has 15 tokens
            ("residual", "none"),
            ("step_init", "zero"),
            ("a_init", "hippo"),
            ("local_mixer", "conv"),
            ("global_mixer", "mamba3"),
            ("activation", "tanh"),
            ("head_size", 0),
            ("expand", 0),
            ("ssm_state", 0),
        ],
    )
    def test_wrong_field_is_named(self, field: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"^{field}: got .*, allowed") as caught:
            small(**{field: value})
        assert "\n" not in str(caught.value)

    def test_unknown_domain_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^domain: got 'atari', allowed are mujoco, antmaze, kitchen"):
            DMMConfig.released(11, 3, domain="atari")  # type: ignore[arg-type]


READINGS = {
    "default": {},
    "paper": {"residual": "normalized", "dsm_bias": True, "expand": 2},
    "released": {"share_norms": True, "step_init": "wiped", "padding": "released"},
    "depthwise": {"local_mixer": "depthwise"},
    "multimodal": {"local_mixer": "multimodal", "a_init": "uniform"},
    "mamba2": {"global_mixer": "mamba2", "head_size": 4},
    "attention": {"global_mixer": "attention", "head_size": 4},
    "s4": {"global_mixer": "s4", "ssm_state": 4},
    "gelu": {"activation": "gelu"},
    "no skip": {"skip": False},
}


def with_strong_weights(policy: DecisionMetaMamba) -> DecisionMetaMamba:
    """In float64 and far from the tiny initial weights, so that every dependence shows."""
    with torch.no_grad():
        for layer in policy.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                for parameter in layer.parameters():
                    nn.init.normal_(parameter, std=0.3)
    return policy.double().eval()


def shift(windows: Windows, field: str, t: int) -> Windows:
    changed = getattr(windows, field).clone()
    changed[:, t] += 1
    return dataclasses.replace(windows, **{field: changed})


class TestPolicy:
    @pytest.mark.parametrize("reading", READINGS)
    def test_actions_have_the_right_shape_and_range(self, reading: str) -> None:
        actions = small(**READINGS[reading])(random_windows())
        assert actions.shape == (3, 5, 2) and bool((actions.abs() <= 1).all())

    @pytest.mark.parametrize("reading", READINGS)
    @pytest.mark.parametrize("t", [0, 2, 4])
    def test_an_action_depends_on_the_past_its_own_state_and_return_and_nothing_else(
        self, reading: str, t: int
    ) -> None:
        policy, windows = with_strong_weights(small(**READINGS[reading], window=4, rtg_scale=100.0)), random_windows()
        windows = dataclasses.replace(
            windows, **{name: getattr(windows, name).double() for name in ("returns_to_go", "states", "actions")}
        )
        for field, first in (("returns_to_go", t), ("states", t), ("actions", t + 1)):
            moved = (policy(shift(windows, field, t)) - policy(windows)).abs().amax(dim=(0, 2))
            assert bool((moved[:first] == 0).all()), field
            assert bool((moved[first:] > 0).all()), field

    def test_gradient_confirms_what_an_action_depends_on(self) -> None:
        windows = random_windows(b=1)
        for field in ("returns_to_go", "states", "actions"):
            getattr(windows, field).requires_grad_()
        actions = small()(windows)
        for t in range(5):
            gradients = torch.autograd.grad(
                actions[:, t].sum(), [windows.returns_to_go, windows.states, windows.actions], retain_graph=True
            )
            reach = [int(g.abs().sum(dim=(0, 2)).nonzero().max()) if g.any() else -1 for g in gradients]
            assert reach == [t, t, t - 1]

    def test_timesteps_are_not_looked_at(self) -> None:
        policy, windows = small(), random_windows()
        later = dataclasses.replace(windows, timesteps=windows.timesteps + 100)
        assert torch.equal(policy(windows), policy(later))

    def test_frame_equals_its_description(self) -> None:
        policy, windows = small(rtg_scale=500.0), random_windows()
        policy.set_state_moments(torch.arange(4.0), torch.full((4,), 2.0))
        states = (windows.states - torch.arange(4.0)) / 2
        parts = [
            layer.weight @ value[:, :, :, None] + layer.bias[:, None]
            for layer, value in (
                (policy.embed_rtg, windows.returns_to_go / 500),
                (policy.embed_state, states),
                (policy.embed_action, windows.actions),
            )
        ]
        tokens = torch.stack([parts[m][:, t, :, 0] for t in range(5) for m in range(3)], dim=1)  # R, s, a, R, s, a, ...
        x = nn.functional.layer_norm(tokens, (8,), policy.embed_norm.weight, policy.embed_norm.bias)
        for block in policy.blocks:
            x = block(x)
        x = policy.norm(x)
        expected = torch.stack([torch.tanh(policy.head(x[:, 3 * t + 1])) for t in range(5)], dim=1)
        torch.testing.assert_close(policy(windows), expected)

    def test_dropout_acts_in_training_only(self) -> None:
        policy, windows = small(dropout=0.5), random_windows()
        assert not torch.equal(policy(windows), policy(windows))
        policy.eval()
        assert torch.equal(policy(windows), policy(windows))

    def test_moments_travel_with_the_weights(self) -> None:
        policy, copy = small(), small()
        policy.set_state_moments(torch.randn(4), torch.rand(4) + 0.5)
        copy.load_state_dict(policy.state_dict())
        windows = random_windows()
        torch.testing.assert_close(copy(windows), policy(windows))

    def test_steps_start_where_the_config_says(self) -> None:
        wiped = small(step_init="wiped").blocks[0].global_mixer.dt_proj.bias
        assert not wiped.any()
        steps = nn.functional.softplus(small().blocks[0].global_mixer.dt_proj.bias)
        assert bool((steps < 0.11).all())

    def test_decay_starts_where_the_config_says(self) -> None:
        for block in small(a_init="uniform").blocks:
            assert bool((block.global_mixer.A_log >= 0).all()) and block.global_mixer.A_log.exp().max().item() <= 2
        assert small().blocks[0].global_mixer.A_log[0].exp().tolist() == pytest.approx([1.0, 2.0, 3.0])

    def test_projections_get_the_generic_start(self) -> None:
        policy = small(width=64)
        mixer = policy.blocks[0].global_mixer
        for layer in (policy.embed_state, mixer.in_proj, mixer.x_proj, mixer.out_proj):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
        assert not policy.embed_state.bias.any() and not policy.head.bias.any()


class TestPadding:
    """Two padded steps before three real ones; what stands in the padded entries must not matter."""

    @staticmethod
    def padded_tokens(policy: DecisionMetaMamba, windows: Windows) -> Tensor:
        return policy.embed(windows).view(3, 5, 3, 8)[:, :2]

    @pytest.mark.parametrize("padding", ["zeros", "released"])
    @pytest.mark.parametrize("training", [True, False])
    def test_what_stands_in_padded_actions_and_returns_does_not_matter(self, padding: Any, training: bool) -> None:
        policy = small(padding=padding).train(training)
        windows = random_windows(padded=2)
        filled = shift(shift(windows, "actions", 0), "returns_to_go", 1)
        assert torch.equal(policy(filled), policy(windows))

    def test_real_steps_are_the_same_in_every_mode(self) -> None:
        policy, windows = small(padding="released"), random_windows(padded=2)
        policy.set_state_moments(torch.arange(4.0), torch.full((4,), 2.0))
        training, evaluating = policy.train().embed(windows), policy.eval().embed(windows)
        assert torch.equal(training[:, 6:], evaluating[:, 6:])
        assert not torch.equal(training[:, :6], evaluating[:, :6])

    @pytest.mark.parametrize(("padding", "training"), [("zeros", True), ("zeros", False), ("released", False)])
    def test_padded_steps_are_zeros_before_the_embedding(self, padding: Any, training: bool) -> None:
        policy = small(padding=padding).train(training)
        policy.set_state_moments(torch.arange(4.0), torch.full((4,), 2.0))
        biases = torch.stack([policy.embed_rtg.bias, policy.embed_state.bias, policy.embed_action.bias])
        torch.testing.assert_close(self.padded_tokens(policy, random_windows(padded=2)), biases.expand(3, 2, 3, 8))

    def test_released_code_trains_with_minus_ten_and_z_scored_zeros(self) -> None:
        policy = small(padding="released").train()
        mean, std = torch.arange(4.0), torch.full((4,), 2.0)
        policy.set_state_moments(mean, std)
        rtg, state, action = self.padded_tokens(policy, random_windows(padded=2)).unbind(2)
        torch.testing.assert_close(rtg, policy.embed_rtg.bias.expand_as(rtg))
        torch.testing.assert_close(state, policy.embed_state((0 - mean) / std).expand_as(state))
        torch.testing.assert_close(action, policy.embed_action(torch.full((2,), -10.0)).expand_as(action))
