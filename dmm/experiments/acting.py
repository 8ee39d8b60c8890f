"""What a policy scores when it acts on a window, as a recurrence, and with staggered states, and what a step costs.

    python -m dmm.experiments.acting
    python -m dmm.experiments.acting --latency

The first command trains DMMs with contexts of 8 and 24 steps on a dense task (Hopper) and on two sparse ones (point
mazes), several seeds each, and lets each play the same episodes in every way of `dmm.acting`. Further ways ask two
questions: what the padding in front of an episode is worth (the recurrence from a zero state, the window without its
padded steps), and what the length of the window is (windows shorter than in training). The second command times the
ways on this machine, which should have nothing else to do, and puts the figures into the same file.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmm.experiments import kept_run, write_result
from dmm.experiments.grid import Job, argument_parser, machine, mean_interval, train_job
from dmm.experiments.queue import run_jobs

if TYPE_CHECKING:
    from dmm.acting import Actor, Memory
    from dmm.evaluation import Rollout
    from dmm.policy import Policy
    from dmm.training import Run


@dataclass(frozen=True)
class Task:
    """A data set, how long to train on it, and how to score."""

    dataset: str
    steps: int
    target: float
    episodes: int
    changes: dict[str, Any] = field(default_factory=dict)  # of the model or of training


SHORT = {"learning_rate": 1e-3}  # ten times the paper's, for runs of 3,000 updates
TASKS: dict[str, Task] = {
    "pointmaze": Task("dmm/pointmaze/umaze-v0", 3_000, 1.0, 200, SHORT),
    "pointmaze-medium": Task("dmm/pointmaze/medium-v0", 3_000, 1.0, 200, SHORT),
    "hopper": Task("dmm/hopper/medium-v0", 10_000, 3600.0, 100),
}
STAGGERED: dict[int, tuple[int, ...]] = {8: (1, 2, 4), 24: (1, 2, 4, 8)}
"""Numbers of states, by context; as many as the context has steps are the window."""
SHORTER: dict[int, tuple[int, ...]] = {8: (1, 2, 4), 24: (1, 4, 8)}
"""Steps of the windows that are shorter than the one of training, by context."""
FIRST_EPISODE = 10_000
"""Its environment seed, as in `dmm evaluate`."""
TIMED_STEPS = (10, 100, 1_000, 10_000)
TIMED_CALLS = 400
TIMED_MODEL = "gating/hopper-dmm-seed0"
"""A DMM of 3 layers and 64 channels, context 8."""
TIMED_EPISODES = 100


def ways(context: int) -> dict[str, Callable[[Policy], Actor]]:
    """How to make an actor of a policy, by the name of the way."""
    from dmm.acting import make_actor

    staggered = {f"staggered, m={m}": partial(make_actor, acting="staggered", states=m) for m in STAGGERED[context]}
    return {"window": make_actor, "recurrent": partial(make_actor, acting="recurrent"), **staggered}


def questions(context: int) -> dict[str, Callable[[Policy], Actor]]:
    """As `ways`: what the padding is worth, and what the length of the window."""
    shorter = {f"window, {steps} steps": partial(shorter_window, steps=steps) for steps in SHORTER[context]}
    return {"recurrent, zero state": recurrent_from_zero, "window, no padding": window_without_padding, **shorter}


def shorter_window(policy: Policy, steps: int) -> Actor:
    """The window of the last `steps` steps."""
    policy = copy.deepcopy(policy).eval()
    policy.context = steps
    return policy


def recurrent_from_zero(policy: Policy) -> Actor:
    """The recurrence, begun before the first step of the episode instead of before the padding."""
    from dmm.acting import RecurrentActor

    class FromZero(RecurrentActor):
        def beginning(self) -> Memory:
            return self.nothing()

    return FromZero(policy)  # type: ignore[arg-type]


def window_without_padding(policy: Policy) -> Actor:
    """The window, which in the first steps of an episode holds no more than these; as `K` staggered states."""
    from dmm.acting import StaggeredActor

    class FromZero(StaggeredActor):
        def beginning(self) -> Memory:
            return self.nothing()

    return FromZero(policy, policy.context)  # type: ignore[arg-type]


def train_and_act(job: Job) -> dict[str, Any]:
    """One policy, trained, and what it scores in each way."""
    from dmm.evaluation import environments, make_env, play

    run = train_job(job)
    task, context = job.name.split("/")[0], run.policy.context
    settings: dict[str, Any] = {"episodes": job.episodes, "target": job.targets[0], "seed": FIRST_EPISODE}
    with environments(lambda: make_env(run.info), job.episodes) as envs:
        played = {
            name: play(make(run.policy), envs, **settings)
            for name, make in (ways(context) | questions(context)).items()
        }
    reference = tuple(run.info["dataset"]["reference"])
    rows = {name: compare(done, played["window"], reference) for name, done in played.items()}
    print(job.name, job.seed, {name: round(row["score"], 1) for name, row in rows.items()}, flush=True)
    return {
        "task": task,
        "context": context,
        "seed": job.seed,
        "weights": run.policy.parameter_count(),
        "loss": float(run.log["loss"][-1]),
        "ways": rows,
    }


def compare(done: Rollout, window: Rollout, reference: tuple[float, float]) -> dict[str, Any]:
    """Score and counts of a way's episodes, and of their differences to the window's episodes of the same seeds."""
    from dmm.data.scores import normalize

    score, other = normalize(done.returns, reference), normalize(window.returns, reference)
    better, worse = done.returns > window.returns + 1e-3, done.returns < window.returns - 1e-3
    return {
        "score": float(score.mean()),
        "episodes": len(score),
        "arrived": int((done.returns > 0).sum()),  # of sparse tasks: the reward was earned
        "deviation": float(score.std(ddof=1)),
        "length": float(done.lengths.mean()),
        "difference": float((score - other).mean()),
        "difference_deviation": float((score - other).std(ddof=1)),
        "better": int(better.sum()),
        "worse": int(worse.sum()),
    }


def summarize_ways(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task, context and way: the score and its difference to the window's, with 95 % intervals.

    `ci95` of `score` and `difference` are Student's t over training seeds, what another seed might give.
    `difference_episodes` is over all episodes of these policies, what other episodes of the same policies might give:
    the standard errors of the seeds' paired differences, taken together.
    """
    summary = []
    for task, context in dict.fromkeys((row["task"], row["context"]) for row in rows):
        own = [row["ways"] for row in rows if (row["task"], row["context"]) == (task, context)]
        for way in own[0]:
            played = [each[way] for each in own]
            differences = [each["difference"] for each in played]
            summary.append(
                {
                    "task": task,
                    "context": context,
                    "way": way,
                    "seeds": len(own),
                    "score": mean_interval([each["score"] for each in played]),
                    "difference": mean_interval(differences),
                    "difference_episodes": _episode_interval(played, float(np.mean(differences))),
                    **{key: sum(each[key] for each in played) for key in ("episodes", "arrived", "better", "worse")},
                }
            )
    return summary


def summarize_overall(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per way that all contexts have: its difference to the window over all policies, whatever task, context and seed.

    `difference` has the mean and its 95 % interval (Student's t over policies), `deviation` says how far a single
    policy may lie from the mean, `smallest` and `largest` how far one did.
    """
    summary = []
    for way in rows[0]["ways"]:
        if all(way in row["ways"] for row in rows):
            values = np.array([row["ways"][way]["difference"] for row in rows])
            summary.append(
                {
                    "way": way,
                    "policies": len(values),
                    "difference": mean_interval(values),
                    "deviation": float(values.std(ddof=1)),
                    "smallest": float(values.min()),
                    "largest": float(values.max()),
                }
            )
    return summary


def _episode_interval(played: Sequence[dict[str, Any]], mean: float) -> list[float]:
    errors = [each["difference_deviation"] ** 2 / each["episodes"] for each in played]
    half = 1.96 * np.sqrt(sum(errors)) / len(errors)
    return [mean - float(half), mean + float(half)]


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every task, context and seed; seed 0 of all before seed 1 of any."""
    return [
        Job(
            name=f"{name}/k{context}",
            seed=seed,
            folder=runs / f"{name}-k{context}-seed{seed}",
            dataset=task.dataset,
            model="dmm",
            steps=task.steps,
            targets=(task.target,),
            episodes=task.episodes,
            changes={"context": context, **task.changes},
        )
        for seed in range(seeds)
        for name, task in TASKS.items()
        for context in STAGGERED
    ]


def measure_latency() -> dict[str, Any]:
    """Microseconds per step of one environment, by way and by how far the episode is; then whole evaluations.

    One thread. The policy of context 24 is the one of context 8 with a longer window: weights do not change the time.
    """
    import torch

    from dmm.models.dmm import DecisionMetaMamba, DMMConfig
    from dmm.scan import scan_backends

    torch.set_num_threads(1)
    run, steps = kept_run(TIMED_MODEL), []
    for context in STAGGERED:
        policy = DecisionMetaMamba(DMMConfig(**run.info["config"] | {"context": context}))
        policy.load_state_dict(run.policy.state_dict())
        for way, make in ways(context).items():
            times = time_steps(make(policy.eval()))
            steps.append({"context": context, "way": way, "microseconds": times})
            print(context, way, {step: round(value) for step, value in times.items()}, flush=True)
    where = {**machine(), "threads": 1, "torch": torch.__version__, "scan": scan_backends()}
    return {"machine": where, "model": TIMED_MODEL, "steps": steps, "evaluation": time_evaluations(run)}


def time_steps(actor: Actor) -> dict[str, float]:
    """The median of `TIMED_CALLS` calls of `act` from each of `TIMED_STEPS` on, for one environment."""
    import torch

    generator, taken = torch.Generator().manual_seed(0), []
    observation, reward = torch.randn(1, 11, generator=generator), torch.ones(1)
    state = actor.init_state(1, 3600.0)
    for step in range(TIMED_STEPS[-1] + TIMED_CALLS):
        began = time.perf_counter()
        _, state = actor.act(state, observation, reward if step else None)
        taken.append(time.perf_counter() - began)
    return {str(step): float(np.median(taken[step : step + TIMED_CALLS])) * 1e6 for step in TIMED_STEPS}


class Recorder:
    """An actor that remembers what was played."""

    def __init__(self, actor: Actor):
        self.actor, self.played = actor, []  # type: ignore[var-annotated]

    def init_state(self, n: int, target: Any) -> Any:
        self.going_on = np.arange(n)
        return self.actor.init_state(n, target)

    def act(self, state: Any, observation: Any, reward: Any = None) -> Any:
        action, state = self.actor.act(state, observation, reward)
        self.played.append((self.going_on, action.numpy()))
        return action, state

    def select(self, state: Any, rows: Any) -> Any:
        self.going_on = self.going_on[rows.numpy()]
        return self.actor.select(state, rows)


def time_evaluations(run: Run) -> list[dict[str, Any]]:
    """Seconds for all episodes together, and for the environments alone with the same actions; the better of two."""
    from dmm.evaluation import environments, make_env, play

    rows, settings = [], {"episodes": TIMED_EPISODES, "target": 3600.0, "seed": FIRST_EPISODE}
    with environments(lambda: make_env(run.info), TIMED_EPISODES) as envs:
        for way, make in ways(run.policy.context).items():
            actor, seconds, simulator = make(run.policy), [], []
            for _ in range(2):
                recorder, began = Recorder(actor), time.perf_counter()
                done = play(recorder, envs, **settings)  # type: ignore[arg-type]
                seconds.append(time.perf_counter() - began)
                simulator.append(replay(envs, recorder.played))
            row = {"way": way, "episodes": TIMED_EPISODES, "steps": int(done.lengths.sum())}
            rows.append(row | {"seconds": min(seconds), "simulator": min(simulator)})
            print(rows[-1], flush=True)
    return rows


def replay(envs: list[Any], played: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Seconds that the environments take for episodes played before."""
    began = time.perf_counter()
    for i, env in enumerate(envs):
        env.reset(seed=FIRST_EPISODE + i)
    for going_on, actions in played:
        for i, action in zip(going_on, actions, strict=True):
            envs[i].step(action)
    return time.perf_counter() - began


def main() -> None:
    parser = argument_parser("acting", "Remake the comparison of the ways of acting.", seeds=3)
    parser.add_argument("--latency", action="store_true", help="time the ways instead, on a machine with nothing to do")
    args = parser.parse_args()
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    result |= {"latency": measure_latency()} if args.latency else score_ways(args.runs, args.seeds, args.workers)
    write_result(args.out, result)


def score_ways(runs: Path, seeds: int, workers: int) -> dict[str, Any]:
    """Everything in the result file but the latencies."""
    from dmm.data.collect import collect

    for task in TASKS.values():
        collect(task.dataset)
    rows = run_jobs(train_and_act, make_jobs(runs, seeds), workers)
    settings = {
        "seeds": seeds,
        "staggered": {str(context): states for context, states in STAGGERED.items()},
        "shorter": {str(context): steps for context, steps in SHORTER.items()},
        "tasks": {name: vars(task) for name, task in TASKS.items()},
    }
    summary, overall = summarize_ways(rows), summarize_overall(rows)
    return {"settings": settings, "machine": machine(), "summary": summary, "overall": overall, "runs": rows}


if __name__ == "__main__":
    main()
