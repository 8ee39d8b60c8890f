"""What a file says of its environment is looked up, not called."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dmm.data import faults
from dmm.data.arrays import write_dataset
from dmm.data.minari_files import open_dataset
from dmm.data.observations import build_env, parse_env_spec, stored_env
from dmm.data.trajectories import load_trajectories
from dmm.errors import InputError

HOPPER = "gymnasium.envs.mujoco.hopper_v5:HopperEnv"


def stored(**changes: Any) -> str:
    """A specification of Hopper as Gymnasium writes it, changed."""
    spec = json.loads(gym.spec("Hopper-v5").to_json())
    return json.dumps(spec | changes)


def wrapper(entry_point: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": entry_point.rpartition(":")[2], "entry_point": entry_point, "kwargs": kwargs}


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a module on the path that leaves a file when it is imported, and forgets it all afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(gym.registry)

    def write(name: str, source: str) -> Path:
        marker = tmp_path / f"{name}.imported"
        file = tmp_path / f"{name.replace('.', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({os.fspath(marker)!r}, 'w').close()\n{source}")
        return marker

    yield write
    for name in set(gym.registry) - before:
        del gym.registry[name]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("plain_module", "robots", "broken")]:
        del sys.modules[name]


ENVIRONMENT = """
import gymnasium as gym, numpy as np
class Robot(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, True, False, {}
"""


class TestNothingIsCalled:
    @pytest.mark.parametrize(
        ("spec", "named"),
        [
            ({"entry_point": "os:mkdir", "kwargs": {"path": "MARKER"}}, "'os:mkdir'"),
            ({"entry_point": "pathlib:Path.mkdir"}, "'pathlib:Path.mkdir'"),
            ({"id": "Hopper-v77", "entry_point": "os:mkdir", "kwargs": {"path": "MARKER"}}, "'os:mkdir'"),
            ({"id": "Own-v0", "entry_point": "plain_module:make"}, "'plain_module:make'"),
            ({"id": "plain_module:Own-v0", "entry_point": None}, "'plain_module'"),
            ({"id": "Own-v0", "entry_point": "plain_module.inner:make"}, "'plain_module.inner:make'"),
            ({"id": "Own-v0", "entry_point": "__main__:make"}, "'__main__:make'"),
            ({"id": "Own-v0", "entry_point": "antigravity:make"}, "'antigravity:make'"),
            ({"additional_wrappers": [wrapper("os:mkdir", path="MARKER")]}, "'os:mkdir'"),
            ({"additional_wrappers": [wrapper("plain_module:Monitor")]}, "'plain_module:Monitor'"),
            ({"additional_wrappers": [wrapper("gymnasium.wrappers.transform_reward:TransformReward")]}, "TransformRew"),
            ({"additional_wrappers": [wrapper("gymnasium.wrappers:NormalizeReward")]}, "NormalizeReward"),
            ({"vector_entry_point": "os:mkdir", "entry_point": "os:mkdir"}, "'os:mkdir'"),
        ],
    )
    def test_by_a_hostile_specification(
        self, spec: dict[str, Any], named: str, tmp_path: Path, write_module: Callable[..., Path]
    ) -> None:
        imported, marker = write_module("plain_module", "def make(**_):\n    return None\n"), tmp_path / "called"
        text = stored(**spec).replace("MARKER", str(marker))
        with pytest.raises(InputError) as caught:
            build_env(parse_env_spec(text))
        said = str(caught.value)
        assert said.startswith("environment: ") and named in said and "trust_environment" in said and "\n" not in said
        assert not marker.exists() and not imported.exists() and "plain_module" not in sys.modules

    def test_by_an_id_alone(self, write_module: Callable[..., Path]) -> None:
        imported = write_module("plain_module", "import gymnasium\n")
        with pytest.raises(InputError, match=r"'plain_module:Own-v0' is not registered here.*'plain_module' is not"):
            stored_env(None, "plain_module:Own-v0")
        assert not imported.exists()

    def test_to_find_spaces_that_are_not_stored(self, datasets_path: Path, tmp_path: Path) -> None:
        rows = np.zeros((4, 3)), np.zeros((4, 2)), np.ones(4), np.array([0, 0, 0, 1]), np.zeros(4)
        file = write_dataset("mine/evil-v0", *rows, progress=False) / "data" / "metadata.json"
        metadata, marker = json.loads(file.read_text()), tmp_path / "called"
        spec = stored(entry_point="os:mkdir", kwargs={"path": str(marker)})
        for space in ("observation_space", "action_space"):
            file.write_text(json.dumps({k: v for k, v in metadata.items() if k != space} | {"env_spec": spec}))
            with pytest.raises(InputError, match="would call 'os:mkdir'"):
                open_dataset("mine/evil-v0")
        assert not marker.exists()

    def test_but_with_trust_all_is(self, datasets_path: Path, tmp_path: Path) -> None:
        rows = np.zeros((4, 3)), np.zeros((4, 2)), np.ones(4), np.array([0, 0, 0, 1]), np.zeros(4)
        file = write_dataset("mine/evil-v0", *rows, progress=False) / "data" / "metadata.json"
        marker = tmp_path / "called"
        spec = stored(entry_point="os:mkdir", kwargs={"path": str(marker)})
        file.write_text(json.dumps(json.loads(file.read_text()) | {"env_spec": spec}))
        with pytest.raises(InputError, match="cannot be made here"):
            load_trajectories("mine/evil-v0").make_env(trust_environment=True)
        assert marker.exists()


class TestWhatIsTaken:
    def test_limits_and_plain_arguments(self) -> None:
        kwargs = {"reset_noise_scale": 0.0, "render_mode": "human"}
        env = build_env(parse_env_spec(stored(max_episode_steps=17, order_enforce=False, kwargs=kwargs)))
        assert env.spec is not None and env.spec.max_episode_steps == 17 and env.render_mode is None
        assert env.spec.entry_point == HOPPER and env.spec.kwargs == {"reset_noise_scale": 0.0}
        assert np.array_equal(env.reset(seed=0)[0], env.reset(seed=1)[0])
        env.close()

    def test_the_registered_place_of_a_class_that_has_moved(self) -> None:
        env = build_env(parse_env_spec(stored(entry_point="gymnasium.envs.mujoco.hopper:HopperEnv")))
        assert env.spec is not None and env.spec.entry_point == HOPPER
        env.close()

    def test_wrappers_of_a_fixed_list_by_their_names(self) -> None:
        wrappers = [
            wrapper("gymnasium.wrappers.rescale_action:RescaleAction", min_action=-2.0, max_action=2.0),
            wrapper("gymnasium.wrappers.common:TimeLimit", max_episode_steps=3),
        ]
        env = build_env(parse_env_spec(stored(additional_wrappers=wrappers)))
        assert env.action_space.high.max() == 2.0  # type: ignore[attr-defined]
        env.reset(seed=0)
        assert [env.step(np.zeros(3))[3] for _ in range(3)] == [False, False, True]
        env.close()

    @pytest.mark.parametrize(
        "entry_point",
        [
            "stable_baselines3.common.monitor:Monitor",
            "gymnasium.wrappers.rendering:RecordVideo",
            "gymnasium.wrappers.common:RecordEpisodeStatistics",
            "minari.data_collector.data_collector:DataCollector",
        ],
    )
    @pytest.mark.parametrize("trust", [False, True])
    def test_wrappers_that_only_record_are_left_out_with_one_line(
        self, entry_point: str, trust: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        faults.say_once.cache_clear()
        spec = parse_env_spec(stored(additional_wrappers=[wrapper(entry_point) | {"kwargs": None}]))
        for _ in range(2):
            env = build_env(spec, trust_environment=trust)
            assert env.spec is not None and env.spec.additional_wrappers == ()
            env.close()
        assert capsys.readouterr().err.count(f"the wrapper {entry_point}, which only records, is left out\n") == 1

    def test_wrappers_that_the_registered_environment_puts_on_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Doubled(gym.RewardWrapper):
            def reward(self, reward: Any) -> float:
                return 2 * float(reward)

        def make(**kwargs: Any) -> gym.Env:
            return Doubled(gym.make("CartPole-v1", **kwargs).unwrapped)

        monkeypatch.setitem(gym.registry, "Twice-v0", EnvSpec("Twice-v0", entry_point=make, max_episode_steps=9))
        made = gym.make("Twice-v0")
        assert made.spec is not None and [each.name for each in made.spec.additional_wrappers] == ["Doubled"]
        again = build_env(made.spec)
        again.reset(seed=0)
        assert again.step(0)[1] == 2.0
        with pytest.raises(InputError, match="Doubled"):
            spec = parse_env_spec(stored(additional_wrappers=[wrapper(f"{__name__}:Doubled")]))
            build_env(spec)


class TestModules:
    def test_one_that_registers_the_id_is_imported(self, write_module: Callable[..., Path]) -> None:
        source = f'{ENVIRONMENT}\ngym.register("Robot-v0", entry_point="robots:Robot", max_episode_steps=7)\n'
        imported = write_module("robots", source)
        spec = {"id": "Robot-v0", "entry_point": "robots:Robot", "max_episode_steps": 5}
        with pytest.raises(InputError, match="'Other-v0' is not registered here"):
            build_env(parse_env_spec(stored(**spec | {"id": "Other-v0"})))
        assert not imported.exists()
        env = build_env(parse_env_spec(stored(**spec)))
        assert imported.exists() and env.spec is not None and env.spec.max_episode_steps == 5
        assert env.reset(seed=0)[0].shape == (3,)

    def test_so_is_one_in_front_of_an_id(self, write_module: Callable[..., Path]) -> None:
        write_module("robots", f'{ENVIRONMENT}\ngym.register("Robot-v0", entry_point="robots:Robot")\n')
        env = build_env(stored_env(None, "robots:Robot-v0"))
        assert env.spec is not None and env.spec.id == "Robot-v0"

    def test_so_is_the_package_that_registers_for_its_modules(self, write_module: Callable[..., Path]) -> None:
        write_module(
            "robots.__init__", 'import gymnasium\ngymnasium.register("Robot-v0", entry_point="robots.arm:Robot")'
        )
        write_module("robots.arm", ENVIRONMENT)
        build_env(parse_env_spec(stored(id="Robot-v0", entry_point="robots.arm:Robot"))).close()

    def test_one_that_fails_is_named(self, write_module: Callable[..., Path]) -> None:
        write_module("broken", 'from gymnasium import register\nregister("Broken-v0", entry_point="broken:B")\n1 / 0\n')
        with pytest.raises(InputError, match=r"'broken', which registers 'Broken-v0', cannot be imported \(ZeroDiv"):
            build_env(parse_env_spec(stored(id="Broken-v0", entry_point="broken:B")))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_episode_steps": -3},
        {"max_episode_steps": "many"},
        {"max_episode_steps": 10.5},
        {"kwargs": [1, 2]},
        {"kwargs": "text"},
        {"entry_point": 5},
        {"entry_point": ["os:abort"]},
        {"order_enforce": "no"},
        {"id": 7},
        {"id": "no id!"},
        {"additional_wrappers": 3},
        {"additional_wrappers": [{"name": "x"}]},
        {"additional_wrappers": [{"name": "x", "entry_point": 3, "kwargs": {}}]},
        {"additional_wrappers": [{"name": "x", "entry_point": "a:b", "kwargs": [1]}]},
        {"kwargs": {"long": "x" * 100_000}},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_what_is_no_specification(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^environment: the stored specification cannot be read") as caught:
        parse_env_spec(stored(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [5, ["a"], {"id": "Hopper-v5"}, "[" * 50_000, "null", "[]", '{"id": "Hopper-v5"'])
def test_what_is_no_specification_at_all(text: Any) -> None:
    with pytest.raises(InputError, match=r"^environment: the stored specification cannot be read"):
        parse_env_spec(text)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_in_place_of_a_model_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.xml")
    with pytest.raises(InputError, match=r"stored argument '.*model\.xml' is no ordinary file"):
        build_env(parse_env_spec(stored(kwargs={"xml_file": str(tmp_path / "model.xml")})))
