from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dmm.layers.attention import CausalAttention, attention_mask


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def layer(heads: int = 2) -> CausalAttention:
    return CausalAttention(8, heads, dropout=0.0).double()


def tokens() -> Tensor:
    return torch.randn(2, 6, 8, dtype=torch.float64)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_without_a_mask_each_token_looks_at_itself_and_all_before(heads: int) -> None:
    # a loop over tokens and heads
    attention, x = layer(heads), tokens()
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in attention.project_in(x).chunk(3, dim=-1))
    rows = []
    for t in range(6):
        scores = torch.einsum("b h c, b s h c -> b h s", q[:, t], k[:, : t + 1]) * (8 / heads) ** -0.5
        rows.append(torch.einsum("b h s, b s h c -> b h c", scores.softmax(-1), v[:, : t + 1]).flatten(1))
    torch.testing.assert_close(attention(x), attention.project_out(torch.stack(rows, 1)))


def test_no_mask_is_the_mask_of_windows_without_padding() -> None:
    attention, x = layer(), tokens()
    assert torch.equal(attention(x), attention(x, attention_mask(torch.ones(2, 2, dtype=torch.bool))))


def test_no_token_sees_a_later_one() -> None:
    attention, x = layer(), tokens()
    later = x.clone()
    later[:, 4:] += 1
    assert torch.equal(attention(later)[:, :4], attention(x)[:, :4])
    assert bool((attention(later)[:, 4:] != attention(x)[:, 4:]).all())


def test_gradients_are_those_of_finite_differences() -> None:
    attention = layer()
    names, weights = zip(*attention.named_parameters(), strict=True)
    x = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *weights: Tensor) -> Any:
        return torch.func.functional_call(attention, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *weights))


def test_weights() -> None:
    assert sum(p.numel() for p in CausalAttention(64, 4, 0.0).parameters()) == 4 * 64 * 64 + 4 * 64
