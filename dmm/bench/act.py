"""How long a policy takes to act, by the number of steps behind it, and to play whole episodes: `dmm bench act`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from dmm.acting import Actor, make_actor
from dmm.bench import check_at_least_one, finisher, quartiles, threads_set
from dmm.bench.peers import d3rlpy_dt, find, versions
from dmm.bench.scan import head_lines, heading
from dmm.errors import InputError
from dmm.evaluation import make_env, rollout
from dmm.inspection.cards import facts_for, fresh, sizes_of
from dmm.inspection.cost import costs_of_actions
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.dt import DecisionTransformer, DTConfig
from dmm.models.registry import MODELS
from dmm.policy import Policy
from dmm.progress import progress_bar
from dmm.training import Run

HOPPER = {"state_size": 11, "action_size": 3}
DT_PAPER = {"context": 20, "width": 128, "layers": 3, "heads": 1}
"""Decision Transformer's own sizes for MuJoCo (Chen et al. 2021, table 9)."""
STEPS = (10, 100, 1_000, 10_000)
SPAN = 50
"""Steps whose median is the figure of the step that they begin with."""
TURN = 5
"""Of them, how many an actor takes before the others have theirs."""
WAYS: dict[str, tuple[str, int]] = {
    "window": ("window", 1),
    "recurrent": ("recurrent", 1),
    "staggered, 2 states": ("staggered", 2),
    "staggered, 4 states": ("staggered", 4),
}
"""Name of each way of acting, and what `make_actor` takes for it."""
COMMITTED = "gating/hopper-dmm-seed0"
TARGET = 3_600.0

Act = Callable[[Tensor, Tensor], object]
"""One more step: observation `(1, s)`, reward `(1,)`; the memory is inside."""


def bench_act(
    *,
    steps: Sequence[int] = STEPS,
    episodes: int = 100,
    threads: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Microseconds per action in one environment, for DMM's ways of acting and for every model, and the time of whole
    episodes over the simulator's own time.

    Args:
        steps: the steps behind a policy at which it is timed.
        episodes: of Hopper, played with a committed policy.
        threads: CPU threads of torch.
        device: of the policies that act alone, `cpu`, `cuda` or `auto`; episodes are played on the CPU.
        progress: show a bar on stderr.

    Raises:
        InputError: a number below 1, or a device that is not there.
    """
    from dmm.training import choose_device

    place = choose_device(device)
    check_at_least_one(step=min(steps), episodes=episodes)
    with threads_set(threads):
        actors, left_out = acting_candidates(place)
        latency = latencies(actors, sorted(steps), place, progress)
        models = costs_of_models()
        played = playing_times(episodes, progress)
    return {**heading(place, threads), "latency": latency, "left_out": left_out, "models": models, "episodes": played}


def costs_of_models(steps: int = SPAN, rounds: int = 5) -> dict[str, dict[str, Any]]:
    """Of each model that lists show: one action's time, its part of DMM's, its memory, and the data it is sized for.

    All are at the sizes that models share, past the end of their windows, in one episode on the CPU.
    """
    facts = {model.name: facts_for(model) for model in MODELS.values() if not model.hidden}
    made = {name: fresh(MODELS[name], sizes_of(MODELS[name], of, "frame")[0]) for name, of in facts.items()}
    found = costs_of_actions(made, steps=steps, rounds=rounds)
    return {
        name: {**cost, "over_dmm": cost["us"] / found["dmm"]["us"], "data": facts[name].env_id}
        for name, cost in found.items()
    }


def acting_candidates(device: torch.device) -> tuple[dict[str, Callable[[], Act]], dict[str, str]]:
    """What makes an actor with a memory of its own, by name; and why others are left out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = DecisionMetaMamba(DMMConfig(**HOPPER)).eval().to(device)  # type: ignore[arg-type]
        paper = DecisionTransformer(DTConfig(**HOPPER, **DT_PAPER)).eval().to(device)  # type: ignore[arg-type]
    ways = {name: make_actor(policy, *way) for name, way in WAYS.items()} | {"dt, window of 20": make_actor(paper)}
    makers: dict[str, Callable[[], Act]] = {name: partial(remembering, actor) for name, actor in ways.items()}
    if versions()["d3rlpy"] is None:
        return makers, {"d3rlpy": "not installed"}
    theirs, reason = find(lambda: _acting_d3rlpy(device))
    if theirs is None:
        return makers, {"d3rlpy": reason}
    return makers | {"d3rlpy's dt, window of 20": theirs}, {}


def remembering(actor: Actor) -> Act:
    """An actor of one episode that keeps its memory itself."""
    state, first = actor.init_state(1, TARGET), True

    def act(observation: Tensor, reward: Tensor) -> object:
        nonlocal state, first
        action, state = actor.act(state, observation, None if first else reward)
        first = False
        return action

    return act


def _acting_d3rlpy(device: torch.device) -> Callable[[], Act]:
    sizes = (HOPPER["state_size"], HOPPER["action_size"], DT_PAPER["width"], DT_PAPER["layers"], DT_PAPER["context"])
    algorithm = d3rlpy_dt(*sizes, device=str(device))

    def make() -> Act:
        actor = algorithm.as_stateful_wrapper(target_return=TARGET)
        return lambda observation, reward: actor.predict(observation[0].cpu().numpy(), float(reward))

    return make


def latencies(
    makers: dict[str, Callable[[], Act]], steps: Sequence[int], device: torch.device, progress: bool = False
) -> dict[str, Any]:
    """Microseconds per action of each, with so many steps behind it: medians over `SPAN` steps.

    Each way has an actor for each of the steps, and all of them take turns of `TURN` steps: a machine whose speed
    changes while it is measured changes all figures alike. (An actor that comes after others in each single step would
    find nothing of its own in the caches.)
    """
    generator, finish = torch.Generator().manual_seed(0), finisher(device) or (lambda: None)
    observations = torch.randn(SPAN, 1, HOPPER["state_size"], generator=generator).to(device)
    rewards = torch.rand(SPAN, 1, generator=generator).to(device)
    actors = {(name, step): make() for name, make in makers.items() for step in steps}
    with progress_bar(total=sum(step for _, step in actors), desc="bench act", disable=not progress) as bar:
        for (_, step), act in actors.items():
            for clock in range(step):
                act(observations[clock % SPAN], rewards[clock % SPAN])
            bar.update(step)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in actors}
    for first in range(0, SPAN, TURN):
        for key, act in actors.items():
            for clock in range(first, min(first + TURN, SPAN)):
                begin = time.perf_counter()
                act(observations[clock], rewards[clock])
                finish()
                times[key].append(1e6 * (time.perf_counter() - begin))
    return {name: _latency_row({step: times[name, step] for step in steps}) for name in makers}


def _latency_row(columns: dict[int, list[float]]) -> dict[str, Any]:
    rows = [{"step": step, "us": quartiles(values)} for step, values in columns.items()]
    return {"steps": rows, "last_over_first": rows[-1]["us"]["median"] / rows[0]["us"]["median"]}  # type: ignore[index]


# Whole episodes


TIMED = 10
"""One environment of so many is timed: to ask for the CPU time takes about a hundredth of a step of Hopper."""


class TimedEnv(gym.Wrapper):
    """Adds the CPU seconds that `step` and `reset` take, and how many, to a clock that environments share."""

    def __init__(self, env: gym.Env, clock: dict[str, float]):
        super().__init__(env)
        self.clock = clock

    def step(self, action: Any) -> Any:
        begin = time.process_time()
        result = self.env.step(action)
        self.clock["step"] += time.process_time() - begin
        self.clock["steps"] += 1
        return result

    def reset(self, **options: Any) -> Any:
        begin = time.process_time()
        result = self.env.reset(**options)
        self.clock["reset"] += time.process_time() - begin
        self.clock["resets"] += 1
        return result


def playing_times(episodes: int, progress: bool = False) -> dict[str, Any]:
    """CPU seconds of playing episodes of Hopper in each way of acting, and over those that the simulator's steps took.

    CPU seconds, since others on the machine hardly change them.
    """
    run, policy, source = hopper_policy()
    label = "play, {}".format
    rows = {
        name: playing_time(make_actor(policy, *way), run, episodes, progress and label(name))
        for name, way in WAYS.items()
    }
    return {"policy": source, "environment": "Hopper-v5", "episodes": episodes, "ways": rows}


def with_timed_simulator(env: gym.Env, clock: dict[str, float]) -> gym.Env:
    """The environment with a `TimedEnv` beneath this package's own wrappers, whose time is not the simulator's."""
    if isinstance(env, gym.Wrapper) and type(env).__module__.startswith("dmm."):
        env.env = with_timed_simulator(env.env, clock)
        return env
    return TimedEnv(env, clock)


def playing_time(actor: Actor, run: Run | None, episodes: int, progress: bool | str) -> dict[str, Any]:
    """One way's row: all seconds, and those of them in which the simulator was set up, reset and stepped."""
    clock = dict.fromkeys(("make", "reset", "step", "resets", "steps"), 0.0)
    timed = (number % TIMED == min(TIMED, episodes) // 2 for number in count())

    def make() -> gym.Env:
        begin = time.process_time()
        env = gym.make("Hopper-v5") if run is None else make_env(run.info)
        clock["make"] += time.process_time() - begin
        return with_timed_simulator(env, clock) if next(timed) else env

    begin = time.process_time()
    done = rollout(actor, make, episodes=episodes, target=TARGET, seed=10_000, progress=progress)
    seconds = time.process_time() - begin
    steps = int(done.lengths.sum())
    simulator = {
        "make": clock["make"],
        "reset": clock["reset"] * episodes / clock["resets"],
        "step": clock["step"] * steps / clock["steps"],
    }
    return {
        "seconds": seconds,
        "simulator": simulator,
        "ratio": seconds / simulator["step"],
        "over_whole_simulator": seconds / sum(simulator.values()),
        "steps": steps,
    }


def hopper_policy() -> tuple[Run | None, Policy, str]:
    """A trained policy for Hopper and its name; an untrained one where the package came without its models."""
    from dmm.experiments import kept_run

    try:
        run = kept_run(COMMITTED)
    except InputError:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return None, DecisionMetaMamba(DMMConfig(**HOPPER)).eval(), "untrained"  # type: ignore[arg-type]
    return run, run.policy, COMMITTED


# Faces


def report(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    latency, played = result["latency"], result["episodes"]
    steps = [row["step"] for row in next(iter(latency.values()))["steps"]]
    lines = [*head_lines(result), "", f"{'microseconds per action at step':32}" + "".join(f"{s:>9,}" for s in steps)]
    for name, row in latency.items():
        figures = "".join(f"{each['us']['median']:9.0f}" for each in row["steps"])
        lines.append(f"{name:32}{figures}   last over first {row['last_over_first']:.2f}")
    lines += [f"{name:32}{reason}" for name, reason in result["left_out"].items()]
    lines += ["", f"{'one action of each model':32}{'us':>9}{'over dmm':>10}{'memory, bytes':>16}"]
    for name, row in result["models"].items():
        lines.append(f"{name:32}{row['us']:9.0f}{row['over_dmm']:10.2f}{row['memory']:16,}")
    lines += ["", f"{played['episodes']} episodes of {played['environment']}, policy {played['policy']}"]
    lines[-1] += ", CPU time"
    for name, row in played["ways"].items():
        lines.append(
            f"{name:32}{row['seconds']:7.2f} s, the simulator's steps {row['simulator']['step']:.2f} s: ratio "
            f"{row['ratio']:.2f} ({row['steps']:,} steps; {row['over_whole_simulator']:.2f} with making and resetting)"
        )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Time per action against the steps before it, one line per way, as a png, svg or pdf."""
    import matplotlib.pyplot as plt

    from dmm.plots import figure

    fig, ax = figure()
    for name, row in result["latency"].items():
        points = [(each["step"], each["us"]["median"]) for each in row["steps"]]
        ax.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    ax.set(xscale="log", xlabel="time step", ylabel="microseconds per action")
    ax.set_ylim(bottom=0)
    fig.legend(loc="outside upper center", ncols=3)
    fig.savefig(path)
    plt.close(fig)
