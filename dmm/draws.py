"""Random numbers of an episode: by its own first observation and the time step, not in turn from one generator.

Whoever acts on many episodes at once draws for each what it would draw for it alone, whatever runs beside it and in
which place. Two episodes that begin with the same bits draw the same numbers.

Source: SplitMix64 (Steele, Lea and Flood 2014), whose outputs are a hash of a counter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

STRIDE = np.uint64(0x9E3779B97F4A7C15)
"""Between two counters: 2^64 over the golden ratio."""
FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
BITS = 24
"""Of a uniform number: as many as float32 holds."""


def seed_of(generator: torch.Generator | None) -> int:
    """A number that follows from a generator's state and leaves it as it is; one drawn from torch's own for None."""
    source = None if generator is None else generator.clone_state()
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=source, device=device))


def streams(seeds: Tensor, observation: Tensor) -> Tensor:
    """Of episodes with these seeds `(n,)` that begin with `observation (n, s)`: `(n,)` int64, on the CPU."""
    bits = observation.cpu().double().contiguous().numpy().view(np.uint64)
    each = _mixed(bits + STRIDE * np.arange(1, bits.shape[1] + 1, dtype=np.uint64))
    mixed = _mixed(each.sum(axis=1) + _mixed(_bits(seeds)))
    return torch.from_numpy(mixed.view(np.int64))


def uniform(stream: Tensor, step: Tensor, count: int) -> Tensor:
    """`count` numbers from [0, 1) for each episode's time step: streams and steps `(n,)` -> `(n, count)` float32."""
    episode = _mixed(_bits(stream) + STRIDE * _bits(step))
    mixed = _mixed(episode[:, None] + STRIDE * np.arange(1, count + 1, dtype=np.uint64))
    return torch.from_numpy((mixed >> np.uint64(64 - BITS)).astype(np.float32) / np.float32(2**BITS))


def normal(stream: Tensor, step: Tensor, count: int) -> Tensor:
    """`count` numbers from N(0, 1), as `uniform`."""
    middle = uniform(stream, step, count).double() + 2.0 ** -(BITS + 1)  # neither 0 nor 1
    drawn: Tensor = torch.special.ndtri(middle)
    return drawn.float()


def category(logits: Tensor, stream: Tensor, step: Tensor) -> Tensor:
    """One of `m` for each episode's time step, by softmax: logits `(n, m)`, streams and steps `(n,)` -> one-hot."""
    below = logits.softmax(dim=-1).cumsum(dim=-1)
    drawn = (below <= uniform(stream, step, 1).to(below) * below[:, -1:]).sum(dim=-1)
    return one_hot(drawn.clamp(max=logits.shape[-1] - 1), logits.shape[-1]).to(logits)


def _bits(numbers: Tensor) -> np.ndarray:
    return numbers.cpu().contiguous().numpy().view(np.uint64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's hash of 64-bit numbers, whose products wrap around."""
    first, second, third = SHIFTS
    x = (x ^ (x >> first)) * FACTORS[0]
    x = (x ^ (x >> second)) * FACTORS[1]
    return x ^ (x >> third)  # type: ignore[no-any-return]
