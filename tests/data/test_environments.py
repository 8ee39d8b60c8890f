from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from dmm.data import environments
from dmm.data.environments import environment_record, package_versions, require_same_environment
from dmm.data.observations import build_env
from dmm.errors import InputError


@pytest.fixture(scope="module")
def hopper():
    env = build_env("Hopper-v5")
    yield env
    env.close()


def test_the_record_is_plain_and_the_same_for_the_same_environment(hopper: gym.Env) -> None:
    record = environment_record(hopper)
    again = build_env("Hopper-v5")
    again.reset(seed=5)
    assert json.loads(json.dumps(record)) == record == environment_record(again)
    require_same_environment(again, json.loads(json.dumps(record)))
    assert (record["id"], record["max_episode_steps"], record["frame_skip"]) == ("Hopper-v5", 1000, 4)
    assert record["option.timestep"] == 0.002 and record["option.gravity"] == [0, 0, -9.81]
    again.close()


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [({"max_episode_steps": 500}, "max_episode_steps"), ({"frame_skip": 5}, "frame_skip"), ({}, "id")],
)
def test_another_environment_is_refused_by_name(hopper: gym.Env, kwargs: dict[str, int], named: str) -> None:
    other = build_env("Hopper-v5" if kwargs else "Walker2d-v5", **kwargs)
    with pytest.raises(InputError, match=f"cannot be rebuilt exactly; .*{named} .* there, .* here"):
        require_same_environment(other, environment_record(hopper))
    other.close()


@pytest.mark.parametrize("field", ["geom_friction", "actuator_gear", "body_mass", "dof_damping", "jnt_range"])
def test_a_changed_physical_constant_is_refused(hopper: gym.Env, field: str) -> None:
    other = build_env("Hopper-v5")
    getattr(other.unwrapped.model, field)[-1] *= 1.01  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=f"model.{field}"):
        require_same_environment(other, environment_record(hopper))
    other.close()


def test_a_changed_option_and_another_simulator_are_refused(hopper: gym.Env, monkeypatch: pytest.MonkeyPatch) -> None:
    record = environment_record(hopper)
    with pytest.raises(InputError, match=r"option.timestep 0.01 there, 0.002 here"):
        require_same_environment(hopper, record | {"option.timestep": 0.01})
    real = environments._version
    monkeypatch.setattr(environments, "_version", lambda name: "2.3.7" if name == "mujoco" else real(name))
    with pytest.raises(InputError, match=r"mujoco '\d+\.\d+' there, '2\.3' here"):
        require_same_environment(hopper, record)


def test_the_last_bit_of_a_constant_does_not_count(hopper: gym.Env) -> None:
    other = build_env("Hopper-v5")
    masses = other.unwrapped.model.body_mass  # type: ignore[attr-defined]
    masses[:] = np.nextafter(masses, 10.0)
    require_same_environment(other, environment_record(hopper))
    other.close()


def test_an_environment_without_a_simulator_is_described_by_its_spec_and_spaces() -> None:
    env = gym.make("CartPole-v1")
    record = environment_record(env)
    assert record["id"] == "CartPole-v1" and "mujoco" not in record and "Discrete" in record["action_space"]
    env.close()


@pytest.mark.parametrize(
    ("name", "skip"), [("PointMaze_UMaze-v3", 1), ("dmm/AntMaze-v0", 5), ("dmm/Kitchen-v0", 40), ("Walker2d-v5", 4)]
)
def test_the_frame_skip_is_found_where_it_is(name: str, skip: int) -> None:
    env = build_env(name)
    assert environment_record(env)["frame_skip"] == skip
    env.close()


def test_versions_of_all_packages_are_told() -> None:
    assert package_versions().keys() == set(environments.PACKAGES)
    assert package_versions()["gymnasium"] == gym.__version__
