"""The interface that every model of the package serves.

`Policy` is what training, evaluation, tables and widgets know: `forward(windows)` predicts the actions of whole
windows, `init_state(n, target)`, `act(state, observation, reward)` and `select(state, rows)` run `n` episodes at once.
Observations, rewards and returns-to-go are raw on the outside; a policy normalises them itself, with moments that
travel in its weights.

Axes: `b` batch, `k` time steps, `s` state size, `a` action size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from dmm.data.windows import Windows
from dmm.errors import whole_number


class Policy(nn.Module):
    """A model that acts on returns-to-go, states and actions of the last `context` time steps.

    Discrete actions are one-hot vectors, and squared error on them estimates the probability of each.

    Args:
        state_size: `s`.
        action_size: `a`.
        context: `k` time steps in a window.
    """

    state_mean: Tensor
    state_std: Tensor
    discrete_actions: bool = False  # set where actions are one-hot: then `act` picks the largest entry

    def __init__(self, state_size: int, action_size: int, context: int):
        super().__init__()
        sizes = {"state_size": state_size, "action_size": action_size, "context": context}
        self.state_size, self.action_size, self.context = (whole_number(n, v, 1) for n, v in sizes.items())
        self.register_buffer("state_mean", torch.zeros(self.state_size))
        self.register_buffer("state_std", torch.ones(self.state_size))

    def set_state_moments(self, mean: Tensor, std: Tensor) -> None:
        """Store the moments `(s,)` by which states are z-scored; those of the training data."""
        self.state_mean.copy_(mean)
        self.state_std.copy_(std)

    def forward(self, windows: Windows) -> Tensor:
        """The predicted action at every step of every window: `(b, k, a)`."""
        raise NotImplementedError

    def init_state(self, n: int, target: Tensor | float) -> Windows:
        """The memory of `n` episodes before their first observation.

        Here it is the window of the last `context` steps, all padding, with `target` (a number or `(n,)`), the return
        asked for, in its last place.
        """
        zeros = self.state_mean.new_zeros
        state = Windows(
            returns_to_go=zeros(n, self.context, 1),
            states=zeros(n, self.context, self.state_size),
            actions=zeros(n, self.context, self.action_size),
            timesteps=torch.zeros(n, self.context, dtype=torch.int64, device=self.state_mean.device),
            mask=torch.zeros(n, self.context, dtype=torch.bool, device=self.state_mean.device),
        )
        state.returns_to_go[:, -1, 0] = torch.as_tensor(target, dtype=self.state_mean.dtype)
        return state

    @torch.no_grad()
    def act(self, state: Windows, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Windows]:
        """One time step of `n` episodes: observation `(n, s)` -> action `(n, a)`, new state.

        Args:
            state: from `init_state` or the previous call; not changed.
            observation: `(n, s)`, raw.
            reward: `(n,)`, what the previous action earned; None at the first step. It is taken off the return asked
                for, as in Decision Transformer's evaluation.
        """
        last, began = state.returns_to_go[:, -1], state.mask[:, -1]
        target = last if reward is None else last - reward[:, None].to(last)
        unknown = observation.new_zeros(observation.shape[0], self.action_size)
        now = Windows(
            # before the first step the target stands in a padded place, which is zero from then on
            returns_to_go=_shift(state.returns_to_go * state.mask[..., None], target),
            states=_shift(state.states, observation),
            actions=_shift(state.actions, unknown),
            timesteps=_shift(state.timesteps, state.timesteps[:, -1] + began),
            mask=_shift(state.mask, torch.ones_like(began)),
        )
        action = self.forward(now)[:, -1]
        if self.discrete_actions:  # what is played, and what later steps see, is one-hot as in the data
            action = one_hot(action.argmax(dim=-1), self.action_size).to(action)
        now.actions[:, -1] = action
        return action, now

    def select(self, state: Windows, rows: Tensor) -> Windows:
        """The memory of some of the episodes: `rows` are their places in the batch, `(m,)` int64."""
        return Windows(*(getattr(state, field.name)[rows] for field in dataclasses.fields(state)))

    def parameter_count(self) -> int:
        """Trainable weights."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _shift(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past[:, 1:], new[:, None].to(past)], dim=1)


def action_loss(predicted: Tensor, windows: Windows) -> Tensor:
    """Mean squared error over the actions of real steps: `(..., b, k, a)` -> `(...)` (paper, appendix A)."""
    error = (predicted - windows.actions).square().sum(dim=-1) * windows.mask  # (..., b, k)
    return error.sum(dim=(-2, -1)) / (windows.mask.sum(dim=(-2, -1)) * predicted.shape[-1])
