"""A key-value cache: what the layers of a transformer remember of tokens that come a step at a time.

A step's tokens begin with `late` ones, which belong to the step before and are known only now. All rows' tokens lie one
behind the other from place 0 on; what stands in a first step's late places is nobody's token, and no other looks at it.

In exact arithmetic the outputs are those of the layers' `forward` over everything so far. That needs tokens which do
not change once they are there: where a window slides, the remembered keys of deeper layers have seen what the window no
longer holds, and positions counted from its beginning would be others.

Axes: `n` rows, `t` tokens of a step, `p` places, `d` channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from dmm.layers.transformer import GPTLayer, Places


def empty_cache(layers: Sequence[GPTLayer] | nn.ModuleList, n: int, places: int) -> Tensor:
    """Room for the keys and values of so many tokens in each layer: `(n, layers, 2, heads, p, d / heads)`, zero."""
    attention = cast(GPTLayer, layers[0]).attention
    d = attention.project_out.in_features
    return attention.project_out.weight.new_zeros(n, len(layers), 2, attention.heads, places, d // attention.heads)


def places_of(step: Tensor, tokens: int, late: int, like: Tensor) -> Places:
    """Of the tokens of each row's step, numbered from 0 on, `step (n,)`; for tokens of the type of `like`."""
    offset = torch.arange(tokens * (1 + max(step.tolist(), default=0)), device=step.device)
    where = step[:, None] * tokens + offset[:tokens]  # (n, t)
    row, column = where[:, :, None], offset
    allowed = (column <= row) & ((column < late) == (row < late))
    return Places(where, bias_of(allowed[:, None], like))


def bias_of(allowed: Tensor, like: Tensor) -> Tensor:
    """What is added to scores: 0 where a token may look, else -inf."""
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill_(~allowed, float("-inf"))


@torch.no_grad()
def through(layers: Iterable[nn.Module], x: Tensor, remembered: Tensor, places: Places) -> Tensor:
    """The next tokens `(n, t, d)` behind all layers; their keys and values are written into `remembered`."""
    for layer, own in zip(layers, remembered.unbind(1), strict=True):
        x = cast(GPTLayer, layer).cell_of_now().cached(x, own, places)
    return x


class KeyValueCache(NamedTuple):
    """A cache that only grows, until its places are full; it is written in place.

    Whoever goes on from the state before again gets a copy, so that no state changes.
    """

    remembered: Tensor
    """`(n, layers, 2, heads, p, d / heads)`."""
    written: Tensor
    """`(n,)` int64, steps in it; of whoever wrote last."""
    steps: Tensor
    """`(n,)` int64, steps of this state."""

    @classmethod
    def empty(cls, layers: Sequence[GPTLayer] | nn.ModuleList, n: int, places: int) -> KeyValueCache:
        """With room for so many tokens, none of them there yet."""
        remembered = empty_cache(layers, n, places)
        none = torch.zeros(n, dtype=torch.int64, device=remembered.device)
        return cls(remembered, none, none.clone())

    def extend(self, layers: Iterable[nn.Module], x: Tensor, late: int) -> tuple[Tensor, KeyValueCache]:
        """A step's tokens through the layers: `(n, t, d) -> (n, t, d)`, and the cache with them."""
        remembered, written = self.remembered, self.written
        if not torch.equal(written, self.steps):
            remembered, written = remembered.clone(), self.steps.clone()
        x = through(layers, x, remembered, places_of(self.steps, x.shape[1], late, x))
        written += 1
        return x, KeyValueCache(remembered, written, self.steps + 1)
