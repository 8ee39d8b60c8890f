"""Decision MetaMamba: selective state spaces and dense sequence mixing for offline reinforcement learning.

From the ground up: `dmm.ssm` and `dmm.scan` (state space models), `dmm.layers` (mixers and blocks), `dmm.data`
(trajectories, windows, data sets made on this machine), `dmm.policy` (the interface), `dmm.models` (a file for each),
`dmm.training`, `dmm.acting` and `dmm.evaluation`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmm.data.collect import collect
    from dmm.data.trajectories import Trajectories, load_trajectories
    from dmm.data.windows import Windows, WindowSampler
    from dmm.errors import InputError, RunError
    from dmm.evaluation import evaluate
    from dmm.layers.local import DenseSequenceMixer, DepthwiseConv
    from dmm.layers.mamba import MambaBlock
    from dmm.models.dmm import DecisionMetaMamba, DMMConfig
    from dmm.models.official import from_official
    from dmm.policy import Policy
    from dmm.scan import scan_backends, selective_scan, selective_step
    from dmm.training import TrainConfig, load_run, train, train_seeds

__version__ = "0.1.0"

_HOMES = {
    "dmm.data.collect": ("collect",),
    "dmm.data.trajectories": ("Trajectories", "load_trajectories"),
    "dmm.data.windows": ("WindowSampler", "Windows"),
    "dmm.errors": ("InputError", "RunError"),
    "dmm.evaluation": ("evaluate",),
    "dmm.layers.mamba": ("MambaBlock",),
    "dmm.layers.local": ("DenseSequenceMixer", "DepthwiseConv"),
    "dmm.models.dmm": ("DMMConfig", "DecisionMetaMamba"),
    "dmm.models.official": ("from_official",),
    "dmm.policy": ("Policy",),
    "dmm.scan": ("scan_backends", "selective_scan", "selective_step"),
    "dmm.training": ("TrainConfig", "load_run", "train", "train_seeds"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DMMConfig",
    "DecisionMetaMamba",
    "DenseSequenceMixer",
    "DepthwiseConv",
    "InputError",
    "MambaBlock",
    "Policy",
    "RunError",
    "TrainConfig",
    "Trajectories",
    "WindowSampler",
    "Windows",
    "collect",
    "evaluate",
    "from_official",
    "load_run",
    "load_trajectories",
    "scan_backends",
    "selective_scan",
    "selective_step",
    "train",
    "train_seeds",
]


def __getattr__(name: str) -> Any:
    """Import a public name or a module when it is first used: `dmm --help` and a simulator's worker need no torch."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"dmm.{name}"):
        value = importlib.import_module(f"dmm.{name}")
    else:
        raise AttributeError(f"module 'dmm' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
