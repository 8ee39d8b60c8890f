"""What three slips in released code do to a trained policy, each beside its correction, on the point maze.

    python -m dmm.experiments.flaws

`leak` Multi-grained Decision Mamba lays out its fine branch so that predictions read the action they are to predict.
`bins` Elastic Decision Transformer reads a drawn bin of returns as the one below it. `reward` The script of Q-learning
Decision Transformer leaves an episode's last reward out of earlier returns. The policies are small, so that all of them
train within half an hour of one core; runs are kept in `--runs`, and a second call goes on where a killed one stopped.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmm.experiments.grid import Job, score_job, train_job
from dmm.experiments.pointmaze import DATASET, compare_on_maze, maze_job

if TYPE_CHECKING:
    from dmm.data.trajectories import Trajectories
    from dmm.models.edt import ElasticDecisionTransformer
    from dmm.training import Run

SMALL: dict[str, Any] = {"width": 32, "layers": 2, "batch_size": 32}
STEPS = 1500
EPISODES = 100
TARGETS = (1.0,)
HELD_OUT = 60
"""Episodes of another seed, which no policy is trained on."""
WINDOWS = 1024
"""Of these episodes, without padding."""

ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "leak, released": ("dm-multigrained", {"groups": "tile"}),
    "leak, corrected": ("dm-multigrained", {"groups": "previous"}),
    "bins": ("edt", {}),  # trained once, played with either reading
    "reward, released": ("qldt", {"last_reward": "dropped"}),
    "reward, corrected": ("qldt", {"last_reward": "kept"}),
    "no relabelling": ("dt", {}),
}
"""By name: a model and changes to its defaults, beside `SMALL`."""


def make_jobs(runs: Path, seeds: int) -> list[Job]:
    """Every entry and seed; seed 0 of all before seed 1 of any."""
    made = [
        maze_job(name, seed, runs, SMALL | changes, model, STEPS)
        for seed in range(seeds)
        for name, (model, changes) in ENTRIES.items()
    ]
    return [dataclasses.replace(job, episodes=EPISODES, targets=TARGETS) for job in made]


def held_out() -> Trajectories:
    """Episodes that no policy is trained on."""
    from dmm.data.preview import preview

    return preview(DATASET, HELD_OUT, seed=1)


def train_and_look(job: Job) -> dict[str, Any]:
    """One policy: its score, and what its flaw shows in."""
    run = train_job(job)
    return {**score_job(job, run), **LOOKS.get(job.model, look_at_nothing)(job, run)}


def look_at_leak(job: Job, run: Run) -> dict[str, Any]:
    """`errors`: squared error of the action at each step of a window, by place; the last one is that of acting."""
    import torch

    from dmm.inspection import full_windows

    windows = full_windows(held_out(), run.policy.context, WINDOWS)
    with torch.no_grad():
        errors = (run.policy(windows) - windows.actions).square().mean((0, 2))
    return {"errors": errors.tolist()}


def look_at_bins(job: Job, run: Run) -> dict[str, Any]:
    """The same policy with corrected bins: its `corrected` score, and how far its actions `moved`, mean and largest.

    Seed 0 also has an `episode`: what the search found out at each of its steps.
    """
    import torch

    policy: Any = run.policy
    windows, found = search_windows(policy, held_out()), []
    for bins in ("released", "corrected"):
        policy.config = dataclasses.replace(policy.config, bins=bins)
        found.append([policy.search(window).actions for window in windows])
        if bins == "released" and job.seed == 0:
            episode = look_at_episode(policy, held_out())
    corrected = score_job(job, run)["scores"]
    policy.config = dataclasses.replace(policy.config, bins="released")
    moved = torch.cat([(a - b).abs().flatten() for a, b in zip(*found, strict=True)])
    row = {"corrected": corrected, "moved": {"mean": moved.mean().item(), "largest": moved.max().item()}}
    return row | ({"episode": episode} if job.seed == 0 else {})


def search_windows(policy: ElasticDecisionTransformer, data: Trajectories, count: int = 256) -> list[Any]:
    """Batches for `search`: what acting sees in the middle of an episode, its last action not known yet."""
    import torch

    from dmm.data.windows import WindowSampler

    k = policy.context
    firsts = np.concatenate(
        [np.arange(s, s + n - k + 1) for s, n in zip(data.starts, data.lengths, strict=True) if n >= k]
    )
    some = torch.from_numpy(np.random.default_rng(0).choice(firsts, count, replace=len(firsts) < count))
    sampler = WindowSampler(data, k, generator=torch.Generator())
    return [as_acting(sampler.gather(some))]


def as_acting(windows: Any) -> Any:
    """Windows of an episode in which a return of 1 is asked for: nothing is earned yet, the last action not known."""
    import torch

    actions = windows.actions.clone()
    actions[:, -1] = 0
    returns = torch.ones_like(windows.returns_to_go) * windows.mask[..., None]
    return dataclasses.replace(windows, returns_to_go=returns, actions=actions)


def look_at_episode(policy: ElasticDecisionTransformer, data: Trajectories) -> dict[str, Any]:
    """The longest episode that rounds the U and arrives: its places, and for each step the estimate of each history."""
    import torch

    from dmm.data.windows import WindowSampler

    below = data.observations[data.starts, 1] * data.observations[data.starts, -1] < 0  # the goal is on the other side
    rounding = np.flatnonzero((data.returns() > 0) & below)
    some = rounding if len(rounding) else np.arange(len(data.lengths))
    one = some[int(data.lengths[some].argmax())]
    start, length = int(data.starts[one]), int(data.lengths[one])
    steps = []
    for t in range(length):
        k = min(t + 1, policy.context)
        sampler = WindowSampler(data, k, generator=torch.Generator())
        found = policy.search(as_acting(sampler.gather(torch.tensor([start + t + 1 - k]))))
        estimates = [float(f"{value:.4g}") for value in found.estimates[:, 0].tolist()]
        steps.append({"lengths": found.lengths.tolist(), "estimates": estimates, "chosen": int(found.chosen[0])})
    places = np.round(data.observations[start : start + length, :2].astype(float), 3)
    return {"positions": places.tolist(), "goal": data.observations[start, -2:].astype(float).tolist(), "steps": steps}


def look_at_reward(job: Job, run: Run) -> dict[str, Any]:
    """What the transformer is told: mean return-to-go at the first step of episodes that arrive, and of the others.

    `told` is relabelled, `plain` is the data's own; `raised` is the share of steps whose return a value has raised.
    """
    from dmm.data.relabelling import relabel_all
    from dmm.data.trajectories import load_trajectories
    from dmm.models.qldt import observed_values
    from dmm.training import load_run

    data = load_trajectories(DATASET)
    critic: Any = load_run(job.folder / "conservative-q").policy
    made = relabel_all(data, observed_values(critic, data), last_reward=job.changes["last_reward"])
    arrives, first = data.returns() > 0, data.starts
    told = {
        name: {"arrive": _mean(returns[first][arrives]), "others": _mean(returns[first][~arrives])}
        for name, returns in (("plain", data.returns_to_go()), ("told", made.relabelled_returns()))
    }
    return {**told, "raised": made.relabelled_steps() / data.transitions}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def look_at_nothing(job: Job, run: Run) -> dict[str, Any]:
    """The score says it all."""
    return {}


LOOKS = {"dm-multigrained": look_at_leak, "edt": look_at_bins, "qldt": look_at_reward}


def main() -> None:
    compare_on_maze(
        "flaws",
        "Train policies with three released slips, and without.",
        make_jobs,
        train_and_look,
        entries=ENTRIES,
        small=SMALL,
        steps=STEPS,
        episodes=EPISODES,
        targets=TARGETS,
        held_out=HELD_OUT,
        windows=WINDOWS,
    )


if __name__ == "__main__":
    main()
