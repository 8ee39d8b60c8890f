"""What a step costs when the memory behind it is long: with attention, with Mamba, with a hierarchy, and with both.

    python -m dmm.experiments.memory_costs

Ways to act on a context of up to 20,000 steps, of the same width and layers, on one thread: a flat transformer (`ad`)
that reads its window anew at each step, the same with a key-value cache, a flat Mamba (`ad-mamba`), a hierarchy of
transformers (`hdt`) with a key-value cache and without, and Decision Mamba-Hybrid (`dmh`), whose worker acts on its
present group or, as released, on a sliding window.

Timed are the last c steps of a context, one group, of each in turn; a figure is the median over rounds of their mean.
It is CPU time of this process, which others on the machine hardly change. `dmh` and `ad-mamba` really play up to there;
the memories of the others are filled with random numbers, which change no time, or with a few groups where a window
slides. `paper` has what the papers print (Huang et al. 2024, arXiv 2406.00079, table 4; arXiv 2405.20692 for IDT, a
hierarchy without Mamba): hours and minutes on GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmm.experiments import RESULTS, path_argument, write_result
from dmm.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

CONTEXTS = (100, 300, 1_000, 3_000, 10_000, 20_000)
QUICK = (40, 100)
INTERVAL = 20
SIZES: dict[str, Any] = {"state_size": 17, "action_size": 6, "width": 64, "layers": 3}
"""States and actions are those of HalfCheetah."""
ROUNDS = 9
PATIENCE = 4.0
"""Seconds of a step beyond which longer contexts are not measured."""
SLOW = 0.1
"""Seconds of a step of which one a round, and three rounds, are enough."""
CLEAR = 1.1
"""A ratio of costs that is more than chance."""
FLAT = (10, 100, 1_000, 10_000, 20_000)
"""Steps behind which what has a memory of one size is compared with itself."""


@dataclass(frozen=True)
class System:
    """One way to act on a long context."""

    label: str
    model: str
    acting: str = "recurrent"
    full: bool = False  # whether the context is full, so that it is read anew
    constant: bool = False  # whether its memory, of one size, is really played up to a context
    window: str = "group"  # of a hierarchy's worker


SYSTEMS: dict[str, System] = {
    "ad": System("flat transformer, window read anew", "ad", "window", full=True),
    "ad cached": System("flat transformer, key-value cache", "ad", "cached"),
    "hdt full": System("hierarchy of transformers, groups read anew", "hdt", full=True),
    "hdt": System("hierarchy of transformers, key-value cache", "hdt"),
    "ad-mamba": System("flat Mamba", "ad-mamba", constant=True),
    "dmh": System("Decision Mamba-Hybrid", "dmh", constant=True),
    "dmh sliding": System("Decision Mamba-Hybrid, sliding window", "dmh", window="sliding"),
}
MINUTES = ("ad-mamba", "ad", "dmh", "idt")
PAPER: dict[str, tuple[int, tuple[float, ...], tuple[float, ...]]] = {
    "darkroom": (200, (0.21, 0.23, 0.18, 0.21), (0.20, 0.61, 0.21, 0.65)),
    "darkroom-hard": (200, (0.22, 0.28, 0.20, 0.20), (0.20, 0.56, 0.19, 0.58)),
    "darkroom-dynamic": (200, (0.24, 0.31, 0.21, 0.21), (0.21, 0.62, 0.22, 0.67)),
    "key-to-door": (200, (0.65, 1.01, 0.41, 0.44), (0.45, 1.50, 0.46, 1.52)),
    "large-darkroom": (2_000, (3.52, 4.70, 2.38, 2.49), (5.06, 45.08, 5.12, 5.27)),
    "large-darkroom-hard": (2_000, (4.26, 6.69, 2.78, 2.93), (5.61, 44.96, 5.59, 6.09)),
    "large-darkroom-dynamic": (2_000, (2.71, 5.84, 2.63, 2.73), (5.21, 42.12, 5.36, 5.51)),
    "large-key-to-door": (2_000, (6.87, 18.23, 3.16, 3.06), (5.88, 76.79, 6.08, 6.18)),
    "halfcheetah": (4_000, (28.56, 37.10, 20.96, 21.90), (6.16, 173.11, 6.21, 6.29)),
    "walker2d": (4_000, (26.25, 33.77, 19.96, 20.08), (6.01, 172.34, 6.11, 6.51)),
    "hopper": (4_000, (18.15, 22.23, 11.52, 12.99), (6.05, 172.92, 6.06, 6.56)),
}
"""Per task the context in steps, hours of 10,000 updates, and minutes of the test's episodes, in the order of
`MINUTES`."""


# What is timed


def make_policy(system: System, context: int) -> Any:
    """With random weights, which change no time."""
    import torch

    from dmm.models.registry import MODELS

    model, sizes = MODELS[system.model], dict(SIZES)
    if system.model in ("hdt", "dmh"):
        sizes |= {"groups": context // INTERVAL, "interval": INTERVAL, "plan_layers": sizes["layers"]}
        sizes |= {"window": system.window}
    else:
        sizes |= {"context": context} | ({"heads": 1} if system.model == "ad" else {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.policy(model.config(**sizes)).eval()


class Player:
    """One task of an actor, on observations of random numbers."""

    def __init__(self, system: System, context: int):
        import torch

        from dmm.acting import make_actor
        from dmm.policy import Wanted

        self.system, self.context = system, context
        self.actor: Any = make_actor(make_policy(system, context), system.acting)
        self.begun = self.actor.init_state(1, Wanted(1.0, None, torch.Generator().manual_seed(0)))
        self.generator = torch.Generator().manual_seed(1)
        self.observations = torch.randn(INTERVAL, 1, SIZES["state_size"], generator=self.generator)
        self.reward = torch.ones(1)

    def play(self, state: Any, steps: int) -> tuple[float, Any]:
        """CPU seconds of a step, the mean of so many, and the memory behind them."""
        began = time.process_time()
        for step in range(steps):
            _, state = self.actor.act(state, self.observations[step % INTERVAL], self.reward)
        return (time.process_time() - began) / steps, state

    def near_the_end(self) -> Any:
        """A memory, of random numbers, before the last group of the context or, where it is read anew, behind it."""
        if self.system.model == "dmh":
            return self.play(self.begun, 3 * INTERVAL)[1]
        state = self.begun.map(self._filled)
        if self.system.model == "hdt":
            return _with_groups(state, self.context // INTERVAL - (not self.system.full))
        return state if self.system.full else _with_steps(state, self.context - INTERVAL)

    def _filled(self, field: Tensor) -> Tensor:
        import torch

        if field.is_floating_point():
            return torch.randn(field.shape, generator=self.generator)
        return torch.ones_like(field) if field.dtype == torch.bool else field.clone()


def _with_steps(state: Any, steps: int) -> Any:
    """So many steps behind an actor with a cache."""
    cache, clock = state.cache, state.lived.clock + steps
    cache = cache._replace(steps=cache.steps + steps, written=cache.steps + steps)
    return dataclasses.replace(state, cache=cache, lived=dataclasses.replace(state.lived, clock=clock))


def _with_groups(state: Any, groups: int) -> Any:
    """So many groups behind a hierarchy of transformers."""
    from dmm.models.hdt import Planned

    planned = Planned.of(state.planner)
    steps = planned.cache.steps + groups
    planned = planned._replace(cache=planned.cache._replace(steps=steps, written=steps.clone()))
    return dataclasses.replace(
        state, clock=state.clock + groups * INTERVAL, planned=state.planned + groups, planner=planned.flat()
    )


def measure(contexts: Sequence[int], rounds: int, progress: bool = True) -> tuple[dict[str, list[Any]], Any]:
    """Of each system its points, and how flat those with a memory of one size are."""
    lived = played({name: s for name, s in SYSTEMS.items() if s.constant}, contexts, progress)
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for context in progress_bar(contexts, desc="memory_costs, contexts", disable=not progress):
        players, states = {}, {}
        for name, system in SYSTEMS.items():
            if _expected(points[name], context) > PATIENCE:
                continue
            if system.constant:
                players[name], states[name] = lived[name].player, lived[name].states[context - INTERVAL]
            else:
                players[name] = Player(system, context)
                states[name] = players[name].near_the_end()
        for name, row in timed(players, states, rounds).items():
            points[name].append({"context": context, **row})
    return points, flatness(lived, contexts, 8 * rounds)


def _expected(points: list[dict[str, Any]], context: int) -> float:
    """Seconds of a step, if its cost grows with the square of the context."""
    return 1e-6 * points[-1]["us"]["median"] * (context / points[-1]["context"]) ** 2 if points else 0.0


def timed(players: dict[str, Player], states: dict[str, Any], rounds: int) -> dict[str, dict[str, Any]]:
    """Microseconds of a step of each, and the bytes of its memory."""
    from dmm.bench import quartiles
    from dmm.inspection.cost import memory_of

    taken = in_turn(players, states, rounds)
    return {name: {"us": quartiles(values), "memory": memory_of(states[name])} for name, values in taken.items()}


def in_turn(players: dict[str, Player], states: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Microseconds of a step from these memories on, in each round; of slow ones in the first three."""
    import torch

    def play(name: str, steps: int) -> float:
        return players[name].play(states[name].map(torch.clone), steps)[0]  # caches are written in place

    first = {name: play(name, 1) for name in players}
    taken: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(rounds):
        for name, player in players.items():
            slow = first[name] > SLOW
            if not slow or turn < 3:  # of a hierarchy whole groups, which have one step of its planner
                taken[name].append(1e6 * play(name, 1 if slow and player.system.model == "ad" else INTERVAL))
    return taken


@dataclass
class Lived:
    """A system and its memories behind some numbers of steps."""

    player: Player
    states: dict[int, Any]


def played(systems: dict[str, System], contexts: Sequence[int], progress: bool) -> dict[str, Lived]:
    """What really lived through as many steps as the longest context has, with its memories on the way."""
    marks = sorted({context - INTERVAL for context in contexts} | {step for step in FLAT if step <= contexts[-1]})
    made = {name: Lived(Player(system, contexts[-1]), {}) for name, system in systems.items()}
    with progress_bar(
        total=marks[-1] * len(made), desc="memory_costs, steps", unit="step", disable=not progress
    ) as bar:
        for each in made.values():
            state, done = each.player.begun, 0
            for mark in marks:
                while done < mark:
                    steps = min(mark - done, 10 * INTERVAL)
                    _, state = each.player.play(state, steps)
                    done += steps
                    bar.update(steps)
                each.states[mark] = state
    return made


def flatness(lived: dict[str, Lived], contexts: Sequence[int], rounds: int) -> dict[str, Any]:
    """The time of a step, over one group, behind each of some numbers of steps.

    What the machine does meets all in a round: they are compared within rounds, and a figure is the median over these.
    """
    steps = [step for step in FLAT if step <= contexts[-1]]
    every = {(name, step): f"{name} {step}" for name in lived for step in steps}
    players = {key: lived[name].player for (name, _), key in every.items()}
    taken = in_turn(players, {key: lived[name].states[step] for (name, step), key in every.items()}, rounds)
    us = {name: np.array([taken[every[name, step]] for step in steps]) for name in lived}  # (steps, rounds)
    whole, flat = {name: values.mean(axis=0) for name, values in us.items()}, {}
    for name, values in us.items():
        found = np.median(values / whole[name], axis=1) * np.median(whole[name])
        flat[name] = {
            "steps": steps,
            "us": found.tolist(),
            "largest_over_smallest": float(found.max() / found.min()),
            "over_ad_mamba": float(np.median(whole[name] / whole["ad-mamba"])),
        }
    return flat


# What the result says


@dataclass(frozen=True)
class Costs:
    """The result as arrays over contexts, NaN where nothing was measured."""

    contexts: np.ndarray
    us: dict[str, np.ndarray]
    memory: dict[str, np.ndarray]  # bytes
    extrapolated: dict[str, np.ndarray]  # of `us`, where nothing was measured and two longest contexts say how it grows
    labels: dict[str, str]

    def at(self, name: str, context: float) -> float:
        """Microseconds of a step at a context between those measured, along straight lines of logarithms."""
        return _between(self.contexts, self.us[name], context)

    def over(self, name: str, other: str) -> np.ndarray:
        """How many times as long a step takes as another system's, at each context."""
        ratio: np.ndarray = self.us[name] / self.us[other]
        return ratio

    def crossing(self, name: str, than: str, of: str = "us") -> float | None:
        """The context from which a system takes more (`of`: `us` or `memory`) than another; None if it never comes to.

        Where it takes more at every context it is 0.
        """
        ours, theirs = getattr(self, of)[name], getattr(self, of)[than]
        known = np.isfinite(ours) & np.isfinite(theirs)
        ratio, where = np.log(ours[known] / theirs[known]), np.log(self.contexts[known])
        if ratio[-1] <= 0:
            return None
        below = np.flatnonzero(ratio <= 0)
        if not len(below):
            return 0.0
        i = int(below[-1])
        share = -ratio[i] / (ratio[i + 1] - ratio[i])
        return float(np.exp(where[i] + share * (where[i + 1] - where[i])))


def _between(contexts: np.ndarray, values: np.ndarray, context: float) -> float:
    known = np.isfinite(values)
    inside = contexts[known].min() <= context <= contexts[known].max()
    return (
        float(np.exp(np.interp(np.log(context), np.log(contexts[known]), np.log(values[known])))) if inside else np.nan
    )


def read_costs(result: dict[str, Any]) -> Costs:
    """A result file's figures, as a chapter draws and tells them."""
    contexts = np.array(result["settings"]["contexts"], dtype=float)
    columns: dict[str, dict[str, np.ndarray]] = {"us": {}, "memory": {}}
    for name, system in result["systems"].items():
        found = {point["context"]: point for point in system["points"]}
        points = [found.get(int(context)) for context in contexts]
        columns["us"][name] = np.array([np.nan if p is None else p["us"]["median"] for p in points])
        columns["memory"][name] = np.array([np.nan if p is None else p["memory"] for p in points])
    extrapolated = {name: _extrapolated(contexts, us) for name, us in columns["us"].items()}
    labels = {name: system["label"] for name, system in result["systems"].items()}
    return Costs(contexts, columns["us"], columns["memory"], extrapolated, labels)


def _extrapolated(contexts: np.ndarray, us: np.ndarray) -> np.ndarray:
    """`a T + b T^2` through the two longest contexts T that were measured, at those that were not; else NaN."""
    known = np.flatnonzero(np.isfinite(us))[-2:]
    if len(known) < 2:
        return np.full_like(us, np.nan)
    powers = np.stack([contexts, contexts**2], axis=1)
    line = powers @ np.linalg.solve(powers[known], us[known])
    return np.where(np.isfinite(us), np.nan, line)


def crossings(costs: Costs) -> list[dict[str, Any]]:
    """Of every two systems that change places: from which context on the first takes more, of time and of memory.

    Those that differ by less than `CLEAR` at the longest context of both are left out.
    """
    rows = []
    for name, than in itertools.permutations(costs.us, 2):
        for of in ("us", "memory"):
            ratio = getattr(costs, of)[name] / getattr(costs, of)[than]
            context = costs.crossing(name, than, of)
            if context and ratio[np.isfinite(ratio)][-1] >= CLEAR:
                rows.append({"of": of, "system": name, "takes_more_than": than, "from_context": context})
    return rows


def paper_rows() -> list[dict[str, Any]]:
    """What the papers print, with the two quotients that their "28x" may stand for."""
    rows = []
    for task, (context, hours, minutes) in PAPER.items():
        hours_of, minutes_of = (dict(zip(MINUTES, values, strict=True)) for values in (hours, minutes))
        factors = {f"ad_over_{other}": minutes_of["ad"] / minutes_of[other] for other in ("idt", "dmh", "ad-mamba")}
        rows.append({"task": task, "context": context, "hours": hours_of, "minutes": minutes_of, **factors})
    return rows


def describe(points: dict[str, list[Any]], flat: Any, contexts: Sequence[int], rounds: int) -> dict[str, Any]:
    """The result file."""
    import torch

    from dmm.bench import machine

    settings = {"contexts": list(contexts), "interval": INTERVAL, "rounds": rounds, "threads": 1, **SIZES}
    result: dict[str, Any] = {
        "settings": settings,
        "machine": {**machine(), "torch": torch.__version__},
        "systems": {
            name: {"label": s.label, "model": s.model, "acting": s.acting, "points": points[name]}
            for name, s in SYSTEMS.items()
        },
    }
    costs = read_costs(result)
    for name, system in result["systems"].items():
        system["extrapolated"] = [
            {"context": context, "us": float(us)}
            for context, us in zip(contexts, costs.extrapolated[name], strict=True)
            if np.isfinite(us)
        ]
    return {**result, "flat": flat, "crossings": crossings(costs), "paper": paper_rows()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time a step behind contexts of up to 20,000 steps.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "memory_costs.json", help="the file to write")
    parser.add_argument("--quick", action="store_true", help="two short contexts, to see that it runs")
    args = parser.parse_args(arguments)
    from dmm.bench import threads_set

    contexts, rounds = (QUICK, 1) if args.quick else (CONTEXTS, ROUNDS)
    with threads_set(1):
        points, flat = measure(contexts, rounds)
    write_result(args.out, describe(points, flat, contexts, rounds))


if __name__ == "__main__":
    main()
