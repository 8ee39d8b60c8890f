"""Other people's code to compare with: what the benchmarks measure, and what tests alone need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmm.bench.peers import (
    mambapy_scan,
    official_block,
    official_kernel_signature,
    official_scan,
    official_ssd,
    transformers_dt,
    transformers_mixer,
    transformers_mixer_2,
)

__all__ = [
    "mambapy_scan",
    "official_block",
    "official_kernel_signature",
    "official_scan",
    "official_ssd",
    "official_step",
    "transformers_dt",
    "transformers_mixer",
    "transformers_mixer_2",
]


def official_step(block: Any, tokens: Tensor) -> Tensor:
    """mamba-ssm's block over `tokens (b, l, d)`, one token at a time through its own cache."""
    conv, ssm = block.allocate_inference_cache(len(tokens), tokens.shape[1])
    return torch.cat([block.step(token, conv, ssm)[0] for token in tokens.split(1, dim=1)], dim=1)
