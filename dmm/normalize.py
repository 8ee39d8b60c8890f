"""D4RL's normalised score: 0 is a random policy's return, 100 an expert's."""

from __future__ import annotations

from typing import Any

from dmm.errors import InputError

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


def normalize(returns: Any, reference: tuple[float, ...]) -> Any:
    """`100 (return - random) / (expert - random)` for given reference returns."""
    low, high = reference
    return 100.0 * (returns - low) / (high - low)
