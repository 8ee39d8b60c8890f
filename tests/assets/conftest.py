"""Policies with all their weights moved, so that nothing about them is small, and what a page makes of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmm.acting import make_actor
from dmm.errors import RunError
from dmm.experiments.grid import round_weights
from dmm.experiments.node import run_node
from dmm.export import describe_policy
from dmm.models.registry import MODELS
from dmm.policy import Policy
from dmm.training import Run
from dmm.widgets.mujoco import mujoco_file

Steps = list[tuple[list[float], float]]
"""Observation and the reward of the step before, of one episode."""
WAYS = [("window", 1), ("recurrent", 1), ("staggered", 1), ("staggered", 2), ("staggered", 4)]
"""Ways of acting, with numbers of states, for contexts that 2 and 4 divide."""


def moved(model: str, seed: int = 0, discrete: bool = False, **config: Any) -> Policy:
    """An untrained policy whose weights are half-precision numbers far from those of its start."""
    torch.manual_seed(seed)
    entry = MODELS[model]
    policy: Policy = entry.policy(entry.config(**config)).eval()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    round_weights(policy)
    policy.discrete_actions = discrete
    s = policy.state_size
    policy.set_state_moments(torch.randn(s), torch.rand(s) + 0.5)
    return policy


def exported(policy: Policy, model: str, **dataset: Any) -> dict[str, Any]:
    """What `dmm export` writes of a policy that has no run."""
    known = {
        "id": "tiny/none-v0",
        "env_id": "",
        "env_spec": "",
        "reference": None,
        "mean_return": 0.0,
        "max_return": 1.0,
    }
    return describe_policy(Run(None, policy, {"model": model, "dataset": known | dataset}, 0))  # type: ignore[arg-type]


def steps_of(policy: Policy, count: int, seed: int = 0) -> Steps:
    """An episode that nobody played: random observations and rewards."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(count, policy.state_size, generator=generator).tolist()
    return list(zip(seen, torch.rand(count, generator=generator).tolist(), strict=True))


def actions_in_python(
    policy: Policy, steps: Steps, target: float, way: str, states: int, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """The actions `(count, a)` of `dmm.acting` on these steps."""
    actor = make_actor(copy.deepcopy(policy).to(dtype), way, states)
    state, made = actor.init_state(1, target), []
    for t, (observation, reward) in enumerate(steps):
        earned = None if t == 0 else torch.tensor([reward], dtype=dtype)
        action, state = actor.act(state, torch.tensor([observation], dtype=dtype), earned)
        made.append(action[0])
    return torch.stack(made).double()


@pytest.fixture(scope="session")
def in_page(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`run_node` with MuJoCo: its loader is there, and `data.wasm` is what `dmm.startMujoco` takes."""
    try:
        made = mujoco_file()
    except RunError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(f"the physics of the page cannot be tried: {error}")
    glue = tmp_path_factory.mktemp("mujoco") / "glue.js"
    glue.write_text(made["glue"])
    return lambda code, data: run_node(code, {**data, "wasm": made["wasm"]}, before=[glue])
