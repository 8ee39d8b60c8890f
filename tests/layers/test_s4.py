"""S4 and S4D against numbers made with state-spaces/s4 (`tests/golden/ds4.npz`) and against the plain recurrence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.errors import InputError
from dmm.layers.mamba import STEP_RANGE
from dmm.layers.s4 import LONGEST_PRODUCT, S4, S4D, S4Block, StateSpace, convolve, legs_pairs
from dmm.ssm import discretize, hippo_legs

GOLDEN = Path(__file__).parent.parent / "golden" / "ds4.npz"
CLOSE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files if key != "config"}


@torch.no_grad()
def official_s4d(golden: dict[str, Tensor]) -> S4Block:
    block = S4Block(6, state_size=8, diagonal=True)
    for name in ("C", "log_dt", "log_A_real", "A_imag"):
        block.ssm.get_parameter(name).copy_(golden[f"weights/s4d/kernel.{name}"])
    block.ssm.get_parameter("D").copy_(golden["weights/s4d/D"])
    block.project_out.weight.copy_(golden["weights/s4d/output_linear.0.weight"][..., 0])
    block.project_out.bias.copy_(golden["weights/s4d/output_linear.0.bias"])
    return block


@torch.no_grad()
def official_s4(golden: dict[str, Tensor]) -> S4Block:
    """Their `A_imag` has the other sign: of a conjugate pair, they keep the other one."""
    block, kernel = S4Block(6, state_size=8), "weights/s4/layer.kernel"
    theirs = {"C": golden[f"{kernel}.C"][0], "B": golden[f"{kernel}.B"][0], "P": golden[f"{kernel}.P"][0]}
    theirs |= {"log_dt": golden[f"{kernel}.inv_dt"][:, 0], "log_A_real": golden[f"{kernel}.A_real"]}
    theirs |= {"A_imag": -golden[f"{kernel}.A_imag"], "D": golden["weights/s4/layer.D"][0]}
    for name, weight in theirs.items():
        block.ssm.get_parameter(name).copy_(weight)
    block.project_out.weight.copy_(golden["weights/s4/output_linear.0.weight"])
    block.project_out.bias.copy_(golden["weights/s4/output_linear.0.bias"])
    return block


def by_parts(layer: Any, x: Tensor, parts: tuple[int, ...]) -> Tensor:
    state, outputs = layer.init_state(len(x)), []
    for part in x.split(parts, dim=1):
        y, state = layer.extend(part, state)
        outputs.append(y)
    return torch.cat(outputs, 1)


class TestOfficialS4D:
    def test_kernel(self, golden: dict[str, Tensor]) -> None:
        torch.testing.assert_close(official_s4d(golden).ssm.kernel(20), golden["outputs/s4d/kernel"], **CLOSE)

    def test_layer_and_block(self, golden: dict[str, Tensor]) -> None:
        block, u = official_s4d(golden), golden["inputs/u"].mT
        torch.testing.assert_close(block.ssm(u).mT, golden["outputs/s4d/before_activation"], **CLOSE)
        torch.testing.assert_close(block(u).mT, golden["outputs/s4d/output"], **CLOSE)

    def test_steps(self, golden: dict[str, Tensor]) -> None:
        block, u = official_s4d(golden), golden["inputs/u"].mT
        torch.testing.assert_close(by_parts(block, u, (1,) * 20).mT, golden["outputs/s4d/output"], **CLOSE)

    def test_gradients(self, golden: dict[str, Tensor]) -> None:
        block = official_s4d(golden)
        loss = block(golden["inputs/u"].mT).square().mean()
        torch.testing.assert_close(loss, golden["loss/s4d"], **CLOSE)
        loss.backward()
        for name in ("C", "log_dt", "log_A_real", "A_imag", "D"):
            expected = golden["grads/s4d/D" if name == "D" else f"grads/s4d/kernel.{name}"]
            size = expected.abs().max().item()
            torch.testing.assert_close(block.ssm.get_parameter(name).grad, expected, rtol=0, atol=1e-4 * size, msg=name)

    def test_start(self, golden: dict[str, Tensor]) -> None:
        layer = S4D(6, 8)
        torch.testing.assert_close(layer.log_A_real.detach(), golden["init/s4d/log_A_real"], **CLOSE)
        torch.testing.assert_close(layer.A_imag.detach(), golden["init/s4d/A_imag"], **CLOSE)


class TestOfficialS4:
    def test_kernel(self, golden: dict[str, Tensor]) -> None:
        torch.testing.assert_close(official_s4(golden).ssm.kernel(20), golden["outputs/s4/kernel"], **CLOSE)

    def test_block(self, golden: dict[str, Tensor]) -> None:
        torch.testing.assert_close(official_s4(golden)(golden["inputs/u"].mT).mT, golden["outputs/s4/output"], **CLOSE)

    def test_steps(self, golden: dict[str, Tensor]) -> None:
        y = by_parts(official_s4(golden), golden["inputs/u"].mT, (1,) * 20)
        torch.testing.assert_close(y.mT, golden["outputs/s4/output_by_steps"], **CLOSE)

    def test_gradient(self, golden: dict[str, Tensor]) -> None:
        u = golden["inputs/u"].clone().requires_grad_()
        loss = official_s4(golden)(u.mT).square().mean()
        torch.testing.assert_close(loss, golden["loss/s4"], **CLOSE)
        expected = golden["grads/s4/u"]
        (gradient,) = torch.autograd.grad(loss, u)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4 * expected.abs().max().item())

    def test_hippo_matrix(self, golden: dict[str, Tensor]) -> None:
        A, B = hippo_legs(8)
        torch.testing.assert_close(A, golden["init/hippo_A"], **CLOSE)
        torch.testing.assert_close(B, golden["init/hippo_B"], **CLOSE)

    def test_start(self, golden: dict[str, Tensor]) -> None:
        # of each pair they keep the other one, largest frequency first; a pair's phase is free
        theirs = {name: torch.view_as_complex(golden[f"init/{name}"]).squeeze(0) for name in ("lambda", "p", "b")}
        theirs = {name: values.conj().resolve_conj().flip(0) for name, values in theirs.items()}
        poles, p, b = (each.to(torch.complex64) for each in legs_pairs(8))
        torch.testing.assert_close(poles, theirs["lambda"], **CLOSE)
        torch.testing.assert_close(p.abs(), theirs["p"].abs(), **CLOSE)
        turned = b * (theirs["p"] / p)
        torch.testing.assert_close(turned.real, theirs["b"].real, **CLOSE)
        torch.testing.assert_close(turned.imag.clamp(-2, 2), theirs["b"].imag, **CLOSE)
        assert S4(3, 64).B.detach()[..., 1].abs().max().item() == 2


class TestLegs:
    @pytest.mark.parametrize("n", [2, 8, 32])
    def test_is_the_hippo_matrix_in_another_basis(self, n: int) -> None:
        poles, p, b = legs_pairs(n)
        whole = [torch.cat([each, each.conj()]) for each in (poles, p, b)]
        A, B = torch.diag(whole[0]) - whole[1][:, None] * whole[1].conj(), whole[2]
        dense, drive = hippo_legs(n, torch.float64)
        for power in range(6):  # outputs p^* A^k b do not depend on the basis
            ours = whole[1].conj() @ torch.linalg.matrix_power(A, power) @ B
            theirs = (torch.arange(n) + 0.5).double().sqrt() @ torch.linalg.matrix_power(dense, power) @ drive
            torch.testing.assert_close(ours.real, theirs, rtol=1e-8, atol=1e-8)
            assert abs(ours.imag.item()) < 1e-8 * max(1, abs(theirs.item()))


KINDS: dict[str, Any] = {
    "s4": lambda **sizes: S4(5, 6, **sizes),
    "s4, shared": lambda **sizes: S4(5, 6, share=True, **sizes),
    "s4d": lambda **sizes: S4D(5, 6, **sizes),
}


def layer_of(kind: str, **sizes: Any) -> StateSpace:
    layer: StateSpace = KINDS[kind](**sizes).double()
    return layer


@pytest.mark.parametrize("kind", KINDS)
class TestLayers:
    @pytest.mark.parametrize("parts", [(37,), (1,) * 37, (3, 30, 4)])
    def test_steps_equal_the_convolution(self, kind: str, parts: tuple[int, ...]) -> None:
        layer, x = layer_of(kind), torch.randn(2, 37, 5, dtype=torch.float64)
        torch.testing.assert_close(by_parts(layer, x, parts), layer(x))

    @pytest.mark.parametrize("skip", [True, False])
    def test_convolution_is_the_sum_it_stands_for(self, kind: str, skip: bool) -> None:
        layer, x = layer_of(kind, skip=skip), torch.randn(2, 7, 5, dtype=torch.float64)
        kernel, expected = layer.kernel(7), torch.zeros_like(x)
        for t in range(7):
            for age in range(t + 1):
                expected[:, t] += kernel[:, age] * x[:, t - age]
        torch.testing.assert_close(layer(x), expected if layer.D is None else expected + layer.D * x)
        assert (layer.D is not None) == skip

    @pytest.mark.parametrize("length", [1, 2, 3, 16, 50])
    def test_kernels_of_several_lengths_agree(self, kind: str, length: int) -> None:
        layer = layer_of(kind)
        torch.testing.assert_close(layer.kernel(length), layer.kernel(50)[:, :length])

    def test_absent_tokens_leave_no_trace(self, kind: str) -> None:
        layer, x = layer_of(kind), torch.randn(2, 9, 5, dtype=torch.float64)
        present = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
        first, state = layer.extend(x[:, :3], layer.init_state(2), present)
        rest, _ = layer.extend(x[:, 3:], state)
        together = torch.cat([first, rest], 1)
        torch.testing.assert_close(together[:1, 2:], layer(x[:1, 2:]))
        torch.testing.assert_close(together[1:], layer(x[1:]))

    def test_a_frozen_layer_does_the_same_and_a_copy_is_not_frozen(self, kind: str) -> None:
        layer, x = layer_of(kind), torch.randn(2, 9, 5, dtype=torch.float64)
        layer.freeze()
        torch.testing.assert_close(by_parts(layer, x, (4, 5)), layer(x))
        assert layer.float()._frozen is None

    def test_gradients_are_those_of_finite_differences(self, kind: str) -> None:
        layer = layer_of(kind)
        names, weights = zip(*layer.named_parameters(), strict=True)
        x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)

        def whole(x: Tensor, *weights: Tensor) -> Any:
            return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

        assert torch.autograd.gradcheck(whole, (x, *weights))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_half_precision_goes_through(self, kind: str, dtype: torch.dtype) -> None:
        layer, x = layer_of(kind).float(), torch.randn(2, 20, 5)
        expected = layer(x)
        layer.to(dtype)
        y, state = layer.extend(x.to(dtype), layer.init_state(2))
        assert layer(x.to(dtype)).dtype == y.dtype == state.dtype == dtype
        torch.testing.assert_close(layer(x.to(dtype)).float(), expected, rtol=0.1, atol=0.1)

    def test_autocast_leaves_the_convolution_in_full_precision(self, kind: str) -> None:
        layer, x = layer_of(kind).float(), torch.randn(2, 20, 5)
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = layer.extend(x, layer.init_state(2))
            within = layer(x)
        torch.testing.assert_close(within, layer(x))
        torch.testing.assert_close(y, layer(x), **CLOSE)

    def test_step_sizes_start_log_uniform(self, kind: str) -> None:
        steps = torch.cat([layer_of(kind).log_dt.detach().exp() for _ in range(400)])
        assert STEP_RANGE[0] <= steps.min().item() < 0.0011 and 0.09 < steps.max().item() <= STEP_RANGE[1]
        assert steps.log().mean().item() == pytest.approx(math.log(0.01), abs=0.1)


class TestConvolution:
    @pytest.mark.parametrize("models", [(), (2,)])
    def test_products_and_fourier_transforms_agree(self, models: tuple[int, ...]) -> None:
        kernel, u = torch.randn(*models, 3, 9).double(), torch.randn(*models, 4, 3, 9).double()
        short, longer = convolve(kernel, u), LONGEST_PRODUCT + 1 - 9
        long = convolve(F.pad(kernel, (0, longer)), F.pad(u, (0, longer)))[..., :9]
        torch.testing.assert_close(short, long)

    @pytest.mark.parametrize("length", [5, LONGEST_PRODUCT + 30])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_later_token_moves_nothing_before_it(self, kind: str, length: int) -> None:
        layer, x = layer_of(kind), torch.randn(2, length, 5, dtype=torch.float64, requires_grad=True)
        y = layer(x)
        (reach,) = torch.autograd.grad(y[:, 3].sum(), x)
        assert reach[:, :4].abs().amax(dim=(0, 2)).min() > 1e-6
        assert reach[:, 4:].abs().max() <= (0 if length <= LONGEST_PRODUCT else 1e-14)

    @pytest.mark.parametrize("kind", KINDS)
    def test_long_convolutions_equal_steps(self, kind: str) -> None:
        length = 2 * LONGEST_PRODUCT
        layer, x = layer_of(kind), torch.randn(1, length, 5, dtype=torch.float64)
        torch.testing.assert_close(by_parts(layer, x, (1,) * length), layer(x))


class TestDiscretisation:
    def test_s4_takes_the_bilinear_rule(self) -> None:
        # the whole complex system, both of each pair, by the dense rule of `dmm.ssm`
        layer = layer_of("s4")
        assert isinstance(layer, S4)
        poles = torch.complex(-layer.log_A_real.exp(), layer.A_imag)[0].detach()
        p, b, c = (torch.view_as_complex(weight.detach())[0] for weight in (layer.P, layer.B, layer.C))
        change = torch.cat(
            [torch.cat([torch.eye(3), torch.eye(3)], 0), 1j * torch.cat([torch.eye(3), -torch.eye(3)], 0)], 1
        ).to(torch.complex128)  # [Re h, Im h] -> [h, conj h]
        poles, p, b, c = (torch.cat([each, each.conj()]) for each in (poles, p, b, c))
        real = torch.linalg.solve(change, (torch.diag(poles) - p[:, None] * p.conj()) @ change).real
        drive = torch.linalg.solve(change, b[:, None])[:, 0].real
        A, B = discretize(real, drive, layer.log_dt[0].detach().exp(), "bilinear")
        ours = layer.system()
        torch.testing.assert_close(ours[0][0], A)
        torch.testing.assert_close(ours[1][0], B)
        torch.testing.assert_close(ours[2][0], (c @ change).real)

    def test_s4d_takes_zero_order_hold(self) -> None:
        layer = layer_of("s4d")
        assert isinstance(layer, S4D)
        A, B, _ = layer.system()
        poles, dt = torch.complex(-layer.log_A_real.exp(), layer.A_imag), layer.log_dt.exp()[:, None]
        torch.testing.assert_close(A, (dt * poles).exp())
        torch.testing.assert_close(B, ((dt * poles).exp() - 1) / poles)

    @pytest.mark.parametrize("state", [64, 96])
    def test_long_kernels_keep_their_precision(self, state: int) -> None:
        layer, exact = S4(4, state, share=True), S4(4, state, share=True)
        exact.load_state_dict(layer.state_dict())
        expected = exact.double().kernel(2000)
        torch.testing.assert_close(
            layer.kernel(2000).double(), expected, rtol=0, atol=2e-5 * expected.abs().max().item()
        )


class TestBlock:
    @pytest.mark.parametrize(("diagonal", "count"), [(False, 24_832), (True, 16_640)])
    def test_weights_are_as_many_as_in_state_spaces(self, diagonal: bool, count: int) -> None:
        # 64 channels and states: C 4,096, dt and D 128; S4 also B and P 8,192; A 4,096; W 8,192 and its bias 128
        assert 4_096 + 128 + (0 if diagonal else 8_192) + 4_096 + 8_320 == count
        assert sum(p.numel() for p in S4Block(64, diagonal=diagonal).parameters()) == count

    def test_equals_its_formula(self) -> None:
        block, x = S4Block(4, state_size=2).double(), torch.randn(2, 6, 4, dtype=torch.float64)
        a, gate = (F.gelu(block.ssm(x)) @ block.project_out.weight.T + block.project_out.bias).chunk(2, dim=-1)
        torch.testing.assert_close(block(x), a * torch.sigmoid(gate))

    @pytest.mark.parametrize("diagonal", [True, False])
    def test_steps_equal_forward_and_no_token_sees_a_later_one(self, diagonal: bool) -> None:
        block, x = S4Block(4, state_size=6, diagonal=diagonal).double(), torch.randn(2, 9, 4, dtype=torch.float64)
        torch.testing.assert_close(by_parts(block, x, (2, 7)), block(x))
        first, _ = block.step(x[:, 0], block.init_state(2))
        torch.testing.assert_close(first, block(x)[:, 0])
        later = x.clone()
        later[:, 5:] += 1
        assert torch.equal(block(later)[:, :5], block(x)[:, :5])
        assert bool((block(later)[:, 5:] - block(x)[:, 5:]).abs().amax() > 1e-3)

    def test_frozen_dynamics_leave_two_weights_to_train(self) -> None:
        trained = {name for name, p in S4(4, 6, train_dynamics=False).named_parameters() if p.requires_grad}
        assert trained == {"C", "D"}
        assert all(p.requires_grad for p in S4(4, 6).parameters())


@pytest.mark.parametrize("make", [S4, S4D])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d": 0}, r"^d: got 0, allowed is a whole number of at least 1"),
        ({"d": 4, "state_size": 0}, r"^state_size: got 0, allowed is a whole number of at least 1"),
        ({"d": 4, "state_size": 5}, r"^state_size: got 5, allowed are even numbers"),
    ],
)
def test_wrong_size_is_named(make: type[nn.Module], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**sizes)
