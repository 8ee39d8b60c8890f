"""The scan's benchmark measures what it says. No test depends on how fast the machine is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dmm import scan as scans
from dmm.bench import in_fresh_process, interleaved
from dmm.bench import scan as module
from dmm.bench.peers import PACKAGES, Compiled, find_scans, versions
from dmm.bench.scan import (
    automatic,
    backends_on,
    bench_scan,
    beyond_bounds,
    bytes_moved,
    draw,
    exponents,
    make_inputs,
    own_scans,
    passes,
    peer_channels,
    report,
)
from dmm.cli import app
from dmm.errors import InputError, RunError
from dmm.scan import cpp_kernel, selective_scan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LENGTHS = (3, 40)


@pytest.fixture(scope="module")
def result() -> Any:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compiled_loop", lambda inputs: Compiled(None, "not in this test", 0.5))
        patch.setattr(module, "in_fresh_process", lambda function, *arguments: function(*arguments))
        patch.setattr(module, "copy_bandwidth", lambda device, repeats: 10.0)
        patch.setattr(module, "versions", lambda: versions() | {"d3rlpy": None})
        found = bench_scan(LENGTHS, channels=4, states=2, repeats=1, progress=False)
    yield found
    assert torch.get_num_threads() == before


def test_every_scan_is_timed_at_every_length(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    names = [*backends_on(CPU), "selective_scan_ref", "mambapy", "transformers"]
    assert [row["length"] for row in result["lengths"]] == list(LENGTHS)
    for row in result["lengths"]:
        assert [each["scan"] for each in row["rows"]] == names and list(row["left_out"]) == ["torch.compile"]
        assert all(each["note"] is None and each["both"]["median"] > 0 for each in row["rows"])
        assert row["batch"] == min(64, 2048 // row["length"])
    assert (result["lengths"][0]["compile_seconds"], result["lengths"][1]["compile_seconds"]) == (0.5, None)
    assert result["lengths"][1]["left_out"]["torch.compile"].startswith("the loop is unrolled")


def test_ratios_and_rates_are_those_of_the_times(result: dict[str, Any]) -> None:
    for row in result["lengths"]:
        by_name = {each["scan"]: each for each in row["rows"]}
        fused, moved = by_name[result["backend"]], bytes_moved(row["batch"], row["length"], 4, 2)
        for each in row["rows"]:
            assert each["both_ratio"] == pytest.approx(each["both"]["median"] / fused["both"]["median"])
            assert each["forward_ratio"] == pytest.approx(each["forward"]["median"] / fused["forward"]["median"])
            assert each["gb_per_s"]["both"] == pytest.approx(sum(moved.values()) / each["both"]["median"] / 1e9)


def test_memory_and_blocks_are_beside_each_other(result: dict[str, Any]) -> None:
    memory, blocks = result["memory"], result["blocks"]
    assert memory["length"] == 40 and list(memory["mb"]) == [each["scan"] for each in result["lengths"][0]["rows"]]
    assert all(mb > 0 for mb in memory["mb"].values()) and memory["ratio"][result["backend"]] == 1
    assert list(blocks["seconds"]) == ["dmm", "mambapy", "transformers", "mamba-ssm"] and blocks["ratio"]["dmm"] == 1


def test_the_report_says_which_scan_runs_and_who_is_here(result: dict[str, Any]) -> None:
    text = report(result)
    assert f"scan: {automatic(CPU)}: " in text and "d3rlpy not installed" in text
    assert "left out" not in text and text.count("selective_scan_ref") == len(LENGTHS) + 2
    assert list(result["peers"]) == list(PACKAGES) and result["threads"] == 1


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture(result: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    draw(result, tmp_path / f"scan{suffix}")
    assert (tmp_path / f"scan{suffix}").stat().st_size > 5_000


def test_command(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(module, "bench_scan", lambda length, **more: asked.update(length=length, **more) or result)
    run = CliRunner().invoke(app, ["bench", "scan", "--length", "3", "--length", "40", "--json", "--threads", "2"])
    assert run.exit_code == 0 and json.loads(run.stdout) == result
    assert asked["length"] == [3, 40] and asked["threads"] == 2 and asked["device"] == "cpu"
    picture = tmp_path / "a.png"
    assert "peers:" in CliRunner().invoke(app, ["bench", "scan", "--picture", str(picture)]).stdout
    assert picture.exists()


@pytest.mark.parametrize("name", ["scan.gif", "nowhere/scan.png"])
def test_a_picture_that_cannot_be_written_is_refused_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "bench_scan", lambda *_, **__: pytest.fail("measured before"))
    run = CliRunner().invoke(app, ["bench", "scan", "--picture", name])
    assert isinstance(run.exception, InputError) and f"picture: got '{name}'" in str(run.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [0]}, "length: got 0"),
        ({"channels": 0}, "channels: got 0"),
        ({"states": 0}, "states: got 0"),
        ({"repeats": 0}, "repeats: got 0"),
        ({"threads": 0}, "threads: got 0"),
        ({"device": "nonsense"}, "device: got 'nonsense'"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_scan(**arguments, progress=False)


def test_the_named_backend_is_the_one_that_auto_takes() -> None:
    u = torch.zeros(1, 1, 1)
    assert automatic(CPU) == scans._choose("auto", {"u": u, "A": torch.zeros(1, 1)}, None, False)
    assert not {"triton", "mamba-ssm"} & set(backends_on(CPU)) and "cpp" not in backends_on(CUDA)
    assert module.why(CPU).startswith(automatic(CPU))


def test_the_reason_is_told_without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, reason, told in (
        (object(), "built with c++, /home/me/.cache/scan.so", "cpp: C++ kernel built with c++"),
        (None, "no C++ compiler found ($CXX, c++)", "sequential: no C++ kernel, no C++ compiler found ($CXX, c++)"),
    ):
        monkeypatch.setattr(cpp_kernel, "status", lambda found=(library, reason): found)
        monkeypatch.setattr(module, "automatic", lambda device, here=library: "cpp" if here else "sequential")
        assert module.why(CPU) == told


def test_inputs_have_the_asked_layout_and_the_same_numbers() -> None:
    ours, theirs = (make_inputs(2, 5, 3, 4, CPU, channels_first=first) for first in (False, True))
    for name in ("u", "delta", "z", "B", "C"):
        assert torch.equal(ours[name], theirs[name])
        assert ours[name].is_contiguous() and theirs[name].mT.is_contiguous() and theirs[name].is_leaf
    forward, both = passes(selective_scan, ours)
    y = forward()
    assert isinstance(y, torch.Tensor) and not y.requires_grad and y.shape == (2, 5, 3)
    gradients = both()
    assert isinstance(gradients, tuple) and len(gradients) == 8


def test_bytes_by_hand() -> None:
    # b l e = 6, b l n = 12, e (n + 2) = 18: u, delta, z, B, C, A, D, bias are 18 + 24 + 18 = 60 numbers, y is 6
    assert bytes_moved(1, 2, 3, 4 + 2)["forward"] == 4 * (3 * 6 + 2 * 12 + 3 * 8 + 6)
    assert bytes_moved(1, 2, 3, 6)["backward"] == 4 * (2 * (3 * 6 + 2 * 12 + 3 * 8) + 6)


def test_rates_by_hand() -> None:
    seconds = {"forward": {"median": 2.0}, "both": {"median": 6.0}}
    found = module.rates(seconds, {"forward": 10**9, "backward": 2 * 10**9})
    assert found == {"forward": 0.5, "backward": 0.5, "both": 0.5}
    seconds["both"]["median"] = 1.0
    assert module.rates(seconds, {"forward": 10**9, "backward": 2 * 10**9})["backward"] is None


def test_exponents_by_hand() -> None:
    def row(length: int, batch: int, seconds: float, note: str | None = None) -> dict[str, Any]:
        each = {"scan": "x", "forward": {"median": seconds}, "both": {"median": seconds**2}, "note": note}
        return {"length": length, "batch": batch, "rows": [each]}

    found = exponents([row(10, 1, 2.0), row(100, 1, 20.0), row(1000, 1, 200.0)])["x"]
    assert found == {"forward": pytest.approx(1), "both": pytest.approx(2)}
    assert exponents([row(10, 4, 8.0), row(100, 1, 20.0)])["x"]["forward"] == pytest.approx(1)
    assert exponents([row(10, 1, 1.0), row(100, 1, 1.0, "at least")]) == {}


def test_long_loops_get_fewer_channels_and_fused_scans_never() -> None:
    peers = {peer.name: peer for peer in [*own_scans(CPU), *find_scans()[0]]}
    loop, parallel = peers["transformers"], peers["mambapy"]
    assert [peer_channels(loop, 1, length, 64, 16) for length in (24, 2_048, 4_096, 16_384)] == [64, 64, 16, 1]
    assert peer_channels(parallel, 1, 16_384, 64, 16) == 64
    assert not any(beyond_bounds(peer, 64, 1, 16_384, 64, 16, CPU) for peer in peers.values())
    assert "a loop" in beyond_bounds(loop, 0, 64, 4_096, 64, 16, CUDA)
    assert "b * l * e * n" in beyond_bounds(parallel, 64, 64, 16_384, 64, 16, CUDA)
    assert "launches" in beyond_bounds(peers["sequential"], 64, 1, 8_192, 64, 16, CUDA)


def test_what_is_slow_is_called_twice_and_no_more() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, patience=0)
    assert "".join(calls) == "aabb" and times["a"]["low"] == times["a"]["high"]


def test_calls_that_warm_up_come_first_in_every_turn() -> None:
    calls: list[str] = []
    actors = {name: (lambda name=name: calls.append(name)) for name in "ab"}  # type: ignore[misc]
    interleaved(actors, repeats=2, warm=2)
    assert "".join(calls) == "ab" + "aaabbb" * 2


def test_a_device_is_waited_for_before_the_clock_is_read() -> None:
    calls: list[str] = []
    interleaved({"a": lambda: calls.append("a")}, repeats=1, calls=2, finish=lambda: calls.append("."))
    assert "".join(calls) == "a.aa."


def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    held = torch.ones(50_000_000)  # 200 MB here must not count there
    monkeypatch.setattr(module, "find_scans", lambda: ([], {}))
    monkeypatch.setattr(module, "own_scans", lambda device: [p for p in own_scans(device) if p.name == automatic(CPU)])
    peaks = module.peak_memory(2_048, 64, 16, CPU)["mb"]
    assert list(peaks) == [automatic(CPU)] and 0 < peaks[automatic(CPU)] < held.nbytes / 2**20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_fused_scans_are_timed_as_graphs_too() -> None:
    found = bench_scan((24, 256), channels=8, states=4, repeats=1, device="cuda", progress=False)
    assert json.loads(json.dumps(found)) == found and found["backend"] == automatic(CUDA)
    for row in found["lengths"]:
        timed = {each["scan"]: each for each in row["device_only"]}
        assert timed[automatic(CUDA)]["both"]["median"] > 0 and row["batch"] == 64
    assert min(found["memory"]["mb"].values()) > 0 and "GB/s" in report(found)


class TestInFreshProcess:
    def test_a_process_that_is_ended_from_outside_is_an_error_and_no_wait(self) -> None:
        with pytest.raises(RunError, match=r"^bench: the process of _exit was ended from outside"):
            in_fresh_process(os._exit, 9)

    def test_what_it_returns_comes_back(self) -> None:
        assert in_fresh_process(abs, -3) == 3
