"""What the papers' tables cost in core-hours, and how long their queue takes on so many cores.

    python -m dmm.experiments.table_costs              measures what is not in the result file yet, then adds up

Measured, as CPU time of this process on one thread, which others on the machine hardly change: one update of every kind
of policy that a table wants, at the sizes and batches of its scale, on small data sets of the same recipes; one of its
actions, among as many episodes at once as the scale plays; one step of each environment under random actions.

Added up: a job's updates, those of models that it trains first included, and the steps of the episodes that score its
checkpoints, taken to be as long as those of its data on average. Policies that fall early cost less, those that a
target keeps going cost more. Left out: making the data sets, once on each machine, and starting Python, once a worker.
No job was timed on a GPU, so there are no GPU-hours.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dmm.experiments import RESULTS, load_result, path_argument, write_result
from dmm.experiments.grid import Job
from dmm.experiments.reproduce import make_jobs
from dmm.experiments.tables import find_cells, make_tables
from dmm.progress import progress_bar

SCALED = ("small", "full")
"""Scales whose jobs are long enough to be told in hours; `smoke` is minutes whatever is measured."""
MEASURED_ON = {
    "pointmaze": "dmm/pointmaze/umaze-v0",
    "hopper": "dmm/hopper/medium-v0",
    "antmaze": "dmm/antmaze/umaze-v0",
    "kitchen": "dmm/kitchen/mixed-v0",
}
"""A data set for each kind of data: updates and actions take as long on all of one kind."""
LIKE = {"walker2d": "hopper", "halfcheetah": "hopper"}
"""Families whose states and actions are about as large as another's, and whose models have the same sizes."""
ENVIRONMENTS = MEASURED_ON | {"walker2d": "dmm/walker2d/medium-v0", "halfcheetah": "dmm/halfcheetah/medium-v0"}
TRANSITIONS = 3_000
"""Of the data sets that updates are measured on."""
WARM, FEW, MANY = 1, 1, 5
"""Updates that are not timed, and of the two stretches whose difference is."""
SLOW = 2.0
"""Seconds of an update after which one more is enough."""
EXTENDED = {"dm-multigrained": (2, 4)}
"""Models whose published size takes more memory for an update than many machines have: measured with so many layers and
extended along the straight line through both."""
ACTIONS = 2
"""Actions of all episodes that are timed, after as many that are not."""
ENV_EPISODES, ENV_STEPS = 20, 100
WORKERS = (1, 8, 64, 512)
PARTS = ("updates", "earlier models", "actions", "simulator")
"""Of a job's hours: its own updates, those of models that it trains first, its policy's actions, the environment."""
NOT_MEASURED = "not measured"

Costs = dict[str, dict[str, Any]]
"""By kind of policy: `update` in seconds, `action` in seconds of one episode's, `before`: what is trained first."""


def family(job: Job) -> str:
    """The environment's part of a data set's name."""
    return job.dataset.split("/")[1]


def kind(job: Job) -> str:
    """Jobs of one kind take as long for an update and for an action.

    Authors have sizes for each domain. At sizes that all models share, data differ in the few numbers of a state and an
    action alone, and one domain speaks for all; but for DS4, whose batches are whole episodes.
    """
    one_for_all = "sizes" not in job.changes and job.model != "ds4"
    where = "any" if one_for_all else LIKE.get(family(job), family(job))
    return json.dumps([where, job.model, sorted(job.changes.items()), job.episodes])


# What is measured


def measure_policy(job: Job, folder: Path) -> dict[str, Any]:
    """Seconds of an update and of one episode's action, of a job's policy and of those that are trained before it."""
    if job.model not in EXTENDED or "layers" in job.changes or "sizes" not in job.changes:
        return _measure(job, folder)
    few, more = EXTENDED[job.model]
    first, second = (
        _measure(dataclasses.replace(job, changes=job.changes | {"layers": n}), folder) for n in (few, more)
    )
    layers = _plan(job, folder).model_config.layers
    line = {
        name: first[name] + (second[name] - first[name]) * (layers - few) / (more - few)
        for name in ("update", "action")
    }
    return first | line | {"extended_from_layers": [few, more], "layers": layers}


def _plan(job: Job, folder: Path) -> Any:
    from dmm.training.plan import make_plan

    asked: dict[str, Any] = {"steps": job.steps, "device": "cpu", "resume": False, "start_from": None}
    dataset = MEASURED_ON[LIKE.get(family(job), family(job))]
    return make_plan(dataset, job.model, [0], folder, job.changes, several=False, **asked)[0]


def _measure(job: Job, folder: Path) -> dict[str, Any]:
    import torch

    plan = _plan(job, folder)
    with torch.random.fork_rng():
        update, policy = _measure_updates(plan, folder)
        before = []
        for stage in plan.entry.before:
            first = plan.stage(stage, plan.config.steps)
            before.append(
                {"model": stage.model, "steps": first.config.steps, "update": _measure_updates(first, folder)[0]}
            )
        return {"update": update, "action": _measure_actions(policy, job.episodes), "before": before}


def _measure_updates(plan: Any, folder: Path) -> tuple[float, Any]:
    from dmm.training.loop import Loop
    from dmm.training.run import default_generators

    run = plan.run(0, folder, default_generators)
    loop, bar = Loop([run], run.policy, plan), progress_bar(disable=True)

    def more(updates: int) -> float:
        return _cpu_seconds(lambda: loop.run(loop.step + updates, bar))

    if more(WARM) > SLOW * WARM:
        return more(1), run.policy
    few, many = more(FEW), more(MANY)
    return (many - few) / (MANY - FEW), run.policy


def _measure_actions(policy: Any, episodes: int) -> float:
    import torch

    from dmm.acting import make_actor
    from dmm.policy import Wanted

    actor: Any = make_actor(policy.eval(), "window")
    size = getattr(policy.config, "goal_size", 0)
    goals = torch.zeros(episodes, size) if size else None
    state = actor.init_state(episodes, Wanted(1.0, goals, torch.Generator().manual_seed(0)))
    reward, taken = None, []
    for _ in range(2 * ACTIONS):
        begin = time.process_time()
        _, state = actor.act(state, torch.randn(episodes, policy.state_size), reward)
        taken.append(time.process_time() - begin)
        reward = torch.zeros(episodes)
    return sum(taken[ACTIONS:]) / ACTIONS / episodes


def measure_environment(dataset: str) -> float:
    """Seconds of one step of a data set's environment, under random actions."""
    from dmm.data.observations import build_flat_env, stored_env
    from dmm.data.recipes import find_recipe
    from dmm.data.trajectories import load_trajectories
    from dmm.evaluation import RandomActor, environments, play

    recipe, data = find_recipe(dataset), load_trajectories(dataset)
    spec = stored_env(data.env_spec, recipe.env_id)
    make = partial(build_flat_env, spec, data.observation_keys, data.state_size, data.action_size)
    steps = 0
    with environments(make, ENV_EPISODES) as envs:

        def run() -> None:
            nonlocal steps
            made = play(RandomActor(data.action_size), envs, episodes=ENV_EPISODES, max_steps=ENV_STEPS)
            steps = int(made.lengths.sum())

        run()
        return _cpu_seconds(run) / steps


def measure(found: dict[str, Any], wanted: dict[str, Job], out: Path) -> None:
    """Add to `found` what is not measured yet, and write it after each policy: a killed run loses one."""
    from dmm.data.collect import collect

    steps, costs, before = found["environments"], found["policies"], os.environ.get("MINARI_DATASETS_PATH")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            for name, dataset in ENVIRONMENTS.items():
                collect(dataset, transitions=TRANSITIONS, workers=1, progress=False)
                steps[name] = steps.get(name) or measure_environment(dataset)
            for name, job in wanted.items():
                if name not in costs:
                    costs[name] = measure_policy(job, Path(folder) / "run")
                    print(f"{name}: {1e3 * costs[name]['update']:.1f} ms an update", file=sys.stderr)
                    write_result(out, found)
        finally:
            os.environ.pop("MINARI_DATASETS_PATH")
            os.environ.update({} if before is None else {"MINARI_DATASETS_PATH": before})


def _cpu_seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


# What follows


def job_parts(job: Job, costs: Costs, steps: dict[str, float], lengths: dict[str, float]) -> dict[str, float]:
    """Hours of one core by `PARTS`; their sum is `job_hours`.

    Args:
        costs: of each kind of policy.
        steps: seconds of an environment's step, by family.
        lengths: steps of an episode of each data set.
    """
    one = costs[kind(job)]
    length = lengths[job.dataset] if job.max_steps is None else min(job.max_steps, lengths[job.dataset])
    played = job.checkpoints * len(job.targets) * job.episodes * length
    seconds = (
        job.steps * one["update"],
        sum(each["steps"] * each["update"] for each in one["before"]),
        played * one["action"],
        played * steps[family(job)],
    )
    return {name: float(value) / 3600 for name, value in zip(PARTS, seconds, strict=True)}


def job_hours(job: Job, costs: Costs, steps: dict[str, float], lengths: dict[str, float]) -> float:
    """Hours of one core that a job takes: the sum of its `job_parts`."""
    return sum(job_parts(job, costs, steps, lengths).values())


def schedule(hours: Sequence[float], workers: int) -> float:
    """How long jobs of these lengths take: each begins, in order, on the worker that is free first."""
    free = [0.0] * workers
    for each in hours:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def bound(hours: Sequence[float], workers: int) -> float:
    """What no order can beat: the longest job, and all of them spread evenly."""
    return max(max(hours, default=0.0), sum(hours) / workers)


def add_up(costs: Costs, steps: dict[str, float], lengths: dict[str, float]) -> dict[str, Any]:
    """Core-hours of each table by itself and of all, at each scale, and how long the whole queue takes."""
    tables, queues = [], []
    for scale in SCALED:
        for name, table in make_tables().items():
            hours = [job_hours(job, costs, steps, lengths) for job in _jobs(table.cells(), scale)]
            tables.append({"scale": scale, "table": name, "jobs": len(hours), "core_hours": sum(hours)})
            tables[-1] |= {"longest_job": max(hours), "gpu_hours": NOT_MEASURED}
        hours = [job_hours(job, costs, steps, lengths) for job in _jobs(find_cells(), scale)]  # each job once
        queues.append(
            {
                "scale": scale,
                "jobs": len(hours),
                "core_hours": sum(hours),
                "longest_job": max(hours),
                "workers": [{"workers": n, "hours": schedule(hours, n), "bound": bound(hours, n)} for n in WORKERS],
            }
        )
    return {"tables": tables, "queues": queues}


def _jobs(cells: Any, scale: str) -> list[Job]:
    return make_jobs(cells, scale, Path("runs"), Path("rows"))


def kinds() -> dict[str, Job]:
    """A job of each kind that any table wants."""
    jobs = [job for scale in SCALED for job in _jobs(find_cells(), scale)]
    return {kind(job): job for job in reversed(jobs)}


def data_lengths() -> dict[str, float]:
    """The mean episode of each data set, in steps, as chapter 16 has it."""
    return {row["name"]: row["length_mean"] for row in load_result("datasets")["rows"]}


def tables_text(result: dict[str, Any]) -> str:
    """Tables and queues as rows of Markdown tables."""
    lines = ["| table | " + " | ".join(f"{scale}, core-hours" for scale in SCALED) + " |", "| --- |" + " ---: |" * 2]
    for name in make_tables():
        found = {row["scale"]: row["core_hours"] for row in result["tables"] if row["table"] == name}
        lines.append(f"| {name} | " + " | ".join(f"{found[scale]:,.1f}" for scale in SCALED) + " |")
    all_of = {queue["scale"]: queue for queue in result["queues"]}
    lines.append("| all, each job once | " + " | ".join(f"{all_of[s]['core_hours']:,.0f}" for s in SCALED) + " |")
    lines += ["", "| cores | " + " | ".join(f"{scale}, hours" for scale in SCALED) + " |", "| ---: |" + " ---: |" * 2]
    for i, workers in enumerate(WORKERS):
        lines.append(f"| {workers} | " + " | ".join(f"{all_of[s]['workers'][i]['hours']:,.1f}" for s in SCALED) + " |")
    lines.append("| longest job | " + " | ".join(f"{all_of[s]['longest_job']:,.1f}" for s in SCALED) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    import torch

    from dmm.bench import machine

    parser = argparse.ArgumentParser(description="Measure what a job of each kind costs, and add up the tables.")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "table_costs.json", help="the result file")
    parser.add_argument("--again", action="store_true", help="measure what is in the file already, too")
    args = parser.parse_args(arguments)

    torch.set_num_threads(1)
    known = json.loads(args.out.read_text()) if args.out.exists() and not args.again else {}
    found: dict[str, Any] = {
        "settings": {"transitions": TRANSITIONS, "updates": MANY - FEW, "actions": ACTIONS, "threads": 1},
        "machine": known.get("machine", machine()),
        "gpu_hours": NOT_MEASURED,
        "environments": dict(known.get("environments", {})),
        "policies": dict(known.get("policies", {})),
    }
    wanted = kinds()
    if wanted.keys() - found["policies"].keys() or ENVIRONMENTS.keys() - found["environments"].keys():
        measure(found, wanted, args.out)
    found["policies"] = {name: found["policies"][name] for name in wanted}
    result = found | add_up(found["policies"], found["environments"], data_lengths())
    write_result(args.out, result)
    print(tables_text(result))


if __name__ == "__main__":
    main()
