from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmm.data.policies import GaussianPolicy, SquashedGaussianPolicy, load_policy
from dmm.errors import InputError


def arrays(s: int = 5, h: int = 16, a: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {
        "mean": rng.standard_normal(s),
        "scale": rng.uniform(0.5, 2, s),
        "clip": np.array(1.5),
        "log_std": np.array([-1.0, -0.2])[:a],
        "w0": rng.standard_normal((h, s)),
        "b0": rng.standard_normal(h),
        "w1": rng.standard_normal((h, h)) / 4,
        "b1": rng.standard_normal(h),
        "w2": rng.standard_normal((a, h)) / 10,
        "b2": rng.standard_normal(a) / 10,
    }
    return {name: value.astype(np.float32) for name, value in made.items()}


def test_mean_equals_the_torch_network() -> None:
    p = arrays()
    layers = [torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)]
    network = torch.nn.Sequential(*layers)
    for i, layer in enumerate(layers[::2]):
        layer.weight.data, layer.bias.data = torch.from_numpy(p[f"w{i}"]), torch.from_numpy(p[f"b{i}"])  # type: ignore[assignment]
    observations = np.random.default_rng(1).standard_normal((40, 5)) * 3
    inputs = torch.from_numpy((observations - p["mean"]) / p["scale"]).float().clamp(-1.5, 1.5)
    expected = network(inputs).detach().numpy()
    policy = GaussianPolicy(p)  # numpy's products add up in another order than torch's, on each processor another one
    np.testing.assert_allclose(policy.mean(observations), expected, atol=1e-5)
    np.testing.assert_allclose([policy.mean(row) for row in observations], expected, atol=1e-5)


def test_samples_are_clipped_and_have_the_gaussians_moments() -> None:
    policy = GaussianPolicy(arrays())
    observation = np.zeros(5)
    mean = policy.mean(observation)
    rng = np.random.default_rng(2)
    actions = np.array([policy.sample(observation, rng) for _ in range(20_000)])
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    expected = np.clip(mean + np.exp([-1.0, -0.2]) * np.random.default_rng(3).standard_normal((200_000, 2)), -1, 1)
    np.testing.assert_allclose(actions.mean(axis=0), expected.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(actions.std(axis=0), expected.std(axis=0), atol=0.02)
    np.testing.assert_array_equal(
        policy.sample(observation, np.random.default_rng(4)), policy.sample(observation, np.random.default_rng(4))
    )


def test_npz_round_trip_and_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "plain.npz", **arrays())  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        GaussianPolicy.load(tmp_path / "plain.npz").mean(np.ones(5)), GaussianPolicy(arrays()).mean(np.ones(5))
    )
    np.savez(tmp_path / "pickled.npz", **{**arrays(), "w0": np.array([{"an": "object"}], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allow_pickle=False"):
        GaussianPolicy.load(tmp_path / "pickled.npz")


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04broken"])
def test_a_file_that_is_no_policy_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "policy.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"policy\.npz is not a \.npz of plain arrays"):
        load_policy(tmp_path / "policy.npz")
    with pytest.raises(InputError, match=r"absent\.npz"):
        load_policy(tmp_path / "absent.npz")


def test_the_kind_of_a_policy_is_told_by_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "gaussian.npz", **arrays())  # type: ignore[arg-type]
    assert isinstance(load_policy(tmp_path / "gaussian.npz"), GaussianPolicy)
    heads = {name: value for name, value in arrays().items() if name[0] in "wb"}
    np.savez(tmp_path / "squashed.npz", **heads, w3=heads["w2"], b3=heads["b2"])  # type: ignore[arg-type]
    assert isinstance(load_policy(tmp_path / "squashed.npz"), SquashedGaussianPolicy)
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(InputError, match=r"holds no policy; it has \['x'\], allowed are"):
        load_policy(tmp_path / "other.npz")
