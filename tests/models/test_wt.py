from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.collect import collect
from dmm.data.trajectories import Trajectories, load_trajectories
from dmm.data.windows import WindowSampler
from dmm.errors import InputError
from dmm.evaluation import evaluate
from dmm.inspection.reach import reach
from dmm.models.entry import Facts
from dmm.models.official import from_official
from dmm.models.registry import MODELS, find_model, read_changes
from dmm.models.waypoints import (
    ConditionWindows,
    WaypointConfig,
    Waypoints,
    WaypointWindows,
    WaypointWindowSampler,
    return_scale,
)
from dmm.models.wt import WaypointTransformer, WTConfig
from dmm.policy import Policy, Wanted
from dmm.training import Run, TrainConfig, load_run, train
from dmm.training.loop import Loop
from dmm.training.stacking import stack
from tests.conftest import MakeTrajectories

GOLDEN = Path(__file__).parents[1] / "golden"
MAZE = "dmm/pointmaze/umaze-v0"
SMALL: dict[str, Any] = {"width": 8, "layers": 1, "context": 4, "features": 6, "hidden": 5, "waypoint_width": 7}
RECIPE: dict[str, Any] = {"batch_size": 8, "log_every": 2, "checkpoint_every": 4}


class Golden:
    """What the authors' code computed, and our policy with their weights."""

    def __init__(self, name: str):
        self.path = GOLDEN / f"{name}.npz"
        with np.load(self.path, allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.config = json.loads(str(self.arrays["config"]))
        self.policy: Any = from_official("wt", self.path, self.config)
        self.mask = self.tensor("inputs/mask")

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def windows(self) -> ConditionWindows:
        b, k = self.mask.shape
        parts = {key: self.tensor(f"inputs/{key}") for key in ("states", "actions", "condition", "mask")}
        return ConditionWindows(
            **parts, returns_to_go=torch.zeros(b, k, 1), timesteps=torch.zeros(b, k, dtype=torch.int64)
        )

    def data(self) -> Trajectories:
        """Their trajectories, one after another."""
        lengths = self.arrays["data/lengths"]
        parts = {
            name: np.concatenate([self.arrays[f"data/trajectory_{i}_{name}"] for i in range(len(lengths))])
            for name in ("observations", "actions", "rewards")
        }
        parts["actions"] = np.clip(parts["actions"], -1, 1)
        ends = np.cumsum(lengths)
        return Trajectories(
            **parts,
            starts=ends - lengths,
            lengths=lengths,
            terminated=[False] * len(lengths),
            dataset_id="golden",
            env_id="",
        )

    def rows(self, data: Trajectories) -> Tensor:
        """The first steps and the goals of the recorded windows."""
        where = data.starts[self.arrays["data/trajectory"]]
        return torch.from_numpy(np.stack([where + self.arrays[f"data/{name}"] for name in ("start", "goal")], axis=1))

    def drawn(self, **changes: Any) -> WaypointWindows:
        """The recorded windows, made by our sampler out of the recorded trajectories."""
        data, config = self.data(), dataclasses.replace(self.policy.config, **changes)
        made = WaypointWindowSampler(data, config, WaypointWindows, "cpu").gather(self.rows(data))
        assert isinstance(made, WaypointWindows)
        return made

    def stage(self) -> Waypoints:
        """Their waypoint network as a first stage."""
        config = self.policy.config
        names = ("state_size", "action_size", "condition", "goal_start", "goal_size", "return_scale", "context")
        own = {name: getattr(config, name) for name in names}
        stage = Waypoints(WaypointConfig(**own, width=config.waypoint_width, horizon=config.waypoint_horizon))
        stage.waypoints.load_state_dict(self.policy.waypoints.state_dict())
        return stage


@pytest.fixture(params=["wt", "wt_goal"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def policy_of(**changes: Any) -> WaypointTransformer:
    sizes = {"state_size": 4, "action_size": 2, "goal_start": 1, "goal_size": 2}
    policy = WaypointTransformer(WTConfig(**(sizes | SMALL | {"heads": 2} | changes))).eval()
    for weight in policy.parameters():  # biases and places too, which start at zero
        torch.nn.init.normal_(weight, std=0.5)
    return policy


def goal_policy(**changes: Any) -> WaypointTransformer:
    return policy_of(condition="goal", **changes)


class TestTheAuthorsWeights:
    def test_give_the_authors_waypoints_actions_and_likelihoods(self, golden: Golden) -> None:
        windows, real = golden.windows(), golden.mask
        found = golden.policy.waypoints(windows.states, windows.condition)
        torch.testing.assert_close(found, golden.tensor("outputs/waypoints"), rtol=0, atol=1e-5)
        for function, name in ((golden.policy, "actions"), (golden.policy.log_prob, "log_prob")):
            expected = golden.tensor(f"outputs/{name}")
            torch.testing.assert_close(function(windows)[real], expected[real], rtol=0, atol=1e-5)

    def test_act_as_the_authors_do(self, golden: Golden) -> None:
        """A history that is shorter than the window, with one condition for all of it."""
        policy, (one, other) = golden.policy, golden.tensor("act/condition")
        if golden.config["kind"] == "goal":
            state = policy.init_state(1, Wanted(goals=torch.stack([one, other])[None]))
        else:
            state = policy.init_state(1, float(other) * policy.config.return_scale)
            average = state.condition.clone()
            average[..., 0] = one  # which no target gives together with the other
            state = dataclasses.replace(state, condition=average)
        for t, observation in enumerate(golden.tensor("act/states")):
            action, state = policy.act(state, observation[None], torch.zeros(1) if t else None)
        torch.testing.assert_close(action[0], golden.tensor("act/action"), rtol=0, atol=1e-5)

    def test_have_the_authors_loss_and_gradients(self, golden: Golden) -> None:
        official, policy = MODELS["wt"].official, golden.policy
        assert official is not None and policy.terms == ("likelihood",)
        loss = policy.loss(golden.windows())["likelihood"]
        torch.testing.assert_close(loss, golden.tensor("loss/total"), rtol=1e-4, atol=0)
        ours = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        gradients = dict(zip(ours, torch.autograd.grad(loss, list(ours.values())), strict=True))
        named = {source: key for key, source in official.sources(policy).items()}
        compared = [key[6:] for key in golden.arrays if key.startswith("grads/model")]
        assert len(compared) == 3
        for theirs in compared:
            assert _error(gradients[named[theirs]], golden.tensor(f"grads/{theirs}")) < 1e-4, theirs

    def test_have_the_authors_waypoint_loss_and_gradients(self, golden: Golden) -> None:
        """On windows that our sampler makes of the recorded trajectories."""
        stage = golden.stage()
        loss = stage.loss(golden.drawn())["waypoint"]
        torch.testing.assert_close(loss, golden.tensor("loss/waypoint"), rtol=1e-4, atol=0)
        loss.backward()
        compared = [key for key in golden.arrays if key.startswith("grads/waypoint/")]
        assert len(compared) == 2
        for key in compared:
            gradient = stage.waypoints.get_parameter(key.removeprefix("grads/waypoint/")).grad
            assert gradient is not None and _error(gradient, golden.tensor(key)) < 1e-4, key

    @pytest.mark.parametrize("prefix", ["waypoint_weights/", "waypoint."])
    @pytest.mark.parametrize("own", ["", "weights/"])
    def test_are_read_from_a_mapping_with_both_networks(self, golden: Golden, prefix: str, own: str) -> None:
        weights = _weights(golden, own, prefix)
        again = from_official("wt", weights, golden.config)
        assert torch.equal(again(golden.windows()), golden.policy(golden.windows()))
        without = {key: weight for key, weight in weights.items() if "tok_emb" not in key}
        extra = without | {"model.value_net.weight": np.zeros((1, 3))}
        assert torch.equal(from_official("wt", extra, golden.config)(golden.windows()), again(golden.windows()))

    def test_are_refused_with_one_line(self, golden: Golden) -> None:
        weights, config = _weights(golden, "", "waypoint."), golden.config
        alone = {key: weight for key, weight in weights.items() if not key.startswith("waypoint.")}
        said = r"^weights: no waypoint network, whose keys stand behind 'waypoint_weights/' or 'waypoint\.'$"
        with pytest.raises(InputError, match=said):
            from_official("wt", alone, config)
        lacking = {key: weight for key, weight in weights.items() if key != "waypoint.net.4.weight"}
        with pytest.raises(InputError, match=r"\(missing: waypoint_weights/net\.4\.weight\)"):
            from_official("wt", lacking, config)
        with pytest.raises(InputError, match=r"^kind: got 'both', allowed are reward, goal"):
            from_official("wt", weights, config | {"kind": "both"})
        with pytest.raises(InputError, match=r"^config: 'waypoint_hidden' is missing, which wt needs"):
            from_official("wt", weights, {k: v for k, v in config.items() if k != "waypoint_hidden"})
        with pytest.raises(InputError, match=r"of another shape: model\.mlp_ext.*\(32, 9\) where embed\.weight"):
            from_official("wt", weights, config | {"state_size": 6})

    def test_of_a_goal_that_is_the_whole_state_are_found_by_their_size(self) -> None:
        """The recorded config does not say how many numbers a goal has."""
        goal = Golden("wt_goal")
        config = goal.config | {"state_size": 2}
        weights = _weights(goal, "", "waypoint.")
        embed = "model.mlp_extractor.shared_net.0.obs_emb.0.weight"
        weights[embed], weights["waypoint.net.0.weight"] = (
            weights[embed][:, :6],
            weights["waypoint.net.0.weight"][:, :4],
        )
        policy: Any = from_official("wt", weights, config)
        assert (policy.config.goal_start, policy.config.goal_size) == (0, 2)


def _weights(golden: Golden, own: str, waypoints: str) -> dict[str, np.ndarray]:
    found = {}
    for key, array in golden.arrays.items():
        for theirs, ours in (("weights/", own), ("waypoint_weights/", waypoints)):
            if key.startswith(theirs):
                found[ours + key.removeprefix(theirs)] = array
    return found


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class TestWindows:
    def test_are_the_authors(self, golden: Golden) -> None:
        made, real = golden.drawn(), golden.mask
        assert torch.equal(made.mask, real) and not real.all()
        torch.testing.assert_close(made.states, golden.tensor("inputs/states"), rtol=0, atol=0)
        torch.testing.assert_close(made.condition, golden.tensor("inputs/condition"), rtol=1e-6, atol=0)
        theirs = golden.tensor("inputs/actions")
        torch.testing.assert_close(made.actions[real], theirs[real].clamp(-1, 1), rtol=0, atol=0)
        assert not made.actions[~real].any() and (theirs[~real] == -10).all()  # the one difference, which no loss sees
        if golden.config["kind"] == "reward":
            torch.testing.assert_close(made.targets, golden.tensor("loss/waypoint_target"), rtol=1e-6, atol=0)

    def test_that_are_padded_can_be_asked_for_their_first_real_step_s_returns(self) -> None:
        reward = Golden("wt")
        released, mended = reward.drawn(), reward.drawn(released_padding=False)
        whole = reward.mask.all(dim=1)
        assert torch.equal(released.condition[whole], mended.condition[whole])
        assert not released.condition[~whole].any()
        for row in (~whole).nonzero().flatten().tolist():
            first = int(reward.mask[row].int().argmax())
            real = mended.condition[row, first:]
            torch.testing.assert_close(real, mended.targets[row, first].expand_as(real), rtol=0, atol=0)
            assert real.all() and not mended.condition[row, :first].any()

    def test_begin_as_often_as_the_authors_begin_them(self, make_trajectories: MakeTrajectories) -> None:
        """An episode by its length, two uniform steps of it, of which the earlier begins: by chi-squared."""
        lengths = (4, 10, 1)
        data = make_trajectories(lengths=lengths)
        config = WTConfig(state_size=4, action_size=2, context=3)
        sampler = WaypointWindowSampler(data, config, ConditionWindows, "cpu")
        count = 40_000
        drawn = sampler.draw(4, count // 4, torch.Generator().manual_seed(0)).flatten(0, 1)
        total, expected = sum(lengths), np.zeros((sum(lengths), sum(lengths)))
        for start, length in zip(data.starts, lengths, strict=True):
            for i in range(length):
                for j in range(i, length):
                    expected[start + i, start + j] = count * length / total * (1 if i == j else 2) / length**2
        found = np.zeros_like(expected)
        np.add.at(found, tuple(drawn.T.numpy()), 1)
        cells = expected > 0
        assert not found[~cells].any()
        statistic = ((found[cells] - expected[cells]) ** 2 / expected[cells]).sum()
        degrees = int(cells.sum()) - 1
        assert statistic < degrees + 4 * (2 * degrees) ** 0.5

    def test_of_goals_hold_a_later_state_of_their_episode(self, trajectories: Trajectories) -> None:
        config = goal_policy().config
        sampler = WaypointWindowSampler(trajectories, config, ConditionWindows, "cpu")
        index = sampler.draw(2, 50, torch.Generator().manual_seed(0))
        windows = sampler.gather(index)
        assert windows.shape == (2, 50) and type(windows) is ConditionWindows
        episode = np.repeat(np.arange(trajectories.episodes), trajectories.lengths)
        assert (episode[index[..., 0]] == episode[index[..., 1]]).all()
        expected = torch.from_numpy(trajectories.observations[index[..., 1], 1:3])[..., None, :]
        torch.testing.assert_close(windows.condition, expected * windows.mask[..., None], rtol=0, atol=0)

    def test_must_have_conditions_and_places(self, trajectories: Trajectories) -> None:
        policy, generator = policy_of(), torch.Generator()
        with pytest.raises(InputError, match=r"^windows: got Windows, allowed are ConditionWindows$"):
            policy(WindowSampler(trajectories, 4, generator=generator).sample(2))
        longer = dataclasses.replace(policy.config, context=6)
        windows = MODELS["wt"].sampler(trajectories, longer, "cpu").gather(torch.zeros(2, 2, dtype=torch.int64))
        with pytest.raises(InputError, match=r"^windows: got 6 steps, allowed are at most 5, which have places$"):
            policy(windows)


class TestPadding:
    """The first stage's loss counts it in the release; switched off, it does not."""

    def test_counts_or_does_not(self) -> None:
        for name in ("wt", "wt_goal"):
            golden = Golden(name)
            stage, windows = golden.stage(), golden.drawn()
            made, h = stage(windows), stage.config.ahead
            k = windows.mask.shape[1]
            error = (made[:, : k - h] - windows.targets[:, h:]).square().mean(dim=-1)
            torch.testing.assert_close(stage.loss(windows)["waypoint"], error.mean())
            stage.config = dataclasses.replace(stage.config, released_padding=False)
            torch.testing.assert_close(stage.loss(windows)["waypoint"], error[windows.mask[:, : k - h]].mean())
            none = dataclasses.replace(windows, mask=torch.zeros_like(windows.mask))
            assert stage.loss(none)["waypoint"] == 0  # no real pair at all

    def test_is_read_by_the_policy(self) -> None:
        golden = Golden("wt")
        windows = golden.windows()
        states = torch.where(golden.mask[..., None], windows.states, 1.0)
        moved = golden.policy(dataclasses.replace(windows, states=states)) - golden.policy(windows)
        padded = ~golden.mask.all(dim=1)
        assert moved[padded][:, -1].abs().max() > 1e-3 and not moved[~padded].any()


class TestSizes:
    @pytest.mark.parametrize(
        ("states", "actions", "env_id", "policy", "waypoints"),
        [
            (11, 3, "Hopper-v5", 1_061_510, 3_165_186),
            (17, 6, "Walker2d-v5", 1_065_356, 3_171_330),
            (29, 8, "dmm/AntMaze-v0", 1_068_944, 3_183_618),
            (60, 9, "dmm/Kitchen-v0", 1_088_786, 3_334_204),
        ],
    )
    def test_published_ones_have_the_weights_of_the_authors_code(
        self, states: int, actions: int, env_id: str, policy: int, waypoints: int
    ) -> None:
        entry, facts = MODELS["wt"], Facts(state_size=states, action_size=actions, env_id=env_id)
        config, _ = read_changes({"sizes": "published"}, entry, TrainConfig, facts)
        made = entry.policy(entry.config_for(facts, config))
        assert made.parameter_count() == policy - 512 * 128  # an embedding that is never used
        assert sum(weight.numel() for weight in made.waypoints.parameters()) == waypoints  # type: ignore[union-attr, operator]

    def test_published_training_is_the_authors(self) -> None:
        facts = Facts(state_size=11, action_size=3, env_id="Hopper-v5", returns=(100.0, 3222.4))
        changes, recipe = read_changes({"sizes": "published"}, MODELS["wt"], TrainConfig, facts)
        config = MODELS["wt"].config_for(facts, changes)
        assert (config.context, config.layers, config.heads, config.width, config.dropout) == (20, 2, 16, 128, 0.15)
        assert (config.return_scale, config.longest, config.waypoint_horizon) == (3000.0, 1000, 30)
        [stage] = MODELS["wt"].before
        first = dict(stage.changes(config))
        policy = TrainConfig(**recipe)
        stage_config, stage_recipe = read_changes(
            {key: value for key, value in first.items() if key != "steps"}, MODELS["waypoints"], TrainConfig, facts
        )
        waypoints = TrainConfig(**stage_recipe, steps=first["steps"])
        assert (policy.steps, waypoints.steps) == (30_000, 40_000)
        for training in (policy, waypoints):
            assert (training.batch_size, training.learning_rate) == (1024, 1e-3)
            assert training.warmup == training.weight_decay == training.clip == 0
        made = MODELS["waypoints"].config_for(facts, stage_config)
        assert (made.width, made.layers, made.context, made.horizon) == (1024, 4, 40, 30)

    def test_default_ones_have_as_many_weights_as_the_default_model(self) -> None:
        made = [MODELS[name].policy(MODELS[name].make_config(11, 3, "Hopper-v5")) for name in ("wt", "dmm")]
        counts = [sum(weight.numel() for weight in policy.parameters()) for policy in made]
        assert counts[0] == pytest.approx(counts[1], rel=0.01)

    def test_the_start_is_orthogonal(self) -> None:
        policy = WaypointTransformer(WTConfig(state_size=4, action_size=2))
        layers = {name: layer for name, layer in policy.named_modules() if isinstance(layer, torch.nn.Linear)}
        own = {name: layer for name, layer in layers.items() if not name.startswith(("waypoints.", "head."))}
        assert len(own) == 3 + 6 * policy.config.layers
        for layer in own.values():
            weight = layer.weight if layer.out_features <= layer.in_features else layer.weight.T
            torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), rtol=0, atol=1e-5)
            assert not layer.bias.any()
        head = policy.head.mean.weight
        torch.testing.assert_close(head @ head.T, 1e-4 * torch.eye(2), rtol=0, atol=1e-8)
        assert not policy.places.weight.any() and not policy.head.log_std.any()
        assert not any(weight.requires_grad for weight in policy.waypoints.parameters())

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"condition": "both"}, "condition: got 'both', allowed are returns, goal"),
            ({"condition": "goal", "goal_size": 0}, "goal_size: got 0, the states of these data show no goal"),
            ({"condition": "goal", "goal_size": 4}, "goal_size: got 4, allowed is a whole number from 1 to 3"),
            ({"condition": "goal", "goal": "1 2 3"}, "goal: got 3 numbers, allowed are 2"),
            ({"return_scale": 0.0}, "return_scale: got 0, allowed is a positive number"),
            ({"heads": 3}, "heads: got 3, allowed are divisors of width 8"),
            ({"dropout": 1.0}, "dropout: got 1, allowed is 0 <= dropout < 1"),
            ({"places": 3}, "places: got 3, allowed is at least context 4, or 0"),
            ({"waypoint_steps": -1}, "waypoint_steps: got -1, allowed is 0"),
            ({"waypoint_horizon": 0}, "waypoint_horizon: got 0, allowed is at least 1"),
            ({"longest": 0}, "longest: got 0, allowed is at least 1"),
        ],
    )
    def test_of_a_wrong_config_are_refused(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError) as caught:
            policy_of(**changes)
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value)

    def test_of_a_wrong_first_stage_are_refused(self) -> None:
        with pytest.raises(InputError, match=r"^horizon: got 40, allowed is less than context 40$"):
            WaypointConfig(state_size=4, action_size=2, condition="goal", goal_size=2, horizon=40)


class TestWhatTheDataDecide:
    @pytest.mark.parametrize(
        ("env_id", "keys", "size", "condition", "columns"),
        [
            ("PointMaze_UMaze-v3", ("observation", "achieved_goal", "desired_goal"), 8, "goal", (4, 2)),
            ("dmm/AntMaze-v0", ("achieved_goal", "observation"), 29, "goal", (0, 2)),
            ("dmm/Kitchen-v0", (), 60, "goal", (0, 60)),
            ("AntMaze_UMaze-v5", ("observation", "desired_goal"), 107, "returns", (0, 0)),
            ("Hopper-v5", (), 11, "returns", (0, 0)),
            ("", (), 4, "returns", (0, 0)),
        ],
    )
    def test_is_the_condition(
        self, env_id: str, keys: tuple[str, ...], size: int, condition: str, columns: tuple[int, int]
    ) -> None:
        facts = Facts(state_size=size, action_size=2, env_id=env_id, observation_keys=keys)
        config = MODELS["wt"].config_for(facts, {})
        assert (config.condition, config.goal_start, config.goal_size) == (condition, *columns)
        other = MODELS["wt"].config_for(facts, {"condition": "returns"})
        assert other.condition_size == 2

    @pytest.mark.parametrize(
        ("returns", "scale"),
        [
            ((0.0, 3222.4), 3000.0),
            ((-300.0, 11252.0), 11000.0),
            ((-3.0, 500.5), 1000.0),
            ((0.0, 1.0), 1.0),
            ((0.0, 4.0), 4.0),
            ((-1500.0, -120.0), 1500.0),
            ((0.0, 0.0), 1.0),
            ((), None),
        ],
    )
    def test_is_what_cumulative_returns_are_divided_by(self, returns: tuple[float, ...], scale: float | None) -> None:
        assert return_scale(returns) == scale

    def test_is_the_authors_n(self, golden: Golden) -> None:
        config = MODELS["wt"].config_for(Facts.of(golden.data()), {})
        assert config.return_scale == golden.config["return_normalization"]
        assert (config.longest, config.waypoint_horizon) == (420, 30)

    def test_is_a_shorter_horizon_where_episodes_are_short(self, trajectories: Trajectories) -> None:
        assert MODELS["wt"].config_for(Facts.of(trajectories), {}).waypoint_horizon == 6
        assert MODELS["wt"].make_config(4, 2).waypoint_horizon == 30


class TestActing:
    def test_sees_its_history_from_the_first_place_and_the_present_condition(self) -> None:
        for policy in (policy_of(), goal_policy()):
            wanted = Wanted(torch.tensor([6.0, 2.0]), torch.randn(2, 2))
            state, seen, reward = policy.init_state(2, wanted), torch.empty(2, 0, 4), None
            for t in range(7):
                observation = torch.randn(2, 4)
                seen = torch.cat([seen, observation[:, None]], dim=1)[:, -4:]
                action, state = policy.act(state, observation, reward)
                condition = wanted.goals
                if policy.config.condition == "returns":
                    returns = torch.as_tensor(wanted.returns)
                    condition = torch.stack([returns / 1000, (returns - 0.5 * t) / 1000], dim=1)
                assert condition is not None
                k = seen.shape[1]
                windows = ConditionWindows(
                    returns_to_go=torch.zeros(2, k, 1),
                    states=seen,
                    actions=torch.zeros(2, k, 2),
                    timesteps=torch.zeros(2, k, dtype=torch.int64),
                    mask=torch.ones(2, k, dtype=torch.bool),
                    condition=condition[:, None].expand(2, k, 2),
                )
                torch.testing.assert_close(action, policy(windows)[:, -1].detach(), rtol=1e-5, atol=1e-6)
                reward = torch.full((2,), 0.5)

    def test_makes_a_target_both_returns(self) -> None:
        policy = policy_of(longest=50, return_scale=4.0)
        state = policy.init_state(2, torch.tensor([10.0, 20.0]))
        torch.testing.assert_close(state.condition[:, -1], torch.tensor([[0.2, 2.5], [0.4, 5.0]]))
        state = policy.act(state, torch.randn(2, 4))[1]
        state = policy.act(state, torch.randn(2, 4), torch.tensor([2.0, 4.0]))[1]
        torch.testing.assert_close(state.condition[:, -1], torch.tensor([[0.2, 2.0], [0.4, 4.0]]))

    def test_has_its_goals_row_by_row(self) -> None:
        policy, goals, observation = goal_policy(), torch.randn(3, 2), torch.randn(3, 4)
        expected, state = policy.act(policy.init_state(3, Wanted(goals=goals)), observation)
        assert (expected[0] - expected[1]).abs().max() > 1e-4
        chosen = policy.select(state, torch.tensor([2, 0]))
        assert torch.equal(chosen.condition[:, -1], goals[[2, 0]])
        state = policy.next_episode(state, torch.tensor([1]), Wanted(goals=goals[:1]), None)  # type: ignore[arg-type]
        assert torch.equal(state.condition[:, -1], goals[[0, 0, 2]]) and not state.mask[1].any()

    def test_without_a_goal_is_refused_unless_one_is_usual(self) -> None:
        with pytest.raises(InputError, match=r"^goals: got none, allowed is one for each episode, \(3, 2\).* wt goes"):
            goal_policy().init_state(3, 1.0)
        with pytest.raises(InputError, match=r"^goals: got shape \(3, 1\), allowed is \(3, 2\)$"):
            goal_policy().init_state(3, Wanted(goals=torch.zeros(3, 1)))
        state = goal_policy(goal="1.5 -2").init_state(3, 1.0)
        assert torch.equal(state.condition[:, -1], torch.tensor([[1.5, -2.0]]).expand(3, 2))

    def test_in_the_kitchen_is_asked_for_the_best_episode_s_end(self, make_trajectories: MakeTrajectories) -> None:
        data = make_trajectories(state_size=6, env_id="dmm/Kitchen-v0")
        config = MODELS["wt"].config_for(Facts.of(data), {"width": 8})
        best = int(data.returns().argmax())
        assert data.last_observations is not None
        end = data.last_observations[best]
        state = WaypointTransformer(config).init_state(2, 4.0)
        torch.testing.assert_close(state.condition[1, -1], torch.from_numpy(end))

    def test_discrete_actions_are_logits(self) -> None:
        policy = policy_of()
        policy.discrete_actions = True
        action, state = policy.act(policy.init_state(3, 1.0), torch.randn(3, 4))
        assert (action.sum(dim=1) == 1).all() and torch.equal(state.actions[:, -1], action)

    def test_sees_states_and_conditions_alone(self) -> None:
        for policy in (policy_of(), goal_policy()):
            found = reach(policy)
            assert found.is_causal()
            assert found.last() == {"returns_to_go": None, "states": (-3, 0), "actions": None, "condition": (-3, 0)}


def quick(data: Trajectories, out: Path, steps: int = 8, **more: Any) -> Run:
    changes = SMALL | RECIPE | {"waypoint_steps": 6} | more.pop("changes", {})
    return train(data, "wt", steps=steps, out=out, changes=changes, device="cpu", progress=False, **more)


def same(one: Policy, other: Policy) -> bool:
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


class TestTheFirstStage:
    def test_is_a_run_in_the_runs_folder_and_frozen_in_the_policy(
        self, trajectories: Trajectories, tmp_path: Path
    ) -> None:
        run = quick(trajectories, tmp_path)
        first = load_run(tmp_path / "waypoints")
        assert (first.step, first.info["model"], first.policy.config.width) == (6, "waypoints", 7)
        assert first.info["training"]["learning_rate"] == 1e-3 and first.info["training"]["batch_size"] == 64
        assert isinstance(run.policy, WaypointTransformer)
        assert same(run.policy.waypoints, first.policy.waypoints)  # type: ignore[arg-type]
        assert same(load_run(tmp_path).policy.waypoints, first.policy.waypoints)  # type: ignore[arg-type]

    @pytest.mark.parametrize(("stage", "stopped_at"), [("waypoints", 100), ("waypoints", 300), ("wt", 2), ("wt", 6)])
    def test_stopped_in_either_stage_it_goes_on_to_the_same_bits(
        self, trajectories: Trajectories, tmp_path: Path, stage: str, stopped_at: int
    ) -> None:
        """Before and behind the first checkpoint, of which there is one every 200 and every 4 updates."""
        more: Any = {"changes": {"waypoint_steps": 310}}
        whole, write = quick(trajectories, tmp_path / "whole", **more), Loop._write

        def stop(loop: Loop) -> None:
            write(loop)
            if loop.runs[0].info["model"] == stage and loop.step == stopped_at:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "_write", stop)
            with pytest.raises(KeyboardInterrupt):
                quick(trajectories, tmp_path / "run", **more)
        assert (tmp_path / "run/waypoints").exists()
        again = quick(trajectories, tmp_path / "run", resume=True, **more)
        assert same(again.policy, whole.policy)
        first, undisturbed = (load_run(tmp_path / name / "waypoints") for name in ("run", "whole"))
        assert same(first.policy, undisturbed.policy) and first.step == 310

    def test_is_as_long_as_the_run_unless_it_is_said(self, trajectories: Trajectories, tmp_path: Path) -> None:
        quick(trajectories, tmp_path, steps=5, changes={"waypoint_steps": 0})
        assert load_run(tmp_path / "waypoints").step == 5

    def test_is_not_trained_further_with_a_run_that_has_it(self, trajectories: Trajectories, tmp_path: Path) -> None:
        run = quick(trajectories, tmp_path, steps=4, changes={"waypoint_steps": 0})
        longer = quick(trajectories, tmp_path, steps=8, changes={"waypoint_steps": 0}, resume=True)
        first = load_run(tmp_path / "waypoints")
        assert (longer.step, first.step) == (8, 4)
        assert same(longer.policy.waypoints, run.policy.waypoints)  # type: ignore[arg-type]
        assert same(longer.policy.waypoints, first.policy.waypoints)  # type: ignore[arg-type]

    def test_lists_do_not_show_it(self) -> None:
        with pytest.raises(InputError, match="allowed are ") as caught:
            find_model("gpt")
        shown = str(caught.value).split("allowed are ")[1].split(", ")
        assert "wt" in shown and "waypoints" not in shown


class TestTraining:
    @pytest.fixture
    def maze(self, datasets_path: Path) -> Trajectories:
        collect(MAZE, transitions=900, workers=1, progress=False)
        return load_trajectories(MAZE)

    @pytest.mark.parametrize("condition", ["goal", "returns"])
    def test_it_learns_in_a_maze_and_is_evaluated(self, maze: Trajectories, tmp_path: Path, condition: str) -> None:
        changes = {"width": 16, "features": 16, "learning_rate": 3e-3, "log_every": 50}
        changes |= {} if condition == "goal" else {"condition": condition}
        run = train(maze, "wt", steps=100, out=tmp_path / "run", changes=changes, device="cpu", progress=False)
        config = run.policy.config
        assert isinstance(config, WTConfig) and config.condition == condition
        waypoints = load_run(tmp_path / "run/waypoints")
        assert waypoints.policy.config.condition == condition  # type: ignore[union-attr]
        assert run.log["loss"][-1] < run.log["loss"][0]
        result = evaluate(load_run(tmp_path / "run"), episodes=2, max_steps=20, progress=False)
        assert len(result.scores[0].returns) == 2

    @pytest.mark.parametrize("name", ["wt", "waypoints"])
    def test_stacked_losses_and_gradients_are_those_of_each(self, trajectories: Trajectories, name: str) -> None:
        entry = MODELS[name]
        policies = [entry.policy(entry.make_config(4, 2, "", width=8)).double() for _ in range(3)]
        for policy in policies:
            if isinstance(policy, WaypointTransformer):
                torch.nn.init.normal_(policy.head.log_std)
        sampler = entry.sampler(trajectories, policies[0].config, "cpu")
        index = torch.stack([sampler.draw(1, 5, torch.Generator().manual_seed(seed))[0] for seed in range(3)])
        batch: Any = sampler.gather(index).map(lambda x: x.double() if x.is_floating_point() else x)
        together = stack(policies, [torch.Generator().manual_seed(seed) for seed in range(3)])
        [joint] = together.loss(batch).values()
        of_all = _gradients(joint.sum(), together)
        for seed, policy in enumerate(policies):
            torch.manual_seed(seed)
            [alone] = policy.loss(batch.map(lambda x, seed=seed: x[seed])).values()
            torch.testing.assert_close(joint[seed], alone)
            for both, one in zip(of_all, _gradients(alone, policy), strict=True):
                torch.testing.assert_close(both[seed], one)


def _gradients(loss: Tensor, policy: Policy) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [weight for weight in policy.parameters() if weight.requires_grad])
