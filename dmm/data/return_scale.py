"""What returns-to-go are divided by, so that a policy can tell the returns apart that it is asked for."""

from __future__ import annotations

import math

import numpy as np

from dmm.errors import InputError, warn

SPARSE, DENSE = 1.0, 1000.0
"""The scales of the released code, by domain: 1 for mazes and kitchen, 1000 for MuJoCo."""
FITTING = {SPARSE: (0.1, 20.0), DENSE: (100.0, 20_000.0)}
"""Largest returns-to-go for which each of them is taken."""
LARGEST = 1e18
"""Beyond it, the squares in the norms of a network are more than float32 holds."""
FINEST = 0.05
"""Part of the largest return-to-go by which returns have to differ for a policy to learn the difference."""


def scale_of(returns_to_go: np.ndarray) -> float:
    """The default scale for returns-to-go `(N,)`: by the largest of either sign.

    The released code's 1 and 1000 where they fit; elsewhere the power of ten that brings the largest to 0.1 to 1.
    """
    largest = float(np.abs(returns_to_go).max())
    for scale, (low, high) in FITTING.items():
        if low <= largest <= high:
            return scale
    return 10.0 ** math.ceil(math.log10(largest)) if 0 < largest < math.inf else SPARSE


def require_returns_in_range(returns_to_go: np.ndarray, scale: float, dataset_id: str) -> None:
    """Passes when a network can be given these returns-to-go `(N,)`, which it divides by `scale`.

    Raises:
        InputError: they, or what they become, are more than float32 and its squares hold.
    """
    largest = float(np.abs(returns_to_go).max())
    if not max(largest, largest / scale) <= LARGEST:
        reach = f"{largest:g}" if math.isfinite(largest) else "more than float32 holds"
        raise InputError(
            f"rewards: the returns-to-go of {dataset_id!r} reach {reach} (rtg_scale is {scale:g}), allowed is up to "
            f"{LARGEST:g}; a penalty for what is forbidden should compare with the other rewards"
        )


def warn_of_close_returns(returns: np.ndarray, largest: float, dataset_id: str) -> None:
    """Say so when episodes' returns `(E,)` mostly differ by little beside the `largest` return-to-go.

    Compared are episodes that lie half of all apart in the order of their returns; those that are equal do not count.
    """
    ordered, half = np.sort(returns), len(returns) // 2
    apart = ordered[half:] - ordered[: len(ordered) - half]
    apart = apart[apart > 1e-9 * largest]
    if len(apart) and float(np.median(apart)) < FINEST * largest:
        warn(
            f"rewards: most returns of {dataset_id!r} differ by about {np.median(apart):.2g}, while returns-to-go "
            f"reach {largest:.3g}; a policy can hardly tell them apart: take off a reward that all episodes "
            "share, or what sets a few apart from all others"
        )
