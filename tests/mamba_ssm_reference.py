"""Remakes the file against which chapter 4 compares `dmm.MambaBlock`: `python -m tests.mamba_ssm_reference`.

It holds the weights of mamba-ssm's own block, an input, and that block's output, so that the comparison needs no
mamba-ssm where it is made.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmm.checks.chapter_04 import REFERENCE
from tests.peers import official_block

SIZES = {"d": 20, "state_size": 4, "expand": 2, "conv_width": 4}


def arrays() -> dict[str, NDArray[Any]]:
    """Everything the file holds: sizes and version, the tokens and the output, the weights as `weights.<name>`."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        block = official_block(
            SIZES["d"], d_state=SIZES["state_size"], expand=SIZES["expand"], d_conv=SIZES["conv_width"]
        )
        block.D.copy_(torch.randn_like(block.D))  # it starts at ones, behind which a mistake could hide
        tokens = torch.randn(2, 9, SIZES["d"])
        output = block(tokens)
    made = {"tokens": tokens.numpy(), "output": output.numpy(), "version": np.array(version("mamba-ssm"))}
    made |= {name: np.array(size) for name, size in SIZES.items()}
    return made | {f"weights.{name}": weight.numpy() for name, weight in block.state_dict().items()}


if __name__ == "__main__":
    np.savez_compressed(REFERENCE, **arrays())
    print(f"{REFERENCE}: {REFERENCE.stat().st_size:,} bytes")
