from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dmm.data.observations import build_env
from dmm.data.policies.kitchen import MOVES, KitchenExpert
from dmm.data.recipes.kitchen import COMPLETE_TASKS, MIXED_ORDERS, MIXED_TASKS, PARTIAL_ORDERS, RECIPES
from dmm.errors import InputError

RECIPE = {recipe.name.split("/")[-1]: recipe for recipe in RECIPES}


@pytest.fixture(scope="module")
def env() -> Iterator[gym.Env]:
    env = build_env("dmm/Kitchen-v0", tasks=tuple(MOVES))
    yield env
    env.close()


def play(env: gym.Env, expert: KitchenExpert, seed: int, steps: int = 280) -> tuple[dict[str, int], np.ndarray]:
    """The step at which each task is completed, and the actions; stops when the expert's order is done."""
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    expert.begin(env, observation, rng)
    done: dict[str, int] = {}
    actions = []
    for step in range(1, steps + 1):
        actions.append(expert.act(observation, rng))
        observation, _, _, _, info = env.step(actions[-1])
        done |= dict.fromkeys(info["step_task_completions"], step)
        if set(expert.order) <= set(done):
            break
    return done, np.array(actions)


@pytest.mark.parametrize("order", [COMPLETE_TASKS, MIXED_TASKS], ids=["complete", "mixed"])
def test_four_tasks_in_a_row_fit_into_an_episode(env: gym.Env, order: tuple[str, ...]) -> None:
    results = [play(env, KitchenExpert([order]), seed)[0] for seed in range(3)]
    solved = [done for done in results if tuple(done) == order]  # in that order, and nothing else by accident
    assert len(solved) >= 2
    assert max(max(done.values()) for done in solved) < 200


def test_another_order_works_with_noise_at_a_slower_pace(env: gym.Env) -> None:
    order = ("slide cabinet", "bottom burner", "kettle", "microwave")
    results = [play(env, KitchenExpert([order], noise=0.1, pace=(0.8, 0.8)), seed)[0] for seed in range(2)]
    assert sum(tuple(done) == order for done in results) >= 1


def test_a_task_that_is_given_up_is_left_undone_and_the_arm_then_rests(env: gym.Env) -> None:
    expert = KitchenExpert([("light switch", "kettle")], gives_up=1.0)
    done, actions = play(env, expert, seed=0, steps=130)
    assert not done
    assert expert.arm.away_from_posture() < 0.05
    np.testing.assert_allclose(actions[-1][:7], actions[-2][:7], atol=0.05)
    assert np.abs(actions[:, :7]).max() > 0.9  # it did move before


def test_the_same_generator_gives_the_same_episode(env: gym.Env) -> None:
    expert = KitchenExpert(PARTIAL_ORDERS, noise=0.2, pace=(0.5, 1.0), gives_up=0.3)
    first = play(env, expert, seed=4, steps=60)[1]
    play(env, expert, seed=5, steps=7)
    np.testing.assert_array_equal(first, play(env, expert, seed=4, steps=60)[1])
    assert first.dtype == np.float32 and first.shape == (60, 9) and np.abs(first).max() <= 1.0


def test_noise_and_pace_are_what_they_are_called(env: gym.Env) -> None:
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    expert = KitchenExpert([()], noise=0.1)
    expert.begin(env, observation, rng)
    actions = np.array([expert.act(observation, rng) for _ in range(3000)])  # without a step: always the same state
    assert actions[:, :7].std(axis=0) == pytest.approx(np.full(7, 0.1), rel=0.1)
    fast, slow = (play(env, KitchenExpert([("slide cabinet",)], pace=(p, p)), seed=0)[0] for p in (1.0, 0.5))
    assert slow["slide cabinet"] > 1.3 * fast["slide cabinet"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("orders", {"orders": []}),
        ("orders", {"orders": [("kettle", "hinge cabinet")]}),
        ("orders", {"orders": ["kettle"]}),  # a string is not a sequence of tasks
        ("noise", {"orders": [("kettle",)], "noise": -1.0}),
        ("pace", {"orders": [("kettle",)], "pace": (0.0, 1.0)}),
        ("pace", {"orders": [("kettle",)], "pace": (0.9, 0.8)}),
        ("gives_up", {"orders": [("kettle",)], "gives_up": 1.5}),
    ],
)
def test_bad_arguments_are_named(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{name}: got .*; allowed: "):
        KitchenExpert(**arguments)


def draw(env: gym.Env, name: str, count: int) -> list[tuple[frozenset[str], int]]:
    """What an episode's plan is and how much of it counts, for `count` episodes, without playing them."""
    recipe: Any = RECIPE[name]
    expert = recipe.behaviour()
    observation, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    plans = []
    for _ in range(count):
        expert.begin(env, observation, rng)
        done = frozenset(expert.order) - expert.given_up
        plans.append((done, len(done & set(recipe.env_kwargs["tasks"]))))
    return plans


def test_every_complete_episode_does_all_four_tasks(env: gym.Env) -> None:
    assert set(draw(env, "complete-v0", 50)) == {(frozenset(COMPLETE_TASKS), 4)}


def test_few_partial_episodes_do_all_four_tasks(env: gym.Env) -> None:
    plans = draw(env, "partial-v0", 2000)
    shares = Counter(score for _, score in plans)
    assert 0.03 < shares[4] / 2000 < 0.13
    assert min(shares[2], shares[3]) > 200
    assert sum("bottom burner" in done for done, _ in plans) > 1000


def test_no_mixed_episode_does_all_four_tasks(env: gym.Env) -> None:
    plans = draw(env, "mixed-v0", 2000)
    assert max(score for _, score in plans) == 3
    for task in MIXED_TASKS:  # but each of them is often done, so that they can be stitched
        assert sum(task in done for done, _ in plans) > 800
    assert all(len(set(order)) == 4 and set(order) != set(MIXED_TASKS) for order in MIXED_ORDERS)


def test_most_episodes_keep_the_usual_order() -> None:
    usual = list(MOVES)
    in_order = [sorted(order, key=usual.index) == list(order) for order in MIXED_ORDERS]
    assert np.mean(in_order) == 0.75 and len(set(MIXED_ORDERS)) == 16
    assert PARTIAL_ORDERS.count(COMPLETE_TASKS) / len(PARTIAL_ORDERS) == pytest.approx(1 / 9)


def test_the_recipes_have_the_sizes_and_the_rewards_of_d4rl() -> None:
    assert [recipe.transitions for recipe in RECIPES] == [3_680, 136_950, 136_950]
    assert {(recipe.rewards, recipe.reference, recipe.observation_keys) for recipe in RECIPES} == {
        ("cumulative", (0.0, 4.0), ())
    }
    assert [recipe.env_kwargs["tasks"] for recipe in RECIPES] == [COMPLETE_TASKS, COMPLETE_TASKS, MIXED_TASKS]
