"""What the checks make their cases of: seeded tensors in torch's default precision, and back to arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors of these shapes from the standard normal distribution, one after the other from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def tensor(values: Any) -> Tensor:
    """Numbers, also whole ones, as a tensor in the default precision."""
    return torch.as_tensor(np.asarray(values), dtype=torch.get_default_dtype())


def plain(x: Tensor) -> NDArray[np.float64]:
    """A tensor as a float64 array."""
    return np.asarray(x.double().numpy())
