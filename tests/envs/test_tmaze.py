from __future__ import annotations

import functools
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dmm.envs  # noqa: F401
from dmm.data.policies.corridor import CorridorWalker
from dmm.data.recipes import find_recipe
from dmm.data.rollout import Recorder
from dmm.envs.tmaze import TMaze
from dmm.errors import InputError

UP, DOWN, LEFT, RIGHT = range(4)


def run(env: TMaze, actions: list[int], cue: int) -> tuple[list[list[float]], list[float], list[bool]]:
    observation, info = env.reset(options={"cue": cue})
    assert info == {"cue": cue}
    observations, rewards, ends = [observation.tolist()], [], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        observations.append(observation.tolist())
        rewards.append(reward)
        ends.append(terminated)
    return observations, rewards, ends


def test_gymnasiums_checker_passes() -> None:
    check_env(gym.make("dmm/TMaze-v0", render_mode="rgb_array", length=4).unwrapped)


@pytest.mark.parametrize(("cue", "turn"), [(1, UP), (-1, DOWN)])
def test_the_cue_is_seen_once_and_the_right_turn_is_rewarded_at_the_last_step(cue: int, turn: int) -> None:
    observations, rewards, ends = run(TMaze(3), [RIGHT, RIGHT, RIGHT, turn], cue)
    assert observations == [[0, 0, cue], [1, 0, 0], [2, 0, 0], [3, 0, 0], [3, cue, 0]]
    assert rewards == [0, 0, 0, 1] and ends == [False, False, False, True]
    assert run(TMaze(3), [RIGHT, RIGHT, RIGHT, UP + DOWN - turn], cue)[1] == [0, 0, 0, 0]


def test_walls_stop_and_a_step_wasted_is_the_reward_lost() -> None:
    observations, rewards, ends = run(TMaze(2), [LEFT, UP, RIGHT], 1)
    assert observations[1:] == [[0, 0, 0], [0, 0, 0], [1, 0, 0]] and not any(rewards) and ends[-1]
    assert run(TMaze(2), [RIGHT, RIGHT, RIGHT], 1)[0][-1] == [2, 0, 0]
    assert run(TMaze(3), [RIGHT, LEFT, RIGHT, RIGHT], 1)[0][-1] == [2, 0, 0]


@pytest.mark.parametrize("cue", [1, -1])
def test_one_sequence_of_actions_in_all_gets_the_reward(cue: int) -> None:
    winners = [actions for actions in product(range(4), repeat=4) if sum(run(TMaze(3), list(actions), cue)[1])]
    assert winners == [(RIGHT, RIGHT, RIGHT, UP if cue > 0 else DOWN)]
    recipe = find_recipe("dmm/tmaze/noisy-v0")
    assert recipe.reference == (0.25 ** (recipe.env_kwargs["length"] + 1), 1.0)


def test_a_seed_decides_the_cue_and_both_are_drawn() -> None:
    env = TMaze()
    cues = [env.reset(seed=seed)[1]["cue"] for seed in range(40)]
    assert cues == [env.reset(seed=seed)[0][2] for seed in range(40)] and 10 < cues.count(1) < 30


@pytest.mark.parametrize("length", [1, 4])
def test_vector_version_equals_single_environments(length: int) -> None:
    n, rng = 8, np.random.default_rng(0)
    envs = gym.make_vec("dmm/TMaze-v0", num_envs=n, length=length)
    singles = [gym.make("dmm/TMaze-v0", disable_env_checker=True, length=length) for _ in range(n)]
    total = 0.0
    for _ in range(20):
        cues = rng.choice((-1, 1), size=n)
        batch, infos = envs.reset(options={"cue": cues})
        for i, env in enumerate(singles):
            observation, info = env.reset(options={"cue": cues[i]})
            assert np.array_equal(batch[i], observation) and infos["cue"][i] == info["cue"]
        for _ in range(length + 1):
            actions = rng.choice(4, p=(0.2, 0.1, 0.1, 0.6), size=n)
            results = envs.step(actions)
            for i, env in enumerate(singles):
                for many, one in zip(results[:4], env.step(actions[i])[:4], strict=True):
                    np.testing.assert_array_equal(many[i], one)
            total += results[1].sum()
        assert results[2].all() and not results[3].any()
    assert total > 0
    observations, rewards, terminated, _, info = envs.step(np.full(n, RIGHT))  # resets by itself
    assert (observations[:, :2] == 0).all() and (observations[:, 2] == info["cue"]).all()
    assert not rewards.any() and not terminated.any()


def test_a_vector_of_one_cue_for_all_and_of_drawn_cues() -> None:
    envs = gym.make_vec("dmm/TMaze-v0", num_envs=200)
    assert (envs.reset(options={"cue": -1})[0][:, 2] == -1).all()
    assert 70 < (envs.reset(seed=0)[0][:, 2] == 1).sum() < 130


def test_picture_marks_the_right_arm() -> None:
    env = TMaze(8, render_mode="rgb_array")
    env.reset(options={"cue": 1})
    picture: Any = env.render()
    assert picture.shape == (120, 360, 3)
    assert picture[20, 340].tolist() == [230, 159, 0] and picture[100, 340].tolist() == [250, 250, 250]
    assert picture[60, 20].tolist() == [0, 114, 178] and picture[20, 20].tolist() == [90, 90, 90]
    assert TMaze(10_000, render_mode="rgb_array").length == 10_000 and TMaze().render() is None


def test_wrong_arguments_are_refused() -> None:
    for bad in (0, 1.5, "20"):
        with pytest.raises(InputError, match=r"length: got .*1 or more"):
            TMaze(bad)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"length: got .*1 or more"):
            gym.make_vec("dmm/TMaze-v0", num_envs=2, length=bad)
    envs = gym.make_vec("dmm/TMaze-v0", num_envs=2)
    for options in ({"cue": 0}, {"goal": (1, 1)}):
        for env in (TMaze(), envs):
            with pytest.raises(InputError, match=r"options: got .*'cue', 1 \(up\) or -1 \(down\)"):
                env.reset(options=options)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="of shape \\(3,\\)"):
        envs.reset(options={"cue": [1, 1, -1]})
    env = TMaze()
    env.reset()
    with pytest.raises(InputError, match="action: got 4; allowed: 0 to 3"):
        env.step(4)


def walk(recall: float, noise: float, episodes: int, length: int = 6) -> np.ndarray:
    env, behaviour, rng = TMaze(length), CorridorWalker(recall, noise), np.random.default_rng(0)
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        behaviour.begin(env, observation, rng)
        total, over = 0.0, False
        while not over:
            observation, reward, over, _, _ = env.step(behaviour.act(observation, rng))
            total += reward
        returns.append(total)
    return np.array(returns)


def test_scripted_agent_succeeds_as_often_as_its_formula_says() -> None:
    assert walk(1.0, 0.0, 50).all()
    for recall, noise in ((0.0, 0.0), (0.5, 0.05), (0.9, 0.2)):
        expected = (1 - 0.75 * noise) ** 6 * ((1 - noise) * (1 + recall) / 2 + noise / 4)
        assert walk(recall, noise, 1500).mean() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("steps", [1_000, 2_000, 5_000, 10_000, 20_000])
def test_long_mazes_have_the_papers_horizons_and_noise_that_fits(steps: int) -> None:
    recipe, short = find_recipe(f"dmm/tmaze/noisy-{steps}-v0"), find_recipe("dmm/tmaze/noisy-v0")
    walker, usual = recipe.behaviour(), short.behaviour()  # type: ignore[misc]
    assert isinstance(walker, CorridorWalker) and isinstance(usual, CorridorWalker)
    length = recipe.env_kwargs["length"]
    in_step = (1 - 0.75 * walker.noise) ** length
    assert in_step == pytest.approx((1 - 0.75 * usual.noise) ** 20, abs=0.002) and 0.73 < in_step < 0.75
    recorder = Recorder(recipe, seed=0)
    assert recorder.limit is None  # the environment's own end is the only one
    episode = recorder.episode(0)
    assert len(episode.rewards) == steps and episode.terminated and not episode.truncated
    assert np.abs(episode.observations[:, 2]).sum() == 1 and recipe.transitions % steps == 0
    recorder.env.reset(options={"cue": 1})
    for action in [RIGHT] * length + [UP]:
        _, reward, terminated, truncated, _ = recorder.env.step(action)
    assert (reward, terminated, truncated) == (1.0, True, False)


def test_as_many_walkers_succeed_in_a_long_maze() -> None:
    recorder = Recorder(find_recipe("dmm/tmaze/noisy-1000-v0"), seed=0)
    arrived = np.mean([recorder.episode(number).rewards.sum() for number in range(150)])
    assert arrived == pytest.approx(0.74 * 0.75, abs=0.13)


def test_recorded_episodes_show_the_cue_at_first_only_and_about_half_succeed() -> None:
    recorder = Recorder(find_recipe("dmm/tmaze/noisy-v0"), seed=0)
    episodes = [recorder.episode(number) for number in range(300)]
    assert all(np.abs(episode.observations[:, 2]).tolist() == [1] + [0] * 21 for episode in episodes)
    assert {episode.terminated for episode in episodes} == {True}
    assert np.mean([episode.rewards.sum() for episode in episodes]) == pytest.approx(0.547, abs=0.1)
    assert isinstance(find_recipe("dmm/tmaze/noisy-v0").behaviour, functools.partial)
