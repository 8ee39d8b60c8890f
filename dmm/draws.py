"""Random numbers of an episode: by its own first observation and the time step, not in turn from one generator.

Whoever acts on many episodes at once draws for each what it would draw for it alone, whatever runs beside it and in
which place. Two episodes that begin with the same bits draw the same numbers.

Source: SplitMix64 (Steele, Lea and Flood 2014), whose outputs are a hash of a counter.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIDE = 0x9E3779B97F4A7C15 - 2**64
"""Between two counters, as a signed number: 2^64 over the golden ratio."""
FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
SHIFTS = (30, 27, 31)
BITS = 24
"""Of a uniform number: as many as float32 holds."""


def seed_of(generator: torch.Generator | None) -> int:
    """A number that follows from a generator's state and leaves it as it is; one drawn from torch's own for None."""
    source = None if generator is None else generator.clone_state()
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=source, device=device))


def streams(seeds: Tensor, observation: Tensor) -> Tensor:
    """The streams `(n,)` int64 of episodes with these seeds `(n,)` that begin with `observation (n, s)`."""
    bits = observation.double().contiguous().view(torch.int64)
    places = torch.arange(1, bits.shape[-1] + 1, device=bits.device) * STRIDE
    return _mixed(_mixed(bits + places).sum(dim=-1) + _mixed(seeds))


def uniform(stream: Tensor, step: Tensor, count: int) -> Tensor:
    """`count` numbers from [0, 1) for each episode's time step: streams and steps `(n,)` -> `(n, count)` float32."""
    numbers = torch.arange(1, count + 1, device=stream.device) * STRIDE
    mixed = _mixed(_mixed(stream + step * STRIDE)[:, None] + numbers)
    return _shifted(mixed, 64 - BITS).float() / 2**BITS


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's hash of int64 numbers, whose products wrap around."""
    first, second, third = SHIFTS
    x = (x ^ _shifted(x, first)) * FACTORS[0]
    x = (x ^ _shifted(x, second)) * FACTORS[1]
    return x ^ _shifted(x, third)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros coming in."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
