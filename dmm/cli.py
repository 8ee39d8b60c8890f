"""The `dmm` command: data sets, models, training, evaluation, inspection.

Results go to stdout (as one JSON object with `--json`), progress to stderr. Exit code 0, or 2 with one line for wrong
input, or 1 for a run that failed, too little memory, or output that cannot be written.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dmm.errors import DataWarning, InputError, RunError, outside_reason, whole_number

app = typer.Typer(
    help="Decision MetaMamba: make data sets, train policies on them, evaluate and inspect them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bench = typer.Typer(help="Measure this machine: everything compared in one run, as ratios.", rich_markup_mode=None)
app.add_typer(bench, name="bench")

INTERRUPTED = 130
"""What newer versions of Typer return for Ctrl-C where older ones raise it."""
PIPE_CLOSED = 141
"""What a shell reports of a program that ends because nobody reads its output any more."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Threads = Annotated[
    int | None, typer.Option(help="CPU threads; OMP_NUM_THREADS, or half the cores, at most 4, if left out.")
]
Repeats = Annotated[int, typer.Option(help="Rounds; medians are reported.")]
BenchThreads = Annotated[int, typer.Option("--threads", help="CPU threads.")]
BenchDevice = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-environment", help="Call whatever the file names as its environment; without it, what is registered."
    ),
]
Picture = Annotated[Path | None, typer.Option(help="Draw the figures into this file (png, svg, pdf).")]


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """List the data sets that `collect` can make, and all that are on this machine."""
    from dmm.data.collect import installed
    from dmm.data.minari_files import local_sets
    from dmm.data.recipes import RECIPES

    here = {summary.dataset_id: summary for summary in installed()}
    rows = [
        {
            "name": recipe.name,
            "environment": recipe.env_id,
            "transitions": recipe.transitions,
            "description": recipe.description,
            "installed": None if recipe.name not in here else _summary(here[recipe.name]),
        }
        for recipe in RECIPES.values()
    ]
    ids, wrong = local_sets()
    for line in wrong:
        typer.echo(f"dmm: passed over: {line}", err=True)
    others = [name for name in ids if name not in RECIPES]
    lines = [_dataset_line(row) for row in rows] + [f"{name:42}here, not made by a recipe" for name in others]
    _print(as_json, {"datasets": rows, "others": others}, "\n".join(lines))


@app.command()
def collect(
    name: Annotated[str, typer.Argument(help="A data set that `dmm datasets` lists.")],
    transitions: Annotated[
        int | None, typer.Option(help="At least this many; the recipe's own number if left out.")
    ] = None,
    seed: Seed = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; the data do not depend on it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it even if it is there, and replace it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a data set on this machine, as an ordinary Minari data set."""
    from dmm.data.collect import collect as make

    made = _summary(make(name, transitions=transitions, seed=seed, workers=workers, force=force))
    text = (
        f"{made['dataset_id']}: {made['transitions']:,} transitions in {made['episodes']:,} episodes, "
        f"mean return {made['mean_return']:.4g}, normalised score {made['normalized_score']:.1f} "
        f"(regenerated, not D4RL)\n{made['path']}"
    )
    _print(as_json, made, text)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that `train` takes: weights, reach, and with --json sizes, loss and source of each.

    Weights are those for Hopper's data at the sizes that all models share, and at the authors' own (--set
    sizes=published). Reach is how many steps the last action of a window depends on, its own included.
    """
    from dmm.inspection.cards import cards, line

    rows = list(cards())
    head = f"{'model':16}{'weights / published':>24}  {'reach':12}what it is"
    _print(as_json, {"models": rows}, "\n".join([head, *map(line, rows)]))


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="Id of a Minari data set on this machine.")],
    model: Annotated[str, typer.Option(help="A model that `dmm models` lists.")] = "dmm",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Updates in all; 100,000 if left out, or those of the run that --resume goes on with. With more than "
            "that run had it is trained further, its warm-up as long as it was."
        ),
    ] = None,
    seed: Seed = 0,
    seeds: Annotated[
        int,
        typer.Option(
            help="Train this many, with seeds SEED, SEED + 1, ...: on CPUs each in a process of its own on one thread, "
            "as many at a time as there are threads (all cores, if neither --threads nor OMP_NUM_THREADS says)."
        ),
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run, with --seeds that of all runs; runs/<dataset>/<model>-seed<seed> if left out."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with the weights of another run, of the same model and sizes, on these or other data.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change a field of the model or the training; sizes=published takes the authors' sizes and recipe.",
        ),
    ] = None,
    threads: Threads = None,
    rewards: Annotated[
        str,
        typer.Option(
            help="What the data set stores: per-step, or cumulative; auto: as the data set says. Or delayed: all of an "
            "episode's reward at its last step, whatever is stored."
        ),
    ] = "auto",
    best_share: Annotated[
        float, typer.Option(help="Take this part of the episodes alone, those of the largest returns; 0.1: a tenth.")
    ] = 1.0,
    observation_keys: Annotated[
        str | None,
        typer.Option(help="Entries of a dictionary of observations to take, as in position,velocity; all if left out."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a public data set if it is not on this machine.")
    ] = False,
    trust_environment: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy; the run's folder holds weights (safetensors), configuration (JSON) and log (CSV)."""
    from dmm.data.trajectories import load_trajectories
    from dmm.training import train as fit
    from dmm.training import train_seeds

    whole_number("seeds", seeds, 1)
    _set_threads(threads)
    stored: Any = None if rewards == "auto" else rewards
    keys = None if observation_keys is None else [key.strip() for key in observation_keys.split(",")]
    read: Any = {"rewards": stored, "best_share": best_share, "observation_keys": keys}
    data = load_trajectories(dataset, **read, download=download, trust_environment=trust_environment)
    options: Any = {"steps": steps, "out": out, "device": device, "resume": resume, "start_from": start_from}
    options |= {"changes": _parse_changes(changes or [])}
    if seeds == 1:
        runs = [fit(data, model, seed=seed, **options)]
    else:
        runs = train_seeds(data, model, seeds=range(seed, seed + seeds), workers=_workers(threads), **options)
    rows = [_run_row(run, data.dataset_id, model) for run in runs]
    text = "\n".join(
        f"{row['run']}: {row['steps']:,} updates in {row['seconds']:.0f} s, loss {row['loss']:.4f}, "
        f"{row['parameters']:,} weights"
        for row in rows
    )
    _print(as_json, rows[0] if seeds == 1 else {"runs": rows}, text)


@app.command("import")
def import_weights(
    name: Annotated[str, typer.Argument(help="A policy that `dmm.from_official` knows, such as dmm, dt or dc.")],
    file: Annotated[Path, typer.Argument(help="The authors' state dict, .safetensors or .npz; never a pickle.")],
    config: Annotated[Path, typer.Option(help="A JSON file with the sizes that their code was run with.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Id of a local data set that they were trained on: where to evaluate, and moments of states."
        ),
    ] = None,
    environment: Annotated[
        str | None, typer.Option(help="Id of an environment to evaluate in, if there is no data set.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn an authors' weights into a run, which `evaluate` and `inspect` take."""
    from dmm.files import read_json, user_path
    from dmm.training.importing import import_run

    source = user_path("config", config)
    try:
        sizes = read_json(source)
    except (OSError, ValueError) as error:
        raise InputError(f"config: {source} cannot be read ({error})") from error
    run = import_run(name, user_path("file", file), sizes, out, dataset=data, environment=environment)
    row = {"run": str(run.path), "model": name, "parameters": run.policy.parameter_count()}
    _print(as_json, row, f"{row['run']}: {name} with {row['parameters']:,} weights of {file.name}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    episodes: Annotated[int, typer.Option(help="Episodes per target.")] = 100,
    episodes_in_context: Annotated[
        int | None,
        typer.Option(
            help="In place of those, so many in a row of each of many held-out tasks, with memory kept and no updates: "
            "whether a policy learns in context. One that cannot is played as a control."
        ),
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(help="How many of these tasks; all that are held out, 100 at most, if left out.")
    ] = None,
    target: Annotated[list[float] | None, typer.Option(help="Return asked for; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Environment seed of the first episode.")] = 10_000,
    acting: Annotated[
        str,
        typer.Option(
            help="How: window (as the papers evaluate), cached (the same with a key-value cache), or in constant time: "
            "recurrent, staggered."
        ),
    ] = "window",
    states: Annotated[
        int, typer.Option(help="Recurrent states per episode, for staggered acting; no effect on other ways.")
    ] = 4,
    environments: Annotated[int | None, typer.Option(help="Open at once at most; 100 if left out.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="End every episode after so many; the environment's own limit if left out.")
    ] = None,
    trust_environment: Trust = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Roll out a run's last checkpoint: return and normalised score with a 95 % interval.

    With --episodes-in-context: the mean return of the first, second, ... episode of held-out tasks, with intervals.
    """
    from dmm.evaluation import evaluate as measure

    _set_threads(threads)
    options: Any = {"targets": target, "tasks": tasks, "seed": seed, "acting": acting, "states": states}
    options |= {"environments": environments, "max_steps": max_steps, "trust_environment": trust_environment}
    if episodes_in_context is not None:
        with redirect_stdout(sys.stderr):
            found = measure(run, episodes_in_context=episodes_in_context, **options)
        return _print(as_json, found.to_json(), found.text())
    with redirect_stdout(sys.stderr):  # an environment may print, and stdout is for the result
        result = measure(run, episodes=episodes, **options).to_json()
    way = result["acting"] + (f" with {result['states']} states" if result["states"] else "")
    lines = [
        f"{result['model']} on {result['dataset']}, step {result['step']:,}, {result['episodes']} episodes per target, "
        f"acting: {way}"
    ]
    for row in result["scores"]:
        known = row["normalized_score"] is not None
        score = f"normalised score {row['normalized_score']:.1f}" if known else "no reference returns"
        low, high = row["ci95"]
        lines.append(
            f"target {row['target']:g}: mean return {row['mean_return']:.4g}, {score}, "
            f"95 % interval {low:.1f} to {high:.1f}"
        )
    if result["behaviour"] is not None:
        lines.append(f"the data's own behaviour: normalised score {result['behaviour']:.1f}")
    _print(as_json, result, "\n".join(lines))


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Tables, figures, rows or cells, such as table1 or table2/kitchen-mixed/dmm; all if none. Those of "
            "the Decision Mamba-Hybrid paper are dmh-figure2 (dark rooms, in context), dmh-figure3 (long T-mazes), "
            "dmh-figure4a (sub-goals) and dmh-figure4b (steps of a group)."
        ),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="smoke: whether all runs, in minutes; small: equal budgets, nights of a laptop; full: the papers' own."
        ),
    ] = "small",
    runner: Annotated[str, typer.Option(help="local: processes of this machine; ray: a cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; one on this machine is started if left out.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="Stop after so many; the next call goes on.")] = None,
    gpus_per_job: Annotated[
        float, typer.Option(help="Share of a GPU that each job of the Ray cluster takes, to be trained there.")
    ] = 0.0,
    workers: Annotated[int, typer.Option(help="Jobs that the local runner does at once, one thread each.")] = 1,
    seeds: Annotated[int | None, typer.Option(help="Of each policy; the scale's own number if left out.")] = None,
    only_status: Annotated[bool, typer.Option("--status", help="Train nothing; say what is there.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/reproduce"),
    rows: Annotated[
        Path | None, typer.Option(help="Folder of the outcomes, a file a job; `rows` in that of the runs if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remake the papers' tables and figures: a queue of jobs that may be stopped at any moment and goes on.

    A killed call loses what it did since the last checkpoint. Several calls may work on one folder at the same time.
    """
    from dmm.experiments import reproduce as module
    from dmm.files import user_path

    made = module.reproduce(
        names or [],
        scale,
        runner=runner,
        address=address,
        gpus_per_job=gpus_per_job,
        hours=hours,
        workers=workers,
        seeds=seeds,
        work=not only_status,
        runs=user_path("runs", runs),
        rows=user_path("rows", rows) if rows else user_path("runs", runs) / "rows",
    )
    _print(as_json, made.to_json(), made.text())
    if made.failed:
        raise typer.Exit(1)


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; `inspection` in the run's if left out.")
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows of the data to look at.")] = 128,
    data: Annotated[
        str | None, typer.Option(help="Id of another data set to look at; the run's own if left out.")
    ] = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """What a trained run sees, what an action costs and, of models that read tokens, what they do with them."""
    from dmm.files import user_path
    from dmm.inspection.report import inspect as look
    from dmm.training import load_run

    _set_threads(threads)
    folder = user_path("out", out) if out else user_path("run", run) / "inspection"
    result = look(load_run(run), folder, windows=windows, seed=seed, data=data)
    lines = [f"{result['model']} on {result['dataset']}, step {result['step']:,}, {result['weights']:,} weights"]
    lines += [f"an action takes {result['action']['us']:.0f} us and {result['action']['memory']:,} bytes of memory"]
    if "data" in result:
        lines += [f"tokens: {windows} windows of {result['data']}"]
    lines += [str(folder / name) for name in result["files"]]
    _print(as_json, result, "\n".join(lines))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    to: Annotated[Path, typer.Option(help="The new file.")],
    as_json: AsJson = False,
) -> None:
    """Write a run's policy as one JSON file that a web page can act with: dmm, mamba and dt."""
    from dmm.export import export_run

    made = export_run(run, to)
    row = {"file": str(to), "bytes": to.expanduser().stat().st_size, "model": made["model"], "step": made["step"]}
    row |= {"dataset": made["dataset"], "world": (made["environment"]["world"] or {}).get("kind")}
    where = f"plays {row['world']}" if row["world"] else "no world that a page can play"
    _print(as_json, row, f"{to}: {made['name']} on {made['dataset']}, {row['bytes']:,} bytes, {where}")


@bench.command("scan")
def bench_scan(
    length: Annotated[list[int] | None, typer.Option(help="Tokens; may be given several times.")] = None,
    channels: Annotated[int, typer.Option(help="Inner channels e.")] = 64,
    states: Annotated[int, typer.Option(help="State size n.")] = 16,
    repeats: Repeats = 7,
    threads: BenchThreads = 1,
    device: BenchDevice = "cpu",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """The selective scan alone, forward and backward, beside the scans of other packages that are installed."""
    from dmm.bench import check_picture
    from dmm.bench import scan as module

    picture = check_picture(picture)
    result = module.bench_scan(
        length, channels=channels, states=states, repeats=repeats, threads=threads, device=device
    )
    _print_bench(as_json, result, module, picture)


@bench.command("train")
def bench_train(
    seeds: Annotated[int, typer.Option(help="How many are trained at once.")] = 5,
    repeats: Repeats = 9,
    threads: BenchThreads = 1,
    device: BenchDevice = "cpu",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """A whole training step with each scan, of other models, of several seeds, on several threads."""
    from dmm.bench import check_picture
    from dmm.bench import train as module

    picture = check_picture(picture)
    result = module.bench_train(seeds=seeds, repeats=repeats, threads=threads, device=device)
    _print_bench(as_json, result, module, picture)


@bench.command("act")
def bench_act(
    step: Annotated[list[int] | None, typer.Option(help="Steps behind the policy; may be given several times.")] = None,
    episodes: Annotated[int, typer.Option(help="Episodes of Hopper that are played whole.")] = 100,
    threads: BenchThreads = 1,
    device: BenchDevice = "cpu",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """The time of one action after ever more steps, and of whole episodes over the simulator's own."""
    from dmm.bench import act as module
    from dmm.bench import check_picture

    picture = check_picture(picture)
    result = module.bench_act(steps=step or module.STEPS, episodes=episodes, threads=threads, device=device)
    _print_bench(as_json, result, module, picture)


@bench.command("data")
def bench_data(
    dataset: Annotated[str, typer.Argument(help="A data set that `dmm datasets` lists.")] = "dmm/hopper/medium-v0",
    transitions: Annotated[int, typer.Option(help="How many are recorded and read per measurement.")] = 100_000,
    repeats: Repeats = 3,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """How fast a data set is recorded, read and sampled here."""
    from dmm.bench import check_picture
    from dmm.bench import data as module

    picture = check_picture(picture)
    result = module.bench_data(dataset, transitions=transitions, repeats=repeats)
    _print_bench(as_json, result, module, picture)


def _print_bench(as_json: bool, result: dict[str, Any], module: Any, picture: Path | None) -> None:
    if picture is not None:
        module.draw(result, picture)
    _print(as_json, result, module.report(result))


def _summary(made: Any) -> dict[str, Any]:
    return asdict(made)


def _run_row(run: Any, dataset: str, model: str) -> dict[str, Any]:
    log = run.log
    return {
        "run": str(run.path),
        "dataset": dataset,
        "model": model,
        "seed": run.info["training"]["seed"],
        "steps": run.step,
        "loss": float(log["loss"][-1]),
        "seconds": float(log["seconds"][-1]),
        "parameters": run.policy.parameter_count(),
    }


def _dataset_line(row: dict[str, Any]) -> str:
    there = row["installed"]
    state = f"here, {there['transitions']:,} transitions" if there else f"not here, {row['transitions']:,} by default"
    return f"{row['name']:42}{row['environment']:28}{state}\n    {row['description']}"


def _parse_changes(pairs: Sequence[str]) -> dict[str, str]:
    changes = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise InputError(f"set: got {pair!r}, allowed is FIELD=VALUE")
        changes[name.strip()] = value.strip()
    return changes


def _set_threads(threads: int | None) -> None:
    """Small models gain little beyond a few threads, and torch slows down badly when it has to share all its cores."""
    import torch

    if threads is not None:
        whole_number("threads", threads, 1)
    if threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(threads or max(1, min(4, (os.cpu_count() or 1) // 2)))


def _workers(threads: int | None) -> int:
    """How many seeds are trained at the same time: each has one thread, so that all cores have work."""
    import torch

    from dmm.processes import usable_cores

    return torch.get_num_threads() if threads is not None or "OMP_NUM_THREADS" in os.environ else usable_cores()


def _print(as_json: bool, value: dict[str, Any], text: str) -> None:
    from dmm.files import strict_json

    if sys.stdout is None:
        raise RunError("output: standard output is closed")

    try:
        typer.echo(strict_json(value) if as_json else text)
    except BrokenPipeError:  # whoever reads has seen enough
        _drop(sys.stdout)
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:
        _drop(sys.stdout)
        raise RunError(f"output: standard output cannot be written ({error.strerror})") from error


def _drop(stream: Any) -> None:
    """Send what the stream still holds to nowhere: Python would fail on it once more when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_standard_streams() -> None:
    """Where 0, 1 or 2 is closed, the next file to be opened would get that number, and what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; turns every expected failure into one line on stderr and its exit code."""
    _open_standard_streams()
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        code = _exit_code(lambda: app(args=words, prog_name="dmm", standalone_mode=False))
    sys.exit(code)


def _show_warning(otherwise: Callable[..., Any], message: Any, *more: Any, **options: Any) -> None:
    """What the data cannot give, in one line; other warnings as Python shows them."""
    if isinstance(message, DataWarning):
        typer.echo(f"dmm: warning: {message}", err=True)
    else:
        otherwise(message, *more, **options)


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        outcome = command()
    except InputError as error:
        return _fail(str(error), 2)
    except RunError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except Exception as error:
        reason = outside_reason(error)
        return _usage(error) if reason is None else _fail(reason, 1)
    if outcome == INTERRUPTED:
        return _fail("interrupted", 1)
    return outcome if isinstance(outcome, int) else 0


def _usage(error: Exception) -> int:
    """What the parser of the command line raises. Typer has carried click under different names, so it is known by its
    shape; anything else is a bug and goes on as a traceback."""
    if type(error).__name__ == "Abort":
        return _fail("interrupted", 1)
    if not hasattr(error, "format_message"):
        raise error
    return _fail(error.format_message(), 2)


def _fail(message: str, code: int) -> int:
    try:
        typer.echo(f"dmm: error: {' '.join(message.split())}", err=True)
    except OSError:  # the exit code has to do
        _drop(sys.stderr)
    return code


if __name__ == "__main__":
    main()
