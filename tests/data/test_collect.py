from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest

from dmm.data import collect as module
from dmm.data.collect import CollectSummary, collect, installed
from dmm.data.environments import environment_record
from dmm.data.recipes import RECIPES
from dmm.data.scores import normalized_score
from dmm.data.trajectories import load_trajectories
from dmm.errors import InputError, RunError

MAZE, HOPPER = "dmm/pointmaze/umaze-v0", "dmm/hopper/medium-v0"


def quick(name: str = MAZE, transitions: int = 400, **more: object) -> CollectSummary:
    return collect(name, transitions=transitions, progress=False, **{"workers": 1, **more})  # type: ignore[arg-type]


def contents(summary: CollectSummary) -> dict[str, np.ndarray]:
    """Every array and attribute of the file."""
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.HLObject) -> None:
        found.update({f"{name}@{key}": np.array(value) for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(Path(summary.path) / "data/main_data.hdf5") as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize(("name", "counts"), [(MAZE, (1, 2, 4)), (HOPPER, (1, 2))])
def test_any_number_of_workers_gives_the_same_data(
    name: str, counts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for workers in counts:
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / str(workers)))
        made.append(contents(quick(name, 2500, workers=workers, seed=7)))
    for other in made[1:]:
        assert made[0].keys() == other.keys()
        assert all(np.array_equal(value, other[key]) for key, value in made[0].items())
        assert all(value.dtype == other[key].dtype for key, value in made[0].items())


def test_whole_episodes_until_the_number_is_reached(datasets_path: Path) -> None:
    summary = quick(transitions=1000)
    loaded = load_trajectories(MAZE)
    assert (loaded.transitions, loaded.episodes) == (summary.transitions, summary.episodes)
    assert summary.transitions >= 1000 > summary.transitions - loaded.lengths[-1]
    quick(transitions=summary.transitions, force=True)
    assert load_trajectories(MAZE).fingerprint() == loaded.fingerprint()
    longer = quick(transitions=summary.transitions + 1, force=True)
    assert longer.episodes == summary.episodes + 1
    np.testing.assert_array_equal(load_trajectories(MAZE).actions[: summary.transitions], loaded.actions)


def test_more_episodes_than_one_write(datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(quick())
    monkeypatch.setattr(module, "EPISODES_PER_WRITE", 2)
    again = contents(quick(force=True))
    assert expected.keys() == again.keys()
    assert all(np.array_equal(value, again[key]) for key, value in expected.items())


def test_summary_and_data_agree(datasets_path: Path) -> None:
    summary = quick(HOPPER, 600)
    loaded = load_trajectories(HOPPER)
    assert summary.dataset_id == HOPPER and summary.path == str(datasets_path / HOPPER)
    assert summary.mean_return == pytest.approx(loaded.returns().mean(), rel=1e-6)
    assert summary.normalized_score == pytest.approx(normalized_score(summary.mean_return, "Hopper-v5"))
    assert summary.seconds > 0
    assert loaded.reference == (-20.272305, 3234.3) and loaded.env_id == "Hopper-v5"
    assert loaded.observations.shape[1:] == (11,) and loaded.actions.shape[1:] == (3,)
    assert json.dumps(vars(summary))


def test_minari_reads_it_as_one_of_its_own(datasets_path: Path) -> None:
    summary = quick()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(minari.list_local_datasets()) == [MAZE]
        dataset = minari.load_dataset(MAZE)
    assert (dataset.total_episodes, dataset.total_steps) == (summary.episodes, summary.transitions)
    env = dataset.recover_environment()
    assert env.spec is not None and env.spec.max_episode_steps == 150
    for episode in dataset:
        assert set(episode.observations) == {"observation", "achieved_goal", "desired_goal"}
        assert len(episode.observations["observation"]) == len(episode.actions) + 1
        assert episode.terminations[:-1].sum() == episode.truncations[:-1].sum() == 0
        assert episode.terminations[-1] != episode.truncations[-1]
        assert episode.rewards.sum() == float(episode.terminations[-1])
        assert all(env.action_space.contains(action) for action in episode.actions)
    np.testing.assert_array_equal(minari.get_normalized_score(dataset, np.array([0.0, 1.0])), [0, 1])
    env.close()


def test_the_loaded_set_rebuilds_the_recorded_environment(datasets_path: Path) -> None:
    quick()
    loaded = load_trajectories(MAZE)
    assert loaded.observation_keys == ("observation", "desired_goal") and loaded.state_size == 6
    env = loaded.make_env()
    with h5py.File(datasets_path / MAZE / "data/main_data.hdf5") as file:
        seed = int(file["episode_0"].attrs["seed"])
    observation, _ = env.reset(seed=seed)
    np.testing.assert_array_equal(observation, loaded.observations[0])
    for row in range(int(loaded.lengths[0]) - 1):
        observation = env.step(loaded.actions[row])[0]
        np.testing.assert_array_equal(observation, loaded.observations[row + 1])
    env.close()


def test_metadata_says_what_it_takes_to_make_it_again(datasets_path: Path) -> None:
    quick(seed=3)
    metadata = json.loads((datasets_path / MAZE / "data/metadata.json").read_text())
    own = metadata["dmm"]
    assert (own["recipe_version"], own["seed"], own["transitions"]) == (RECIPES[MAZE].version, 3, 400)
    assert own["observation_keys"] == ["observation", "desired_goal"]
    assert own["origin"] == "regenerated, not D4RL" and "not D4RL" in metadata["description"]
    assert own["behaviour"] == metadata["algorithm_name"] == RECIPES[MAZE].behaviour_name
    assert own["packages"]["mujoco"] and own["packages"]["gymnasium"] == gym.__version__
    assert set(own["packages"]) >= {"decision-metamamba", "minari", "gymnasium-robotics", "numpy"}
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (0.0, 1.0)
    spec = json.loads(metadata["env_spec"])
    assert spec["id"] == "PointMaze_UMaze-v3" and spec["kwargs"]["continuing_task"] is False


class TestExistingSet:
    def test_same_settings_return_at_once(self, datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = quick()
        monkeypatch.setattr(module, "record", None)  # recording again would fail
        second = quick(workers=3)
        assert {**vars(first), "seconds": 0} == {**vars(second), "seconds": 0}
        assert second.seconds < 0.5

    @pytest.mark.parametrize("other", [{"seed": 1}, {"transitions": 500}])
    def test_other_settings_are_refused_until_forced(self, datasets_path: Path, other: dict[str, int]) -> None:
        quick()
        before = load_trajectories(MAZE).fingerprint()
        with pytest.raises(InputError) as caught:
            quick(**other)
        for word in ("seed 0", "transitions 400", "--force", str(datasets_path / MAZE)):
            assert word in str(caught.value)
        assert load_trajectories(MAZE).fingerprint() == before
        quick(force=True, **other)
        assert load_trajectories(MAZE).fingerprint() != before
        assert [path.name for path in (datasets_path / "dmm/pointmaze").iterdir() if path.is_dir()] == ["umaze-v0"]

    def test_another_recipe_version_is_refused(self, datasets_path: Path) -> None:
        quick()
        path = datasets_path / MAZE / "data/metadata.json"
        metadata = json.loads(path.read_text())
        metadata["dmm"]["recipe_version"] = 0
        path.write_text(json.dumps(metadata))
        with pytest.raises(InputError, match="recipe_version 0"):
            quick()

    def test_a_foreign_set_under_that_id_is_refused(self, make_dataset) -> None:
        space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        make_dataset(MAZE, [(np.zeros((3, 3)), np.zeros((2, 2), np.float32), np.zeros(2))], space)
        with pytest.raises(InputError, match="was not made by a recipe"):
            quick()

    def test_installed_lists_recipes_only(self, make_dataset) -> None:
        assert installed() == []
        space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
        make_dataset("other/set-v0", [(np.zeros((3, 3)), np.zeros((2, 2), np.float32), np.zeros(2))], space)
        summary = quick()
        (found,) = installed()
        assert {**vars(found), "seconds": 0} == {**vars(summary), "seconds": 0}


class TestInterrupted:
    CODE = f"from dmm.data.collect import collect\ncollect({MAZE!r}, transitions=10**7, workers=2, progress=False)\n"

    def test_killed_in_the_middle_leaves_nothing_visible(self, datasets_path: Path) -> None:
        process = subprocess.Popen([sys.executable, "-c", self.CODE], stderr=subprocess.DEVNULL)
        file = wait_for_file(datasets_path)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert file.stat().st_size > 0 and len(children) >= 2
        process.kill()
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert minari.list_local_datasets() == {}
        with pytest.raises(InputError, match="not on this machine"):
            load_trajectories(MAZE)
        wait_until(lambda: not any(running(pid) for pid in children))
        summary = quick()
        assert list(minari.list_local_datasets()) == [MAZE] and summary.transitions >= 400
        assert [path.name for path in file.parents[2].parent.iterdir() if path.is_dir()] == ["umaze-v0"]

    def test_ctrl_c_cleans_up(self, datasets_path: Path) -> None:
        # a shell's background jobs, and all they start, ignore Ctrl-C; this process shall not
        process = subprocess.Popen(
            [sys.executable, "-c", self.CODE],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        wait_for_file(datasets_path)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0 and errors.strip().endswith("KeyboardInterrupt")
        assert list((datasets_path / "dmm/pointmaze").iterdir()) == []

    def test_a_failed_run_keeps_what_was_there(self, datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        quick()
        before = load_trajectories(MAZE).fingerprint()

        def full(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "_buffer", full)
        with pytest.raises(RunError, match="No space left on device"):
            quick(force=True, seed=9)
        assert load_trajectories(MAZE).fingerprint() == before


def wait_for_file(datasets_path: Path) -> Path:
    """The half-written file of a process that is at work."""
    found: list[Path] = []

    def look() -> bool:
        found[:] = datasets_path.glob("dmm/pointmaze/.*/new/data/main_data.hdf5")
        return bool(found) and found[0].stat().st_size > 10_000

    wait_until(look)
    return found[0]


def wait_until(condition, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class TestRefused:
    def test_unknown_recipe_names_the_near_ones(self, datasets_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            collect("dmm/hopper/expert-v0")
        for word in (
            "dmm/hopper/expert-v0",
            "did you mean dmm/hopper/medium-expert-v0",
            "`dmm datasets` lists them all",
        ):
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("transitions", 0),
            ("transitions", -5),
            ("transitions", 1.5),
            ("workers", 0),
            ("seed", -1),
            ("workers", True),
        ],
    )
    def test_numbers_out_of_range(self, datasets_path: Path, argument: str, value: object) -> None:
        with pytest.raises(InputError, match=f"{argument}: got {value!r}, allowed is a whole number"):
            quick(**{argument: value})  # type: ignore[arg-type]
        assert not (datasets_path / "dmm").exists()

    def test_place_that_cannot_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / "datasets"
        root.mkdir()
        (root / "dmm").write_text("a file where a folder should be")
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
        with pytest.raises(InputError) as caught:
            quick()
        assert str(root / MAZE) in str(caught.value) and "\n" not in str(caught.value)


def test_progress_goes_to_stderr_and_can_be_silenced(
    datasets_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick()
    assert capfd.readouterr() == ("", "")
    collect(MAZE, transitions=14_000, workers=1, force=True)
    out, err = capfd.readouterr()
    assert out == "" and MAZE in err and "steps/s" in err and "<" in err  # elapsed<remaining


def test_small_sets_stay_in_this_process() -> None:
    assert module._default_workers(module.SMALL - 1) == 1
    assert 1 <= module._default_workers(10**6) <= (os.cpu_count() or 1)


class TestWhatTheMetadataSay:
    def test_the_environment_is_recorded_and_a_different_one_refused(self, datasets_path: Path) -> None:
        quick(HOPPER, 300)
        assert load_trajectories(HOPPER).environment == environment_record(gym.make("Hopper-v5"))
        path = datasets_path / HOPPER / "data/metadata.json"
        metadata = json.loads(path.read_text())
        metadata["dmm"]["environment"]["option.timestep"] = 0.004
        path.write_text(json.dumps(metadata))
        with pytest.raises(InputError, match=r"'Hopper-v5' cannot be rebuilt exactly; option.timestep 0.004 there"):
            load_trajectories(HOPPER).make_env()
        load_trajectories(HOPPER).make_env(max_episode_steps=5).close()  # another one was asked for

    def test_a_set_may_be_evaluated_in_another_environment_than_it_was_recorded_in(self, datasets_path: Path) -> None:
        recipe = RECIPES["dmm/antmaze/umaze-diverse-v0"]
        collect(recipe, transitions=50, workers=1, progress=False)
        loaded = load_trajectories(recipe.name)
        env = loaded.make_env()
        assert env.unwrapped.spec.kwargs["maze"] == "umaze"  # type: ignore[union-attr]
        assert minari.load_dataset(recipe.name).recover_environment(eval_env=True).spec.kwargs["maze"] == "umaze"  # type: ignore[union-attr]
        starts = {tuple(np.round(env.reset(seed=seed)[0][:2])) for seed in range(8)}
        assert len(starts) <= 2  # one cell, give or take the noise of the start
        env.close()

    def test_cumulative_rewards_are_stored_as_sums_and_read_as_steps(self, datasets_path: Path) -> None:
        recipe = dataclasses.replace(RECIPES[HOPPER], name="dmm/test/sums-v0", rewards="cumulative")
        collect(recipe, transitions=300, workers=1, progress=False)
        quick(HOPPER, 300)
        plain, sums = load_trajectories(HOPPER), load_trajectories(recipe.name)
        steps, first = plain.rewards.copy(), plain.starts
        steps[first] = 0.0  # Algorithm 1 sets r_0 = 0
        np.testing.assert_allclose(sums.rewards, steps, atol=1e-4)
        with h5py.File(datasets_path / recipe.name / "data/main_data.hdf5") as file:
            stored = file["episode_0/rewards"][()]
        np.testing.assert_allclose(stored, np.cumsum(plain.rewards[: plain.lengths[0]]), rtol=1e-5)

    def test_histories_are_told_apart(self, datasets_path: Path) -> None:
        recipe = RECIPES["dmm/darkroom/histories-v0"]
        collect(recipe, transitions=2 * recipe.block + 100, workers=1, progress=False)
        loaded = load_trajectories(recipe.name)
        assert loaded.histories is not None and loaded.discrete_actions
        assert np.bincount(loaded.histories).tolist() == [50, 50, 5]


def test_a_recipe_of_ones_own_needs_no_registration(datasets_path: Path) -> None:
    recipe = dataclasses.replace(RECIPES[MAZE], name="mine/maze-v3")
    assert collect(recipe, transitions=100, workers=1, progress=False).dataset_id == "mine/maze-v3"
    assert load_trajectories("mine/maze-v3").env_id == recipe.env_id


def test_two_processes_make_the_same_set_at_once(datasets_path: Path) -> None:
    code = (
        f"from dmm.data.collect import collect\nprint(collect({MAZE!r}, transitions=3000, workers=1, progress=False))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert [path.name for path in (datasets_path / "dmm/pointmaze").iterdir() if path.is_dir()] == ["umaze-v0"]
    assert load_trajectories(MAZE).transitions >= 3000


@pytest.mark.parametrize(("free", "done"), [(10 * 10**6, 0), (70 * 10**6, 1)])
def test_a_disk_that_would_not_do_is_one_line_and_leaves_nothing(
    free: int, done: int, datasets_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # HDF5 crashes the process when the disk is full, so it must not come to that
    asked: list[Path] = []

    def usage(path: Path) -> shutil._ntuple_diskusage:
        asked.append(path)
        return shutil._ntuple_diskusage(10**12, 10**12 - free, free)

    monkeypatch.setattr(module.shutil, "disk_usage", usage)
    with pytest.raises(RunError, match=rf"collect: no room left on the disk of .*: {free // 10**6} MB are free, about"):
        quick(transitions=100_000)
    assert len(asked) == done + 1
    assert list((datasets_path / "dmm/pointmaze").iterdir()) == []


def test_an_environment_that_cannot_be_stored_is_refused_before_anything_is_made(datasets_path: Path) -> None:
    gym.register("TinyClass-v0", entry_point=gym.make("CartPole-v1").unwrapped.__class__, max_episode_steps=5)
    try:
        recipe = dataclasses.replace(RECIPES[MAZE], name="mine/class-v0", env_id="TinyClass-v0", env_kwargs={})
        with pytest.raises(InputError, match=r"env_id: 'TinyClass-v0' cannot be stored"):
            collect(recipe, transitions=10, workers=1, progress=False)
    finally:
        gym.registry.pop("TinyClass-v0")
    assert not (datasets_path / "mine/class-v0").exists()
