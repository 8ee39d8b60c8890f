"""The interface that every model of the package serves.

`Policy` is what training, evaluation, tables and widgets know. Training reads `batch`, the fields that the model needs,
and `loss(batch)`, its terms; `forward(batch)` predicts the actions of every step. Acting runs `n` episodes at once:
`init_state(n, target)`, `act(state, observation, reward)`, `select(state, rows)` and, where a task goes on after an
episode, `next_episode(state, rows, target, outcome)`. All memory is in the state that these hand on.
Observations, rewards and returns-to-go are raw on the outside; a policy normalises them itself, with moments that
travel in its weights.

Axes: `b` batch, `k` time steps, `s` state size, `a` action size, `g` goal size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Batch, Windows
from dmm.draws import seed_of
from dmm.errors import whole_number


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is asked of n episodes, and what acting may draw from."""

    returns: Tensor | float = 0.0  # the return, one for all or (n,)
    goals: Tensor | None = None  # (n, g), the `desired_goal` of each environment; None where it has none
    generator: torch.Generator | None = None  # for policies that draw; torch's own if None
    numbers: Tensor | None = None  # (n,) int64; episodes that begin alike and have different ones draw apart

    @classmethod
    def of(cls, target: Wanted | Tensor | float) -> Wanted:
        """A plain number, or one for each episode, asks for that return and nothing else."""
        return target if isinstance(target, Wanted) else cls(target)

    def seeds(self, n: int) -> Tensor:
        """Of what n episodes draw (`dmm.draws.streams`), `(n,)` int64, on the CPU."""
        same = torch.full((n,), seed_of(self.generator))
        return same if self.numbers is None else same + self.numbers


Target = Wanted | Tensor | float


@dataclass(frozen=True, eq=False)
class Outcome:
    """How the episodes of some tasks ended."""

    reward: Tensor  # (m,) of the last step
    terminated: Tensor  # (m,) bool: by the environment, not by a time limit
    observation: Tensor | None = None  # (m, s), raw, behind the last step; None where it is not known


class Policy(nn.Module):
    """A model that acts on returns-to-go, states and actions of the last `context` time steps.

    Discrete actions are one-hot vectors, and squared error on them estimates the probability of each.

    Args:
        state_size: `s`.
        action_size: `a`.
        context: `k` time steps in a window.
    """

    batch: ClassVar[type[Batch]] = Windows
    """What `forward` and `loss` read."""
    terms: ClassVar[tuple[str, ...]] = ("action",)
    """The names of the loss's terms; with several the log has a column for each."""

    recurrent: ClassVar[bool] = False
    """Whether `act` is itself a recurrence, so that a step's cost does not grow with what came before."""

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

    def field_sizes(self) -> dict[str, int]:
        """Numbers of a step in those fields of `batch` that have more than one."""
        states = dict.fromkeys(("states", "next_states"), self.state_size)
        return states | dict.fromkeys(("actions", "previous_actions"), self.action_size)

    def adopt(self, stages: Sequence[Policy]) -> None:
        """Take over, into weights that are kept with this policy's own, what earlier stages of training learned."""

    def look_at(self, data: Trajectories) -> None:
        """Keep, in buffers, what a reader may ask of the data that earlier stages prepared; before the first update."""

    def after_update(self) -> None:
        """Move what follows the trained weights without a gradient, such as targets; after every update.

        What it moves are parameters that are not trained, or buffers, which checkpoints hold; in place, without waiting
        for the device, so that a CUDA graph can hold it.
        """

    def forward(self, batch: Any) -> Tensor:
        """The predicted action at every step of every window: `(b, k, a)`."""
        raise NotImplementedError

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """The terms that training minimises the sum of, by name; fields `(..., b, k, .)` -> `(...)` each.

        Axes in front of `b` are batches of their own, such as those of several seeds: each gets its own mean.
        Here it is the squared error of the actions.
        """
        return {"action": action_loss(of_merged(self, batch), batch)}

    def init_state(self, n: int, target: Target) -> Any:
        """The memory of `n` episodes before their first observation.

        Here it is the window of the last `context` steps, all padding, with the return asked for in its last place.
        """
        windows = self.batch
        assert issubclass(windows, Windows), "a policy of other batches has a memory of its own"
        sizes, zeros = self.field_sizes(), self.state_mean.new_zeros
        parts = {field.name: zeros(n, self.context, sizes.get(field.name, 1)) for field in fields(windows)}
        parts["timesteps"] = torch.zeros(n, self.context, dtype=torch.int64, device=self.state_mean.device)
        parts["mask"] = torch.zeros(n, self.context, dtype=torch.bool, device=self.state_mean.device)
        parts["returns_to_go"][:, -1, 0] = torch.as_tensor(Wanted.of(target).returns, dtype=self.state_mean.dtype)
        return windows(**parts)

    @torch.no_grad()
    def act(self, state: Any, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Any]:
        """One time step of `n` episodes: observation `(n, s)` -> action `(n, a)`, new state.

        Args:
            state: from `init_state` or the previous call; not changed.
            observation: `(n, s)`, raw.
            reward: `(n,)`, what the previous action earned; None at the first step. It is taken off the return asked
                for, as in Decision Transformer's evaluation.
        """
        now = next_window(state, observation, reward)
        action = self.played(self.newest(now))
        now.actions[:, -1] = action
        return action, now

    def newest(self, windows: Any) -> Tensor:
        """`forward` at the last step alone, `(b, a)`, whose action is not known yet."""
        return self.forward(windows)[:, -1]

    def played(self, action: Tensor) -> Tensor:
        """What is played, and what later steps see: the action, one-hot where those of the data are."""
        if not self.discrete_actions:
            return action
        return one_hot(action.argmax(dim=-1), self.action_size).to(action)

    def select(self, state: Any, rows: Tensor) -> Any:
        """The memory of some of the episodes: `rows` are their places in the batch, `(m,)` int64."""
        return state.map(lambda field: field[rows])

    def next_episode(self, state: Any, rows: Tensor, target: Target, outcome: Outcome) -> Any:
        """The memory when the episodes at `rows (m,)` are over and others of the same tasks begin in their places.

        Here these rows begin anew. A policy that learns within a task keeps what it saw.
        """
        begun = self.init_state(len(rows), target)
        pairs = [(getattr(state, field.name), getattr(begun, field.name)) for field in fields(state)]
        return type(state)(*(whole.index_copy(0, rows, part) for whole, part in pairs))

    def parameter_count(self) -> int:
        """Trainable weights."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def next_window(state: Windows, observation: Tensor, reward: Tensor | None) -> Any:
    """The window `(n, k, .)` one step on: the new observation in its last place, the action there not known yet.

    The reward earned is taken off the return asked for and stands, in windows that hold rewards, beside the step that
    earned it. Fields that only training knows are zero.
    """
    last, began = state.returns_to_go[:, -1], state.mask[:, -1]
    earned = torch.zeros_like(last) if reward is None else reward[:, None].to(last)
    new = {
        "returns_to_go": last if reward is None else last - earned,
        "states": observation,
        "actions": observation.new_zeros(observation.shape[0], state.actions.shape[-1]),
        "timesteps": state.timesteps[:, -1] + began,
        "mask": torch.ones_like(began),
        "previous_actions": state.actions[:, -1],
        "previous_rewards": earned,
    }
    parts = {}
    for field in fields(state):
        past = getattr(state, field.name)
        if field.name == "returns_to_go":  # the first target stood in a padded place
            past = past * state.mask[..., None]
        if field.name == "rewards":
            past = torch.cat([past[:, :-1], earned[:, None]], dim=1)
        parts[field.name] = _shift(past, new.get(field.name, torch.zeros_like(past[:, 0])))
    return type(state)(**parts)


def _shift(past: Tensor, new: Tensor) -> Tensor:
    return torch.cat([past[:, 1:], new[:, None].to(past)], dim=1)


def of_merged(function: Callable[[Any], Any], batch: Batch) -> Any:
    """`function` of a batch `(..., b)` merged to one axis; what it gives, tensors or tuples, has the axes again."""
    shape = batch.shape
    if len(shape) == 1:
        return function(batch)
    made = function(batch.merged())
    return _apart(made, shape)


def _apart(made: Any, shape: torch.Size) -> Any:
    if isinstance(made, Tensor):
        return made.unflatten(0, shape)  # type: ignore[no-untyped-call]
    parts = [_apart(part, shape) for part in made]
    return type(made)(*parts) if hasattr(made, "_fields") else tuple(parts)


def action_loss(predicted: Tensor, windows: Windows) -> Tensor:
    """Mean squared error over the actions of real steps: `(..., b, k, a)` -> `(...)` (paper, appendix A)."""
    return masked_mean((predicted - windows.actions).square(), windows.mask)


def action_error(predicted: Tensor, actions: Tensor, weight: Tensor, discrete: bool) -> Tensor:
    """The mean squared error of actions, or the mean cross-entropy of logits with discrete ones.

    `(..., b, k, a)` twice, and what each step counts, `(..., b, k)` -> `(...)`.
    """
    if discrete:
        return masked_mean(-(predicted.log_softmax(dim=-1) * actions).sum(dim=-1, keepdim=True), weight)
    return masked_mean((predicted - actions).square(), weight)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real steps and their entries: `x (..., b, k, n)`, `mask (..., b, k)` -> `(...)`."""
    total = (x.sum(dim=-1) * mask).sum(dim=(-2, -1))
    return total / (mask.sum(dim=(-2, -1)) * x.shape[-1])
