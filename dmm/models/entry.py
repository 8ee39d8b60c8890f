"""How a name becomes a policy: what a model's file says of it at its end, for `dmm.models.registry` to collect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dmm.data.observations import GOAL_KEYS
from dmm.data.scores import family
from dmm.data.trajectories import Trajectories
from dmm.data.windows import WINDOWS, Sampler
from dmm.layers.transformer import GPT_BLOCK, GPT_PRODUCTS
from dmm.policy import Policy

if TYPE_CHECKING:
    from typing_extensions import Self

Domain = Literal["mujoco", "antmaze", "kitchen"]
MAZE_GOAL = 2
"""Numbers of a goal in a maze."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the data decide about a model's config."""

    state_size: int
    action_size: int
    env_id: str = ""
    longest: int = 1000  # steps of the longest episode
    transitions: int = 1_000_000
    observation_keys: tuple[str, ...] = ()  # entries of the environment's dictionary that make the state, in order
    returns_to_go: tuple[float, ...] = ()  # the smallest and the largest, if they are known and finite
    best_end: tuple[float, ...] = ()  # the last state of the episode of the largest return, if it is known
    returns: tuple[float, ...] = ()  # the smallest and the largest of an episode, if they are known

    @classmethod
    def of(cls, trajectories: Trajectories) -> Self:
        """Those of these data."""
        t, returns, to_go = trajectories, trajectories.returns(), trajectories.returns_to_go()
        best = int(returns.argmax())
        reach = float(to_go.min(initial=np.inf)), float(to_go.max(initial=-np.inf))
        ends = t.observations[t.starts + t.lengths - 1] if t.last_observations is None else t.last_observations
        return cls(
            state_size=t.state_size,
            action_size=t.action_size,
            env_id=t.env_id,
            longest=int(t.lengths.max(initial=1)),
            transitions=t.transitions,
            observation_keys=t.observation_keys,
            returns_to_go=reach if np.isfinite(reach).all() else (),
            best_end=tuple(ends[best].tolist()),
            returns=(float(returns.min()), float(returns.max())),
        )

    @property
    def return_range(self) -> float:
        """Of the best episode's return over that of the worst; 0 if it is not known."""
        return self.returns[1] - self.returns[0] if self.returns else 0.0


def domain(env_id: str) -> Domain:
    """Which of D4RL's domains an environment is like: mazes, the kitchen, and MuJoCo's locomotion for all others."""
    if family(env_id) == "antmaze" or env_id.startswith(("AntMaze_", "PointMaze_")):
        return "antmaze"
    return "kitchen" if family(env_id) == "kitchen" else "mujoco"


def goal_columns(facts: Facts) -> tuple[int, int] | None:
    """Where a state says which goal is reached in it, as first column and number of columns; None if it does not.

    In mazes that is a place, x and y: `achieved_goal`, or the first numbers of a point's `observation`, or those of
    states that no dictionary gave, as in D4RL. In the kitchen, and where no environment is known, it is the whole
    state.
    """
    where, keys = domain(facts.env_id), facts.observation_keys
    if where == "kitchen" or not facts.env_id:
        return 0, facts.state_size
    if where != "antmaze":
        return None
    if not keys:
        return 0, MAZE_GOAL
    point = facts.env_id.startswith("PointMaze_")
    shown = next((key for key in ("achieved_goal", "observation")[: 1 + point] if key in keys), None)
    if shown is None or not set(keys) <= set(GOAL_KEYS):
        return None
    sizes = dict.fromkeys(keys, MAZE_GOAL)
    if "observation" in keys:
        sizes["observation"] += facts.state_size - sum(sizes.values())
    return sum(sizes[key] for key in keys[: keys.index(shown)]), MAZE_GOAL


Translated = Callable[[Tensor], Tensor]
Source = str | tuple[str, Translated]
"""The authors' key of a weight; where theirs is stored otherwise, with what turns it into ours."""


def transposed(tensor: Tensor) -> Tensor:
    """`(in, out)` -> `(out, in)`: what GPT-2's `Conv1D` stores as the weight of a linear layer."""
    return tensor.mT


def gpt_sources(layers: int, ours: str, theirs: str) -> dict[str, Source]:
    """The keys of GPT-2's code for `GPTLayer`s, whose names begin with these and the layer's number."""
    found: dict[str, Source] = {}
    for i in range(layers):
        for own, other in (GPT_BLOCK | GPT_PRODUCTS).items():
            here, there = f"{ours}{i}.{own}", f"{theirs}{i}.{other}"
            found[f"{here}.bias"] = f"{there}.bias"
            found[f"{here}.weight"] = (f"{there}.weight", transposed) if own in GPT_PRODUCTS else f"{there}.weight"
    return found


@dataclass(frozen=True, kw_only=True)
class Official:
    """How the authors' weights become ours.

    `config` turns their sizes into our config; `sources` names, for a policy of ours, the source of each of its
    weights; `unused` says which of their keys no output depends on, so that they may be there or not. `notes` are what
    an error adds to a key that is missing. `module` makes what the weights are of, where that is not the policy.
    `named` is given weights and sizes as they came, and returns both as `sources` and `config` name them. `discrete`
    says that the authors' actions are.
    """

    config: Callable[[Mapping[str, Any]], Any]
    sources: Callable[[Any], Mapping[str, Source]]
    unused: Callable[[str], bool] = lambda key: False
    notes: Mapping[str, str] = field(default_factory=dict)
    module: Callable[[Any], nn.Module] | None = None
    named: Callable[[dict[str, Tensor], Mapping[str, Any]], tuple[dict[str, Tensor], Mapping[str, Any]]] | None = None
    discrete: bool = False


@dataclass(frozen=True)
class Stage:
    """A model that is trained before another, on the same data.

    `changes` turns the other's config into fields of this one's config and of `TrainConfig`, `steps` among them.
    """

    model: str
    changes: Callable[[Any], Mapping[str, Any]]


class Learner(Protocol):
    """What trains a policy by updates of its own, where they are not AdamW's on the policy's loss.

    It changes the policy's weights where they lie, draws from torch's default generator alone, and goes on to the same
    numbers when its tensors, the policy's weights and that generator are put back.
    """

    def update(self, batch: Any, made: int, rate: float, done: float) -> Mapping[str, float]:
        """One update on a batch of the model's sampler.

        Args:
            batch: fields `(b, ...)`, on the policy's device.
            made: updates before this one.
            rate: the learning rate that the recipe has for this update.
            done: the part of the run that lies behind, 0 to 1.

        Returns:
            The loss's terms by the names in the policy's `terms`; one that this update was not made for has its last
            value.
        """

    def tensors(self) -> Mapping[str, Tensor]:
        """All that it goes on with beside the policy's weights, by name; not copies, but what updates change."""


def only(weight: Tensor) -> Tensor:
    """`(1, ...)` -> `(...)`: an axis of one that the authors have and we have not; any other stays as it is."""
    return weight[0] if weight.ndim and len(weight) == 1 else weight


def no_more(facts: Facts) -> dict[str, Any]:
    """The config's own defaults."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Model:
    """An entry of the registry.

    Args:
        name: what `dmm train --model` takes.
        policy: a config's policy.
        config: the class of configs, a frozen dataclass in which every field but the sizes has a default.
        description: one line.
        source: paper and code that the model is equal to, or how it departs.
        defaults: fields of the config that the data decide.
        published: fields of the config and of `TrainConfig` with the authors' values for these data: what
            `sizes=published` stands for.
        fit_rtg_scale: whether training may set `rtg_scale` by the size of the data's returns.
        recipe: fields of `TrainConfig` whose defaults are others for this model.
        sampler: how batches are drawn.
        learner: what trains the policy, made of it and a `TrainConfig`, where that is not AdamW on its `loss`.
        before: what is trained first, each an ordinary run in the run's folder. The policies are given to `prepare`,
            and to the policy's `adopt`, by which what they learned travels in its weights.
        prepare: the data to train on, from those at hand and the policies of `before`.
        official: how the authors' weights are read.
        hidden: a first stage of another model, which lists do not show.
        in_context: it learns within a task, over several episodes; comparisons over single ones leave it out.
    """

    name: str
    policy: Callable[[Any], Policy]
    config: type
    description: str
    source: str = ""
    defaults: Callable[[Facts], Mapping[str, Any]] = no_more
    published: Callable[[Facts], Mapping[str, Any]] | None = None
    fit_rtg_scale: bool = True
    recipe: Callable[[Facts], Mapping[str, Any]] = no_more
    sampler: Callable[[Trajectories, Any, torch.device | str], Sampler] = WINDOWS
    learner: Callable[[Any, Any], Learner] | None = None
    before: tuple[Stage, ...] = ()
    prepare: Callable[[Trajectories, Any, Sequence[Policy]], Trajectories] | None = None
    official: Official | None = None
    hidden: bool = False
    in_context: bool = False

    def make_config(self, state_size: int, action_size: int, env_id: str = "", **changes: Any) -> Any:
        """The config for data of these sizes, but for `changes`; see `Facts`."""
        return self.config_for(Facts(state_size=state_size, action_size=action_size, env_id=env_id), changes)

    def config_for(self, facts: Facts, changes: Mapping[str, Any]) -> Any:
        """The config for data of which this is known, but for `changes`."""
        sizes = {"state_size": facts.state_size, "action_size": facts.action_size}
        return self.config(**{**sizes, **self.defaults(facts), **changes})
