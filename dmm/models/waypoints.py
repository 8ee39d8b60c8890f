"""The first stage of the Waypoint Transformer: a network that says what lies ahead, and windows with what is wanted.

    waypoint_t = base_t + MLP([state_t, condition])        four hidden layers with ReLU
    goals      condition = a goal;                         base = where the state is, target = where it is h steps later
    returns    condition = [average, cumulative return];   base = the condition, target = both returns of step t
    loss       mean squared error

    average = return from here / steps left of this episode,   cumulative = return from here / N

`[average, cumulative]` of a window is that of its first place. For windows that an episode's end cuts short, which are
padded on the left, this place is padding and the condition is therefore **(0, 0)**; and the network's loss counts
padding. Both are flaws of the release that are kept; with `released_padding=false` the condition is that of the first
real step, and padding does not count.

Windows are drawn as the authors draw them: an episode in proportion to its length, two of its steps uniformly, of which
the earlier is the window's first and the later the goal (`WaypointWindowSampler`), so that starts lean to the
beginning. The network learns on windows of h + 10 steps, ten pairs of steps that are h apart; h is 30.

Source: Badrinath et al. 2023, arXiv 2306.14069; StanfordAI4HI/waypoint-transformer at commit 716f514. Departures: no
episode is held out, and the last checkpoint is taken, where the authors choose one by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dmm.configs import check_positive, plain_fields
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler, whole_share
from dmm.errors import InputError, require_choice, whole_number
from dmm.models.entry import Facts, Model, goal_columns
from dmm.models.rvs import check_goal, goal_fields
from dmm.policy import Policy, of_merged

Condition = Literal["returns", "goal"]
HORIZON, PAIRS = 30, 10
"""Steps between a state and its waypoint, and pairs of such steps in a window of the first stage."""


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """What is wanted of a window."""

    state_size: int  # s
    action_size: int  # a
    condition: Condition = "returns"  # returns: average and cumulative; goal: columns of a state that comes later
    goal_start: int = 0  # the first column of the state that belongs to a goal
    goal_size: int = 0  # g, how many do
    goal: str = ""  # g numbers with blanks between: what is wanted where the environment asks for nothing
    return_scale: float = 1000.0  # N, what the cumulative return is divided by
    released_padding: bool = True  # padded windows are asked for returns of (0, 0), and waypoints in padding count

    def __post_init__(self) -> None:
        plain_fields(self)
        check_positive(self, "state_size", "action_size")
        require_choice("condition", self.condition, Condition)
        if self.condition == "goal":
            check_goal(self)
        if self.return_scale <= 0:
            raise InputError(f"return_scale: got {self.return_scale:g}, allowed is a positive number")

    @property
    def condition_size(self) -> int:
        """c, of a condition and of a waypoint."""
        return self.goal_size if self.condition == "goal" else 2

    @property
    def goal_columns(self) -> slice:
        """Where a state says where it is."""
        return slice(self.goal_start, self.goal_start + self.goal_size)


@dataclass(frozen=True, kw_only=True)
class WaypointConfig(ConditionConfig):
    """The waypoint network; the default sizes are a small part of those that models share."""

    context: int = HORIZON + PAIRS  # k steps of a window
    width: int = 64  # of each hidden layer
    layers: int = 4  # hidden ones
    horizon: int = HORIZON  # h, how far ahead a waypoint lies; of goals only

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "context", "width", "layers", "horizon")
        if self.ahead >= self.context:
            raise InputError(f"horizon: got {self.horizon}, allowed is less than context {self.context}")

    @property
    def ahead(self) -> int:
        """How far ahead what is predicted lies."""
        return self.horizon if self.condition == "goal" else 0


@dataclass(frozen=True, eq=False)
class ConditionWindows(Windows):
    """Windows with what is wanted: the same at every real step, and zero in padding."""

    condition: Tensor  # (b, k, c)


@dataclass(frozen=True, eq=False)
class WaypointWindows(ConditionWindows):
    """Windows that also hold what a waypoint may be: where each step is, or its two returns; zero in padding."""

    targets: Tensor  # (b, k, c)


class WaypointWindowSampler:
    """Draws pairs of steps of one episode: a window's first and, not before it, the one whose state is its goal.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        config: says what a condition is.
        batch: the kind of windows.
        device: where the data lie and windows are put together.
    """

    def __init__(
        self, trajectories: Trajectories, config: Any, batch: type[ConditionWindows], device: torch.device | str
    ):
        self.config, self.batch = config, batch
        self.steps = WindowSampler(trajectories, config.context, generator=torch.Generator(), device=device)
        places = trajectories.observations[:, config.goal_columns]
        self._places = torch.tensor(places, device=device) if config.condition == "goal" else None  # (N, g)
        self._starts, lengths = torch.from_numpy(trajectories.starts), torch.from_numpy(trajectories.lengths)
        self._episode = torch.arange(len(lengths)).repeat_interleave(lengths)  # (N,) on the CPU, for drawing
        self._lengths = lengths
        self._steps_of = lengths[self._episode].to(device)  # (N,)

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Rows of first steps and goals: `(batches, b, 2)`, the numbers of as many draws of one batch."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1), 2)
        u, v = torch.rand(shape, generator=generator, dtype=torch.float64).unbind(dim=-1)
        one = whole_share(u, torch.tensor(len(self._episode)))  # an episode by its length, and any step of it
        episode = self._episode[one]
        other = self._starts[episode] + whole_share(v, self._lengths[episode])
        return torch.stack([torch.minimum(one, other), torch.maximum(one, other)], dim=-1)

    def gather(self, index: Tensor) -> ConditionWindows:
        """The batch of rows `(..., b, 2)`; nothing here waits for the device."""
        index = index.to(self._steps_of.device, non_blocking=True)
        first, steps = index[..., 0], self.steps.gather(index[..., 0])
        parts = {field.name: getattr(steps, field.name) for field in fields(steps)}
        if self._places is not None:
            targets = steps.states[..., self.config.goal_columns]
            wanted = self._places[index[..., 1]][..., None, :]
        else:
            targets = self._returns(steps, first)
            wanted = targets[..., :1, :]
            if not self.config.released_padding:
                real = steps.mask & (steps.mask.cumsum(dim=-1) == 1)
                wanted = (targets * real[..., None]).sum(dim=-2, keepdim=True)
        parts |= {"condition": wanted * steps.mask[..., None], "targets": targets}
        return self.batch(**{field.name: parts[field.name] for field in fields(self.batch)})

    def _returns(self, steps: Windows, first: Tensor) -> Tensor:
        """Average and cumulative return of each step: `(..., b, k, 2)`."""
        left = (self._steps_of[first][..., None] - steps.timesteps)[..., None]
        return torch.cat([steps.returns_to_go / left, steps.returns_to_go / self.config.return_scale], dim=-1)


@dataclass(frozen=True)
class ConditionDraws:
    """How a model wants its windows with a condition; called with data, the model's config and a device."""

    batch: type[ConditionWindows] = ConditionWindows

    def __call__(
        self, trajectories: Trajectories, config: ConditionConfig, device: torch.device | str
    ) -> WaypointWindowSampler:
        return WaypointWindowSampler(trajectories, config, self.batch, device)


class WaypointNet(nn.Module):
    """States `(..., s)` and conditions `(..., c)` to waypoints `(..., c)`."""

    def __init__(self, config: ConditionConfig, width: int, layers: int):
        super().__init__()
        self.columns = config.goal_columns if config.condition == "goal" else None
        parts: list[nn.Module] = []
        for n, m in pairwise([config.state_size + config.condition_size, *[width] * layers]):
            parts += [nn.Linear(n, m), nn.ReLU()]
        self.net = nn.Sequential(*parts, nn.Linear(width, config.condition_size))

    def forward(self, states: Tensor, condition: Tensor) -> Tensor:
        base = condition if self.columns is None else states[..., self.columns]
        return base + self.net(torch.cat([states, condition], dim=-1))  # type: ignore[no-any-return]


class Waypoints(Policy):
    """Predicts waypoints instead of actions: `WaypointWindows (b, k, ...) -> waypoints (b, k, c)`; see the module."""

    batch = WaypointWindows
    terms = ("waypoint",)

    def __init__(self, config: WaypointConfig):
        super().__init__(config.state_size, config.action_size, config.context)
        self.config = config
        self.waypoints = WaypointNet(config, config.width, config.layers)

    def field_sizes(self) -> dict[str, int]:
        return super().field_sizes() | dict.fromkeys(("condition", "targets"), self.config.condition_size)

    def forward(self, windows: WaypointWindows) -> Tensor:
        return self.waypoints(windows.states, windows.condition)  # type: ignore[no-any-return]

    def loss(self, batch: WaypointWindows) -> dict[str, Tensor]:
        """Squared error of the steps that have one `ahead` of them in the window: fields `(..., b, k, .)` -> `(...)`.

        Padding counts, unless `released_padding` is off.
        """
        h, k = self.config.ahead, batch.mask.shape[-1]
        error = (of_merged(self, batch)[..., : k - h, :] - batch.targets[..., h:, :]).square().mean(dim=-1)
        if self.config.released_padding:
            return {"waypoint": error.mean(dim=(-2, -1))}
        real = batch.mask[..., : k - h]
        return {"waypoint": (error * real).sum(dim=(-2, -1)) / real.sum(dim=(-2, -1)).clamp(min=1)}


def condition_fields(facts: Facts) -> dict[str, Any]:
    """Goals where the states of a known environment show one, else returns; and N."""
    scale = return_scale(facts.returns)
    found: dict[str, Any] = {} if scale is None else {"return_scale": scale}
    if not facts.env_id or goal_columns(facts) is None:
        return found
    return found | {"condition": "goal"} | goal_fields(facts)


def return_scale(returns: tuple[float, ...]) -> float | None:
    """N of data whose episodes have these returns, the smallest and the largest; None where they are not known.

    The largest rounded to thousands, as in the release. Where that is not positive, which it would divide by all the
    same, the size of the largest return of either sign, or 1 if all are zero.
    """
    if not returns:
        return None
    rounded = round(max(returns), -3)
    return rounded if rounded > 0 else max(map(abs, returns)) or 1.0


MODEL = Model(
    name="waypoints",
    policy=Waypoints,
    config=WaypointConfig,
    description="the waypoint network, which is trained before the Waypoint Transformer",
    source="Badrinath et al. 2023, arXiv 2306.14069; StanfordAI4HI/waypoint-transformer@716f514",
    defaults=condition_fields,
    sampler=ConditionDraws(WaypointWindows),
    hidden=True,
)
