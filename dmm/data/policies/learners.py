"""A learner for the dark rooms: from random to good within a hundred episodes of one task."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from dmm.envs.grid import ACTIONS
from dmm.envs.tasks import draw_training_task


class DynaLearner:
    """Tabular Dyna-Q for one dark room: Q-learning, plus sweeps over a learned model before each episode.

    `Q[s, a] = r + discount max_b Q[s', b]`, at each step for the one just taken (the rooms are deterministic, so the
    learning rate is 1) and before each episode, `sweeps` times, for all that were ever taken: each sweep carries a
    reward one cell further. The share of random actions falls linearly from 1 in the first episode to 0 when
    `exploring` of the episodes have passed. Actions never taken are worth `optimism`, which draws the learner to what
    it does not know, as in R-max (Brafman and Tennenholtz, 2002). Where rewards go on, it should lie between
    `discount / (1 - discount^2)` and `1 / (1 - discount)`, the values of a reward at every second step and at every
    one: with less, a learner may step on and off a goal for ever without having tried to stay.

    A state is the cell and the number of rewards of this episode so far, counted up to `rewards - 1`: once the key is
    found, the same cell calls for something else. Its task is one for training (`dmm.envs.tasks`).

    Args:
        size: cells along each side of the room.
        episodes: of one history; sets the pace at which randomness falls.
        task: names of what the room hides, `dmm.envs.tasks.hidden_parts`.
        rewards: how many an episode can give before nothing is left, plus 1; 1 if they never run out.

    Sutton and Barto, Reinforcement Learning, 2nd edition, section 8.2; sweeps in place of its sampled updates.
    """

    def __init__(
        self,
        size: int,
        episodes: int,
        *,
        task: tuple[str, ...] = ("goal",),
        rewards: int = 1,
        discount: float = 0.95,
        optimism: float = 0.1,
        sweeps: int = 1,
        exploring: float = 0.8,
    ):
        self.size, self.episodes, self.task, self.rewards = size, episodes, task, rewards
        self.discount, self.sweeps, self.exploring = discount, sweeps, exploring
        count = size * size * rewards
        self.values = np.full((count + 1, len(ACTIONS)), optimism)
        self.values[count] = 0.0  # of the state after the end
        self.next_state = np.full((count, len(ACTIONS)), count)
        self.reward = np.zeros((count, len(ACTIONS)))
        self.known = np.zeros((count, len(ACTIONS)), dtype=bool)
        self.begun = self.stage = 0

    def options(self, rng: np.random.Generator) -> dict[str, Any]:
        return draw_training_task(rng, self.task, self.size)

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        for _ in range(self.sweeps):
            best = self.values.max(axis=1)
            np.copyto(self.values[:-1], self.reward + self.discount * best[self.next_state], where=self.known)
        self.randomness = max(0.0, 1.0 - self.begun / (self.exploring * self.episodes))
        self.begun += 1
        self.stage = 0

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        if rng.random() < self.randomness:
            return int(rng.integers(len(ACTIONS)))
        row = self.values[self._state(observation)].tolist()
        best = max(row)
        ties = [action for action, value in enumerate(row) if value == best]
        return ties[int(rng.integers(len(ties)))] if len(ties) > 1 else ties[0]

    def learn(self, observation: Any, action: Any, reward: float, next_observation: Any, terminated: bool) -> None:
        state = self._state(observation)
        self.stage = min(self.stage + (reward > 0), self.rewards - 1)
        after = len(self.known) if terminated else self._state(next_observation)
        self.known[state, action] = True
        self.next_state[state, action], self.reward[state, action] = after, reward
        self.values[state, action] = reward + self.discount * max(self.values[after].tolist())

    def _state(self, observation: Any) -> int:
        x, y = observation.tolist()
        return (int(x) * self.size + int(y)) * self.rewards + self.stage
