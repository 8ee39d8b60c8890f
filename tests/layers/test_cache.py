"""Layers that go on from keys and values do what they do over everything at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmm.layers.cache import KeyValueCache, bias_of, places_of
from dmm.layers.transformer import GPTLayer, seen_before

STEPS, TOKENS, LATE, D = 5, 3, 2, 8


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def stack(heads: int = 2) -> nn.ModuleList:
    layers = nn.ModuleList(GPTLayer(D, heads, dropout=0.1) for _ in range(3)).double().eval()
    for weight in layers.parameters():
        nn.init.normal_(weight, std=0.3)
    return layers


def tokens(rows: int = 2) -> Tensor:
    return torch.randn(rows, STEPS * TOKENS, D, dtype=torch.float64)


def all_at_once(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """From the first token that is one: those in the late places of the first step are none."""
    x = x[:, LATE:]
    for layer in layers:
        x = layer(x)
    return x


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_steps_are_the_forward_of_all(heads: int) -> None:
    layers, x = stack(heads), tokens()
    cache, out = KeyValueCache.empty(layers, 2, STEPS * TOKENS), []
    for step in x.split(TOKENS, dim=1):
        y, cache = cache.extend(layers, step, LATE)
        out.append(y)
    same(torch.cat(out, dim=1)[:, LATE:], all_at_once(layers, x))
    assert cache.steps.tolist() == [STEPS, STEPS]


@torch.no_grad()
def test_rows_may_be_at_different_steps() -> None:
    layers, x = stack(), tokens(3)
    cache, begins, out = KeyValueCache.empty(layers, 3, STEPS * TOKENS), torch.tensor([0, 2, 3]), []
    for now, step in enumerate(x.split(TOKENS, dim=1)):
        cache = cache._replace(steps=torch.where(begins == now, 0, cache.steps))
        y, cache = cache.extend(layers, step, LATE)
        out.append(y)
    found = torch.cat(out, dim=1)
    for row, first in enumerate((begins * TOKENS).tolist()):
        same(found[row : row + 1, first + LATE :], all_at_once(layers, x[row : row + 1, first:]))


@torch.no_grad()
def test_a_state_can_be_gone_on_from_twice() -> None:
    layers, x, other = stack(), tokens(), tokens()
    cache = KeyValueCache.empty(layers, 2, STEPS * TOKENS)
    _, early = cache.extend(layers, x[:, :TOKENS], LATE)
    _, late = early.extend(layers, x[:, TOKENS : 2 * TOKENS], LATE)
    early.extend(layers, other[:, :TOKENS], LATE)
    y, _ = late.extend(layers, x[:, 2 * TOKENS : 3 * TOKENS], LATE)
    same(y, all_at_once(layers, x[:, : 3 * TOKENS])[:, -TOKENS:])


def test_places_by_hand() -> None:
    places = places_of(torch.tensor([1, 0]), 3, 2, torch.zeros(1, dtype=torch.float64))
    assert places.where.tolist() == [[3, 4, 5], [0, 1, 2]]
    first, second = (places.bias[:, 0] == 0).long().tolist()
    assert first == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert second == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 4])
def test_all_tokens_and_the_newest_alone(heads: int) -> None:
    layer, x = stack(heads)[0], tokens()
    real = torch.ones(2, STEPS * TOKENS, dtype=torch.bool)
    real[1, :4] = False
    allowed = seen_before(real)
    cell, bias, expected = layer.make_cell(), bias_of(allowed, x), layer(x, allowed)  # type: ignore[operator]
    same(cell.newest(x, bias), expected[:, -1:])
    same(cell.whole(x, bias), expected)
