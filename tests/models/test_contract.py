"""What every model of the registry keeps to, written once: a new entry is tested by being there."""

from __future__ import annotations

import dataclasses
import importlib.util
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows
from dmm.errors import InputError
from dmm.evaluation import rollout
from dmm.inspection.cards import card
from dmm.inspection.reach import Reach, random_windows, reach
from dmm.models.entry import Facts, Model
from dmm.models.registry import MODELS, read_changes
from dmm.policy import Policy, next_window
from dmm.training import TrainConfig, load_run, train, train_seeds
from dmm.training.loop import Loop
from dmm.training.plan import make_plan
from dmm.training.record import require_readable
from dmm.training.stacking import stack

SMALL: dict[str, Any] = {"context": 4, "groups": 3, "interval": 2, "width": 8, "layers": 2}
RECIPE: dict[str, Any] = {"batch_size": 6, "log_every": 1, "checkpoint_every": 2}
SEES_AHEAD = ("dm-multigrained",)
"""Models whose release lets an action see what is ahead while it trains: the flaw is part of the model."""


@pytest.fixture(params=[name for name, model in MODELS.items() if not model.hidden])
def model(request: pytest.FixtureRequest) -> Model:
    return MODELS[request.param]


def small(model: Model) -> dict[str, Any]:
    """Changes that make a model small, of the fields that it has."""
    known = {field.name: type(field.default) for field in dataclasses.fields(model.config)}
    return {name: value for name, value in SMALL.items() if known.get(name) is int}


def made(model: Model, trajectories: Trajectories, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    policy = model.policy(model.config_for(Facts.of(trajectories), small(model)))
    policy.set_state_moments(*map(torch.from_numpy, trajectories.state_moments()))
    return policy


def skip_if_untrainable(model: Model) -> None:
    """Learners are d3rlpy's, which is an extra."""
    if model.learner is not None and importlib.util.find_spec("d3rlpy") is None:
        pytest.skip("d3rlpy, of the value-based extra, is not installed")


def quick(model: Model, data: Trajectories, out: Path, **more: Any) -> Any:
    skip_if_untrainable(model)
    options = {"steps": 6, "out": out, "changes": small(model) | RECIPE, "device": "cpu", "progress": False} | more
    return train(data, model.name, **options)


def same(one: Policy, other: Policy) -> bool:
    return all(torch.equal(weight, other.state_dict()[name]) for name, weight in one.state_dict().items())


def test_it_says_what_it_is(model: Model) -> None:
    made = card(model)
    assert made["description"] and made["source"] and made["loss"] and min(made["weights"].values()) > 0
    assert set(made["weights"]) == set(made["sizes"]) and "\n" not in made["description"] + made["source"]
    assert made["reach"] is None or made["reach"]["states"][1] == 0  # the present state


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    model: Model, trajectories: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, write = quick(model, trajectories, tmp_path / "whole"), Loop._write
    assert np.isfinite(whole.log["loss"]).all() and not same(whole.policy, made(model, trajectories))

    def stop(loop: Loop) -> None:
        write(loop)
        if loop.step == 3:  # behind the checkpoint of step 2
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            quick(model, trajectories, tmp_path / "run")
    again = quick(model, trajectories, tmp_path / "run", resume=True)
    assert same(again.policy, whole.policy)
    np.testing.assert_array_equal(again.log["loss"], whole.log["loss"])


def test_it_is_read_back_as_it_was_written(model: Model, trajectories: Trajectories, tmp_path: Path) -> None:
    run = quick(model, trajectories, tmp_path, steps=2)
    there = load_run(tmp_path)
    assert same(there.policy, run.policy) and there.policy.config == run.policy.config


def test_seeds_as_one_program_are_each_alone_or_it_says_why_not(
    model: Model, trajectories: Trajectories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip_if_untrainable(model)
    options: Any = {"changes": small(model) | RECIPE, "device": "cpu", "progress": False, "workers": 1}
    runs = train_seeds(trajectories, model.name, seeds=(3, 4), steps=3, out=tmp_path / "both", **options)
    apart = "seeds are trained one after the other: " in capsys.readouterr().err
    try:
        stack([made(model, trajectories, seed) for seed in (3, 4)], [torch.Generator(), torch.Generator()])
        assert not apart or model.before or model.learner
    except InputError as error:
        assert apart and str(error).startswith("policies: got a layer ")
    for run in runs:
        seed = run.info["training"]["seed"]
        alone = quick(model, trajectories, tmp_path / f"{seed}", steps=3, seed=seed)
        np.testing.assert_allclose(run.log["loss"], alone.log["loss"], rtol=2e-5)
        if apart:
            assert same(run.policy, alone.policy)


def test_acting_is_the_forward_of_its_window(model: Model, trajectories: Trajectories) -> None:
    policy = made(model, trajectories).eval()
    if type(policy).act is not Policy.act or type(policy).init_state is not Policy.init_state:
        pytest.skip("acts in its own way, which its own tests look at")
    generator = torch.Generator().manual_seed(0)
    state, reward = policy.init_state(2, torch.tensor([1.0, 3.0])), None
    for _ in range(7):
        observation = torch.randn(2, policy.state_size, generator=generator)
        window = next_window(state, observation, reward)
        action, state = policy.act(state, observation, reward)
        torch.testing.assert_close(action, policy(window)[:, -1].detach(), rtol=1e-5, atol=1e-6)
        reward = torch.rand(2, generator=generator)


def test_episodes_side_by_side_are_each_alone(model: Model, trajectories: Trajectories) -> None:
    policy = made(model, trajectories).eval()
    observations = torch.randn(6, 3, policy.state_size, generator=torch.Generator().manual_seed(0))

    def played(rows: list[int]) -> Tensor:
        state, actions = policy.init_state(len(rows), wanted(policy, len(rows))), []
        for t, observation in enumerate(observations):
            action, state = policy.act(state, observation[rows], torch.ones(len(rows)) if t else None)
            actions.append(action)
        return torch.stack(actions)

    together = played([0, 1, 2])
    assert together.shape == (6, 3, policy.action_size) and together.isfinite().all()
    for row in range(3):
        torch.testing.assert_close(together[:, [row]], played([row]), rtol=1e-4, atol=1e-6)


def wanted(policy: Policy, n: int) -> Any:
    """A return, and a goal for those that want one."""
    from dmm.policy import Wanted

    size = getattr(policy.config, "goal_size", 0)
    return Wanted(2.0, torch.zeros(n, size) if size else None, torch.Generator().manual_seed(0))


class Still(gym.Env):
    """Five steps in which nothing moves."""

    observation_space = gym.spaces.Box(-10, 10, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    t = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return np.full(4, seed, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.full(4, self.t, dtype=np.float32), 1.0, self.t == 5, False, {}


def test_it_plays_whole_episodes_and_repeats_them(model: Model, trajectories: Trajectories) -> None:
    policy = made(model, trajectories).eval()
    if getattr(policy.config, "goal_size", 0):
        pytest.skip("wants goals, which this environment has not")

    class Kept:
        def __init__(self) -> None:
            self.played: list[Tensor] = []

        def init_state(self, n: int, target: Any) -> Any:
            return policy.init_state(n, target)

        def act(self, state: Any, observation: Tensor, reward: Tensor | None = None) -> Any:
            action, state = policy.act(state, observation, reward)
            self.played.append(action)
            return action, state

        def select(self, state: Any, rows: Tensor) -> Any:
            return policy.select(state, rows)

    played = []
    for _ in range(2):
        actor = Kept()
        assert rollout(actor, Still, episodes=2, target=4.0).returns.tolist() == [5.0, 5.0]
        played.append(torch.cat(actor.played))
    assert torch.equal(*played)


@pytest.fixture
def windowed(model: Model) -> Model:
    """A model of windows."""
    if not issubclass(model.policy.batch, Windows):  # type: ignore[attr-defined]
        pytest.skip("its batches are no windows; its own tests look at what it sees")
    return model


class TestReach:
    def test_no_action_sees_what_is_ahead(self, windowed: Model, trajectories: Trajectories) -> None:
        policy = made(windowed, trajectories)
        found = reach(policy)
        if windowed.name in SEES_AHEAD:
            assert not found.is_causal()
        else:
            assert found.is_causal(), {name: seen.nonzero().tolist() for name, seen in found.ahead().items()}
        assert found.last()["states"][1] == 0  # the present state

    def test_it_is_what_a_change_changes(self, windowed: Model, trajectories: Trajectories) -> None:
        """Zeros of the Jacobian, and only they, are what an action does not answer to."""
        policy = made(windowed, trajectories).double().eval()
        found, generator = reach(policy), torch.Generator().manual_seed(1)
        windows = random_windows(policy, policy.context, generator)
        before = policy(windows)
        for name, seen in found.seen.items():
            for step in range(policy.context):
                moved = getattr(windows, name).clone()
                moved[:, step] += torch.rand(moved.shape[-1], generator=generator, dtype=moved.dtype)
                after = policy(dataclasses.replace(windows, **{name: moved}))
                changed = (after != before)[0].any(dim=-1)
                assert not (changed & ~seen[:, step]).any(), (name, step)


def test_reach_of_a_policy_known_by_hand() -> None:
    class Shifted(Policy):
        ahead = False

        def forward(self, batch: Windows) -> Tensor:
            before = torch.cat([torch.zeros_like(batch.states[:, :1]), batch.states[:, :-1]], dim=1)[..., :2]
            return before + (batch.actions.sum(1, keepdim=True) if self.ahead else 0)

    policy = Shifted(3, 2, 4)
    found = reach(policy)
    assert isinstance(found, Reach) and found.is_causal()
    assert found.last() == {"returns_to_go": None, "states": (-1, -1), "actions": None}
    assert torch.equal(found.seen["states"], torch.diag(torch.ones(3, dtype=torch.bool), -1))
    policy.ahead = True
    assert not reach(policy).is_causal() and reach(policy, last=True).last()["actions"] == (-3, 0)


def test_draws_do_not_depend_on_how_many_are_made_at_once(model: Model, trajectories: Trajectories) -> None:
    policy = made(model, trajectories)
    sampler = model.sampler(trajectories, policy.config, "cpu")
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    apart = torch.cat([sampler.draw(1, 4, other) for _ in range(3)])
    assert torch.equal(sampler.draw(3, 4, one), apart)


def test_its_seeds_can_be_sent_to_processes_of_their_own(model: Model, trajectories: Trajectories) -> None:
    options: Any = {"steps": 2, "device": "cpu", "resume": False, "start_from": None}
    plan, *_ = make_plan(trajectories, model.name, [0], None, small(model), several=False, **options)
    assert plan.fits_other_processes() == (not model.before)
    assert ForkingPickler.loads(ForkingPickler.dumps(plan)).model_config == plan.model_config


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "dmm/AntMaze-v0", "FrankaKitchen-v1"])
def test_the_authors_sizes_and_recipe_for_every_domain(model: Model, env_id: str) -> None:
    if model.published is None:
        with pytest.raises(
            InputError, match=rf"^sizes: got 'published' for {model.name}, which has no sizes but its own"
        ):
            read_changes({"sizes": "published"}, model, TrainConfig, Facts(state_size=29, action_size=8))
        return
    facts = Facts(state_size=29, action_size=8, env_id=env_id)
    changes, recipe = read_changes({"sizes": "published", "batch_size": 3}, model, TrainConfig, facts)
    if "goal_size" in changes and not changes["goal_size"]:
        return  # this domain has no goals
    config, training = model.config_for(facts, changes), TrainConfig(**{"steps": 5, **recipe})
    assert training.batch_size == 3  # said by hand, on top of theirs
    require_readable(config, training)
    with torch.device("meta"):
        assert model.policy(config).parameter_count() > 0
