from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy import sparse

import dmm.envs  # noqa: F401
from dmm.data.recipes import RECIPES
from dmm.envs.grid import ACTIONS, MOVES, Cell, Darkroom
from dmm.envs.tasks import hidden_parts
from dmm.envs.vector import VectorKeyToDoor
from dmm.errors import InputError

ROOMS = {
    "Darkroom": (9, 20),
    "DarkroomHard": (9, 20),
    "KeyToDoor": (9, 50),
    "DarkroomDynamic": (9, 20),
    "LargeDarkroom": (40, 200),
    "LargeDarkroomHard": (40, 200),
    "LargeKeyToDoor": (40, 500),
    "LargeDarkroomDynamic": (40, 200),
}
NOOP, UP, DOWN, LEFT, RIGHT = range(5)


def make(name: str, **kwargs: Any) -> gym.Env:
    return gym.make(f"dmm/{name}-v0", disable_env_checker=True, **kwargs)


def rewards_of(env: gym.Env, actions: list[int], **options: Cell) -> list[float]:
    env.reset(seed=0, options=options)
    return [float(env.step(action)[1]) for action in actions]


@pytest.mark.parametrize("name", ROOMS)
def test_gymnasiums_checker_passes(name: str) -> None:
    check_env(make(name, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("name", ROOMS)
def test_an_episode_is_cut_at_its_length_and_tells_only_where_the_agent_is(name: str) -> None:
    size, steps = ROOMS[name]
    env = make(name)
    observation, _ = env.reset(seed=5, options={"start": (1, size - 1)})
    assert observation.tolist() == [1, size - 1] and observation.dtype == np.float32
    ends = [env.step(NOOP)[2:4] for _ in range(steps)]
    assert ends == [(False, False)] * (steps - 1) + [(False, True)]
    assert env.observation_space == gym.spaces.Box(0, size - 1, (2,), np.float32)


def test_actions_move_as_they_are_called_and_walls_stop_them() -> None:
    env = make("Darkroom")
    env.reset(seed=0)
    walk = [(RIGHT, (5, 4)), (UP, (5, 5)), (LEFT, (4, 5)), (DOWN, (4, 4)), (NOOP, (4, 4))]
    assert [tuple(env.step(action)[0]) for action, _ in walk] == [cell for _, cell in walk]
    for action, corner in ((LEFT, (0, 8)), (UP, (0, 8)), (DOWN, (8, 0)), (RIGHT, (8, 0))):
        env.reset(options={"start": corner})
        assert env.step(action)[0].tolist() == list(corner)
    assert len(ACTIONS) == len(MOVES) == env.action_space.n  # type: ignore[attr-defined]


def test_darkroom_rewards_each_step_on_the_goal() -> None:
    actions = [RIGHT, RIGHT, NOOP, LEFT, RIGHT]
    assert rewards_of(make("Darkroom"), actions, goal=(6, 4)) == [0, 1, 1, 0, 1]
    assert rewards_of(make("Darkroom"), [NOOP, UP, DOWN], goal=(4, 4)) == [1, 0, 1]
    assert rewards_of(make("LargeDarkroom"), [DOWN, DOWN, NOOP], goal=(20, 18)) == [0, 1, 1]


def test_darkroom_hard_rewards_the_first_step_on_the_goal() -> None:
    env = make("DarkroomHard")
    for _ in range(2):  # the second episode starts afresh
        assert rewards_of(env, [RIGHT, NOOP, LEFT, RIGHT], goal=(5, 4)) == [1, 0, 0, 0]


def test_key_then_door_are_rewarded_once_each_and_in_this_order() -> None:
    env = make("KeyToDoor")
    task: Any = {"start": (0, 0), "key": (2, 0), "door": (1, 0)}
    for _ in range(2):
        assert rewards_of(env, [RIGHT, RIGHT, LEFT, RIGHT, LEFT, NOOP], **task) == [0, 1, 1, 0, 0, 0]
    env.reset(options=task)
    assert [env.step(action)[4]["has_key"] for action in (RIGHT, RIGHT, LEFT)] == [False, True, True]


def test_an_action_of_a_dynamic_room_makes_the_move_that_the_permutation_names() -> None:
    env = make("DarkroomDynamic")
    _, info = env.reset(options={"permutation": [4, 3, 2, 1, 0], "start": (7, 8)})
    assert info["permutation"].tolist() == [4, 3, 2, 1, 0]
    walk = [env.step(action)[:2] for action in (3, 0, 4, 2, 1, 0)]  # up, right, noop, down, left, right
    assert [(*cell, reward) for cell, reward in walk] == [
        *((7, 8, 0), (8, 8, 1), (8, 8, 1)),
        *((8, 7, 0), (7, 7, 0), (8, 7, 0)),
    ]
    env.reset(options={"permutation": list(range(5))})
    assert [env.step(action)[0].tolist() for action in (RIGHT, UP)] == [[5, 4], [5, 5]]


def test_permutations_are_drawn_uniformly() -> None:
    env = make("DarkroomDynamic")
    drawn = [tuple(env.reset(seed=seed)[1]["permutation"].tolist()) for seed in range(1200)]
    assert len(set(drawn)) == 120 and max(map(drawn.count, set(drawn))) < 30  # 10 expected
    rows = gym.make_vec("dmm/DarkroomDynamic-v0", num_envs=2400).reset(seed=0)[1]["permutation"].tolist()
    assert len(set(map(tuple, rows))) == 120 and max(map(rows.count, rows)) < 45


def greedy_return(env: gym.Env, names: tuple[str, ...]) -> float:
    """Walks straight to each hidden cell in turn and stays there."""
    observation, _ = env.reset()
    task, meaning = env.unwrapped.task, getattr(env.unwrapped, "permutation", np.arange(5)).tolist()  # type: ignore[attr-defined]
    targets, total, over = [np.array(task[name]) for name in names], 0.0, False
    while not over:
        dx, dy = targets[0] - observation
        action = (RIGHT if dx > 0 else LEFT) if dx else (UP if dy > 0 else DOWN) if dy else NOOP
        observation, reward, _, over, _ = env.step(meaning.index(action))
        total += float(reward)
        if reward and len(targets) > 1:
            targets.pop(0)
    return total


def distances(size: int) -> np.ndarray:
    """Steps from the centre to each cell, by breadth-first search over the environment's own moves."""
    found, queue = {(size // 2, size // 2): 0}, [(size // 2, size // 2)]
    for x, y in queue:
        for right, up in MOVES:
            near = (x + right, y + up)
            if near not in found and set(near) <= set(range(size)):
                found[near] = found[x, y] + 1
                queue.append(near)
    return np.array([[found[x, y] for y in range(size)] for x in range(size)])


def recipe_of(name: str) -> Any:
    """The first one; those of other learners have its references."""
    first, *others = [recipe for recipe in RECIPES.values() if recipe.env_id == f"dmm/{name}-v0"]
    assert all(recipe.reference == first.reference for recipe in others)
    return first


@pytest.mark.parametrize("name", ["Darkroom", "LargeDarkroom"])
def test_best_return_is_what_breadth_first_search_says(name: str) -> None:
    size, steps = ROOMS[name]
    best = steps + 1 - np.maximum(distances(size), 1)
    assert recipe_of(name).reference[1] == pytest.approx(best.mean())
    env = make(name)
    for seed in range(20):
        env.reset(seed=seed)  # the next reset goes on with its generator
        goal = greedy_return(env, ("goal",)), tuple(env.unwrapped.task["goal"])  # type: ignore[attr-defined]
        assert goal[0] == best[goal[1]]


def test_mean_best_return_of_the_darkroom_is_16_54() -> None:
    assert round(recipe_of("Darkroom").reference[1], 2) == 16.54


@pytest.mark.parametrize("name", [name for name in ROOMS if name not in ("Darkroom", "LargeDarkroom")])
def test_who_knows_the_task_gets_everything(name: str) -> None:
    env, names = make(name), ("key", "door") if "Key" in name else ("goal",)
    env.reset(seed=0)
    episodes = 200 if ROOMS[name][0] == 9 else 20
    assert {greedy_return(env, names) for _ in range(episodes)} == {recipe_of(name).reference[1]}


def random_walk(size: int) -> sparse.csr_array:
    """`[start, end]`: probability that one random action leads from cell to cell."""
    cells, count = np.array([(x, y) for x in range(size) for y in range(size)]), size**2
    ends = np.concatenate([np.clip(cells + move, 0, size - 1) @ (size, 1) for move in MOVES])
    starts = np.tile(np.arange(count), len(MOVES))
    return sparse.csr_array((np.full(len(ends), 1 / len(MOVES)), (starts, ends)), shape=(count, count))


def first_hits(size: int, steps: int) -> Iterator[np.ndarray]:
    """For each step, `[start, goal]`: probability that random actions then lead onto the goal for the first time."""
    chain = random_walk(size)
    hits = chain.toarray()
    for _ in range(steps):
        yield hits
        hits = chain @ (hits * (1 - np.eye(size**2)))


def random_return_of_a_key_room(size: int, steps: int) -> float:
    """The key, from any start; and the door in the steps that are left, from the key, wherever else it is."""
    keys, doors, within = [], [], np.zeros((size**2, size**2))
    for hits in first_hits(size, steps):
        within += hits
        keys.append(hits.mean(axis=0))
        doors.append((within.sum(axis=1) - within.diagonal()) / (size**2 - 1))  # by a step after the key
    both = sum((key * door).mean() for key, door in zip(keys[:-1], reversed(doors[:-1]), strict=True))
    return float(np.mean(keys, axis=1).sum() + both)


def test_random_returns_are_those_of_the_markov_chain() -> None:
    assert recipe_of("Darkroom").reference[0] == 20 / 81  # whatever the walk, 1 goal in 81 is where it stands
    assert recipe_of("LargeDarkroom").reference[0] == 200 / 1600
    for name in ("DarkroomHard", "LargeDarkroomHard"):
        size, steps = ROOMS[name]
        centre = size // 2 * (size + 1)
        found = sum(hits[centre].mean() for hits in first_hits(size, steps))
        assert recipe_of(name).reference[0] == pytest.approx(found)
    for name in ("DarkroomDynamic", "LargeDarkroomDynamic"):
        size, steps = ROOMS[name]
        chain, place, total = random_walk(size).T, np.zeros(size**2), 0.0
        place[size // 2 * (size + 1)] = 1.0
        for _ in range(steps):
            place = chain @ place
            total += place[-1]
        assert recipe_of(name).reference[0] == pytest.approx(total)


@pytest.mark.parametrize("name", ["KeyToDoor", "LargeKeyToDoor"])
def test_random_returns_of_key_rooms_are_those_of_the_markov_chain(name: str) -> None:
    assert recipe_of(name).reference[0] == pytest.approx(random_return_of_a_key_room(*ROOMS[name]))


@pytest.mark.parametrize("name", ["Darkroom", "DarkroomHard", "KeyToDoor", "DarkroomDynamic"])
def test_vectorised_random_actions_get_the_random_return(name: str) -> None:
    envs, rng = gym.make_vec(f"dmm/{name}-v0", num_envs=20_000), np.random.default_rng(0)
    envs.reset(seed=1)
    returns = sum(envs.step(rng.integers(5, size=20_000))[1] for _ in range(ROOMS[name][1]))
    error = np.std(returns) / np.sqrt(20_000)
    assert np.mean(returns) == pytest.approx(recipe_of(name).reference[0], abs=4 * error)


@pytest.mark.parametrize("name", ROOMS)
def test_a_seed_decides_the_task_and_options_fix_it(name: str) -> None:
    env = make(name)
    names = hidden_parts(env)

    def task(**kwargs: Any) -> list[list[int]]:
        info = env.reset(**kwargs)[1]
        return [info[each].tolist() for each in names]

    assert task(seed=3) == task(seed=3) != task(seed=4)
    assert len({str(task()) for _ in range(30)}) > 15
    fixed: dict[str, Any] = {each: (i, 2) for i, each in enumerate(names)}
    fixed |= {each: (2, 0, 1, 4, 3) for each in names if each == "permutation"}
    assert task(options=fixed) == task(seed=9, options=fixed) == [list(cell) for cell in fixed.values()]


def test_drawn_goals_are_uniform_and_key_and_door_differ() -> None:
    env = make("KeyToDoor", size=2)
    pairs = [tuple(map(tuple, env.reset(seed=seed)[1].values())) for seed in range(600)]
    counts = [pairs.count(pair) for pair in set(pairs)]
    assert len(counts) == 12 and min(counts) > 25  # 50 expected
    envs = VectorKeyToDoor(6000, 50, size=2)
    _, info = envs.reset(seed=0)
    counts = np.unique(np.hstack([info["key"], info["door"]]), axis=0, return_counts=True)[1].tolist()
    assert len(counts) == 12 and min(counts) > 400
    _, info = envs.reset(options={"door": (1, 0)})
    assert len(np.unique(info["key"], axis=0)) == 3 and (info["door"] == (1, 0)).all()


@pytest.mark.parametrize("name", ROOMS)
def test_vector_version_equals_single_environments(name: str) -> None:
    n, (size, steps) = 6, ROOMS[name]
    rng = np.random.default_rng(0)
    envs = gym.make_vec(f"dmm/{name}-v0", num_envs=n)
    singles = [make(name) for _ in range(n)]
    assert not isinstance(envs, SyncVectorEnv) and envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    names = singles[0].unwrapped.TASK  # type: ignore[attr-defined]
    middle, total = size // 2 if names else size - 2, 0.0
    for _ in range(2):
        near = middle + rng.permuted(np.tile(np.arange(5) - 2, (n, 1)), axis=1)  # tasks that random walks solve
        options: dict[str, Any] = {each: near[:, i : i + 2] for i, each in enumerate(names)}
        options["start"] = rng.integers(middle - 1, middle + 2, size=(n, 2))
        if not names:
            options["permutation"] = rng.permuted(np.tile(np.arange(5), (n, 1)), axis=1)
        batch, infos = envs.reset(options=options)
        for i, env in enumerate(singles):
            observation, info = env.reset(options={key: value[i] for key, value in options.items()})
            assert_row((batch, infos), (observation, info), i)
        for _ in range(steps):
            actions = rng.integers(5, size=n)
            results = envs.step(actions)
            for i, env in enumerate(singles):
                assert_row(results, env.step(int(actions[i])), i)
            total += results[1].sum()
        assert results[3].all()
    assert total > 0


def assert_row(batch: tuple[Any, ...], single: tuple[Any, ...], i: int) -> None:
    """Environment i's part of a vector environment's answer is the single environment's answer."""
    for many, one in zip(batch[:-1], single[:-1], strict=True):
        np.testing.assert_array_equal(many[i], one)
    assert {key for key in batch[-1] if not key.startswith("_")} == set(single[-1])
    for key, value in single[-1].items():
        np.testing.assert_array_equal(batch[-1][key][i], value)
        assert batch[-1][f"_{key}"].all()


def test_vector_answers_have_the_form_of_gymnasiums_own_and_reset_at_the_same_step() -> None:
    ours, theirs = (gym.make_vec("dmm/KeyToDoor-v0", 3, vectorization_mode=mode) for mode in (None, "sync"))
    options = {"key": (1, 1), "door": (5, 5), "start": (4, 4)}
    answers = [envs.reset(seed=0, options=options) for envs in (ours, theirs)]
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    for step in range(120):
        actions = np.full(3, step % 5)
        mine, other = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine[:4], other[:4], strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_array_equal(mine[2:4], other[2:4])
        assert mine[4].keys() == other[4].keys() and ("key" in mine[4]) == (step in (50, 101))
        assert all(mine[4][key].shape == other[4][key].shape for key in mine[4])
        if step in (50, 101):  # the step that resets: no reward, a new task, a first observation
            assert not mine[1].any() and not mine[3].any()
    assert ours.single_action_space == theirs.single_action_space
    assert ours.observation_space == theirs.observation_space


def test_a_vector_seed_decides_tasks_and_those_of_later_episodes() -> None:
    def run(seed: int) -> np.ndarray:
        envs = gym.make_vec("dmm/KeyToDoor-v0", num_envs=4)
        rows = [envs.reset(seed=seed)[1]["key"]]
        rows += [info["key"] for info in (envs.step(np.zeros(4, dtype=int))[4] for _ in range(102)) if "key" in info]
        return np.stack(rows)  # (3, 4, 2)

    np.testing.assert_array_equal(run(1), run(1))
    assert len(np.unique(run(1).reshape(-1, 2), axis=0)) > 8 and not np.array_equal(run(1), run(2))


def test_picture_shows_goal_and_agent_and_the_key_until_it_is_taken() -> None:
    env = make("KeyToDoor", render_mode="rgb_array")
    env.reset(options={"start": (0, 0), "key": (1, 0), "door": (8, 8)})
    before: Any = env.render()
    assert before.shape == (360, 360, 3) and before.dtype == np.uint8
    assert before[340, 20].tolist() == [0, 114, 178] and before[20, 340].tolist() == [230, 159, 0]
    assert before[340, 60].tolist() == [0, 158, 115]
    env.step(RIGHT)
    env.step(LEFT)
    after: Any = env.render()
    assert after[340, 60].tolist() == [250, 250, 250]
    assert make("Darkroom").unwrapped.render() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": (9, 0)}, "goal.*from 0 to 8"),
        ({"goal": (-1, 0)}, "goal.*from 0 to 8"),
        ({"goal": (0.5, 1)}, "goal.*whole numbers"),
        ({"goal": 3}, "goal.*each \\(x, y\\)"),
        ({"key": (1, 1)}, "'key'.*allowed: goal, start"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    for env in (make("Darkroom"), gym.make_vec("dmm/Darkroom-v0", num_envs=2)):
        with pytest.raises(InputError, match=f"options: got .*{message}"):
            env.reset(options=options)


@pytest.mark.parametrize("wrong", [(0, 1, 2, 3, 3), (1, 2, 3, 4, 5), (0, 1, 2, 3), (0.0, 1, 2, 3, 4), 3, "up"])
def test_wrong_permutations_are_refused(wrong: Any) -> None:
    for env in (make("DarkroomDynamic"), gym.make_vec("dmm/DarkroomDynamic-v0", num_envs=2)):
        with pytest.raises(InputError, match=r"options: got 'permutation': .*0 to 4, each once, of shape \(5,\)"):
            env.reset(options={"permutation": wrong})
        with pytest.raises(InputError, match=r"options: got 'goal'"):
            env.reset(options={"goal": (1, 1)})
    with pytest.raises(InputError, match=r"of shape \(5,\)$"):
        make("DarkroomDynamic").reset(options={"permutation": [range(5)] * 2})


def test_wrong_arguments_and_actions_are_refused() -> None:
    for bad in (1, 2.5, True, "9"):
        with pytest.raises(InputError, match=r"size: got .*2 or more"):
            Darkroom(size=bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="render_mode: got 'human'"):
        Darkroom(render_mode="human")
    with pytest.raises(InputError, match="cells that differ"):
        make("KeyToDoor").reset(options={"key": (1, 1), "door": (1, 1)})
    with pytest.raises(InputError, match="cells that differ"):
        VectorKeyToDoor(2, 50).reset(options={"key": (1, 1), "door": [(1, 1), (2, 2)]})
    with pytest.raises(InputError, match="num_envs: got 0"):
        gym.make_vec("dmm/Darkroom-v0", num_envs=0)
    env, envs = make("Darkroom"), gym.make_vec("dmm/Darkroom-v0", num_envs=2)
    env.reset()
    for action in (5, -1, 0.5, "up", None):
        with pytest.raises(InputError, match=r"action: got .*0 to 4 \(noop, up"):
            env.step(action)
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros(2, dtype=int))
    envs.reset()
    for actions in ([0, 5], [0], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(InputError, match=r"actions: got .*2 whole numbers from 0 to 4"):
            envs.step(np.array(actions))
    with pytest.raises(InputError, match="of shape \\(3, 2\\)"):
        envs.reset(options={"goal": np.ones((3, 2), dtype=int)})
