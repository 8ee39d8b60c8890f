"""One training step, whole, with each scan in the same model, beside other models and packages: `dmm bench train`.

The model is the default one at Hopper's sizes; the data are random numbers of the same shapes, on which a step takes as
long as on any other. Every model of the registry is timed beside it in the frame's sizes, and those of which this
package has a plain transcription in their authors' own. "Without its scan" has two readings, and both are measured:

    no recurrence    y = (delta u (B . C) + D u) silu(z): each token by itself, all projections still used and trained
    no scan          y = u silu(z): the projections for delta, B and C are computed and then left unused

On a CPU training computes the branches of a block as one function each (`dmm.fused`). The scans are compared in the
same model written as modules, `dmm, modules`, since that is where one can be put in another's place. What the step
takes is also put beside its matrix products alone.
"""

from __future__ import annotations

import functools
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.bench import check_at_least_one, finisher, interleaved, machine, threads_set
from dmm.bench.peers import Scan, compiled_loop, d3rlpy_dt, disagreement, find, find_scans, transformers_dt, versions
from dmm.bench.products import matrix_products
from dmm.bench.scan import PATIENCE, automatic, backends_on, head_lines, heading, make_inputs, milliseconds
from dmm.bench.transcribed import Transcribed, transcribed_step
from dmm.data.trajectories import Trajectories
from dmm.data.windows import WINDOWS, Sampler, Windows, WindowSampler
from dmm.fused import Choice, branches
from dmm.layers import mamba
from dmm.models.entry import Facts
from dmm.models.registry import MODELS, find_model, read_changes
from dmm.policy import Policy, action_loss
from dmm.progress import progress_bar
from dmm.training import TrainConfig, choose_device, train_seeds
from dmm.training.memory import keep_freed_memory
from dmm.training.stacking import stack
from dmm.training.update import FlatWeights, Update, fastest

STATE_SIZE, ACTION_SIZE = 11, 3
DT_PAPER = {"context": 20, "width": 128, "layers": 3, "heads": 1}
"""Decision Transformer's own sizes for MuJoCo (Chen et al. 2021, table 9)."""
TRANSCRIBED: dict[str, dict[str, int]] = {"dc": {}, "dm": {}}
"""Models that are timed at their published sizes beside a plain transcription, and what is changed of these sizes."""
ROUNDS = 3
"""Of their steps, which take up to seconds."""
UPDATES = 100_000
PROJECTED_FROM = (1_000, 5_000)
"""Updates of the two runs from which a GPU's seconds for `UPDATES` are projected."""
TOLERANCE = 1e-3
"""Of the largest entry, by which the gradients of a model with another scan may differ before it is left out."""
THREADS = (1, 2, 4)
LONGEST_STEP = 1.0
"""Seconds; a step that takes longer is timed once."""
DEFAULTS = TrainConfig()

ANOTHERS = "its updates are another package's"
IN_CONTEXT = "its batches hold series of episodes, not windows: see python -m dmm.experiments.memory_costs"
"""Why models are left out."""

Step = Callable[[], object]


def bench_train(
    *, seeds: int = 5, repeats: int = 9, threads: int = 1, device: str = "cpu", progress: bool = True
) -> dict[str, Any]:
    """Seconds per training step with each scan, of other models, of several seeds and on several threads.

    Args:
        seeds: how many are trained at once, stacked and one after the other.
        repeats: rounds; medians over them are reported.
        threads: CPU threads of torch and of the kernel.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on stderr.

    Raises:
        InputError: a number below 1, or a device that is not there.
    """
    check_at_least_one(seeds=seeds, repeats=repeats)
    place = choose_device(device)
    kept = keep_freed_memory()  # as training does; it speeds up whatever is trained in this process
    bench = _Bench(place)
    with threads_set(threads), progress_bar(total=4, desc="bench train", disable=not progress) as bar:
        scans, left_out = bench.scans()
        models, absent = bench.models()
        several = bench.seeds(seeds)
        bar.update()
        candidates = {**scans, **models, **several, "sampling": bench.sampling}
        if place.type == "cpu":
            candidates["products"] = bench.products()
        calls = 20 if place.type == "cuda" else 3
        times = interleaved(
            candidates, repeats=repeats, calls=calls, warm=1, patience=LONGEST_STEP, finish=finisher(place)
        )
        published = interleaved(bench.published(), repeats=min(repeats, ROUNDS), finish=finisher(place))
        bar.update()
        scaling = bench.thread_scaling(repeats) if place.type == "cpu" else []
        bar.update()
    return {
        **heading(place, threads),
        "freed_memory_kept": kept,
        "scans": [_scan_row(name, times, bench.differences.get(name)) for name in scans],
        "models": [{"model": name, **times[name], "ratio": _over(times, name, "dmm")} for name in ("dmm", *models)],
        "published": [_published_row(name, published) for name in TRANSCRIBED],
        "left_out": left_out | absent,
        "sampling": {**times["sampling"], "share": _over(times, "sampling", "dmm")},
        "products": _products_row(times) if place.type == "cpu" else None,
        "seeds": _seeds_rows(times, several, seeds),
        "threads_scaling": scaling,
        "projected_seconds": {name: UPDATES * times[name]["median"] for name in ("dmm", *several)}
        | (seconds_of_training(seeds, place) if place.type == "cuda" else {}),
    }


def seconds_of_training(
    seeds: int, device: torch.device, updates: tuple[int, int] = PROJECTED_FROM
) -> dict[str, float]:
    """What `UPDATES` updates of `train_seeds` take with all that goes with them: drawing, logs, checkpoints on disk.

    From the difference of two short runs, so that what is done once does not count `UPDATES` times.
    """
    found, data = {}, random_trajectories()
    for name, count in {"dmm": 1, f"{seeds} seeds, stacked": seeds}.items():
        times = []
        for steps in (min(updates), *updates):  # a first run builds what is built once
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                train_seeds(
                    data, seeds=range(count), steps=steps, out=folder, device=str(device), workers=1, progress=False
                )
                times.append(time.perf_counter() - begin)
        found[name] = UPDATES * (times[2] - times[1]) / (updates[1] - updates[0])
    return found


def _over(times: dict[str, dict[str, float]], name: str, other: str) -> float:
    return times[name]["median"] / times[other]["median"]


def _scan_row(name: str, times: dict[str, dict[str, float]], difference: float | None) -> dict[str, Any]:
    ratios = {
        "ratio": _over(times, name, "dmm, modules"),
        "over_no_recurrence": _over(times, name, "no recurrence"),
        "over_no_scan": _over(times, name, "no scan"),
    }
    return {"scan": name, **times[name], **ratios, "difference": difference}


def _published_row(name: str, times: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A model's step at its published sizes, and how many times as long the transcription's takes."""
    own, plain = f"{name}, published", f"{name}, transcribed"
    return {"model": own, **times[own], "transcribed": times[plain], "speedup": _over(times, plain, own)}


def _products_row(times: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The matrix products alone, and how many times as long the step takes, as training makes it and as modules."""
    over = {"step": _over(times, "dmm", "products"), "modules": _over(times, "dmm, modules", "products")}
    return {**times["products"], "over": over}


def _seeds_rows(times: dict[str, dict[str, float]], names: dict[str, Step], seeds: int) -> dict[str, Any]:
    rows = {name: {**times[name], "over_one_seed": _over(times, name, "dmm")} for name in names}
    stacked, separate = names
    return {"seeds": seeds, "rows": rows, "stacked_speedup": _over(times, separate, stacked)}


def random_trajectories(episodes: int = 200, length: int = 500) -> Trajectories:
    """Data of Hopper's sizes that mean nothing."""
    rng, n = np.random.default_rng(0), episodes * length
    return Trajectories(
        observations=rng.normal(size=(n, STATE_SIZE)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(n, ACTION_SIZE)).astype(np.float32),
        rewards=rng.uniform(size=n).astype(np.float32),
        starts=np.arange(0, n, length),
        lengths=np.full(episodes, length),
        terminated=np.zeros(episodes, dtype=bool),
        dataset_id="random",
        env_id="",
        last_observations=rng.normal(size=(episodes, STATE_SIZE)).astype(np.float32),
    )


# Other scans in the same model


def no_recurrence(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    *,
    delta_bias: Tensor,
    delta_softplus: bool = True,
    **_: Any,
) -> Tensor:
    """The scan of each token by itself, `h_t = delta_t B_t u_t`: all that a block computes, but for the recurrence."""
    delta = F.softplus(delta + delta_bias) if delta_softplus else delta + delta_bias
    return (delta * u * (B * C).sum(-1, keepdim=True) + D * u) * F.silu(z)


def no_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, **_: Any) -> Tensor:
    """The gate alone; nothing is asked of `delta`, `B` and `C`."""
    return u * F.silu(z)


@contextmanager
def scan_replaced(scan: Scan | None) -> Iterator[None]:
    """Mamba blocks, as modules, scan with this function inside the block; None leaves all as it is."""
    names = vars(mamba)
    before = names["selective_scan"]
    names["selective_scan"] = scan or before
    try:
        with nullcontext() if scan is None else branches("plain"):
            yield
    finally:
        names["selective_scan"] = before


def choose_backend(policy: Policy, backend: str) -> Policy:
    """The same policy, whose Mamba blocks scan with this backend."""
    for module in policy.modules():
        if isinstance(module, mamba.MambaBlock):
            module.backend = backend
    return policy


def gradients(policy: Policy, windows: Windows) -> list[Tensor]:
    """The loss of these windows without dropout, and its gradient for every weight."""
    policy.eval()
    loss = torch.stack([*policy.loss(windows).values()]).sum()
    found = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True, materialize_grads=True)
    policy.train()
    return [loss.detach(), *found]


def _generators(count: int, device: torch.device) -> list[torch.Generator]:
    """What dropout draws from: torch's own for one policy, one of its own for each of several."""
    if count > 1:
        return [torch.Generator(device).manual_seed(seed) for seed in range(count)]
    return [torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator]


class TrainingStep:
    """One update as `dmm.training` makes it, of one policy or of several that are stacked; on CUDA a replayed graph.

    Where a scan is given, or Mamba blocks were told which to take, all of the model is computed as modules, so that
    steps with several scans differ in nothing else.
    """

    def __init__(
        self,
        policies: Sequence[Policy],
        data: Trajectories,
        device: torch.device,
        scan: Scan | None = None,
        config: TrainConfig = DEFAULTS,
        sampler: Callable[[Trajectories, Any, torch.device], Sampler] = WINDOWS,
    ):
        self.config, self.scan = config, scan
        told = any(getattr(module, "backend", "auto") != "auto" for module in policies[0].modules())
        self.branches: Choice = "plain" if told or scan is not None else "auto"
        flats, dropout = [FlatWeights(policy) for policy in policies], _generators(len(policies), device)
        self.policy = (stack(policies, dropout) if len(policies) > 1 else policies[0]).train()
        self.draws = [torch.Generator().manual_seed(seed) for seed in range(len(policies))]
        self.sampler = sampler(data, policies[0].config, device)
        self.device, self.drawn = device, self._draw()
        with scan_replaced(scan), branches(self.branches):
            update = Update(flats, self.policy, self.policy.loss, self.sampler, self.config, dropout, policies[0].terms)
            self.update = fastest(
                update, torch.zeros(len(policies), config.batch_size, dtype=torch.int64, device=device)
            )

    def __call__(self) -> None:
        with scan_replaced(self.scan), branches(self.branches):
            self.update(next(self.drawn))

    def sample(self) -> Any:
        """The part of a step that puts its batch together."""
        return self.sampler.gather(next(self.drawn))

    def _draw(self) -> Iterator[Tensor]:
        while True:
            drawn = [self.sampler.draw(self.config.log_every, self.config.batch_size, each) for each in self.draws]
            yield from torch.stack(drawn, dim=1).to(self.device)  # (S, b) each


class _Bench:
    """Makes the candidates, all on the same data."""

    def __init__(self, device: torch.device):
        self.device, self.data = device, random_trajectories()
        self.differences: dict[str, float] = {}
        self.plain = self.step(self.policy("dmm"))

    def policy(self, model: str, seed: int = 0, **changes: Any) -> Policy:
        entry = find_model(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            policy = entry.policy(entry.make_config(STATE_SIZE, ACTION_SIZE, "Hopper-v5", **changes))
        return policy.to(self.device)

    def step(self, *policies: Policy, scan: Scan | None = None, **how: Any) -> TrainingStep:
        return TrainingStep(policies, self.data, self.device, scan, **how)

    def sampling(self) -> object:
        return self.plain.sample()

    def products(self) -> Step:
        """The matrix products of the step alone."""
        return matrix_products(self.policy("dmm").train(), self.plain.sample().merged())

    def scans(self) -> tuple[dict[str, Step], dict[str, str]]:
        """The step with each scan, and why others are left out."""
        peers, left_out = find_scans()
        replaced: dict[str, Scan] = {peer.name: peer.scan for peer in peers}
        compiled = compiled_loop(make_inputs(64, 24, 64, 16, self.device))
        if compiled.scan is None:
            left_out["torch.compile"] = compiled.reason
        else:
            replaced["torch.compile"] = compiled.scan
        modules = self.step(choose_backend(self.policy("dmm"), automatic(self.device)))
        made: dict[str, tuple[Step | None, str]] = {"dmm": (self.plain, ""), "dmm, modules": (modules, "")}
        for name in backends_on(self.device):
            policy = choose_backend(self.policy("dmm"), name)
            made[f"dmm, {name}"] = find(functools.partial(self.step, policy))
        made |= {name: self._swapped(name, scan) for name, scan in replaced.items()}
        left_out |= {name: reason for name, (step, reason) in made.items() if step is None}
        steps = {name: step for name, (step, _) in made.items() if step is not None}
        for name, scan in {"no recurrence": no_recurrence, "no scan": no_scan}.items():
            steps[name] = self.step(self.policy("dmm"), scan=scan)
        return steps, left_out

    def _swapped(self, name: str, scan: Scan) -> tuple[Step | None, str]:
        """The step with this scan, if loss and gradients of a model with it are those of the plain one."""
        policy, windows = self.policy("dmm"), self.plain.sample().merged()
        expected = gradients(policy, windows)
        with scan_replaced(scan):
            found, reason = find(functools.partial(gradients, policy, windows))
        if found is None:
            return None, reason
        off = self.differences[name] = disagreement(found, expected)
        if not off <= TOLERANCE:
            return None, f"gradients of the model are off by {off:.1e} of the largest entry"
        return find(functools.partial(self.step, self.policy("dmm"), scan=scan))

    def models(self) -> tuple[dict[str, Step], dict[str, str]]:
        """The steps of other models, and of other packages' Decision Transformers."""
        steps: dict[str, Step] = {}
        left_out: dict[str, str] = {}
        for name, entry in MODELS.items():
            if entry.learner is not None:
                left_out[name] = ANOTHERS
            elif entry.in_context:
                left_out[name] = IN_CONTEXT
            elif name != "dmm" and not entry.hidden:
                made, reason = find(functools.partial(self._model_step, name))
                if made is None:
                    left_out[name] = reason
                else:
                    steps[name] = made
        steps["dt, paper's size"] = self.step(self.policy("dt", **DT_PAPER))
        there = versions()
        for name, package, make in (
            ("transformers' dt, paper's size", "transformers", self._transformers_step),
            ("d3rlpy's dt, paper's size", "d3rlpy", self._d3rlpy_step),
        ):
            step, reason = (None, "not installed") if there[package] is None else find(make)
            if step is None:
                left_out[name] = reason
            else:
                steps[name] = step
        return steps, left_out

    def _model_step(self, name: str) -> TrainingStep:
        """The step of a model of the registry; what fails, since these data lack what it needs, fails now."""
        step = self.step(self.policy(name), sampler=find_model(name).sampler)
        step()
        return step

    def published(self) -> dict[str, Step]:
        """The steps of models at their published sizes, and of their transcriptions over a batch at hand."""
        facts = Facts(state_size=STATE_SIZE, action_size=ACTION_SIZE, env_id="Hopper-v5")
        steps: dict[str, Step] = {}
        for name, changes in TRANSCRIBED.items():
            entry = find_model(name)
            fields, recipe = read_changes({"sizes": "published", **changes}, entry, TrainConfig, facts)
            config = entry.config_for(facts, fields)
            policy = entry.policy(config).to(self.device)
            steps[f"{name}, published"] = self.step(policy, config=TrainConfig(**recipe), sampler=entry.sampler)
            model = Transcribed(name, STATE_SIZE, ACTION_SIZE, config.width, config.layers)
            windows = self._windows(config.context).to(self.device)
            steps[f"{name}, transcribed"] = transcribed_step(model.train().to(self.device), windows)
        return steps

    def _windows(self, context: int = DT_PAPER["context"]) -> Windows:
        sampler = WindowSampler(self.data, context, generator=torch.Generator().manual_seed(0))
        return sampler.sample(DEFAULTS.batch_size)

    def _transformers_step(self) -> Step:
        """Forward, backward, clipping and AdamW over a batch at hand; its drawing does not count."""
        sizes = (STATE_SIZE, ACTION_SIZE, DT_PAPER["width"], DT_PAPER["layers"], DT_PAPER["heads"], 1000)
        model, windows = transformers_dt(*sizes).train().to(self.device), self._windows().to(self.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=True)

        def step() -> None:
            output = model(
                states=windows.states,
                actions=windows.actions,
                rewards=None,
                returns_to_go=windows.returns_to_go / 1000,
                timesteps=windows.timesteps,
                attention_mask=windows.mask.long(),
            )
            optimizer.zero_grad()
            action_loss(output.action_preds, windows).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()

        return step

    def _d3rlpy_step(self) -> Step:
        """Its own `update` of a batch at hand; its drawing does not count."""
        make_batch: Any = importlib.import_module("d3rlpy.dataset").TrajectoryMiniBatch
        sizes = (STATE_SIZE, ACTION_SIZE, DT_PAPER["width"], DT_PAPER["layers"], DT_PAPER["context"])
        algorithm, w = d3rlpy_dt(*sizes, device=str(self.device)), self._windows()
        batch = make_batch(
            observations=w.states.numpy(),
            actions=w.actions.numpy(),
            rewards=np.zeros_like(w.returns_to_go.numpy()),
            returns_to_go=w.returns_to_go.numpy(),
            terminals=np.zeros_like(w.returns_to_go.numpy()),
            timesteps=w.timesteps.numpy().astype(np.float32),
            masks=w.mask.numpy().astype(np.float32),
            length=DT_PAPER["context"],
        )
        step = functools.partial(algorithm.update, batch)
        step()  # what fails shall fail now
        return step

    def seeds(self, count: int) -> dict[str, Step]:
        """The step of several seeds: stacked, and each by itself."""
        together = self.step(*(self.policy("dmm", seed) for seed in range(count)))
        apart = [self.step(self.policy("dmm", seed)) for seed in range(count)]

        def one_after_the_other() -> None:
            for step in apart:
                step()

        return {f"{count} seeds, stacked": together, f"{count} seeds, separate": one_after_the_other}

    def thread_scaling(self, repeats: int) -> list[dict[str, Any]]:
        """The step on 1, 2 and 4 threads, and its rate over that of one."""
        counts = [count for count in THREADS if count <= machine()["cores"]]
        calls = {str(count): functools.partial(self._several_steps, count) for count in counts}
        times = interleaved(calls, repeats=repeats, patience=PATIENCE["cpu"])
        return [
            {"threads": count, **times[str(count)], "rate_over_one": _over(times, str(counts[0]), str(count))}
            for count in counts
        ]

    def _several_steps(self, threads: int) -> None:
        with threads_set(threads):
            for _ in range(5):
                self.plain()


# Faces


def report(result: dict[str, Any]) -> str:
    """The figures as lines to read."""
    lines = [*head_lines(result), ""]
    lines.append(f"{'one training step':34}{'':10}{'ratio':>8}{'/ no recurrence':>17}{'/ no scan':>11}")
    for row in result["scans"]:
        lines.append(
            f"{row['scan']:34}{milliseconds(row):>10}{row['ratio']:8.2f}{row['over_no_recurrence']:17.2f}"
            f"{row['over_no_scan']:11.2f}"
        )
    lines += [f"{row['model']:34}{milliseconds(row):>10}{row['ratio']:8.2f}" for row in result["models"][1:]]
    lines += [
        f"{row['model']:34}{milliseconds(row):>10}{row['speedup']:8.2f} times as fast as transcribed"
        for row in result["published"]
    ]
    lines += [f"{name:34}left out: {reason}" for name, reason in result["left_out"].items()]
    seeds, sampling, products = result["seeds"], result["sampling"], result["products"]
    if products is not None:
        lines.append(
            f"{'its matrix products alone':34}{milliseconds(products):>10}   "
            "the step takes {step:.2f} times as long, as modules {modules:.2f}".format(**products["over"])
        )
    for name, row in seeds["rows"].items():
        lines.append(f"{name:34}{milliseconds(row):>10}{row['over_one_seed']:8.2f}")
    lines.append(
        f"{'drawing the windows':34}{milliseconds(sampling):>10}   {100 * sampling['share']:.1f} % of the step"
    )
    for row in result["threads_scaling"]:
        lines.append(f"threads: {row['threads']}, {row['rate_over_one']:.2f} times the rate of one")
    for name, seconds in result["projected_seconds"].items():
        lines.append(f"{UPDATES:,} updates, {name}: {seconds:,.0f} s")
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """Time per step with each scan and of each model as bars, as a png, svg or pdf."""
    import matplotlib.pyplot as plt

    from dmm.plots import COLORS, figure

    rows = {row["scan"]: row for row in result["scans"]} | {row["model"]: row for row in result["models"][1:]}
    fig, ax = figure(height=0.8 + 0.25 * len(rows))
    medians = [1e3 * row["median"] for row in rows.values()]
    spread = [[1e3 * abs(row[side] - row["median"]) for row in rows.values()] for side in ("low", "high")]
    kinds = {"no recurrence": "green", "no scan": "green"}
    colors = [COLORS["state" if name.startswith("dmm") else kinds.get(name, "grey")] for name in rows]
    ax.barh(list(rows), medians, xerr=spread, color=colors)
    ax.set(xlabel="milliseconds per training step")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    fig.savefig(path)
    plt.close(fig)
