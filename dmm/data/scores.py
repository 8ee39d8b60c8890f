"""D4RL's normalised score: 0 is a random policy's return, 100 an expert's."""

from __future__ import annotations

import math
import re
from typing import Any

from dmm.errors import InputError, finite_number

REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
}
"""(random, expert) return per environment family. Source: D4RL's `infos.py`."""


_IDS = {
    "hopper": r"Hopper-v[2-5]|hopper-[a-z-]+-v[0-2]",
    "halfcheetah": r"HalfCheetah-v[2-5]|halfcheetah-[a-z-]+-v[0-2]",
    "walker2d": r"Walker2d-v[2-5]|walker2d-[a-z-]+-v[0-2]",
    "antmaze": r"AntMaze_(UMaze|Open|Medium|Large)(_Diverse_GR?)?-v[3-5]|dmm/AntMaze-v\d+|antmaze-[a-z-]+-v[0-2]",
    "kitchen": r"FrankaKitchen-v1|dmm/Kitchen-v\d+|kitchen-(complete|partial|mixed)-v0",
}
"""The ids, whole, of the environments that the returns are for: those of Gymnasium, gymnasium-robotics, D4RL and this
package. Others whose names begin alike have other rewards."""


def family(env_id: str) -> str | None:
    """The key in `REFERENCE_RETURNS` of exactly those environments that D4RL has a scale for; None for all others."""
    return next((name for name, ids in _IDS.items() if re.fullmatch(ids, env_id)), None)


def reference_returns(env_id: str) -> tuple[float, float]:
    """The (random, expert) returns for a Gymnasium id such as `Hopper-v5` or `AntMaze_UMaze-v5`.

    Raises:
        InputError: no constants are known for exactly that environment.
    """
    name = family(env_id)
    if name is None:
        known = ", ".join(sorted(REFERENCE_RETURNS))
        raise InputError(f"env_id: no reference returns for {env_id!r}; known families: {known}")
    return REFERENCE_RETURNS[name]


def normalized_score(returns: Any, env_id: str) -> Any:
    """`100 (return - random) / (expert - random)` with D4RL's constants (paper appendix A, equation 4)."""
    return normalize(returns, reference_returns(env_id))


def usable_reference(low: Any, high: Any) -> tuple[float, float] | None:
    """(random, expert) returns that a score can be normalised by: two finite numbers, the second larger; else None."""
    try:
        random, expert = finite_number("random", low), finite_number("expert", high)
    except InputError:
        return None
    return (random, expert) if random < expert and math.isfinite(expert - random) else None


def no_scores(low: Any, high: Any) -> str:
    """Says that `usable_reference` gave nothing, and why."""
    return (
        f"no normalised score, since the reference returns are {low!r:.50} (random) and {high!r:.50} (expert); "
        "allowed are two finite numbers, the second larger"
    )


def normalize(returns: Any, reference: tuple[float, ...]) -> Any:
    """`100 (return - random) / (expert - random)` for given reference returns.

    Raises:
        InputError: reference returns that are not two finite numbers, the second larger.
    """
    usable = usable_reference(*reference) if len(reference) == 2 else None
    if usable is None:
        raise InputError(
            f"reference: got {reference}, allowed are two finite numbers (random, expert), the second larger"
        )
    low, high = usable
    return 100.0 * (returns - low) / (high - low)
