"""The models that `dmm train` takes, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dmm.data.scores import family
from dmm.errors import InputError, finite_number, true_or_false, whole_number
from dmm.models.dmm import DecisionMetaMamba, DMMConfig, Domain
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.mamba import MambaConfig, MambaPolicy
from dmm.policy import Policy


@dataclass(frozen=True)
class Model:
    """How a name becomes a policy.

    `make_config(state_size, action_size, env_id, **changes)` returns the config dataclass that `policy` is built from.
    """

    policy: Callable[[Any], Policy]
    config: type
    make_config: Callable[..., Any]
    description: str
    fit_rtg_scale: bool = True  # whether training may set `rtg_scale` by the size of the data's returns


def _dmm(state_size: int, action_size: int, env_id: str, **changes: Any) -> DMMConfig:
    return DMMConfig(state_size=state_size, action_size=action_size, **changes)


def _paper(state_size: int, action_size: int, env_id: str, **changes: Any) -> DMMConfig:
    return DMMConfig.paper(state_size, action_size, **changes)


def _released(state_size: int, action_size: int, env_id: str, **changes: Any) -> DMMConfig:
    maze = family(env_id) == "antmaze" or env_id.startswith(("AntMaze_", "PointMaze_"))
    domain: Domain = "antmaze" if maze else "kitchen" if family(env_id) == "kitchen" else "mujoco"
    return DMMConfig.released(state_size, action_size, domain=domain, **changes)


def _mamba(state_size: int, action_size: int, env_id: str, **changes: Any) -> MambaConfig:
    return MambaConfig(state_size=state_size, action_size=action_size, **changes)


def _dt(state_size: int, action_size: int, env_id: str, **changes: Any) -> DTConfig:
    return DTConfig(state_size=state_size, action_size=action_size, **changes)


MODELS: dict[str, Model] = {
    "dmm": Model(DecisionMetaMamba, DMMConfig, _dmm, "Decision MetaMamba, this package's defaults"),
    "dmm-paper": Model(DecisionMetaMamba, DMMConfig, _paper, "Decision MetaMamba as the paper's text has it", False),
    "dmm-released": Model(
        DecisionMetaMamba, DMMConfig, _released, "Decision MetaMamba as the authors' code runs it", False
    ),
    "mamba": Model(MambaPolicy, MambaConfig, _mamba, "stock Mamba blocks in the same frame"),
    "dt": Model(DecisionTransformer, DTConfig, _dt, "Decision Transformer, in the sizes of the frame"),
}


def find_model(name: str) -> Model:
    """The entry of a model name.

    Raises:
        InputError: no such model.
    """
    if name not in MODELS:
        raise InputError(f"model: got {name!r}, allowed are {', '.join(MODELS)}")
    return MODELS[name]


def split_changes(changes: Mapping[str, Any], model: Model, training: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort `field=value` changes into those of the model's config and those of the training config.

    Values may be text, as they come from a command line; they are read as the field's type.

    Raises:
        InputError: a field that neither has, or text that is not of the field's type.
    """
    fixed = {"state_size", "action_size", "steps", "seed"}  # given by the data or by arguments of their own
    owners = {
        field.name: (config, field) for config in (model.config, training) for field in dataclasses.fields(config)
    }
    allowed = sorted(set(owners) - fixed)
    sorted_changes: dict[type, dict[str, Any]] = {model.config: {}, training: {}}
    for name, value in changes.items():
        if name not in allowed:
            raise InputError(f"set: no field {name!r}, allowed are {', '.join(allowed)}")
        owner, field = owners[name]
        sorted_changes[owner][name] = _parse(name, value, type(field.default))
    return sorted_changes[model.config], sorted_changes[training]


def _parse(name: str, value: Any, kind: type) -> Any:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, str) and kind is bool:
        if value.lower() not in words:
            raise InputError(f"{name}: got {value!r}, allowed are true and false")
        return words[value.lower()]
    try:
        return _as(kind, name, value)
    except ValueError:
        article = "an" if kind is int else "a"
        raise InputError(f"{name}: got {value!r}, allowed is {article} {kind.__name__}") from None


def _as(kind: type, name: str, value: Any) -> Any:
    """`value`, which may be text or a number of numpy's, as `kind`; raises ValueError where it is none."""
    if kind is str:
        if not isinstance(value, str):
            raise ValueError
        return str(value)
    if kind is bool:
        return true_or_false(name, value)
    number = float(value) if isinstance(value, str) else value
    if kind is float:
        return number if isinstance(number, float) else finite_number(name, number)
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else whole_number(name, number, None)
