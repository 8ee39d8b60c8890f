"""What each predicted action depends on: the zeros of its Jacobian.

An action may depend on what came before it and on nothing else. Some released models break that while they train, and
some reach back only a few steps; both show in which derivatives are exactly zero.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dmm.data.windows import Batch, Windows
from dmm.errors import whole_number
from dmm.policy import Policy

NOT_READ = ("timesteps", "mask")
"""Fields that no derivative is taken by."""
DIRECTIONS = 3
"""Random combinations of an action's entries that are differentiated: what depends on none of them on nothing."""


@dataclass(frozen=True)
class Reach:
    """Which steps of each field the action of each step depends on."""

    seen: dict[str, Tensor]  # by field: (k, k) bool, row: the step of the action, column: the step of the field

    def last(self) -> dict[str, tuple[int, int] | None]:
        """Of the last action: the first and the last step that it sees, relative to it; None where it sees none."""
        return {name: _span(seen[-1]) for name, seen in self.seen.items()}

    def ahead(self) -> dict[str, Tensor]:
        """What lies ahead of each action and is seen all the same: `(k, k)` bool.

        The action's own step counts as ahead in `actions`, where the answer stands, and in what only that action
        leads to: `rewards` and `next_states`.
        """
        return {name: seen.triu(0 if name in ANSWERS else 1) for name, seen in self.seen.items()}

    def is_causal(self) -> bool:
        """Whether nothing ahead is seen by any action."""
        return not any(bool(seen.any()) for seen in self.ahead().values())


ANSWERS = ("actions", "rewards", "next_states", "ended")


def reach(policy: Policy, context: int | None = None, *, last: bool = False, seed: int = 0) -> Reach:
    """The reach of a policy's actions in windows without padding, of random numbers, in evaluation mode and float64.

    Args:
        policy: any whose batch is a kind of `Windows`; it is not changed.
        context: steps of the windows; the policy's own if not given.
        last: look at the last action alone; the rows of others are empty.
        seed: of the windows.
    """
    k = policy.context if context is None else whole_number("context", context, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        policy = copy.deepcopy(policy).cpu().double().eval()
    windows = random_windows(policy, k, generator)
    read = {f.name: getattr(windows, f.name).requires_grad_() for f in fields(windows) if f.name not in NOT_READ}
    with torch.enable_grad():
        actions = policy(windows)  # (1, k, a)
        seen = {name: torch.zeros(k, k, dtype=torch.bool) for name in read}
        for _ in range(DIRECTIONS):
            direction = torch.randn(actions.shape[-1], generator=generator, dtype=actions.dtype)
            for step in range(k - 1 if last else 0, k):
                target = (actions[0, step] * direction).sum()
                slopes = torch.autograd.grad(target, list(read.values()), retain_graph=True, allow_unused=True)
                for name, slope in zip(read, slopes, strict=True):
                    if slope is not None:
                        seen[name][step] |= (slope[0] != 0).any(dim=-1)
    return Reach(seen)


def random_windows(policy: Policy, k: int, generator: torch.Generator, count: int = 1) -> Windows:
    """Windows `(count, k, .)` of a policy's own kind, without padding, of random numbers in its own type."""
    kind: type[Batch] = policy.batch
    assert issubclass(kind, Windows), "reach is that of windows"
    sizes = policy.field_sizes()
    parts = {
        field.name: torch.randn(count, k, sizes.get(field.name, 1), generator=generator, dtype=policy.state_mean.dtype)
        for field in fields(kind)
        if field.name not in NOT_READ
    }
    timesteps = torch.arange(k).expand(count, k).clone()
    return kind(**parts, timesteps=timesteps, mask=torch.ones(count, k, dtype=torch.bool))


def _span(seen: Tensor) -> tuple[int, int] | None:
    places = seen.nonzero().flatten().tolist()
    return (places[0] - len(seen) + 1, places[-1] - len(seen) + 1) if places else None
