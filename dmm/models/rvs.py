"""RvS: behaviour cloning by an MLP that also sees what is wanted, an average return or a goal.

    x = [state, condition],   the network and loss of `dmm.models.bc`
    RvS-R: condition = return-to-go / (L - t) / scale,  L the steps of the longest episode of the data, t the time step
    RvS-G: condition = the goal columns of a state that the same episode comes to later

Source: Emmons et al. 2022, scottemmons/rvs@90c0ffb. Nothing is normalised; the start is orthogonal in all sizes.

RvS-R acts on `target return / L / scale` from the first step to the last: neither rewards nor the clock change it. The
authors try ten targets on each data set and report the best.

RvS-G draws an episode uniformly, whatever its length, and two of its steps, of which the earlier gives state and action
and the later the goal (`GoalPairs`). In mazes a goal is a place, x and y; in the kitchen it is a whole state. When
acting it is what the environment asks for (`Wanted.goals`); the kitchen asks for none, and the goal is then the last
state of the data's best episode, in which the objects that D4RL's states name goals for are put there. The authors put
these objects into a state from a reset.

Departures: RvS-R's condition is divided by that of the data's best episode, since averages may be so small that a
network hardly hears them (a maze that pays 1 within 150 steps: 0.007); at the authors' sizes it is not. Of RvS-G,
states of point mazes hold the episode's own goal, which the authors' ant mazes do not show; maze episodes may end at
the goal, where D4RL's go on; and nothing is held out for choosing a checkpoint. Also those of `bc`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dmm.configs import check_positive
from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError, finite_number, whole_number
from dmm.models.bc import BCConfig, BehaviourCloning, authors_recipe, authors_sizes, sources, value_net
from dmm.models.entry import Facts, Model, Official, domain, goal_columns
from dmm.policy import Target, Wanted

KITCHEN_POSITIONS = 30
"""Of robot and objects in a state of D4RL's kitchen; behind them stand as many goals, 0 where there is none."""


@dataclass(frozen=True, kw_only=True)
class RvSRConfig(BCConfig):
    """RvS-R: an MLP of the state and an average return per step."""

    longest: int = 1000  # L, steps of the longest episode of the data
    average_scale: float = 1.0  # the average return is divided by it; its authors' is 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "longest")
        if not 0 < self.average_scale < float("inf"):
            raise InputError(f"average_scale: got {self.average_scale:g}, allowed is a positive number")


class RvSR(BehaviourCloning):
    """`Windows (b, k, ...) -> actions (b, k, a)`; see the module."""

    config: RvSRConfig

    def __init__(self, config: RvSRConfig):
        super().__init__(config, condition_size=1)

    def inputs(self, windows: Windows) -> Tensor:
        remaining = (self.config.longest - windows.timesteps).clamp(min=1)[..., None]
        average = windows.returns_to_go / remaining
        return torch.cat([windows.states, average / self.config.average_scale], dim=-1)

    def next_step(self, state: Windows, observation: Tensor) -> Windows:
        """The clock stands still: every step is asked for the average that the first one was."""
        now: Windows = super().next_step(state, observation)
        return dataclasses.replace(now, timesteps=torch.zeros_like(now.timesteps))


@dataclass(frozen=True, kw_only=True)
class RvSGConfig(BCConfig):
    """RvS-G: an MLP of the state and a goal."""

    goal_start: int = 0  # the first column of the state that belongs to a goal
    goal_size: int = 2  # g, how many do
    goal: str = ""  # g numbers with blanks between: what is wanted where the environment asks for nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        check_goal(self)


def check_goal(config: Any) -> None:
    """Passes when `goal_start`, `goal_size` and `goal` of a config belong to its states."""
    if not config.goal_size:
        raise InputError(
            "goal_size: got 0, the states of these data show no goal (achieved_goal of a maze, or the kitchen's); "
            f"allowed are goal_start and goal_size of columns among the {config.state_size} of the state"
        )
    whole_number("goal_start", config.goal_start, 0, config.state_size - 1)
    whole_number("goal_size", config.goal_size, 1, config.state_size - config.goal_start)
    if config.goal and len(usual_goal(config.goal)) != config.goal_size:
        raise InputError(f"goal: got {len(usual_goal(config.goal))} numbers, allowed are {config.goal_size}")


def usual_goal(goal: str) -> tuple[float, ...]:
    """The numbers of a config's `goal`."""
    try:
        return tuple(finite_number("goal", float(word)) for word in goal.split())
    except ValueError:
        raise InputError(f"goal: got {goal[:40]!r}, allowed are finite numbers with blanks between") from None


@dataclass(frozen=True, eq=False)
class GoalWindows(Windows):
    """Windows of one step with the goal that its episode comes to."""

    goals: Tensor  # (b, k, g)


class GoalPairs:
    """Draws pairs of steps of one episode, the earlier for state and action, the later for the goal.

    An episode of L steps is drawn uniformly, then `floor(u (L - 1))` and `floor(v L)` with uniform u and v, which may
    coincide; so its last step is half as often a goal as others, and never a state unless it is the only one.

    Args:
        trajectories: the data, of which the sampler keeps a copy.
        config: says which columns of the state make a goal.
        device: where the data lie and batches are put together.
    """

    def __init__(self, trajectories: Trajectories, config: RvSGConfig, device: torch.device | str):
        self.steps = WindowSampler(trajectories, 1, generator=torch.Generator(), device=device)
        columns = slice(config.goal_start, config.goal_start + config.goal_size)
        self.goals = torch.tensor(trajectories.observations[:, columns], device=device)  # (N, g)
        self.starts, self.lengths = torch.from_numpy(trajectories.starts), torch.from_numpy(trajectories.lengths)

    def draw(self, batches: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Rows of states and goals: `(batches, b, 2)`, the numbers of as many draws of one batch."""
        shape = (whole_number("batches", batches, 1), whole_number("batch_size", batch_size, 1))
        w, u, v = torch.rand((*shape, 3), generator=generator, dtype=torch.float64).unbind(dim=-1)
        episode = (w * len(self.starts)).long().clamp(max=len(self.starts) - 1)
        last = self.lengths[episode] - 1
        first, second = (u * last).long(), torch.minimum((v * (last + 1)).long(), last)
        pair = torch.stack([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)
        return self.starts[episode][..., None] + pair

    def gather(self, index: Tensor) -> GoalWindows:
        """The batch of rows `(..., b, 2)`, with k = 1; nothing here waits for the device."""
        index = index.to(self.goals.device, non_blocking=True)
        steps = self.steps.gather(index[..., 0])
        parts = {field.name: getattr(steps, field.name) for field in fields(steps)}
        return GoalWindows(**parts, goals=self.goals[index[..., 1]][..., None, :])


class RvSG(BehaviourCloning):
    """`GoalWindows (b, k, ...) -> actions (b, k, a)`; see the module. Beside the frame's windows it needs their goals.

    Acting, the goals are those asked for, else `config.goal`.
    """

    batch = GoalWindows
    config: RvSGConfig
    usual_goal: Tensor

    def __init__(self, config: RvSGConfig):
        super().__init__(config, condition_size=config.goal_size)
        self.register_buffer("usual_goal", torch.tensor(usual_goal(config.goal)), persistent=False)

    def field_sizes(self) -> dict[str, int]:
        return super().field_sizes() | {"goals": self.config.goal_size}

    def inputs(self, windows: Windows) -> Tensor:
        if not isinstance(windows, GoalWindows):
            raise InputError(f"windows: got {type(windows).__name__}, allowed are GoalWindows, which have goals")
        return torch.cat([windows.states, windows.goals], dim=-1)

    def init_state(self, n: int, target: Target) -> GoalWindows:
        """The memory of `n` episodes, their goals among it.

        Raises:
            InputError: no goals and no `config.goal`, or goals of another shape.
        """
        goals = wanted_goals(n, target, self.config.goal_size, self.usual_goal, "rvs-g")
        begun: GoalWindows = super().init_state(n, target)
        return dataclasses.replace(begun, goals=goals[:, None].clone())

    def next_step(self, state: GoalWindows, observation: Tensor) -> GoalWindows:
        now: GoalWindows = super().next_step(state, observation)
        return dataclasses.replace(now, goals=state.goals)


def wanted_goals(n: int, target: Target, size: int, usual: Tensor, name: str) -> Tensor:
    """The goals of n episodes, `(n, size)`: those asked for, else the usual one, `(size,)`, or `(0,)` if there is none.

    Raises:
        InputError: neither, or goals of another shape.
    """
    goals = Wanted.of(target).goals
    if goals is None and not len(usual):
        raise InputError(
            f"goals: got none, allowed is one for each episode, ({n}, {size}): this environment has no "
            f"desired_goal, and {name} goes where it is asked to"
        )
    goals = usual.expand(n, -1) if goals is None else goals.to(usual)
    if goals.shape != (n, size):
        raise InputError(f"goals: got shape {tuple(goals.shape)}, allowed is ({n}, {size})")
    return goals


def _longest(facts: Facts) -> dict[str, Any]:
    largest = max(map(abs, facts.returns), default=0.0)
    return {"longest": facts.longest, "average_scale": largest / facts.longest if 0 < largest < float("inf") else 1.0}


def _recipe_for_returns(facts: Facts) -> dict[str, Any]:
    return authors_recipe(facts) | {"average_scale": 1.0}


def goal_fields(facts: Facts) -> dict[str, Any]:
    """Which columns are a goal, and what is wanted in a kitchen.

    The config refuses `goal_size` 0, that of data without goals; where there are no data yet it is the whole state.
    """
    start, size = goal_columns(facts) or (0, 0 if facts.best_end else facts.state_size)
    found = {"goal_start": start, "goal_size": size}
    if domain(facts.env_id) != "kitchen" or not facts.best_end:
        return found
    return found | {"goal": " ".join(f"{number:.9g}" for number in _all_tasks_done(facts.best_end))}


def _all_tasks_done(state: tuple[float, ...]) -> tuple[float, ...]:
    """A state of the kitchen in which the goals that it names are reached; others name none."""
    if len(state) != 2 * KITCHEN_POSITIONS:
        return state
    positions, goals = state[:KITCHEN_POSITIONS], state[KITCHEN_POSITIONS:]
    return (*(goal or position for position, goal in zip(positions, goals, strict=True)), *goals)


def _official_r(config: Mapping[str, Any]) -> RvSRConfig:
    return RvSRConfig(**authors_sizes(config, 1), longest=config.get("longest", 1000))


def _official_g(config: Mapping[str, Any]) -> RvSGConfig:
    return RvSGConfig(**authors_sizes(config), goal_size=config["condition_size"])


_SOURCE = "Emmons et al. 2022, arXiv 2112.10751; scottemmons/rvs@90c0ffb"
RETURNS = Model(
    name="rvs-r",
    policy=RvSR,
    config=RvSRConfig,
    description="RvS-R: an MLP of the state and the average return that is wanted",
    source=_SOURCE,
    defaults=_longest,
    published=_recipe_for_returns,
    official=Official(config=_official_r, sources=sources, unused=value_net),
)
GOALS = Model(
    name="rvs-g",
    policy=RvSG,
    config=RvSGConfig,
    description="RvS-G: an MLP of the state and the goal that is wanted, for mazes and the kitchen",
    source=_SOURCE,
    defaults=goal_fields,
    published=authors_recipe,
    sampler=GoalPairs,
    official=Official(config=_official_g, sources=sources, unused=value_net),
)
