"""Whether the page's code scores as the package does, what the book says of live figures, and the time of an action.

    python -m dmm.experiments.page

Kept policies play the same episodes in Python (PyTorch, Gymnasium) and in the page's scripts (node, MuJoCo as
WebAssembly), from starts that Python draws and hands over, so that the two are compared episode by episode. Means have
95 % intervals over episodes. `starts` are episodes whose starts the page draws by itself, as a reader's do.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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
TURN = 20
"""The step from which on a case asks for something else, if it does."""
TIMED = ("window", "recurrent", "staggered")
TIMED_STEPS = 600
ROUNDS = 12


@dataclass(frozen=True)
class Case:
    """A kept run, how it acts, and what is asked of it."""

    run: str
    acting: str
    asked: float
    then: float | None = None  # what is asked from step `TURN` on; None for the same
    cut: str = "nothing"  # what is taken away, by the name that it has in the figure
    padding: bool = True  # whether the recurrence begins behind padding, as a window does
    times: int = 1  # as many episodes as usual


MAZE, HOPPER = "gating/pointmaze-dmm-seed0", "gating/hopper-dmm-seed0"
BEST = {"pointmaze": 1.0, "hopper": 3400.0}
"""What the figures ask for at their start."""
CUTS = ("nothing", "return-to-go tokens", "state tokens", "action tokens", "all local windows", "all gates")
PARTS: dict[str, tuple[Case, ...]] = {
    "scores": (
        *(Case(MAZE, way, asked) for way in ("window", "recurrent") for asked in (1.0, 0.0)),
        *(Case(HOPPER, "recurrent", asked) for asked in (3600.0, 600.0)),
    ),
    "asked": (
        Case(MAZE, "recurrent", 1.0, then=0.0, times=3),
        *(Case(HOPPER, "recurrent", asked) for asked in (0.0, 1000.0, 2000.0, 3400.0, 3800.0)),
    ),
    "cuts": tuple(
        Case(f"gating/{task}-{model}-seed0", "recurrent", asked, cut=cut)
        for task, asked in BEST.items()
        for model in ("dmm", "mamba")
        for cut in CUTS
    ),
    "cue": (
        Case("worlds/tmaze-k21", "window", 1.0),
        Case("worlds/tmaze-k21", "recurrent", 1.0),
        Case("worlds/tmaze-k21", "recurrent", 1.0, padding=False),
        Case("worlds/tmaze-k8", "window", 1.0),
    ),
}
"""What is played, by what it is for: the table of scores, and the answers of chapters 8, 5 and 7."""
OWN_STARTS = (Case(MAZE, "recurrent", 1.0, times=5), Case(HOPPER, "recurrent", 3600.0))
PLAY = """
const policy = dmm.readPolicy(data.policy), { world: description } = policy.environment;
const world = dmm.makeWorld(description, description.needs ? await dmm.startMujoco(data.wasm) : null);
const actor = new dmm.Actor(policy, data.actor);
return data.starts.map(start => {
  let observation = world.reset(start), reward = null, earned = 0, over = false;
  actor.reset(data.asked);
  while (!over) {
    if (data.then !== null && actor.steps === data.turn) actor.ask(data.then);
    const made = world.step(dmm.played(policy, actor.act(observation, reward)));
    ({ observation, reward } = made);
    earned += reward;
    over = made.terminated || made.truncated;
  }
  return [earned, actor.steps];
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


class ChangedMind:
    """An actor of whose episodes another return is asked from a step on, as if it had been asked from the beginning.

    The step before seems to have earned the difference: that is all that a return-to-go says of it.
    """

    def __init__(self, actor: Any, turn: int, less: float):
        self.actor, self.turn, self.less = actor, turn, less

    def init_state(self, n: int, target: Any) -> tuple[int, Any]:
        """The step, and the actor's own memory."""
        return 0, self.actor.init_state(n, target)

    def act(self, state: tuple[int, Any], observation: Any, reward: Any = None) -> tuple[Any, tuple[int, Any]]:
        step, memory = state
        action, memory = self.actor.act(memory, observation, reward + self.less if step == self.turn else reward)
        return action, (step + 1, memory)

    def select(self, state: tuple[int, Any], rows: Any) -> tuple[int, Any]:
        return state[0], self.actor.select(state[1], rows)


def play_case(case: Case, episodes: int, physics: dict[str, str]) -> dict[str, Any]:
    """The same episodes in Python and in the page: means, and that of their difference.

    Args:
        case: what is played.
        episodes: how many, times `case.times`.
        physics: what `dmm.widgets.mujoco.mujoco_file` returns.
    """
    here, starts = in_python(case, episodes * case.times)
    there = in_page(case, [{"state": start} for start in starts], physics)
    row = dataclasses.asdict(case) | {"python": _summary(here), "page": _summary(there)}
    row |= {"difference": _mean(there[:, 0] - here[:, 0])}
    print(row, flush=True)
    return row


def play_own_starts(case: Case, episodes: int, physics: dict[str, str]) -> dict[str, Any]:
    """Episodes in Python, and others in the page, whose starts it draws by itself."""
    here, _ = in_python(case, episodes * case.times)
    there = in_page(case, [{"seed": SEED + i} for i in range(episodes * case.times)], physics)
    return dataclasses.asdict(case) | {"python": _summary(here), "page": _summary(there)}


def in_python(case: Case, episodes: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Returns and lengths `(episodes, 2)`, and the starts, as the page takes them."""
    from dmm.acting import RecurrentActor, make_actor
    from dmm.data.worlds import world_start
    from dmm.evaluation import environments, make_env, play, step_limit
    from dmm.inspection.cuts import Cut, cut_policy

    run: Any = kept_run(case.run)
    policy = cut_policy(run.policy, Cut(**_cut(run, case)))
    actor: Any = make_actor(policy, case.acting) if case.padding else RecurrentActor(policy, padding=False)
    if case.then is not None:
        actor = ChangedMind(actor, TURN, case.asked - case.then)
    with environments(functools.partial(make_env, run.info), episodes) as envs:
        limit = step_limit(envs[0], run.info["dataset"])
        asked: dict[str, Any] = {"target": case.asked, "seed": SEED, "max_steps": limit, "keep_observations": False}
        done = play(actor, envs, episodes=episodes, **asked)
        starts = []
        for i in range(episodes):
            envs[0].reset(seed=SEED + i)
            starts.append(world_start(envs[0]))
    return np.stack([done.returns, done.lengths], axis=1), starts


def in_page(case: Case, starts: list[dict[str, Any]], physics: dict[str, str]) -> np.ndarray:
    """Returns and lengths `(episodes, 2)`; `starts` are what a world's `reset` takes."""
    from dmm.export import describe_policy

    run = kept_run(case.run)
    actor = {"way": case.acting, "cut": _cut(run, case), "padding": case.padding}
    given: dict[str, Any] = {"policy": describe_policy(run), "wasm": physics["wasm"], "actor": actor, "starts": starts}
    given |= {"asked": case.asked, "then": case.then, "turn": TURN}
    with tempfile.TemporaryDirectory() as folder:
        glue = Path(folder) / "glue.js"
        glue.write_text(physics["glue"])
        return np.array(run_node(PLAY, given, before=[glue], seconds=3600), dtype=np.float64)


def time_actions(run: str, target: float) -> dict[str, float]:
    """Milliseconds of processor time of one action of a kept run, by way of acting: of the best of several rounds."""
    from dmm.export import describe_policy

    given = {"policy": describe_policy(kept_run(run)), "steps": TIMED_STEPS, "rounds": ROUNDS, "ways": TIMED}
    given["target"] = target
    return dict(zip(TIMED, run_node(TIME, given), strict=True))


def _cut(run: Any, case: Case) -> dict[str, Any]:
    """What a case takes away, as `dmm.inspection.cuts.Cut` and the page's actor take it."""
    from dmm.widgets.acting import named_cuts

    return named_cuts(run.policy.config.layers)[case.cut] or {}


def _summary(played: np.ndarray) -> dict[str, Any]:
    """Of returns and lengths `(episodes, 2)`: mean return with its interval, least and largest, mean length."""
    returns, lengths = played.T
    return _mean(returns) | {"range": [float(returns.min()), float(returns.max())], "steps": float(lengths.mean())}


def _mean(values: np.ndarray) -> dict[str, Any]:
    from dmm.evaluation import bootstrap_interval

    return {"mean": float(values.mean()), "ci95": list(bootstrap_interval(values))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Play the same policies in Python and in the page's code.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "page.json", help="the result file to write")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each case, some of which take more")
    args = parser.parse_args()

    from dmm.widgets.mujoco import mujoco_file

    physics = mujoco_file()
    timed = PARTS["scores"][-1]
    result = {
        "settings": {"episodes": args.episodes, "mujoco": physics["version"], "timed_steps": TIMED_STEPS, "turn": TURN},
        "machine": machine(),
        **{name: [play_case(case, args.episodes, physics) for case in cases] for name, cases in PARTS.items()},
        "starts": [play_own_starts(case, args.episodes, physics) for case in OWN_STARTS],
        "milliseconds": time_actions(timed.run, timed.asked),
    }
    write_result(args.out, result)


if __name__ == "__main__":
    main()
