from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from dmm.data.windows import Windows
from dmm.experiments import gating, recorded
from dmm.experiments.recorded import recorded_windows, write_recording


@pytest.mark.parametrize(
    ("name", "count"), [("measured", gating.WINDOWS), *zip(("probe_0", "probe_1"), gating.PROBE_WINDOWS, strict=True)]
)
def test_hoppers_windows_are_those_of_the_experiment(name: str, count: int) -> None:
    windows = recorded_windows("hopper", name)
    assert windows.states.shape == (count, gating.CONTEXT, 11) and windows.actions.shape == (count, gating.CONTEXT, 3)
    assert bool(windows.mask.all()) and bool(windows.states.isfinite().all())
    assert bool((windows.timesteps.diff(dim=1) == 1).all()) and bool((windows.actions.abs() <= 1).all())
    steps = windows.returns_to_go[:, :-1, 0] - windows.returns_to_go[:, 1:, 0]  # what a step earns: about 1 to 5
    assert 0 < float(steps.mean()) < 6


def test_the_experiment_measures_them_without_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "_drawn", lambda *_, **__: pytest.fail("recorded anew"))
    assert torch.equal(gating.measured_windows("hopper").states, recorded_windows("hopper", "measured").states)
    assert gating.probe_windows("hopper", gating.CONTEXT, 1, gating.PROBE_WINDOWS[1]) is not None


def test_other_sizes_and_tasks_have_none() -> None:
    assert recorded_windows("pointmaze", "measured") is None and recorded_windows("hopper", "probe_9") is None
    assert gating._kept("hopper", "measured", gating.CONTEXT + 1, gating.WINDOWS) is None


def test_what_was_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = recorded_windows("hopper", "measured")
    monkeypatch.setattr(recorded, "FOLDER", tmp_path / "recordings")
    assert recorded_windows("hopper", "measured") is None
    write_recording("made", {"one": kept, "two": kept})
    again = recorded_windows("made", "two")
    for field in fields(Windows):
        assert torch.equal(getattr(again, field.name), getattr(kept, field.name))
