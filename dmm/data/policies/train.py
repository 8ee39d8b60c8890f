"""Train the policies whose behaviour the recipes record.

    python -m dmm.data.policies.train walker2d --seed 0 --steps 800000 --every 10000 --out runs/behaviour/walker2d

trains by CrossQ (sbx, in JAX, the `behaviours-crossq` extra), a soft actor-critic that needs few steps to become good,
or with `--algorithm ppo` by PPO (Stable-Baselines3, the `behaviours` extra), which needs more steps but takes them
quickly. A snapshot is taken every so many steps and scored by rolling it out with its action noise on. In the folder:

- `snapshots.csv`, one row per snapshot as it is taken: training step, mean and spread of the return, normalised score;
- `step-0020000.npz`, ...: plain float32 arrays, read back by `dmm.data.policies.load_policy` without unpickling;
- `trainer.npz`: a few observations, and what the trainer's own network does there at each snapshot, for a test.

`weights/README.md` beside this file says which runs and which snapshots the package keeps.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the compiled update is small: more threads than one only get in each other's way
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np

from dmm.data.observations import build_env
from dmm.data.policies import Arrays, load_policy
from dmm.data.scores import normalized_score
from dmm.errors import InputError

ENVIRONMENTS = {
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "halfcheetah": "HalfCheetah-v5",
    "ant": "dmm/WalkingAnt-v0",
}
COLUMNS = ("step", "return_mean", "return_std", "normalized_score")
CHECKED = 32
"""Observations at which the trainer's own actions are written down."""

Keep = Callable[[int, Arrays, Any], None]  # training step, weights, the trainer's own (mean, spread) at observations


def train_ppo(env_id: str, seed: int, steps: int, every: int, keep: Keep) -> None:
    """PPO with running observation and reward normalisation, Stable-Baselines3's defaults otherwise."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    envs = VecNormalize(make_vec_env(env_id, n_envs=1, seed=seed))
    model = PPO("MlpPolicy", envs, seed=seed, device="cpu")

    def act(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = torch.as_tensor(envs.normalize_obs(observations), dtype=torch.float32)
        normal: Any = model.policy.get_distribution(inputs).distribution
        return normal.mean.detach().numpy(), normal.stddev.detach().numpy()

    model.learn(steps, callback=_snapshots(every, lambda step: keep(step, export_ppo(model, envs), act)))


def train_crossq(env_id: str, seed: int, steps: int, every: int, keep: Keep) -> None:
    """CrossQ, sbx's defaults but for a smaller actor without batch normalisation and smaller critics."""
    from sbx import CrossQ

    shape = {"pi": [128, 128], "qf": [256, 256]}
    model = CrossQ(
        "MlpPolicy",
        build_env(env_id),
        seed=seed,
        learning_starts=5_000,
        buffer_size=steps,
        policy_kwargs={"net_arch": shape, "batch_norm_actor": False},
    )

    def act(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = model.policy.actor_state
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        normal = state.apply_fn(variables, observations, train=False).distribution
        return np.tanh(np.asarray(normal.mean())), np.asarray(normal.stddev())

    model.learn(
        steps, callback=_snapshots(every, lambda step: keep(step, export_crossq(model.policy.actor_state.params), act))
    )


TRAINERS = {"ppo": train_ppo, "crossq": train_crossq}


def export_ppo(model: Any, normalizer: Any) -> Arrays:
    """Stable-Baselines3's network as the arrays of a `GaussianPolicy`, with its observation moments."""
    net = model.policy
    layers = [net.mlp_extractor.policy_net[0], net.mlp_extractor.policy_net[2], net.action_net]
    arrays = {
        "mean": normalizer.obs_rms.mean,
        "scale": np.sqrt(normalizer.obs_rms.var + normalizer.epsilon),
        "clip": np.asarray(normalizer.clip_obs),
        "log_std": net.log_std.detach().numpy(),
    }
    for i, layer in enumerate(layers):
        arrays[f"w{i}"] = layer.weight.detach().numpy()
        arrays[f"b{i}"] = layer.bias.detach().numpy()
    return {name: np.array(value, dtype=np.float32) for name, value in arrays.items()}


def export_crossq(params: Any) -> Arrays:
    """sbx's actor as the arrays of a `SquashedGaussianPolicy`."""
    layers = [params[f"Dense_{i}"] for i in range(4)]
    weights = {f"w{i}": np.array(layer["kernel"], dtype=np.float32).T.copy() for i, layer in enumerate(layers)}
    return weights | {f"b{i}": np.array(layer["bias"], dtype=np.float32) for i, layer in enumerate(layers)}


def rollouts(path: Path, env_id: str, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Undiscounted returns `(episodes,)` of a snapshot with its action noise, and observations of the last episode."""
    policy, env, rng = load_policy(path), build_env(env_id), np.random.default_rng(seed)
    returns = np.zeros(episodes)
    for i in range(episodes):
        observation, _ = env.reset(seed=seed + i)
        seen, over = [observation], False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy.sample(observation, rng))
            seen.append(observation)
            returns[i] += float(reward)
            over = terminated or truncated
    env.close()
    return returns, np.array(seen, dtype=np.float32)


def _snapshots(every: int, take: Callable[[int], None]) -> Any:
    """A callback that calls `take(step)` at the end of the first rollout after every `every` steps."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Snapshots(BaseCallback):
        taken = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps >= every * (self.taken + 1):
                self.taken += 1
                take(self.num_timesteps)

    return Snapshots()


class _Folder:
    """Where a run's snapshots go, each with its score as soon as it is taken."""

    def __init__(self, path: Path, env_id: str, episodes: int):
        self.path, self.env_id, self.episodes = path, env_id, episodes
        path.mkdir(parents=True, exist_ok=True)
        if any(path.glob("step-*.npz")):
            raise InputError(f"out: {path} already holds snapshots; allowed: a new folder")
        self.observations: np.ndarray | None = None
        self.trainer: Arrays = {}
        self._write_row(COLUMNS, "w")

    def keep(self, step: int, arrays: Arrays, act: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
        path = self.path / f"step-{step:07d}.npz"
        np.savez(path, **arrays)  # type: ignore[arg-type]
        returns, seen = rollouts(path, self.env_id, self.episodes, seed=10_000)
        level = "" if self.env_id.startswith("dmm/") else round(float(normalized_score(returns.mean(), self.env_id)), 2)
        row = (step, round(returns.mean(), 2), round(returns.std(), 2), level)
        self._write_row(row, "a")
        print(*row, flush=True)
        if self.observations is None:
            self.observations = seen[:CHECKED]
        mean, std = act(self.observations)
        self.trainer |= {f"mean-{step}": mean, f"std-{step}": np.broadcast_to(std, mean.shape)}
        np.savez(self.path / "trainer.npz", observations=self.observations, **self.trainer)  # type: ignore[arg-type]

    def _write_row(self, row: tuple[Any, ...], mode: str) -> None:
        with (self.path / "snapshots.csv").open(mode, newline="") as file:
            csv.writer(file).writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=sorted(ENVIRONMENTS))
    parser.add_argument("--algorithm", choices=sorted(TRAINERS), default="crossq")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=20_000, help="steps between snapshots")
    parser.add_argument("--episodes", type=int, default=10, help="episodes that score a snapshot")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    env_id = ENVIRONMENTS[args.name]
    folder = _Folder(args.out, env_id, args.episodes)
    TRAINERS[args.algorithm](env_id, args.seed, args.steps, args.every, folder.keep)


if __name__ == "__main__":
    main()
