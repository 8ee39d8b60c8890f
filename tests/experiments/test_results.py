"""The commands behind the committed result files, at a size that takes seconds, and the files themselves."""

import json
import sys

import numpy as np
import pytest

from dmm.data.collect import collect
from dmm.experiments import hopper, load_result, pointmaze


@pytest.fixture
def small(datasets_path, monkeypatch, tmp_path):
    """Both experiments on a short maze set, with a handful of updates and episodes."""
    collect("dmm/pointmaze/umaze-v0", transitions=600, workers=1, progress=False)
    monkeypatch.chdir(tmp_path)
    tiny = {"width": 8, "layers": 1, "batch_size": 4}
    monkeypatch.setattr(pointmaze, "STEPS", 2)
    monkeypatch.setattr(pointmaze, "EPISODES", 2)
    monkeypatch.setattr(
        pointmaze, "ENTRIES", {"dmm": pointmaze.Entry("dmm", tiny), "mamba": pointmaze.Entry("mamba", tiny)}
    )
    monkeypatch.setattr(hopper, "DATASET", "dmm/pointmaze/umaze-v0")
    monkeypatch.setattr(hopper, "STEPS", 2)
    monkeypatch.setattr(hopper, "KEEP", 1)
    monkeypatch.setattr(hopper, "EPISODES", 2)
    return tmp_path


def test_a_job_goes_on_where_it_stopped(small):
    job = pointmaze.Job("dmm", 0, small / "runs")
    row = pointmaze.train_and_evaluate(job)
    assert [score["target"] for score in row["scores"]] == [1.0, 0.0]
    assert pointmaze.train_and_evaluate(job) == row


def test_summary_is_mean_and_t_interval_over_seeds():
    def row(seed, score):
        scores = [{"target": target, "normalized_score": score} for target in pointmaze.TARGETS]
        return {"name": "dmm", "seed": seed, "scores": scores}

    first = pointmaze.summarize([row(0, 70.0), row(1, 80.0), row(2, 90.0)])[0]
    half = 4.302653 * 10 / np.sqrt(3)  # t quantile of two degrees of freedom
    assert (first["name"], first["target"], first["mean"], first["seeds"]) == ("dmm", 1.0, 80.0, 3)
    assert first["ci95"] == pytest.approx([80 - half, 80 + half], rel=1e-5)


def test_the_hopper_command_writes_its_file(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hopper", "--out", "hopper.json", "--seeds", "1", "--transitions", "600"])
    hopper.main()
    (run,) = json.loads((small / "hopper.json").read_text())["runs"]
    assert [checkpoint["step"] for checkpoint in run["checkpoints"]] == [1, 2]


def test_committed_point_maze_file_fits_the_code():
    stored = load_result("pointmaze")
    assert stored["settings"]["steps"] == pointmaze.STEPS
    assert stored["settings"]["entries"] == json.loads(json.dumps(pointmaze.describe_entries()))
    for each, again in zip(stored["summary"], pointmaze.summarize(stored["runs"]), strict=True):
        assert each["mean"] == pytest.approx(again["mean"])
        assert each["ci95"] == pytest.approx(again["ci95"])


def test_committed_hopper_file_fits_the_code():
    stored = load_result("hopper")
    assert stored["settings"]["steps"] == hopper.STEPS
    for run in stored["runs"]:
        assert [c["step"] for c in run["checkpoints"]] == list(range(hopper.KEEP, hopper.STEPS + 1, hopper.KEEP))
