"""The policy in the page acts as the one in Python: the same actions, for each way of acting and kind of part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dmm.acting import RecurrentActor
from dmm.errors import RunError
from dmm.experiments.node import run_node
from tests.assets.conftest import WAYS, actions_in_python, exported, moved, steps_of

ACT = """
const policy = dmm.readPolicy(data.policy);
return data.cases.map(({ way, states, cut, padding }) => {
  const actor = new dmm.Actor(policy, { way, states, cut, padding });
  actor.reset(data.target);
  return data.steps.map(([observation, reward], t) => Array.from(actor.act(observation, t ? reward : null)));
});
"""
SMALL: dict[str, Any] = {"state_size": 5, "action_size": 3, "context": 4, "width": 24, "layers": 2, "rtg_scale": 2.0}
CONFIGS = {
    "dmm": ("dmm", {}),
    "as in the paper": ("dmm", {"residual": "normalized", "dsm_bias": True, "expand": 2}),
    "as released for AntMaze": ("dmm", {"share_norms": True, "share_dsm": True, "train_dsm": False, "width": 32}),
    "long window": ("dmm", {"window": 12}),
    "window of one": ("dmm", {"window": 1}),
    "one layer": ("dmm", {"layers": 1}),
    "depthwise": ("dmm", {"local_mixer": "depthwise", "dsm_bias": True}),
    "multimodal": ("dmm", {"local_mixer": "multimodal"}),
    "mamba2": ("dmm", {"global_mixer": "mamba2", "head_size": 8, "expand": 2}),
    "attention": ("dmm", {"global_mixer": "attention", "head_size": 8}),
    "s4": ("dmm", {"global_mixer": "s4"}),
    "gelu without skip": ("dmm", {"activation": "gelu", "skip": False}),
    "relu": ("dmm", {"activation": "relu", "ssm_state": 4}),
    "long context": ("dmm", {"context": 12}),
    "mamba": ("mamba", {}),
    "wide mamba": ("mamba", {"conv_width": 2, "ssm_state": 3, "width": 40}),
    "dt": ("dt", {}),
    "dt of two heads, few times": ("dt", {"heads": 2, "max_timestep": 7}),
}


def compare(policy: Any, model: str, cases: list[tuple[str, int]], steps: Any, target: float = 3.0) -> float:
    """The largest difference of any action, over all cases."""
    given = {"policy": exported(policy, model), "steps": steps, "target": target}
    given["cases"] = [{"way": way, "states": states} for way, states in cases]
    here = [actions_in_python(policy, steps, target, way, states) for way, states in cases]
    there = torch.tensor(run_node(ACT, given), dtype=torch.float64)
    return float((torch.stack(here) - there).abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_actions_are_those_of_python(name):
    model, changes = CONFIGS[name]
    policy = moved(model, **(SMALL | changes))
    attends = model == "dt" or changes.get("global_mixer") == "attention"
    steps = steps_of(policy, 3 * policy.context + 1)
    assert compare(policy, model, WAYS[:1] if attends else WAYS, steps) < 1e-9


def test_discrete_actions_are_one_hot_and_remembered_so():
    policy = moved("dmm", discrete=True, **SMALL)
    steps = steps_of(policy, 13)
    assert compare(policy, "dmm", WAYS, steps) == 0
    chosen = actions_in_python(policy, steps, 3.0, "window", 1).argmax(dim=1)
    assert len(set(chosen.tolist())) > 1  # else one action would pass for all


def test_a_recurrence_may_begin_without_padding():
    policy: Any = moved("dmm", **SMALL)
    steps = steps_of(policy, 9)
    given = {"policy": exported(policy, "dmm"), "steps": steps, "target": 3.0}
    given["cases"] = [{"way": "recurrent", "padding": padding} for padding in (True, False)]
    behind, without = torch.tensor(run_node(ACT, given), dtype=torch.float64)
    actor, here = RecurrentActor(copy.deepcopy(policy).double(), padding=False), []
    state = actor.init_state(1, 3.0)
    for t, (observation, reward) in enumerate(steps):
        earned = torch.tensor([reward]).double() if t else None
        action, state = actor.act(state, torch.tensor([observation]).double(), earned)
        here.append(action[0])
    assert (torch.stack(here) - without).abs().max() < 1e-9
    assert (without - behind).abs().max() > 1e-3


@pytest.mark.parametrize("way", ["window", "staggered"])
def test_other_ways_need_padding(way):
    given = {"policy": exported(moved("dmm", **SMALL), "dmm"), "way": way}
    code = "new dmm.Actor(dmm.readPolicy(data.policy), { way: data.way, padding: false });"
    with pytest.raises(RunError, match=f"padding: got false, allowed is true for {way}"):
        run_node(code, given)


@pytest.mark.parametrize("way", ["window", "recurrent", "staggered"])
def test_a_context_of_one_step(way):
    policy = moved("dmm", **(SMALL | {"context": 1, "window": 3}))
    assert compare(policy, "dmm", [(way, 1)], steps_of(policy, 5)) < 1e-9


def test_other_weights_act_otherwise():
    one, other = (moved("dmm", seed, **SMALL) for seed in (0, 1))
    steps = steps_of(one, 6)
    here, there = (actions_in_python(policy, steps, 3.0, "window", 1) for policy in (one, other))
    assert (here - there).abs().max() > 0.1


def test_delayed_rewards_are_not_taken_off():
    policy = moved("dmm", **SMALL)
    steps = steps_of(policy, 9)
    given = {"policy": exported(policy, "dmm", delayed_rewards=True), "steps": steps, "target": 3.0}
    there = run_node(ACT, given | {"cases": [{"way": "window"}]})[0]
    unpaid = [(observation, 0.0) for observation, _ in steps]
    here = actions_in_python(policy, unpaid, 3.0, "window", 1)
    assert (here - torch.tensor(there, dtype=torch.float64)).abs().max() < 1e-9


def test_another_return_may_be_asked_in_mid_episode():
    policy = moved("dmm", **SMALL)
    steps = steps_of(policy, 9)
    code = """
      const actor = new dmm.Actor(dmm.readPolicy(data.policy), { way: "recurrent" });
      actor.reset(3);
      const actions = [], asked = [];
      data.steps.forEach(([observation, reward], t) => {
        if (t === 5) actor.ask(-2);
        actions.push(Array.from(actor.act(observation, t ? reward : null)));
        asked.push(actor.returnToGo);
      });
      return { actions, asked, earned: actor.earned, steps: actor.steps, seen: actor.seen() };
    """
    there = run_node(code, {"policy": exported(policy, "dmm"), "steps": steps})
    rewards = [reward for _, reward in steps]
    rewards[5] += 5.0  # as if this much less had been left to earn
    as_paid = [(observation, reward) for (observation, _), reward in zip(steps, rewards, strict=True)]
    here = actions_in_python(policy, as_paid, 3.0, "recurrent", 1)
    assert (here - torch.tensor(there["actions"], dtype=torch.float64)).abs().max() < 1e-9
    earned = sum(reward for _, reward in steps[1:])
    assert there["earned"] == pytest.approx(earned) and there["steps"] == 9
    assert there["asked"][-1] == pytest.approx(-2 - earned)
    assert [step["step"] for step in there["seen"]] == [5, 6, 7, 8]
    assert [step["returnToGo"] for step in there["seen"]] == there["asked"][5:]
    assert there["seen"][-1]["reward"] is None and there["seen"][0]["reward"] == pytest.approx(steps[6][1])
    assert there["seen"][2]["action"] == there["actions"][7] and there["seen"][3]["observation"] == steps[8][0]


def test_a_new_episode_is_a_new_one():
    policy = moved("dmm", **SMALL)
    code = """
      return ["window", "recurrent", "staggered"].map(way => {
        const actor = new dmm.Actor(dmm.readPolicy(data.policy), { way });
        return [0, 1, 2].map(() => {
          actor.reset(3);
          return data.steps.map(([observation, reward], t) => Array.from(actor.act(observation, t ? reward : null)));
        });
      });
    """
    for first, *others in run_node(code, {"policy": exported(policy, "dmm"), "steps": steps_of(policy, 9)}):
        assert all(other == first for other in others)


MISSING = object()


def spoiled(changes: dict[str, Any]) -> dict[str, Any]:
    """A good export with some entries changed, by their path."""
    made: dict[str, Any] = copy.deepcopy(exported(moved("dmm", **SMALL), "dmm"))
    for path, value in changes.items():
        *folders, name = path.split("/")
        part = made
        for folder in folders:
            part = part[folder]
        part[name] = value
        if value is MISSING:
            del part[name]
    return made


WRONG = {
    "policy: this is not what `dmm export` writes": {"format": "something else"},
    "policy: version: got 2, allowed is 1; export the run anew": {"version": 2},
    'policy: model: got "iql", allowed is dmm, mamba, dt': {"model": "iql"},
    "policy: its config, environment or returns are missing": {"config": None},
    "weights: they cannot be read": {"weights/data": "no base64!"},
    "weights: embed_rtg.weight is cut off": {"weights/data": ""},
    "weights: head.bias is missing": {"weights/tensors/head.bias": MISSING},
    "weights: head.weight: got shape [2,24], allowed is [3,24]": {"weights/tensors/head.weight/shape": [2, 24]},
    "weights: embed_rtg.weight is not finite": {"weights/data": "/" * 400_000},
    "state_mean: got [0,null], allowed is 5 finite numbers": {"state_mean": [0.0, float("nan")]},
    'global_mixer: got "rnn", allowed is mamba, mamba2, attention or s4': {"config/global_mixer": "rnn"},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_policy_is_refused_in_one_sentence(message):
    code = "try { dmm.readPolicy(data); } catch (error) { return error.message; } return 'accepted';"
    assert run_node(code, spoiled(WRONG[message])) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{ way: 'cached' }", 'way: got "cached", allowed is window, recurrent, staggered for this model'),
        ("{ way: 'staggered', states: 3 }", "states: got 3, allowed is a divisor of the context 4"),
        ("{ cut: { gate: [3] } }", "cut: gate: got 3, allowed is 1, 2"),
        ("{ cut: { tokens: ['reward'] } }", 'cut: tokens: got "reward", allowed is rtg, state, action'),
        ("{ cut: { head: [1] } }", 'cut: got "head", allowed is tokens, window, gate'),
    ],
)
def test_an_actor_refuses_what_it_cannot_do(options, message):
    code = f"try {{ new dmm.Actor(dmm.readPolicy(data), {options}); }} catch (error) {{ return error.message; }}"
    assert run_node(code, exported(moved("dmm", **SMALL), "dmm")) == message


def test_attention_acts_from_its_window_alone():
    code = "const { ways, cuts } = dmm.readPolicy(data); return { ways, cuts };"
    found = run_node(code, exported(moved("dt", **SMALL), "dt"))
    assert found == {"ways": ["window"], "cuts": {"tokens": ["rtg", "state", "action"], "window": [], "gate": []}}


def test_an_error_of_the_script_is_reported():
    with pytest.raises(RunError, match="no such thing"):
        run_node("throw new Error('no such thing');")
