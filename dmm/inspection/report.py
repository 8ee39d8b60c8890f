"""The pictures and numbers of `dmm inspect`: what a trained policy does with its tokens, as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dmm.data.minari_files import local_ids
from dmm.data.preview import preview
from dmm.data.recipes import RECIPES
from dmm.data.rewards import Rewards
from dmm.data.trajectories import MARK, Trajectories, load_trajectories
from dmm.data.windows import Windows
from dmm.errors import InputError, RunError, whole_number
from dmm.files import strict_json, user_path
from dmm.inspection import (
    MODALITIES,
    Objective,
    activations,
    full_windows,
    gate_shares,
    gradient_norms,
    token_norms,
)
from dmm.inspection.cost import costs_of_actions
from dmm.inspection.reach import Reach, reach
from dmm.models.frame import TokenPolicy
from dmm.plots import COLORS, use_style
from dmm.training import Run
from dmm.training.checkpoints import write_atomically

PREVIEW_EPISODES = 100
MOST_ROWS = 32
"""Of longer windows only the last action's reach is looked at."""
Numbers = dict[str, dict[str, list[float]]]


def inspect(
    run: Run, out: str | Path, *, windows: int = 128, seed: int = 0, data: str | Trajectories | None = None
) -> dict[str, Any]:
    """Measure a run; write `inspection.json` and pictures to `out`.

    Of any policy: its weights, what each action depends on (`dmm.inspection.reach`), and what one action costs
    (`dmm.inspection.cost`). Of models of the shared frame, which read tokens, also activations, norms, gradients and
    gates on windows of the data.

    Args:
        run: of any model.
        out: a folder, made if it is not there; files of the same names are replaced.
        windows: how many, without padding.
        seed: which.
        data: others to look at. If not given, the data set that the run was trained on; where it is not on this machine
            and a recipe makes it, its first episodes.

    Returns:
        The content of `inspection.json`: `weights`; `reach`, the first and last step that the last action sees of each
        field, relative to it, None where it sees none; `action`, microseconds and bytes of memory; `files`, the names
        of what was written. Of models of the frame also `norms` by stage, `gradients` by objective and `gates` by
        layer, each a list over the `3k` tokens, and `data`, what was looked at.

    Raises:
        InputError: `windows` below 1, data that are neither on this machine nor a recipe's or have states or actions of
            other sizes, or a data set that has been replaced since the run was trained on it.
        RunError: the folder cannot be written.
    """
    out, windows = user_path("out", out), whole_number("windows", windows, 1)
    policy, figures = run.policy, {}
    result: dict[str, Any] = {
        "dataset": run.info["dataset"]["id"],
        "model": run.info["model"],
        "step": run.step,
        "weights": policy.parameter_count(),
        "action": costs_of_actions({"action": policy})["action"],
        "reach": None,
    }
    if issubclass(policy.batch, Windows):
        found = reach(policy, last=policy.context > MOST_ROWS)
        result["reach"] = {name: span and list(span) for name, span in found.last().items()}
        figures["reach.png"] = draw_reach(found)
    if isinstance(policy, TokenPolicy):
        made, more = _tokens(run, policy, windows, seed, data)
        result, figures = result | made, more | figures
    result["files"] = ["inspection.json", *figures]
    _write(out, result, figures)
    return result


def _tokens(
    run: Run, policy: TokenPolicy, windows: int, seed: int, data: str | Trajectories | None
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """What is measured of tokens, and the pictures of it."""
    trajectories, what = _own_data(run) if data is None else _other_data(run, data)
    batch = full_windows(trajectories, policy.context, windows, seed=seed)
    stages, kinds = activations(policy, batch), policy.TOKENS
    numbers: Numbers = {
        "norms": {name: token_norms(x).tolist() for name, x in stages.items()},
        "gradients": {name: gradient_norms(policy, batch, name).tolist() for name in get_args(Objective)},
        "gates": {name: share.tolist() for name, share in gate_shares(policy, batch).items()},
    }
    figures = {
        "activations.png": draw_activations({name: x[0] for name, x in stages.items() if name.startswith("layer")}),
        "norms.png": draw_tokens(numbers["norms"], "mean L1 norm", kinds),
        "gradients.png": draw_tokens(numbers["gradients"], "mean gradient norm", kinds),
    }
    if numbers["gates"]:
        figures["gates.png"] = draw_tokens(numbers["gates"], "share that the gate lets through", kinds)
    tokens = [f"{kind} {step}" for step in range(policy.context) for kind in kinds]
    return {"windows": windows, "data": what, "tokens": tokens, **numbers}, figures


def draw_reach(found: Reach) -> Figure:
    """One square per field: which of its steps (columns) the action of each step (rows) depends on."""
    use_style()
    fig, axes = plt.subplots(1, len(found.seen), figsize=(2.4 * len(found.seen), 2.7), squeeze=False)
    for ax, (name, seen) in zip(axes[0], found.seen.items(), strict=True):
        ax.imshow(seen.numpy(), cmap="Greys", vmin=0, vmax=1.3, interpolation="nearest")
        ax.grid(False)
        ax.set(xlabel="step", title=name.replace("_", " "))
    axes[0, 0].set_ylabel("action of step")
    return fig


def draw_activations(stages: dict[str, Tensor]) -> Figure:
    """One heat map per stage, tokens down and channels across: `(l, d)` each.

    All share one scale, which the largest one in a hundred activations exceed.
    """
    use_style()
    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3.4 * columns, 2.2 * rows), squeeze=False)
    limit = float(np.quantile(np.concatenate([x.abs().flatten().numpy() for x in stages.values()]), 0.99))
    for ax in axes.flat[len(stages) :]:
        ax.set_visible(False)
    for ax, (name, x) in zip(axes.flat, stages.items(), strict=False):
        image = ax.imshow(x.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        ax.set(xlabel="channel", ylabel="token")
        ax.grid(False)
        ax.text(0, 1.03, name, transform=ax.transAxes)
    fig.colorbar(image, ax=axes, label="activation", extend="both")
    return fig


def draw_tokens(lines: dict[str, list[float]], label: str, tokens: Sequence[str] = MODALITIES) -> Figure:
    """One row of bars per entry, a bar per token in the colour of its modality; `tokens` are those of a time step."""
    use_style()
    fig, axes = plt.subplots(len(lines), 1, figsize=(7.2, 0.9 + 1.2 * len(lines)), sharex=True, squeeze=False)
    for ax, (name, values) in zip(axes[:, 0], lines.items(), strict=True):
        ax.bar(np.arange(len(values)), values, color=[COLORS[tokens[i % len(tokens)]] for i in range(len(values))])
        ax.text(0, 1.04, name, transform=ax.transAxes)
    axes[-1, 0].set_xlabel("token, oldest first: " + ", ".join(tokens) + " of each time step")
    fig.supylabel(label, fontsize=10)
    return fig


def _own_data(run: Run) -> tuple[Trajectories, str]:
    """What the run was trained on, and what that is in words."""
    data = run.info["dataset"]
    name, fingerprint, share = data["id"].partition(MARK)[0], data["fingerprint"], data.get("best_share", 1.0)
    if name not in local_ids() and name in RECIPES:
        made = preview(name, PREVIEW_EPISODES).best(share)
        what = f"the first {PREVIEW_EPISODES} episodes of its recipe, made anew"
        return made.delayed() if data.get("delayed_rewards") else made, what
    readings = _readings(name, data["observation_keys"], share)
    trajectories = next((t for t in readings if t.fingerprint() == fingerprint), None)
    if trajectories is not None:
        return trajectories, "its data set"
    raise InputError(
        f"data: {name!r} has been replaced since {run.path} was trained on it (its fingerprint was {fingerprint}); "
        f"--data {name} looks at what is there now"
    )


def _readings(name: str, keys: list[str], share: float) -> Iterator[Trajectories]:
    """A data set as it is read by default, then with its rewards taken as one kind and another, and the run's keys.

    A run does not say with which reading it was trained, but for the share of the episodes.
    """
    yield load_trajectories(name, best_share=share)
    for chosen in (None, keys or None):
        for rewards in (None, *get_args(Rewards)):
            with suppress(InputError):
                yield load_trajectories(name, rewards=rewards, best_share=share, observation_keys=chosen)


def _other_data(run: Run, data: str | Trajectories) -> tuple[Trajectories, str]:
    trajectories = data if isinstance(data, Trajectories) else load_trajectories(data)
    there = (trajectories.state_size, trajectories.action_size)
    wanted = (run.policy.state_size, run.policy.action_size)
    if there != wanted:
        raise InputError(
            f"data: {trajectories.dataset_id!r} has states and actions of sizes {there}, allowed are {wanted}"
        )
    return trajectories, f"{trajectories.dataset_id} ({trajectories.fingerprint()})"


def _write(out: Path, result: dict[str, Any], figures: dict[str, Figure]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "inspection.json", (strict_json(result, indent=1) + "\n").encode())
        for name, fig in figures.items():
            fig.savefig(out / name)
    except OSError as error:
        raise RunError(f"out: {out} cannot be written ({error.strerror})") from error
    finally:
        for fig in figures.values():
            plt.close(fig)
