"""Train the policies whose behaviour the MuJoCo recipes record.

    python -m dmm.data.policies.train hopper --seed 1 --out runs/behaviour/hopper-1

runs PPO (Stable-Baselines3, the `behaviours` extra), keeps a snapshot every few thousand steps, scores each snapshot by
rolling it out with its action noise on, and writes

- `snapshots.csv`: one row per snapshot, with training step, mean and spread of the return, normalised score;
- `medium.npz`: the snapshot whose normalised score lies nearest to D4RL's medium level.

The arrays in the `.npz` are plain float32 and are read back by `dmm.data.policies.GaussianPolicy` without unpickling.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.policies import GaussianPolicy
from dmm.normalize import normalized_score

ENVIRONMENTS = {"hopper": "Hopper-v5"}
MEDIUM_SCORE = 45.0
"""Normalised score aimed at: D4RL's hopper-medium policy scores 44."""


def export(model: Any, normalizer: Any) -> dict[str, np.ndarray]:
    """The trainer's network as plain arrays: observation moments, weights of three layers, log of the action noise."""
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


def score(arrays: dict[str, np.ndarray], env_id: str, episodes: int, seed: int) -> np.ndarray:
    """Undiscounted returns `(episodes,)` of the stochastic policy."""
    policy, env, rng = GaussianPolicy(arrays), gym.make(env_id), np.random.default_rng(seed)
    returns = np.zeros(episodes)
    for i in range(episodes):
        observation, _ = env.reset(seed=seed + i)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy.sample(observation, rng))
            returns[i] += float(reward)
            over = terminated or truncated
    return returns


def train(name: str, seed: int, steps: int, every: int) -> list[tuple[int, dict[str, np.ndarray]]]:
    """PPO with running observation and reward normalisation; returns `(training step, arrays)` of every snapshot."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    envs = VecNormalize(make_vec_env(ENVIRONMENTS[name], n_envs=1, seed=seed))
    model = PPO("MlpPolicy", envs, seed=seed, device="cpu")
    snapshots: list[tuple[int, dict[str, np.ndarray]]] = []

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if self.num_timesteps >= every * (len(snapshots) + 1):
                snapshots.append((self.num_timesteps, export(self.model, envs)))

    model.learn(steps, callback=Keep(), progress_bar=False)
    return snapshots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=sorted(ENVIRONMENTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=20_000, help="steps between snapshots")
    parser.add_argument("--episodes", type=int, default=20, help="episodes that score a snapshot")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    snapshots = train(args.name, args.seed, args.steps, args.every)
    env_id, rows = ENVIRONMENTS[args.name], []
    for step, arrays in snapshots:
        returns = score(arrays, env_id, args.episodes, seed=10_000)
        level = float(normalized_score(returns.mean(), env_id))
        rows.append((step, round(returns.mean(), 2), round(returns.std(), 2), round(level, 2)))
        print(*rows[-1], flush=True)
        np.savez(args.out / f"step-{step:07d}.npz", **arrays)  # type: ignore[arg-type]
    with (args.out / "snapshots.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "return_mean", "return_std", "normalized_score"])
        writer.writerows(rows)
    best = int(np.argmin([abs(row[3] - MEDIUM_SCORE) for row in rows]))
    np.savez(args.out / "medium.npz", **snapshots[best][1])  # type: ignore[arg-type]
    print("medium: step", rows[best][0], "normalised", rows[best][3])


if __name__ == "__main__":
    main()
