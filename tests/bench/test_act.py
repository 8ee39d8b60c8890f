"""The benchmark of acting measures what it says. No test depends on how fast the machine is."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dmm import experiments
from dmm.acting import make_actor
from dmm.bench import act as module
from dmm.bench.act import (
    HOPPER,
    WAYS,
    TimedEnv,
    bench_act,
    draw,
    hopper_policy,
    latencies,
    remembering,
    report,
    with_timed_simulator,
)
from dmm.cli import app
from dmm.data.observations import FlatObservation
from dmm.errors import InputError
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.registry import MODELS


@pytest.fixture(scope="module")
def result() -> Any:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPAN", 3)
        patch.setattr(module, "costs_of_models", partial(module.costs_of_models, steps=2, rounds=1))
        patch.setattr(module, "versions", lambda: {"d3rlpy": None})
        found = bench_act(steps=(9, 2), episodes=1, progress=False)
    yield found
    assert torch.get_num_threads() == before


def test_every_way_is_timed_at_every_step(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert list(result["latency"]) == [*WAYS, "dt, window of 20"] and result["left_out"] == {"d3rlpy": "not installed"}
    for row in result["latency"].values():
        assert [each["step"] for each in row["steps"]] == [2, 9]
        first, last = (each["us"]["median"] for each in row["steps"])
        assert first > 0 and row["last_over_first"] == pytest.approx(last / first)


def test_episodes_are_played_in_every_way(result: dict[str, Any]) -> None:
    played = result["episodes"]
    assert played["policy"] == module.COMMITTED and list(played["ways"]) == list(WAYS)
    for row in played["ways"].values():
        parts = row["simulator"]
        assert row["ratio"] == pytest.approx(row["seconds"] / parts["step"]) and min(parts.values()) > 0
        assert row["over_whole_simulator"] == pytest.approx(row["seconds"] / sum(parts.values()))
        assert row["ratio"] > row["over_whole_simulator"] > 1
        assert row["steps"] > 1


def test_one_action_of_every_model_is_timed(result: dict[str, Any]) -> None:
    assert set(result["models"]) == {name for name, model in MODELS.items() if not model.hidden}
    dmm, bc = result["models"]["dmm"], result["models"]["bc"]
    assert dmm["over_dmm"] == 1 and bc["us"] > 0 and bc["over_dmm"] == pytest.approx(bc["us"] / dmm["us"])
    window = DecisionMetaMamba(DMMConfig(**HOPPER)).init_state(1, 0.0)  # type: ignore[arg-type]
    assert dmm["memory"] == sum(x.numel() * x.element_size() for x in vars(window).values()) > bc["memory"] > 0
    assert result["models"]["rvs-g"]["data"].startswith("AntMaze") and "rvs-g" in report(result)


def test_report_and_picture(result: dict[str, Any], tmp_path: Path) -> None:
    text = report(result)
    assert "staggered, 4 states" in text and "ratio" in text and "d3rlpy" in text
    draw(result, tmp_path / "act.svg")
    assert (tmp_path / "act.svg").stat().st_size > 5_000


def test_command(result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(module, "bench_act", lambda **more: asked.update(more) or result)
    run = CliRunner().invoke(app, ["bench", "act", "--json", "--episodes", "7"])
    assert run.exit_code == 0 and json.loads(run.stdout) == result
    assert asked["steps"] == module.STEPS and asked["episodes"] == 7
    assert "microseconds per action" in CliRunner().invoke(app, ["bench", "act", "--step", "3"]).stdout
    assert asked["steps"] == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"steps": [0, 3]}, "step: got 0"), ({"episodes": 0}, "episodes: got 0"), ({"threads": 0}, "threads: got 0")],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_act(**arguments, progress=False)


def test_what_is_timed_is_the_actor_with_its_memory() -> None:
    policy = DecisionMetaMamba(DMMConfig(**HOPPER)).eval()  # type: ignore[arg-type]
    actor = make_actor(policy, "recurrent")
    act, state, reward = remembering(actor), actor.init_state(1, module.TARGET), None
    for _ in range(4):
        observation = torch.randn(1, 11)
        expected, state = actor.act(state, observation, reward)
        played = act(observation, torch.zeros(1) if reward is None else reward)
        assert torch.equal(played, expected)  # type: ignore[arg-type]
        reward = torch.rand(1)


def test_actors_take_turns_each_with_its_own_steps_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPAN", 4)
    monkeypatch.setattr(module, "TURN", 2)
    calls: list[str] = []
    letters = iter("abcd")

    def make() -> module.Act:
        letter = next(letters)
        return lambda *_: calls.append(letter)

    found = latencies({"one": make, "other": make}, [1, 3], torch.device("cpu"))
    before, measured = "abbbcddd", "aabbccdd"
    assert "".join(calls) == before + 2 * measured
    assert [row["step"] for row in found["other"]["steps"]] == [1, 3]


def test_steps_and_resets_are_timed_apart() -> None:
    clock = dict.fromkeys(("step", "reset", "steps", "resets"), 0.0)
    env = TimedEnv(gym.make("Hopper-v5"), clock)
    env.reset(seed=0)
    assert clock["step"] == 0 < clock["reset"] and clock["resets"] == 1
    env.step(np.zeros(3, dtype=np.float32))
    assert clock["step"] > 0 and clock["steps"] == 1


def test_the_simulator_is_timed_beneath_the_packages_wrappers() -> None:
    flat = FlatObservation(gym.make("Hopper-v5"))
    inner = flat.env
    assert with_timed_simulator(flat, {}) is flat
    assert isinstance(flat.env, TimedEnv) and flat.env.env is inner


def test_one_environment_of_some_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[gym.Env] = []
    plain = module.with_timed_simulator
    monkeypatch.setattr(module, "TIMED", 2)
    monkeypatch.setattr(module, "with_timed_simulator", lambda *a: made.append(a[0]) or plain(*a))
    policy = DecisionMetaMamba(DMMConfig(**HOPPER)).eval()  # type: ignore[arg-type]
    row = module.playing_time(make_actor(policy), None, 4, False)
    assert len(made) == 2 and min(row["simulator"].values()) > 0
    assert row["simulator"]["step"] < row["seconds"] and row["steps"] > 4


def test_an_untrained_policy_plays_where_the_models_are_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experiments, "MODELS", tmp_path)
    run, policy, source = hopper_policy()
    assert run is None and source == "untrained" and policy.state_size == 11
    monkeypatch.setattr(module, "WAYS", {"window": ("window", 1)})
    assert module.playing_times(1)["ways"]["window"]["steps"] > 1


def test_d3rlpy_acts_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[int, ...], float]] = []

    class Algorithm:
        def as_stateful_wrapper(self, target_return: float) -> Any:
            return type("Actor", (), {"predict": lambda self, x, reward: seen.append((x.shape, reward))})()

    monkeypatch.setattr(module, "versions", lambda: {"d3rlpy": "2"})
    monkeypatch.setattr(module, "d3rlpy_dt", lambda *sizes, device: Algorithm())
    makers, left_out = module.acting_candidates(torch.device("cpu"))
    makers["d3rlpy's dt, window of 20"]()(torch.zeros(1, 11), torch.ones(1))
    assert seen == [((11,), 1.0)] and not left_out
    monkeypatch.setattr(module, "d3rlpy_dt", lambda *sizes, device: sys.modules["no such module"])
    assert "does not work here" in module.acting_candidates(torch.device("cpu"))[1]["d3rlpy"]
