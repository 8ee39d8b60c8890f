"""What a Minari data set's `metadata.json` says, read as text from anywhere, before Minari acts on it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from minari.dataset.minari_storage import METADATA_FILE_NAME

from dmm.errors import InputError, whole_number
from dmm.fields import NAME_LIMIT, TEXT_LIMIT, Fields
from dmm.files import JSON_LIMIT, read_json

LARGEST_COUNT = 2**53
SPACE_LIMIT = 2**24
"""Numbers in one observation or action, pictures included."""
DEPTH_LIMIT = 16
"""Of dictionaries and tuples of spaces in one another."""
DTYPES = {
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
}


def read_metadata(data: Path) -> dict[str, Any]:
    """The content of `metadata.json` in a data set's folder `data`, with every entry that is used here checked.

    Raises:
        InputError: no ordinary file, too large, no JSON, or an entry of another type or beyond its limits.
        OSError: it is missing or cannot be read.
    """
    stored = read_json(data / METADATA_FILE_NAME)
    fields = Fields(f"{METADATA_FILE_NAME}: ", stored)
    fields.require("dataset_id", "total_episodes", "total_steps", "data_format", "minari_version")
    for name in ("dataset_id", "data_format", "minari_version"):
        if fields.text(name) is None:
            raise fields.wrong(name, "a text")
    for name in ("total_episodes", "total_steps"):
        if fields.whole(name, 0, LARGEST_COUNT) is None or not isinstance(stored[name], int):
            raise fields.wrong(name, "a whole number")
    for name in ("env_spec", "eval_env_spec"):
        fields.text(name, limit=TEXT_LIMIT)
    for name in ("ref_min_score", "ref_max_score"):
        fields.finite(name)
    for name in ("author", "author_email"):
        if not isinstance(stored.get(name), str):  # Minari takes a text for its letters
            fields.texts(name)
    for name in ("observation_space", "action_space"):
        if name in stored:
            _require_space(fields, name)
    if "dmm" in stored:
        _require_own(fields.part("dmm"))
    return fields.values  # type: ignore[no-any-return]


def _require_own(own: Fields) -> None:
    """What this package writes beside Minari's entries."""
    own.texts("observation_keys")
    own.text("rewards")
    own.finite("mean_return")
    own.mapping("environment")
    own.mapping("eval_environment")
    histories = own.values.get("histories")
    if histories is not None:
        if not isinstance(histories, list):
            raise own.wrong("histories", "a list of numbers of episodes")
        for count in histories:
            whole_number(f"{own.where}histories", count, 0, LARGEST_COUNT)


def _require_space(fields: Fields, name: str) -> None:
    text = fields.text(name, limit=JSON_LIMIT)
    try:
        space = json.loads(text or "")
    except (ValueError, RecursionError):
        raise fields.wrong(name, "a space as JSON") from None
    if _size(Fields(f"{fields.where}{name}.", space), DEPTH_LIMIT) > SPACE_LIMIT:
        raise InputError(f"{fields.where}{name}: more than {SPACE_LIMIT:,} numbers, which are not allowed")


def _size(space: Fields, depth: int) -> int:
    """How many numbers an element of the space has, as Minari will make it.

    Raises:
        InputError: no space of Minari's, or one that would be larger in memory than in the file.
    """
    space.require("type")
    kind = space.text("type")
    if kind in ("Dict", "Tuple") and depth:
        return sum(_size(part, depth - 1) for part in _parts(space, kind))
    if kind == "Box":
        if space.text("dtype") not in DTYPES:
            raise space.wrong("dtype", "a type of numbers")
        shape = _shape(space)
        for bound in ("low", "high"):
            _require_shape(space, bound, shape)
        return math.prod(shape)
    if kind == "Discrete":
        _required_whole(space, "n", 1)
        _required_whole(space, "start", -LARGEST_COUNT)
        return 1
    if kind in ("MultiDiscrete", "MultiBinary", "Text"):  # nothing here learns from them: Minari says what they are
        return _other(space, kind)
    raise space.wrong("type", "a kind of space that Minari stores")


def _parts(space: Fields, kind: str) -> list[Fields]:
    parts = space.values.get("subspaces")
    if not isinstance(parts, dict if kind == "Dict" else list) or len(parts) > NAME_LIMIT:
        raise space.wrong("subspaces", f"at most {NAME_LIMIT:,} spaces")
    named = parts.items() if isinstance(parts, dict) else enumerate(parts)
    return [Fields(f"{space.where}{name}.", part) for name, part in named]


def _required_whole(space: Fields, name: str, least: int) -> int:
    space.require(name)
    return whole_number(f"{space.where}{name}", space.values[name], least, LARGEST_COUNT)


def _shape(space: Fields) -> tuple[int, ...]:
    shape = space.values.get("shape")
    if not isinstance(shape, list) or len(shape) > 8:
        raise space.wrong("shape", "a list of at most 8 sizes")
    return tuple(whole_number(f"{space.where}shape", size, 0, SPACE_LIMIT) for size in shape)


def _require_shape(space: Fields, name: str, shape: tuple[int, ...]) -> None:
    """Bounds are stored number by number, so what they take in memory is what they take in the file."""
    try:
        values = np.array(space.values.get(name), dtype=np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        values = np.empty(0)
    if values.shape != shape:
        raise space.wrong(name, f"numbers of shape {list(shape)}")


def _other(space: Fields, kind: str) -> int:
    if kind == "MultiBinary":
        return _required_whole(space, "n", 1)
    if kind == "Text":
        _required_whole(space, "min_length", 0)
        return _required_whole(space, "max_length", 1)
    if space.text("dtype") not in DTYPES:
        raise space.wrong("dtype", "a type of numbers")
    sizes = [space.values.get("nvec"), space.values.get("start")]
    return sum(len(json.dumps(entry)) for entry in sizes)
