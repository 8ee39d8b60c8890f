"""A conservative critic (CQL): an MLP of state and action that is told to doubt what the data do not show.

    Q_i(s, a), i = 1, 2      MLPs;  T_i: targets, which follow them;  z: the state, z-scored
    bellman       sum_i (Q_i(s, a) - r - discount (1 - ended) V'(s'))^2
    conservative  weight sum_i (temperature logsumexp_a(Q_i(s, a) / temperature) - Q_i(s, a of the data))
    actor         entropy log p(a | s) - min_i T_i(s, a),  a ~ p(. | s), a squashed Gaussian

V' is the smaller target's value: of an action that the actor draws, or the largest over discrete ones, which need no
actor. The logsumexp is over all discrete actions, else estimated from uniform ones and the actor's, each weighed by
1 / its density. Rewards are divided by `rtg_scale` before and values multiplied by it behind, so that the weights below
are in the unit of returns.

    value(s)      mean over the critics: the largest over discrete actions, else the mean over 10 actions of the actor

Source: Kumar et al. 2020, arXiv 2006.04779, with values as in takuseno/d3rlpy@38c34b6, `reproductions/offline/qdt.py`.
Departures: one AdamW of one rate trains actor and critics together, so the actor climbs the targets, which no gradient
moves; the weight of the entropy is fixed; sampled actions are those of the present state alone.

A step whose next state is not known is left out: the last one of an episode that its time limit cut, where the data do
not hold what followed.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmm.configs import check_positive, plain_fields
from dmm.data.trajectories import Trajectories
from dmm.data.windows import TransitionWindows, WindowDraws, Windows, WindowSampler
from dmm.errors import InputError
from dmm.models.entry import Model
from dmm.policy import Policy, masked_mean, of_merged

CRITICS = 2
LOG_STD = (-5.0, 2.0)
"""Where the actor's spread stays."""
VALUE_SAMPLES = 10
"""Actions of the actor that a value is the mean of."""
ROWS = 4096
"""Observations whose values are computed at once."""


@dataclass(frozen=True, kw_only=True)
class ConservativeQConfig:
    """A conservative critic and its actor; the defaults are for some thousand updates."""

    state_size: int  # s
    action_size: int  # a
    width: int = 64  # of each hidden layer
    layers: int = 2  # hidden ones
    discount: float = 0.99
    conservative: float = 0.05  # weight of the conservative term
    temperature: float = 0.01  # of its logsumexp
    entropy: float = 0.001  # weight of the actor's log density
    samples: int = 4  # actions of each kind in the logsumexp, where actions are not discrete
    target_rate: float = 0.05  # part of the way that targets go in each update
    rtg_scale: float = 1.0  # rewards are divided by this
    context: ClassVar[int] = 1  # it sees one time step

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size", "width", "layers", "samples")
        for name in ("discount", "target_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name}: got {getattr(self, name):g}, allowed is above 0 and at most 1")
        for name in ("temperature", "rtg_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}: got {getattr(self, name):g}, allowed is a positive number")
        for name in ("conservative", "entropy"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name}: got {getattr(self, name):g}, allowed is 0 or more")


class ConservativeQ(Policy):
    """Critics, their targets and an actor; see the module. It acts greedily, on no target."""

    batch = TransitionWindows
    terms = ("bellman", "conservative", "actor")

    def __init__(self, config: ConservativeQConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config = c = config
        self.critics = nn.ModuleList(_mlp(c.state_size + c.action_size, 1, c) for _ in range(CRITICS))
        self.actor = _mlp(c.state_size, 2 * c.action_size, c)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)

    def forward(self, windows: Windows) -> Tensor:
        """The actor's mean, or what each discrete action is worth: `(b, k, a)`."""
        z = self._z(windows.states)
        if self.discrete_actions:
            return _q(self.critics, z, self._each(z)).mean(dim=0) * self.config.rtg_scale
        return self.actor(z).chunk(2, dim=-1)[0].tanh()  # type: ignore[no-any-return]

    def loss(self, batch: TransitionWindows) -> dict[str, Tensor]:
        """See the module: fields `(..., b, k, .)` -> `(...)` each."""
        terms = zip(self.terms, of_merged(self._of_steps, batch), strict=True)
        return {name: masked_mean(term[..., None], batch.mask) for name, term in terms}

    def _of_steps(self, batch: TransitionWindows) -> tuple[Tensor, ...]:
        """The terms of each step: `(b, k)` each."""
        c, z = self.config, self._z(batch.states)
        with torch.no_grad():
            candidates, log_density = self._candidates(z)  # (b, k, m, a), (b, k, m)
            rewards, ended = batch.rewards[..., 0] / c.rtg_scale, batch.ended[..., 0]
            aim = rewards + c.discount * (1 - ended) * self._next_value(self._z(batch.next_states))
        worth = _q(self.critics, z, torch.cat([batch.actions[..., None, :], candidates], dim=-2))  # (2, b, k, 1 + m)
        done, others = worth[..., 0], worth[..., 1:]
        soft = c.temperature * (others / c.temperature - log_density).logsumexp(dim=-1)
        bellman, conservative = (done - aim).square().sum(dim=0), c.conservative * (soft - done).sum(dim=0)
        return bellman, conservative, self._actors_loss(z)

    @torch.no_grad()
    def after_update(self) -> None:
        for target, critic in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
            target.lerp_(critic, self.config.target_rate)

    @torch.no_grad()
    def value(self, states: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """V of raw states: `(n, s) -> (n,)`, in the unit of the rewards; actions are drawn with the generator."""
        z = self._z(states)
        if self.discrete_actions:
            values = _q(self.critics, z, self._each(z)).mean(dim=0).amax(dim=-1)
        else:
            actions, _ = self._drawn(z, VALUE_SAMPLES, generator)
            values = _q(self.critics, z, actions).mean(dim=(0, -1))
        return values * self.config.rtg_scale

    def _z(self, states: Tensor) -> Tensor:
        return (states - self.state_mean) / self.state_std

    def _each(self, z: Tensor) -> Tensor:
        """All discrete actions, one-hot: `z (..., s) -> (..., a, a)`."""
        each = torch.eye(self.action_size, dtype=z.dtype, device=z.device)
        return each.expand(*z.shape[:-1], -1, -1)

    def _candidates(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for the logsumexp `(..., m, a)`, and the log of m times the density that each was drawn from."""
        if self.discrete_actions:
            each = self._each(z)
            return each, each.new_zeros(each.shape[:-1])
        n = self.config.samples
        uniform = 2 * torch.rand(*z.shape[:-1], n, self.action_size, dtype=z.dtype, device=z.device) - 1
        own, log_density = self._drawn(z, n)
        everywhere = torch.full_like(log_density, -self.action_size * math.log(2))
        return torch.cat([uniform, own], dim=-2), torch.cat([everywhere, log_density], dim=-1) + math.log(2 * n)

    def _next_value(self, z: Tensor) -> Tensor:
        """V' of next states: `(..., s) -> (...)`."""
        if self.discrete_actions:
            return _q(self.targets, z, self._each(z)).amin(dim=0).amax(dim=-1)
        return _q(self.targets, z, self._drawn(z, 1)[0]).amin(dim=0)[..., 0]

    def _actors_loss(self, z: Tensor) -> Tensor:
        """Of each state: `(..., s) -> (...)`. Its gradient reaches the actor alone."""
        if self.discrete_actions:
            return z.new_zeros(z.shape[:-1])
        actions, log_density = self._drawn(z, 1)
        return (self.config.entropy * log_density - _q(self.targets, z, actions).amin(dim=0))[..., 0]

    def _drawn(self, z: Tensor, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """`n` actions of the actor for each state and their log densities: `(..., n, a)`, `(..., n)`."""
        mean, log_std = self.actor(z)[..., None, :].chunk(2, dim=-1)
        log_std = log_std.clamp(*LOG_STD)
        shape, where = (*z.shape[:-1], n, self.action_size), z.device if generator is None else generator.device
        noise = torch.randn(shape, dtype=z.dtype, device=where, generator=generator).to(z.device)
        before = mean + log_std.exp() * noise
        squash = 2 * (math.log(2) - before - F.softplus(-2 * before))  # log of the slope of tanh
        log_density = -(noise.square() / 2 + log_std + math.log(2 * math.pi) / 2 + squash).sum(dim=-1)
        return before.tanh(), log_density


def observed_values(critic: ConservativeQ, trajectories: Trajectories) -> np.ndarray:
    """V of every observation of the data: `(N,)` float64, in the unit of the rewards; the critic alone decides them."""
    device, generator, parts = critic.state_mean.device, torch.Generator().manual_seed(0), []
    for part in torch.split(torch.from_numpy(trajectories.observations), ROWS):
        parts.append(critic.value(part.to(device), generator).cpu())
    return torch.cat(parts).double().numpy()


def with_next_states(trajectories: Trajectories) -> Trajectories:
    """The steps whose next state is known; see the module.

    Raises:
        InputError: there are none.
    """
    t = trajectories
    if t.last_observations is not None:
        return t
    lengths = t.lengths - ~t.terminated
    kept = lengths > 0
    if not kept.any():
        raise InputError(f"last_observations: {t.dataset_id!r} has none, and no step with a known next state")
    row = np.arange(t.transitions) - np.repeat(t.starts, t.lengths)
    rows, left = row < np.repeat(lengths, t.lengths), lengths[kept]
    return dataclasses.replace(
        t,
        observations=t.observations[rows],
        actions=t.actions[rows],
        rewards=t.rewards[rows],
        starts=np.cumsum(left) - left,
        lengths=left,
        terminated=t.terminated[kept],
        histories=None if t.histories is None else t.histories[kept],
        last_observations=t.observations[t.starts + t.lengths - 1][kept],  # of those that ended it is never looked at
    )


def transitions(trajectories: Trajectories, config: Any, device: torch.device | str) -> WindowSampler:
    """Draws single steps whose next state is known."""
    return WindowDraws(batch=TransitionWindows)(with_next_states(trajectories), config, device)


def _mlp(n: int, m: int, config: ConservativeQConfig) -> nn.Sequential:
    sizes = [n, *[config.width] * config.layers]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(config.width, m))


def _q(nets: nn.ModuleList, z: Tensor, actions: Tensor) -> Tensor:
    """`z (..., s)`, `actions (..., m, a)` -> `(2, ..., m)`."""
    states = z[..., None, :].expand(*actions.shape[:-1], -1)
    x = torch.cat([states, actions], dim=-1)
    return torch.stack([net(x)[..., 0] for net in nets])


MODEL = Model(
    name="conservative-q",
    policy=ConservativeQ,
    config=ConservativeQConfig,
    description="a conservative critic, trained before qldt",
    source="Kumar et al. 2020, arXiv 2006.04779; takuseno/d3rlpy@38c34b6, reproductions/offline/qdt.py",
    sampler=transitions,
    hidden=True,
)
