"""A memory for a task of several episodes, goals of environments, and draws of a policy that repeat."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.errors import InputError
from dmm.evaluation import RandomActor, play, play_tasks, rollout
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.policy import Outcome, Wanted


class Corridor(gym.Env):
    """Pays `worth` a step and ends by itself after `length + seed % 2` steps; the observation is (seed, t)."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, length: int = 2, worth: float = 1.0):
        self.length, self.worth = length, worth

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.seed, self.t = seed, 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._observation(), self.worth, self.t == self.length + self.seed % 2, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.seed, self.t], dtype=np.float32)


class Remembering:
    """Counts, for each task, its steps and its episodes; keeps what it was told at their ends."""

    def __init__(self) -> None:
        self.told: list[tuple[list[float], list[bool]]] = []
        self.begun: list[list[list[float]]] = []
        self.first_rewards: list[float] = []
        self.behind: list[list[float]] = []

    def init_state(self, n: int, target: Any) -> Tensor:
        return torch.zeros(n, 2)  # steps, episodes that are over

    def act(self, state: Tensor, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Tensor]:
        for row, (_, t) in enumerate(observation.tolist()):
            if t == 0 and reward is not None:
                self.first_rewards.append(float(reward[row]))
        return torch.zeros(len(observation), 1), state + torch.tensor([1.0, 0.0])

    def next_episode(self, state: Tensor, rows: Tensor, target: Any, outcome: Outcome) -> Tensor:
        self.told.append((outcome.reward.tolist(), outcome.terminated.tolist()))
        self.begun.append(state[rows].tolist())
        assert outcome.observation is not None
        self.behind += outcome.observation.tolist()
        return state.index_add(0, rows, torch.tensor([[0.0, 1.0]]).expand(len(rows), 2))

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]


class TestTasks:
    def test_each_task_goes_on_by_itself_and_keeps_its_memory(self) -> None:
        actor = Remembering()
        # seeds 0, 1, 2 of the first task last 2, 3, 2 steps; 3, 4, 5 of the second 4, 3, 4
        returns = play_tasks(actor, [Corridor(2, 1.0), Corridor(3, 10.0)], episodes=3)
        assert returns.tolist() == [[2, 3, 2], [40, 30, 40]]
        assert actor.begun == [[[2, 0]], [[4, 0]], [[5, 1]], [[7, 1]]]  # steps of the task so far, episodes over
        assert actor.told == [([1], [True]), ([10], [True]), ([1], [True]), ([10], [True])]
        assert actor.first_rewards == [0.0] * 4  # the last reward belongs to the episode before

    def test_what_was_seen_behind_the_last_step_is_told(self) -> None:
        actor = Remembering()
        play_tasks(actor, [Corridor(2), Corridor(5)], episodes=2, seed=0)  # seeds 0, 1 and 2, 3
        assert actor.behind == [[0.0, 2.0], [2.0, 5.0]]

    def test_the_limit_ends_an_episode_that_is_not_terminated(self) -> None:
        actor = Remembering()
        returns = play_tasks(actor, [Corridor(5)], episodes=2, max_steps=2)
        assert returns.tolist() == [[2, 2]] and actor.told == [([1], [False])]

    def test_a_policy_begins_each_episode_anew(self) -> None:
        torch.manual_seed(0)
        sizes = {"state_size": 2, "action_size": 1, "context": 3, "width": 8, "layers": 1, "rtg_scale": 10.0}
        policy = DecisionMetaMamba(DMMConfig(**sizes)).eval()  # type: ignore[arg-type]
        state = policy.init_state(3, torch.tensor([1.0, 2.0, 3.0]))
        for _ in range(2):
            _, state = policy.act(state, torch.randn(3, 2), torch.ones(3))
        rows, outcome = torch.tensor([0, 2]), Outcome(torch.ones(2), torch.ones(2, dtype=torch.bool))
        after = policy.next_episode(state, rows, Wanted(7.0), outcome)
        begun = policy.init_state(2, 7.0)
        for name in ("returns_to_go", "states", "actions", "timesteps", "mask"):
            assert torch.equal(getattr(after, name)[rows], getattr(begun, name))
            assert torch.equal(getattr(after, name)[1], getattr(state, name)[1])

    def test_an_actor_without_such_a_memory_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"^actor: got a RandomActor, allowed are actors with a memory of tasks"):
            play_tasks(RandomActor(1), [Corridor()], episodes=1)


class Drawing:
    """Plays what it draws from the generator that it is given."""

    def init_state(self, n: int, target: Any) -> Any:
        assert isinstance(target, Wanted) and target.generator is not None
        self.generator = target.generator
        return None

    def act(self, state: Any, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, Any]:
        self.played.append(torch.rand(len(observation), 1, generator=self.generator))
        return self.played[-1], state

    def select(self, state: Any, rows: Tensor) -> Any:
        return state


def test_what_a_policy_draws_repeats_with_the_seed() -> None:
    played = []
    for seed in (3, 3, 4):
        actor = Drawing()
        actor.played = []  # type: ignore[attr-defined]
        rollout(actor, Corridor, episodes=2, seed=seed)
        played.append(torch.cat(actor.played))  # type: ignore[attr-defined]
    assert torch.equal(played[0], played[1]) and not torch.equal(played[0][:2], played[2][:2])


class Asked(RandomActor):
    """Keeps what it was asked for."""

    def init_state(self, n: int, target: Any) -> Any:
        self.target = target
        return super().init_state(n, target)


class TestGoals:
    def test_each_episode_has_its_own_and_others_none(self) -> None:
        from dmm.data.observations import build_flat_env

        maze = ("observation", "achieved_goal", "desired_goal")
        envs = [build_flat_env("PointMaze_UMaze-v3", maze, 8, 2) for _ in range(2)]
        actor = Asked(2)
        done = play(actor, envs, episodes=2, seed=5, max_steps=3)
        assert actor.target.goals.shape == (2, 2)
        for episode, goal in enumerate(actor.target.goals):  # the state's last two entries are the goal
            np.testing.assert_allclose(done.observations[episode][0, -2:], goal, rtol=1e-6)
        assert not torch.equal(*actor.target.goals)
        for env in envs:
            env.close()
        hopper = Asked(1)
        rollout(hopper, Corridor, episodes=2, max_steps=1)
        assert hopper.target.goals is None


class TestEnds:
    def test_a_time_limit_of_the_environment_terminates_nothing(self) -> None:
        actor = Remembering()
        limited = gym.wrappers.TimeLimit(Corridor(5), 2)
        assert play_tasks(actor, [limited], episodes=2).tolist() == [[2, 2]]
        assert actor.told == [([1], [False])]

    def test_no_tasks(self) -> None:
        with pytest.raises(InputError, match=r"^tasks: got none"):
            play_tasks(Remembering(), [], episodes=1)
