"""D4RL's normalised score: 0 is a random policy's return, 100 an expert's."""

from __future__ import annotations

import math
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


def reference_returns(env_id: str) -> tuple[float, float]:
    """The (random, expert) returns for a Gymnasium id such as `Hopper-v5` or `AntMaze_UMaze-v5`.

    Raises:
        InputError: no constants are known for that environment.
    """
    key = env_id.split("/")[-1].lower().replace("frankakitchen", "kitchen")
    for family, returns in REFERENCE_RETURNS.items():
        if key.startswith(family):
            return returns
    known = ", ".join(sorted(REFERENCE_RETURNS))
    raise InputError(f"env_id: no reference returns for {env_id!r}; known families: {known}")


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
