"""What one action costs: the time that it takes and the memory of the episode that is behind it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmm.acting import Actor
from dmm.errors import whole_number
from dmm.policy import Policy, Wanted

SPAN = 30
"""Actions that are timed, after as many that are not."""
ROUNDS = 5
"""Turns of each policy, so that whatever else the machine does meets all of them."""


def costs_of_actions(
    policies: Mapping[str, Policy], *, steps: int = SPAN, rounds: int = ROUNDS
) -> dict[str, dict[str, float]]:
    """Microseconds of one action in one episode, and bytes of its memory, of each policy in turn.

    Each plays on made-up observations, none of them in an environment, past the end of its own window.

    Args:
        policies: by name, on the CPU.
        steps: actions that are timed in each turn.
        rounds: turns.

    Returns:
        By name: `us`, the median over all timed actions, and `memory`, what `Policy.init_state` and `act` hand on
        after them, in bytes.
    """
    steps, rounds = whole_number("steps", steps, 1), whole_number("rounds", rounds, 1)
    players = {name: Player(policy, policy.state_size, wanted_of(policy)) for name, policy in policies.items()}
    for player in players.values():
        player.play(max(steps, player.context))
    taken: dict[str, list[float]] = {name: [] for name in players}
    for _ in range(rounds):
        for name, player in players.items():
            taken[name] += player.play(steps)
    return {
        name: {"us": 1e6 * float(np.median(taken[name])), "memory": memory_of(player.state)}
        for name, player in players.items()
    }


def wanted_of(policy: Policy, returns: float = 1.0) -> Wanted:
    """A return, and a goal of zeros for a policy that goes to one."""
    size = getattr(getattr(policy, "config", None), "goal_size", 0)
    return Wanted(returns, torch.zeros(1, size) if size else None, torch.Generator().manual_seed(0))


class Player:
    """One episode of an actor on observations of random numbers."""

    def __init__(self, actor: Actor, state_size: int, wanted: Wanted):
        self.actor, self.state = actor, actor.init_state(1, wanted)
        self.context = int(getattr(actor, "context", 1))
        self.observations = torch.randn(SPAN, 1, state_size, generator=torch.Generator().manual_seed(0))
        self.clock = 0

    def play(self, steps: int) -> list[float]:
        """Seconds of each of so many actions."""
        taken = []
        for _ in range(steps):
            observation = self.observations[self.clock % SPAN]
            reward = torch.zeros(1) if self.clock else None
            began = time.perf_counter()
            _, self.state = self.actor.act(self.state, observation, reward)
            taken.append(time.perf_counter() - began)
            self.clock += 1
        return taken


def memory_of(state: Any) -> int:
    """Bytes of the tensors in a memory, each counted once."""
    found: dict[int, int] = {}
    _each_tensor(state, lambda tensor: found.update({tensor.data_ptr(): tensor.numel() * tensor.element_size()}))
    return sum(found.values())


def _each_tensor(state: Any, see: Callable[[Tensor], None]) -> None:
    if isinstance(state, Tensor):
        see(state)
    elif dataclasses.is_dataclass(state):
        for field in dataclasses.fields(state):
            _each_tensor(getattr(state, field.name), see)
    elif isinstance(state, Mapping):
        for part in state.values():
            _each_tensor(part, see)
    elif isinstance(state, Sequence) and not isinstance(state, str):
        for part in state:
            _each_tensor(part, see)
