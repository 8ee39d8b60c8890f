from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dmm.data import arrays
from dmm.data.arrays import write_dataset
from dmm.data.trajectories import load_trajectories
from dmm.errors import InputError, RunError
from dmm.evaluation import RandomActor, rollout

NAME = "mine/arrays-v0"
LENGTHS = (4, 1, 7)


def flat(lengths: tuple[int, ...] = LENGTHS, state_size: int = 3, action_size: int = 2) -> dict[str, np.ndarray]:
    """D4RL's layout: every second episode ends by itself, the others by their time limit."""
    rng, n = np.random.default_rng(0), sum(lengths)
    last = np.cumsum(lengths) - 1
    ends = np.zeros((2, n), dtype=bool)
    ends[np.arange(len(lengths)) % 2, last] = True
    return {
        "observations": rng.standard_normal((n, state_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, action_size)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminations": ends[0],
        "truncations": ends[1],
    }


def following(rows: dict[str, np.ndarray]) -> np.ndarray:
    """What was seen after each action: the next row, or something new where an episode ends."""
    after = np.roll(rows["observations"], -1, axis=0)
    after[rows["terminations"] | rows["truncations"]] = 100
    return after


def last_observations(name: str = NAME) -> list[Any]:
    return [episode.observations[-1] for episode in minari.load_dataset(name)]


@pytest.fixture(autouse=True)
def _own_place(datasets_path: Path) -> None:
    pass


def test_comes_back_bit_for_bit() -> None:
    rows = flat()
    folder = write_dataset(NAME, **rows)
    data = load_trajectories(NAME)
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(data, name), rows[name])
    np.testing.assert_array_equal(data.lengths, LENGTHS)
    np.testing.assert_array_equal(data.terminated, [True, False, True])
    assert data.env_id == "" and data.reference is None and not data.discrete_actions
    assert (folder / "data" / "metadata.json").exists()


def test_is_an_ordinary_minari_data_set() -> None:
    write_dataset(NAME, **flat(), description="noise", reference=(0, 5))
    dataset = minari.load_dataset(NAME)
    assert (dataset.total_episodes, dataset.total_steps) == (3, 12)
    assert dataset[2].truncations.tolist() == [False] * 7 and dataset[2].terminations[-1]
    assert NAME in minari.list_local_datasets()
    assert minari.get_normalized_score(dataset, np.array([2.5])) == 0.5
    assert load_trajectories(NAME).reference == (0.0, 5.0)


def test_last_observation_is_repeated_or_taken_from_the_next_ones() -> None:
    rows = flat()
    write_dataset(NAME, **rows)
    np.testing.assert_array_equal(last_observations(), rows["observations"][np.cumsum(LENGTHS) - 1])
    before = load_trajectories(NAME).fingerprint()
    write_dataset(NAME, **rows, next_observations=following(rows), force=True)
    np.testing.assert_array_equal(last_observations(), np.full((3, 3), 100))
    assert load_trajectories(NAME).fingerprint() == before  # training never sees it


def test_rows_after_the_last_mark_are_one_more_episode_that_was_cut() -> None:
    rows = flat()
    rows["terminations"][-1] = False
    write_dataset(NAME, **rows)
    assert not rows["truncations"][-1], "the caller's array is left alone"
    data = load_trajectories(NAME)
    np.testing.assert_array_equal(data.lengths, LENGTHS)
    np.testing.assert_array_equal(data.terminated, [True, False, False])
    assert minari.load_dataset(NAME)[2].truncations[-1]


def test_lists_numbers_as_marks_and_columns_of_d4rl() -> None:
    rows = flat()
    marks = {name: rows[name].astype(np.uint8) for name in ("terminations", "truncations")}
    write_dataset(NAME, **{**rows, **marks, "rewards": rows["rewards"].tolist()})
    assert load_trajectories(NAME).episodes == 3


def test_sums_so_far_are_undone_when_read() -> None:
    rows = flat((4,))
    write_dataset(NAME, **{**rows, "rewards": np.array([0.0, 1, 1, 3])}, reward_kind="cumulative")
    np.testing.assert_array_equal(load_trajectories(NAME).rewards, [0, 1, 0, 2])
    np.testing.assert_array_equal(load_trajectories(NAME, rewards="per-step").rewards, [0, 1, 1, 3])


class TestDiscreteActions:
    ACTIONS = np.array([0, 2, 1, 0, 0, 2, 2, 1, 0, 0, 1, 2])

    @pytest.mark.parametrize("shape", [(12,), (12, 1)])
    def test_are_read_as_one_hot_vectors(self, shape: tuple[int, ...]) -> None:
        write_dataset(NAME, **{**flat(), "actions": self.ACTIONS.reshape(shape)})
        data = load_trajectories(NAME)
        assert data.discrete_actions and data.actions.dtype == np.float32
        np.testing.assert_array_equal(data.actions, np.eye(3)[self.ACTIONS])

    def test_environment_knows_of_actions_that_were_never_played(self) -> None:
        write_dataset(NAME, **{**flat(state_size=6), "actions": self.ACTIONS % 2}, env_id="Acrobot-v1")
        data = load_trajectories(NAME)
        assert data.action_size == 3 and data.actions[:, 2].sum() == 0
        assert rollout(RandomActor(3), data.make_env, episodes=1).returns[0] < 0

    @pytest.mark.parametrize(
        ("actions", "words"),
        [
            (ACTIONS + 1, "actions: 3 is no action of 'Acrobot-v1', which has Discrete"),
            (ACTIONS - 1, "actions: got -1; allowed: whole numbers from 0"),
            (np.zeros((12, 3), np.float32), r"actions: got shape \(12, 3\) of float32; 'Acrobot-v1' has Discrete"),
        ],
    )
    def test_that_the_environment_does_not_have(self, actions: np.ndarray, words: str) -> None:
        with pytest.raises(InputError, match=words):
            write_dataset(NAME, **{**flat(state_size=6), "actions": actions}, env_id="Acrobot-v1")

    def test_below_zero_without_an_environment(self) -> None:
        with pytest.raises(InputError, match="actions: got -1"):
            write_dataset(NAME, **{**flat(), "actions": self.ACTIONS - 1})

    def test_for_an_environment_with_continuous_ones(self) -> None:
        with pytest.raises(InputError, match=r"actions: got shape \(12,\) of int64; 'Hopper-v5' has Box"):
            write_dataset(NAME, **{**flat(state_size=11), "actions": self.ACTIONS}, env_id="Hopper-v5")


class TestEnvironment:
    def test_is_rebuilt_with_its_arguments(self) -> None:
        write_dataset(
            NAME, **flat(state_size=11, action_size=3), env_id="Hopper-v5", env_kwargs={"max_episode_steps": 5}
        )
        data = load_trajectories(NAME)
        assert data.reference == (-20.272305, 3234.3)
        assert rollout(RandomActor(3), data.make_env, episodes=1).lengths[0] <= 5

    def test_columns_can_be_entries_of_a_goal_dictionary(self) -> None:
        rows = flat(state_size=6)
        keys = ("desired_goal", "observation")
        write_dataset(
            NAME, **rows, env_id="PointMaze_UMaze-v3", env_kwargs={"max_episode_steps": 3}, observation_keys=keys
        )
        data = load_trajectories(NAME)
        np.testing.assert_array_equal(data.observations, rows["observations"])
        assert data.observation_keys == keys
        env = data.make_env()
        plain = env.unwrapped.reset(seed=3)[0]
        expected = np.concatenate([plain["desired_goal"], plain["observation"]]).astype(np.float32)
        np.testing.assert_array_equal(env.reset(seed=3)[0], expected)
        env.close()

    def test_that_was_registered_by_its_class_could_not_be_rebuilt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = EnvSpec("Own-v0", entry_point=type(gym.make("Acrobot-v1").unwrapped))
        monkeypatch.setitem(gym.registry, "Own-v0", spec)
        with pytest.raises(InputError, match=r"env_id: 'Own-v0' cannot be stored .* entry_point=.my_module:MyEnv"):
            write_dataset(NAME, **{**flat(state_size=6), "actions": np.zeros(12, int)}, env_id="Own-v0")

    @pytest.mark.parametrize(
        ("env_id", "keys", "words"),
        [
            ("Hopper-v5", (), r"'Hopper-v5' has \(observation, action\) shapes .*\(11,\), \(3,\).*\(3,\), \(2,\)"),
            ("Nowhere-v0", (), "'Nowhere-v0' cannot be made"),
            ("PointMaze_UMaze-v3", ("speed",), "speed"),
        ],
    )
    def test_of_other_sizes_or_none(self, env_id: str, keys: tuple[str, ...], words: str, datasets_path: Path) -> None:
        with pytest.raises(InputError, match=words):
            write_dataset(NAME, **flat(), env_id=env_id, observation_keys=keys)
        assert not list(datasets_path.rglob("*.hdf5"))


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**flat(), name: value}


def with_value(name: str, row: int, value: float) -> dict[str, Any]:
    rows = flat()
    rows[name][row] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (changed("actions", np.zeros((11, 2))), r"observations: got 12 rows, but actions 11; allowed: one row per"),
        (changed("rewards", np.zeros(13)), "rewards 13"),
        ({name: array[:0] for name, array in flat().items()}, "got 0 rows"),
        (changed("observations", np.zeros(12)), r"observations: got shape \(12,\) of float64; allowed: numbers of"),
        (changed("observations", np.zeros((12, 8, 8, 3))), r"observations: got shape \(12, 8, 8, 3\)"),
        (changed("observations", np.full((12, 3), "a")), "observations: got shape"),
        (changed("actions", np.zeros(12)), r"actions: got shape \(N,\) of float64; allowed: \(N, a\), or whole"),
        (changed("rewards", np.zeros((12, 2))), r"rewards: got shape \(12, 2\)"),
        (
            changed("rewards", np.zeros(12, dtype=complex)),
            r"rewards: got shape \(12,\) of complex128, allowed are real",
        ),
        (changed("observations", [[1.0]] * 11 + [[1.0, 2.0]]), "observations: allowed is an array of real numbers"),
        (changed("observations", np.full((12, 3), None)), r"observations: got shape \(12, 3\) of object"),
        (changed("rewards", np.full(12, 1e300)), r"rewards: 1e\+300, more than float32 holds, in row 0"),
        (changed("terminations", np.full(12, 2)), "terminations: got shape .* allowed: .* 0 and 1"),
        (changed("truncations", np.zeros((12, 1))), "truncations: got shape"),
        (with_value("observations", 7, np.nan), "observations: NaN or infinity in row 7"),
        (with_value("rewards", 3, np.inf), "rewards: NaN or infinity in row 3"),
        (
            {**flat(), "terminations": np.zeros(12), "truncations": np.zeros(12)},
            "no row ends an episode; allowed: at least one mark here or in terminations",
        ),
        (
            changed("next_observations", np.zeros((12, 4))),
            r"next_observations: got shape \(12, 4\); allowed: \(12, 3\)",
        ),
        (changed("next_observations", np.zeros((12, 3))), "next_observations: row 0 differs from observations row 1"),
        (changed("reference", (3, 3)), "reference: got"),
        (changed("reward_kind", "doubled"), "reward_kind: got 'doubled'"),
    ],
)
def test_what_does_not_fit_is_named(rows: dict[str, Any], words: str, datasets_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        write_dataset(NAME, **rows)
    assert "\n" not in str(caught.value)
    assert not (datasets_path / "mine").exists()


def test_shuffled_rows_are_noticed() -> None:
    rows = flat((40,))
    rows["next_observations"] = following(rows)
    order = np.random.default_rng(1).permutation(39)  # the last row, with its mark, stays
    shuffled = {name: np.concatenate([array[:-1][order], array[-1:]]) for name, array in rows.items()}
    with pytest.raises(InputError, match="in the order in which they happened"):
        write_dataset(NAME, **shuffled)


def test_another_data_set_of_that_id_is_replaced_only_on_request() -> None:
    write_dataset(NAME, **flat())
    with pytest.raises(InputError, match=r"'mine/arrays-v0' is already at .*; force=True replaces it"):
        write_dataset(NAME, **flat((5,)))
    write_dataset(NAME, **flat((5,)), force=True)
    assert load_trajectories(NAME).transitions == 5


@pytest.mark.parametrize("minari_id", ["", "no version", "mine/thing"])
def test_malformed_id(minari_id: str) -> None:
    with pytest.raises(InputError, match="is not a Minari id"):
        write_dataset(minari_id, **flat())


def test_nothing_is_seen_of_one_that_broke_off(datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(storage: Any, batch: list[Any]) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(arrays, "_put", full)
    with pytest.raises(RunError, match="No space left"):
        write_dataset(NAME, **flat())
    assert [path for path in datasets_path.rglob("*") if path.is_file()] == []
    assert minari.list_local_datasets() == {}


def test_many_short_episodes_span_several_writes() -> None:
    rows = flat((1,) * (2 * arrays.EPISODES_PER_WRITE + 3))
    write_dataset(NAME, **rows)
    data = load_trajectories(NAME)
    assert data.episodes == len(rows["rewards"])
    np.testing.assert_array_equal(data.rewards, rows["rewards"])


def test_half_a_million_rows_take_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    rows = flat((1000,) * 500, state_size=11)
    begin = time.process_time()  # other programs on this machine do not count
    write_dataset(NAME, **rows)
    assert time.process_time() - begin < 5
    assert capsys.readouterr().out == ""


def test_metadata_say_what_the_rewards_are(datasets_path: Path) -> None:
    write_dataset(NAME, **flat())
    metadata = json.loads((datasets_path / NAME / "data" / "metadata.json").read_text())
    assert metadata["dmm"] == {"observation_keys": [], "rewards": "per-step"}
    assert isinstance(minari.load_dataset(NAME).observation_space, gym.spaces.Box)


def test_sums_must_begin_at_zero_and_the_kind_is_checked_by_name(datasets_path: Path) -> None:
    rows = (np.zeros((4, 2)), np.zeros((4, 1)), np.array([0.0, 1, 1, 2]), np.zeros(4), np.array([0, 1, 0, 1]))
    with pytest.raises(InputError, match=r"rewards: the first sum of episode 1 is 1; allowed: 0"):
        write_dataset("mine/sums-v0", *rows, reward_kind="cumulative", progress=False)
    with pytest.raises(InputError, match=r"reward_kind: got 'sum'; allowed: 'per-step', 'cumulative'"):
        write_dataset("mine/sums-v0", *rows, reward_kind="sum", progress=False)  # type: ignore[arg-type]
    assert not (datasets_path / "mine/sums-v0").exists()


def test_a_column_of_rewards_and_truth_values_are_rewards() -> None:
    rows = flat()
    for rewards in (np.ones((12, 1)), np.ones(12, dtype=bool)):
        write_dataset(NAME, **{**rows, "rewards": rewards}, force=True)
        np.testing.assert_array_equal(load_trajectories(NAME).rewards, np.ones(12))
