from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from minari.serialization import serialize_space

from dmm.data.metadata import read_metadata
from dmm.errors import InputError

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
GOOD: dict[str, Any] = {
    "dataset_id": "a/b-v0",
    "total_episodes": 1,
    "total_steps": 2,
    "data_format": "hdf5",
    "minari_version": "0.5.3",
    "observation_space": serialize_space(BOX),
}


def read(folder: Path, **changes: Any) -> Any:
    (folder / "metadata.json").write_text(json.dumps(GOOD | changes))
    return read_metadata(folder)


def space(**changes: Any) -> str:
    return json.dumps({"type": "Box", "dtype": "float32", "shape": [1], "low": [0], "high": [1]} | changes)


@pytest.mark.parametrize(
    "kind",
    [
        BOX,
        gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
        gym.spaces.Discrete(5, start=-1),
        gym.spaces.MultiDiscrete([2, 3]),
        gym.spaces.MultiBinary(4),
        gym.spaces.Text(9),
        gym.spaces.Dict({"a": BOX, "b": gym.spaces.Tuple((BOX, gym.spaces.Discrete(2)))}),
    ],
)
def test_every_space_that_minari_stores_is_read(tmp_path: Path, kind: gym.Space[Any]) -> None:
    assert read(tmp_path, action_space=serialize_space(kind))["total_steps"] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_episodes", 10**30),
        ("total_episodes", 1.0),
        ("total_episodes", True),
        ("dataset_id", None),
        ("env_spec", {}),
        ("ref_min_score", "low"),
        ("ref_max_score", float("inf")),
        ("author", 3),
        ("dmm", None),
        ("dmm", {"observation_keys": "observation"}),
        ("dmm", {"histories": [-1]}),
        ("dmm", {"mean_return": "x"}),
        ("action_space", None),
        ("action_space", "{"),
        ("action_space", "[" * 10**5),
        ("action_space", json.dumps({"type": "Lambda"})),
        ("action_space", space(shape=[10**9], low=0, high=1)),
        ("action_space", space(dtype="S1000000000")),
        ("action_space", space(dtype="O")),
        ("action_space", json.dumps({"type": "Discrete", "n": 10**30, "start": 0})),
    ],
)
def test_an_entry_of_another_type_or_size_is_named(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^metadata\.json: {name}") as caught:
        read(tmp_path, **{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_spaces_in_one_another_have_an_end(tmp_path: Path) -> None:
    nested: Any = json.loads(space())
    for _ in range(100):
        nested = {"type": "Tuple", "subspaces": [nested]}
    with pytest.raises(InputError, match="action_space"):
        read(tmp_path, action_space=json.dumps(nested))
