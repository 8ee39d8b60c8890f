"""The models that `dmm train` takes, by name: what the models' files say of themselves at their end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from dmm.errors import InputError, finite_number, require_choice, true_or_false, whole_number
from dmm.models import (
    ad,
    at,
    bc,
    conservative_q,
    dc,
    dm,
    dm_multigrained,
    dmh,
    dmm,
    dpt,
    ds4,
    dt,
    edt,
    hdt,
    mamba,
    qldt,
    rvs,
    starformer,
    value_based,
    waypoints,
    wt,
)
from dmm.models.entry import Facts, Model

__all__ = ["MODELS", "Facts", "Model", "find_model", "read_changes", "split_changes"]

Sizes = Literal["frame", "published"]
ENTRIES = (
    *(dmm.MODEL, dmm.PAPER, dmm.RELEASED, mamba.MODEL),
    *(dt.MODEL, dc.MODEL, dc.WITHOUT_ACTIONS, dm.MODEL, dm_multigrained.MODEL, ds4.MODEL, starformer.MODEL),
    *(dmh.MODEL, hdt.MODEL, ad.MODEL, ad.MAMBA_MODEL, at.MODEL, dpt.MODEL),
    *(edt.MODEL, conservative_q.MODEL, qldt.MODEL),
    *(rvs.RETURNS, rvs.GOALS, bc.MODEL, bc.BEST_TENTH),
    *(wt.MODEL, waypoints.MODEL),
    *(value_based.TD3BC_MODEL, value_based.CQL_MODEL, value_based.IQL_MODEL),
)
MODELS: dict[str, Model] = {model.name: model for model in ENTRIES}


def find_model(name: str) -> Model:
    """The entry of a model name.

    Raises:
        InputError: no such model.
    """
    if name not in MODELS:
        shown = ", ".join(known for known, model in MODELS.items() if not model.hidden)
        raise InputError(f"model: got {name!r}, allowed are {shown}")
    return MODELS[name]


def read_changes(
    changes: Mapping[str, Any], model: Model, training: type, facts: Facts
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`split_changes` for data of which these facts are known, with what `sizes` stands for.

    `sizes=frame`, which need not be said, takes the sizes that all models share, so that they can be compared;
    `sizes=published` the authors' own, for the data's domain, with their recipe. Other changes come on top of either.
    A model's own defaults for its recipe lie below both.

    Raises:
        InputError: as `split_changes`, or sizes that are neither.
    """
    plain = dict(changes)
    sizes = plain.pop("sizes", "frame")
    require_choice("sizes", sizes, Sizes)
    if sizes == "frame":
        config, recipe = split_changes(plain, model, training)
        return config, {**model.recipe(facts), **recipe}
    if model.published is None:
        raise InputError(f"sizes: got 'published' for {model.name}, which has no sizes but its own; allowed is frame")
    known = {field.name for field in dataclasses.fields(training)}
    given = ("state_size", "action_size")  # by the data
    base = {name: value for name, value in model.published(facts).items() if name not in given}
    config, recipe = split_changes(plain, model, training)
    return (
        {name: value for name, value in base.items() if name not in known} | config,
        {**model.recipe(facts), **{name: value for name, value in base.items() if name in known}, **recipe},
    )


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
    allowed = sorted({*owners, "sizes"} - fixed)
    sorted_changes: dict[type, dict[str, Any]] = {model.config: {}, training: {}}
    for name, value in changes.items():
        if name not in allowed or name not in owners:
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
