"""Behaviour cloning: an MLP from the state to a Gaussian over actions, of all episodes or of the best tenth.

    x = state,  or [state, condition] in the models of `dmm.models.rvs`
    x = dropout(relu(W_i x + b_i))      in each of `layers` hidden layers
    action ~ N(W x + b, exp(log_std)^2)
    loss = -mean over the batch of log p(action), summed over its entries

Source: the unconditional policy of RvS, `policies.py` of scottemmons/rvs with stable-baselines3 1.2.0: no tanh, no
layer norm, states as they are, and orthogonal start (gain sqrt(2), 0.01 for the head, biases zero), which is the start
here in all sizes. Played is the mean; the environment cuts what it does not allow.

Departures: rows are drawn with replacement where the source goes through all of them once per epoch, and nothing is
held out. Discrete actions get what the source has for them, a categorical distribution: the head's outputs are then
logits, their likelihood is the loss, and `log_std` is unused.

`bc-10` sees the best tenth of the episodes by return, at least one of them; Decision Transformer's 10 % BC fills a
tenth of the *time steps* with the best episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.layers.dropout import Dropout
from dmm.layers.gaussian import GaussianHead
from dmm.models.entry import Facts, Model, Official, domain
from dmm.policy import Policy, masked_mean, next_window, of_merged

BEST_SHARE = 0.1
"""The part of the episodes that `bc-10` clones."""


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """An MLP that clones actions. The default sizes have as many weights as the default model has for Hopper."""

    state_size: int  # s
    action_size: int  # a
    width: int = 344  # of each hidden layer
    layers: int = 2  # hidden ones
    dropout: float = 0.1  # behind each hidden layer
    context: ClassVar[int] = 1  # it sees one time step

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "width", "layers")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: got {self.dropout:g}, allowed is 0 <= dropout < 1")


class LikelihoodPolicy(Policy):
    """A policy that is trained by the likelihood of actions and plays the mean, or the likeliest of discrete ones.

    Sub-classes have a `head`, and `outputs`.
    """

    terms = ("likelihood",)
    head: GaussianHead

    def outputs(self, windows: Any) -> Tensor:
        """The Gaussian's means, or logits of discrete actions: `(b, k, a)`."""
        raise NotImplementedError

    def forward(self, windows: Any) -> Tensor:
        """The means, or the probabilities of discrete actions: `(b, k, a)`."""
        out = self.outputs(windows)
        return out.softmax(dim=-1) if self.discrete_actions else out

    def log_prob(self, windows: Windows) -> Tensor:
        """How likely the windows' actions are, as a log density or probability: `(b, k)`."""
        out = self.outputs(windows)
        if self.discrete_actions:
            return (out.log_softmax(dim=-1) * windows.actions).sum(dim=-1)
        return self.head.log_prob(out, windows.actions)

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Minus the mean log likelihood over real steps: fields `(..., b, k, .)` -> `(...)`."""
        likelihood = of_merged(self.log_prob, batch)
        return {"likelihood": -masked_mean(likelihood[..., None], batch.mask)}


class BehaviourCloning(LikelihoodPolicy):
    """`Windows (b, k, ...) -> actions (b, k, a)`, each step by itself; see the module.

    Sub-classes have a condition of `condition_size` numbers beside the state.
    """

    def __init__(self, config: BCConfig, condition_size: int = 0):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config = config
        sizes = [config.state_size + condition_size, *[config.width] * config.layers]
        hidden = [nn.Linear(n, m) for n, m in pairwise(sizes)]
        self.hidden = nn.ModuleList(hidden)
        self.dropout = Dropout(config.dropout)
        self.head = GaussianHead(config.width, config.action_size)
        for layer in hidden:
            nn.init.orthogonal_(layer.weight, gain=2**0.5)
            nn.init.zeros_(layer.bias)

    def inputs(self, windows: Windows) -> Tensor:
        """What the network is given: `(b, k, s + condition)`."""
        return windows.states

    def outputs(self, windows: Windows) -> Tensor:
        x = self.inputs(windows)
        for layer in self.hidden:
            x = self.dropout(torch.relu(layer(x)))
        return self.head(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def act(self, state: Any, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Any]:
        """One time step, as in `Policy.act`, of which rewards change nothing."""
        now = self.next_step(state, observation)
        action = self.played(self.forward(now)[:, -1])
        now.actions[:, -1] = action
        return action, now

    def next_step(self, state: Any, observation: Tensor) -> Any:
        """The window `(n, 1, .)` of the new observation, with the same condition as before."""
        return next_window(state, observation, None)


def authors_recipe(facts: Facts) -> dict[str, Any]:
    """Sizes and training of RvS by domain: Adam at 1e-3, nothing else."""
    recipe: dict[str, Any] = {"width": 1024, "layers": 2, "dropout": 0.0, "batch_size": 16_384}
    recipe |= {"learning_rate": 1e-3, "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
    match domain(facts.env_id):
        case "kitchen":  # 50 epochs of 2,450,000 draws
            return recipe | {"dropout": 0.1, "batch_size": 256, "steps": 478_500}
        case "antmaze":
            return recipe | {"steps": 20_000}
    return recipe | {"steps": 2000 * -(-facts.transitions // 16_384)}  # epochs of all rows


def authors_sizes(config: Mapping[str, Any], condition_size: int | None = None) -> dict[str, Any]:
    """Fields of ours from the authors' names; with a `condition_size`, theirs must be that."""
    given = config["condition_size"]
    if condition_size is not None and given != condition_size:
        raise InputError(f"condition_size: got {given}, allowed is {condition_size}")
    names = {"state_size": "state_size", "action_size": "action_size", "width": "hidden", "layers": "depth"}
    return {ours: config[theirs] for ours, theirs in names.items()}


def sources(policy: BehaviourCloning) -> dict[str, str]:
    """Where the authors keep each weight: hidden layers at every second place, activations between them."""
    named = {"head.log_std": "model.log_std"}
    for part in ("weight", "bias"):
        named[f"head.mean.{part}"] = f"model.action_net.{part}"
        for i in range(len(policy.hidden)):
            named[f"hidden.{i}.{part}"] = f"model.mlp_extractor.shared_net.{2 * i}.{part}"
    return named


def value_net(key: str) -> bool:
    """Stable-baselines3's value head, which the release leaves out and other versions of it may have."""
    return key.startswith("model.value_net.")


def best_tenth(trajectories: Trajectories, config: Any, stages: Sequence[Policy]) -> Trajectories:
    """The best episodes by return; see `Trajectories.best`."""
    return trajectories.best(BEST_SHARE)


def _official_config(config: Mapping[str, Any]) -> BCConfig:
    return BCConfig(**authors_sizes(config, 0))


_SOURCE = "Emmons et al. 2022, arXiv 2112.10751; scottemmons/rvs@90c0ffb, unconditional"
MODEL = Model(
    name="bc",
    policy=BehaviourCloning,
    config=BCConfig,
    description="behaviour cloning by an MLP: the state alone decides",
    source=_SOURCE,
    published=authors_recipe,
    official=Official(config=_official_config, sources=sources, unused=value_net),
)
BEST_TENTH = Model(
    name="bc-10",
    policy=BehaviourCloning,
    config=BCConfig,
    description="the same, of the best tenth of the episodes",
    source=_SOURCE,
    published=authors_recipe,
    prepare=best_tenth,
    official=Official(config=_official_config, sources=sources, unused=value_net),
)
