"""Other people's code to measure and compare with, each found where its package is installed.

mamba-ssm needs Triton and a compiled CUDA kernel just to be imported. Its reference scan and its block are plain torch,
so stand-ins for the missing parts are put in place while it is imported, and taken away again. mambapy and transformers
import as they are; transformers must find neither the stand-ins nor a kernel, since it is its own loop that is wanted.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.models.d3rlpy_learner import load_d3rlpy

PACKAGES = ("mambapy", "transformers", "mamba-ssm", "d3rlpy")
"""Whose code is compared with, by the names that pip knows."""

Scan = Callable[..., Tensor]
"""Takes what `dmm.selective_scan` takes from `u` to `delta_softplus` and returns `y (b, l, e)`."""


@dataclass(frozen=True)
class Peer:
    """A selective scan of another package."""

    name: str
    package: str
    scan: Scan
    loops: bool = False  # over tokens in autograd: each step's gradient is as large as the whole sequence
    channels_first: bool = False  # its own order of axes is `(b, e, l)`


def versions() -> dict[str, str | None]:
    """The installed version of each package of `PACKAGES`, None for one that is not there."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find(load: Callable[[], Any]) -> tuple[Any, str]:
    """What `load` imports or makes, and an empty reason; or None, and why it cannot be had here."""
    try:
        return load(), ""
    except Exception as error:  # other people's code may fail in any way
        said = (str(error) or type(error).__name__).splitlines()[0]
        return None, f"does not work here ({said})"


def find_scans() -> tuple[list[Peer], dict[str, str]]:
    """The scans of the packages that are here, and the reasons why the others are left out."""
    found, missing, here = [], {}, versions()
    for peer, load in _SCANS:
        reason = "not installed" if here[peer.package] is None else find(load)[1]
        if reason:
            missing[peer.name] = reason
        else:
            found.append(peer)
    return found, missing


# mamba-ssm


@contextmanager
def _replaced_modules(replacements: Mapping[str, Any], prefix: str) -> Iterator[None]:
    """Modules of these names are replaced (None: cannot be imported) inside the block, all others whose names begin
    with `prefix` are imported afresh in it and forgotten behind it."""
    before = {name: module for name, module in sys.modules.items() if name in replacements or name.startswith(prefix)}
    for name in before:
        del sys.modules[name]
    sys.modules.update(replacements)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name in replacements or name.startswith(prefix)]:
            del sys.modules[name]
        sys.modules.update(before)


def _bare_package(name: str) -> ModuleType:
    """A package whose `__init__` is not run, since that of mamba-ssm imports every model."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"no package {name}")
    package = ModuleType(name)
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    return package


@functools.cache
def _mamba_simple() -> Any:
    """`mamba_ssm.modules.mamba_simple`, with the reference in the place of the CUDA kernel."""
    importlib.import_module("einops")  # before the stand-ins, since mamba-ssm imports it
    stand_ins = {
        "mamba_ssm": _bare_package("mamba_ssm"),
        "selective_scan_cuda": ModuleType("selective_scan_cuda"),
        "mamba_ssm.ops.triton.layer_norm": mock.MagicMock(),
        "mamba_ssm.ops.triton.selective_state_update": None,  # then the block's own torch lines take a step
        "causal_conv1d": None,  # then torch's Conv1d
    }
    with _replaced_modules(stand_ins, "mamba_ssm."):
        module: Any = importlib.import_module("mamba_ssm.modules.mamba_simple")
        reference = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    module.selective_scan_fn = reference
    module.selective_scan_ref = reference
    return module


def official_block(d: int, **sizes: int) -> nn.Module:
    """mamba-ssm's whole `Mamba` block, on its path without fused kernels."""
    block: nn.Module = _mamba_simple().Mamba(d, use_fast_path=False, **sizes)
    return block


def official_kernel_signature(*inputs: Any, **options: Any) -> Any:
    """mamba-ssm's `selective_scan_ref`, which takes what its CUDA kernel `selective_scan_fn` takes."""
    return _mamba_simple().selective_scan_ref(*inputs, **options)


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
    """`selective_scan_ref`, float32 only, with this package's order of axes: `y (b, l, e)`, last state."""
    inputs = _channels_first(u, delta, A, B, C, D, z)
    y, last = official_kernel_signature(*inputs, delta_bias, delta_softplus, return_last_state=True)
    return y.transpose(1, 2), last


def _channels_first(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None
) -> tuple[Tensor | None, ...]:
    return u.mT, delta.mT, A, B.mT, C.mT, D, None if z is None else z.mT


def _scan_of_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> Tensor:
    y: Tensor = official_kernel_signature(*_channels_first(u, delta, A, B, C, D, z), delta_bias, delta_softplus)
    return y.mT


def official_ssd(X: Tensor, A: Tensor, B: Tensor, C: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """mamba-ssm's `ssd_minimal_discrete`, Mamba-2's scan by matrix products: `X (b, l, h, p)`, `A (b, l, h)` and
    `B, C (b, l, h, n)`, all with the step size in them -> `y (b, l, h, p)`, last state `(b, h, p, n)`."""
    importlib.import_module("einops")
    stand_ins = {"mamba_ssm": _bare_package("mamba_ssm"), "mamba_ssm.ops.triton.ssd_combined": mock.MagicMock()}
    with _replaced_modules(stand_ins, "mamba_ssm."):
        scan = importlib.import_module("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    y, last = scan(X, A, B, C, block)
    return y, last


# transformers


@functools.cache
def _transformers_mamba(model: str = "mamba") -> Any:
    # its advice to install a kernel would come once for every run of the loop that is wanted here
    logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    with _replaced_modules({"mamba_ssm": None, "causal_conv1d": None, "kernels": None}, "mamba_ssm."):
        return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def transformers_mixer(d: int, state_size: int, expand: int, conv_width: int) -> nn.Module:
    """transformers' `MambaMixer`, on its path without kernels."""
    module = _transformers_mamba()
    config = module.MambaConfig(
        hidden_size=d, state_size=state_size, expand=expand, conv_kernel=conv_width, num_hidden_layers=1, vocab_size=2
    )
    mixer: nn.Module = module.MambaMixer(config, layer_idx=0)
    return mixer


def transformers_mixer_2(d: int, state_size: int, expand: int, head_size: int, conv_width: int) -> nn.Module:
    """transformers' `Mamba2Mixer` with one group, in evaluation mode, on its path without kernels."""
    module = _transformers_mamba("mamba2")
    config = module.Mamba2Config(
        hidden_size=d,
        state_size=state_size,
        expand=expand,
        head_dim=head_size,
        num_heads=expand * d // head_size,
        n_groups=1,
        conv_kernel=conv_width,
        chunk_size=4,
        layer_norm_epsilon=1e-5,
        num_hidden_layers=1,
        vocab_size=2,
    )
    mixer: nn.Module = module.Mamba2Mixer(config, layer_idx=0).eval()
    return mixer


def _scan_of_transformers(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> Tensor:
    scan = _transformers_mamba().mamba_selective_scan
    y: Tensor = scan(*_channels_first(u, delta, A, B, C, D, z), delta_bias, delta_softplus)
    return y.mT


def transformers_dt(state_size: int, action_size: int, width: int, layers: int, heads: int, max_timestep: int) -> Any:
    """transformers' `DecisionTransformerModel` with an MLP of four times the width, in evaluation mode.

    The position embedding that it inherits from GPT-2 is zero, as it is in Decision Transformer's own code.
    """
    module: Any = importlib.import_module("transformers.models.decision_transformer.modeling_decision_transformer")
    config = module.DecisionTransformerConfig(
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
    model = module.DecisionTransformerModel(config).eval()
    torch.nn.init.zeros_(model.encoder.wpe.weight)
    return model


# mambapy


@functools.cache
def _mambapy() -> Any:
    return importlib.import_module("mambapy.mamba")


def mambapy_block(d: int, state_size: int, expand: int, conv_width: int) -> nn.Module:
    """mambapy's `MambaBlock`, with its parallel scan."""
    sizes = {"d_model": d, "n_layers": 1, "d_state": state_size, "expand_factor": expand, "d_conv": conv_width}
    block: nn.Module = _mambapy().MambaBlock(_mambapy().MambaConfig(**sizes))
    return block


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """mambapy's parallel selective scan: `y (b, l, e)`."""
    y: Tensor = _mambapy().MambaBlock.selective_scan(None, u, delta, A, B, C, D)
    return y


def _scan_of_mambapy(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    **_: Any,
) -> Tensor:
    """With the lines that surround it in mambapy's block."""
    delta = delta if delta_bias is None else delta + delta_bias
    y = mambapy_scan(u, F.softplus(delta) if delta_softplus else delta, A, B, C, D)
    return y if z is None else y * F.silu(z)


# torch.compile


def plain_loop(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    *,
    delta_bias: Tensor,
    delta_softplus: bool = True,
    **_: Any,
) -> Tensor:
    """The recurrence as it is written down, one token after the other in plain torch, with every part of a block."""
    delta = F.softplus(delta + delta_bias) if delta_softplus else delta + delta_bias
    decay, drive = torch.exp(delta[..., None] * A), (delta * u)[..., None] * B[:, :, None]  # (b, l, e, n)
    h, outputs = torch.zeros_like(drive[:, 0]), []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + drive[:, t]  # (b, e, n)
        outputs.append((h * C[:, t, None]).sum(-1))
    return (torch.stack(outputs, dim=1) + D * u) * F.silu(z)


class Compiled(NamedTuple):
    """What `torch.compile` made of `plain_loop`."""

    scan: Scan | None
    reason: str  # why it is left out
    seconds: float  # that compiling took; fewer where torch's own cache holds parts of it


def compiled_loop(like: Mapping[str, Any], tolerance: float = 1e-4) -> Compiled:
    """`plain_loop` through `torch.compile` for tensors like these, with and without gradients.

    Compiled code is used only where its outputs and gradients on these very inputs equal the plain loop's, by
    `tolerance` of the largest entry: torch has compiled a Mamba to wrong gradients without a word.
    """
    begin = time.perf_counter()
    compiled = torch.compile(plain_loop, fullgraph=True, dynamic=False)
    try:
        found = outputs_and_gradients(compiled, like)
        with torch.no_grad():
            compiled(**like)
    except Exception as error:  # no compiler, no Python headers, an operation it does not know: all end here
        said = (str(error) or type(error).__name__).splitlines()[0]
        return Compiled(None, f"torch.compile failed ({said})", time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    worst = disagreement(found, outputs_and_gradients(plain_loop, like))
    if not worst <= tolerance:
        return Compiled(None, f"torch.compile is off by {worst:.1e} of the largest entry", seconds)
    return Compiled(compiled, "", seconds)


def outputs_and_gradients(scan: Scan, inputs: Mapping[str, Any]) -> list[Tensor]:
    """`y` and the gradient of each tensor among the inputs for a fixed weighting of `y`."""
    leaves = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad}
    y = scan(**inputs)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), weights)]


def disagreement(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, each in parts of the expected tensor's largest entry (if that
    is zero, as it is); not a number where one of the found is none."""
    parts = [float((a - b).abs().max()) / (float(b.abs().max()) or 1.0) for a, b in zip(found, expected, strict=True)]
    return max(parts) if all(part == part for part in parts) else float("nan")


# d3rlpy


def d3rlpy_dt(state_size: int, action_size: int, width: int, layers: int, context: int, device: str = "cpu") -> Any:
    """d3rlpy's `DecisionTransformer` of these sizes, with weights; its own defaults for all else."""
    module = load_d3rlpy("dt")
    encoder = module.models.VectorEncoderFactory([width], exclude_last_activation=True)
    config = module.algos.DecisionTransformerConfig(
        context_size=context, num_layers=layers, num_heads=1, encoder_factory=encoder
    )
    algorithm = config.create(device=device)
    algorithm.create_impl((state_size,), action_size)
    return algorithm


_SCANS: tuple[tuple[Peer, Callable[[], Any]], ...] = (
    (Peer("selective_scan_ref", "mamba-ssm", _scan_of_reference, loops=True, channels_first=True), _mamba_simple),
    (Peer("mambapy", "mambapy", _scan_of_mambapy), _mambapy),
    (
        Peer("transformers", "transformers", _scan_of_transformers, loops=True, channels_first=True),
        lambda: _transformers_mamba().mamba_selective_scan,
    ),
)
