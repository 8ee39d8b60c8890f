"""What one action of each model costs: CPU time in one environment, on one thread, as a ratio to the default model.

    python -m dmm.experiments.costs

All models have the sizes that they share, for the point maze, and random weights, which change no time. They act in
turn, one step each, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from dmm.experiments import RESULTS, path_argument, write_result
from dmm.experiments.all_models import shown_models
from dmm.experiments.grid import machine

REFERENCE = "dmm"
STEPS, TIMED = 120, 100
"""Steps that each model acts, and how many of them, the last ones, are timed: by then every window is full."""


def facts() -> Any:
    """What models know of the data for the point maze."""
    from dmm.data.recipes import find_recipe
    from dmm.experiments.pointmaze import DATASET
    from dmm.models.entry import Facts

    recipe = find_recipe(DATASET)
    return Facts(
        state_size=6, action_size=2, env_id=recipe.env_id, longest=150, observation_keys=recipe.observation_keys
    )


def make_policy(name: str) -> Any:
    """An untrained policy at the shared sizes."""
    import torch

    from dmm.models.registry import MODELS

    model = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.policy(model.config_for(facts(), {})).eval()


class Actor:
    """A policy in one episode, that keeps its memory itself; one that is a recurrence acts as such."""

    def __init__(self, policy: Any):
        import torch

        from dmm.acting import make_actor
        from dmm.policy import Wanted

        self.policy = make_actor(policy, "recurrent" if policy.recurrent else "window")
        self.state = self.policy.init_state(1, Wanted(returns=1.0, goals=torch.zeros(1, 2)))
        self.reward: Any = None

    def seconds(self, observation: Any, reward: Any) -> float:
        """CPU seconds of the next action."""
        begin = time.process_time()
        _, self.state = self.policy.act(self.state, observation, self.reward)
        used = time.process_time() - begin
        self.reward = reward
        return used


def measure(steps: int = STEPS, timed: int = TIMED) -> list[dict[str, Any]]:
    """Median and quartiles of each model's microseconds, and the ratio of medians to that of the reference."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    policies = {name: make_policy(name) for name in shown_models()}
    actors = {name: Actor(policy) for name, policy in policies.items()}
    taken: dict[str, list[float]] = {name: [] for name in actors}
    for _ in range(steps):
        observation, reward = torch.randn(1, 6, generator=generator), torch.zeros(1)
        for name, actor in actors.items():
            taken[name].append(1e6 * actor.seconds(observation, reward))
    quartiles = {name: np.quantile(values[-timed:], (0.25, 0.5, 0.75)) for name, values in taken.items()}
    reference = quartiles[REFERENCE][1]
    return [
        {
            "name": name,
            "weights": sum(weight.numel() for weight in policies[name].parameters()),
            "us": dict(zip(("low", "median", "high"), map(float, found), strict=True)),
            "ratio": float(found[1] / reference),
        }
        for name, found in quartiles.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one action of every model.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "costs.json", help="the result file to write")
    args = parser.parse_args()
    settings = {"reference": REFERENCE, "steps": STEPS, "timed": TIMED, "threads": 1}
    write_result(args.out, {"settings": settings, "machine": machine(), "models": measure()})


if __name__ == "__main__":
    main()
