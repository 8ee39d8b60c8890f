from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from dmm.data import faults
from dmm.data.observations import build_env
from dmm.data.policies.waypoints import MazeWalker
from dmm.data.recipes import RECIPES, Recipe
from dmm.data.rollout import RecordedEpisode, Recorder, blocks, record
from dmm.errors import InputError, RunError

MAZE, HOPPER = RECIPES["dmm/pointmaze/umaze-v0"], RECIPES["dmm/hopper/medium-v0"]


def assert_same(first: RecordedEpisode, second: RecordedEpisode) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, dict):
            assert all(np.array_equal(value[key], other[key]) for key in value | other)
        else:
            assert np.array_equal(value, other), name


@pytest.mark.parametrize("recipe", [MAZE, HOPPER], ids=lambda recipe: recipe.env_id)
def test_an_episode_depends_on_seed_and_number_alone(recipe) -> None:
    recorder = Recorder(recipe, seed=3)
    in_order = [recorder.episode(number) for number in range(4)]
    for number in (3, 0, 2):  # another order, and an environment that has seen other episodes
        assert_same(recorder.episode(number), in_order[number])
    assert_same(Recorder(recipe, seed=3).episode(3), in_order[3])
    assert not np.array_equal(Recorder(recipe, seed=4).episode(3).actions, in_order[3].actions)


@pytest.mark.parametrize("recipe", [MAZE, HOPPER], ids=lambda recipe: recipe.env_id)
def test_recorded_actions_lead_to_the_recorded_observations(recipe) -> None:
    episode = Recorder(recipe, seed=0).episode(1)
    env = build_env(recipe.env_id, **recipe.env_kwargs)
    observation, _ = env.reset(seed=episode.seed)
    for step, action in enumerate(episode.actions):
        stored = episode.observations
        stored = {key: stored[key][step] for key in stored} if isinstance(stored, dict) else stored[step]
        np.testing.assert_equal(observation, stored)
        observation, reward, terminated, truncated, _ = env.step(action)
        assert reward == episode.rewards[step]
    assert (terminated, truncated) == (episode.terminated, episode.truncated)
    assert episode.actions.dtype == np.float32 and np.abs(episode.actions).max() <= 1
    env.close()


def test_an_episode_that_would_never_end_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dmm.data.rollout.STEP_LIMIT", 5)
    faults.say_once.cache_clear()
    endless = dataclasses.replace(MAZE, env_kwargs={**MAZE.env_kwargs, "max_episode_steps": -1})
    recorder = Recorder(endless, seed=0)
    for number in range(2):
        episode = recorder.episode(number)
        assert (len(episode.rewards), episode.truncated, episode.terminated) == (5, True, False)
        assert_same(recorder.episode(number), episode)
    assert capsys.readouterr().err.count("has no time limit; an episode was ended after 5 steps") == 1
    assert len(Recorder(MAZE, seed=0).episode(0).rewards) > 5
    recorder.env.close()


def test_a_script_without_main_guard_can_use_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('script runs')\n"
        "from dmm.data.recipes import RECIPES\n"
        "from dmm.data.rollout import record\n"
        "episodes = record(RECIPES['dmm/pointmaze/umaze-v0'], 0, workers=2, transitions=10**6)\n"
        "print(next(episodes).seed)\n"
        "episodes.close()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == ["script runs", str(Recorder(MAZE, 0).episode(0).seed), ""]


def test_a_worker_that_cannot_start_ends_the_recording() -> None:
    broken = dataclasses.replace(HOPPER, env_kwargs={"max_episode_steps": 5, "frame_skip": "x"})
    with pytest.raises(BrokenProcessPool), closing(record(broken, 0, workers=2, transitions=100)) as episodes:
        next(episodes)


STAGED = dataclasses.replace(
    MAZE,
    name="dmm/test/staged-v0",
    behaviour=None,
    stages=tuple(functools.partial(MazeWalker, seek_probability=p, noise=0.5) for p in (0.0, 1.0)),
    block=300,
)


class Counter:
    """Pulls the same way for a whole block and counts what it learns from."""

    made: ClassVar[list[Counter]] = []

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self.episodes = self.tasks = 0
        self.made.append(self)

    def options(self, rng: np.random.Generator) -> dict[str, object]:
        self.tasks += 1
        return {"goal_cell": np.array([1, 1])}

    def begin(self, env: object, observation: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        self.episodes += 1
        self.goal = observation["desired_goal"]

    def act(self, observation: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        self.last = observation
        return np.array([-1.0, 0.5], dtype=np.float32)

    def learn(self, observation, action, reward, next_observation, terminated) -> None:  # type: ignore[no-untyped-def]
        assert observation is self.last and next_observation is not observation
        self.rewards.append(reward)


class TestStages:
    def test_blocks_share_the_transitions_equally_and_in_order(self) -> None:
        plan = blocks(STAGED, 1501)
        assert [block.index for block in plan] == list(range(6))
        assert [(block.stage, block.number) for block in plan] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
        assert [block.transitions for block in plan] == [300, 300, 150, 300, 300, 151]
        assert sum(block.transitions for block in blocks(STAGED, 7)) == 7

    def test_every_block_holds_whole_episodes_that_reach_its_transitions(self) -> None:
        episodes = list(record(STAGED, 0, 1, 1500))
        for block in blocks(STAGED, 1500):
            lengths = [len(episode.rewards) for episode in episodes if episode.block == block.index]
            assert sum(lengths) >= block.transitions > sum(lengths[:-1])
        assert [episode.block for episode in episodes] == sorted(episode.block for episode in episodes)
        first, second = ([e.rewards.sum() for e in episodes if (e.block > 2) is late] for late in (False, True))
        assert np.mean(second) == 1 > np.mean(first)  # wanderers first, then seekers

    def test_a_block_depends_on_the_seed_and_its_place_alone(self) -> None:
        plan, recorder = blocks(STAGED, 1500), Recorder(STAGED, 3)
        expected = list(recorder.block(plan[4]))
        list(recorder.block(plan[1]))
        for again in (list(recorder.block(plan[4])), list(Recorder(STAGED, 3).block(plan[4]))):
            for episode, other in zip(expected, again, strict=True):
                assert_same(episode, other)
        assert expected[0].seed not in {next(recorder.block(plan[i])).seed for i in (0, 1, 3, 5)}

    def test_workers_change_nothing(self) -> None:
        alone = list(record(STAGED, 5, 1, 900))
        shared = list(record(STAGED, 5, 2, 900))
        for episode, other in zip(alone, shared, strict=True):
            assert_same(episode, other)

    def test_a_learner_lives_through_its_block_and_sees_every_step(self) -> None:
        Counter.made.clear()
        recipe = dataclasses.replace(STAGED, stages=(Counter,), histories=True, block=400)
        episodes = list(record(recipe, 0, 1, 800))
        assert [len(learner.rewards) for learner in Counter.made] == [
            sum(len(e.rewards) for e in episodes if e.block == block) for block in (0, 1)
        ]
        assert [learner.tasks for learner in Counter.made] == [1, 1]
        assert [learner.episodes for learner in Counter.made] == [sum(e.block == b for e in episodes) for b in (0, 1)]
        goals = [episode.observations["desired_goal"][0] for episode in episodes]
        assert np.ptp(goals, axis=0).max() < 1  # all in the cell that the options name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": (Counter,)}, "recipe: got both of behaviour and stages"),
        ({"behaviour": None}, "recipe: got neither of behaviour and stages"),
        ({"histories": True}, "histories: got True"),
        ({"transitions": 0}, "transitions: got 0"),
        ({"block": 0}, "block: got 0"),
        ({"rewards": "summed"}, "rewards: got 'summed'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(MAZE, **change)  # type: ignore[arg-type]


def test_a_behaviour_that_workers_cannot_import_is_refused() -> None:
    recipe = dataclasses.replace(MAZE, behaviour=lambda: MazeWalker(1.0, 0.5))
    with pytest.raises(InputError, match=r"recipe: worker processes cannot import the behaviour of 'dmm/pointmaze"):
        next(record(recipe, 0, 2, 100))
    assert next(record(recipe, 0, 1, 100)).rewards.sum() == 1


def test_a_learner_belongs_in_a_stage() -> None:
    with pytest.raises(InputError, match=r"behaviour: 'dmm/pointmaze/umaze-v0' names a learner"):
        Recorder(dataclasses.replace(MAZE, behaviour=Counter), 0)


class Reusing(gym.Env):
    """Fills one array with each observation, pays with an array, and writes over the action it is given."""

    observation_space = gym.spaces.Dict(
        {"a": gym.spaces.Box(-9, 9, (2,), np.float64), "b": gym.spaces.Box(-9, 9, (1,), np.float64)}
    )
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    wrong: ClassVar[str] = ""

    def __init__(self) -> None:
        self.seen = {"a": np.zeros(2), "b": np.zeros(1)}
        self.paid = np.zeros(1)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def _look(self) -> dict[str, np.ndarray]:
        self.seen["a"][:] = self.steps
        self.seen["b"][:] = np.nan if self.wrong == "observation" and self.steps == 2 else -self.steps
        return self.seen

    def step(self, action):  # type: ignore[no-untyped-def]
        self.steps += 1
        self.paid[:] = np.inf if self.wrong == "reward" else self.steps
        action[:] = 7
        return self._look(), self.paid, self.steps == 3, False, {}


class Halving:
    """Returns one array for every action, and writes over what it sees."""

    def __init__(self) -> None:
        self.action = np.zeros(2, np.float32)
        self.lived: list[tuple[float, float]] = []

    def options(self, rng: np.random.Generator) -> dict[str, object]:
        return {}

    def begin(self, env: object, observation: object, rng: np.random.Generator) -> None:
        self.acted = 0

    def act(self, observation: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        self.acted += 1
        self.action[:] = 0.5**self.acted
        observation["a"] += 100
        return self.action


class Remembering(Halving):
    made: ClassVar[list[Remembering]] = []

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)

    def learn(self, observation, action, reward, next_observation, terminated) -> None:  # type: ignore[no-untyped-def]
        self.lived.append((float(observation["b"][0]), float(next_observation["b"][0])))


class TestReusedArrays:
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(gym.registry, "Reusing-v0", EnvSpec("Reusing-v0", entry_point=Reusing))

    def recipe(self, **changes: Any) -> Recipe:
        about: dict[str, Any] = {"name": "mine/reusing-v0", "transitions": 3, "behaviour_name": "", "description": ""}
        return Recipe(env_id="Reusing-v0", reference=(0.0, 1.0), **(about | {"behaviour": Halving} | changes))

    def test_every_step_is_recorded_as_it_was(self) -> None:
        episode = Recorder(self.recipe(), 0).episode(0)
        np.testing.assert_array_equal(episode.observations["a"][:, 0], [0, 1, 2, 3])
        np.testing.assert_array_equal(episode.observations["b"][:, 0], [0, -1, -2, -3])
        np.testing.assert_array_equal(episode.actions[:, 1], [0.5, 0.25, 0.125])
        np.testing.assert_array_equal(episode.rewards, [1, 2, 3])

    def test_a_learner_sees_what_was_before_and_what_came_after(self) -> None:
        Remembering.made.clear()
        recipe = self.recipe(behaviour=None, stages=(Remembering,), histories=True)
        assert len(list(record(recipe, 0, 1, 3))) == 1
        assert Remembering.made[0].lived == [(0, -1), (-1, -2), (-2, -3)]

    @pytest.mark.parametrize("wrong", ["observation", "reward"])
    def test_what_is_not_finite_ends_the_recording(self, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Reusing, "wrong", wrong)
        with pytest.raises(RunError, match=f"^environment: .*{wrong}"):
            Recorder(self.recipe(), 0).episode(0)
