"""Runs the Triton kernels where there is no GPU: in Triton's interpreter, or through its compiler for an absent GPU.

Which of the two `triton.jit` makes is decided by `TRITON_INTERPRET` when Triton is imported. Other tests import it too,
so either happens in a process of its own, to which numpy arrays go and from which they come back.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]
TYPES = {torch.float32: "*fp32", torch.float64: "*fp64"}
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "bias")


@contextmanager
def triton_process(**environment: str) -> Iterator[ProcessPoolExecutor]:
    """One process that starts with these variables set; `submit` sends it functions of this module."""
    with mock.patch.dict(os.environ, environment):
        executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        executor.submit(torch.set_num_threads, 1).result()  # it starts now, under this environment
    with executor:
        yield executor


def outputs_and_gradients(case: Arrays, softplus: bool, device: str) -> Arrays:
    """`y` and `last` of the kernels, and the gradients of `sum(y dy) + sum(last dlast)` for what `case` holds."""
    from dmm.scan import triton_kernel

    tensors = {name: torch.from_numpy(array).to(device) for name, array in case.items()}
    inputs = [tensors.get(name) for name in INPUTS]
    y, last, starts = triton_kernel.forward(*inputs, softplus, tensors["start"])  # type: ignore[arg-type]
    gradients = triton_kernel.backward(*inputs, softplus, starts, tensors["dy"], tensors["dlast"])  # type: ignore[arg-type]
    named = {"y": y, "last": last} | {
        f"gradient of {name}": gradient for name, gradient in zip((*INPUTS, "start"), gradients, strict=True)
    }
    return {name: tensor.cpu().numpy() for name, tensor in named.items() if tensor is not None}


def with_many_states(case: Arrays, softplus: bool, device: str) -> Arrays:
    """`outputs_and_gradients` as if these states were as many as a GPU can follow at once."""
    from dmm.scan import triton_kernel, triton_segments

    with mock.patch.object(triton_kernel, "MANY_STATES", 0), mock.patch.object(triton_segments, "ENOUGH_STATES", 0):
        return outputs_and_gradients(case, softplus, device)


def selective_scan_gradients(case: Arrays, device: str) -> Arrays:
    """The same by way of `selective_scan` and autograd, from inputs that are not contiguous."""
    from dmm import selective_scan

    tensors = {name: torch.from_numpy(array).to(device) for name, array in case.items()}
    tensors = {name: (t.mT.contiguous().mT if t.ndim > 1 else t).requires_grad_() for name, t in tensors.items()}
    leaves = {name: tensor for name, tensor in tensors.items() if name not in ("dy", "dlast")}
    renamed = {{"bias": "delta_bias", "start": "initial_state"}.get(name, name): leaf for name, leaf in leaves.items()}
    y, last = selective_scan(**renamed, delta_softplus=True, return_last_state=True, backend="triton")
    loss = (y * tensors["dy"]).sum() + (last * tensors["dlast"]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {"y": y, "last": last} | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}


class _Recorder:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launches = kernel, []  # type: ignore[var-annotated]

    def __getitem__(self, grid: tuple[int, ...]) -> _Recorder:
        return self

    def __call__(self, *args: Any, **options: Any) -> None:
        self.launches.append((args, options))


def compiled(b: int, length: int, e: int, n: int, dtype: str) -> dict[str, dict[str, Any]]:
    """PTX, registers and stack bytes for compute capability 9.0 of every kernel that a scan of these sizes launches."""
    from dmm.scan import triton_kernel, triton_segments

    tokens, matrices = (torch.empty(b, length, size, dtype=getattr(torch, dtype), device="meta") for size in (e, n))
    A, row, state = tokens.new_empty(1, e, n), tokens.new_empty(1, e), tokens.new_empty(b, e, n)
    inputs = (tokens, tokens, A, matrices, matrices, row, tokens, row, True)
    forward, backward, ends = (
        _Recorder(getattr(module, name))
        for module, name in (
            (triton_kernel, "forward_kernel"),
            (triton_kernel, "backward_kernel"),
            (triton_segments, "segment_ends_kernel"),
        )
    )
    with (
        mock.patch.object(triton_kernel, "forward_kernel", forward),
        mock.patch.object(triton_kernel, "backward_kernel", backward),
        mock.patch.object(triton_segments, "segment_ends_kernel", ends),
    ):
        _, _, starts = triton_kernel.forward(*inputs, state)
        triton_kernel.backward(*inputs, starts, tokens, state)
    recorders = {"forward": forward, "backward": backward, "segment ends": ends}
    return {
        f"{name} {i}": _compile(recorder.kernel, *launch)
        for name, recorder in recorders.items()
        for i, launch in enumerate(recorder.launches)
    }


def _compile(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = dict(zip(kernel.arg_names, args, strict=False)) | options
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):  # as a launch does: what is None or 1 is compiled in
        value = values[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        else:
            signature[parameter.name] = TYPES[value.dtype] if isinstance(value, Tensor) else "i32"
            attributes |= {(i,): [["tt.divisibility", 16]]} if isinstance(value, Tensor) or value % 16 == 0 else {}
    source = ASTSource(kernel, signature, constants, attributes)
    chosen = {name: options[name] for name in ("num_warps", "enable_fp_fusion")}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=chosen)
    return {"ptx": made.asm["ptx"], "shared": made.metadata.shared} | _resources(made.asm["cubin"])


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack bytes of a thread, as told by the tool that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return {"registers": int(found[1]), "stack": int(found[2])}


def random_case(
    b: int = 2, length: int = 7, e: int = 3, n: int = 4, g: int = 1, dtype: Any = np.float64, seed: int = 0
) -> Arrays:
    """All inputs of the kernels, and the weights `dy`, `dlast` of what is differentiated."""
    rng = np.random.default_rng(seed)
    shapes = {name: (b, length, e) for name in ("u", "delta", "z", "dy")} | {name: (b, length, n) for name in "BC"}
    shapes |= {"D": (g, e), "bias": (g, e), "start": (b, e, n), "dlast": (b, e, n)}
    case = {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"A": -np.exp(rng.normal(size=(g, e, n)))}
    return {name: array.astype(dtype) for name, array in case.items()}
