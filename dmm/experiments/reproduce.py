"""`dmm reproduce`: the papers' tables and figures as a queue of jobs, at three scales.

    smoke   every kind of job once, with a few updates on tiny data sets: whether all of it runs
    small   an equal budget for all on a laptop: sizes that all models share, 5,000 updates, 3 seeds
    full    the authors' sizes and recipes, 100,000 updates, 5 seeds, 100 episodes

What the kinds of tables (`dmm.experiments.tables.Kind`) have of their own is in `OF_KINDS`.

A job trains one policy of one seed and plays its ten checkpoints at the returns that the released code asks for; what
it comes to is one file (`outcome` in `dmm.experiments.queue`), from which every protocol can be read: the last
checkpoint, the best of all, or the best on one half of the episodes scored on the other. Seed 0 of everything comes
before seed 1 of anything, in the order of `dmm.experiments.tables`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dmm.data.scores import normalize
from dmm.errors import RunError, require_choice, whole_number
from dmm.experiments.gating import over_action
from dmm.experiments.grid import DEVICE, Job, describe_score, mean_interval, slug, train_job
from dmm.experiments.protocols import best_of_all, last_checkpoint
from dmm.experiments.queue import Progress, claimed, outcome, work_off
from dmm.experiments.same_data import require_fingerprint
from dmm.experiments.tables import DMM, Cell, Entry, Kind, dataset_name, find_cells
from dmm.experiments.tables_in_context import DMH, cells_in_context
from dmm.files import read_json, strict_json

if TYPE_CHECKING:
    from dmm.data.trajectories import Trajectories
    from dmm.evaluation_in_context import InContextEvaluation
    from dmm.training import Run

ScaleName = Literal["smoke", "small", "full"]

RELEASED_TARGETS: dict[str, tuple[float, ...]] = {
    "hopper": (3600.0, 7200.0, 36000.0, 72000.0),
    "halfcheetah": (12000.0, 24000.0, 120000.0, 240000.0),
    "walker2d": (5000.0, 10000.0, 50000.0, 100000.0),
    "antmaze": (1.0, 10.0, 100.0, 1000.0, 100_000.0),
    "kitchen": (4.0, 10.0, 100.0),
    "pointmaze": (1.0,),
    "tmaze": (1.0,),
}
"""Returns that the released code of DMM asks for, by the family of a data set's name."""
GRID_TARGETS = {
    "darkroom-histories": 20.0,
    "darkroom-hard-histories": 1.0,
    "keytodoor-histories": 2.0,
    "darkroom-dynamic-histories": 13.0,
    "darkroom-large-histories": 200.0,
    "darkroom-large-hard-histories": 1.0,
    "keytodoor-large-histories": 2.0,
}
"""Returns that are asked for in dark rooms: the most that an episode can give. (DM-H's paper asks for 15 of 200.)"""
MEASURED = ("dmm", "mamba", "dt")
"""Models whose activations and gradients are looked at, where nothing is changed about them."""
MEASURED_WINDOWS = 128
"""Two batches of 64, as in the paper's figure 4."""
FIRST_EPISODE = 10_000
"""Its environment seed, as in `dmm evaluate`."""


@dataclass(frozen=True)
class Scale:
    """How long policies are trained and how often they are played."""

    steps: int
    seeds: int
    episodes: int  # per checkpoint and target
    targets: int  # of the released code's, at most
    checkpoints: int = 10
    transitions: int | None = None  # of the data sets; their recipes' own if not given
    max_steps: int | None = None  # of an episode; the environment's own if not given
    published: bool = False  # the authors' sizes and recipes, where a model has such; else those that all share
    episodes_in_context: int = 0  # in a row, of as many tasks as there are episodes; 0: single episodes
    changes: dict[str, Any] = field(default_factory=dict)  # to the training of all
    of_models: dict[str, dict[str, Any]] = field(default_factory=dict)  # to that of some, instead


SHORT = {"learning_rate": 1e-3}
"""Ten times the paper's, for runs of a twentieth of its length."""
OWN: dict[str, dict[str, Any]] = {
    **{name: {"learning_rate": 3e-4} for name in ("td3bc", "cql", "iql")},  # of critics, too
    "ds4": {**SHORT, "batch_size": 8},  # whole trajectories, not windows
}
OFTEN = {"log_every": 2, "checkpoint_every": 2}
SCALES: dict[str, Scale] = {
    "smoke": Scale(4, 1, 2, 2, 2, transitions=600, max_steps=20, changes=OFTEN | {"batch_size": 4}),
    "small": Scale(5_000, 3, 50, 2, changes=SHORT, of_models=OWN),
    "full": Scale(100_000, 5, 100, 5, published=True),
}


OF_KINDS: dict[Kind, dict[str, dict[str, Any]]] = {
    "episodes": {},
    "rooms": {
        "smoke": {"episodes_in_context": 2, "transitions": 2_000},
        "small": {"episodes_in_context": 20, "episodes": 100, "checkpoints": 1},
        "full": {"episodes_in_context": 20, "checkpoints": 1},
    },
    "mazes": {
        "smoke": {"max_steps": 3, "transitions": 2_000, "changes": OFTEN | {"batch_size": 1}},
        "small": {"episodes": 20, "checkpoints": 1, "changes": SHORT | {"batch_size": 4}},
        "full": {"episodes": 20, "checkpoints": 1, "published": False},
    },
}
"""By kind of table and scale: fields that differ from the scale's own."""


def find_scale(name: str, kind: Kind = "episodes") -> Scale:
    """The scale of that name, as it is for a kind of tables.

    Raises:
        InputError: no such scale.
    """
    require_choice("scale", name, ScaleName)
    return dataclasses.replace(SCALES[name], **OF_KINDS[kind].get(name, {}))


def make_jobs(cells: Iterable[Cell], scale: str, runs: Path, rows: Path, seeds: int | None = None) -> list[Job]:
    """The jobs that cells want, each once: seed 0 of all before seed 1 of any.

    Args:
        cells: in the order in which they are wanted.
        scale: a name of `SCALES`.
        runs: where runs are kept.
        rows: where outcomes are kept.
        seeds: of each policy; the scale's own number if not given.
    """
    many = find_scale(scale).seeds if seeds is None else whole_number("seeds", seeds, 1)
    wanted = {(cell.dataset, entry_name(cell.entry, scale)): cell for cell in reversed(list(cells))}
    firsts = list(reversed(wanted.items()))
    return [make_job(cell, scale, seed, runs, rows) for seed in range(many) for _, cell in firsts]


def make_job(cell: Cell, scale: str, seed: int, runs: Path, rows: Path) -> Job:
    """The job of one seed of a cell."""
    how, name = find_scale(scale, cell.kind), entry_name(cell.entry, scale)
    data = dataset_name(cell.dataset)
    changes = how.of_models.get(cell.entry.model, how.changes) | effective_changes(cell.entry, scale)
    if how.published and has_published(cell.entry.model):
        changes = {"sizes": "published"} | changes
    targets = (GRID_TARGETS[data],) if data in GRID_TARGETS else RELEASED_TARGETS[data.split("-")[0]][: how.targets]
    place = Path(data) / f"{slug(name)}-seed{seed}"
    return Job(
        name=f"{data}/{name}",
        seed=seed,
        folder=runs / scale / place,
        dataset=cell.dataset,
        model=cell.entry.model,
        steps=how.steps,
        targets=targets if len(targets) < 2 or hears_returns(cell.entry.model) else targets[:1],
        episodes=how.episodes,
        changes=changes,
        transitions=how.transitions,
        checkpoints=how.checkpoints,
        max_steps=how.max_steps,
        episodes_in_context=how.episodes_in_context,
        row=rows / scale / place.with_suffix(".json"),
    )


def effective_changes(entry: Entry, scale: str) -> dict[str, Any]:
    """An entry's changes without those that say what holds anyway, at sizes that all models share."""
    if find_scale(scale).published:
        return entry.changes
    from dmm.models.entry import Facts
    from dmm.models.registry import find_model

    model = find_model(entry.model)
    defaults = {f.name: f.default for f in dataclasses.fields(model.config)}
    by_data = model.defaults(Facts(state_size=1, action_size=1))  # whose values are others for other data
    return {name: value for name, value in entry.changes.items() if name in by_data or defaults.get(name) != value}


def entry_name(entry: Entry, scale: str) -> str:
    """How a policy is called whatever table wants it: its model and what is changed."""
    changes = effective_changes(entry, scale)
    return " ".join([entry.model, *(f"{name}={changes[name]}" for name in sorted(changes))])


@cache
def has_published(model: str) -> bool:
    """Whether the registry knows the authors' sizes of a model."""
    from dmm.models.registry import find_model

    return find_model(model).published is not None


@cache
def hears_returns(model: str) -> bool:
    """Whether a model's action depends on the return that is asked for: asked for others, it plays the same."""
    from dmm.inspection.cards import card
    from dmm.models.registry import find_model

    reach = card(find_model(model))["reach"]  # None where batches are no windows of tokens
    return reach is not None and any(reach.get(name) is not None for name in ("returns_to_go", "condition"))


def is_plain(job: Job) -> bool:
    """Whether nothing is changed about a job's model, but how it is trained and the sizes of its scale."""
    from dmm.models.registry import find_model

    fields = {field.name for field in dataclasses.fields(find_model(job.model).config)}
    return not fields & job.changes.keys()


def train_and_score(job: Job) -> dict[str, Any]:
    """A job's row: data, size, seconds, and the scores of all its checkpoints with the returns of their episodes."""
    from dmm.data.trajectories import load_trajectories

    make_data(job)
    data = load_trajectories(job.dataset)
    require_fingerprint(job, data.fingerprint())
    run = train_job(job, data)
    row = {
        "name": job.name,
        "seed": job.seed,
        "model": job.model,
        "weights": run.policy.parameter_count(),
        "loss": float(run.log["loss"][-1]),
        "seconds": float(run.log["seconds"][-1]),
        "data": {key: run.info["dataset"][key] for key in ("id", "fingerprint", "reference", "mean_return")},
        "versions": versions(),
        "checkpoints": score_checkpoints(job, run),
        **({"tokens": measure_tokens(run, data)} if job.model in MEASURED and is_plain(job) else {}),
    }
    forget_checkpoints(job)
    return row


def measure_tokens(run: Run, data: Trajectories) -> dict[str, Any]:
    """Mean norms of activations and gradients of each token, on windows of the job's data: figures 3 and 4.

    `norms` has a list for each stage of the policy, `gradients` one for the last action and one for the loss.
    """
    from dmm.inspection import Objective, activations, full_windows, gradient_norms, token_norms

    policy: Any = run.policy
    windows = full_windows(data, policy.context, MEASURED_WINDOWS)
    found = {
        "norms": {name: token_norms(x) for name, x in activations(policy, windows).items()},
        "gradients": {name: gradient_norms(policy, windows, name) for name in get_args(Objective)},
    }
    return {
        kind: {name: [float(f"{norm:.6g}") for norm in norms.tolist()] for name, norms in stages.items()}
        for kind, stages in found.items()
    }


def make_data(job: Job) -> None:
    """Make the data set of a job where it is worked on, if it is one of ours and not there; one process at a time."""
    import time

    from dmm.data.collect import collect
    from dmm.data.minari_files import dataset_folder
    from dmm.data.recipes import RECIPES

    if job.dataset not in RECIPES:
        return
    folder = dataset_folder(job.dataset)
    while not folder.exists():
        with claimed(folder.parent / f".{folder.name}.making") as mine:
            if mine:
                collect(job.dataset, transitions=job.transitions, workers=1, progress=False)
                return
        time.sleep(1.0)  # another process is making it
    collect(job.dataset, transitions=job.transitions, progress=False)  # refuses one that was made otherwise


def score_checkpoints(job: Job, run: Run) -> list[dict[str, Any]]:
    """The scores of each checkpoint; those that a killed process had got to are not played again."""
    from dmm.training import load_run
    from dmm.training.checkpoints import write_atomically

    file = job.folder / "scores.json"
    asked = job.described()
    kept = read_json(file) if file.exists() else {}
    rows: list[dict[str, Any]] = kept["checkpoints"] if kept.get("job") == asked else []
    every = job.steps // job.checkpoints
    for step in range(every * (len(rows) + 1), job.steps + 1, every):
        at = run if step == job.steps else load_run(job.folder, step)
        rows.append({"step": step, "scores": play_job(job, at)})
        try:
            write_atomically(file, strict_json({"job": asked, "checkpoints": rows}).encode())
        except OSError as error:
            raise RunError(f"reproduce: {file} cannot be written ({error.strerror or error})") from error
    return rows


def play_job(job: Job, run: Run) -> list[dict[str, Any]]:
    """What a run scores at each of the job's targets, with the returns of its episodes.

    Of episodes in a row `returns` are those of each task's last one, and `by_task` those of all.
    """
    from dmm.evaluation import evaluate

    asking: Any = {"max_steps": job.max_steps, "seed": FIRST_EPISODE, "progress": False}
    if not job.episodes_in_context:
        found = evaluate(run, episodes=job.episodes, targets=job.targets, **asking)
        return [{**describe_score(score), "returns": _in_a_line(score.returns)} for score in found.scores]
    many = job.episodes_in_context
    return [
        _in_context(evaluate(run, episodes_in_context=many, tasks=job.episodes, targets=target, **asking))
        for target in job.targets
    ]


def _in_context(found: InContextEvaluation) -> dict[str, Any]:
    said = found.to_json()
    return {
        "target": found.target,
        **{key: said[key] for key in ("normalized_score", "ci95", "memory", "random", "best_possible")},
        "returns": _in_a_line(found.returns[:, -1]),
        "by_task": [_in_a_line(returns) for returns in found.returns],
        "tasks": [json.dumps(task) for task in said["tasks"]],
    }


def _in_a_line(returns: np.ndarray) -> str:
    return " ".join(f"{value:.6g}" for value in returns)  # of a file that people compare


def forget_checkpoints(job: Job) -> None:
    """Remove what was kept for scoring, now that it is scored; the last checkpoint stays."""
    from dmm.training import kept_name

    every = job.steps // job.checkpoints
    for step in range(every, job.steps + 1, every):
        (job.folder / kept_name(step)).unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """What the numbers may depend on beside the job."""
    from importlib.metadata import version

    names = ("torch", "numpy", "gymnasium", "mujoco")
    device = {"device": os.environ[DEVICE]} if DEVICE in os.environ else {}
    return {"python": platform.python_version(), **{name: version(name) for name in names}, **device}


def smoke_cells() -> list[Cell]:
    """Each kind of policy that some table wants, by its model and what is changed about it, and each data set.

    Of the long mazes the shortest has to do.
    """
    chosen: dict[tuple[str, ...], Cell] = {}
    for cell in [*find_cells(), *cells_in_context()]:
        chosen.setdefault((cell.kind, cell.entry.model, *effective_changes(cell.entry, "smoke")), cell)
        if cell.entry in (DMM, DMH):
            chosen.setdefault((cell.dataset,), cell)
    return list(chosen.values())


def cells_for(names: Sequence[str], scale: str) -> list[Cell]:
    """The cells that are asked for: without names all, and at the scale `smoke` each kind of job once."""
    if names:
        return find_cells(names)
    return smoke_cells() if scale == "smoke" else [*find_cells(), *cells_in_context()]


def use_own_data(runs: Path, scale: str) -> None:
    """Let tiny data sets lie beside the runs of their scale, not among those that have their recipes' sizes."""
    if find_scale(scale).transitions is not None:
        folder = (runs / scale / "data").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["MINARI_DATASETS_PATH"] = str(folder)


@dataclass(frozen=True)
class Reproduction:
    """What there is of the cells that were asked for, and how the call that worked on them went."""

    scale: str
    cells: list[dict[str, Any]]  # name, wanted seeds, paper's value, and the protocols' numbers of the seeds there are
    jobs: int  # that the cells want
    done: int  # of these
    finished: int = 0  # by this call
    failed: dict[str, str] = field(default_factory=dict)  # by job, why
    out_of_time: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """A line a cell, then how many jobs are done."""
        lines = [
            f"{'cell':52}{'seeds':>7}{'last checkpoint':>26}{'best of all':>13}{'paper, own data':>16}",
            *(_line(cell) for cell in self.cells),
            "",
            f"{self.done} of {self.jobs} jobs are done at the scale {self.scale}"
            + (f", {self.finished} of them by this call" if self.finished else "")
            + (f"; {len(self.failed)} failed" if self.failed else "")
            + ("; time is up, the next call goes on" if self.out_of_time else ""),
        ]
        return "\n".join(lines)


def _line(cell: dict[str, Any]) -> str:
    seeds, last, best = f"{cell['seeds']}/{cell['wanted']}", "no result yet", ""
    if cell["seeds"]:
        mean, ends = cell["last"]["mean"], cell["last"]["ci95"]
        digits = 1 if cell["kind"] == "episodes" else 2
        last = f"{mean:.{digits}f}" + (f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else " (one seed)")
        best = f"{cell['best']['mean']:.{digits}f}"
    published = "" if cell["paper"] is None else f"{cell['paper']:.{1 if cell['kind'] == 'episodes' else 2}f}"
    return f"{cell['name']:52}{seeds:>7}{last:>26}{best:>13}{published:>16}"


def reproduce(
    names: Sequence[str] = (),
    scale: str = "small",
    *,
    runner: str = "local",
    address: str | None = None,
    gpus_per_job: float = 0.0,
    hours: float | None = None,
    workers: int = 1,
    seeds: int | None = None,
    work: bool = True,
    runs: Path = Path("runs/reproduce"),
    rows: Path = Path("runs/reproduce/rows"),
) -> Reproduction:
    """Do what is open of these tables, figures, rows or cells, and say what is there.

    Args:
        names: see `dmm.experiments.tables.find_cells`; none stands for all.
        scale: a name of `SCALES`.
        runner: `local`, or `ray`.
        address: of a Ray cluster; if not given, one is started on this machine.
        gpus_per_job: share of a GPU that a job of a Ray cluster takes; without any, jobs compute on a core.
        hours: when to stop.
        workers: jobs done at once by the local runner.
        seeds: of each policy; the scale's own number if not given.
        work: whether to train anything.
        runs, rows: where runs and outcomes are kept.

    Raises:
        InputError: no such name, scale or runner, or a number out of range.
    """
    require_choice("runner", runner, Literal["local", "ray"])
    cells = cells_for(names, scale)
    jobs = make_jobs(cells, scale, runs, rows, seeds)
    made = Progress()
    if work:
        use_own_data(runs, scale)
        if runner == "ray":
            from dmm.experiments.ray_runner import work_off_on_ray

            made = work_off_on_ray(train_and_score, jobs, address=address, hours=hours, gpus_per_job=gpus_per_job)
        else:
            made = work_off(train_and_score, jobs, workers=workers, hours=hours)
    found = {(job.name, job.seed): outcome(job) for job in jobs}
    wanted = find_scale(scale).seeds if seeds is None else seeds
    return Reproduction(
        scale,
        [describe_cell(cell, scale, wanted, found) for cell in cells],
        len(jobs),
        sum(row is not None for row in found.values()),
        made.finished,
        made.failed,
        made.out_of_time,
    )


def describe_cell(
    cell: Cell, scale: str, wanted: int, found: Mapping[tuple[str, int], dict[str, Any] | None]
) -> dict[str, Any]:
    """A cell with the seeds that there are: their scores by two protocols, and the paper's value beside."""
    name = f"{dataset_name(cell.dataset)}/{entry_name(cell.entry, scale)}"
    rows = [row for seed in range(wanted) if (row := found.get((name, seed))) is not None]
    described: dict[str, Any] = {"name": cell.name, "policy": name, "kind": cell.kind}
    described |= {"wanted": wanted, "seeds": len(rows), "paper": cell.paper}
    if rows:
        scores = [episode_scores(row, cell.kind) for row in rows]
        described |= {"last": mean_interval([last_checkpoint(each) for each in scores])}
        described |= {"best": mean_interval([best_of_all(each) for each in scores])}
        if cell.table in KINDS:
            described |= {"over_action": norm_ratios([row["tokens"][KINDS[cell.table]] for row in rows])}
    return described


def context_returns(row: dict[str, Any]) -> np.ndarray:
    """Of a row in rooms: the returns at the last checkpoint and the first target, `(tasks, episodes in a row)`."""
    return np.array([line.split() for line in row["checkpoints"][-1]["scores"][0]["by_task"]], dtype=float)


KINDS = {"figure3": "norms", "figure4": "gradients"}


def norm_ratios(measured: Sequence[dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """By stage: the mean norm of return and state tokens over that of action tokens, geometric mean over seeds."""
    return {
        stage: {
            name: math.exp(float(np.mean([math.log(over_action(tokens[stage], i)) for tokens in measured])))
            for i, name in enumerate(("rtg", "state"))
        }
        for stage in measured[0]
    }


def episode_scores(row: dict[str, Any], kind: Kind = "episodes") -> list[list[np.ndarray]]:
    """Normalised scores of all episodes, by checkpoint and target; in rooms and mazes their returns.

    In rooms these are the last episodes of their tasks.
    """
    reference = tuple(row["data"]["reference"]) if kind == "episodes" else (0.0, 100.0)
    return [
        [normalize(np.array(score["returns"].split(), dtype=float), reference) for score in checkpoint["scores"]]
        for checkpoint in row["checkpoints"]
    ]
