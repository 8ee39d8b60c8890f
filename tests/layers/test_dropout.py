from __future__ import annotations

import pytest
import torch
from torch import nn

from dmm.layers.dropout import Dropout


@pytest.mark.parametrize("shape", [(3,), (64, 24, 8), (7, 5, 3)])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_equals_torchs_own_bit_for_bit_and_draws_the_same_numbers(shape: tuple[int, ...], p: float) -> None:
    x, results = torch.randn(shape), []
    for layer in (Dropout(p), nn.Dropout(p)):
        torch.manual_seed(3)
        y = x.clone().requires_grad_()
        out = layer(y)
        (out * torch.arange(out.numel()).view(shape)).sum().backward()
        results.append((out.detach(), y.grad, torch.get_rng_state()))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_leaves_the_input_and_the_generator_alone() -> None:
    x, before = torch.randn(4, 5), torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x and torch.equal(torch.get_rng_state(), before)


def test_each_part_of_the_batch_has_its_own_generator() -> None:
    x, layer, parts = torch.randn(12, 5, 2), Dropout(0.5), []
    for seed in (7, 8, 7):
        torch.manual_seed(seed)
        parts.append(layer(x[4:8]))
    layer.generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 7)]
    before = torch.get_rng_state()
    assert torch.equal(layer(x[4:8].repeat(3, 1, 1)), torch.cat(parts))
    assert torch.equal(parts[0], parts[2]) and not torch.equal(parts[0], parts[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_repr_names_the_part_that_is_dropped() -> None:
    assert repr(Dropout(0.1)) == "Dropout(p=0.1)"
