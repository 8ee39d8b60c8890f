"""The goals of speed are read off the reports, never typed. No test depends on how fast the machine is."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmm.experiments import RESULTS, load_result, speed
from dmm.experiments.speed import GOALS, OWED, goals_table, judge
from tests.close import assert_same_but_for_rounding


def times(median: float) -> dict[str, float]:
    return {"median": median, "low": median, "high": median}


def scan_rows(**both: float) -> list[dict[str, Any]]:
    return [
        {"scan": name, "both": times(value), "forward": times(value), "both_ratio": value, "gb_per_s": {"both": 1.0}}
        for name, value in both.items()
    ]


def device_rows(**both: float) -> list[dict[str, Any]]:
    return [
        {"scan": name, "both": times(value), "forward": times(2 * value), "gb_per_s": {"both": 100 / value}}
        for name, value in both.items()
    ]


def fabricated() -> dict[str, Any]:
    """Reports of a run whose every figure is known."""
    us = [{"step": step, "us": times(value)} for step, value in ((10, 400.0), (100, 420.0), (1_000, 480.0))]
    ways = ("window", "recurrent", "staggered, 2 states", "staggered, 4 states")
    return {
        "scan": {
            "backend": "cpp",
            "lengths": [
                {"length": length, "rows": scan_rows(cpp=1, mambapy=ratio, transformers=9), "device_only": device}
                for length, ratio, device in (
                    (24, 6.0, device_rows(triton=2, **{"mamba-ssm": 4})),
                    (4_096, 4.0, device_rows(triton=3, **{"mamba-ssm": 2})),
                    (16_384, 5.0, device_rows(triton=4)),
                    (65_536, 7.0, device_rows(triton=5)),
                )
            ],
            "exponents": {"cpp": {"forward": 0.8, "both": 1.05}},
            "memory": {"mb": {"cpp": 3.0, "mambapy": 60.0}},
            "copy_gb_per_s": 40.0,
        },
        "train": {
            "scans": [
                {"scan": "dmm", "ratio": 0.6, "over_no_recurrence": 0.8, "over_no_scan": 0.9},
                {"scan": "dmm, modules", "ratio": 1.0, "over_no_recurrence": 1.3, "over_no_scan": 1.4},
                {"scan": "mambapy", "ratio": 3.5},
                {"scan": "selective_scan_ref", "ratio": 2.5},
            ],
            "threads_scaling": [{"threads": 1, "rate_over_one": 1.0}, {"threads": 2, "rate_over_one": 1.7}],
            "sampling": {"share": 0.01},
            "products": {"over": {"step": 1.8, "modules": 3.1}},
            "projected_seconds": {"dmm": 30.0, "5 seeds, stacked": 70.0, "5 seeds, separate": 150.0},
        },
        "act": {
            "latency": {way: {"steps": us} for way in ways},
            "episodes": {"ways": {way: {"ratio": 1.1 + 0.1 * place} for place, way in enumerate(ways)}},
        },
    }


def by_figure(goals: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["figure"]: row for row in goals}


EXPECTED: dict[str, tuple[float | None, bool | None]] = {
    "training step over its matrix products": (1.8, True),
    "training step over the same without recurrence": (1.3, True),
    "training step over the same without any scan": (1.4, False),
    "training step, speed over mambapy's scan in the model": (3.5, True),
    "training step, speed over selective_scan_ref in the model": (2.5, False),
    "scan, least speed over mambapy at any length": (4.0, True),
    "scan, least speed over transformers at any length": (9.0, True),
    "scan, exponent of time against length": (1.05, True),
    "scan, peak memory at 2,048 tokens over mambapy's": (0.05, True),
    "step rate on 2 threads over one": (1.7, True),
    "step rate on 4 threads over one": (None, None),
    "one action, recurrent": (0.48, True),
    "one action, staggered, 4 states": (0.48, True),
    "flatness of one action, recurrent": (1.2, False),
    "flatness of one action, staggered, 4 states": (1.2, False),
    "100 Hopper episodes over the simulator's time, window": (1.1, True),
    "100 Hopper episodes over the simulator's time, recurrent": (1.2, True),
    "100 Hopper episodes over the simulator's time, staggered, 4 states": (1.4, False),
    "drawing windows, part of the step": (0.01, True),
}


def test_every_goal_on_a_cpu_by_hand() -> None:
    goals = judge(fabricated(), "cpu")
    assert json.loads(json.dumps(goals)) == goals and len(goals) == len(GOALS)
    found = by_figure(goals)
    for figure, (value, reached) in EXPECTED.items():
        assert found[figure]["value"] == (None if value is None else pytest.approx(value)), figure
        assert found[figure]["reached"] is reached, figure
    owed = [row for row in goals if row["device"] == "cuda"]
    assert len(owed) == 4 and len(owed) + len(EXPECTED) == len(goals)
    assert all((row["value"], row["reached"], row["status"]) == (None, None, OWED) for row in owed)


def test_every_goal_on_a_gpu_by_hand() -> None:
    reports = fabricated()
    del reports["act"]  # it is measured on a CPU
    found = by_figure(judge(reports, "cuda"))
    assert [(row["value"], row["reached"]) for row in found.values()] == [
        (30.0, True),
        (70.0, False),
        (pytest.approx(1.5), False),
        (pytest.approx(0.5), False),
    ]


def test_peers_that_were_not_measured_leave_a_goal_open() -> None:
    reports = fabricated()
    reports["train"]["scans"] = reports["train"]["scans"][:2]
    del reports["scan"]["memory"]["mb"]["mambapy"]
    reports["scan"]["lengths"][1]["rows"] = scan_rows(cpp=1)
    found = by_figure(judge(reports, "cpu"))
    for figure in (
        "training step, speed over mambapy's scan in the model",
        "scan, least speed over mambapy at any length",
        "scan, peak memory at 2,048 tokens over mambapy's",
    ):
        assert found[figure]["value"] is None and found[figure]["status"].startswith("not measured")
    reports = fabricated()
    reports["scan"]["lengths"][0]["device_only"] = device_rows(triton=2)
    reports["scan"]["lengths"][2]["device_only"] = [{"scan": "triton", "left_out": "no"}]
    assert [row["value"] for row in judge(reports, "cuda")][2:] == [None, None]


def test_table_shows_what_was_measured() -> None:
    lines = goals_table(judge(fabricated(), "cpu")).splitlines()
    assert len(lines) == 2 + len(GOALS)
    assert "| one action, recurrent | at most 0.5 ms | 0.48 ms | reached |" in lines
    assert f"| 100,000 Hopper updates, one seed | at most 35 s |  | {OWED} |" in lines


@pytest.mark.parametrize(("device", "name"), [("cpu", "speed.json"), ("cuda", "speed_cuda.json")])
def test_command_writes_its_file(
    device: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = replaced_benches(monkeypatch, tmp_path)
    speed.main(["--device", device])
    written = json.loads((tmp_path / name).read_text())
    parts = speed.PARTS if device == "cpu" else speed.PARTS[:2]
    assert made == list(parts) and written.keys() & set(speed.PARTS) == set(parts)
    assert written["goals"] == judge(written, device) and written["machine"] == {"load": 0.1}
    assert "| figure | goal |" in capsys.readouterr().out


def replaced_benches(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """Fabricated reports in place of measurements, and a folder for their file; gives the parts that are made later."""
    heading = {"device": "x", "threads": 1, "machine": {"load": 0.1}, "torch": "2", "why": "cpp", "peers": {}}
    reports, made = fabricated(), []
    reports["scan"] |= heading

    def bench(name: str) -> Callable[..., dict[str, Any]]:
        return lambda **_: made.append(name) or copy.deepcopy(reports[name])

    for name in speed.PARTS:
        monkeypatch.setattr(importlib.import_module(f"dmm.bench.{name}"), f"bench_{name}", bench(name))
    monkeypatch.setattr(speed, "RESULTS", folder)
    return made


def test_a_part_is_measured_anew_beside_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = replaced_benches(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r"--only: .*speed\.json is not there"):
        speed.main(["--only", "act"])
    speed.main([])
    before = json.loads((tmp_path / "speed.json").read_text())
    before["train"]["sampling"]["share"] = 0.5
    (tmp_path / "speed.json").write_text(json.dumps(before | {"act": None}))
    made.clear()
    speed.main(["--only", "act"])
    after = json.loads((tmp_path / "speed.json").read_text())
    assert made == ["act"] and after["act"] == before["act"]
    assert after["train"] == before["train"] and after["goals"] == judge(after, "cpu")
    with pytest.raises(SystemExit, match="--only: act is not measured on cuda, allowed are scan, train"):
        speed.main(["--only", "act", "--device", "cuda"])


def test_a_gpus_file_pays_what_the_other_owes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"speed": {"device": "processor"}, "speed_cuda": {"device": "card"}}
    for file, device in zip(files.values(), ("cpu", "cuda"), strict=True):
        file |= {"goals": judge(fabricated(), device)}  # type: ignore[dict-item]
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "load_result", files.__getitem__)
    owing = speed.committed_goals()
    assert [row["status"] for row in owing if row["device"] == "cuda"] == [OWED] * 4
    (tmp_path / "speed_cuda.json").touch()
    paid = speed.committed_goals()
    assert [row["figure"] for row in paid] == [row["figure"] for row in owing] == [goal.figure for goal in GOALS]
    assert {row["measured_on"] for row in paid if row["device"] == "cuda"} == {"card"}
    assert {row["measured_on"] for row in paid if row["device"] == "cpu"} == {"processor", None}


@pytest.mark.parametrize(("device", "name"), [("cpu", "speed"), ("cuda", "speed_cuda")])
def test_the_committed_goals_are_those_of_the_committed_figures(device: str, name: str) -> None:
    if device == "cuda" and not (RESULTS / f"{name}.json").exists():
        pytest.skip("the GPU figures are owed: python -m dmm.experiments.speed --device cuda")
    stored = load_result(name)
    assert_same_but_for_rounding(stored["goals"], judge(stored, device))
    assert (device == "cuda") == ("act" not in stored) and stored["device"]
