from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from torch.nn.functional import smooth_l1_loss

from dmm.data.policies import dqn
from dmm.data.policies.dqn import BATCH, EVERY, LEAST_RANDOM, TARGET_EVERY, DQNLearner
from dmm.data.recipes import Learner, Recipe, find_recipe
from dmm.data.rollout import Recorder, blocks
from dmm.errors import InputError

NAMES = ("dmm/darkroom/dqn-v0", "dmm/darkroom-hard/dqn-v0", "dmm/keytodoor/dqn-v0")


def history(recipe: Recipe, number: int) -> list[Any]:
    plan = blocks(recipe, recipe.transitions)
    return list(Recorder(recipe, seed=0).block(plan[number]))


def begun(rewards: int = 1) -> DQNLearner:
    learner = DQNLearner(9, 10, 20, rewards=rewards)
    learner.options(np.random.default_rng(0))
    learner.begin(gym.make("dmm/Darkroom-v0"), np.zeros(2), np.random.default_rng(0))
    return learner


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_of_whole_histories_of_sixty_tasks(name: str) -> None:
    recipe = find_recipe(name)
    steps = gym.make(recipe.env_id, disable_env_checker=True).spec.max_episode_steps  # type: ignore[union-attr]
    learner = recipe.stages[0]()
    assert isinstance(learner, Learner) and isinstance(learner, DQNLearner)
    assert recipe.histories and recipe.block == learner.episodes * steps and recipe.transitions == 60 * recipe.block
    assert learner.steps == steps
    pickle.loads(pickle.dumps(recipe.stages))


def test_a_history_leads_from_random_to_good_returns_and_is_the_same_again() -> None:
    recipe = find_recipe(NAMES[0])
    first, again = history(recipe, 1), history(recipe, 1)
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(first, again, strict=True))
    returns = np.array([episode.rewards.sum() for episode in first])
    assert returns.shape == (200,) and returns[:10].mean() < 2 and returns[-20:].mean() > 12


def test_what_everybody_shares_is_left_as_it_was() -> None:
    state, drawn = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
    learner = begun()
    for _ in range(BATCH + EVERY):
        learner.learn(np.zeros(2), 0, 0.0, np.zeros(2), False)
    assert np.array_equal(state, np.random.get_state()[1]) and torch.equal(drawn, torch.get_rng_state())
    assert learner.model._n_updates > 0


def test_an_update_is_one_step_on_the_huber_loss_of_bellmans_error(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, rng = begun(rewards=2), np.random.default_rng(1)
    seen: list[Any] = []
    sample = ReplayBuffer.sample
    monkeypatch.setattr(ReplayBuffer, "sample", lambda *a, **k: seen.append(sample(*a, **k)) or seen[-1])
    for _ in range(BATCH + EVERY - 1 - BATCH % EVERY):
        places = rng.integers(9, size=(2, 2)).astype(np.float32)
        learner.learn(places[0], int(rng.integers(5)), float(rng.random() < 0.2), places[1], bool(rng.random() < 0.1))
    assert not seen and learner.lived % EVERY == EVERY - 1
    net, target = learner.model.q_net.q_net, learner.model.q_net_target.q_net
    before = [p.detach().clone().requires_grad_() for p in net.parameters()]
    learner.learn(places[0], 3, 1.0, places[1], False)
    (batch,) = seen
    assert len(batch.rewards) == BATCH

    def values(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ before[0].T + before[1]) @ before[2].T + before[3]

    best = target(batch.next_observations).max(dim=1, keepdim=True).values
    goal = batch.rewards + (1 - batch.dones) * 0.95 * best
    loss = smooth_l1_loss(values(batch.observations).gather(1, batch.actions), goal.detach())
    loss.backward()
    for old, new in zip(before, net.parameters(), strict=True):  # Adam's first step: the rate, with the sign
        moved = (new - old)[old.grad.abs() > 1e-5].detach()
        np.testing.assert_allclose(moved, -3e-3 * old.grad[old.grad.abs() > 1e-5].sign(), rtol=0.02)


def test_the_target_network_follows_in_steps() -> None:
    learner = begun()
    net, target = learner.model.q_net, learner.model.q_net_target
    same = []
    for _ in range(4 * TARGET_EVERY):
        learner.learn(np.zeros(2), 0, 1.0, np.zeros(2), False)
        same.append(all(torch.equal(a, b) for a, b in zip(net.parameters(), target.parameters(), strict=True)))
    assert all(same[: BATCH - 1]) and same[3 * TARGET_EVERY - 1] and not same[3 * TARGET_EVERY - 2]


def test_features_are_column_row_and_rewards_so_far() -> None:
    learner = begun(rewards=3)
    for reward, stage in ((0.0, 0), (1.0, 1), (0.0, 1), (1.0, 2), (1.0, 2)):
        learner.learn(np.array([2.0, 7.0]), 0, reward, np.array([2.0, 7.0]), False)
        assert np.flatnonzero(learner._features(np.array([2.0, 7.0]))).tolist() == [2, 9 + 7, 18 + stage]
    assert learner._features(np.zeros(2)).shape == (1, 21)


def test_randomness_falls_to_what_remains() -> None:
    learner, rng = DQNLearner(9, 10, 20, exploring=0.5), np.random.default_rng(0)
    shares = []
    for _ in range(7):
        learner.begin(gym.make("dmm/Darkroom-v0"), np.zeros(2), rng)
        shares.append(learner.randomness)
    assert shares == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, LEAST_RANDOM, LEAST_RANDOM])


def test_greedy_actions_are_the_largest_values() -> None:
    learner, rng = begun(), np.random.default_rng(0)
    learner.randomness = 0.0
    for cell in ((0.0, 0.0), (3.0, 8.0)):
        values = learner.model.q_net(torch.from_numpy(learner._features(np.array(cell))))
        assert learner.act(np.array(cell), rng) == int(values.argmax())


def test_without_the_library_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import dmm.data.environments as environments
    from dmm.data.collect import collect
    from dmm.data.preview import preview

    real = environments._version
    monkeypatch.setattr(environments, "_version", lambda name: "unknown" if name.startswith("stable") else real(name))
    for ask in (lambda: collect(NAMES[0], progress=False), lambda: preview(NAMES[0], 1)):
        with pytest.raises(InputError, match=r"^recipe: 'dmm/darkroom/dqn-v0' needs stable-baselines3; `pip install"):
            ask()  # type: ignore[no-untyped-call]


def test_versions_of_what_it_needs_are_written_down(datasets_path: Any) -> None:
    import json

    from dmm.data.collect import collect

    collect(NAMES[0], transitions=20, progress=False)
    metadata = json.loads((datasets_path / NAMES[0] / "data/metadata.json").read_text())
    assert {"torch", "stable-baselines3", "numpy"} <= metadata["dmm"]["packages"].keys()
    assert dqn.BATCH == 256
