"""The measurements measure what they say. No test depends on how fast the machine is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dmm.bench import data as module
from dmm.bench import interleaved, machine, quartiles
from dmm.bench.data import BATCH, CONTEXT, bench_data, loop_batch, report
from dmm.cli import app
from dmm.data import preview
from dmm.data.recipes import find_recipe
from dmm.data.windows import WindowSampler
from dmm.errors import InputError
from tests.own_process import run_python

MAZE = "dmm/pointmaze/umaze-v0"


@pytest.fixture(scope="module")
def result():
    before = torch.get_num_threads()
    yield bench_data(MAZE, transitions=12_000, repeats=1, progress=False)
    torch.set_num_threads(before)


def test_every_figure_is_there_positive_and_plain(result) -> None:
    assert json.dumps(result)
    assert {"step", "record", "memory", "read", "machine", "dataset", "transitions"} <= result.keys()
    assert result["record"][0]["workers"] == 1
    assert result["record"][0]["speedup"] == result["record"][0]["efficiency"] == 1

    def numbers(value):
        if isinstance(value, dict):
            return [n for each in value.values() for n in numbers(each)]
        if isinstance(value, (list, tuple)):
            return [n for each in value for n in numbers(each)]
        return [value] if isinstance(value, (int, float)) else []

    found = numbers({name: result[name] for name in ("step", "record", "memory", "read")})
    assert len(found) > 30 and min(found) > 0 and np.isfinite(found).all()


def test_ratios_are_those_of_the_figures(result) -> None:
    read, step, memory = result["read"], result["step"], result["memory"]
    assert read["load_speedup"] == pytest.approx(
        read["load_seconds"]["minari"]["median"] / read["load_seconds"]["dmm"]["median"]
    )
    assert read["batch_speedup"] == pytest.approx(
        read["batch_ms"]["loop"]["median"] / read["batch_ms"]["dmm"]["median"]
    )
    assert step["behaviour_over_simulator"] == pytest.approx(
        step["behaviour_us"]["median"] / step["simulator_us"]["median"]
    )
    assert memory["growth"] == pytest.approx(memory["peak_mb"][1] / memory["peak_mb"][0])
    assert read["transitions"] >= 12_000 and memory["transitions"] == (3000, 12_000)


def test_the_report_tells_the_medians(result) -> None:
    text = report(result)
    assert MAZE in text and f"{result['step']['simulator_us']['median']:.0f} us" in text
    assert text.count("\n") == 4 + len(result["record"])


def test_nothing_is_left_behind(datasets_path: Path, result) -> None:
    assert os.environ["MINARI_DATASETS_PATH"] == str(datasets_path)
    assert minari.list_local_datasets() == {}


def test_the_compared_loop_draws_windows_like_the_sampler() -> None:
    data = preview.preview(MAZE, 6)
    sampler = WindowSampler(data, CONTEXT, generator=torch.Generator().manual_seed(0))
    mine = loop_batch(data, np.random.default_rng(0))
    theirs = sampler.sample(BATCH)
    for each, other in zip(
        mine, (theirs.returns_to_go, theirs.states, theirs.actions, theirs.timesteps, theirs.mask), strict=True
    ):
        assert each.shape == other.shape
    rows = {tuple(row): i for i, row in enumerate(data.observations)}
    for to_go, states, actions, timesteps, mask in zip(*mine, strict=True):
        first = rows[tuple(states[mask > 0][0])]
        window = sampler.window_at(first)
        np.testing.assert_array_equal(window.states[0], states)
        np.testing.assert_array_equal(window.actions[0], actions)
        np.testing.assert_array_equal(window.timesteps[0], timesteps)
        np.testing.assert_array_equal(window.mask[0], mask > 0)
        np.testing.assert_allclose(window.returns_to_go[0], to_go, atol=1e-5)


def test_candidates_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, calls=2)
    assert "".join(calls) == "ab" + "aabb" * 2
    assert times.keys() == {"a", "b"} and times["a"]["low"] <= times["a"]["median"] <= times["a"]["high"]
    assert quartiles([1, 2, 3, 4, 5]) == {"low": 2, "median": 3, "high": 4}
    assert machine()["cores"] >= 1 and machine()["processor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "dmm/none-v0"}, "no recipe 'dmm/none-v0'"),
        ({"transitions": 0}, "transitions: got 0"),
        ({"repeats": 0}, "repeats: got 0"),
    ],
)
def test_bad_input(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_data(**arguments)  # type: ignore[arg-type]


def test_command(monkeypatch: pytest.MonkeyPatch, result, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "bench_data", lambda *args, **kwargs: result)
    run = CliRunner().invoke(app, ["bench", "data", MAZE, "--json"])
    assert run.exit_code == 0 and json.loads(run.stdout)["dataset"] == MAZE
    picture = tmp_path / "data.png"
    assert "transitions/s" in CliRunner().invoke(app, ["bench", "data", MAZE, "--picture", str(picture)]).stdout
    assert picture.stat().st_size > 5_000


def test_the_peak_is_that_of_the_process_itself() -> None:
    """What the same process takes when it is started from one that holds nothing is the measure: torch's builds differ
    by hundreds of MB."""
    code = "from dmm.bench import peak_megabytes; print(peak_megabytes())"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    alone = float(run_python(starts))
    held = np.ones(60_000_000)  # 458 MB here must not count there
    beside = float(run_python(code))
    assert alone > 20 and abs(beside - alone) < held.nbytes / 2**20 / 4


def test_too_few_transitions_to_time_are_refused() -> None:
    with pytest.raises(InputError, match=r"transitions: got 5; allowed: more than 1 workers record"):
        module.recording_rates(find_recipe(MAZE), 5, [1], 1)
