"""The pictures and numbers of `dmm inspect`: what a trained policy does with its tokens, as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dmm.checkpoints import write_atomically
from dmm.data.minari_files import local_ids
from dmm.data.preview import preview
from dmm.data.recipes import RECIPES
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.errors import InputError, RunError
from dmm.inspection import (
    MODALITIES,
    Objective,
    activations,
    full_windows,
    gate_shares,
    gradient_norms,
    token_norms,
)
from dmm.plots import COLORS, use_style
from dmm.policy import TokenPolicy
from dmm.training import Run

PREVIEW_EPISODES = 100
Numbers = dict[str, dict[str, list[float]]]


def inspect(run: Run, out: Path, *, windows: int = 128, seed: int = 0) -> dict[str, Any]:
    """Measure a run on windows of its own data set; write `inspection.json` and four pictures to `out`.

    Args:
        run: of a token policy, as all models of the registry are.
        out: a folder, made if it is not there; files of the same names are replaced.
        windows: how many, without padding.
        seed: which.

    Returns:
        The content of `inspection.json`: `norms` by stage, `gradients` by objective and `gates` by layer, each a list
        over the `3k` tokens, and `files`, the names of what was written.

    Raises:
        InputError: another kind of policy, `windows` below 1, or data that are neither on this machine nor a recipe's.
        RunError: the folder cannot be written.
    """
    if not isinstance(run.policy, TokenPolicy):
        raise InputError(f"run: got a {type(run.policy).__name__}, allowed are the models that `dmm models` lists")
    if windows < 1:
        raise InputError(f"windows: got {windows}, allowed is at least 1")
    data = _data(run.info["dataset"]["id"], run.info["dataset"]["observation_keys"])
    batch = full_windows(data, run.policy.context, windows, seed=seed)
    stages = activations(run.policy, batch)
    numbers: Numbers = {
        "norms": {name: token_norms(x).tolist() for name, x in stages.items()},
        "gradients": {name: gradient_norms(run.policy, batch, name).tolist() for name in get_args(Objective)},
        "gates": {name: share.tolist() for name, share in gate_shares(run.policy, batch).items()},
    }
    figures = {
        "activations.png": draw_activations({name: x[0] for name, x in stages.items() if name.startswith("layer")}),
        "norms.png": draw_tokens(numbers["norms"], "mean L1 norm"),
        "gradients.png": draw_tokens(numbers["gradients"], "mean gradient norm"),
    }
    if numbers["gates"]:
        figures["gates.png"] = draw_tokens(numbers["gates"], "share that the gate lets through")
    result = {
        "dataset": run.info["dataset"]["id"],
        "model": run.info["model"],
        "step": run.step,
        "windows": windows,
        "tokens": [f"{MODALITIES[i % 3]} {i // 3}" for i in range(3 * run.policy.context)],
        **numbers,
        "files": ["inspection.json", *figures],
    }
    _write(out, result, figures)
    return result


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


def draw_tokens(lines: dict[str, list[float]], label: str) -> Figure:
    """One row of bars per entry, a bar per token in the colour of its modality."""
    use_style()
    fig, axes = plt.subplots(len(lines), 1, figsize=(7.2, 0.9 + 1.2 * len(lines)), sharex=True, squeeze=False)
    for ax, (name, values) in zip(axes[:, 0], lines.items(), strict=True):
        ax.bar(np.arange(len(values)), values, color=[COLORS[MODALITIES[i % 3]] for i in range(len(values))])
        ax.text(0, 1.04, name, transform=ax.transAxes)
    axes[-1, 0].set_xlabel("token, oldest first: " + ", ".join(MODALITIES) + " of each time step")
    fig.supylabel(label, fontsize=10)
    return fig


def _data(dataset_id: str, observation_keys: list[str]) -> Trajectories:
    if dataset_id not in local_ids() and dataset_id in RECIPES:
        return preview(dataset_id, PREVIEW_EPISODES)
    return load_trajectories(dataset_id, observation_keys=observation_keys)


def _write(out: Path, result: dict[str, Any], figures: dict[str, Figure]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "inspection.json", (json.dumps(result, indent=1) + "\n").encode())
        for name, fig in figures.items():
            fig.savefig(out / name)
    except OSError as error:
        raise RunError(f"out: {out} cannot be written ({error.strerror})") from error
    finally:
        for fig in figures.values():
            plt.close(fig)
