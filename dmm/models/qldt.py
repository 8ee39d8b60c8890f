"""Q-learning Decision Transformer: a Decision Transformer on returns-to-go that a critic has raised.

Three steps: train a conservative critic on the data (`dmm.models.conservative_q`, a run of its own in this run's
folder), relabel each return-to-go by what it thinks can still be had (`dmm.data.relabelling`), train `dt` on the new
returns. The network is that of `dmm.models.dt`, and so is acting: the target less the rewards so far.

The critic's values are not stored: `observed_values` makes them again, bit for bit, from the critic in the folder.
Where it is so cautious that no return is raised, this is `dt`; so training says on stderr how many steps were
relabelled, and their part is kept with the weights as `relabelled_share`.

Source: Yamagata et al. 2023, arXiv 2209.03993. Departures: sizes are those of the frame; the critic is this package's
own and is trained for as many updates as the transformer. `sizes=published` takes sizes and recipe of the script for
D4RL, `reproductions/offline/qdt.py` of takuseno/d3rlpy@38c34b6, where the time of an episode begins at 1: the first of
its 1002 embeddings is nobody's there, the last nobody's here. `from_official` reads the weights of the authors' mazes
(`dmm.models.qldt_maze`), which are of another network.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmm.configs import check_positive
from dmm.data.relabelling import (
    Drawn,
    LastReward,
    Relabelled,
    RelabelledSampler,
    relabel,
    relabel_all,
    window_returns,
)
from dmm.data.trajectories import Trajectories
from dmm.errors import InputError, require_choice, whole_number
from dmm.models.conservative_q import ConservativeQ, observed_values
from dmm.models.dt import RECIPE, DecisionTransformer, DTConfig
from dmm.models.entry import Facts, Model, Stage, domain
from dmm.models.qldt_maze import OFFICIAL
from dmm.policy import Policy

__all__ = ["MODEL", "QLDTConfig", "QLearningDT", "observed_values", "relabel", "relabel_all", "window_returns"]


@dataclass(frozen=True, kw_only=True)
class QLDTConfig(DTConfig):
    """A Decision Transformer, and how its returns are relabelled."""

    last_reward: LastReward = "kept"  # dropped: the script for D4RL, see `dmm.data.relabelling`
    drawn: Drawn = (
        "first"  # first: windows begin at the drawn step; last: they end with it, padded at an episode's start
    )
    critic_steps: int = 0  # updates of the critic; 0 for as many as the transformer's
    critic_width: int = 64  # of the critic's hidden layers
    critic_layers: int = 2  # hidden ones
    critic_batch: int = 128
    critic_rate: float = 1e-3  # the critic's learning rate
    critic_target_rate: float = 0.05  # part of the way that its targets go in each update
    conservative: float = 0.05  # weight of its conservative term, in the unit of `rtg_scale`

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("last_reward", self.last_reward, LastReward)
        require_choice("drawn", self.drawn, Drawn)
        whole_number("critic_steps", self.critic_steps, 0)
        check_positive(self, "critic_width", "critic_layers", "critic_batch")
        if not 0 <= self.conservative < math.inf:
            raise InputError(f"conservative: got {self.conservative:g}, allowed is 0 or more")
        if not 0 < self.critic_rate < math.inf:
            raise InputError(f"critic_rate: got {self.critic_rate:g}, allowed is a positive number")
        if not 0 < self.critic_target_rate <= 1:
            raise InputError(f"critic_target_rate: got {self.critic_target_rate:g}, allowed is above 0 and at most 1")


class QLearningDT(DecisionTransformer):
    """`DecisionTransformer`, which also knows how much of its data was relabelled."""

    config: QLDTConfig
    relabelled_share: Tensor

    def __init__(self, config: QLDTConfig):
        super().__init__(config)
        self.register_buffer("relabelled_share", torch.zeros(()))

    def look_at(self, data: Trajectories) -> None:
        if isinstance(data, Relabelled):
            self.relabelled_share.fill_(data.relabelled_steps() / data.transitions)


def critic_changes(config: QLDTConfig) -> Mapping[str, Any]:
    """Fields of the critic and of its training."""
    changes: dict[str, Any] = {"width": config.critic_width, "layers": config.critic_layers}
    changes |= {"rtg_scale": config.rtg_scale, "conservative": config.conservative}
    changes |= {"target_rate": config.critic_target_rate, "batch_size": config.critic_batch}
    changes |= {"learning_rate": config.critic_rate, "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
    return changes | ({"steps": config.critic_steps} if config.critic_steps else {})


def relabelled(trajectories: Trajectories, config: QLDTConfig, stages: Sequence[Policy]) -> Trajectories:
    """The data with returns relabelled by the critic; without one, before it is trained, as they are."""
    if not stages:
        return trajectories
    critic = stages[0]
    assert isinstance(critic, ConservativeQ)
    made = relabel_all(trajectories, observed_values(critic, trajectories), last_reward=config.last_reward)
    count, n = made.relabelled_steps(), made.transitions
    print(f"dmm: relabelled {count:,} of {n:,} steps ({100 * count / n:.1f} %)", file=sys.stderr)
    return made


def windows(trajectories: Trajectories, config: QLDTConfig, device: torch.device | str) -> RelabelledSampler:
    """How batches are drawn."""
    how: dict[str, Any] = {"drawn": config.drawn, "device": device, "generator": torch.Generator()}
    return RelabelledSampler(trajectories, config.context, **how)


def _published(facts: Facts) -> dict[str, Any]:
    """The script for D4RL, whose critic has three rates: 1e-4 of the actor, and this one of the critics."""
    sizes: dict[str, Any] = {"context": 20, "width": 128, "layers": 3, "heads": 1, "max_timestep": 1002}
    sizes |= {"dropout": 0.1, "start": "published", "last_reward": "dropped", "drawn": "last"}
    sizes |= {"critic_steps": 500_000, "critic_width": 256, "critic_layers": 3, "critic_rate": 3e-4}
    sizes |= {"critic_target_rate": 0.005}
    if domain(facts.env_id) == "mujoco":
        sizes |= {"rtg_scale": 1000.0, "conservative": 0.005}  # of rewards over 1000; 5 of rewards themselves
    return sizes | RECIPE


MODEL = Model(
    name="qldt",
    policy=QLearningDT,
    config=QLDTConfig,
    description="Q-learning Decision Transformer: dt on returns that a conservative critic has raised",
    source="Yamagata et al. 2023, arXiv 2209.03993; takuyamagata/qdt_simple@5d2f757, takuseno/d3rlpy@38c34b6",
    published=_published,
    sampler=windows,
    before=(Stage("conservative-q", critic_changes),),
    prepare=relabelled,
    official=OFFICIAL,
)
