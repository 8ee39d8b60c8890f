from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmm.errors import InputError
from dmm.models.dmm import DMMConfig
from dmm.training import TrainConfig
from dmm.training.record import read_log, read_record, require_readable

DATASET = {
    "id": "a/b-v0",
    "fingerprint": "0",
    "env_id": "",
    "env_spec": None,
    "observation_keys": [],
    "reference": [0, 9],
}
INFO: dict[str, Any] = {
    "model": "dmm",
    "config": {"state_size": 4, "action_size": 2, "rtg_scale": 1},
    "training": {"steps": 10},
    "dataset": DATASET,
}


def read(folder: Path, **parts: Any) -> Any:
    (folder / "run.json").write_text(json.dumps(INFO | parts))
    return read_record(folder, TrainConfig)


def test_what_earlier_versions_did_not_say_gets_its_default(tmp_path: Path) -> None:
    record = read(tmp_path)
    assert record.config == DMMConfig(state_size=4, action_size=2, rtg_scale=1)
    assert record.training == TrainConfig(steps=10)
    assert record.info["config"]["window"] == 6 and record.info["training"]["seed"] == 0
    assert record.info["dataset"] == DATASET | {
        "reference": [0.0, 9.0],
        "environment": None,
        "discrete_actions": False,
        "action_bounds": None,
        "observation_offset": None,
        "step_limit": None,
        "best_share": 1.0,
        "delayed_rewards": False,
        "transitions": 0,
        "mean_return": 0.0,
        "max_return": 0.0,
    }


def test_bounds_offsets_limits_and_beginnings_are_read(tmp_path: Path) -> None:
    more = {"action_bounds": [[-2, 0], [2, 0.5]], "observation_offset": [0, 1.7e9, 0, 0], "step_limit": 20}
    origin = {
        "run": "r",
        "model": "dmm",
        "seed": 1,
        "step": 5,
        "dataset": {},
        "discrete_actions": False,
        "weights": "0",
    }
    info = read(tmp_path, dataset=DATASET | more, first_steps=10, **{"from": origin}).info
    assert {name: info["dataset"][name] for name in more} == more
    assert info["first_steps"] == 10 and info["from"] == origin


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action_bounds", [1]),
        ("action_bounds", [[-1, "x"], [1, 1]]),
        ("action_bounds", 3),
        ("observation_offset", {"a": 1}),
        ("observation_offset", [float("inf")]),
        ("step_limit", 0),
        ("step_limit", "many"),
    ],
)
def test_bounds_offsets_and_limits_of_other_types(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"run\.json: dataset\.{name}"):
        read(tmp_path, dataset=DATASET | {name: value})


@pytest.mark.parametrize("value", [3, [], {"run": 1}, {"run": "r", "model": "dmm"}])
def test_beginnings_of_other_types(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"run\.json: from"):
        read(tmp_path, **{"from": value})


def test_what_this_version_does_not_know_is_kept(tmp_path: Path) -> None:
    assert read(tmp_path, versions={"python": "4"}).info["versions"] == {"python": "4"}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("config", "width", 10**9),
        ("config", "width", None),
        ("config", "layers", 10**9),
        ("config", "context", 10**6),
        ("config", "state_size", "4"),
        ("config", "dropout", float("nan")),
        ("config", "share_dsm", 1),
        ("config", "residual", {}),
        ("training", "steps", 1e300),
        ("training", "seed", -1),
        ("dataset", "id", "\ud800"),
        ("dataset", "env_spec", {}),
        ("dataset", "observation_keys", "observation"),
        ("dataset", "reference", [1]),
        ("dataset", "reference", [0, float("inf")]),
        ("dataset", "max_return", "x"),
        ("dataset", "discrete_actions", "no"),
        ("dataset", "environment", []),
    ],
)
def test_a_field_of_another_type_or_size_is_named_with_its_file(
    tmp_path: Path, part: str, name: str, value: Any
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, **{part: INFO[part] | {name: value}})
    assert f"{tmp_path / 'run.json'}: {part}." in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"[" * 10**6, b'{"model": ' + b"9" * 10**5 + b"}", b"\xff", b"", b"{}" * 2, b'{"a": 1, "a": 2}']
)
def test_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        read_record(tmp_path, TrainConfig)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_devices_and_giants_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    os.mkfifo(file)
    with pytest.raises(InputError, match="no ordinary file"):
        read_record(tmp_path, TrainConfig)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="no ordinary file"):
        read_record(tmp_path, TrainConfig)
    file.unlink()
    file.touch()
    os.truncate(file, 2**31)
    with pytest.raises(InputError, match="allowed are"):
        read_record(tmp_path, TrainConfig)


def test_a_run_that_could_not_be_read_back_is_not_begun() -> None:
    with pytest.raises(InputError, match=r"^context: got 5000, allowed is at most 4096"):
        require_readable(DMMConfig(state_size=1, action_size=1, context=5000))


class TestLog:
    HEAD = "step,loss,learning_rate,seconds\n"

    def test_columns(self, tmp_path: Path) -> None:
        (tmp_path / "log.csv").write_text(self.HEAD + "1,0.5,1e-4,0.1\n2,0.25,1e-4,0.2\n")
        log = read_log(tmp_path / "log.csv")
        np.testing.assert_array_equal(log["loss"], [0.5, 0.25])
        assert list(log) == ["step", "loss", "learning_rate", "seconds"]

    @pytest.mark.parametrize(
        "text",
        [
            *("", "x\n", HEAD, HEAD + "1,nan,1,1\n", HEAD + "1,1\n", HEAD + "a,b,c,d\n", HEAD + "2,1,1,1\n1,1,1,1\n"),
            *("\0", HEAD + '1,"' + "x" * 200_000),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "log.csv").write_text(text)
        with pytest.raises(InputError, match=r"log\.csv is missing or damaged") as caught:
            read_log(tmp_path / "log.csv")
        assert "\n" not in str(caught.value)
