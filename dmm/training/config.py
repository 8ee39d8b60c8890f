"""How a policy is trained, as a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dmm.configs import check_positive, plain_fields
from dmm.errors import LARGEST_SEED, InputError, require_choice, whole_number

Decay = Literal["all", "matrices"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a policy is trained; the defaults are the paper's."""

    steps: int = 100_000  # updates
    seed: int = 0  # of the initial weights, the drawn windows and dropout
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup: float = 0.1  # part of the run over which the learning rate rises linearly to its value
    weight_decay: float = 1e-4  # on every weight, norms and biases included
    clip: float = 0.25  # largest norm of the gradient; 0 leaves gradients as they are
    beta2: float = 0.999  # of AdamW, for the squares; the other beta is 0.9
    epsilon: float = 1e-8  # of AdamW
    decay: Decay = "all"  # what weight decay falls on: all weights, or matrices only
    log_every: int = 100  # updates averaged in one row of the log
    checkpoint_every: int = 200  # updates between checkpoints, what a kill can cost; a multiple of log_every
    keep_every: int = 0  # updates between weights that are kept beside the last; 0 keeps the last alone

    def __post_init__(self) -> None:
        plain_fields(self)
        whole_number("seed", self.seed, 0, LARGEST_SEED)
        check_positive(self, "steps", "batch_size", "log_every", "checkpoint_every")
        require_choice("decay", self.decay, Decay)
        if not 0 <= self.clip < float("inf"):
            raise InputError(f"clip: got {self.clip:g}, allowed is a positive number, or 0 for none")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"beta2: got {self.beta2:g}, allowed is 0 <= beta2 < 1")
        for name in ("learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name}: got {getattr(self, name):g}, allowed is a positive number")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay: got {self.weight_decay:g}, allowed is 0 or more")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"warmup: got {self.warmup:g}, allowed is a part of the run, 0 to 1")
        if self.keep_every < 0:
            raise InputError(f"keep_every: got {self.keep_every}, allowed is 0 (keep none) or more")
        if self.checkpoint_every % self.log_every:
            raise InputError(
                f"checkpoint_every: got {self.checkpoint_every}, allowed are multiples of log_every ({self.log_every})"
            )
