from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.data.collect import collect
from dmm.data.faults import CheckedEnv
from dmm.data.observations import build_flat_env
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.errors import InputError
from dmm.evaluation import asked, evaluate, play
from dmm.models.bc import BehaviourCloning
from dmm.models.entry import Facts, goal_columns
from dmm.models.official import from_official
from dmm.models.registry import MODELS, read_changes
from dmm.models.rvs import GoalPairs, GoalWindows, RvSG, RvSGConfig, RvSR, RvSRConfig, usual_goal
from dmm.policy import Wanted
from dmm.training import TrainConfig, load_run, train
from dmm.training.stacking import stack
from tests.conftest import MakeTrajectories

GOLDEN = Path(__file__).parents[1] / "golden"
MAZE = "dmm/pointmaze/umaze-v0"


class Golden:
    """What the authors' code computed, and our policy with their weights."""

    def __init__(self, name: str):
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.config = json.loads(str(self.arrays["config"]))
        self.entry = MODELS[name.replace("_", "-")]
        self.policy: Any = from_official(self.entry.name, GOLDEN / f"{name}.npz", self.config)
        self.inputs = {key: self.tensor(f"inputs/{key}") for key in ("states", "condition", "actions")}

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def windows(self) -> Windows:
        """The inputs as one window of one step each, at several time steps."""
        b, condition = len(self.inputs["states"]), self.inputs["condition"][:, None]
        times = torch.arange(0, 1000, 1000 // b)[:b, None]
        parts: dict[str, Any] = {key: self.inputs[key][:, None] for key in ("states", "actions")}
        parts |= {"timesteps": times, "mask": torch.ones(b, 1, dtype=torch.bool)}
        if self.entry.name == "rvs-g":
            return GoalWindows(**parts, returns_to_go=torch.zeros(b, 1, 1), goals=condition)
        remaining = self.policy.config.longest - times[..., None]
        return Windows(**parts, returns_to_go=condition * remaining)

    def wanted(self) -> Wanted:
        condition = self.inputs["condition"]
        if self.entry.name == "rvs-g":
            return Wanted(goals=condition)
        return Wanted(returns=condition[:, 0] * self.policy.config.longest)


@pytest.fixture(params=["rvs_r", "rvs_g"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def goal_policy(**changes: Any) -> RvSG:
    return RvSG(RvSGConfig(**({"state_size": 4, "action_size": 2, "width": 8, "goal_start": 1} | changes))).eval()


class TestTheAuthorsWeights:
    def test_give_the_authors_actions(self, golden: Golden) -> None:
        expected = golden.tensor("outputs/actions")
        torch.testing.assert_close(golden.policy(golden.windows())[:, 0], expected, rtol=0, atol=1e-5)

    def test_act_as_the_authors_do_at_every_step(self, golden: Golden) -> None:
        """Whatever the time and the rewards; states come in another order at the second step."""
        policy, states, expected = golden.policy, golden.inputs["states"], golden.tensor("outputs/actions")
        state = policy.init_state(len(states), golden.wanted())
        action, state = policy.act(state, states, None)
        torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)
        action, state = policy.act(state, states, torch.full((len(states),), 50.0))
        torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(policy(state)[:, -1], action, rtol=0, atol=0)

    def test_give_the_authors_likelihoods_and_loss(self, golden: Golden) -> None:
        found = golden.policy.log_prob(golden.windows())[:, 0]
        torch.testing.assert_close(found, golden.tensor("outputs/log_prob"), rtol=0, atol=1e-5)
        [(name, loss)] = golden.policy.loss(golden.windows()).items()
        assert golden.policy.terms == (name,)
        torch.testing.assert_close(loss, golden.tensor("loss/total").reshape(()), rtol=1e-5, atol=0)

    def test_have_the_authors_gradients(self, golden: Golden) -> None:
        official = golden.entry.official
        assert official is not None
        ours = dict(golden.policy.named_parameters())
        loss = golden.policy.loss(golden.windows())["likelihood"]
        gradients = dict(zip(ours, torch.autograd.grad(loss, list(ours.values())), strict=True))
        named = {source: key for key, source in official.sources(golden.policy).items()}
        compared = [key.removeprefix("grads/") for key in golden.arrays if key.startswith("grads/")]
        assert len(compared) == 3
        for theirs in compared:
            expected = golden.tensor(f"grads/{theirs}")
            error = (gradients[named[theirs]] - expected).norm() / expected.norm()
            assert error < 1e-4, theirs

    def test_are_refused_for_another_condition(self, golden: Golden) -> None:
        wrong = golden.config | {"condition_size": 3}
        with pytest.raises(InputError, match="condition_size: got 3, allowed is 1" if wrong["kind"] == "R" else "weig"):
            from_official(golden.entry.name, GOLDEN / f"{golden.entry.name.replace('-', '_')}.npz", wrong)
        with pytest.raises(InputError, match=r"condition_size: got (1|2), allowed is 0"):
            from_official("bc", {}, golden.config)

    def test_of_a_policy_without_condition_are_those_of_bc(self) -> None:
        golden, columns = Golden("rvs_r"), slice(0, 5)
        weights = {key[8:]: value for key, value in golden.arrays.items() if key.startswith("weights/")}
        first = "model.mlp_extractor.shared_net.0.weight"
        weights[first] = weights[first][:, columns]
        cloned = from_official("bc", weights, golden.config | {"condition_size": 0})
        windows = golden.windows()
        unasked = dataclasses.replace(windows, returns_to_go=torch.zeros_like(windows.returns_to_go))
        torch.testing.assert_close(cloned(windows), golden.policy(unasked), rtol=0, atol=1e-6)


class TestSizes:
    @pytest.mark.parametrize(
        ("name", "states", "actions", "env_id", "weights"),
        [
            ("rvs-r", 11, 3, "Hopper-v5", 1_065_990),
            ("rvs-r", 17, 6, "Walker2d-v5", 1_075_212),
            ("rvs-r", 29, 8, "dmm/AntMaze-v0", 1_089_552),
            ("rvs-r", 60, 9, "dmm/Kitchen-v0", 1_122_322),
            ("rvs-g", 29, 8, "dmm/AntMaze-v0", 1_090_576),
            ("rvs-g", 60, 9, "dmm/Kitchen-v0", 1_182_738),
            ("bc", 11, 3, "Hopper-v5", 1_064_966),
            ("bc-10", 11, 3, "Hopper-v5", 1_064_966),
        ],
    )
    def test_published_ones_have_the_weights_of_the_paper_s_code(
        self, name: str, states: int, actions: int, env_id: str, weights: int
    ) -> None:
        entry, facts = MODELS[name], Facts(state_size=states, action_size=actions, env_id=env_id)
        config, _ = read_changes({"sizes": "published"}, entry, TrainConfig, facts)
        assert entry.policy(entry.config_for(facts, config)).parameter_count() == weights

    @pytest.mark.parametrize(
        ("env_id", "transitions", "batch_size", "dropout", "steps"),
        [
            ("Hopper-v5", 1_000_000, 16_384, 0.0, 2000 * 62),
            ("Walker2d-v5", 16_385, 16_384, 0.0, 2000 * 2),
            ("dmm/AntMaze-v0", 1_000_000, 16_384, 0.0, 20_000),
            ("dmm/Kitchen-v0", 136_950, 256, 0.1, 478_500),
        ],
    )
    def test_published_training_is_that_of_the_domain(
        self, env_id: str, transitions: int, batch_size: int, dropout: float, steps: int
    ) -> None:
        facts = Facts(state_size=60, action_size=9, env_id=env_id, transitions=transitions)
        config, recipe = read_changes({"sizes": "published"}, MODELS["rvs-r"], TrainConfig, facts)
        training = TrainConfig(**recipe)
        assert (training.batch_size, config["dropout"], training.steps) == (batch_size, dropout, steps)
        assert training.learning_rate == 1e-3 and training.warmup == training.weight_decay == training.clip == 0

    @pytest.mark.parametrize("name", ["rvs-r", "bc", "bc-10"])
    def test_default_ones_have_as_many_weights_as_the_default_model(self, name: str) -> None:
        counts = [MODELS[n].policy(MODELS[n].make_config(11, 3, "Hopper-v5")).parameter_count() for n in (name, "dmm")]
        assert counts[0] == pytest.approx(counts[1], rel=0.01)

    def test_the_start_is_orthogonal(self) -> None:
        policy = RvSR(RvSRConfig(state_size=11, action_size=3, width=32, layers=3))
        for i, layer in enumerate(policy.hidden):
            weight = layer.weight.T if i == 0 else layer.weight  # columns where it widens
            torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), rtol=0, atol=1e-5)
            assert not layer.bias.any()
        head = policy.head.mean.weight
        torch.testing.assert_close(head @ head.T, 1e-4 * torch.eye(3), rtol=0, atol=1e-8)
        assert not policy.head.log_std.any() and not policy.head.mean.bias.any()


class TestAverages:
    def test_divide_by_what_the_longest_episode_has_left(self) -> None:
        """The recorded ones, of three episodes of 6, 4 and 4 steps."""
        arrays = Golden("rvs_r").arrays
        rewards = arrays["data/rewards"]
        over = np.flatnonzero(arrays["data/terminals"] | arrays["data/timeouts"])
        lengths = np.diff(over, prepend=-1)
        data = Trajectories(
            observations=np.zeros((len(rewards), 2)),
            actions=np.zeros((len(rewards), 1)),
            rewards=rewards,
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            terminated=arrays["data/terminals"][over],
            dataset_id="recorded",
            env_id="",
        )
        entry = MODELS["rvs-r"]
        policy = entry.policy(entry.config_for(Facts.of(data), {"width": 4}))
        sampler = WindowSampler(data, 1, generator=torch.Generator())
        given = policy.inputs(sampler.windows_at(torch.arange(len(rewards))))[:, 0, -1]  # type: ignore[operator]
        expected = arrays["data/average_reward_to_go"]
        np.testing.assert_allclose(given, expected / policy.config.average_scale, rtol=1e-5)

    def test_are_of_the_data_s_best_episode_or_as_the_authors_have_them(
        self, make_trajectories: MakeTrajectories
    ) -> None:
        data, entry = make_trajectories(scale=1e-3), MODELS["rvs-r"]
        best, longest = float(data.returns().max()), int(data.lengths.max())
        assert entry.config_for(Facts.of(data), {}).average_scale == pytest.approx(best / longest)
        changes, _ = read_changes({"sizes": "published"}, entry, TrainConfig, Facts.of(data))
        assert entry.config_for(Facts.of(data), changes).average_scale == 1
        assert entry.make_config(4, 2).average_scale == 1  # no data yet
        with pytest.raises(InputError, match=r"^average_scale: got 0, allowed is a positive number$"):
            entry.make_config(4, 2, average_scale=0.0)

    def test_of_targets_are_the_same_at_every_step(self) -> None:
        policy = RvSR(RvSRConfig(state_size=4, action_size=2, width=8, longest=50)).eval()
        state = policy.init_state(3, torch.tensor([10.0, 20.0, 30.0]))
        for t in range(60):  # beyond the longest episode
            _, state = policy.act(state, torch.randn(3, 4), None if t == 0 else torch.ones(3))
            torch.testing.assert_close(policy.inputs(state)[:, 0, -1], torch.tensor([0.2, 0.4, 0.6]))
        chosen = policy.select(state, torch.tensor([2]))
        torch.testing.assert_close(policy.inputs(chosen)[:, 0, -1], torch.tensor([0.6]))


class TestPairs:
    def test_are_drawn_as_often_as_the_authors_draw_them(self) -> None:
        """Their 4,000 draws and ours differ by what two samples of the same pairs may (chi-squared)."""
        arrays = Golden("rvs_g").arrays
        frequency, dones = arrays["data/start_goal_frequency"].astype(float), np.flatnonzero(arrays["data/dones"])
        lengths = np.diff(dones, prepend=-1)
        theirs = frequency * 4000
        data = _steps(lengths)
        sampler = GoalPairs(data, RvSGConfig(state_size=2, action_size=1, goal_size=1), "cpu")
        drawn = sampler.draw(50, 8000, torch.Generator().manual_seed(0)).flatten(0, 1)
        ours = np.zeros_like(theirs)
        np.add.at(ours, tuple(drawn.T.numpy()), 1)
        assert not ours[theirs == 0].any()
        expected = ours / len(drawn) * 4000
        cells = ours > 0
        statistic = ((theirs[cells] - expected[cells]) ** 2 / expected[cells]).sum()
        degrees = int(cells.sum()) - 1
        assert degrees == 20 + 35 - 1  # L (L - 1) / 2 pairs, and L - 1 that coincide
        assert statistic < degrees + 4 * (2 * degrees) ** 0.5

    def test_episodes_are_drawn_whatever_their_lengths(self) -> None:
        sampler = GoalPairs(_steps([1, 99]), RvSGConfig(state_size=2, action_size=1, goal_size=1), "cpu")
        drawn = sampler.draw(1, 10_000, torch.Generator().manual_seed(0))[0]
        assert (drawn[:, 0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
        assert (drawn[drawn[:, 0] == 0] == 0).all()

    def test_batches_hold_the_earlier_step_and_the_later_one_s_goal(self, trajectories: Trajectories) -> None:
        config = RvSGConfig(state_size=4, action_size=2, goal_start=1, goal_size=2)
        sampler = GoalPairs(trajectories, config, "cpu")
        index = sampler.draw(2, 50, torch.Generator().manual_seed(0))
        again = torch.Generator().manual_seed(0)
        torch.testing.assert_close(index, torch.cat([sampler.draw(1, 50, again) for _ in range(2)]))
        batch = sampler.gather(index)
        assert batch.shape == (2, 50) and batch.goals.shape == (2, 50, 1, 2) and batch.mask.all()
        episode = np.repeat(np.arange(trajectories.episodes), trajectories.lengths)
        assert (episode[index[..., 0]] == episode[index[..., 1]]).all()
        assert (index[..., 0] <= index[..., 1]).all() and (index[..., 0] < index[..., 1]).any()
        np.testing.assert_array_equal(batch.states[:, :, 0], trajectories.observations[index[..., 0]])
        np.testing.assert_array_equal(batch.actions[:, :, 0], trajectories.actions[index[..., 0]])
        np.testing.assert_array_equal(batch.goals[:, :, 0], trajectories.observations[index[..., 1]][..., 1:3])


def _steps(lengths: Any) -> Trajectories:
    n = sum(lengths)
    return Trajectories(
        observations=np.arange(2 * n).reshape(n, 2),
        actions=np.zeros((n, 1)),
        rewards=np.zeros(n),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        terminated=[True] * len(lengths),
        dataset_id="steps",
        env_id="",
    )


class TestGoals:
    @pytest.mark.parametrize(
        ("env_id", "keys", "size", "columns"),
        [
            ("PointMaze_UMaze-v3", ("observation", "desired_goal"), 6, (0, 2)),
            ("PointMaze_UMaze-v3", ("observation", "achieved_goal", "desired_goal"), 8, (4, 2)),
            ("PointMaze_UMaze-v3", ("desired_goal", "observation"), 6, (2, 2)),
            ("dmm/AntMaze-v0", ("achieved_goal", "observation"), 29, (0, 2)),
            ("AntMaze_UMaze-v5", ("observation", "achieved_goal", "desired_goal"), 109, (105, 2)),
            ("antmaze-umaze-v2", (), 29, (0, 2)),
            ("dmm/Kitchen-v0", (), 60, (0, 60)),
            ("FrankaKitchen-v1", ("observation",), 59, (0, 59)),
            ("", (), 4, (0, 4)),
            ("AntMaze_UMaze-v5", ("observation", "desired_goal"), 107, None),
            ("PointMaze_UMaze-v3", ("observation", "other"), 6, None),
            ("Hopper-v5", (), 11, None),
        ],
    )
    def test_are_found_in_states(self, env_id: str, keys: tuple[str, ...], size: int, columns: Any) -> None:
        facts = Facts(state_size=size, action_size=2, env_id=env_id, observation_keys=keys)
        assert goal_columns(facts) == columns

    def test_of_data_that_show_none_are_refused_unless_named(self, make_trajectories: MakeTrajectories) -> None:
        data, entry = make_trajectories(env_id="Hopper-v5"), MODELS["rvs-g"]
        with pytest.raises(
            InputError, match=r"goal_size: got 0, the states of these data show no goal \(achieved_goal"
        ):
            train(data, "rvs-g", steps=1)
        config = entry.config_for(Facts.of(data), {"goal_start": 2, "goal_size": 1})
        assert RvSG(config).hidden[0].in_features == 5
        assert entry.make_config(4, 2, "Hopper-v5").goal_size == 4  # without data: the whole state

    def test_are_what_windows_must_have(self, trajectories: Trajectories) -> None:
        windows = WindowSampler(trajectories, 1, generator=torch.Generator()).sample(2)
        with pytest.raises(InputError, match="windows: got Windows, allowed are GoalWindows"):
            goal_policy()(windows)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"goal_start": 4}, "goal_start"),
            ({"goal_start": 3, "goal_size": 2}, "goal_size"),
            ({"goal_size": -1}, "goal_size"),
            ({"goal": "1 2 3"}, "goal: got 3 numbers, allowed are 2"),
            ({"goal": "1 here"}, "goal: got '1 here', allowed are finite numbers"),
            ({"goal": "1 nan"}, "goal: got '1 nan', allowed are finite numbers"),
            ({"dropout": 1.0}, "dropout"),
            ({"width": 0}, "width"),
        ],
    )
    def test_of_a_wrong_config_are_refused(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            goal_policy(**changes)

    def test_that_nobody_names_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"goals: got none, allowed is one for each episode, \(3, 2\)"):
            goal_policy().init_state(3, 1.0)
        with pytest.raises(InputError, match=r"goals: got shape \(3, 1\), allowed is \(3, 2\)"):
            goal_policy().init_state(3, Wanted(goals=torch.zeros(3, 1)))

    def test_stay_with_their_episodes(self) -> None:
        policy, goals, observation = goal_policy(), torch.randn(3, 2), torch.randn(3, 4)
        expected, state = policy.act(policy.init_state(3, Wanted(goals=goals)), observation)
        action, _ = policy.act(policy.select(state, torch.tensor([2, 0])), observation[[2, 0]], torch.ones(2))
        torch.testing.assert_close(action, expected[[2, 0]])
        state = policy.next_episode(state, torch.tensor([1]), Wanted(goals=goals[:1]), None)  # type: ignore[arg-type]
        torch.testing.assert_close(state.goals[:, 0], goals[[0, 0, 2]])

    def test_change_what_is_done(self) -> None:
        policy, observation = goal_policy(), torch.randn(1, 4).expand(2, -1)
        action, _ = policy.act(policy.init_state(2, Wanted(goals=torch.tensor([[0.0, 0.0], [5.0, -5.0]]))), observation)
        assert (action[0] - action[1]).abs().max() > 1e-4

    def test_of_the_kitchen_are_those_that_its_states_name(self) -> None:
        """In the last state of the best episode; objects without a goal stay where they are in it."""
        rng = np.random.default_rng(0)
        named = np.zeros(30)
        named[[20, 21, 25]] = [0.5, -0.7, 0.3]
        states = np.concatenate([rng.normal(size=(8, 30)), np.tile(named, (8, 1))], axis=1)
        data = dataclasses.replace(
            _steps([4, 2]),
            observations=states[:6],
            rewards=[0, 1, 0, 0, 2, 0],
            env_id="dmm/Kitchen-v0",
            last_observations=states[6:],
        )
        config = MODELS["rvs-g"].config_for(Facts.of(data), {"width": 4})
        expected = states[7].astype(np.float32)
        expected[[20, 21, 25]] = [0.5, -0.7, 0.3]
        np.testing.assert_allclose(usual_goal(config.goal), expected, rtol=1e-6)
        state = RvSG(config).init_state(2, 4.0)
        np.testing.assert_allclose(state.goals[1, 0], expected, rtol=1e-6)


class TestTraining:
    @pytest.fixture
    def maze(self, datasets_path: Path) -> Trajectories:
        collect(MAZE, transitions=900, workers=1, progress=False)
        return load_trajectories(MAZE)

    def test_rvs_g_learns_in_a_maze_and_is_evaluated_at_its_goals(self, maze: Trajectories, tmp_path: Path) -> None:
        run = train(maze, "rvs-g", steps=200, out=tmp_path / "run", changes={"width": 32, "learning_rate": 3e-3})
        assert (run.policy.config.goal_start, run.policy.config.goal_size) == (0, 2)
        assert run.log["loss"][-1] < run.log["loss"][0]
        result = evaluate(load_run(tmp_path / "run"), episodes=2, max_steps=20, progress=False)
        assert len(result.scores[0].returns) == 2

    def test_each_episode_of_a_maze_is_asked_for_its_own_goal(self, maze: Trajectories) -> None:
        seen: list[Wanted] = []

        class Recorder(RvSG):
            def init_state(self, n: int, target: Any) -> GoalWindows:
                seen.append(target)
                return super().init_state(n, target)

        policy = Recorder(MODELS["rvs-g"].config_for(Facts.of(maze), {"width": 4}))
        envs: list[Any] = [maze.make_env() for _ in range(3)]
        done = play(policy, envs, episodes=3, target=1.0, seed=5, max_steps=2)
        goals = seen[0].goals
        assert goals is not None and goals.shape == (3, 2) and len(goals.unique(dim=0)) == 3
        for goal, env, observed in zip(goals.numpy(), envs, done.observations, strict=True):
            np.testing.assert_allclose(goal, env.unwrapped.goal, rtol=1e-6)
            np.testing.assert_allclose(observed[0, 4:], goal, rtol=1e-6)  # the state shows it as well
            env.close()

    def test_bc_10_clones_the_best_tenth(self, make_trajectories: MakeTrajectories, tmp_path: Path) -> None:
        data = make_trajectories(lengths=(3,) * 20)
        prepare = MODELS["bc-10"].prepare
        assert prepare is not None and MODELS["bc"].prepare is None
        kept = prepare(data, None, ())
        best = np.sort(np.argsort(-data.returns())[:2])
        np.testing.assert_array_equal(kept.returns(), data.returns()[best])
        run = train(data, "bc-10", steps=3, out=tmp_path / "run", changes={"width": 4})
        assert run.info["dataset"]["transitions"] == 60 and run.info["dataset"]["best_share"] == 1.0

    @pytest.mark.parametrize("name", ["rvs-r", "rvs-g", "bc"])
    @pytest.mark.parametrize("discrete", [False, True])
    def test_stacked_losses_and_gradients_are_those_of_each(
        self, trajectories: Trajectories, name: str, discrete: bool
    ) -> None:
        entry = MODELS[name]
        policies = [entry.policy(entry.make_config(4, 2, "", width=8, dropout=0.3)).double() for _ in range(3)]
        for policy in policies:
            policy.discrete_actions = discrete
            torch.nn.init.normal_(policy.head.log_std)  # type: ignore[union-attr, arg-type]
        sampler = entry.sampler(trajectories, policies[0].config, "cpu")
        index = torch.stack([sampler.draw(1, 5, torch.Generator().manual_seed(seed))[0] for seed in range(3)])
        batch = sampler.gather(index).map(lambda x: x.double() if x.is_floating_point() else x)
        together = stack(policies, [torch.Generator().manual_seed(seed) for seed in range(3)])
        joint = together.loss(batch)["likelihood"]
        of_all = _gradients(joint.sum(), together)
        for seed, policy in enumerate(policies):
            torch.manual_seed(seed)
            alone = policy.loss(batch.map(lambda x, seed=seed: x[seed]))["likelihood"]
            torch.testing.assert_close(joint[seed], alone)
            for both, one in zip(of_all, _gradients(alone, policy), strict=True):
                torch.testing.assert_close(both[seed], one)


def _gradients(loss: Tensor, policy: torch.nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True, materialize_grads=True)


class TestDiscreteActions:
    def test_are_a_categorical_distribution(self) -> None:
        policy = BehaviourCloning(MODELS["bc"].make_config(4, 3, "", width=8)).eval()
        policy.discrete_actions = True
        states, chosen = torch.randn(6, 1, 4), torch.randint(0, 3, (6,))
        real = torch.ones(6, 1, dtype=torch.bool)
        actions = F.one_hot(chosen, 3)[:, None].float()
        windows = Windows(torch.zeros(6, 1, 1), states, actions, torch.zeros(6, 1, dtype=torch.int64), real)
        expected = F.cross_entropy(policy.outputs(windows)[:, 0], chosen)
        torch.testing.assert_close(policy.loss(windows)["likelihood"], expected)
        torch.testing.assert_close(policy(windows).sum(dim=-1), torch.ones(6, 1))
        action, _ = policy.act(policy.init_state(6, 0.0), states[:, 0])
        assert (action.sum(dim=1) == 1).all() and (action.argmax(dim=1) == policy(windows)[:, 0].argmax(dim=1)).all()


class TestAsked:
    def test_nothing_where_environments_have_no_goal(self) -> None:
        env = CheckedEnv(build_flat_env("Hopper-v5", (), 11, 3))
        env.reset(0, 0)
        wanted = asked([env], 9.0, torch.Generator())
        assert wanted.goals is None and wanted.returns == 9.0
        env.env.close()
