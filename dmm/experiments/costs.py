"""What one action of each model costs, as a ratio to the default model, on one thread.

    python -m dmm.experiments.costs

All models have the sizes that they share and random weights, which change no time. A model whose memory is a recurrence
acts as one. What is counted is the CPU's time, which others on the machine hardly change; models take turns.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from dmm.experiments import RESULTS, path_argument, write_result
from dmm.experiments.all_models import shown_models
from dmm.experiments.grid import machine

REFERENCE = "dmm"
STEPS, ROUNDS = 12, 41
"""Actions that each model takes in a turn, and turns; those of the first are not timed, windows fill up in it."""


LEFT_OUT = ("td3bc", "cql", "iql")
"""Value-based models, small MLPs whose library need not be installed."""


def systems() -> list[str]:
    """The models that are timed."""
    return [name for name in shown_models() if name not in LEFT_OUT]


class Player:
    """One episode of an actor on observations of random numbers."""

    def __init__(self, policy: Any):
        import torch

        from dmm.acting import make_actor
        from dmm.inspection.cost import wanted_of

        self.actor: Any = make_actor(policy, "recurrent" if policy.recurrent else "window")
        self.state = self.actor.init_state(1, wanted_of(policy))
        self.observation, self.reward = torch.zeros(1, policy.state_size), torch.zeros(1)
        self.begun = False

    def play(self, steps: int) -> list[float]:
        """CPU microseconds of each of so many actions."""
        taken = []
        for _ in range(steps):
            self.observation.normal_()
            begin = time.process_time()
            _, self.state = self.actor.act(self.state, self.observation, self.reward if self.begun else None)
            taken.append(1e6 * (time.process_time() - begin))
            self.begun = True
        return taken


def measure(steps: int = STEPS, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Of each model: weights, microseconds of an action, quartiles of its ratio to the reference in the same turn."""
    import numpy as np
    import torch

    from dmm.inspection.cards import facts_for, fresh, sizes_of
    from dmm.models.registry import MODELS

    torch.set_num_threads(1)
    facts = {name: facts_for(MODELS[name]) for name in systems()}
    policies = {name: fresh(MODELS[name], sizes_of(MODELS[name], of, "frame")[0]) for name, of in facts.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        players = {name: Player(policy) for name, policy in policies.items()}
        turns = [{name: player.play(steps) for name, player in players.items()} for _ in range(rounds)]
    found = {name: np.median([turn[name] for turn in turns[1:]], axis=1) for name in players}  # one for each turn
    return [
        {
            "name": name,
            "data": facts[name].env_id,
            "weights": sum(weight.numel() for weight in policies[name].parameters()),
            "us": float(np.median(us)),
            "ratio": _quartiles(us / found[REFERENCE]),
        }
        for name, us in found.items()
    ]


def _quartiles(values: Any) -> dict[str, float]:
    import numpy as np

    return dict(zip(("low", "median", "high"), map(float, np.quantile(values, (0.25, 0.5, 0.75))), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one action of every model.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "costs.json", help="the result file to write")
    args = parser.parse_args()
    settings = {"reference": REFERENCE, "steps": STEPS, "rounds": ROUNDS, "threads": 1}
    write_result(args.out, {"settings": settings, "machine": machine(), "models": measure()})


if __name__ == "__main__":
    main()
