"""How fast this package is beside others, and which of its goals are reached: the figures of `dmm bench` in one file.

    python -m dmm.experiments.speed                    speed.json: scan, training step and acting on a CPU
    python -m dmm.experiments.speed --only act         a part of it anew, beside what the file holds
    python -m dmm.experiments.speed --device cuda      speed_cuda.json: scan and training step on a GPU

Every figure is a ratio within one part, or says on which device it was taken; each part's `machine.load` tells how busy
it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dmm.experiments import RESULTS, load_result, path_argument, write_result
from dmm.files import read_json

FLAT = 1.1
"""Largest over smallest time of an action, at the steps where it is measured, that counts as flat."""
SHORT_LENGTHS = (24, 4_096)
LONG_LENGTH = 16_384
OWED = "owed: no GPU in this run"

PARTS = ("scan", "train", "act")
Reports = dict[str, dict[str, Any]]
"""What `dmm bench scan`, `train` and `act` found, by these names."""


@dataclass(frozen=True)
class Goal:
    """A figure, its bound, and how it is read off the reports; None where a run has not what it needs."""

    figure: str
    sense: Literal["at most", "at least"]
    bound: float
    unit: str  # "" for a ratio
    device: Literal["cpu", "cuda"]
    read: Callable[[Reports], float | None]


def judge(reports: Reports, device: str) -> list[dict[str, Any]]:
    """Every goal with what was measured and whether that reaches it; null, and why, where it was not measured."""
    return [_judged(goal, reports, device) for goal in GOALS if device == "cpu" or goal.device == device]


def _judged(goal: Goal, reports: Reports, device: str) -> dict[str, Any]:
    value = goal.read(reports) if goal.device == device else None
    row = {name: each for name, each in asdict(goal).items() if name != "read"}
    if value is None:
        status = OWED if goal.device != device else "not measured: what it compares with is not here"
        return {**row, "value": None, "reached": None, "status": status}
    reached = value <= goal.bound if goal.sense == "at most" else value >= goal.bound
    return {**row, "value": value, "reached": reached, "status": "reached" if reached else "missed"}


# How goals are read


def _scan_row(reports: Reports, name: str) -> dict[str, Any] | None:
    return next((row for row in reports["train"]["scans"] if row["scan"] == name), None)


def _over(column: str) -> Callable[[Reports], float | None]:
    """The training step, as modules, over the one without its scan; reports of earlier versions know no other step."""
    return lambda reports: (_scan_row(reports, "dmm, modules") or _scan_row(reports, "dmm") or {})[column]


def _over_products(reports: Reports) -> float | None:
    """The training step over its matrix products alone."""
    products = reports["train"].get("products")  # reports of earlier versions have none
    return None if products is None else float(products["over"]["step"])


def _step_speed(name: str) -> Callable[[Reports], float | None]:
    """The speed of the training step, as modules, over that with another scan in its place."""

    def read(reports: Reports) -> float | None:
        row = _scan_row(reports, name)
        return None if row is None else float(row["ratio"])

    return read


def _scan_speed(name: str) -> Callable[[Reports], float | None]:
    """The smallest speed over another scan, over all lengths."""

    def read(reports: Reports) -> float | None:
        lengths = reports["scan"]["lengths"]
        ratios = [row["both_ratio"] for each in lengths for row in each["rows"] if row["scan"] == name]
        return min(ratios) if len(ratios) == len(lengths) else None

    return read


def _exponent(reports: Reports) -> float | None:
    slopes = reports["scan"]["exponents"].get(reports["scan"]["backend"])
    return None if slopes is None else max(slopes.values())


def _memory(reports: Reports) -> float | None:
    scan = reports["scan"]
    peaks = scan["memory"]["mb"]
    return peaks[scan["backend"]] / peaks["mambapy"] if "mambapy" in peaks else None


def _threads(count: int) -> Callable[[Reports], float | None]:
    return lambda reports: next(
        (row["rate_over_one"] for row in reports["train"]["threads_scaling"] if row["threads"] == count), None
    )


def _slowest_action(way: str) -> Callable[[Reports], float | None]:
    return lambda reports: max(_medians(reports, way)) / 1e3


def _flatness(way: str) -> Callable[[Reports], float | None]:
    return lambda reports: max(_medians(reports, way)) / min(_medians(reports, way))


def _medians(reports: Reports, way: str) -> list[float]:
    return [row["us"]["median"] for row in reports["act"]["latency"][way]["steps"]]


def _playing(way: str) -> Callable[[Reports], float | None]:
    return lambda reports: reports["act"]["episodes"]["ways"][way]["ratio"]


def _projected(start: str) -> Callable[[Reports], float | None]:
    """Seconds of 100,000 updates, of one seed or of several that are stacked."""
    return lambda reports: next(
        seconds
        for name, seconds in reports["train"]["projected_seconds"].items()
        if name.startswith(start) and not name.endswith("separate")
    )


def _kernel_over_official(reports: Reports) -> float | None:
    """The largest ratio of the Triton kernel's time to mamba-ssm's, forward and with backward, on the GPU alone."""
    low, high = SHORT_LENGTHS
    ratios = []
    for each in reports["scan"]["lengths"]:
        rows = _device_rows(each)
        if low <= each["length"] <= high:
            if not {"triton", "mamba-ssm"} <= rows.keys():
                return None
            ratios += [
                rows["triton"][kind]["median"] / rows["mamba-ssm"][kind]["median"] for kind in ("forward", "both")
            ]
    return max(ratios, default=None)


def _bandwidth(reports: Reports) -> float | None:
    """The smallest share of the copy bandwidth at long lengths, forward with backward."""
    rows = [_device_rows(each) for each in reports["scan"]["lengths"] if each["length"] >= LONG_LENGTH]
    if not rows or not all("triton" in row for row in rows):
        return None
    return float(min(row["triton"]["gb_per_s"]["both"] for row in rows) / reports["scan"]["copy_gb_per_s"])


def _device_rows(each: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["scan"]: row for row in each.get("device_only", ()) if "both" in row}


CONSTANT = ("recurrent", "staggered, 4 states")
"""The ways of acting at constant cost whose time per action has a goal."""
GOALS = (
    Goal("training step over its matrix products", "at most", 2, "", "cpu", _over_products),
    Goal("training step over the same without recurrence", "at most", 1.35, "", "cpu", _over("over_no_recurrence")),
    Goal("training step over the same without any scan", "at most", 1.35, "", "cpu", _over("over_no_scan")),
    Goal("training step, speed over mambapy's scan in the model", "at least", 3, "", "cpu", _step_speed("mambapy")),
    Goal(
        "training step, speed over selective_scan_ref in the model",
        "at least",
        3,
        "",
        "cpu",
        _step_speed("selective_scan_ref"),
    ),
    Goal("scan, least speed over mambapy at any length", "at least", 1, "", "cpu", _scan_speed("mambapy")),
    Goal("scan, least speed over transformers at any length", "at least", 1, "", "cpu", _scan_speed("transformers")),
    Goal("scan, exponent of time against length", "at most", 1.1, "", "cpu", _exponent),
    Goal("scan, peak memory at 2,048 tokens over mambapy's", "at most", 0.25, "", "cpu", _memory),
    Goal("step rate on 2 threads over one", "at least", 1.6, "", "cpu", _threads(2)),
    Goal("step rate on 4 threads over one", "at least", 2.2, "", "cpu", _threads(4)),
    *(Goal(f"one action, {way}", "at most", 0.5, "ms", "cpu", _slowest_action(way)) for way in CONSTANT),
    *(Goal(f"flatness of one action, {way}", "at most", FLAT, "", "cpu", _flatness(way)) for way in CONSTANT),
    *(
        Goal(f"100 Hopper episodes over the simulator's time, {way}", "at most", 1.3, "", "cpu", _playing(way))
        for way in ("window", *CONSTANT)
    ),
    Goal(
        "drawing windows, part of the step",
        "at most",
        0.05,
        "",
        "cpu",
        lambda reports: reports["train"]["sampling"]["share"],
    ),
    Goal("100,000 Hopper updates, one seed", "at most", 35, "s", "cuda", _projected("dmm")),
    Goal("100,000 Hopper updates, five seeds at once", "at most", 60, "s", "cuda", _projected("5 seeds")),
    Goal(
        "Triton kernel's time over mamba-ssm's, worst of 24 to 4,096 tokens",
        "at most",
        1,
        "",
        "cuda",
        _kernel_over_official,
    ),
    Goal("Triton kernel's bandwidth over a copy's, from 16,384 tokens", "at least", 0.6, "", "cuda", _bandwidth),
)


def benches(device: str) -> dict[str, Callable[[], dict[str, Any]]]:
    """What makes each report; acting is measured on the CPU alone, where episodes are played."""
    from dmm.bench.act import bench_act
    from dmm.bench.scan import bench_scan
    from dmm.bench.train import bench_train

    found = {"scan": lambda: bench_scan(device=device), "train": lambda: bench_train(device=device)}
    return found | ({"act": bench_act} if device == "cpu" else {})


def committed_goals() -> list[dict[str, Any]]:
    """The goals as the committed files judge them, each with the name of the device that it was measured on; those of
    the GPU are owed until there is a file of a GPU."""
    cpu = load_result("speed")
    files = {"cpu": cpu, "cuda": load_result("speed_cuda") if (RESULTS / "speed_cuda.json").exists() else cpu}
    return [
        {**row, "measured_on": files[kind]["device"] if row["value"] is not None else None}
        for kind, file in files.items()
        for row in file["goals"]
        if row["device"] == kind
    ]


def goals_table(goals: list[dict[str, Any]]) -> str:
    """The goals as rows of a Markdown table."""
    lines = ["| figure | goal | measured | |", "| --- | --- | --- | --- |"]
    for row in goals:
        unit = f" {row['unit']}" if row["unit"] else ""
        value = "" if row["value"] is None else f"{row['value']:.3g}{unit}"
        lines.append(f"| {row['figure']} | {row['sense']} {row['bound']:g}{unit} | {value} | {row['status']} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure scan, training step and acting, and judge the goals.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=PARTS, help="measure this part alone; the file must hold the others")
    parser.add_argument("--out", type=path_argument, help="a file; the package's own if left out")
    args = parser.parse_args(arguments)
    out = args.out or RESULTS / ("speed.json" if args.device == "cpu" else "speed_cuda.json")
    makers = benches(args.device)
    if args.only and args.only not in makers:
        raise SystemExit(f"--only: {args.only} is not measured on {args.device}, allowed are {', '.join(makers)}")
    if args.only and not out.exists():
        raise SystemExit(f"--only: {out} is not there, and would hold the other parts; leave --only out")

    kept = read_json(out) if args.only else {}
    reports = {name: kept[name] if args.only not in (None, name) else make() for name, make in makers.items()}
    first = reports["scan"]
    goals = judge(reports, args.device)
    shared = {name: first[name] for name in ("device", "threads", "machine", "torch", "why", "peers")}
    write_result(out, {**shared, "goals": goals, **reports})
    print(goals_table(goals))


if __name__ == "__main__":
    main()
