from __future__ import annotations

import threading
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco import hopper_v5
from gymnasium.envs.registration import EnvSpec

from dmm.data import textures
from dmm.data.environments import environment_record
from dmm.data.observations import build_env, choose_keys, flatten_observation
from dmm.data.textures import without_textures

SKY = """<mujoco><asset>
<texture name="sky" type="skybox" builtin="gradient" rgb1="1 1 1" width="64" height="64"/></asset>
<worldbody><body><freejoint/><geom size="1"/></body></worldbody></mujoco>"""
PIXELS = 6 * 64 * 64 * 3  # of its six sides, bytes


def model_of(env: gym.Env) -> Any:
    inner: Any = env.unwrapped
    return inner.model if hasattr(inner, "model") else inner.ant.model


def with_textures(name: str) -> gym.Env:
    return gym.make(name, disable_env_checker=True)


def trace(env: gym.Env, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States `(steps + 1, s)` in full precision and rewards `(steps,)` of an episode with random actions."""
    rng, keys = np.random.default_rng(0), choose_keys(env.observation_space)
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    observation, states, rewards = env.reset(seed=3)[0], [], []
    for seed in range(steps):
        states.append(observation if not keys else np.concatenate([observation[key] for key in keys]))
        observation, reward, terminated, truncated, _ = env.step(rng.uniform(low, high).astype(np.float32))
        rewards.append(reward)
        if terminated or truncated:
            observation = env.reset(seed=seed)[0]
    return np.stack([*states, flatten_observation(observation, keys)]), np.array(rewards, dtype=np.float64)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("PointMaze_UMaze-v3", 400),
        ("dmm/AntMaze-v0", 200),
        ("Hopper-v5", 400),
        ("dmm/WalkingAnt-v0", 100),
        ("dmm/Kitchen-v0", 20),
    ],
)
def test_nothing_but_the_pictures_changes(name: str, steps: int) -> None:
    bare = build_env(name)
    full = with_textures(name)
    small, large = model_of(bare), model_of(full)
    assert small.ntex == large.ntex and small.ntexdata < 1000 < large.ntexdata
    for field in dir(large):
        if isinstance(getattr(large, field), np.ndarray) and not field.startswith(("tex_", "_")):
            np.testing.assert_array_equal(getattr(small, field), getattr(large, field), err_msg=field)
    assert environment_record(bare) == environment_record(full)
    for here, there in zip(trace(bare, steps), trace(full, steps), strict=True):
        assert here.tobytes() == there.tobytes()
    bare.close()
    full.close()


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_rendered_keeps_its_pictures(stored: bool) -> None:
    spec: Any = "Hopper-v5"
    if stored:
        spec = EnvSpec.from_json(gym.make("Hopper-v5").spec.to_json())  # type: ignore[union-attr]
    env = build_env(spec, render_mode="rgb_array")
    assert env.render_mode == "rgb_array" and model_of(env).ntexdata > 100_000
    env.close()


def load() -> int:
    size: int = mujoco.MjModel.from_xml_string(SKY).ntexdata
    return size


def test_only_models_of_this_thread_inside_the_block_lose_them() -> None:
    before = mujoco.MjModel.__dict__["from_xml_string"]
    sizes: list[int] = []
    with without_textures():
        with without_textures():
            assert load() < 100
        assert load() < 100
        other = threading.Thread(target=lambda: sizes.append(load()))
        other.start()
        other.join()
    assert sizes == [PIXELS] and load() == PIXELS
    with pytest.raises(KeyError), without_textures():
        raise KeyError
    assert load() == PIXELS and mujoco.MjModel.__dict__["from_xml_string"] is before


def test_threads_that_leave_in_another_order_than_they_came() -> None:
    inside, leave = threading.Barrier(2), threading.Event()
    sizes: list[int] = []

    def work() -> None:
        with without_textures():
            inside.wait(60)
            leave.wait(60)
            sizes.append(load())

    thread = threading.Thread(target=work)
    with without_textures():
        thread.start()
        inside.wait(60)
    assert load() == PIXELS  # the other is still inside
    leave.set()
    thread.join()
    assert sizes[0] < 100 and not textures._inside and load() == PIXELS


@pytest.mark.parametrize("broken", ["no MjSpec", "another MjSpec", "no pictures to edit"])
def test_a_simulator_that_cannot_edit_models_loads_them_whole(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "no MjSpec":
        monkeypatch.delattr(mujoco, "MjSpec")
    elif broken == "another MjSpec":
        monkeypatch.setattr(mujoco.MjSpec, "from_string", lambda: None)
    else:
        monkeypatch.setattr(textures, "_flatten", lambda *_: 1 / 0)
    with without_textures():
        assert load() == PIXELS


def test_a_model_that_is_wrong_is_refused_in_the_simulators_words() -> None:
    wrong = SKY.replace("<geom", "<geon")
    with pytest.raises(ValueError) as plain:
        mujoco.MjModel.from_xml_string(wrong)
    with pytest.raises(ValueError) as caught, without_textures():
        mujoco.MjModel.from_xml_string(wrong)
    assert str(caught.value) == str(plain.value)


def test_assets_given_along_are_left_to_the_simulator() -> None:
    with without_textures():
        assert mujoco.MjModel.from_xml_string(SKY, {}).ntexdata == PIXELS
        path = hopper_v5.__file__.replace("hopper_v5.py", "assets/hopper.xml")
        assert mujoco.MjModel.from_xml_path(path).ntexdata < 100


def test_pictures_from_files_need_not_be_there(tmp_path: Any) -> None:
    path = tmp_path / "sky.xml"
    path.write_text(SKY.replace('builtin="gradient"', 'fileright="gone.png" fileleft="gone.png"'))
    with without_textures():
        assert mujoco.MjModel.from_xml_path(str(path)).ntexdata < 100
