from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch

from dmm.data.observations import FlatObservation
from dmm.data.trajectories import Trajectories, load_trajectories, per_step_rewards, returns_to_go
from dmm.errors import DataWarning, InputError
from tests.conftest import MakeTrajectories

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)


def episode(steps: int, state_size: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random observations `(steps + 1, s)` float64, actions `(steps, 2)` float32 and rewards `(steps,)`."""
    rng = np.random.default_rng([seed, steps])
    return (
        rng.standard_normal((steps + 1, state_size)),
        rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rng.standard_normal(steps),
    )


def say(folder: Path, **about: object) -> None:
    """Changes what the metadata of a data set say under `dmm`, as recipes and written arrays do."""
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({**metadata, "dmm": {**metadata.get("dmm", {}), **about}}))


def goal_space(**more: gym.Space) -> gym.spaces.Dict:
    vector = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    return gym.spaces.Dict({"observation": BOX, "achieved_goal": vector, "desired_goal": vector, **more})


def goal_episode(steps: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    observations, actions, rewards = episode(steps)
    return (
        {"observation": observations, "achieved_goal": observations[:, :2], "desired_goal": -observations[:, :2]},
        actions,
        rewards,
    )


class TestReturnsToGo:
    def test_equals_a_naive_loop(self) -> None:
        rng = np.random.default_rng(0)
        lengths = np.array([1, 5, 17, 2])
        rewards = rng.standard_normal(lengths.sum()).astype(np.float32)
        expected, row = [], 0
        for length in lengths:
            for t in range(length):
                expected.append(sum(float(r) for r in rewards[row + t : row + length]))
            row += length
        result = returns_to_go(rewards, np.cumsum(lengths) - lengths, lengths)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)

    def test_long_sums_keep_float64_accuracy(self) -> None:
        rewards = np.full(200_000, 0.1, dtype=np.float32)
        total = returns_to_go(rewards, np.array([0]), np.array([len(rewards)]))[0]
        assert total == pytest.approx(len(rewards) * float(np.float32(0.1)), rel=1e-7)

    def test_a_huge_episode_does_not_disturb_the_next(self) -> None:
        rewards = np.array([1e30, 1e-3, 2e-3], dtype=np.float32)
        result = returns_to_go(rewards, np.array([0, 1]), np.array([1, 2]))
        np.testing.assert_allclose(result[1:], [3e-3, 2e-3], rtol=1e-6)


class TestPerStepRewards:
    CUMULATIVE = np.array([1.0, 1.0, 2.0, 2.0, 4.0])

    def test_paper_sets_the_first_reward_to_zero(self) -> None:
        np.testing.assert_array_equal(per_step_rewards(self.CUMULATIVE), [0, 0, 1, 0, 2])

    def test_released_code_keeps_the_first_reward(self) -> None:
        np.testing.assert_array_equal(per_step_rewards(self.CUMULATIVE, keep_first=True), [1, 0, 1, 0, 2])

    def test_with_the_first_reward_kept_the_running_sum_comes_back(self) -> None:
        cumulative = np.cumsum(np.random.default_rng(0).integers(0, 2, 30)).astype(float)
        np.testing.assert_array_equal(np.cumsum(per_step_rewards(cumulative, keep_first=True)), cumulative)

    def test_one_step(self) -> None:
        np.testing.assert_array_equal(per_step_rewards(np.array([3.0])), [0.0])
        np.testing.assert_array_equal(per_step_rewards(np.array([3.0]), keep_first=True), [3.0])


class TestTrajectories:
    def test_counts_and_returns(self, trajectories: Trajectories) -> None:
        assert (trajectories.episodes, trajectories.transitions) == (5, 28)
        assert (trajectories.state_size, trajectories.action_size) == (3, 2)
        expected = [part.sum(dtype=np.float64) for part in np.split(trajectories.rewards, trajectories.starts[1:])]
        np.testing.assert_allclose(trajectories.returns(), expected, rtol=1e-12)
        np.testing.assert_allclose(trajectories.returns_to_go()[trajectories.starts], expected, rtol=1e-5)

    def test_state_moments(self, trajectories: Trajectories) -> None:
        mean, std = trajectories.state_moments()
        assert mean.dtype == std.dtype == np.float32
        np.testing.assert_allclose(mean, [14.5, 14.75, 15.0], rtol=1e-6)
        np.testing.assert_allclose(std, np.std(np.arange(28)) + 1e-6, rtol=1e-6)

    def test_a_column_that_never_varies_is_not_blown_up(self, trajectories: Trajectories) -> None:
        observations = trajectories.observations.copy()
        observations[:, 1] = 0.1
        mean, std = dataclasses.replace(trajectories, observations=observations).state_moments()
        assert std[1] == 1 and mean[1] == pytest.approx(0.1)
        np.testing.assert_array_equal(std[[0, 2]], trajectories.state_moments()[1][[0, 2]])

    def test_fingerprint_follows_every_array(self, trajectories: Trajectories) -> None:
        seen = {trajectories.fingerprint()}
        for name in ("observations", "actions", "rewards"):
            array = getattr(trajectories, name).copy()
            array.flat[-1] += 1
            seen.add(dataclasses.replace(trajectories, **{name: array}).fingerprint())
        seen.add(dataclasses.replace(trajectories, terminated=~trajectories.terminated).fingerprint())
        lengths = np.array([1, 7, 12, 3, 5])
        seen.add(dataclasses.replace(trajectories, lengths=lengths, starts=np.cumsum(lengths) - lengths).fingerprint())
        assert len(seen) == 6
        assert dataclasses.replace(trajectories, dataset_id="another/name-v0").fingerprint() in seen

    def test_arrays_must_fit_together(self, trajectories: Trajectories) -> None:
        with pytest.raises(InputError, match="28 observations"):
            dataclasses.replace(trajectories, rewards=trajectories.rewards[:-1])
        with pytest.raises(InputError, match="starts"):
            dataclasses.replace(trajectories, starts=trajectories.starts + 1)
        lengths = np.array([8, 0, 12, 3, 5])
        with pytest.raises(InputError, match="at least one transition"):
            dataclasses.replace(trajectories, lengths=lengths, starts=np.cumsum(lengths) - lengths)
        with pytest.raises(InputError, match="histories: got 4 entries for 5 episodes"):
            dataclasses.replace(trajectories, histories=np.zeros(4, dtype=np.int64))

    def test_fingerprint_follows_histories_where_there_are_any(self, trajectories: Trajectories) -> None:
        seen = {trajectories.fingerprint()}
        for histories in ([0, 0, 0, 0, 0], [0, 0, 1, 1, 1]):
            seen.add(dataclasses.replace(trajectories, histories=np.array(histories)).fingerprint())
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("lengths", "terminated", "limit"),
    [
        ((7, 300, 300), (True, False, False), 300),  # a time limit cut the longest
        ((7, 300, 300), (False, False, True), 3000),
        ((7, 20), (False, True), 1000),
        ((7,), (False,), 7),
    ],
)
def test_step_limit(trajectories: Trajectories, lengths: Any, terminated: Any, limit: int) -> None:
    rows, counts = sum(lengths), np.array(lengths)
    data = dataclasses.replace(
        trajectories,
        observations=np.zeros((rows, 3), np.float32),
        actions=np.zeros((rows, 2), np.float32),
        rewards=np.zeros(rows, np.float32),
        starts=np.cumsum(counts) - counts,
        lengths=counts,
        terminated=np.array(terminated),
    )
    assert data.step_limit() == limit


class TestMakeEnv:
    def test_from_the_id_when_no_specification_is_stored(self, trajectories: Trajectories) -> None:
        hopper = dataclasses.replace(
            trajectories, observations=np.zeros((28, 11), np.float32), actions=np.zeros((28, 3), np.float32)
        )
        env = hopper.make_env()
        observation, _ = env.reset(seed=0)
        assert observation.shape == (11,) and observation.dtype == np.float32
        assert np.array_equal(observation, env.reset(seed=0)[0])
        env.close()

    def test_sizes_must_match(self, trajectories: Trajectories) -> None:
        with pytest.raises(InputError, match=r"Hopper-v5.*\(11,\).*\(3,\)"):
            trajectories.make_env()

    @pytest.mark.parametrize("env_id", ["Nowhere-v0", "", "bad id"])
    def test_unknown_environment(self, trajectories: Trajectories, env_id: str) -> None:
        with pytest.raises(InputError, match="environment"):
            dataclasses.replace(trajectories, env_id=env_id).make_env()

    @pytest.mark.parametrize(
        "spec", ["{}", "no json", '{"id": "Gone-v0", "entry_point": "gone.module:Env", "kwargs": {}}']
    )
    def test_specification_that_cannot_be_rebuilt(self, trajectories: Trajectories, spec: str) -> None:
        with pytest.raises(InputError, match="environment"):
            dataclasses.replace(trajectories, env_spec=spec).make_env()


class TestLoad:
    def test_box_observations(self, make_dataset) -> None:
        episodes = [episode(4), episode(7)]
        make_dataset("test/box-v0", episodes, BOX, env=None)
        loaded = load_trajectories("test/box-v0")
        np.testing.assert_array_equal(loaded.lengths, [4, 7])
        np.testing.assert_array_equal(loaded.starts, [0, 4])
        np.testing.assert_array_equal(loaded.terminated, [True, False])
        for index, name in enumerate(("observations", "actions", "rewards")):
            expected = np.concatenate([part[index][: len(part[2])] for part in episodes]).astype(np.float32)
            np.testing.assert_array_equal(getattr(loaded, name), expected)
            assert getattr(loaded, name).dtype == np.float32
        assert loaded.observation_keys == () and loaded.env_id == "" and loaded.reference is None
        with pytest.raises(InputError, match="does not say which environment"):
            loaded.make_env()

    def test_equals_what_minari_itself_reads(self, make_dataset) -> None:
        make_dataset("test/box-v0", [episode(steps) for steps in range(1, 13)], BOX)  # more than 10: order of names
        loaded = load_trajectories("test/box-v0")
        read = list(minari.load_dataset("test/box-v0"))
        np.testing.assert_array_equal(loaded.lengths, [len(part) for part in read])
        np.testing.assert_array_equal(loaded.actions, np.concatenate([part.actions for part in read]))
        np.testing.assert_array_equal(loaded.terminated, [part.terminations[-1] for part in read])

    def test_goal_dictionary_is_concatenated_in_order(self, make_dataset) -> None:
        make_dataset("test/goal-v0", [goal_episode(3)], goal_space())
        loaded = load_trajectories("test/goal-v0")
        assert loaded.observation_keys == ("observation", "achieved_goal", "desired_goal")
        expected = goal_episode(3)[0]
        parts = [expected[key][:-1] for key in loaded.observation_keys]
        np.testing.assert_array_equal(loaded.observations, np.concatenate(parts, axis=1).astype(np.float32))

    def test_entries_that_are_no_vectors_are_left_out(self, make_dataset) -> None:
        observations, actions, rewards = goal_episode(3)
        observations["achieved_goal"] = observations["observation"].reshape(4, 3, 1)
        space = goal_space(achieved_goal=gym.spaces.Box(-np.inf, np.inf, (3, 1), np.float64))
        make_dataset("test/goal-v0", [(observations, actions, rewards)], space)
        assert load_trajectories("test/goal-v0").observation_keys == ("observation", "desired_goal")

    def test_reference_returns_come_from_the_data_set_or_the_environment(self, make_dataset, capsys) -> None:
        hopper = [(np.zeros((3, 11)), np.zeros((2, 3), np.float32), np.ones(2))]
        spaces = gym.spaces.Box(-np.inf, np.inf, (11,), np.float64), gym.spaces.Box(-1, 1, (3,), np.float32)
        make_dataset("test/own-v0", hopper, *spaces, env="Hopper-v5", ref_min_score=-5.0, ref_max_score=7.0)
        make_dataset("test/none-v0", hopper, *spaces, env="Hopper-v5")
        assert load_trajectories("test/own-v0").reference == (-5.0, 7.0)
        capsys.readouterr()
        make_dataset("test/same-v0", hopper, *spaces, env="Hopper-v5", ref_min_score=7.0, ref_max_score=7.0)
        assert load_trajectories("test/same-v0").reference is None
        assert "no normalised score, since the reference returns are 7.0 (random) and 7.0" in capsys.readouterr().err
        assert load_trajectories("test/none-v0").reference == (-20.272305, 3234.3)

    def test_environment_is_rebuilt_from_the_stored_specification(self, make_dataset) -> None:
        hopper = [(np.zeros((3, 11)), np.zeros((2, 3), np.float32), np.ones(2))]
        made = gym.make("Hopper-v5", max_episode_steps=17, reset_noise_scale=0.0)
        make_dataset("test/hopper-v0", hopper, made.observation_space, made.action_space, env=made)
        env = load_trajectories("test/hopper-v0").make_env()
        assert env.spec is not None and env.spec.max_episode_steps == 17
        np.testing.assert_array_equal(env.reset(seed=0)[0], env.reset(seed=1)[0])  # no noise at the start

    def test_environment_meant_for_evaluation_is_preferred(self, make_dataset) -> None:
        hopper = [(np.zeros((3, 11)), np.zeros((2, 3), np.float32), np.ones(2))]
        made, other = gym.make("Hopper-v5", max_episode_steps=17), gym.make("Hopper-v5", max_episode_steps=23)
        make_dataset("test/hopper-v0", hopper, made.observation_space, made.action_space, env=made, eval_env=other)
        env = load_trajectories("test/hopper-v0").make_env()
        assert env.spec is not None and env.spec.max_episode_steps == 23

    def test_metadata_decide_what_the_rewards_are(self, make_dataset, datasets_path) -> None:
        make_dataset("test/sum-v0", [(*episode(3)[:2], np.array([0.0, 1, 3]))], BOX)
        say(datasets_path / "test/sum-v0", rewards="cumulative")
        np.testing.assert_array_equal(load_trajectories("test/sum-v0").rewards, [0, 1, 2])
        np.testing.assert_array_equal(load_trajectories("test/sum-v0", rewards="per-step").rewards, [0, 1, 3])
        say(datasets_path / "test/sum-v0", rewards="per-step")
        np.testing.assert_array_equal(load_trajectories("test/sum-v0").rewards, [0, 1, 3])
        say(datasets_path / "test/sum-v0", rewards="some day")
        with pytest.raises(InputError, match="rewards: got 'some day'; allowed: 'per-step', 'cumulative'"):
            load_trajectories("test/sum-v0")

    def test_histories_number_the_episodes(self, make_dataset, datasets_path) -> None:
        make_dataset("test/learn-v0", [episode(2), episode(3), episode(1)], BOX)
        assert load_trajectories("test/learn-v0").histories is None
        say(datasets_path / "test/learn-v0", histories=[2, 1])
        histories = load_trajectories("test/learn-v0").histories
        assert histories is not None and histories.dtype == np.int64 and histories.tolist() == [0, 0, 1]
        say(datasets_path / "test/learn-v0", histories=[2, 2])
        with pytest.raises(InputError, match="histories of 'test/learn-v0' have 4 episodes, it holds 3"):
            load_trajectories("test/learn-v0")

    @pytest.mark.parametrize("start", [0, -1, 5])
    def test_discrete_actions_become_one_hot_vectors(self, make_dataset, start: int) -> None:
        observations, _, rewards = episode(4)
        space = gym.spaces.Discrete(3, start=start)
        make_dataset("test/act-v0", [(observations, start + np.array([0, 2, 1, 2]), rewards)], BOX, space)
        data = load_trajectories("test/act-v0")
        assert data.discrete_actions and data.actions.dtype == np.float32
        np.testing.assert_array_equal(data.actions, [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]])

    def test_cumulative_rewards_become_differences_per_episode(self, make_dataset) -> None:
        make_dataset(
            "test/sum-v0", [(*episode(3)[:2], np.array([1.0, 1, 3])), (*episode(2)[:2], np.array([2.0, 4]))], BOX
        )
        np.testing.assert_array_equal(load_trajectories("test/sum-v0").rewards, [1, 1, 3, 2, 4])
        loaded = load_trajectories("test/sum-v0", rewards="cumulative")
        np.testing.assert_array_equal(loaded.rewards, [0, 0, 2, 0, 2])
        with pytest.raises(InputError, match="rewards: got 'sum'; allowed: 'per-step', 'cumulative', 'delayed'"):
            load_trajectories("test/sum-v0", rewards="sum")  # type: ignore[arg-type]

    def test_a_million_transitions_load_in_seconds(self, make_dataset) -> None:
        observations, actions, rewards = episode(1000, state_size=11)
        space = gym.spaces.Box(-np.inf, np.inf, (11,), np.float64)
        make_dataset("test/big-v0", [(observations, actions, rewards)] * 200, space)
        begin = time.process_time()  # other programs on this machine do not count
        assert load_trajectories("test/big-v0").transitions == 200_000
        assert (time.process_time() - begin) * 5 < 5  # a fifth of a million


class TestDelayedRewards:
    def test_all_is_paid_at_each_episode_s_last_step(self, make_dataset) -> None:
        episodes = [(*episode(3)[:2], np.array([1.0, 2, 4])), (*episode(2)[:2], np.array([0.5, -1]))]
        make_dataset("test/late-v0", episodes, BOX)
        plain, late = load_trajectories("test/late-v0"), load_trajectories("test/late-v0", rewards="delayed")
        assert late.rewards.tolist() == [0, 0, 7, 0, -0.5] and late.rewards.dtype == np.float32
        assert late.returns_to_go().tolist() == [7, 7, 7, -0.5, -0.5]
        assert late.dataset_id == "test/late-v0+delayed" and late.delayed_rewards and not plain.delayed_rewards
        assert late.fingerprint() != plain.fingerprint() and late.delayed() is late

    def test_sums_are_undone_first(self, make_dataset, datasets_path) -> None:
        make_dataset("test/sum-v0", [(*episode(3)[:2], np.array([0.0, 1, 3]))], BOX)
        say(datasets_path / "test/sum-v0", rewards="cumulative")
        assert load_trajectories("test/sum-v0", rewards="delayed").rewards.tolist() == [0, 0, 3]

    def test_no_data_set_says_so_of_itself(self, make_dataset, datasets_path) -> None:
        make_dataset("test/late-v0", [episode(2)], BOX)
        say(datasets_path / "test/late-v0", rewards="delayed")
        with pytest.raises(InputError, match=r"rewards: got 'delayed'; allowed: 'per-step', 'cumulative'$"):
            load_trajectories("test/late-v0")


class TestSomeOfTheEpisodes:
    def test_keep_all_that_is_theirs(self, make_trajectories: MakeTrajectories) -> None:
        more = {"histories": [0, 0, 1, 1, 2], "last_observations": np.arange(20.0).reshape(5, 4)}
        data = dataclasses.replace(make_trajectories(), **more)
        chosen = data.select([3, 0])
        assert chosen.lengths.tolist() == [12, 3] and chosen.starts.tolist() == [0, 12]
        rows = [*range(13, 25), *range(3)]
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(chosen, name), getattr(data, name)[rows])
        for name in ("terminated", "histories", "last_observations"):
            np.testing.assert_array_equal(getattr(chosen, name), getattr(data, name)[[3, 0]])
        assert (chosen.dataset_id, chosen.reference) == (data.dataset_id, data.reference)
        np.testing.assert_array_equal(data.select(range(5)).observations, data.observations)
        assert data.select(range(5)).fingerprint() == data.fingerprint()

    @pytest.mark.parametrize(
        ("episodes", "said"),
        [([], "got none"), ([5], "got 5 to 5, allowed are some of 0 to 4"), ([-1], "got -1"), ([0.5], "whole numbers")],
    )
    def test_must_be_there(self, make_trajectories: MakeTrajectories, episodes: list[Any], said: str) -> None:
        with pytest.raises(InputError, match=f"episodes: .*{said}"):
            make_trajectories().select(episodes)


class TestTheBestEpisodes:
    @pytest.fixture
    def ranked(self, make_dataset) -> str:
        """Returns 0, 5, 2, 5, 1, 5, 3, 5, 4, 5."""
        returns = [0, 5, 2, 5, 1, 5, 3, 5, 4, 5]
        make_dataset(
            "test/ranked-v0", [(*episode(2, seed=i)[:2], np.array([1.0, r - 1])) for i, r in enumerate(returns)], BOX
        )
        return "test/ranked-v0"

    @pytest.mark.parametrize(
        ("share", "kept"),
        [
            (1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
            (0.7, [1, 3, 5, 6, 7, 8, 9]),
            (0.29, [1, 3]),
            (0.3, [1, 3, 5]),
            (0.1, [1]),
            (0.001, [1]),
        ],
    )
    def test_are_kept_in_the_data_s_order_and_ties_from_the_first(self, ranked: str, share: float, kept: Any) -> None:
        whole, best = load_trajectories(ranked), load_trajectories(ranked, best_share=share)
        np.testing.assert_array_equal(best.observations, whole.select(kept).observations)
        np.testing.assert_array_equal(best.returns(), whole.returns()[kept])
        assert best.best_share == share
        assert best.dataset_id == (ranked if share == 1 else f"{ranked}+best-{share:g}")

    def test_are_found_by_what_they_earn_whenever_it_is_paid(self, ranked: str) -> None:
        both = load_trajectories(ranked, rewards="delayed", best_share=0.3)
        assert both.rewards.tolist() == [0, 5] * 3 and both.dataset_id == f"{ranked}+best-0.3+delayed"

    def test_of_a_hundred_are_whole_hundredths(self, make_trajectories: MakeTrajectories) -> None:
        hundred = make_trajectories().select([i % 5 for i in range(100)])
        assert [hundred.best(i / 100).episodes for i in range(1, 101)] == list(range(1, 101))

    @pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), "0.1", True])
    def test_are_no_other_share(self, share: Any) -> None:
        with pytest.raises(InputError, match=r"^best_share: got "):
            load_trajectories("no/such-v0", best_share=share)


class TestColumnsOfRewards:
    @pytest.mark.parametrize(("how", "expected"), [("per-step", [1, 1, 3]), ("cumulative", [0, 0, 2])])
    def test_are_read_as_one_number_per_step(self, make_dataset, how, expected) -> None:
        make_dataset("test/column-v0", [(*episode(3)[:2], np.array([[1.0], [1], [3]]))], BOX)
        data = load_trajectories("test/column-v0", rewards=how)
        assert data.rewards.tolist() == expected and data.returns().shape == (1,)

    def test_truth_values_and_unsigned_sums_count(self, make_dataset) -> None:
        for rewards in (np.array([True, False, True]), np.array([3, 2, 5], dtype=np.uint8)):
            make_dataset(f"test/{rewards.dtype}-v0", [(*episode(3)[:2], rewards)], BOX)
            sums = load_trajectories(f"test/{rewards.dtype}-v0", rewards="cumulative")
            assert sums.rewards.tolist() == [0, -1, 1 if rewards.dtype == bool else 3]


class TestSelections:
    @pytest.fixture
    def whole(self, make_dataset) -> minari.MinariDataset:
        make_dataset("test/all-v0", [episode(steps, seed=steps) for steps in (2, 3, 4, 5)], BOX)
        return minari.load_dataset("test/all-v0")

    def test_exactly_the_selected_episodes_in_their_order(self, whole: minari.MinariDataset) -> None:
        long = load_trajectories(whole.filter_episodes(lambda part: len(part.rewards) > 3))
        assert long.lengths.tolist() == [4, 5] and long.dataset_id == "test/all-v0"
        np.testing.assert_array_equal(long.actions[:4], episode(4, seed=4)[1])
        parts = minari.split_dataset(whole, [1, 3], seed=0)
        lengths = [load_trajectories(part).lengths.tolist() for part in parts]
        assert sorted([*lengths[0], *lengths[1]]) == [2, 3, 4, 5]
        assert lengths == [[len(episode.rewards) for episode in part.iterate_episodes()] for part in parts]
        prints = {load_trajectories(each).fingerprint() for each in (whole, "test/all-v0", *parts)}
        assert len(prints) == 3

    def test_histories_follow_the_selection(self, whole: minari.MinariDataset, datasets_path) -> None:
        say(datasets_path / "test/all-v0", histories=[1, 3])
        view = minari.load_dataset("test/all-v0").filter_episodes(lambda part: len(part.rewards) != 3)
        histories = load_trajectories(view).histories
        assert histories is not None and histories.tolist() == [0, 1, 1]

    def test_nothing_selected_and_other_objects_are_named(self, whole: minari.MinariDataset) -> None:
        with pytest.raises(InputError, match="'test/all-v0' has no episodes"):
            load_trajectories(whole.filter_episodes(lambda part: False))
        with pytest.raises(InputError, match="dataset: got a int; allowed: the id"):
            load_trajectories(3)  # type: ignore[arg-type]


class TestDictionaries:
    SPACE = gym.spaces.Dict(
        {
            "position": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "gear": gym.spaces.Discrete(3, start=1),
            "doors": gym.spaces.MultiBinary(2),
            "level": gym.spaces.MultiDiscrete([4]),
        }
    )

    @pytest.fixture
    def made(self, make_dataset) -> str:
        seen = {
            "position": np.arange(8, dtype=np.float32).reshape(4, 2),
            "gear": np.array([1, 3, 2, 2]),
            "doors": np.array([[0, 1], [1, 1], [0, 0], [1, 0]], dtype=np.int8),
            "level": np.array([[3], [0], [1], [2]]),
        }
        make_dataset("test/parts-v0", [(seen, *episode(3)[1:])], self.SPACE)
        return "test/parts-v0"

    def test_all_entries_by_default_and_those_that_are_named(self, made: str) -> None:
        data = load_trajectories(made)
        assert sorted(data.observation_keys) == ["doors", "gear", "level", "position"] and data.state_size == 8
        named = load_trajectories(made, observation_keys=("gear", "position", "doors"))
        assert named.observation_keys == ("gear", "position", "doors")
        np.testing.assert_array_equal(named.observations[:2], [[1, 0, 0, 0, 1, 0, 1], [0, 0, 1, 2, 3, 1, 1]])
        assert load_trajectories(made, observation_keys="position").state_size == 2

    def test_a_live_environment_is_flattened_alike(self, made: str) -> None:
        data = load_trajectories(made)

        class Live(gym.Env):
            observation_space = self.SPACE
            action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

            def reset(self, **options):  # type: ignore[no-untyped-def]
                return {
                    "level": np.array([3]),
                    "doors": np.array([0, 1]),
                    "gear": 1,
                    "position": np.arange(2.0),
                }, {}

        env = FlatObservation(Live(), data.observation_keys)
        np.testing.assert_array_equal(env.reset()[0], data.observations[0])
        assert env.observation_space.contains(env.reset()[0])

    def test_pictures_beside_vectors_are_left_out_aloud(self, make_dataset) -> None:
        space = gym.spaces.Dict({"position": BOX, "camera": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)})
        seen = {"position": np.zeros((4, 3)), "camera": np.zeros((4, 4, 4, 3), np.uint8)}
        make_dataset("test/camera-v0", [(seen, *episode(3)[1:])], space)
        with pytest.warns(DataWarning, match=r"'camera' \(images of shape \(4, 4, 3\)\) left out"):
            assert load_trajectories("test/camera-v0").observation_keys == ("position",)

    def test_keys_that_are_not_there(self, made: str, make_dataset) -> None:
        with pytest.raises(InputError, match=r"keys \['speed'\] not found; the dictionary has"):
            load_trajectories(made, observation_keys=("speed",))
        make_dataset("test/box-v0", [episode(3)], BOX)
        with pytest.raises(InputError, match=r"observation_keys: got .* no dictionary"):
            load_trajectories("test/box-v0", observation_keys=("speed",))


class TestByHand:
    PLAIN: ClassVar[dict[str, Any]] = {
        "observations": np.arange(30.0).reshape(10, 3),
        "actions": np.linspace(-1, 1, 20).reshape(10, 2),
        "rewards": np.ones(10),
        "starts": np.array([0, 5]),
        "lengths": np.array([5, 5]),
        "terminated": np.array([True, False]),
        "dataset_id": "test/hand-v0",
        "env_id": "",
    }

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"observations": torch.arange(30.0).reshape(10, 3)},
            {
                "observations": np.arange(30).reshape(10, 3).tolist(),
                "actions": np.linspace(-1, 1, 20).reshape(10, 2).tolist(),
            },
            {"starts": [0, 5], "lengths": [5.0, 5.0], "terminated": [1, 0]},
            {"rewards": np.ones((10, 1), dtype=np.int8)},
            {"rewards": [True] * 10},
        ],
    )
    def test_whatever_holds_the_same_numbers_is_the_same(self, change: dict[str, Any]) -> None:
        data = Trajectories(**(self.PLAIN | change))
        assert data.fingerprint() == Trajectories(**self.PLAIN).fingerprint()
        assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
        assert data.lengths.dtype == np.int64 and data.terminated.dtype == bool

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("observations", np.zeros(10), r"got shape \(10,\), allowed is \(N, size\)"),
            ("observations", np.zeros((10, 0)), r"got shape \(10, 0\)"),
            ("observations", np.full((10, 3), np.nan), "NaN or infinity in episode 0 of 'test/hand-v0'"),
            ("observations", np.full((10, 3), 1e39), r"1e\+39, more than float32 holds, in episode 0"),
            ("observations", np.zeros((10, 3), complex), "complex128, allowed are real numbers"),
            ("observations", torch.zeros(10, 3, requires_grad=True), "allowed is an array of real numbers"),
            ("observations", [[1]] * 9 + [[1, 2]], "allowed is an array of real numbers"),
            ("actions", np.zeros(10), "got shape"),
            ("actions", np.full((10, 2), "a"), "allowed are real numbers"),
            ("rewards", np.r_[np.ones(9), np.inf], "NaN or infinity in episode 1"),
            ("rewards", np.ones((10, 2)), r"got shape \(10, 2\)"),
            ("rewards", None, "allowed are real numbers"),
            ("terminated", [True], "got 1 entries for 2 episodes"),
            ("terminated", [2, 3], "truth value"),
            ("lengths", [5.5, 4.5], "whole numbers"),
            ("lengths", 5, "whole numbers"),
            ("starts", "05", "allowed are real numbers"),
            ("dataset_id", None, "got NoneType, allowed is text"),
            ("observation_offset", [0.5, 0, 0], "3 whole numbers"),
        ],
    )
    def test_what_does_not_fit_is_named(self, name: str, value: Any, words: str) -> None:
        with pytest.raises(InputError, match=f"^{name}: .*{words}") as caught:
            Trajectories(**(self.PLAIN | {name: value}))
        assert "\n" not in str(caught.value)


class TestRefused:
    def test_images(self, make_dataset) -> None:
        images = np.zeros((3, 40, 40, 3), dtype=np.uint8)
        make_dataset("test/image-v0", [(images, *episode(2)[1:])], gym.spaces.Box(0, 255, (40, 40, 3), np.uint8))
        with pytest.raises(InputError, match=r"images of shape \(40, 40, 3\)"):
            load_trajectories("test/image-v0")

    @pytest.mark.parametrize(
        ("marks", "words"),
        [
            (
                {"terminations": [0, 1, 0, 0]},
                r"episode 1 of 'test/end-v0' ends at step 1 of 4 already \(terminations\)",
            ),
            ({"truncations": [1, 0, 0, 1]}, r"episode 1 of 'test/end-v0' ends at step 0 of 4 already \(truncations\)"),
        ],
    )
    def test_an_end_inside_an_episode(self, make_dataset, datasets_path, marks, words: str) -> None:
        make_dataset("test/end-v0", [episode(3), episode(4)], BOX)
        with h5py.File(datasets_path / "test/end-v0/data/main_data.hdf5", "r+") as file:
            for name, values in marks.items():
                file[f"episode_1/{name}"][:] = np.array(values, dtype=bool)
        with pytest.raises(InputError, match=words):
            load_trajectories("test/end-v0")

    def test_several_rewards_per_step(self, make_dataset) -> None:
        observations, actions, rewards = episode(3)
        make_dataset("test/two-v0", [(observations, actions, np.stack([rewards] * 2, axis=1))], BOX)
        with pytest.raises(InputError, match=r"rewards: got shape \(3, 2\) in episode 0 of 'test/two-v0'"):
            load_trajectories("test/two-v0")

    def test_choices_that_do_not_exist(self, make_dataset) -> None:
        _, actions, rewards = episode(2)
        make_dataset("test/obs-v0", [(np.array([0, 1, 2]), actions, rewards)], gym.spaces.Discrete(2))
        with pytest.raises(InputError, match=r"observations: 2 is no choice of Discrete\(2\)"):
            load_trajectories("test/obs-v0")

    def test_discrete_actions_that_do_not_exist(self, make_dataset) -> None:
        observations, _, rewards = episode(2)
        make_dataset("test/act-v0", [(observations, np.array([0, 2]), rewards)], BOX, gym.spaces.Discrete(2))
        with pytest.raises(InputError, match=r"actions: 2 is no action of Discrete\(2\)"):
            load_trajectories("test/act-v0")

    @pytest.mark.parametrize("name", ["observations", "actions", "rewards"])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_named_with_their_episode(self, make_dataset, name: str, bad: float) -> None:
        episodes = [episode(2), episode(3), episode(4)]
        episodes[1][("observations", "actions", "rewards").index(name)][1] = bad
        make_dataset("test/nan-v0", episodes, BOX)
        with pytest.raises(InputError, match=f"{name}: NaN or infinity in episode 1 of 'test/nan-v0'"):
            load_trajectories("test/nan-v0")

    def test_empty_episode(self, make_dataset, datasets_path) -> None:
        make_dataset("test/empty-v0", [episode(2), episode(3)], BOX)
        with h5py.File(datasets_path / "test/empty-v0/data/main_data.hdf5", "a") as file:
            for name, array in file["episode_1"].items():
                array.resize(1 if name == "observations" else 0, axis=0)
        with pytest.raises(InputError, match="episode 1 of 'test/empty-v0' has no transitions"):
            load_trajectories("test/empty-v0")

    def test_missing_last_observation(self, make_dataset, datasets_path) -> None:
        make_dataset("test/short-v0", [episode(3)], BOX)
        with h5py.File(datasets_path / "test/short-v0/data/main_data.hdf5", "a") as file:
            file["episode_0/observations"].resize(3, axis=0)
        with pytest.raises(
            InputError, match="episode 0 of 'test/short-v0' has 3 observations and 3 actions for 3 rewards"
        ):
            load_trajectories("test/short-v0")

    def test_no_episodes(self, make_dataset) -> None:
        make_dataset("test/none-v0", [], BOX)
        with pytest.raises(InputError, match="has no episodes"):
            load_trajectories("test/none-v0")
