"""The branches of Decision ConvFormer and Ota's Decision Mamba against the modules that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmm import cpp
from dmm.errors import InputError
from dmm.fused import branch, branches
from dmm.layers.local import ModalityConv
from dmm.layers.mlp import GeluMLP

pytestmark = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
MIXERS: dict[str, Any] = {
    "mlp": lambda d: GeluMLP(d),
    "three modalities": lambda d: ModalityConv(d, 6),
    "two modalities": lambda d: ModalityConv(d, 4, 2),
    "longer than the sequence": lambda d: ModalityConv(d, 30),
    "one tap": lambda d: ModalityConv(d, 1),
}


def drawn(kind: str, d: int, shape: tuple[int, int], dtype: torch.dtype) -> tuple[nn.LayerNorm, nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm, mixer = nn.LayerNorm(d), MIXERS[kind](d)
        for weight in (*norm.parameters(), *mixer.parameters()):
            nn.init.normal_(weight, std=0.5)
        return norm.to(dtype), mixer.to(dtype).train(), torch.randn(*shape, d, dtype=dtype).requires_grad_()


def outcome(y: Tensor, norm: nn.Module, mixer: nn.Module, x: Tensor) -> list[Tensor]:
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *norm.parameters(), *mixer.parameters()])]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        limit = TOLERANCE[mine.dtype] * float(theirs.detach().abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize(("d", "shape"), [(16, (5, 24)), (13, (1, 7)), (20, (64, 1))])
def test_outputs_and_gradients_of_the_modules(kind: str, d: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if kind == "mlp" and dtype == torch.float64:
        pytest.skip("in float32 alone")
    norm, mixer, x = drawn(kind, d, shape, dtype)
    with branches("fused"):
        fused = branch(norm, mixer, x, normalized=False)
    assert fused is not None
    assert_same(outcome(fused(), norm, mixer, x), outcome(x + mixer(norm(x)), norm, mixer, x))


@pytest.mark.parametrize("only", [0, 1, 2])
def test_one_modality_alone(only: int) -> None:
    norm, mixer, x = drawn("three modalities", 16, (5, 23), torch.float64)
    fused = branch(norm, mixer, x, normalized=False)
    assert fused is not None
    expected = outcome((x + mixer(norm(x)))[:, only::3], norm, mixer, x)
    assert_same(outcome(fused(only=only), norm, mixer, x), expected)
    assert_same(outcome(x[:, only::3] + mixer.at(norm(x), only), norm, mixer, x), expected)  # type: ignore[operator]


def test_dropout_of_what_the_mlp_adds() -> None:
    norm, mlp, x = drawn("mlp", 16, (5, 24), torch.float32)
    kept = torch.empty(5, 24, 16).bernoulli_(0.5, generator=torch.Generator().manual_seed(0)) * 2
    fused = branch(norm, mlp, x, normalized=False)
    assert fused is not None
    assert_same(outcome(fused(kept=kept), norm, mlp, x), outcome(x + mlp(norm(x)) * kept, norm, mlp, x))


@pytest.mark.parametrize("kind", ["mlp", "three modalities"])
def test_the_same_bits_on_any_number_of_threads(kind: str) -> None:
    norm, mixer, x = drawn(kind, 16, (40, 24), torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            fused = branch(norm, mixer, x, normalized=False)
            assert fused is not None
            y = fused()
            found.append([y, *torch.autograd.grad(y.sum(), [x, norm.weight])])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("kind", ["mlp", "three modalities"])
def test_second_gradients(kind: str) -> None:
    norm, mixer, x = drawn(kind, 8, (2, 6), torch.float32)
    results = []
    fused = branch(norm, mixer, x, normalized=False)
    assert fused is not None
    for y in (fused(), x + mixer(norm(x))):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [x, *mixer.parameters()]))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_numbers_that_are_none_come_through() -> None:
    norm, mlp, x = drawn("mlp", 16, (2, 3), torch.float32)
    with torch.no_grad():
        x[0, 1, 2] = float("nan")
    fused = branch(norm, mlp, x, normalized=False)
    assert fused is not None
    assert torch.equal(fused().isnan(), (x + mlp(norm(x))).isnan())


@pytest.mark.parametrize("kind", ["mlp", "three modalities"])
def test_what_it_cannot_serve_is_left_to_the_modules(kind: str) -> None:
    norm, mixer, x = drawn(kind, 16, (2, 3), torch.float32)
    assert branch(norm, mixer, x, normalized=True) is None
    with torch.no_grad():
        assert branch(norm, mixer, x, normalized=False) is None
    assert branch(norm, mixer.eval(), x, normalized=False) is None
    hook = next(mixer.train().children()).register_forward_hook(lambda *_: None)
    assert branch(norm, mixer, x, normalized=False) is None
    hook.remove()
    assert branch(norm, mixer, x, normalized=False) is not None
    norm, mixer, x = norm.double(), mixer.double(), x.detach().double()
    assert (branch(norm, mixer, x, normalized=False) is None) == (kind == "mlp")
    with branches("fused"), pytest.raises(InputError, match="adds to x"):
        branch(norm, mixer, x, normalized=True)
