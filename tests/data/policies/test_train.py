from __future__ import annotations

import csv
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dmm.data.policies import GaussianPolicy
from dmm.data.policies.train import export, main, score


def test_exported_policy_predicts_what_stable_baselines3_predicts() -> None:
    torch.set_num_threads(1)
    envs = VecNormalize(make_vec_env("Hopper-v5", n_envs=2, seed=0), clip_obs=2.0)
    model = PPO("MlpPolicy", envs, seed=0, device="cpu", n_steps=64, batch_size=64)
    model.learn(256)  # so that the moments and the weights are no longer those of a fresh model
    policy = GaussianPolicy(export(model, envs))
    observations = np.random.default_rng(0).standard_normal((200, 11)) * envs.obs_rms.var**0.5 * 2 + envs.obs_rms.mean
    expected, _ = model.predict(envs.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(np.clip(policy.mean(observations), -1, 1), expected, atol=1e-5)
    assert np.abs(envs.normalize_obs(observations)).max() == 2.0  # clipping was at work
    np.testing.assert_allclose(policy.std, model.policy.log_std.exp().detach().numpy(), rtol=1e-6)


def test_score_is_the_return_of_a_rollout() -> None:
    rng = np.random.default_rng(0)
    sizes = {"w0": (8, 11), "b0": 8, "w1": (8, 8), "b1": 8, "w2": (3, 8), "b2": 3, "mean": 11}
    arrays = {name: rng.standard_normal(size) for name, size in sizes.items()}
    arrays |= {"scale": np.ones(11), "clip": np.array(10.0), "log_std": np.full(3, -20.0)}
    returns = score(arrays, "Hopper-v5", episodes=2, seed=5)
    env, policy = gym.make("Hopper-v5"), GaussianPolicy(arrays)
    for seed, expected in zip((5, 6), returns, strict=True):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = np.clip(policy.mean(observation), -1, 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        assert total == pytest.approx(expected, rel=1e-5)


def test_command_writes_snapshots_and_the_medium_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", "hopper", "--seed", "1", "--steps", "4096", "--every", "2000", "--episodes", "2", "--out"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path / "out")])
    main()
    with (tmp_path / "out/snapshots.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2048, 4096]
    best = max(rows, key=lambda row: float(row["normalized_score"]))  # both are far below the medium level
    kept, medium = np.load(tmp_path / f"out/step-{int(best['step']):07d}.npz"), np.load(tmp_path / "out/medium.npz")
    assert all(np.array_equal(kept[name], medium[name]) for name in kept.files)
    assert GaussianPolicy.load(tmp_path / "out/medium.npz").mean(np.zeros(11)).shape == (3,)
