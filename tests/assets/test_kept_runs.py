"""The policies that the book shows, over whole episodes in their own worlds: in the page as in Python."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dmm.acting import make_actor
from dmm.data.worlds import world_start
from dmm.evaluation import make_env
from dmm.experiments import kept_run
from dmm.experiments.node import run_node
from dmm.export import describe_policy
from tests.assets.conftest import WAYS, actions_in_python
from tests.assets.test_policy import ACT

TASKS = {"pointmaze": 1.0, "hopper": 3600.0}
RUNS = [f"gating/{task}-{model}-seed0" for task in TASKS for model in ("dmm", "mamba", "dt")]
STEPS = 200
PLAY = """
const policy = dmm.readPolicy(data.policy);
const world = dmm.makeWorld(policy.environment.world, await dmm.startMujoco(data.wasm));
return data.ways.map(([way, states]) => {
  const actor = new dmm.Actor(policy, { way, states });
  const rows = [{ observation: world.reset({ state: data.start }), reward: null }];
  actor.reset(data.target);
  while (rows.length <= data.steps) {
    const { observation, reward } = rows[rows.length - 1];
    const made = world.step(dmm.played(policy, actor.act(observation, reward)));
    rows.push(made);
    if (made.terminated || made.truncated) break;
  }
  return rows.map(({ observation, reward }) => [observation, reward]);
});
"""


def ways_of(name: str) -> list[tuple[str, int]]:
    return WAYS[:1] if "-dt-" in name else [("window", 1), ("recurrent", 1), ("staggered", 4)]


def target_of(name: str) -> float:
    return next(target for task, target in TASKS.items() if task in name)


def episode(run: Any, way: str, states: int, target: float, steps: int) -> tuple[dict[str, Any], list[Any], Any]:
    """The start, each step's observation and the reward before it, and the actions, of an episode played in float64."""
    env, actor = make_env(run.info), make_actor(copy.deepcopy(run.policy).double(), way, states)
    observation, _ = env.reset(seed=11)
    start, rows, state = world_start(env), [(observation.tolist(), None)], actor.init_state(1, target)
    over, reward, actions = False, None, []
    while not over and len(rows) <= steps:
        action, state = actor.act(state, torch.from_numpy(observation)[None].double(), reward)
        actions.append(action)
        observation, earned, terminated, truncated, _ = env.step(action[0].numpy().astype(np.float32))
        over, reward = terminated or truncated, torch.tensor([float(earned)], dtype=torch.float64)
        rows.append((observation.tolist(), float(earned)))  # type: ignore[arg-type]
    env.close()
    return start, rows, actions


@pytest.mark.parametrize("name", RUNS)
def test_actions_of_a_whole_episode(name):
    run, target = kept_run(name), target_of(name)
    _, rows, played = episode(run, "window", 1, target, 1000)
    steps = [(observation, reward or 0.0) for observation, reward in rows[:-1]]
    given = {"policy": describe_policy(run), "steps": steps, "target": target}
    given["cases"] = [{"way": way, "states": states} for way, states in ways_of(name)]
    there = torch.tensor(run_node(ACT, given), dtype=torch.float64)
    others = [actions_in_python(run.policy, steps, target, *way) for way in ways_of(name)[1:]]
    assert (torch.stack([torch.cat(played), *others]) - there).abs().max() < 1e-9
    half = actions_in_python(run.policy, steps, target, "window", 1, torch.float32)
    assert (half - there[0]).abs().max() < 1e-5
    assert len(steps) > 50


@pytest.mark.parametrize("name", RUNS)
def test_the_course_of_an_episode(name, in_page):
    """The page plays by itself: differences of a rounding may grow where feet meet the ground."""
    run, target, (way, states) = kept_run(name), target_of(name), ways_of(name)[-1]
    policy, limit = describe_policy(run), 1e-4 if "hopper" in name else 1e-6
    start, here, _ = episode(run, way, states, target, STEPS)
    given = {"policy": policy, "start": start, "target": target, "ways": [[way, states]], "steps": STEPS}
    there = in_page(PLAY, given)[0]
    assert len(there) == len(here) > 50
    apart = [np.array(one) - other for (one, _), (other, _) in zip(here, there, strict=True)]
    assert np.abs(apart).max() < limit
    assert sum(r for _, r in there[1:]) == pytest.approx(sum(r for _, r in here[1:]), abs=1e-3)
