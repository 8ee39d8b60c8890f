"""How fast data sets are made, read and sampled here: `dmm bench data`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import minari
import numpy as np
import torch

from dmm.bench import check_at_least_one, in_fresh_process, interleaved, machine, peak_megabytes, quartiles
from dmm.data.collect import collect
from dmm.data.observations import build_env
from dmm.data.recipes import Recipe, find_recipe
from dmm.data.rollout import CHUNK, record
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.data.windows import WindowSampler
from dmm.errors import InputError
from dmm.progress import progress_bar

BATCH, CONTEXT = 64, 8
"""Windows per batch and steps per window, as in the paper."""


def bench_data(
    name: str = "dmm/hopper/medium-v0", *, transitions: int = 100_000, repeats: int = 3, progress: bool = True
) -> dict[str, Any]:
    """Measure recording, reading and sampling of one recipe's data, torch on one thread; plain values and ratios.

    Args:
        name: a recipe.
        transitions: how many are recorded per measurement, and read.
        repeats: rounds; medians over them are reported.
        progress: show a bar on stderr.

    Raises:
        InputError: unknown recipe, or a number below 1.
    """
    check_at_least_one(transitions=transitions, repeats=repeats)
    recipe = find_recipe(name)
    counts = [n for n in (1, 2, 4, 8) if n <= machine()["cores"]]
    torch.set_num_threads(1)
    with progress_bar(total=4, desc="bench data", disable=not progress) as bar, _temporary_store():
        parts: dict[str, Any] = {}
        for part, measure in (
            ("step", partial(step_costs, recipe, repeats)),
            ("record", partial(recording_rates, recipe, transitions, counts, repeats)),
            ("memory", partial(peak_memory, recipe, transitions)),
            ("read", partial(reading, recipe, transitions, repeats)),
        ):
            bar.set_postfix_str(part)
            parts[part] = measure()
            bar.update()
    return {"dataset": name, "transitions": transitions, "threads": 1, "machine": machine(), **parts}


def step_costs(recipe: Recipe, repeats: int, steps: int = 2_000) -> dict[str, Any]:
    """Microseconds per step that the behaviour and the simulator take, timed within the same episodes."""
    env, rng = build_env(recipe.env_id, **recipe.env_kwargs), np.random.default_rng(0)
    behaviour = recipe.behaviour() if recipe.behaviour else recipe.stages[-1]()
    rows = [_timed_steps(env, behaviour, rng, steps) for _ in range(repeats + 1)][1:]
    env.close()
    acting, simulating = ([1e6 * row[i] / steps for row in rows] for i in (0, 1))
    ratio = float(np.median(np.divide(acting, simulating)))
    return {"behaviour_us": quartiles(acting), "simulator_us": quartiles(simulating), "behaviour_over_simulator": ratio}


def _timed_steps(env: Any, behaviour: Any, rng: np.random.Generator, steps: int) -> tuple[float, float]:
    acting = simulating = 0.0
    over, observation = True, None
    for step in range(steps):
        if over:
            observation, _ = env.reset(seed=step)
            behaviour.begin(env, observation, rng)
        begin = time.perf_counter()
        action = behaviour.act(observation, rng)
        middle = time.perf_counter()
        observation, _, terminated, truncated, _ = env.step(action)
        simulating += time.perf_counter() - middle
        acting += middle - begin
        over = terminated or truncated
    return acting, simulating


def recording_rates(recipe: Recipe, transitions: int, counts: list[int], repeats: int) -> list[dict[str, Any]]:
    """Transitions per second with 1, 2, ... worker processes, once they run, and what each more core adds."""
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            rates[count].append(_recording_rate(recipe, transitions, count))
    alone = float(np.median(rates[1]))
    return [
        {
            "workers": count,
            "transitions_per_second": quartiles(values),
            "speedup": float(np.median(values)) / alone,
            "efficiency": float(np.median(values)) / alone / count,
        }
        for count, values in rates.items()
    ]


def _recording_rate(recipe: Recipe, transitions: int, workers: int) -> float:
    """The rate behind the workers' first turn, whose episodes are ready, or nearly so, when the first one arrives."""
    begin, done, first_turn = 0.0, 0, workers * CHUNK
    with closing(record(recipe, 0, workers, transitions)) as episodes:
        for number, episode in enumerate(episodes):
            if begin:
                done += len(episode.rewards)
            elif workers == 1 or (episode.block >= workers if recipe.stages else number >= first_turn):
                begin = time.perf_counter()
        seconds = time.perf_counter() - begin
    if not done:
        raise InputError(
            f"transitions: got {transitions}; allowed: more than {workers} workers record in their first turn"
        )
    return done / seconds


def peak_memory(recipe: Recipe, transitions: int) -> dict[str, Any]:
    """Peak resident memory in MB of collecting a quarter of the transitions, and all, each in a process of its own."""
    sizes = (max(1, transitions // 4), transitions)
    peaks = [in_fresh_process(_peak_of_collecting, recipe, size) for size in sizes]
    return {"transitions": sizes, "peak_mb": peaks, "growth": peaks[1] / peaks[0]}


def _peak_of_collecting(recipe: Recipe, transitions: int) -> float:
    collect(recipe, transitions=transitions, workers=1, force=True, progress=False)
    return peak_megabytes()


def reading(recipe: Recipe, transitions: int, repeats: int) -> dict[str, Any]:
    """Seconds to read the data set into arrays, beside Minari's own iterator, and milliseconds to draw a batch from it,
    beside the loop over windows of Decision Transformer's `get_batch`."""
    made = collect(recipe, transitions=transitions, force=True, progress=False)
    dataset = minari.load_dataset(recipe.name)
    load = interleaved(
        {"dmm": lambda: load_trajectories(recipe.name), "minari": lambda: list(dataset.iterate_episodes())},
        repeats=repeats,
    )
    data = load_trajectories(recipe.name)
    sampler = WindowSampler(data, CONTEXT, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    batches = interleaved(
        {"dmm": lambda: sampler.sample(BATCH), "loop": lambda: loop_batch(data, rng)}, repeats=5 * repeats, calls=20
    )
    return {
        "transitions": made.transitions,
        "megabytes": round(_size(Path(made.path)) / 1e6, 1),
        "load_seconds": load,
        "load_seconds_per_million": load["dmm"]["median"] / made.transitions * 1e6,
        "load_speedup": load["minari"]["median"] / load["dmm"]["median"],
        "batch_ms": {name: {key: 1e3 * value for key, value in row.items()} for name, row in batches.items()},
        "batch_speedup": batches["loop"]["median"] / batches["dmm"]["median"],
    }


def loop_batch(data: Trajectories, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A batch of windows as Decision Transformer's `get_batch` makes it: one Python loop turn per window.

    Returns-to-go `(b, k, 1)`, states `(b, k, s)`, actions `(b, k, a)`, timesteps and mask `(b, k)`, zeros on the left.
    """
    parts: tuple[list[np.ndarray], ...] = ([], [], [], [], [])
    chances = data.lengths / data.lengths.sum()
    for episode in rng.choice(data.episodes, size=BATCH, p=chances):
        start, length = data.starts[episode], data.lengths[episode]
        first = int(rng.integers(length))
        rows = slice(start + first, start + min(first + CONTEXT, length))
        steps = rows.stop - rows.start
        to_go = np.cumsum(data.rewards[rows.start : start + length][::-1])[::-1][:steps, None]
        values = (to_go, data.observations[rows], data.actions[rows], np.arange(first, first + steps), np.ones(steps))
        for part, value in zip(parts, values, strict=True):
            padding = np.zeros((CONTEXT - steps, *value.shape[1:]), dtype=value.dtype)
            part.append(np.concatenate([padding, value]))
    return tuple(np.stack(part) for part in parts)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _temporary_store() -> Iterator[None]:
    """Data sets made in here lie in a folder of their own, which is removed."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            yield
        finally:
            os.environ.pop("MINARI_DATASETS_PATH")
            if before is not None:
                os.environ["MINARI_DATASETS_PATH"] = before


def report(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    step, read, memory, here = result["step"], result["read"], result["memory"], result["machine"]
    load = read["load_seconds"]["dmm"]["median"]
    lines = [
        f"{result['dataset']}, {result['transitions']:,} transitions; {here['processor']}, {here['cores']} cores, "
        f"load {here['load']}",
        f"one step        behaviour {step['behaviour_us']['median']:.0f} us, simulator "
        f"{step['simulator_us']['median']:.0f} us: ratio {step['behaviour_over_simulator']:.2f}",
    ]
    for row in result["record"]:
        rate = row["transitions_per_second"]["median"]
        lines.append(
            f"recording       {row['workers']} worker{'s' if row['workers'] > 1 else ' '} {rate:8,.0f} transitions/s, "
            f"{row['speedup']:.2f} times one, {100 * row['efficiency']:.0f} % per core"
        )
    small, large = memory["peak_mb"]
    batch = read["batch_ms"]
    return "\n".join(
        [
            *lines,
            f"memory          {small:.0f} MB for {memory['transitions'][0]:,} and {large:.0f} MB for "
            f"{memory['transitions'][1]:,}: {memory['growth']:.2f} times",
            f"reading         {load:.2f} s ({read['load_seconds_per_million']:.1f} s a million), "
            f"{read['load_speedup']:.1f} times as fast as Minari's iterator; {read['megabytes']:.0f} MB on disk",
            f"batch of {BATCH}     {batch['dmm']['median']:.3f} ms, {read['batch_speedup']:.1f} times as fast as a "
            "loop over its windows",
        ]
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """Transitions recorded per second against worker processes, as a png, svg or pdf."""
    import matplotlib.pyplot as plt

    from dmm.plots import figure

    fig, ax = figure("half")
    rates = [row["transitions_per_second"] for row in result["record"]]
    spread = [[abs(rate[side] - rate["median"]) for rate in rates] for side in ("low", "high")]
    ax.errorbar([row["workers"] for row in result["record"]], [rate["median"] for rate in rates], spread, marker="o")
    ax.set(xlabel="worker processes", ylabel="transitions per second")
    ax.set_ylim(bottom=0)
    fig.savefig(path)
    plt.close(fig)
