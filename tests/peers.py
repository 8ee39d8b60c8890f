"""Other people's code to compare with, importable on a machine without a GPU.

mamba-ssm needs Triton and a compiled CUDA kernel just to be imported. Its reference scan and its block are plain torch,
so stand-ins for the missing parts are put in place while it is imported, and taken away again. mambapy and transformers
import as they are; transformers must not find the stand-ins.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

import einops  # noqa: F401 (before the stand-ins, since mamba-ssm imports it)
import torch
from mambapy.mamba import MambaBlock as MambapyBlock
from torch import Tensor, nn


@contextmanager
def _replaced_modules(replacements: dict[str, Any]) -> Iterator[None]:
    """Modules of these names are replaced (None: cannot be imported) inside the block."""
    before = {name: sys.modules.get(name) for name in replacements}
    sys.modules.update(replacements)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def _bare_package(name: str) -> ModuleType:
    """A package whose `__init__` is not run, since that of mamba-ssm imports every model."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    return package


def _import_mamba_simple() -> Any:
    stand_ins = {
        "mamba_ssm": _bare_package("mamba_ssm"),
        "selective_scan_cuda": ModuleType("selective_scan_cuda"),
        "mamba_ssm.ops.triton.layer_norm": mock.MagicMock(),
        "mamba_ssm.ops.triton.selective_state_update": None,  # then the block's own torch lines take a step
        "causal_conv1d": None,  # then torch's Conv1d
    }
    with _replaced_modules(stand_ins):
        module = importlib.import_module("mamba_ssm.modules.mamba_simple")
        reference = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    for name in [name for name in sys.modules if name.startswith("mamba_ssm.")]:
        del sys.modules[name]
    module.selective_scan_fn = reference  # type: ignore[attr-defined]
    module.selective_scan_ref = reference  # type: ignore[attr-defined]
    return module


def _import_transformers_mamba() -> Any:
    with _replaced_modules({"mamba_ssm": None, "causal_conv1d": None, "kernels": None}):
        return importlib.import_module("transformers.models.mamba.modeling_mamba")


def _import_transformers_dt() -> Any:
    return importlib.import_module("transformers.models.decision_transformer.modeling_decision_transformer")


_mamba_simple = _import_mamba_simple()
_transformers_mamba = _import_transformers_mamba()
_transformers_dt = _import_transformers_dt()


def official_block(d: int, **sizes: int) -> nn.Module:
    """mamba-ssm's whole `Mamba` block, on its path without fused kernels."""
    block: nn.Module = _mamba_simple.Mamba(d, use_fast_path=False, **sizes)
    return block


def transformers_mixer(d: int, state_size: int, expand: int, conv_width: int) -> nn.Module:
    """transformers' `MambaMixer`, on its path without kernels."""
    config = _transformers_mamba.MambaConfig(
        hidden_size=d, state_size=state_size, expand=expand, conv_kernel=conv_width, num_hidden_layers=1, vocab_size=2
    )
    mixer: nn.Module = _transformers_mamba.MambaMixer(config, layer_idx=0)
    return mixer


def official_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's `selective_scan_ref`, float32 only, with this package's order of axes: `y (b, l, e)`, last state."""
    u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2)
    y, last = official_kernel_signature(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
    return y.transpose(1, 2), last


official_kernel_signature = _mamba_simple.selective_scan_ref
"""mamba-ssm's `selective_scan_ref`, which takes what its CUDA kernel `selective_scan_fn` takes."""


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mambapy's parallel selective scan: `y (b, l, e)`."""
    y: Tensor = MambapyBlock.selective_scan(None, u, delta, A, B, C, D)
    return y


def official_step(block: nn.Module, tokens: Tensor) -> Tensor:
    """mamba-ssm's block over `tokens (b, l, d)`, one token at a time through its own cache."""
    conv, ssm = block.allocate_inference_cache(len(tokens), tokens.shape[1])
    return torch.cat([block.step(token, conv, ssm)[0] for token in tokens.split(1, dim=1)], dim=1)


def transformers_dt(state_size: int, action_size: int, width: int, layers: int, heads: int, max_timestep: int) -> Any:
    """transformers' `DecisionTransformerModel` with an MLP of four times the width, in evaluation mode.

    The position embedding that it inherits from GPT-2 is zero, as it is in Decision Transformer's own code.
    """
    config = _transformers_dt.DecisionTransformerConfig(
        state_dim=state_size,
        act_dim=action_size,
        hidden_size=width,
        n_layer=layers,
        n_head=heads,
        n_inner=4 * width,
        max_ep_len=max_timestep,
        activation_function="relu",
        vocab_size=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = _transformers_dt.DecisionTransformerModel(config).eval()
    torch.nn.init.zeros_(model.encoder.wpe.weight)
    return model
