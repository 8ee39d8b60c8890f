"""Whether the page's code scores as the package does, and how long an action takes in it.

    python -m dmm.experiments.page

Two kept policies play the same number of episodes in Python (PyTorch, Gymnasium) and in the page's scripts (node,
MuJoCo as WebAssembly), each from starts of its own, asked for two returns. Means have 95 % intervals over episodes.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmm.experiments import RESULTS, kept_run, path_argument, write_result
from dmm.experiments.grid import machine
from dmm.experiments.node import run_node

EPISODES = 100
SEED = 10_000
TIMED = ("window", "recurrent", "staggered")
TIMED_STEPS = 600
ROUNDS = 12


@dataclass(frozen=True)
class Case:
    """A kept run, what it is asked for, and how it acts."""

    run: str
    targets: tuple[float, ...]
    ways: tuple[str, ...]


CASES = (
    Case("gating/pointmaze-dmm-seed0", (1.0, 0.0), ("window", "recurrent")),
    Case("gating/hopper-dmm-seed0", (3600.0, 600.0), ("recurrent",)),
)
PLAY = """
const policy = dmm.readPolicy(data.policy), { world: description } = policy.environment;
const world = dmm.makeWorld(description, description.needs ? await dmm.startMujoco(data.wasm) : null);
const actor = new dmm.Actor(policy, { way: data.way });
return Array.from({ length: data.episodes }, (_, i) => {
  let observation = world.reset({ seed: data.seed + i }), reward = null, over = false;
  actor.reset(data.target);
  let earned = 0;
  while (!over) {
    const made = world.step(dmm.played(policy, actor.act(observation, reward)));
    ({ observation, reward } = made);
    earned += reward;
    over = made.terminated || made.truncated;
  }
  return earned;
});
"""
TIME = """
const policy = dmm.readPolicy(data.policy), random = dmm.random(0);
const drawn = () => Array.from({ length: policy.stateSize }, () => random() - 0.5);
const seen = Array.from({ length: data.steps }, drawn);
return data.ways.map(way => {
  const actor = new dmm.Actor(policy, { way });
  actor.reset(data.target);
  const round = Math.floor(data.steps / data.rounds), spent = [];
  for (let begun = process.cpuUsage(), t = 0; t < data.steps; ) {
    actor.act(seen[t], t ? 1 : null);
    if (++t % round) continue;
    const { user, system } = process.cpuUsage(begun);
    spent.push((user + system) / 1000 / round);
    begun = process.cpuUsage();
  }
  return Math.min(...spent); // the first rounds compile, too
});
"""


def compare(case: Case, way: str, target: float, episodes: int, physics: dict[str, str]) -> dict[str, Any]:
    """Both means with intervals."""
    from dmm.evaluation import evaluate
    from dmm.export import describe_policy

    run = kept_run(case.run)
    here = evaluate(run, episodes=episodes, targets=[target], acting=way, seed=SEED, progress=False).scores[0].returns
    given = {"policy": describe_policy(run), "wasm": physics["wasm"], "way": way, "target": target}
    there = in_node(PLAY, given | {"episodes": episodes, "seed": SEED}, physics)
    row = {"run": case.run, "acting": way, "target": target, "python": _mean(here), "page": _mean(there)}
    print(row, flush=True)
    return row


def time_actions(run: str, target: float) -> dict[str, float]:
    """Milliseconds of processor time of one action of a kept run, by way of acting: of the best of several rounds."""
    from dmm.export import describe_policy

    given = {"policy": describe_policy(kept_run(run)), "steps": TIMED_STEPS, "rounds": ROUNDS, "ways": TIMED}
    given["target"] = target
    return dict(zip(TIMED, run_node(TIME, given), strict=True))


def in_node(code: str, data: Any, physics: dict[str, str]) -> Any:
    """`run_node` with MuJoCo's loader in front."""
    with tempfile.TemporaryDirectory() as folder:
        glue = Path(folder) / "glue.js"
        glue.write_text(physics["glue"])
        return run_node(code, data, before=[glue], seconds=3600)


def _mean(returns: Any) -> dict[str, Any]:
    from dmm.evaluation import bootstrap_interval

    values = np.asarray(returns, dtype=np.float64)
    return {"mean": float(values.mean()), "ci95": list(bootstrap_interval(values))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Play the same policies in Python and in the page's code.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "page.json", help="the result file to write")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each policy and return asked for")
    args = parser.parse_args()

    from dmm.widgets.mujoco import mujoco_file

    physics = mujoco_file()
    rows = [
        compare(case, way, target, args.episodes, physics)
        for case in CASES
        for way in case.ways
        for target in case.targets
    ]
    hopper = CASES[-1]
    result = {
        "settings": {"episodes": args.episodes, "mujoco": physics["version"], "timed_steps": TIMED_STEPS},
        "machine": machine(),
        "scores": rows,
        "milliseconds": time_actions(hopper.run, hopper.targets[0]),
    }
    write_result(args.out, result)


if __name__ == "__main__":
    main()
