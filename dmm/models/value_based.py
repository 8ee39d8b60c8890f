"""Value-based methods, trained by d3rlpy: TD3+BC, CQL and IQL, beside which sequence models are usually shown.

    Q(s, a) <- r + gamma (1 - ended) V(s')      two critics, the lower of which counts; targets follow slowly
    V(s') = Q(s', actor(s'))                    td3bc: with clipped noise on the action; cql: without
    V(s') = an expectile of Q(s', a)            iql: over actions of the data alone
    td3bc   minimises  -alpha Q(s, actor(s)) / mean |Q|  +  |actor(s) - a|^2,  every other update
    cql     adds  weight (log sum_a exp Q(s, a) - Q(s, a of the data))  to the critics' loss
    iql     maximises  exp(beta (Q - V)) log p(a | s),  the factor at most `largest_weight`

What acts is an MLP of the z-scored state, `tanh(W x + b)`: the actor itself in td3bc, the mean of its Gaussian in iql
and the mode of its squashed one in cql, as d3rlpy's `predict`. It is all that evaluation needs, so that a run is
evaluated where d3rlpy is not installed. Critics, targets and optimizers are the learner's
(`dmm.models.d3rlpy_learner`), and lie beside the actor in the checkpoint.

Rewards: mazes pay 1 at the goal, and learning wants -1 on the way there; without that shift IQL stays at zero.

Sources: Fujimoto and Gu 2021, arXiv 2106.06860; Kumar et al. 2020, arXiv 2006.04779; Kostrikov et al. 2021, arXiv
2110.06169. Values for locomotion are those of d3rlpy's reproductions, for mazes those of CORL's configs, and for the
kitchen, which neither has, IQL's paper's and else those for locomotion. Departures: CQL's weight is 10, as d3rlpy has
it for medium data, for all of locomotion, as CORL has it; of CORL's settings for single data sets of IQL only Hopper's
slow targets are kept, for all of Hopper's data; CORL's cut of CQL's difference at -200 is left out; states are divided
by their deviation + 0.001 in all, as in CORL.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.scores import family
from dmm.data.transitions import transitions
from dmm.data.windows import TransitionWindows
from dmm.errors import InputError
from dmm.models.d3rlpy_learner import LearnCQL, LearnIQL, LearnTD3BC
from dmm.models.entry import Facts, Model, domain
from dmm.policy import Policy

EPSILON = 1e-3
"""What is added to the deviations of states."""
RETURN_RANGE = 1000.0
"""Between the best and the worst episode, to which IQL scales the rewards of locomotion."""


@dataclass(frozen=True, kw_only=True)
class ValueBasedConfig:
    """What the three have in common."""

    state_size: int  # s
    action_size: int  # a
    width: int = 256  # of each hidden layer, of actor, critics and values
    layers: int = 2  # hidden ones
    discount: float = 0.99  # of a reward one step later
    target_rate: float = 0.005  # part of a critic that its target takes over in each update
    actor_rate: float = 1.0  # the actor's learning rate in those of the critics, which have the recipe's
    reward_scale: float = 1.0  # what rewards are multiplied by
    reward_shift: float = 0.0  # what is added to them then
    standardise: bool = True  # whether states are z-scored
    context: ClassVar[int] = 1  # it sees one time step

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "width", "layers")
        self.require_within("discount", 0, 1)
        self.require_within("target_rate", 0, 1)
        self.require_within("actor_rate", 0)
        if not self.reward_scale > 0:
            raise InputError(f"reward_scale: got {self.reward_scale:g}, allowed is a positive number")

    def require_within(self, name: str, least: float, most: float = float("inf")) -> None:
        """Raise InputError unless a field is from `least` to `most`."""
        value = getattr(self, name)
        if not least <= value <= most:
            bounds = f"{least:g} or more" if most == float("inf") else f"{least:g} to {most:g}"
            raise InputError(f"{name}: got {value:g}, allowed is {bounds}")


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(ValueBasedConfig):
    """TD3 with a term that clones the data's actions."""

    alpha: float = 2.5  # weight of the value against cloning
    noise: float = 0.2  # deviation of the noise on the target's action
    noise_clip: float = 0.5  # its largest size
    actor_every: int = 2  # critics' updates for one of the actor and of all targets

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "actor_every")
        for name in ("alpha", "noise", "noise_clip"):
            self.require_within(name, 0)


@dataclass(frozen=True, kw_only=True)
class CQLConfig(ValueBasedConfig):
    """Critics that are pushed down where the data have no actions."""

    layers: int = 3
    actor_rate: float = 1 / 3  # of the entropy's temperature, too
    weight: float = 10.0  # of the conservative loss
    sampled_actions: int = 10  # of the policy now, of the policy a step later, and uniform: as many each
    gap: float = 0.0  # a conservative loss above it raises a further weight, one below lowers it; 0 is without
    max_backup: bool = False  # whether targets take the best of sampled actions instead of the policy's mode

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "sampled_actions")
        for name in ("weight", "gap"):
            self.require_within(name, 0)


@dataclass(frozen=True, kw_only=True)
class IQLConfig(ValueBasedConfig):
    """Values that are learned from the data's actions alone, and cloning of those that are better than expected.

    With `cosine` the actor stands still once the run is as long as it was first planned: trained further, only critics
    move.
    """

    expectile: float = 0.7  # of Q that V stands for; 0.5 is the mean
    beta: float = 3.0  # how much an advantage counts in cloning
    largest_weight: float = 100.0  # of an action in cloning
    cosine: bool = True  # whether the actor's learning rate falls to zero over the run, as a cosine
    dropout: float = 0.0  # in the actor, behind each hidden layer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_within("expectile", 0, 1)
        for name in ("beta", "largest_weight"):
            self.require_within(name, 0)
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")


class Actor(Policy):
    """`Windows (b, k, ...) -> actions (b, k, a)`, each step by itself; see the module."""

    batch = TransitionWindows

    def __init__(self, config: Any):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config = config
        sizes = [config.state_size, *[config.width] * config.layers]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.head = nn.Linear(config.width, config.action_size)

    def forward(self, windows: TransitionWindows) -> Tensor:
        """Actions within -1 to 1: `(b, k, a)`."""
        x = self.seen(windows.states)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return torch.tanh(self.head(x))

    def seen(self, states: Tensor) -> Tensor:
        """States `(..., s)` as all networks are given them."""
        return (states - self.state_mean) / (self.state_std + EPSILON) if self.config.standardise else states

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """There is none of the policy alone: its learner has critics, too."""
        raise NotImplementedError("trained by its learner")


class TD3BC(Actor):
    """The actor of TD3+BC."""

    terms = ("critic", "actor", "cloning")


class CQL(Actor):
    """The mode of CQL's actor."""

    terms = ("critic", "conservative", "actor")


class IQL(Actor):
    """The mean of IQL's actor."""

    terms = ("critic", "value", "actor")


def recipe(facts: Facts) -> dict[str, Any]:
    """How all three are trained."""
    made: dict[str, Any] = {"batch_size": 256, "learning_rate": 3e-4, "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
    return made


def td3bc_values(facts: Facts) -> dict[str, Any]:
    """Those of the domain."""
    return {"reward_shift": -1.0} if domain(facts.env_id) == "antmaze" else {}


def cql_values(facts: Facts) -> dict[str, Any]:
    """Those of the domain."""
    if domain(facts.env_id) != "antmaze":
        return {}
    networks: dict[str, Any] = {"layers": 5, "standardise": False, "reward_scale": 10.0, "reward_shift": -5.0}
    return networks | {"weight": 5.0, "gap": 0.8, "max_backup": True}


def iql_values(facts: Facts) -> dict[str, Any]:
    """Those of the domain; rewards of locomotion are scaled by the data's own returns.

    Hopper's targets follow more slowly, as CORL has it for its medium data and their replay: at 0.005 the value runs
    away from them within 20,000 updates here.
    """
    match domain(facts.env_id):
        case "antmaze":
            return {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0}
        case "kitchen":
            return {"beta": 0.5, "dropout": 0.1}
    values = {"reward_scale": RETURN_RANGE / facts.return_range} if facts.return_range > 0 else {}
    return values | ({"target_rate": 0.001} if family(facts.env_id) == "hopper" else {})


def _steps(facts: Facts) -> dict[str, Any]:
    """How long d3rlpy's reproductions train, and CORL's in mazes."""
    return {"steps": 1_000_000 if domain(facts.env_id) == "antmaze" else 500_000}


def td3bc_published(facts: Facts) -> dict[str, Any]:
    """The values by domain with the recipe, for the whole of its length."""
    return td3bc_values(facts) | recipe(facts) | _steps(facts)


def cql_published(facts: Facts) -> dict[str, Any]:
    """The same for CQL."""
    return cql_values(facts) | recipe(facts) | _steps(facts)


def iql_published(facts: Facts) -> dict[str, Any]:
    """The same for IQL."""
    return iql_values(facts) | recipe(facts) | _steps(facts)


_THROUGH = "takuseno/d3rlpy 2.8.0, which makes the updates"
TD3BC_MODEL = Model(
    name="td3bc",
    policy=TD3BC,
    config=TD3BCConfig,
    description="TD3+BC by d3rlpy: a critic's best action, held near the data's",
    source=f"Fujimoto and Gu 2021, arXiv 2106.06860; {_THROUGH}",
    defaults=td3bc_values,
    published=td3bc_published,
    recipe=recipe,
    sampler=transitions,
    learner=LearnTD3BC(),
)
CQL_MODEL = Model(
    name="cql",
    policy=CQL,
    config=CQLConfig,
    description="CQL by d3rlpy: a critic that is low where the data have no actions",
    source=f"Kumar et al. 2020, arXiv 2006.04779; {_THROUGH}",
    defaults=cql_values,
    published=cql_published,
    recipe=recipe,
    sampler=transitions,
    learner=LearnCQL(),
)
IQL_MODEL = Model(
    name="iql",
    policy=IQL,
    config=IQLConfig,
    description="IQL by d3rlpy: clones actions that are better than expected",
    source=f"Kostrikov et al. 2021, arXiv 2110.06169; {_THROUGH}",
    defaults=iql_values,
    published=iql_published,
    recipe=recipe,
    sampler=transitions,
    learner=LearnIQL(),
)
