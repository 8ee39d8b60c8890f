from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import InputError
from dmm.layers.mamba import STEP_RANGE
from dmm.layers.mamba2 import Mamba2Block
from tests.peers import official_ssd, transformers_mixer_2

SIZES: list[dict[str, int]] = [
    {"d": 16, "state_size": 16, "expand": 2, "head_size": 8, "conv_width": 4},
    {"d": 20, "state_size": 5, "expand": 1, "head_size": 4, "conv_width": 3},
    {"d": 6, "state_size": 1, "expand": 3, "head_size": 18, "conv_width": 2},
]
CONV_WIDTHS = [4, 1, None]


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def off_its_start(block: nn.Module) -> nn.Module:
    """With every weight where it can be told from what it starts as."""
    with torch.no_grad():
        for name in ("D", "norm.weight", "A_log", "dt_bias"):
            weight = block.get_parameter(name)
            weight.copy_(torch.randn_like(weight))
    return block


def block_with(conv_width: int | None, **changes: Any) -> Mamba2Block:
    sizes: dict[str, Any] = {"state_size": 3, "expand": 2, "head_size": 4, "conv_width": conv_width} | changes
    return Mamba2Block(12, **sizes).double()


def tokens(length: int = 9) -> Tensor:
    return torch.randn(2, length, 12, dtype=torch.float64)


def gradients(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a fixed projection of the output, with respect to the input and every weight."""
    x, names = x.clone().requires_grad_(), [name for name, _ in block.named_parameters()]
    y = block(x)
    loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()
    return dict(zip(["x", *names], torch.autograd.grad(loss, [x, *block.parameters()]), strict=True))


class TestPeers:
    @pytest.mark.parametrize("sizes", SIZES, ids=str)
    @pytest.mark.parametrize("length", [1, 3, 30])
    def test_equals_transformers_with_its_weights(self, sizes: dict[str, int], length: int) -> None:
        theirs, ours = off_its_start(transformers_mixer_2(**sizes)), Mamba2Block(**sizes)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        x = torch.randn(2, length, sizes["d"])
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
        expected = gradients(theirs, x)
        for name, gradient in gradients(ours, x).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)

    @pytest.mark.parametrize("block_length", [1, 4, 12])
    def test_scan_equals_mamba_ssms_matrix_products(self, block_length: int) -> None:
        block = off_its_start(block_with(None, skip=True))
        assert isinstance(block, Mamba2Block)
        x, B, C, dt = (torch.randn(2, 12, size, dtype=torch.float64) for size in (24, 3, 3, 6))
        y, last = block._scan(torch.cat([x, B, C], dim=-1), dt, None)
        delta, heads = F.softplus(dt + block.dt_bias), x.unflatten(-1, (6, 4))
        many = [t[:, :, None].expand(-1, -1, 6, -1) for t in (B, C)]
        A = -block.A_log.exp()
        expected, state = official_ssd(heads * delta[..., None], A * delta, *many, block_length)
        torch.testing.assert_close(y.unflatten(-1, (6, 4)), expected + block.D[:, None] * heads)  # type: ignore[index]
        torch.testing.assert_close(last.unflatten(1, (6, 4)), state)


class TestBlock:
    @pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
    @pytest.mark.parametrize("skip", [True, False])
    def test_equals_its_formulas(self, activation: Any, skip: bool) -> None:
        # every line written out from the weights, without convolution, the scan step by step
        block, x = block_with(None, activation=activation, skip=skip), tokens(5)
        act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[activation]
        z, u, B, C, dt = (x @ block.in_proj.weight.T).split([24, 24, 3, 3, 6], dim=-1)
        u, B, C = act(u).unflatten(-1, (6, 4)), act(B), act(C)
        delta, h, rows = torch.log1p(torch.exp(dt + block.dt_bias)), torch.zeros(2, 6, 4, 3).double(), []
        for t in range(5):
            decay = torch.exp(-delta[:, t] * block.A_log.exp())[..., None, None]
            h = decay * h + (delta[:, t, :, None] * u[:, t])[..., None] * B[:, t, None, None]
            y = (h * C[:, t, None, None]).sum(-1)
            rows.append(y + block.D[:, None] * u[:, t] if block.D is not None else y)
        gated = torch.stack(rows, 1).flatten(2) * act(z)
        normed = gated / (gated.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
        torch.testing.assert_close(block(x), normed @ block.out_proj.weight.T)
        assert (block.D is not None) == skip

    @pytest.mark.parametrize("conv_width", CONV_WIDTHS)
    @pytest.mark.parametrize("parts", [(9,), (3, 3, 3), (1, 4, 4), (1,) * 9])
    def test_a_few_tokens_at_a_time_equal_forward(self, conv_width: int | None, parts: tuple[int, ...]) -> None:
        block, x = block_with(conv_width), tokens()
        state, outputs = block.init_state(2), []
        for part in x.split(parts, dim=1):
            y, state = block.extend(part, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), block(x))

    def test_a_step_is_one_token(self) -> None:
        block, x = block_with(4), tokens(2)
        first, state = block.step(x[:, 0], block.init_state(2))
        second, _ = block.step(x[:, 1], state)
        torch.testing.assert_close(torch.stack([first, second], 1), block(x))

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
    def test_no_token_sees_a_later_one(self, conv_width: int | None) -> None:
        block, x = block_with(conv_width), tokens()
        later = x.clone()
        later[:, 5:] += 1
        assert torch.equal(block(later)[:, :5], block(x)[:, :5])
        assert bool((block(later)[:, 5:] != block(x)[:, 5:]).any())

    @pytest.mark.parametrize("conv_width", [2, None])
    @pytest.mark.parametrize("activation", ["silu", "gelu"])
    def test_gradients_are_those_of_finite_differences(self, conv_width: int | None, activation: Any) -> None:
        block = Mamba2Block(4, state_size=2, expand=1, head_size=2, conv_width=conv_width, activation=activation)
        block.double()
        names, weights = zip(*block.named_parameters(), strict=True)
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

        def function(x: Tensor, *weights: Tensor) -> Any:
            return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x,))

        assert torch.autograd.gradcheck(function, (x, *weights))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_goes_through(self, dtype: torch.dtype) -> None:
        block, x = Mamba2Block(8, head_size=4), torch.randn(2, 5, 8)
        expected = block(x)
        block.to(dtype)
        y, state = block.extend(x.to(dtype), block.init_state(2))
        assert block(x.to(dtype)).dtype == y.dtype == state.ssm.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.05)


class TestWeights:
    def test_count_without_convolution(self) -> None:
        # d = 64, e = 64, n = 16, 4 heads: in 64 (64 + 64 + 32 + 4) = 10,496, out 4,096, norm 64, dt, A and D 12
        block = Mamba2Block(64, state_size=16, expand=1, head_size=16, conv_width=None)
        assert sum(p.numel() for p in block.parameters()) == 10_496 + 4_096 + 64 + 12

    def test_start(self) -> None:
        block = Mamba2Block(4000, state_size=1, head_size=2, conv_width=None)  # 4,000 heads
        steps, decay = F.softplus(block.dt_bias.detach()), block.A_log.detach().exp()
        assert STEP_RANGE[0] * 0.99 < steps.min().item() < 0.00105 and 0.095 < steps.max().item() < STEP_RANGE[1] * 1.01
        assert 1 <= decay.min().item() < 1.05 and 15.95 < decay.max().item() <= 16.001
        assert block.D is not None and bool((block.D == 1).all())


class TestErrors:
    @pytest.mark.parametrize("name", ["d", "state_size", "expand", "head_size", "conv_width"])
    def test_size_below_one_is_named(self, name: str) -> None:
        sizes: dict[str, Any] = {"d": 8, "state_size": 4, "expand": 2, "head_size": 4, "conv_width": 4}
        with pytest.raises(InputError, match=f"^{name}: got 0, allowed is a whole number of at least 1"):
            Mamba2Block(**(sizes | {name: 0}))

    def test_heads_that_do_not_fit_are_named(self) -> None:
        with pytest.raises(InputError, match=r"^head_size: got 5, allowed are divisors of the 16 inner channels$"):
            Mamba2Block(8, head_size=5)

    def test_unknown_activation_is_named(self) -> None:
        with pytest.raises(InputError, match=r"^activation: got 'tanh', allowed are silu, gelu, relu$"):
            Mamba2Block(8, head_size=4, activation="tanh")  # type: ignore[arg-type]
