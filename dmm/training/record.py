"""What a run's `run.json` and `log.csv` say, read as text from anywhere: every field with its type and its limits."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmm.errors import InputError
from dmm.fields import TEXT_LIMIT, Fields
from dmm.files import read_file, read_json
from dmm.models.registry import find_model
from dmm.policy import Policy

LOG_COLUMNS = ("step", "loss", "learning_rate", "seconds")
MOST_COLUMNS = 32
"""Of a log: a loss has a handful of terms."""
LOG_LIMIT = 32 * 2**20
"""Bytes of a log; 100,000 updates take 60,000."""
SIZE_LIMITS = {
    "context": 4096,
    "layers": 256,
    "width": 2**14,
    "expand": 64,
    "ssm_state": 4096,
    "conv_width": 1024,
    "state_size": 2**20,
    "action_size": 2**14,
    "max_timestep": 2**22,
    "batch_size": 2**20,
}
"""The largest sizes of a run, far above those of any paper. What a size asks of memory is compared with the stored
weights before a policy is built; these bound what no weight shows, and the time that the comparison takes."""


@dataclass(frozen=True)
class RunRecord:
    """The content of a `run.json`, with what runs of earlier versions did not say yet."""

    model: str
    config: Any  # the model's config dataclass
    training: Any
    info: dict[str, Any]  # all of it as plain values, entries that this version does not know included

    def policy(self) -> Policy:
        """A new policy of this model and config."""
        policy = find_model(self.model).policy(self.config)
        policy.discrete_actions = self.info["dataset"]["discrete_actions"]
        return policy


def require_readable(*configs: Any) -> None:
    """Passes when a run with these configs can be read back: no size is beyond `SIZE_LIMITS`.

    Raises:
        InputError: one is; the message names it.
    """
    for config in configs:
        for name, most in SIZE_LIMITS.items():
            if getattr(config, name, 0) > most:
                raise InputError(f"{name}: got {getattr(config, name)}, allowed is at most {most}")


def read_record(folder: Path, training: type) -> RunRecord:
    """What `run.json` in a run's folder says.

    Args:
        folder: of the run.
        training: the dataclass of its part of that name.

    Raises:
        InputError: it is missing, no ordinary file, too large, no JSON, or a field is missing, of another type or
            beyond its limits.
    """
    file = folder / "run.json"
    try:
        stored = read_json(file)
    except FileNotFoundError:
        raise InputError(f"run: no run at {folder} ({file.name} is missing)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"run: {file} cannot be read ({error})") from error
    fields = Fields(f"run: {file}: ", stored)
    fields.require("model", "config", "training", "dataset")
    try:
        model = find_model(fields.text("model") or "")
    except InputError as error:
        raise InputError(f"{fields.where}{error}") from None
    config = fields.part("config").config(model.config, SIZE_LIMITS)
    trained = fields.part("training").config(training, SIZE_LIMITS)
    parts = {
        "config": dataclasses.asdict(config),
        "training": dataclasses.asdict(trained),
        "dataset": _dataset(fields.part("dataset")),
        **_beginnings(fields),
    }
    return RunRecord(str(fields.text("model")), config, trained, {**stored, **parts})


def _beginnings(fields: Fields) -> dict[str, Any]:
    """What a run that was trained further, or from another's weights, says of how it began."""
    known: dict[str, Any] = {}
    if fields.values.get("first_steps") is not None:
        known["first_steps"] = fields.whole("first_steps", 1)
    if fields.values.get("from") is not None:
        origin = fields.part("from")
        origin.require("run", "model", "seed", "step", "dataset", "discrete_actions", "weights")
        texts = {name: origin.text(name, "", TEXT_LIMIT) for name in ("run", "model", "weights")}
        numbers = {name: origin.whole(name, 0) for name in ("seed", "step")}
        more = {"dataset": origin.mapping("dataset"), "discrete_actions": origin.flag("discrete_actions")}
        known["from"] = {**origin.values, **texts, **numbers, **more}
    return known


def _dataset(fields: Fields) -> dict[str, Any]:
    """The data set of a run as plain values."""
    fields.require("id", "fingerprint", "env_id", "env_spec", "observation_keys", "reference")
    known = {
        "id": fields.text("id", ""),
        "fingerprint": fields.text("fingerprint", ""),
        "env_id": fields.text("env_id", ""),
        "env_spec": fields.text("env_spec", limit=TEXT_LIMIT),
        "observation_keys": list(fields.texts("observation_keys")),
        "environment": fields.mapping("environment"),
        "discrete_actions": fields.flag("discrete_actions"),
        "action_bounds": _bounds(fields),
        "observation_offset": fields.numbers("observation_offset", SIZE_LIMITS["state_size"]),
        "step_limit": fields.whole("step_limit", 1),
        "best_share": fields.finite("best_share") or 1.0,
        "delayed_rewards": fields.flag("delayed_rewards"),
        "reference": _reference(fields),
        "transitions": fields.whole("transitions", 0, default=0),
        "mean_return": fields.finite("mean_return") or 0.0,
        "max_return": fields.finite("max_return") or 0.0,
    }
    return {**fields.values, **known}


def _bounds(fields: Fields) -> list[list[float] | None] | None:
    """What actions of -1 and of 1 stand for."""
    pair = fields.values.get("action_bounds")
    if pair is None:
        return None
    if not isinstance(pair, list) or len(pair) != 2:
        raise fields.wrong("action_bounds", "null or a list of the lowest and one of the highest actions")
    sides = Fields(f"{fields.where}action_bounds.", {"low": pair[0], "high": pair[1]})
    return [sides.numbers(name, SIZE_LIMITS["action_size"]) for name in ("low", "high")]


def _reference(fields: Fields) -> list[float] | None:
    pair = fields.values["reference"]
    if pair is None:
        return None
    if not isinstance(pair, list) or len(pair) != 2:
        raise fields.wrong("reference", "null or the returns of a random and of an expert policy")
    low, high = (Fields(f"{fields.where}reference.", dict(enumerate(pair))).finite(i) for i in (0, 1))  # type: ignore[arg-type]
    if low is None or high is None:
        raise fields.wrong("reference", "null or two returns")
    return None if low == high else [low, high]  # no score lies between equal ones


def read_log(file: Path) -> dict[str, np.ndarray]:
    """The columns of a run's `log.csv` by name, `(rows,)` float64 each: step, loss, learning_rate, seconds, and the
    terms of a loss that has several.

    Raises:
        InputError: it is missing, no ordinary file, too large, without rows, or holds something else.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_file(file, LOG_LIMIT).decode())))
        names = rows[0]
        if tuple(names[: len(LOG_COLUMNS)]) != LOG_COLUMNS or len(set(names)) < len(names) or len(names) > MOST_COLUMNS:
            raise ValueError(f"its columns are not {', '.join(LOG_COLUMNS)} and the terms of the loss")
        table = np.array([[float(value) for value in row] for row in rows[1:]])
        if table.ndim != 2 or table.shape[1] != len(names) or not np.isfinite(table).all():
            raise ValueError(f"its rows are not {len(names)} finite numbers each")
        if not (np.diff(table[:, 0], prepend=0) > 0).all():
            raise ValueError("its steps do not rise")
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise InputError(f"run: {file} is missing or damaged ({error})") from error
    return dict(zip(names, table.T, strict=True))
