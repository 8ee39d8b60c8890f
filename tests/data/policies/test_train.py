from __future__ import annotations

import csv
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dmm.data.policies import GaussianPolicy, SquashedGaussianPolicy, load_policy
from dmm.data.policies.train import export_ppo, main, rollouts
from dmm.errors import InputError


def test_exported_ppo_policy_predicts_what_stable_baselines3_predicts() -> None:
    torch.set_num_threads(1)
    envs = VecNormalize(make_vec_env("Hopper-v5", n_envs=2, seed=0), clip_obs=2.0)
    model = PPO("MlpPolicy", envs, seed=0, device="cpu", n_steps=64, batch_size=64)
    model.learn(256)  # so that the moments and the weights are no longer those of a fresh model
    policy = GaussianPolicy(export_ppo(model, envs))
    observations = np.random.default_rng(0).standard_normal((200, 11)) * envs.obs_rms.var**0.5 * 2 + envs.obs_rms.mean
    expected, _ = model.predict(envs.normalize_obs(observations), deterministic=True)
    np.testing.assert_allclose(np.clip(policy.mean(observations), -1, 1), expected, atol=1e-5)
    assert np.abs(envs.normalize_obs(observations)).max() == 2.0  # clipping was at work
    np.testing.assert_allclose(policy.std, model.policy.log_std.exp().detach().numpy(), rtol=1e-6)


def test_squashed_policy_is_stable_baselines3s_soft_actor() -> None:
    torch.set_num_threads(1)
    model = SAC("MlpPolicy", "Hopper-v5", seed=0, device="cpu", policy_kwargs={"net_arch": [32, 32]})
    actor = model.policy.actor
    layers = [actor.latent_pi[0], actor.latent_pi[2], actor.mu, actor.log_std]
    rng = np.random.default_rng(0)
    for layer in layers[2:]:
        layer.weight.data *= 5  # so that log sigma leaves the neighbourhood of 0
    layers[3].bias.data += torch.tensor([-25.0, 0.0, 3.0])  # and its bounds are at work
    arrays = {f"w{i}": layer.weight.detach().numpy() for i, layer in enumerate(layers)}
    policy = SquashedGaussianPolicy(arrays | {f"b{i}": layer.bias.detach().numpy() for i, layer in enumerate(layers)})
    observations = rng.standard_normal((200, 11)) * 3
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(policy.mean(observations), expected, atol=1e-5)
    np.testing.assert_allclose([policy.mean(row) for row in observations], expected, atol=1e-5)
    mu, log_std, _ = actor.get_action_dist_params(torch.as_tensor(observations, dtype=torch.float32))
    np.testing.assert_allclose(policy.heads(observations)[0], mu.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(policy.heads(observations)[1], log_std.exp().detach().numpy(), rtol=1e-4)
    assert (log_std.min(), log_std.max()) == (-20, 2)


def random_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"w0": (8, 11), "b0": 8, "w1": (8, 8), "b1": 8, "w2": (3, 8), "b2": 3, "mean": 11}
    arrays = {name: rng.standard_normal(size) for name, size in sizes.items()}
    return arrays | {"scale": np.ones(11), "clip": np.array(10.0), "log_std": np.full(3, -20.0)}


def test_rollouts_are_episodes_of_the_stored_policy(tmp_path: Path) -> None:
    np.savez(tmp_path / "policy.npz", **random_arrays())  # type: ignore[arg-type]
    returns, seen = rollouts(tmp_path / "policy.npz", "Hopper-v5", episodes=2, seed=5)
    env, policy = gym.make("Hopper-v5"), GaussianPolicy(random_arrays())
    for seed, expected in zip((5, 6), returns, strict=True):
        observation, _ = env.reset(seed=seed)
        total, over, length = 0.0, False, 0
        while not over:
            action = np.clip(policy.mean(observation), -1, 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over, length = total + float(reward), terminated or truncated, length + 1
        assert total == pytest.approx(expected, rel=1e-5)
    assert len(seen) == length + 1
    np.testing.assert_allclose(seen[-1], observation, rtol=1e-4)


def run(
    monkeypatch: pytest.MonkeyPatch, name: str, algorithm: str, steps: int, every: int, out: Path
) -> list[dict[str, str]]:
    """The rows that the command writes."""
    sizes = ["--steps", str(steps), "--every", str(every), "--episodes", "1"]
    monkeypatch.setattr(
        sys, "argv", ["train", name, "--algorithm", algorithm, "--seed", "1", *sizes, "--out", str(out)]
    )
    main()
    with (out / "snapshots.csv").open() as file:
        return list(csv.DictReader(file))


def assert_equals_the_trainer(folder: Path, steps: list[int]) -> None:
    with np.load(folder / "trainer.npz", allow_pickle=False) as trainer:
        for step in steps:
            policy = load_policy(folder / f"step-{step:07d}.npz")
            np.testing.assert_allclose(policy.mean(trainer["observations"]), trainer[f"mean-{step}"], atol=1e-5)
            std = policy.std if isinstance(policy, GaussianPolicy) else policy.heads(trainer["observations"])[1]  # type: ignore[attr-defined]
            np.testing.assert_allclose(
                np.broadcast_to(std, trainer[f"std-{step}"].shape), trainer[f"std-{step}"], rtol=1e-4
            )


def test_command_writes_snapshots_scores_and_the_trainers_own_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run(monkeypatch, "hopper", "ppo", 4096, 2000, tmp_path / "out")
    assert [int(row["step"]) for row in rows] == [2048, 4096]
    assert 0 < float(rows[0]["normalized_score"]) < 30
    assert_equals_the_trainer(tmp_path / "out", [2048, 4096])
    with pytest.raises(InputError, match=r"out: .* already holds snapshots"):
        run(monkeypatch, "hopper", "ppo", 4096, 2000, tmp_path / "out")


def test_crossq_writes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sbx", reason="the behaviours-crossq extra is not installed")
    rows = run(monkeypatch, "ant", "crossq", 600, 300, tmp_path / "out")
    assert [(int(row["step"]), row["normalized_score"]) for row in rows] == [(300, ""), (600, "")]
    assert_equals_the_trainer(tmp_path / "out", [300, 600])
