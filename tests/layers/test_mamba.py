from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from dmm.errors import InputError
from dmm.layers.initial import init_linear
from dmm.layers.mamba import STEP_RANGE, MambaBlock
from dmm.scan import scan_backends
from tests.peers import official_block, official_step, transformers_mixer

SIZES = [
    {"d": 16, "state_size": 16, "expand": 2, "conv_width": 4},
    {"d": 20, "state_size": 5, "expand": 1, "conv_width": 3},
    {"d": 4, "state_size": 1, "expand": 3, "conv_width": 2},
]


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def official(sizes: dict[str, int]) -> nn.Module:
    """mamba-ssm's block of the same sizes, its `D` moved off the ones that it starts with."""
    block = official_block(sizes["d"], d_state=sizes["state_size"], expand=sizes["expand"], d_conv=sizes["conv_width"])
    with torch.no_grad():
        block.D.copy_(torch.randn_like(block.D))
    return block


def ours_with_weights_of(block: nn.Module, sizes: dict[str, int], **more: Any) -> MambaBlock:
    ours = MambaBlock(**sizes, **more)
    ours.load_state_dict(block.state_dict(), strict=True)
    return ours


def gradients(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a fixed projection of the output, with respect to the input and every weight."""
    x, names = x.clone().requires_grad_(), [name for name, _ in block.named_parameters()]
    y = block(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    return dict(zip(["x", *names], torch.autograd.grad(loss, [x, *block.parameters()]), strict=True))


def by_steps(block: MambaBlock, x: Tensor) -> Tensor:
    state, outputs = block.init_state(len(x)), []
    for token in x.unbind(1):
        y, state = block.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1)


class TestPeers:
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    @pytest.mark.parametrize("length", [1, 3, 70])
    def test_equals_mamba_ssm_with_its_weights(self, sizes: dict[str, int], length: int) -> None:
        theirs, x = official(sizes), torch.randn(2, length, sizes["d"])
        torch.testing.assert_close(ours_with_weights_of(theirs, sizes)(x), theirs(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_mamba_ssm_takes_our_weights(self, sizes: dict[str, int]) -> None:
        ours, theirs, x = MambaBlock(**sizes), official(sizes), torch.randn(2, 9, sizes["d"])
        theirs.load_state_dict(ours.state_dict(), strict=True)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    @pytest.mark.parametrize("backend", ["sequential", "parallel"])
    def test_gradients_equal_those_of_mamba_ssm(self, sizes: dict[str, int], backend: str) -> None:
        assert backend in scan_backends()
        theirs, x = official(sizes), torch.randn(2, 9, sizes["d"])
        expected = gradients(theirs, x)
        for name, gradient in gradients(ours_with_weights_of(theirs, sizes, backend=backend), x).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_steps_equal_those_of_mamba_ssm(self, sizes: dict[str, int]) -> None:
        theirs, x = official(sizes), torch.randn(2, 9, sizes["d"])
        steps = by_steps(ours_with_weights_of(theirs, sizes), x)
        torch.testing.assert_close(steps, official_step(theirs, x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    def test_equals_transformers_with_the_same_weights(self, sizes: dict[str, int]) -> None:
        theirs, x = transformers_mixer(**sizes), torch.randn(2, 9, sizes["d"])
        ours = ours_with_weights_of(theirs, sizes)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
        expected = gradients(theirs, x)
        for name, gradient in gradients(ours, x).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


CONV_WIDTHS = [4, 1, None]


def block_with(conv_width: int | None) -> MambaBlock:
    return MambaBlock(12, state_size=3, expand=2, conv_width=conv_width).double()


def tokens(length: int = 9) -> Tensor:
    return torch.randn(2, length, 12, dtype=torch.float64)


class TestBlock:
    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    def test_steps_equal_forward(self, conv_width: int | None) -> None:
        block, x = block_with(conv_width), tokens()
        torch.testing.assert_close(by_steps(block, x), block(x))

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    @pytest.mark.parametrize("parts", [(9,), (3, 3, 3), (1, 4, 4), (2, 7)])
    def test_a_few_tokens_at_a_time_equal_forward(self, conv_width: int | None, parts: tuple[int, ...]) -> None:
        block, x = block_with(conv_width), tokens()
        state, outputs = block.init_state(2), []
        for part in x.split(parts, dim=1):
            y, state = block.extend(part, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), block(x))

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    def test_absent_tokens_leave_no_trace(self, conv_width: int | None) -> None:
        block, x = block_with(conv_width), tokens()
        present = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])  # the first row begins with its third token
        first, state = block.extend(x[:, :3], block.init_state(2), present)
        rest, _ = block.extend(x[:, 3:], state)
        together = torch.cat([first, rest], 1)
        torch.testing.assert_close(together[:1, 2:], block(x[:1, 2:]))
        torch.testing.assert_close(together[1:], block(x[1:]))

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    def test_a_frozen_block_does_the_same_and_has_the_same_weights(self, conv_width: int | None) -> None:
        block, x = block_with(conv_width), tokens()
        expected, names = (block(x), by_steps(block, x)), list(block.state_dict())
        block.freeze()
        assert torch.equal(block(x), expected[0]) and torch.equal(by_steps(block, x), expected[1])
        assert list(block.state_dict()) == names

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    def test_a_step_leaves_the_old_state_alone(self, conv_width: int | None) -> None:
        block, x = block_with(conv_width), tokens()
        _, state = block.step(x[:, 0], block.init_state(2))
        before = [part.clone() for part in state]
        block.step(x[:, 1], state)
        assert all(torch.equal(part, old) for part, old in zip(state, before, strict=True))

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    @pytest.mark.parametrize("t", [0, 4, 8])
    def test_a_token_changes_no_output_before_it(self, conv_width: int | None, t: int) -> None:
        block, x = block_with(conv_width), tokens()
        changed = x.clone()
        changed[:, t] += 1
        difference = (block(changed) - block(x)).abs().amax(dim=(0, 2))
        assert bool((difference[:t] == 0).all())
        assert bool((difference[t:] > 0).all())

    def test_episodes_of_a_batch_do_not_mix(self) -> None:
        block, x = block_with(4), tokens()
        torch.testing.assert_close(block(x)[1:], block(x[1:]))

    def test_without_convolution_equals_a_convolution_that_passes_its_input(self) -> None:
        whole, modified, x = block_with(4), block_with(None), tokens()
        with torch.no_grad():
            whole.conv1d.weight.zero_()[:, 0, -1] = 1  # type: ignore[union-attr]
            whole.conv1d.bias.zero_()  # type: ignore[union-attr]
        missing = modified.load_state_dict(whole.state_dict(), strict=False)
        assert missing.missing_keys == [] and set(missing.unexpected_keys) == {"conv1d.weight", "conv1d.bias"}
        torch.testing.assert_close(modified(x), whole(x))

    def test_modified_block_equals_its_formula(self) -> None:
        # paper, section 3.3, with every intermediate written out
        block, x = MambaBlock(32, state_size=4, expand=1, conv_width=None).double(), torch.randn(1, 5, 32).double()
        u, z = F.silu(x @ block.in_proj.weight[:32].T), x @ block.in_proj.weight[32:].T
        low, B, C = (u @ block.x_proj.weight.T).split([2, 4, 4], -1)
        delta = F.softplus(low @ block.dt_proj.weight.T + block.dt_proj.bias)
        h, rows = torch.zeros(32, 4).double(), []
        for t in range(5):
            h = torch.exp(-delta[0, t, :, None] * block.A_log.exp()) * h + (delta * u)[0, t, :, None] * B[0, t]
            rows.append((h @ C[0, t] + block.D * u[0, t]) * F.silu(z[0, t]))
        torch.testing.assert_close(block(x)[0], torch.stack(rows) @ block.out_proj.weight.T)

    def test_parts_without_bias(self) -> None:
        biased = {name for name, _ in MambaBlock(8).named_parameters() if name.endswith("bias")}
        assert biased == {"conv1d.bias", "dt_proj.bias"}


class TestSignals:
    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    def test_what_is_gated_leads_to_the_output(self, conv_width: int | None) -> None:
        block, x = block_with(conv_width), tokens()
        torch.testing.assert_close(block.out_proj(block.signals(x).gated), block(x))

    def test_equal_their_formulas(self) -> None:
        # every line written out from the weights, the convolution tap by tap, the scan step by step
        block, x = MambaBlock(20, state_size=3, expand=2, conv_width=3).double(), torch.randn(2, 7, 20).double()
        with torch.no_grad():
            block.D.copy_(torch.randn(40))
        s = block.signals(x)
        u, z = (x @ block.in_proj.weight.T).split(40, dim=-1)
        taps, bias = block.conv1d.weight[:, 0].T, block.conv1d.bias  # type: ignore[union-attr]
        before = torch.cat([torch.zeros(2, 2, 40).double(), u], dim=1)
        u = F.silu(before[:, :-2] * taps[0] + before[:, 1:-1] * taps[1] + before[:, 2:] * taps[2] + bias)
        low, B, C = (u @ block.x_proj.weight.T).split([2, 3, 3], dim=-1)
        delta = torch.log1p(torch.exp(low @ block.dt_proj.weight.T + block.dt_proj.bias))
        h, rows = torch.zeros(2, 40, 3).double(), []
        for t in range(7):
            h = torch.exp(-delta[:, t, :, None] * block.A_log.exp()) * h + (delta * u)[:, t, :, None] * B[:, t, None]
            rows.append((h * C[:, t, None]).sum(-1) + block.D * u[:, t])
        y = torch.stack(rows, dim=1)
        expected = {"x": u, "z": z, "delta": delta, "B": B, "C": C, "y": y, "gated": y * z * torch.sigmoid(z)}
        assert s._fields == tuple(expected)
        for name, value in expected.items():
            torch.testing.assert_close(getattr(s, name), value, msg=name)

    @pytest.mark.parametrize("backend", ["sequential", "parallel"])
    def test_are_the_same_for_every_backend(self, backend: str) -> None:
        block, x = block_with(4), tokens()
        first = block.signals(x)
        block.backend = backend
        for name, value in block.signals(x)._asdict().items():
            torch.testing.assert_close(value, getattr(first, name), msg=name)

    def test_carry_gradients(self) -> None:
        block, x = block_with(4), tokens().requires_grad_()
        (ours,) = torch.autograd.grad(block.out_proj(block.signals(x).gated).square().sum(), x)
        torch.testing.assert_close(ours, torch.autograd.grad(block(x).square().sum(), x)[0])


class TestInitialisation:
    @pytest.mark.parametrize("d", [8, 16, 17, 64])
    def test_rank_of_the_step_size_is_a_sixteenth(self, d: int) -> None:
        assert MambaBlock(d).rank == math.ceil(d / 16)

    def test_step_sizes_are_log_uniform(self) -> None:
        steps = F.softplus(MambaBlock(2000).dt_proj.bias.detach())  # 4,000 of them
        low, high = STEP_RANGE
        assert low * 0.999 <= steps.min().item() <= low * 1.02
        assert high * 0.98 <= steps.max().item() <= high * 1.001
        position = (steps.log() - math.log(low)) / (math.log(high) - math.log(low))
        quantiles = torch.linspace(0.1, 0.9, 9)
        torch.testing.assert_close(torch.quantile(position, quantiles), quantiles, rtol=0, atol=0.03)

    def test_weight_of_the_step_size_is_uniform_by_rank(self) -> None:
        weight = MambaBlock(1024).dt_proj.weight.detach()  # rank 64
        assert weight.abs().max().item() <= 1 / 8
        assert weight.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)

    def test_wiped_step_sizes_are_all_the_same(self) -> None:
        layer = MambaBlock(1024, step_init="wiped").dt_proj
        torch.testing.assert_close(F.softplus(layer.bias.detach()), torch.full((2048,), 0.6931472))
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)

    def test_decay_starts_as_s4d_real_and_skip_as_one(self) -> None:
        block = MambaBlock(4, state_size=3)
        torch.testing.assert_close(-torch.exp(block.A_log.detach()), -torch.tensor([[1.0, 2.0, 3.0]]).expand(8, 3))
        assert torch.equal(block.D.detach(), torch.ones(8))

    def test_uniform_decay_lies_between_one_and_two(self) -> None:
        block = MambaBlock(256, state_size=16, a_init="uniform")
        decay = block.A_log.detach().exp()  # 512 channels of 16
        assert decay.shape == (512, 16) and 1 <= decay.min().item() < 1.01 and 1.99 < decay.max().item() <= 2
        quantiles = torch.linspace(0.1, 0.9, 9)
        torch.testing.assert_close(torch.quantile(decay.flatten(), quantiles), 1 + quantiles, rtol=0, atol=0.03)
        assert decay[0].unique().numel() > 1 and decay[:, 0].unique().numel() > 1

    @pytest.mark.parametrize("a_init", ["s4d-real", "uniform"])
    def test_start_of_the_decay_changes_nothing_else(self, a_init: Any) -> None:
        block = MambaBlock(8, a_init=a_init)
        assert {name: p.shape for name, p in block.named_parameters()} == {
            name: p.shape for name, p in MambaBlock(8).named_parameters()
        }
        x = torch.randn(2, 5, 8)
        torch.testing.assert_close(by_steps(block, x), block(x))

    def test_init_linear_is_the_generic_start(self) -> None:
        layer = nn.Linear(300, 300)
        init_linear(layer)
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02) and not layer.bias.any()


class TestActivationAndSkip:
    @pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
    @pytest.mark.parametrize("skip", [True, False])
    def test_both_branches_take_the_activation(self, activation: Any, skip: bool) -> None:
        block = MambaBlock(12, state_size=3, conv_width=None, activation=activation, skip=skip).double()
        act, x = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[activation], tokens()
        s = block.signals(x)
        u, z = block.in_proj(x).chunk(2, dim=-1)
        torch.testing.assert_close(s.x, act(u))
        torch.testing.assert_close(s.gated, s.y * act(z))
        torch.testing.assert_close(block(x), block.out_proj(s.gated))
        assert (block.D is not None) == skip

    def test_skip_is_what_it_adds(self) -> None:
        block, without = (MambaBlock(12, state_size=3, skip=skip).double() for skip in (True, False))
        without.load_state_dict({name: w for name, w in block.state_dict().items() if name != "D"})
        with_skip, plain = block.signals(x := tokens()), without.signals(x)
        torch.testing.assert_close(with_skip.y, plain.y + with_skip.x)

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    @pytest.mark.parametrize(
        "changes", [{"activation": "gelu"}, {"skip": False}, {"activation": "relu", "skip": False}]
    )
    @pytest.mark.parametrize("gradients", [True, False])
    def test_steps_equal_forward(self, conv_width: int | None, changes: dict[str, Any], gradients: bool) -> None:
        block, x = MambaBlock(12, state_size=3, conv_width=conv_width, **changes).double(), tokens()
        with torch.set_grad_enabled(gradients):
            torch.testing.assert_close(by_steps(block, x), block(x))


class TestErrors:
    @pytest.mark.parametrize("name", ["d", "state_size", "expand", "conv_width"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_size_below_one_is_named(self, name: str, value: int) -> None:
        sizes: dict[str, Any] = {"d": 8, "state_size": 4, "expand": 2, "conv_width": 4}
        with pytest.raises(InputError, match=f"^{name}: got {value}, allowed is a whole number of at least 1"):
            MambaBlock(**(sizes | {name: value}))

    def test_unknown_step_init_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^step_init: got 'hippo', allowed are mamba, wiped"):
            MambaBlock(8, step_init="hippo")  # type: ignore[arg-type]

    def test_unknown_a_init_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^a_init: got 'hippo', allowed are s4d-real, uniform$"):
            MambaBlock(8, a_init="hippo")  # type: ignore[arg-type]

    def test_unknown_activation_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^activation: got 'tanh', allowed are silu, gelu, relu$"):
            MambaBlock(8, activation="tanh")  # type: ignore[arg-type]

    def test_unknown_backend_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^backend: got 'fast'"):
            MambaBlock(8, backend="fast")(torch.zeros(1, 2, 8))


def test_a_frozen_block_can_be_copied_and_the_copy_is_not_frozen() -> None:
    block = MambaBlock(8)
    block.freeze()
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.A_log.add_(1.0)
    x = torch.randn(2, 3, 8)
    y, _ = other.extend(x, other.init_state(2))
    torch.testing.assert_close(y, other(x))


class TestWithoutGradients:
    """The same steps, for which the CPU kernel is called at once."""

    @pytest.mark.parametrize("conv_width", [None, 4])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_steps_equal_the_whole(self, conv_width: int | None, frozen: bool) -> None:
        block = MambaBlock(8, conv_width=conv_width)
        x = torch.randn(2, 7, 8)
        with torch.no_grad():
            if frozen:
                block.freeze()
            first, state = block.extend(x[:, :4], block.init_state(2))
            second, _ = block.extend(x[:, 4:], state)
            torch.testing.assert_close(torch.cat([first, second], dim=1), block(x))

    def test_a_state_of_another_batch_or_dtype_is_refused(self) -> None:
        block, x = MambaBlock(8, conv_width=None), torch.randn(4, 3, 8)
        with torch.no_grad(), pytest.raises(InputError, match=r"^initial_state: got shape \(2,"):
            block.extend(x, block.init_state(2))

    def test_a_block_that_is_converted_thaws(self) -> None:
        block, x = MambaBlock(8), torch.randn(2, 3, 8, dtype=torch.float64)
        block.freeze()
        block.double()
        with torch.no_grad():
            torch.testing.assert_close(block.extend(x, block.init_state(2))[0], block(x))

    @pytest.mark.parametrize("conv_width", [None, 4])
    def test_what_torch_watches_goes_around_the_kernel(self, conv_width: int | None) -> None:
        block = MambaBlock(8, conv_width=conv_width).double()
        x, v = torch.randn(2, 2, 3, 8, dtype=torch.float64)
        with torch.no_grad():
            block.freeze()
            state = block.init_state(2)
            several = torch.vmap(lambda x: block.extend(x, state)[0])(torch.stack([x, v]))
            torch.testing.assert_close(several, torch.stack([block(x), block(v)]))
            with forward_ad.dual_level():
                y, _ = block.extend(forward_ad.make_dual(x, v), state)
                tangent = forward_ad.unpack_dual(y).tangent
        expected = torch.autograd.functional.jvp(block, x, v)[1]
        torch.testing.assert_close(tangent, expected)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("backend", ["auto", "sequential", "parallel"])
    def test_half_precision_goes_through(self, dtype: torch.dtype, backend: str) -> None:
        block, x = MambaBlock(8, backend=backend), torch.randn(2, 5, 8)
        expected = block(x)
        block.to(dtype)
        y, state = block.extend(x.to(dtype), block.init_state(2))
        assert block(x.to(dtype)).dtype == y.dtype == state.ssm.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.02)

    def test_under_autocast_the_state_stays_as_it_is(self) -> None:
        block, x = MambaBlock(8), torch.randn(2, 5, 8)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = block.extend(x, block.init_state(2))
            whole = block(x)
        assert y.dtype == whole.dtype == torch.bfloat16 and state.ssm.dtype == torch.float32
        torch.testing.assert_close(y, whole, rtol=0.05, atol=0.02)
