"""The selective scan alone, forward and backward, beside other packages' scans: `dmm bench scan`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dmm.bench import (
    check_at_least_one,
    device_name,
    finisher,
    forget_peak,
    in_fresh_process,
    interleaved,
    machine,
    peak_megabytes,
    threads_set,
)
from dmm.bench.peers import (
    Peer,
    compiled_loop,
    find_scans,
    mambapy_block,
    official_block,
    transformers_mixer,
    versions,
)
from dmm.layers.mamba import MambaBlock
from dmm.progress import progress_bar
from dmm.scan import preferred_backends, scan_backends, selective_scan
from dmm.scan.fused import missing_triton

LENGTHS = (24, 256, 2_048, 16_384)
CUDA_LENGTHS = (24, 256, 1_024, 2_048, 4_096, 16_384, 65_536)
MEMORY_LENGTH = 2_048
LOOP_ELEMENTS = 2**32
"""Bound on `l**2 * b * e * n` for loops over tokens in autograd. Each step's gradient is as large as the sequence's, so
that at 16,384 tokens and 64 channels one backward pass takes many minutes: above the bound a loop gets fewer channels,
and its time is one that the full size takes at least."""
GPU_ELEMENTS = 2**28
"""Bound on `b * l * e * n` on a GPU for scans that hold many arrays of that size."""
GPU_LOOP_LENGTH = 4_096
"""The longest sequence on a GPU for loops in Python, whose time there is that of launching kernels."""
COMPILED_LENGTH = 32
"""The longest sequence for which a compiled loop is tried: it is unrolled, so compiling takes ever longer."""
PATIENCE = {"cpu": 2.0, "cuda": 0.1}
"""Seconds, by the kind of device: what takes longer is measured once."""
KINDS = ("forward", "both")
"""Forward without gradients; forward and backward."""
BLOCK = {"d": 64, "state_size": 16, "expand": 2, "conv_width": 4}

Passes = tuple[Callable[[], object], Callable[[], object]]
"""Calls that scan without gradients, and that scan and go back."""


def bench_scan(
    lengths: Sequence[int] | None = None,
    *,
    channels: int = 64,
    states: int = 16,
    repeats: int = 7,
    threads: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Time and memory of every selective scan that is installed, in float32, as plain values and ratios.

    Args:
        lengths: tokens; 24 to 16,384 on a CPU and to 65,536 on a GPU if not given.
        channels: `e`.
        states: `n`.
        repeats: rounds; medians over them are reported.
        threads: CPU threads of torch and of the kernel.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on stderr.

    Raises:
        InputError: a number below 1, or a device that is not there.
    """
    from dmm.training import choose_device

    place = choose_device(device)
    lengths = lengths or (CUDA_LENGTHS if place.type == "cuda" else LENGTHS)
    check_at_least_one(channels=channels, states=states, repeats=repeats, length=min(lengths))
    with threads_set(threads), progress_bar(total=len(lengths) + 2, desc="bench scan", disable=not progress) as bar:
        rows = []
        for length in lengths:
            bar.set_postfix_str(f"l = {length}")
            rows.append(at_length(length, channels, states, repeats, place))
            bar.update()
        bar.set_postfix_str("memory")
        memory = peak_memory(min(MEMORY_LENGTH, max(lengths)), channels, states, place)
        bar.update()
        bar.set_postfix_str("blocks")
        blocks = whole_blocks(repeats, place)
        bar.update()
    return {
        **heading(place, threads),
        "sizes": {"channels": channels, "states": states},
        "lengths": rows,
        "exponents": exponents(rows),
        "memory": memory,
        "blocks": blocks,
        "copy_gb_per_s": copy_bandwidth(place, repeats),
    }


def heading(device: torch.device, threads: int) -> dict[str, Any]:
    """What every report begins with: where it was measured, which scan runs there, whom it is compared with."""
    return {
        "device": device_name(device),
        "threads": threads,
        "machine": machine(),
        "torch": torch.__version__,
        "backend": automatic(device),
        "backends": backends_on(device),
        "why": why(device),
        "peers": versions(),
    }


def backends_on(device: torch.device) -> list[str]:
    """This package's ways to scan on a device; Triton's interpreter, which is for tests, is none of them."""
    elsewhere = ("triton", "mamba-ssm") if device.type == "cpu" else ("cpp",)
    return [name for name in scan_backends() if name not in elsewhere]


def automatic(device: torch.device) -> str:
    """What `backend="auto"` takes on a device for a scan of training."""
    return next(name for name in preferred_backends(device.type) if name in backends_on(device))


def why(device: torch.device) -> str:
    """Which scan runs on a device, and the reason."""
    name = automatic(device)
    if device.type == "cpu":
        from dmm.scan.cpp_kernel import status

        library, reason = status()
        how = reason.partition(", ")[0]  # found, or built with which compiler; where it lies is nobody's business
        return f"{name}: C++ kernel {how}" if library else f"{name}: no C++ kernel, {reason}"
    missing = f"no Triton kernel ({missing_triton()})"
    reasons = {"triton": "the Triton kernel", "mamba-ssm": f"mamba-ssm's kernel, {missing}"}
    return f"{name}: {reasons.get(name, f'no kernel of mamba-ssm and {missing}')}"


# One length


def at_length(length: int, channels: int, states: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Times of all scans at one length: forward without gradients, forward and backward, and their ratios."""
    batch = batch_at(length, device)
    sizes = (batch, length, channels, states)
    calls, left_out, notes = candidates(*sizes, device)
    compiling = compiled_row(calls, left_out, make_inputs(*sizes, device))
    times = {
        kind: interleaved(
            dict(zip(calls, column, strict=True)),
            repeats=repeats,
            calls=max(1, 4_096 // (batch * length)) if device.type == "cpu" else 5,
            warm=1,
            patience=PATIENCE[device.type],
            finish=finisher(device),
        )
        for kind, column in zip(KINDS, zip(*calls.values(), strict=True), strict=True)
    }
    rows = [_row(name, times, automatic(device), bytes_moved(*sizes), notes.get(name)) for name in calls]
    found = {"length": length, "batch": batch, "rows": rows, "left_out": left_out, "compile_seconds": compiling}
    if device.type == "cuda":
        found["device_only"] = device_times(*sizes, repeats, device)
    return found


def _row(
    name: str, times: dict[str, dict[str, dict[str, float]]], fused: str, bytes_: dict[str, int], note: str | None
) -> dict[str, Any]:
    seconds = {kind: times[kind][name] for kind in times}
    ratios = {  # unknown where what `auto` takes would not fit
        f"{kind}_ratio": seconds[kind]["median"] / times[kind][fused]["median"] if fused in times[kind] else None
        for kind in times
    }
    return {"scan": name, **seconds, **ratios, "gb_per_s": None if note else rates(seconds, bytes_), "note": note}


def batch_at(length: int, device: torch.device) -> int:
    """Sequences side by side: on a CPU as many as make about 2,048 tokens, at most training's 64; on a GPU enough to
    fill it."""
    return max(1, min(64, (2_048 if device.type == "cpu" else 2**20) // length))


def candidates(
    batch: int, length: int, channels: int, states: int, device: torch.device
) -> tuple[dict[str, Passes], dict[str, str], dict[str, str]]:
    """Calls `(forward, forward and backward)` by name; why others are left out; remarks on those that are not."""
    sizes, calls, notes = (batch, length, channels, states), {}, {}
    peers, left_out = find_scans()
    for peer in [*own_scans(device), *peers]:
        width = peer_channels(peer, *sizes)
        reason = beyond_bounds(peer, width, *sizes, device)
        if reason:
            left_out[peer.name] = reason
            continue
        inputs = make_inputs(batch, length, width, states, device, channels_first=peer.channels_first)
        calls[peer.name] = passes(peer.scan, inputs)
        if width < channels:
            notes[peer.name] = f"at least: measured with {width} of the {channels} channels"
    if length > COMPILED_LENGTH:
        left_out["torch.compile"] = f"the loop is unrolled: tried to {COMPILED_LENGTH} tokens"
    return calls, left_out, notes


def own_scans(device: torch.device) -> list[Peer]:
    """This package's backends in the form of the others."""
    return [
        Peer(name, "dmm", functools.partial(selective_scan, backend=name), channels_first=name == "mamba-ssm")  # type: ignore[arg-type]
        for name in backends_on(device)
    ]


def peer_channels(peer: Peer, batch: int, length: int, channels: int, states: int) -> int:
    """How many channels a scan is measured with, see `LOOP_ELEMENTS`."""
    return min(channels, LOOP_ELEMENTS // (length**2 * batch * states)) if peer.loops else channels


def beyond_bounds(
    peer: Peer, width: int, batch: int, length: int, channels: int, states: int, device: torch.device
) -> str:
    """Why a scan is not measured at this size; empty if it is."""
    if peer.name in ("cpp", "triton", "mamba-ssm"):  # fused: no array of b * l * e * n
        return ""
    if width == 0:
        return f"a loop, and l**2 * b * n is beyond {LOOP_ELEMENTS:.1e}"
    if device.type == "cuda" and batch * length * channels * states > GPU_ELEMENTS:
        return f"b * l * e * n is beyond {GPU_ELEMENTS:.1e}"
    if device.type == "cuda" and peer.name == "sequential" and length > GPU_LOOP_LENGTH:
        return f"a loop of kernel launches, measured to {GPU_LOOP_LENGTH:,} tokens"
    return ""


def compiled_row(calls: dict[str, Passes], left_out: dict[str, str], inputs: dict[str, Any]) -> float | None:
    """Put the compiled loop among the candidates, or among those left out; the seconds that compiling took."""
    if "torch.compile" in left_out:
        return None
    compiled = compiled_loop(inputs)
    if compiled.scan is None:
        left_out["torch.compile"] = compiled.reason
    else:
        calls["torch.compile"] = passes(compiled.scan, inputs)
    return compiled.seconds


def make_inputs(
    batch: int, length: int, channels: int, states: int, device: torch.device, *, channels_first: bool = False
) -> dict[str, Any]:
    """Arguments of a scan, all of them leaves that want gradients: sizes of steps and decays as Mamba starts with.

    Args:
        channels_first: lay sequences out in memory as `(b, e, l)`, the order of the functions of mamba-ssm.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator).to(device)
        return (values.mT.contiguous().mT if channels_first and len(shape) == 3 else values).requires_grad_()

    sequence, matrices = (batch, length, channels), (batch, length, states)
    decay = -torch.arange(1.0, states + 1, device=device).repeat(channels, 1)
    step = torch.linspace(-6.9, -2.3, channels, device=device)  # softplus of these: 0.001 to 0.1
    return {
        "u": normal(*sequence),
        "delta": normal(*sequence),
        "A": decay.requires_grad_(),
        "B": normal(*matrices),
        "C": normal(*matrices),
        "D": torch.ones(channels, device=device).requires_grad_(),
        "z": normal(*sequence),
        "delta_bias": step.requires_grad_(),
        "delta_softplus": True,
    }


def passes(scan: Callable[..., Any], inputs: dict[str, Any]) -> Passes:
    """A call that scans without gradients, and one that scans and goes back to every input."""
    leaves = [value for value in inputs.values() if isinstance(value, Tensor)]
    weights = torch.ones_like(inputs["u"])

    def forward() -> object:
        with torch.no_grad():
            return scan(**inputs)

    def both() -> object:
        return torch.autograd.grad(scan(**inputs), leaves, weights)

    return forward, both


def bytes_moved(batch: int, length: int, channels: int, states: int) -> dict[str, int]:
    """Bytes in float32 that a scan cannot avoid: each input is read once and each output written once."""
    sequence, matrices, weights = batch * length * channels, batch * length * states, channels * (states + 2)
    inputs = 3 * sequence + 2 * matrices + weights  # u, delta, z; B, C; A, D, bias
    return {"forward": 4 * (inputs + sequence), "backward": 4 * (inputs + sequence + inputs)}


def rates(seconds: dict[str, dict[str, float]], bytes_: dict[str, int]) -> dict[str, float | None]:
    """GB/s of `bytes_moved`: forward alone, backward as the rest of both, and both together."""
    forward, both = (seconds[kind]["median"] for kind in KINDS)
    backward = bytes_["backward"] / (both - forward) / 1e9 if both > forward else None  # None: lost in the noise
    return {
        "forward": bytes_["forward"] / forward / 1e9,
        "backward": backward,
        "both": sum(bytes_.values()) / both / 1e9,
    }


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each scan the slope of log time per sequence against log length; 1 is linear. Least squares."""
    lengths: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        for each in row["rows"]:
            if each["note"] is None:
                times = (each[kind]["median"] / row["batch"] for kind in KINDS)
                lengths.setdefault(each["scan"], []).append((row["length"], *times))  # type: ignore[arg-type]
    found = {}
    for name, points in lengths.items():
        if len(points) > 1:
            x, *kinds = np.log(np.array(points)).T
            found[name] = {kind: float(np.polyfit(x, y, 1)[0]) for kind, y in zip(KINDS, kinds, strict=True)}
    return found


# A GPU by itself


def device_times(
    batch: int, length: int, channels: int, states: int, repeats: int, device: torch.device
) -> list[dict[str, Any]]:
    """Seconds of the fused scans replayed as CUDA graphs: what the GPU takes, without Python's launches.

    This is what counts inside a training step that is one graph itself.
    """
    graphs, left_out = {}, {}
    for name in (name for name in backends_on(device) if name in ("triton", "mamba-ssm")):
        inputs = make_inputs(batch, length, channels, states, device, channels_first=name == "mamba-ssm")
        try:
            graphs[name] = [captured(call) for call in passes(functools.partial(selective_scan, backend=name), inputs)]
        except RuntimeError as error:
            left_out[name] = str(error).splitlines()[0]
    times = [
        interleaved(
            {name: pair[i].replay for name, pair in graphs.items()}, repeats=repeats, calls=20, finish=finisher(device)
        )
        for i in range(2)
    ]
    bytes_ = bytes_moved(batch, length, channels, states)
    rows: list[dict[str, Any]] = [{"scan": name, "left_out": reason} for name, reason in left_out.items()]
    for name in graphs:
        seconds = {"forward": times[0][name], "both": times[1][name]}
        rows.append({"scan": name, **seconds, "gb_per_s": rates(seconds, bytes_)})
    return rows


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The call as a CUDA graph, after three calls on the side that warm it up."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def copy_bandwidth(device: torch.device, repeats: int) -> float:
    """GB/s, read and written together, of a plain copy of an array that is far larger than any cache."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)  # 1 GiB or 256 MiB
    target = torch.empty_like(source)
    seconds = interleaved({"copy": lambda: target.copy_(source)}, repeats=repeats, calls=3, finish=finisher(device))
    return 2 * source.nbytes / seconds["copy"]["median"] / 1e9


# Memory


def peak_memory(length: int, channels: int, states: int, device: torch.device) -> dict[str, Any]:
    """MB that one forward and backward of each scan takes beyond its inputs: one sequence, each in its own process."""
    names = [peer.name for peer in [*own_scans(device), *find_scans()[0]]]
    arguments = (length, channels, states, str(device), torch.get_num_threads())
    run = peak_of if device.type == "cuda" else functools.partial(in_fresh_process, peak_of)
    peaks = {name: run(name, *arguments) for name in names}
    fused = peaks[automatic(device)]
    return {"length": length, "batch": 1, "mb": peaks, "ratio": {name: mb / fused for name, mb in peaks.items()}}


def peak_of(name: str, length: int, channels: int, states: int, device: str, threads: int) -> float:
    """The figure of one scan; a first run over few tokens loads and builds what it needs."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    scan = next(peer.scan for peer in [*own_scans(place), *find_scans()[0]] if peer.name == name)
    first, inputs = (make_inputs(1, tokens, channels, states, place) for tokens in (4, length))
    passes(scan, first)[1]()
    call = passes(scan, inputs)[1]
    if place.type == "cuda":  # torch counts what it hands out
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        call()
        return (torch.cuda.max_memory_allocated(place) - before) / 2**20
    forget_peak()
    before_mb = peak_megabytes()
    call()
    return max(peak_megabytes() - before_mb, 2**-8)  # at least a page of 4 kB: kernels that reuse memory may show none


# Whole blocks


def whole_blocks(repeats: int, device: torch.device) -> dict[str, Any]:
    """Forward and backward of one Mamba block with everything in it, over training's batch of 64 times 24 tokens."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "dmm": lambda: MambaBlock(**BLOCK),  # type: ignore[arg-type]
        "mambapy": lambda: mambapy_block(**BLOCK),  # type: ignore[arg-type]
        "transformers": lambda: transformers_mixer(**BLOCK),  # type: ignore[arg-type]
        "mamba-ssm": lambda: official_block(64, d_state=16, expand=2, d_conv=4),
    }
    there = versions()
    x = torch.randn(64, 24, 64, generator=torch.Generator().manual_seed(0)).to(device)
    calls = {
        name: functools.partial(_block_step, make().to(device), x)
        for name, make in makers.items()
        if name == "dmm" or there[name] is not None
    }
    times = interleaved(
        calls, repeats=repeats, calls=2, warm=1, patience=PATIENCE[device.type], finish=finisher(device)
    )
    ratios = {name: row["median"] / times["dmm"]["median"] for name, row in times.items()}
    return {"sizes": BLOCK, "batch": 64, "length": 24, "seconds": times, "ratio": ratios}


def _block_step(block: nn.Module, x: Tensor) -> object:
    output = block(x)
    return torch.autograd.grad(output, list(block.parameters()), torch.ones_like(output), allow_unused=True)


# Faces


def report(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = [*head_lines(result), f"copying memory: {result['copy_gb_per_s']:.1f} GB/s", ""]
    lines.append(
        f"{'l':>6} {'b':>4}  {'scan':20}{'forward':>12}{'ratio':>8}{'with backward':>16}{'ratio':>8}{'GB/s':>8}"
    )
    for row in result["lengths"]:
        for each in row["rows"]:
            rate = f"{each['gb_per_s']['both']:8.2f}" if each["gb_per_s"] else f"{'':8}"
            lines.append(
                f"{row['length']:6} {row['batch']:4}  {each['scan']:20}{milliseconds(each['forward']):>12}"
                f"{each['forward_ratio']:8.1f}{milliseconds(each['both']):>16}{each['both_ratio']:8.1f}{rate}"
                + (f"  {each['note']}" if each["note"] else "")
            )
        lines += [f"{row['length']:6} {'':4}  {name:20}{reason}" for name, reason in row["left_out"].items()]
    slopes = ", ".join(f"{name} {value['both']:.2f}" for name, value in result["exponents"].items())
    memory, blocks = result["memory"], result["blocks"]
    peaks = ", ".join(f"{name} {mb:.1f}" for name, mb in memory["mb"].items())
    whole = ", ".join(
        f"{name} {milliseconds(row)} ({blocks['ratio'][name]:.1f})" for name, row in blocks["seconds"].items()
    )
    return "\n".join(
        [
            *lines,
            *(["", f"time grows with the length to the power of: {slopes}"] if slopes else [""]),
            f"memory at {memory['length']:,} tokens, forward and backward, MB: {peaks}",
            f"a whole Mamba block, 64 x 24 tokens, forward and backward: {whole}",
        ]
    )


def head_lines(result: dict[str, Any]) -> list[str]:
    """Where it was measured, which scan runs and why, which peers are here."""
    here = result["machine"]
    peers = ", ".join(f"{name} {version or 'not installed'}" for name, version in result["peers"].items())
    return [
        f"{result['device']}, {result['threads']} thread{'s' if result['threads'] > 1 else ''} of {here['cores']}, "
        f"load {here['load']}, torch {result['torch']}",
        f"scan: {result['why']}",
        f"peers: {peers}",
    ]


def milliseconds(row: dict[str, float]) -> str:
    """A median to read."""
    return f"{1e3 * row['median']:.3g} ms"


def draw(result: dict[str, Any], path: Path) -> None:
    """Time per sequence against length, one line per scan, as a png, svg or pdf; triangles are lower bounds."""
    import matplotlib.pyplot as plt

    from dmm.plots import SIZES, use_style

    use_style()
    fig, axes = plt.subplots(1, 2, figsize=SIZES["full"], sharey=True)
    names = list(dict.fromkeys(each["scan"] for row in result["lengths"] for each in row["rows"]))
    for ax, kind, label in zip(axes, KINDS, ("forward", "forward and backward"), strict=True):
        for place, name in enumerate(names):
            style: dict[str, Any] = {"color": f"C{place}", "markersize": 4, "linestyle": "-" if place < 6 else ":"}
            ax.plot(*_points(result, name, kind, bounds=False), marker="os"[place // 6], label=name, **style)
            ax.plot(*_points(result, name, kind, bounds=True), marker="^", **style)
        ax.set(xscale="log", yscale="log", xlabel=f"tokens $l$, {label}")
    axes[0].set_ylabel("ms per sequence")
    axes[1].yaxis.set_tick_params(labelleft=True)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    fig.savefig(path)
    plt.close(fig)


def _points(result: dict[str, Any], name: str, kind: str, bounds: bool) -> tuple[list[int], list[float]]:
    """Lengths and milliseconds per sequence of one scan, those that are bounds or those that are not."""
    rows = [(row, each) for row in result["lengths"] for each in row["rows"] if each["scan"] == name]
    kept = [(row, each) for row, each in rows if (each["note"] is not None) == bounds]
    return [row["length"] for row, _ in kept], [1e3 * each[kind]["median"] / row["batch"] for row, each in kept]
