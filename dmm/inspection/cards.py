"""What `dmm models` says of each model: sizes, weights, reach, loss and source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from dmm.data.windows import Windows
from dmm.inspection.reach import reach
from dmm.models.entry import Facts, Model, goal_columns
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Policy
from dmm.training import TrainConfig

HOPPER = Facts(state_size=11, action_size=3, env_id="Hopper-v5")
"""The data whose sizes weights are counted for."""
MAZE = Facts(state_size=29, action_size=8, env_id="AntMaze_UMaze-v5")
"""For models that want goals, which Hopper has none of."""


def cards(facts: Facts = HOPPER) -> Iterator[dict[str, Any]]:
    """One card for each model that lists show."""
    for model in MODELS.values():
        if not model.hidden:
            yield card(model, facts)


def card(model: Model, facts: Facts = HOPPER) -> dict[str, Any]:
    """A model at the sizes that all share, and at its authors' where there are such, for data of these facts."""
    facts = facts_for(model, facts)
    sizes = {name: sizes_of(model, facts, name) for name in ("frame", "published") if _has(model, name)}
    policy = fresh(model, sizes["frame"][0])
    windows = issubclass(policy.batch, Windows)
    return {
        "name": model.name,
        "description": model.description,
        "source": model.source,
        "loss": list(policy.terms),
        "batch": [field.name for field in dataclasses.fields(policy.batch)],
        "before": [stage.model for stage in model.before],
        "data": facts.env_id,
        "sizes": {name: dataclasses.asdict(config) | {"training": recipe} for name, (config, recipe) in sizes.items()},
        "weights": {name: weights_of(model, config) for name, (config, _) in sizes.items()},
        "reach": reach(policy, last=True).last() if windows else None,
        "official": model.official is not None,
    }


def facts_for(model: Model, facts: Facts = HOPPER) -> Facts:
    """These facts, or those of a maze where the model wants goals and data of these facts have none."""
    defaults = {field.name: field.default for field in dataclasses.fields(model.config)}
    return MAZE if defaults.get("goal_size") and goal_columns(facts) is None else facts


def fresh(model: Model, config: Any) -> Policy:
    """A policy with the weights that it has before its first update, of seed 0, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.policy(config).eval()


def sizes_of(model: Model, facts: Facts, name: str) -> tuple[Any, dict[str, Any]]:
    """The config at these sizes, and where the authors' recipe departs from `TrainConfig`."""
    config, recipe = read_changes({"sizes": name}, model, TrainConfig, facts)
    return model.config_for(facts, config), recipe


def _has(model: Model, sizes: str) -> bool:
    return sizes == "frame" or model.published is not None


def weights_of(model: Model, config: Any) -> int:
    """How many weights the policy of this config has, trained and not; counted without taking memory for them."""
    with torch.device("meta"):
        policy = model.policy(config)
    return sum(weight.numel() for weight in policy.parameters())


def line(made: dict[str, Any]) -> str:
    """A card in one line."""
    weights = " / ".join(f"{count:,}" for count in made["weights"].values())
    return f"{made['name']:16}{weights:>24}  {_reach(made['reach']):12}{made['description']}"


def _reach(spans: dict[str, Any] | None) -> str:
    """How many steps back the last action sees."""
    if spans is None:
        return "own"
    first = min((span[0] for span in spans.values() if span), default=0)
    return f"{-first + 1} steps"
