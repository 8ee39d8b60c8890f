"""Decision MetaMamba: selective state spaces and dense sequence mixing for offline reinforcement learning.

From the ground up: `dmm.ssm` and `dmm.scan` (state space models), `dmm.mamba` and `dmm.mixers` (blocks), `dmm.model`
(the policy), `dmm.data` (trajectories, windows, data sets made on this machine), `dmm.training` and `dmm.evaluation`.
"""

from dmm.data.collect import collect
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError, RunError
from dmm.evaluation import evaluate
from dmm.mamba import MambaBlock
from dmm.mixers import DenseSequenceMixer, DepthwiseConv
from dmm.model import DecisionMetaMamba, DMMConfig
from dmm.policy import Policy
from dmm.scan import scan_backends, selective_scan, selective_step
from dmm.training import TrainConfig, load_run, train

__version__ = "0.1.0"

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
    "load_run",
    "load_trajectories",
    "scan_backends",
    "selective_scan",
    "selective_step",
    "train",
]
