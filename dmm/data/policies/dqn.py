"""A gradient-based learner for the dark rooms: Stable-Baselines3's DQN, as the papers' learning histories come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dmm.envs.grid import ACTIONS
from dmm.envs.tasks import draw_training_task

BATCH = 256
EVERY = 20
"""Steps between two updates."""
TARGET_EVERY = 200
"""Steps after which the target network is the present one."""
LEAST_RANDOM = 0.05


class DQNLearner:
    """Deep Q-learning (Mnih et al., 2015) of one dark room, with the network, buffer and update of Stable-Baselines3.

    The network, one hidden layer of 64 ReLUs, sees three one-hot vectors: column, row, and the number of rewards of
    this episode so far, counted up to `rewards - 1` (once the key is found, the same cell calls for something else).
    Every `EVERY` steps it learns from `BATCH` of all steps of its life, by Adam at rate 0.003. The share of random
    actions falls linearly from 1 in the first episode to `LEAST_RANDOM` when `exploring` of the episodes have passed.

    Unlike the tabular `DynaLearner` it is not drawn to what it does not know, and it forgets: its histories are longer
    and noisier. One thread computes it and its draws come from the generator given to `options`, so the same machine
    makes the same history again. Another processor, or another torch, may round a last bit differently, and then an
    action, and from there on everything.

    Args:
        size: cells along each side of the room.
        episodes: of one history; sets the pace at which randomness falls.
        task: names of what the room hides, `dmm.envs.tasks.hidden_parts`.
        rewards: how many an episode can give before nothing is left, plus 1; 1 if they never run out.
        steps: of one episode.
    """

    def __init__(
        self,
        size: int,
        episodes: int,
        steps: int,
        *,
        task: tuple[str, ...] = ("goal",),
        rewards: int = 1,
        discount: float = 0.95,
        exploring: float = 0.5,
    ):
        self.size, self.episodes, self.steps, self.task, self.rewards = size, episodes, steps, task, rewards
        self.discount, self.exploring = discount, exploring
        self.begun = self.stage = self.lived = 0

    def options(self, rng: np.random.Generator) -> dict[str, Any]:
        task = draw_training_task(rng, self.task, self.size)
        self.rng = rng
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            self.model = self._make()
        return task

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        passed = self.begun / (self.exploring * self.episodes)
        self.randomness = max(LEAST_RANDOM, 1.0 - passed)
        self.begun += 1
        self.stage = 0

    def act(self, observation: Any, rng: np.random.Generator) -> int:
        if rng.random() < self.randomness:
            return int(rng.integers(len(ACTIONS)))
        with torch.no_grad():
            return int(self.model.q_net.q_net(torch.from_numpy(self._features(observation))).argmax())

    def learn(self, observation: Any, action: Any, reward: float, next_observation: Any, terminated: bool) -> None:
        before = self._features(observation)
        self.stage = min(self.stage + (reward > 0), self.rewards - 1)
        after, ended = self._features(next_observation), np.array([terminated])
        self.model.replay_buffer.add(before, after, np.array([action]), np.array([reward]), ended, [{}])
        self.lived += 1
        if self.lived % EVERY == 0 and self.lived >= BATCH:
            with _repeatable(self.rng):
                self.model.train(gradient_steps=1, batch_size=BATCH)
        if self.lived % TARGET_EVERY == 0:
            self.model.q_net_target.load_state_dict(self.model.q_net.state_dict())

    def _features(self, observation: Any) -> np.ndarray:
        """`(1, 2 size + rewards)` float32."""
        x, y = observation.tolist()
        features = np.zeros((1, 2 * self.size + self.rewards), dtype=np.float32)
        features[0, [int(x), self.size + int(y), 2 * self.size + self.stage]] = 1.0
        return features

    def _make(self) -> Any:
        from stable_baselines3 import DQN
        from stable_baselines3.common.logger import Logger

        model = DQN(
            "MlpPolicy",
            _Spaces(2 * self.size + self.rewards),
            learning_rate=3e-3,
            buffer_size=self.episodes * self.steps,
            gamma=self.discount,
            policy_kwargs={"net_arch": [64]},
            device="cpu",
        )
        model.set_logger(Logger(None, []))
        return model


class _Spaces(gym.Env[np.ndarray, np.int64]):
    """All that Stable-Baselines3 asks of an environment before it is told what happened in another one."""

    def __init__(self, features: int):
        self.observation_space = gym.spaces.Box(0, 1, (features,), np.float32)
        self.action_space: Any = gym.spaces.Discrete(len(ACTIONS))


@contextmanager
def _repeatable(rng: np.random.Generator) -> Iterator[None]:
    """One thread, and numpy's shared generator, which the buffer draws from, begins at a draw of `rng`; then both are
    as they were."""
    before, threads = np.random.get_state(), torch.get_num_threads()
    np.random.seed(int(rng.integers(2**31)))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        np.random.set_state(before)
        torch.set_num_threads(threads)
