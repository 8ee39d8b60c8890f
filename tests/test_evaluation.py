from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dmm import evaluation
from dmm.acting import ACTING, make_actor
from dmm.cli import main
from dmm.data.environments import environment_record
from dmm.errors import InputError, RunError
from dmm.evaluation import (
    TARGETS,
    RandomActor,
    Rollout,
    bootstrap_interval,
    default_targets,
    environments,
    evaluate,
    make_env,
    normalize,
    play,
    rollout,
    score,
)
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.training import Run, load_run, train
from tests.conftest import MakeTrajectories

ENV_ID = "TinyCounting-v0"


# Products of a batch and of one row add up in different orders, and which these are depends on the processor. A step
# pays its seed plus an action between -1 and 1: whatever is left when the two cancel, the action is off by rounding
# errors of 1 in float32. This is torch's own allowance for them; episodes that are mixed up are off by far more.
PER_STEP = 1e-5


class Counting(gym.Env):
    """Started from seed `s`, it lasts `1 + s % 4` steps and pays `s + action[0]` at each; it may not be stepped again.

    Episodes of even seeds terminate, those of odd seeds are truncated. It sees `(s, t, s - t)`.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    closed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None, "an evaluation that does not say its seed cannot be repeated"
        super().reset(seed=seed)
        self.start, self.t, self.running = seed, 0, True
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.running, "stepped after its end"
        assert isinstance(action, np.ndarray) and action.shape == (2,)
        self.t += 1
        over = self.t == 1 + self.start % 4
        self.running = not over
        even = self.start % 2 == 0
        return self._observation(), self.start + float(action[0]), over and even, over and not even, {}

    def close(self) -> None:
        Counting.closed += 1

    def _observation(self) -> np.ndarray:
        return np.array([self.start, self.t, self.start - self.t], dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    gym.register(ENV_ID, entry_point=Counting)
    yield
    del gym.registry[ENV_ID]


class Fixed:
    """Always the same action, and a memory of what it was called with."""

    def __init__(self, action: float = 0.5):
        self.action, self.started, self.calls, self.selected = action, [], [], []

    def init_state(self, n: int, target: Any) -> int:
        self.started.append((n, target))
        return 0

    def act(self, state: int, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, int]:
        self.calls.append((state, observation.clone(), None if reward is None else reward.clone()))
        return torch.full((len(observation), 2), self.action), state + 1

    def select(self, state: int, rows: Tensor) -> int:
        self.selected.append(rows.tolist())
        return state


class OnGpu(Tensor):
    """A tensor that, as one on a GPU, becomes an array only by way of the CPU."""

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.as_subclass(Tensor).numpy()

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def known_returns(seeds: range, action: float = 0.5) -> list[float]:
    return [(1 + seed % 4) * (seed + action) for seed in seeds]


class TestRollout:
    @pytest.mark.parametrize("episodes", [1, 4, 7])
    @pytest.mark.parametrize("seed", [0, 3])
    def test_returns_are_in_the_order_of_the_seeds(self, episodes: int, seed: int) -> None:
        done = rollout(Fixed(), Counting, episodes=episodes, seed=seed)
        seeds = range(seed, seed + episodes)
        assert done.returns.tolist() == known_returns(seeds)
        assert done.lengths.tolist() == [1 + s % 4 for s in seeds]

    @pytest.mark.parametrize("at_once", [1, 2, 3, 50])
    def test_how_many_run_at_once_does_not_matter(self, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
        monkeypatch.setattr(evaluation, "ENVIRONMENTS_AT_ONCE", at_once)
        actor = Fixed()
        done = rollout(actor, Counting, episodes=7)
        assert done.returns.tolist() == known_returns(range(7))
        assert max(n for n, _ in actor.started) == min(at_once, 7) and sum(n for n, _ in actor.started) == 7

    def test_course_of_an_episode_depends_on_its_own_seed_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = DecisionMetaMamba(DMMConfig(state_size=3, action_size=2, width=8, layers=1, context=3)).eval()
            torch.nn.init.normal_(policy.head.weight)
        together = rollout(policy, Counting, episodes=6, target=5.0, seed=2)
        monkeypatch.setattr(evaluation, "ENVIRONMENTS_AT_ONCE", 4)
        in_parts = rollout(policy, Counting, episodes=6, target=5.0, seed=2)
        np.testing.assert_allclose(in_parts.returns, together.returns, rtol=0, atol=4 * PER_STEP)
        for i in range(6):
            alone = rollout(policy, Counting, episodes=1, target=5.0, seed=2 + i)
            np.testing.assert_allclose(alone.returns[0], together.returns[i], rtol=0, atol=4 * PER_STEP)

    def test_actor_gets_target_observations_and_rewards(self) -> None:
        actor = Fixed()
        rollout(actor, Counting, episodes=2, target=9.0, seed=2)  # seed 2: three steps, seed 3: four
        [(episodes, asked)] = actor.started
        assert (episodes, asked.returns, asked.goals) == (2, 9.0, None) and asked.generator.initial_seed() == 2
        states, observations, rewards = zip(*actor.calls, strict=True)
        assert states == (0, 1, 2, 3)
        assert observations[0].tolist() == [[2, 0, 2], [3, 0, 3]] and observations[2].tolist() == [[2, 2, 0], [3, 2, 1]]
        assert rewards[0] is None and [reward.tolist() for reward in rewards[1:]] == [[2.5, 3.5], [2.5, 3.5], [3.5]]

    def test_actor_may_be_on_a_gpu(self) -> None:
        class FixedOnGpu(Fixed):
            def act(self, *arguments: Any) -> Any:
                action, state = super().act(*arguments)
                return action.as_subclass(OnGpu), state

        assert rollout(FixedOnGpu(), Counting, episodes=4).returns.tolist() == known_returns(range(4))

    def test_finished_episodes_leave_the_batch(self) -> None:
        actor = Fixed()
        rollout(actor, Counting, episodes=6)  # seeds 0 and 4 are over after one step, 1 and 5 after two, 2 after three
        assert [len(observation) for _, observation, _ in actor.calls] == [6, 4, 2, 1]
        assert actor.selected == [[1, 2, 3, 5], [1, 2], [1], []]
        observations, rewards = actor.calls[2][1:]
        assert observations.tolist() == [[2, 2, 0], [3, 2, 1]] and rewards.tolist() == [2.5, 3.5]

    @pytest.mark.parametrize("acting", [("window", 0), ("recurrent", 0), ("staggered", 1), ("staggered", 3)])
    def test_leaving_the_batch_does_not_change_returns(self, acting: tuple[str, int]) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = DecisionMetaMamba(DMMConfig(state_size=3, action_size=2, width=8, layers=1, context=3)).eval()
            torch.nn.init.normal_(policy.head.weight)
        actor = make_actor(policy, *acting)
        done, seeds = rollout(actor, Counting, episodes=8, target=5.0, seed=1), range(1, 9)
        assert done.lengths.tolist() == [1 + s % 4 for s in seeds] and len(set(done.returns.tolist())) == 8
        for i, seed in enumerate(seeds):  # by hand, nobody leaves
            env, state, reward, earned = Counting(), actor.init_state(1, 5.0), None, 0.0
            observation, over = env.reset(seed=seed)[0], False
            while not over:
                action, state = actor.act(state, torch.from_numpy(observation)[None], reward)
                observation, paid, terminated, truncated, _ = env.step(action[0].numpy())
                reward, earned, over = torch.tensor([paid]), earned + paid, terminated or truncated
            assert done.returns[i] == pytest.approx(earned, rel=0, abs=done.lengths[i] * PER_STEP)

    def test_keeps_every_observation_the_last_included(self) -> None:
        done = rollout(Fixed(), Counting, episodes=3, seed=4)
        assert [rows.shape for rows in done.observations] == [(2, 3), (3, 3), (4, 3)]
        assert done.observations[2].tolist() == [[6, 0, 6], [6, 1, 5], [6, 2, 4], [6, 3, 3]]

    def test_environments_may_change_the_actions_that_they_are_given(self) -> None:
        class Greedy(Counting):
            def step(self, action: Any) -> Any:
                result = super().step(action)
                action *= 100
                return result

        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = DecisionMetaMamba(DMMConfig(state_size=3, action_size=2, width=8, layers=1, context=3)).eval()
            torch.nn.init.normal_(policy.head.weight)
        actor = make_actor(policy, "recurrent")
        expected = rollout(actor, Counting, episodes=4, seed=3).returns
        assert rollout(actor, Greedy, episodes=4, seed=3).returns.tolist() == expected.tolist()

    def test_an_action_that_is_no_number_is_the_policys_fault(self) -> None:
        class Lost(Fixed):
            def act(self, state: int, observation: Tensor, reward: Tensor | None = None) -> tuple[Tensor, int]:
                action, state = super().act(state, observation, reward)
                if state == 2:
                    action[1, 0] = float("nan")
                return action, state

        with pytest.raises(RunError, match=r"^policy: NaN or infinity .* step 2 of episode 2 \(seed 2\)$"):
            rollout(Lost(), Counting, episodes=4)

    def test_rewards_that_add_up_to_infinity_are_named(self) -> None:
        class Rich(Counting):
            def step(self, action: Any) -> Any:
                observation, _, *rest = super().step(action)
                return observation, 1e308, *rest

        with pytest.raises(RunError, match="rewards of episode 1 add up to infinity"):
            rollout(Fixed(), Rich, episodes=3)

    @pytest.mark.parametrize("limit", [1, 2, 3, 50])
    def test_episodes_can_be_cut(self, limit: int) -> None:
        actor = Fixed()
        done = rollout(actor, Counting, episodes=7, max_steps=limit)
        assert done.lengths.tolist() == [min(limit, 1 + s % 4) for s in range(7)]
        assert done.returns.tolist() == [min(limit, 1 + s % 4) * (s + 0.5) for s in range(7)]
        assert [len(rows) for rows in done.observations] == (done.lengths + 1).tolist()
        assert len(actor.calls) == min(limit, 4)

    def test_observations_need_not_be_kept(self) -> None:
        with environments(Counting, 3) as envs:
            done = play(Fixed(), envs, episodes=5, keep_observations=False)
        assert done.observations == [] and done.returns.tolist() == known_returns(range(5))

    @pytest.mark.parametrize("there", [1, 2])
    def test_goes_on_with_the_environments_that_can_be_made(
        self, there: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Few(Counting):
            open = 0

            def __init__(self) -> None:
                if Few.open == there:
                    raise RuntimeError("port 5005 is in use")
                Few.open += 1

        actor = Fixed()
        done = rollout(actor, Few, episodes=5, seed=2)
        assert done.returns.tolist() == known_returns(range(2, 7)) and max(n for n, _ in actor.started) == there
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{there} of 5 could be made (RuntimeError: port 5005 is in use)" in said

    def test_not_even_one_environment(self) -> None:
        def make() -> gym.Env:
            raise KeyError("ROBOT_ADDRESS")

        with pytest.raises(InputError, match=r"^environment: it cannot be made \(KeyError: 'ROBOT_ADDRESS'\)"):
            rollout(Fixed(), make, episodes=3)

    def test_a_fault_while_closing_spoils_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Stuck(Counting):
            def close(self) -> None:
                raise OSError("the door is stuck")

        assert rollout(Fixed(), Stuck, episodes=2).returns.tolist() == known_returns(range(2))
        assert capsys.readouterr().err.count("could not be closed (OSError: the door is stuck)") == 2

    def test_environments_are_closed_even_when_the_actor_fails(self) -> None:
        class Failing(Fixed):
            def act(self, *_: Any) -> Any:
                raise RuntimeError("no idea")

        Counting.closed = 0
        rollout(Fixed(), Counting, episodes=3)
        assert Counting.closed == 3
        with pytest.raises(RuntimeError, match="no idea"):
            rollout(Failing(), Counting, episodes=3)
        assert Counting.closed == 6

    @pytest.mark.parametrize("episodes", [0, -1])
    def test_no_episodes_are_refused(self, episodes: int) -> None:
        with pytest.raises(InputError, match=f"^episodes: got {episodes}, allowed is a whole number of at least 1"):
            rollout(Fixed(), Counting, episodes=episodes)

    def test_progress_counts_episodes_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        rollout(Fixed(), Counting, episodes=5, progress="tiny")
        captured = capsys.readouterr()
        assert captured.out == "" and "tiny: 100%" in captured.err and "5/5" in captured.err


class TestRandomActor:
    def draw(self, seed: int, n: int = 2000) -> np.ndarray:
        actor = RandomActor(2, seed)
        action, _ = actor.act(actor.init_state(n, 0.0), torch.zeros(n, 3))
        return action.numpy()

    def test_fills_the_bounds_evenly(self) -> None:
        actions = self.draw(0)
        assert all(Counting.action_space.contains(action) for action in actions)
        np.testing.assert_allclose(actions.mean(0), [0, 0], atol=0.03)
        np.testing.assert_allclose(actions.std(0), np.full(2, 2 / np.sqrt(12)), rtol=0.03)

    def test_follows_its_seed(self) -> None:
        assert np.array_equal(self.draw(1), self.draw(1)) and not np.array_equal(self.draw(1), self.draw(2))

    def test_draws_anew_at_each_step(self) -> None:
        actor = RandomActor(2)
        first, second = (actor.act(actor.init_state(1, 0.0), torch.zeros(1, 3))[0] for _ in range(2))
        assert not torch.equal(first, second)

    def test_an_episodes_draws_do_not_depend_on_who_has_left(self) -> None:
        everyone, some = RandomActor(2, seed=3), RandomActor(2, seed=3)
        state, rows = some.init_state(5, 0.0), torch.tensor([4, 1])
        all_five = [everyone.act(everyone.init_state(5, 0.0), torch.zeros(5, 3))[0] for _ in range(2)]
        first, state = some.act(state, torch.zeros(5, 3))
        second, _ = some.act(some.select(state, rows), torch.zeros(2, 3))
        assert torch.equal(first, all_five[0]) and torch.equal(second, all_five[1][rows])

    def test_plays_in_an_environment(self) -> None:
        done = rollout(RandomActor(2), Counting, episodes=3, seed=1)
        spread = np.abs(done.returns - np.array(known_returns(range(1, 4), action=0.0)))
        assert bool((spread > 0).all()) and bool((spread <= done.lengths).all())


class TestInterval:
    def test_equals_the_normal_approximation_for_many_episodes(self) -> None:
        values = np.random.default_rng(0).normal(50, 10, size=400)
        low, high = bootstrap_interval(values)
        half = 1.959964 * values.std() / np.sqrt(400)  # the bootstrap's variance has no correction n - 1
        assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.03)
        assert (high - low) / 2 == pytest.approx(half, rel=0.03)

    def test_of_two_outcomes_equals_the_binomial(self) -> None:
        # 30 of 100 episodes succeed: the mean of a resample is Binomial(100, 0.3) / 100, whose quantiles are 21 and 39
        low, high = bootstrap_interval(np.repeat([1.0, 0.0], [30, 70]))
        assert low == pytest.approx(0.21, abs=0.011) and high == pytest.approx(0.39, abs=0.011)

    def test_is_the_same_each_time(self) -> None:
        values = np.random.default_rng(2).normal(size=10)
        assert bootstrap_interval(values) == bootstrap_interval(values)
        assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)

    def test_leaves_numpys_generator_alone(self) -> None:
        before = np.random.get_state()[1].tobytes()
        bootstrap_interval(np.arange(10.0))
        assert np.random.get_state()[1].tobytes() == before

    @pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [3.0] * 50])
    def test_of_equal_values_is_a_point(self, values: list[float]) -> None:
        assert bootstrap_interval(np.array(values)) == (3.0, 3.0)

    def test_of_two_values_spans_them(self) -> None:
        assert bootstrap_interval(np.array([1.0, 3.0])) == (1.0, 3.0)

    def test_moves_and_scales_with_the_values(self) -> None:
        values = np.random.default_rng(1).exponential(size=30)
        np.testing.assert_allclose(bootstrap_interval(5 + 2 * values), 5 + 2 * np.array(bootstrap_interval(values)))


def finished(*returns: float) -> Rollout:
    return Rollout(np.array(returns), np.ones(len(returns), dtype=int), [])


class TestScore:
    def test_is_normalised_by_the_reference_returns(self) -> None:
        result = score(finished(10.0, 30.0), target=7.0, reference=(10.0, 50.0))
        assert result.normalized_score == 25.0 and result.ci95 == (0.0, 50.0)
        assert result.target == 7.0 and result.returns.tolist() == [10.0, 30.0]

    def test_without_reference_returns_the_interval_is_of_the_return(self) -> None:
        result = score(finished(10.0, 30.0), target=7.0, reference=None)
        assert result.normalized_score is None and result.ci95 == (10.0, 30.0)

    def test_one_episode_has_an_interval_of_no_width(self) -> None:
        assert score(finished(30.0), target=7.0, reference=(10.0, 50.0)).ci95 == (50.0, 50.0)

    def test_normalize_maps_random_to_0_and_expert_to_100(self) -> None:
        assert normalize(np.array([2.0, 4.0, 8.0]), (2.0, 4.0)).tolist() == [0.0, 100.0, 300.0]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory, make_trajectories: MakeTrajectories) -> Callable[..., Run]:
    def make(env_id: str = ENV_ID) -> Run:
        data = make_trajectories(state_size=3, env_id=env_id)
        changes = {"width": 8, "layers": 1, "context": 3, "batch_size": 4}
        out = tmp_path_factory.mktemp("run") / "run"
        return train(data, steps=2, seed=4, out=out, changes=changes, device="cpu", progress=False)

    return make


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


def small(run: Any, **more: Any) -> Any:
    return evaluate(run, **({"episodes": 5, "targets": [3.0, 9.0], "progress": False} | more))


class TestEvaluate:
    def test_json_has_the_promised_keys(self, run: Run) -> None:
        result = json.loads(json.dumps(small(run).to_json()))
        assert set(result) >= {"dataset", "model", "seed", "targets", "returns", "normalized_score", "ci95"}
        assert (result["dataset"], result["model"], result["seed"]) == ("tiny/linear-v0", "dmm", 4)
        assert (result["step"], result["episodes"], result["targets"]) == (2, 5, [3.0, 9.0])

    def test_headline_is_the_first_target(self, run: Run) -> None:
        result = small(run).to_json()
        first, second = result["scores"]
        assert (first["target"], second["target"]) == (3.0, 9.0)
        for key in ("returns", "mean_return", "normalized_score", "ci95"):
            assert result[key] == first[key]
        assert result["mean_return"] == pytest.approx(np.mean(first["returns"]))
        assert result["ci95"][0] <= result["normalized_score"] <= result["ci95"][1]

    def test_score_follows_from_the_returns(self, run: Run) -> None:
        # the tiny data set's reference returns are 0 and 10
        result = small(run).to_json()
        assert result["normalized_score"] == pytest.approx(10 * np.mean(result["returns"]))
        assert result["behaviour"] == pytest.approx(10 * run.info["dataset"]["mean_return"])

    def test_returns_are_those_of_a_rollout_from_the_same_seeds(self, run: Run) -> None:
        result = small(run, seed=7, targets=[3.0])
        by_hand = rollout(run.policy, Counting, episodes=5, target=3.0, seed=7)
        assert result.scores[0].returns.tolist() == by_hand.returns.tolist()
        assert result.scores[0].lengths.tolist() == [4, 1, 2, 3, 4]

    def test_a_policy_of_delayed_rewards_is_paid_by_no_step(self, run: Run) -> None:
        data = run.info["dataset"] | {"delayed_rewards": True}
        late = small(dataclasses.replace(run, info=run.info | {"dataset": data}), targets=[9.0]).scores[0]

        class Unpaid(Counting):
            def step(self, action: Any) -> Any:
                observation, _, *rest = super().step(action)
                return observation, 0.0, *rest

        envs = [Unpaid() for _ in range(5)]
        seen = play(run.policy, envs, episodes=5, target=9.0, seed=10_000)  # type: ignore[arg-type]
        assert late.lengths.tolist() == seen.lengths.tolist() and late.returns.min() > 0 == seen.returns.max()
        with pytest.raises(AssertionError):  # the rewards do change what it does
            np.testing.assert_array_equal(late.returns, small(run, targets=[9.0]).scores[0].returns)

    def test_every_target_meets_the_same_starts(self, run: Run) -> None:
        first, second = small(run).scores
        assert first.lengths.tolist() == second.lengths.tolist()

    def test_is_the_same_for_a_run_its_folder_and_again(self, run: Run) -> None:
        results = [small(which).to_json() for which in (run, run.path, str(run.path), load_run(run.path))]
        assert all(result == results[0] for result in results[1:])

    def test_does_not_train_the_policy(self, run: Run) -> None:
        before = {name: weight.clone() for name, weight in run.policy.state_dict().items()}
        small(run)
        assert all(torch.equal(weight, before[name]) for name, weight in run.policy.state_dict().items())

    def test_default_target_of_an_unknown_environment_is_the_best_return_of_the_data(self, run: Run) -> None:
        assert small(run, targets=None).to_json()["targets"] == [run.info["dataset"]["max_return"]]

    @pytest.mark.parametrize(
        ("env_id", "family"),
        [
            ("Hopper-v5", "hopper"),
            ("HalfCheetah-v4", "halfcheetah"),
            ("Walker2d-v2", "walker2d"),
            ("AntMaze_UMaze-v5", "antmaze"),
            ("dmm/AntMaze-v0", "antmaze"),
            ("FrankaKitchen-v1", "kitchen"),
            ("dmm/Kitchen-v0", "kitchen"),
        ],
    )
    def test_default_targets_of_the_papers_environments(self, env_id: str, family: str) -> None:
        assert default_targets(env_id, best_return=1.5) == list(TARGETS[family])

    @pytest.mark.parametrize(
        "env_id", ["HopperBulletEnv-v0", "KitchenBot-v0", "mine/Hopper-v5", "AntMazeOfMine-v0", ""]
    )
    def test_others_whose_names_look_alike_are_asked_for_the_best_in_the_data(self, env_id: str) -> None:
        assert default_targets(env_id, best_return=1.5) == [1.5]

    def test_environment_sees_flat_float32_vectors(self, run: Run) -> None:
        env = make_env(run.info)
        observation, _ = env.reset(seed=3)
        assert observation.dtype == np.float32 and observation.tolist() == [3, 0, 3]

    def test_data_without_an_environment_is_named(self, make_run: Callable[..., Run]) -> None:
        with pytest.raises(InputError, match=r"^run: data set 'tiny/linear-v0' does not say which environment"):
            small(make_run(env_id=""))

    def test_environment_that_is_not_there_is_named(self, make_run: Callable[..., Run]) -> None:
        with pytest.raises(InputError, match=r"^environment: 'Nowhere-v0' cannot be made here"):
            small(make_run(env_id="Nowhere-v0"))

    def test_an_environment_that_is_not_exactly_the_recorded_one_is_refused(self, run: Run) -> None:
        here = environment_record(gym.make(ENV_ID))
        data = run.info["dataset"]
        recorded = dataclasses.replace(run, info={**run.info, "dataset": {**data, "environment": here}})
        assert small(recorded).to_json()["returns"] == small(run).to_json()["returns"]
        recorded.info["dataset"]["environment"] = here | {"max_episode_steps": 77}
        with pytest.raises(InputError, match=r"cannot be rebuilt exactly; max_episode_steps 77 there, None here"):
            small(recorded)

    def test_environment_of_other_sizes_is_named(self, make_trajectories: MakeTrajectories, tmp_path: Path) -> None:
        changes = {"width": 8, "layers": 1, "context": 3, "batch_size": 4}
        data = make_trajectories(state_size=5, env_id=ENV_ID)  # the environment shows 3 numbers
        run = train(data, steps=1, out=tmp_path, changes=changes, device="cpu", progress=False)
        with pytest.raises(InputError, match=r"^environment: "):
            small(run)

    @pytest.mark.parametrize("episodes", [0, -3])
    def test_no_episodes_are_refused(self, run: Run, episodes: int) -> None:
        with pytest.raises(InputError, match=f"^episodes: got {episodes}, allowed is a whole number of at least 1"):
            small(run, episodes=episodes)

    def test_says_how_it_acted(self, run: Run) -> None:
        ways = [small(run, acting=acting, states=3).to_json() for acting in ACTING[:3]]
        assert [(way["acting"], way["states"]) for way in ways] == [
            ("window", None),
            ("recurrent", None),
            ("staggered", 3),
        ]
        window, recurrent, staggered = (way["returns"] for way in ways)
        np.testing.assert_allclose(staggered, window, rtol=0, atol=4 * PER_STEP)  # the context is 3
        assert window == small(run).to_json()["returns"]
        np.testing.assert_allclose(
            recurrent[:2], window[:2], rtol=0, atol=2 * PER_STEP
        )  # over before the window is full; test_acting tells them apart after that

    def test_a_way_of_acting_that_the_model_does_not_know_is_named(self, run: Run) -> None:
        with pytest.raises(InputError, match=r"^acting: got 'x', allowed are window, recurrent, staggered"):
            small(run, acting="x")
        with pytest.raises(InputError, match=r"^states: got 2, allowed are the divisors of the context 3: 1, 3"):
            small(run, acting="staggered", states=2)

    @pytest.mark.parametrize(
        ("options", "acting", "states"),
        [
            ((), "window", None),
            (("--acting", "recurrent"), "recurrent", None),
            (("--acting", "staggered", "--states", "3"), "staggered", 3),
        ],
    )
    def test_the_command_takes_the_way(
        self, run: Run, options: Any, acting: str, states: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", str(run.path), "--episodes", "2", *options, "--json"])
        result = json.loads(capsys.readouterr().out)
        assert (result["acting"], result["states"]) == (acting, states)
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", str(run.path), "--episodes", "2", *options])
        assert f"acting: {acting}{' with 3 states' if states else ''}" in capsys.readouterr().out

    @pytest.mark.parametrize("environments", [1, 2, 5, 50])
    def test_does_not_depend_on_the_number_of_environments(self, run: Run, environments: int) -> None:
        Counting.closed = 0
        returns = small(run, environments=environments).scores[1].returns
        np.testing.assert_allclose(returns, small(run).scores[1].returns, rtol=1e-6)
        assert Counting.closed == min(environments, 5) + 5

    def test_without_a_time_limit_one_is_told_and_kept(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        data = run.info["dataset"]
        assert data["step_limit"] == 1000  # the longest of the tiny episodes ended by itself
        cut = dataclasses.replace(run, info={**run.info, "dataset": {**data, "step_limit": 2}})
        assert small(cut).scores[0].lengths.tolist() == [1, 2, 2, 2, 1]
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "no time limit and may never end; an episode is ended after 2 steps" in said
        old = {name: value for name, value in data.items() if name != "step_limit"}
        small(dataclasses.replace(run, info={**run.info, "dataset": old}))
        assert "after 10,000 steps" in capsys.readouterr().err
        assert small(cut, max_steps=3).scores[0].lengths.tolist() == [1, 2, 3, 3, 1]
        assert capsys.readouterr().err == ""

    def test_the_environments_own_time_limit_is_enough(
        self, make_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
    ) -> None:
        gym.register("TinyLimited-v0", entry_point=Counting, max_episode_steps=3)
        try:
            run = make_run(env_id="TinyLimited-v0")
            capsys.readouterr()
            assert small(run, seed=0).scores[0].lengths.tolist() == [1, 2, 3, 3, 1]
            assert capsys.readouterr().err == ""
        finally:
            del gym.registry["TinyLimited-v0"]

    @pytest.mark.parametrize(
        "reference",
        [[0.0, 0.0], [5.0, 1.0], [0.0, float("inf")], [float("nan"), 1.0], ["low", 1.0], [None, 1.0], [1.0], 7.0],
        ids=str,
    )
    def test_a_reference_of_no_use_gives_returns_alone(
        self, run: Run, reference: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = {**run.info["dataset"], "reference": reference}
        result = small(dataclasses.replace(run, info={**run.info, "dataset": data})).to_json()
        assert result["normalized_score"] is None and result["behaviour"] is None
        assert result["returns"] == small(run).to_json()["returns"] and np.isfinite(result["ci95"]).all()
        assert "no normalised score, since the reference returns are" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("name", "value"),
        [("environments", 0), ("environments", 1.5), ("max_steps", 0), ("max_steps", "9"), ("seed", -1)],
    )
    def test_numbers_out_of_range_are_named(self, run: Run, name: str, value: Any) -> None:
        with pytest.raises(InputError, match=f"^{name}: got {value!r}, allowed is a whole number"):
            small(run, **{name: value})

    @pytest.mark.parametrize("targets", [4.0, np.float32(4), [4], np.array([4.0]), torch.tensor([4.0])], ids=repr)
    def test_targets_of_any_kind(self, run: Run, targets: Any) -> None:
        assert small(run, targets=targets).to_json()["targets"] == [4.0]

    def test_an_environment_that_prints_does_not_spoil_the_json(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(Counting, "close", lambda self: print("good bye"))
        with pytest.raises(SystemExit, match="0"):
            main(["evaluate", str(run.path), "--episodes", "2", "--environments", "1", "--max-steps", "1", "--json"])
        captured = capsys.readouterr()
        assert json.loads(captured.out)["scores"][0]["lengths"] == [1, 1] and "good bye" in captured.err

    def test_trust_is_asked_for_by_the_command(
        self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, marker = tmp_path / "run", tmp_path / "called"
        shutil.copytree(run.path, folder)
        info = json.loads((folder / "run.json").read_text())
        spec = {"id": "Own-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(marker)}}
        info["dataset"]["env_spec"] = json.dumps(spec)
        (folder / "run.json").write_text(json.dumps(info))
        for options, called in (((), False), (("--trust-environment",), True)):
            with pytest.raises(SystemExit, match="2"):
                main(["evaluate", str(folder), *options])
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and marker.exists() == called and ("os:mkdir" in said) != called

    def test_missing_run_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^run: no run at"):
            small(tmp_path / "nowhere")

    def test_progress_goes_to_stderr(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        small(run, progress=True)
        captured = capsys.readouterr()
        assert captured.out == "" and "evaluate, target 3: 100%" in captured.err and "target 9" in captured.err
