"""Policies whose behaviour the recipes record: small networks run in plain numpy."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from dmm.errors import InputError

POLICY_FOLDER = Path(__file__).parent / "weights"
"""Where the package keeps its weights."""

Arrays = dict[str, np.ndarray]


class StochasticPolicy(Protocol):
    """A policy that draws an action for an observation."""

    def mean(self, observation: np.ndarray) -> np.ndarray:
        """The action without noise: `(..., s) -> (..., a)`."""

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An action in [-1, 1] drawn with `rng`: `(..., s) -> (..., a)` float32."""


class GaussianPolicy:
    """A Gaussian policy with two hidden tanh layers: `action ~ N(mean(observation), exp(log_std))`, clipped to [-1, 1].

    Equals the `MlpPolicy` of Stable-Baselines3's PPO with `VecNormalize` observations, and runs several times faster
    for one observation at a time because nothing but numpy is involved.

    Args:
        arrays: `mean`, `scale` `(s,)`, `clip` `()`, `w0 (h, s)`, `b0 (h,)`, `w1 (h, h)`, `b1`, `w2 (a, h)`, `b2 (a,)`,
            `log_std (a,)`.
    """

    ARRAYS = frozenset(("mean", "scale", "clip", "w0", "b0", "w1", "b1", "w2", "b2", "log_std"))

    def __init__(self, arrays: Arrays):
        self.arrays = {name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()}
        self.std = np.exp(self.arrays["log_std"])

    @classmethod
    def load(cls, path: str | Path) -> GaussianPolicy:
        """Read a `.npz` of plain arrays; pickled objects are refused."""
        return cls(_read(path))

    def mean(self, observation: np.ndarray) -> np.ndarray:
        """The unclipped mean action: `(..., s) -> (..., a)`."""
        p = self.arrays
        x = _clip((observation.astype(np.float32) - p["mean"]) / p["scale"], p["clip"])
        x = np.tanh(x @ p["w0"].T + p["b0"])
        x = np.tanh(x @ p["w1"].T + p["b1"])
        result: np.ndarray = x @ p["w2"].T + p["b2"]
        return result

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A clipped action drawn with `rng`: `(..., s) -> (..., a)` float32."""
        mean = self.mean(observation)
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        return _clip(mean + self.std * noise, np.float32(1.0))


class SquashedGaussianPolicy:
    """A Gaussian policy squashed by tanh, with two hidden ReLU layers: `action = tanh(mu + sigma noise)`.

    Both `mu` and `log sigma`, the latter kept in [-20, 2], are linear in the last hidden layer. Equals the actor
    of SAC in Stable-Baselines3, and of CrossQ in sbx without batch normalisation.

    Args:
        arrays: `w0 (h, s)`, `b0 (h,)`, `w1 (h, h)`, `b1`, `w2 (a, h)`, `b2 (a,)` for `mu`, `w3`, `b3` for `log sigma`.
    """

    ARRAYS = frozenset(f"{letter}{i}" for letter in "wb" for i in range(4))

    def __init__(self, arrays: Arrays):
        self.arrays = {name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()}
        p = self.arrays
        # one product for both heads
        self.w_heads, self.b_heads = np.concatenate([p["w2"], p["w3"]]).T, np.concatenate([p["b2"], p["b3"]])

    @classmethod
    def load(cls, path: str | Path) -> SquashedGaussianPolicy:
        """Read a `.npz` of plain arrays; pickled objects are refused."""
        return cls(_read(path))

    def heads(self, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`mu` and `sigma`, before squashing: `(..., s) -> (..., a), (..., a)`."""
        p = self.arrays
        x = np.maximum(observation.astype(np.float32) @ p["w0"].T + p["b0"], 0.0)
        x = np.maximum(x @ p["w1"].T + p["b1"], 0.0)
        both = x @ self.w_heads + self.b_heads
        half = both.shape[-1] // 2
        return both[..., :half], np.exp(np.minimum(np.maximum(both[..., half:], -20.0), 2.0))

    def mean(self, observation: np.ndarray) -> np.ndarray:
        """`tanh(mu)`, the action without noise: `(..., s) -> (..., a)`."""
        action: np.ndarray = np.tanh(self.heads(observation)[0])
        return action

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An action drawn with `rng`: `(..., s) -> (..., a)` float32."""
        mu, sigma = self.heads(observation)
        action: np.ndarray = np.tanh(mu + sigma * rng.standard_normal(mu.shape, dtype=np.float32))
        return action


def load_policy(path: str | Path) -> StochasticPolicy:
    """The policy in a `.npz` of plain arrays, of whichever of the two kinds it is.

    Raises:
        InputError: no such file, a pickled object, or other arrays than a policy has.
    """
    arrays = _read(path)
    for kind in (GaussianPolicy, SquashedGaussianPolicy):
        if arrays.keys() == kind.ARRAYS:
            return kind(arrays)
    raise InputError(
        f"path: {path} holds no policy; it has {sorted(arrays)}, allowed are {sorted(GaussianPolicy.ARRAYS)} "
        f"or {sorted(SquashedGaussianPolicy.ARRAYS)}"
    )


def _read(path: str | Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"path: {path} is not a .npz of plain arrays ({error})") from error


def _clip(values: np.ndarray, bound: np.ndarray | np.float32) -> np.ndarray:
    """`np.clip(values, -bound, bound)`, which spends most of its time on its arguments when arrays are this small."""
    clipped: np.ndarray = np.minimum(np.maximum(values, -bound), bound)
    return clipped
