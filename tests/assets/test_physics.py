"""MuJoCo's worlds in the page are Gymnasium's and gymnasium-robotics': observations, rewards and ends of episodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dmm.data.observations import build_flat_env
from dmm.data.recipes import RECIPES
from dmm.data.worlds import describe_world, world_start

PLAY = """
const world = dmm.makeWorld(data.world, await dmm.startMujoco(data.wasm));
return data.episodes.map(({ start, actions }) => {
  const rows = [{ observation: world.reset({ state: start }) }];
  for (const action of actions) rows.push(world.step(action));
  return rows;
});
"""
InPage = Callable[..., Any]
MAZES = ("dmm/pointmaze/umaze-v0", "dmm/pointmaze/medium-v0")
GOALS = ("observation", "desired_goal")


def robot(name: str) -> Any:
    sizes = {"Hopper-v5": (11, 3), "Walker2d-v5": (17, 6)}
    return build_flat_env(name, (), *sizes[name])


def maze(recipe: str, **options: Any) -> Any:
    known = RECIPES[recipe]
    return build_flat_env(known.env_id, GOALS, 6, 2, **(known.env_kwargs | options))


def play(env: Any, actions: np.ndarray) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        row = {"observation": observation.tolist(), "reward": float(reward)}
        rows.append(row | {"terminated": bool(terminated), "truncated": bool(truncated)})
        if terminated or truncated:
            break
    return rows


def compare(in_page: InPage, env: Any, limit: int, count: int, steps: int, size: float = 1.0) -> tuple[float, Any]:
    """The largest difference of observations and rewards over `count` episodes, and the episodes in Python."""
    rng, episodes, here = np.random.default_rng(1), [], []
    for seed in range(count):
        first = env.reset(seed=seed)[0]
        start = world_start(env)
        actions = rng.uniform(-size, size, (steps, env.action_space.shape[0])).astype(np.float32)
        here.append([{"observation": first.tolist()}, *play(env, actions)])
        episodes.append({"start": start, "actions": actions[: len(here[-1]) - 1].tolist()})
    there = in_page(PLAY, {"world": describe_world(env, limit), "episodes": episodes})
    worst = 0.0
    for one, other in zip(here, there, strict=True):
        for a, b in zip(one, other, strict=True):
            worst = max(worst, float(np.abs(np.array(a["observation"]) - b["observation"]).max()))
            worst = max(worst, abs(a.get("reward", 0.0) - b.get("reward", 0.0)))
            assert (a.get("terminated"), a.get("truncated")) == (b.get("terminated"), b.get("truncated"))
    return worst, here


@pytest.mark.parametrize("name", ["Hopper-v5", "Walker2d-v5"])
def test_robots(in_page, name):
    env = robot(name)
    worst, here = compare(in_page, env, 1000, 10, 200, 0.3)
    assert worst < 1e-4
    assert any(rows[-1]["terminated"] for rows in here) and max(map(len, here)) > 30


@pytest.mark.parametrize("recipe", MAZES)
def test_mazes(in_page, recipe):
    env = maze(recipe)
    worst, here = compare(in_page, env, env.spec.max_episode_steps, 6, 200)
    assert worst < 1e-6 and max(map(len, here)) > 100


@pytest.mark.parametrize("ends", [True, False])
def test_a_goal_that_is_reached(in_page, ends):
    """A ball that stands beside its goal: paid at once, and over where the maze's task is not continuing."""
    env = maze(MAZES[0], continuing_task=not ends)
    env.reset(seed=0)
    start = world_start(env)
    start["qpos"] = [start["goal"][0], start["goal"][1]]
    actions = [[0.0, 0.0]] * (1 if ends else 3)
    world = describe_world(env, 150)
    rows = in_page(PLAY, {"world": world, "episodes": [{"start": start, "actions": actions}]})[0][1:]
    assert [(row["reward"], row["terminated"]) for row in rows] == [(1.0, ends)] * len(actions)


def test_a_dense_reward(in_page):
    env = maze(MAZES[0], reward_type="dense")
    worst, here = compare(in_page, env, 150, 1, 20)
    assert worst < 1e-6 and 0 < here[0][1]["reward"] < 1


def test_a_maze_whose_goal_moves_is_no_world():
    assert describe_world(maze(MAZES[0], continuing_task=True, reset_target=True), 150) is None


STARTS = """
const world = dmm.makeWorld(data.world, await dmm.startMujoco(data.wasm));
return Array.from({ length: 300 }, (_, seed) => { world.reset({ seed }); return world.state(); });
"""


def test_starts_are_drawn_as_gymnasium_draws_them(in_page):
    env = robot("Hopper-v5")
    base = env.unwrapped
    states = in_page(STARTS, {"world": describe_world(env, 1000)})
    noise = np.array([state["qpos"] for state in states]) - base.init_qpos
    noise = np.concatenate([noise, np.array([state["qvel"] for state in states]) - base.init_qvel], axis=1)
    scale = base._reset_noise_scale
    assert np.abs(noise).max() <= scale and np.allclose(noise.std(axis=0), scale / np.sqrt(3), rtol=0.15)
    assert np.abs(noise.mean(axis=0)).max() < 0.15 * scale


def test_mazes_draw_goals_and_starts_apart(in_page):
    env = maze(MAZES[0])
    layout, base = env.unwrapped.maze, env.unwrapped
    states = in_page(STARTS, {"world": describe_world(env, 150)})
    for name, places in (("goal", layout.unique_goal_locations), ("qpos", layout.unique_reset_locations)):
        found = np.array([state[name] for state in states])
        away = np.abs(found[:, None] - np.array(places)).max(axis=-1)  # (states, places)
        assert (away.min(axis=1) <= base.position_noise_range * layout.maze_size_scaling).all()
        assert set(away.argmin(axis=1)) == set(range(len(places)))
    centres = [np.array(state["goal"]).round(6).tolist() for state in states]
    assert len({tuple(centre) for centre in centres}) == len(states)


def test_a_world_goes_on_from_its_state_bit_for_bit(in_page):
    code = """
      const mujoco = await dmm.startMujoco(data.wasm);
      return data.worlds.map(description => {
        const [one, other] = [0, 1].map(() => dmm.makeWorld(description, mujoco));
        const action = t => Array.from({ length: one.model.nu }, (_, i) => Math.sin(t + i) / 4);
        one.reset({ seed: 3 });
        for (let t = 0; t < 12; t++) one.step(action(t));
        const rest = world => Array.from({ length: 8 }, (_, t) => world.step(action(t)));
        const state = JSON.parse(JSON.stringify(one.state()));
        const here = rest(one);
        other.reset({ state });
        return [here, rest(other)];
      });
    """
    worlds = [describe_world(env, 1000) for env in (robot("Hopper-v5"), robot("Walker2d-v5"), maze(MAZES[0]))]
    for here, there in in_page(code, {"worlds": worlds}):
        assert here == there


def test_a_push_and_a_drag_move_what_they_should(in_page):
    code = """
      const mujoco = await dmm.startMujoco(data.wasm);
      const hopper = dmm.makeWorld(data.hopper, mujoco), maze = dmm.makeWorld(data.maze, mujoco);
      const place = newtons => {
        hopper.reset({ seed: 0 });
        if (newtons) hopper.push(newtons, 5);
        for (let t = 0; t < 8; t++) hopper.step([0, 0, 0]);
        return hopper.geometry().x;
      };
      const start = { qpos: [-1, 1], qvel: [0, 0], goal: [-1, -1] };
      maze.reset({ state: start });
      maze.drag([0.5, 1]);
      for (let t = 0; t < 140; t++) maze.step([0, 0]);
      const dragged = maze.geometry().ball;
      maze.drag([0.5, -1]);
      for (let t = 0; t < 5; t++) maze.step([0, 0]);
      maze.drag(null);
      return { places: [-200, 0, 200].map(place), dragged, let_go: maze.pull([0, 0]),
        methods: [typeof hopper.drag, typeof maze.push] };
    """
    found = in_page(
        code, {"hopper": describe_world(robot("Hopper-v5"), 1000), "maze": describe_world(maze(MAZES[0]), 999)}
    )
    left, still, right = found["places"]
    assert left < still - 0.02 and right > still + 0.02
    assert np.allclose(found["dragged"], [0.5, 1], atol=0.05) and found["let_go"] == [0, 0]
    assert found["methods"] == ["undefined", "undefined"]


def test_what_is_drawn_stands_where_the_bodies_are(in_page):
    code = """
      const mujoco = await dmm.startMujoco(data.wasm);
      return data.cases.map(({ world, start }) => {
        const made = dmm.makeWorld(world, mujoco);
        made.reset({ state: start });
        return made.geometry();
      });
    """
    hopper, maze_env = robot("Hopper-v5"), maze(MAZES[0])
    hopper.reset(seed=1)
    maze_env.reset(seed=1)
    cases = [{"world": describe_world(env, 9), "start": world_start(env)} for env in (hopper, maze_env)]
    side, above = in_page(code, {"cases": cases})
    base = hopper.unwrapped
    capsules = [i for i in range(base.model.ngeom) if base.model.geom_type[i] == 3]
    assert len(side["shapes"]) == len(capsules) == 4
    for shape, i in zip(side["shapes"], capsules, strict=True):
        middle = (np.array(shape["from"]) + shape["to"]) / 2
        assert np.allclose(middle, base.data.geom_xpos[i][[0, 2]], atol=1e-9)
        length = float(np.linalg.norm(np.array(shape["from"]) - shape["to"]))
        assert length == pytest.approx(2 * base.model.geom_size[i][1]) and shape["radius"] == base.model.geom_size[i][0]
    assert above["ball"] == world_start(maze_env)["qpos"] and above["goal"] == world_start(maze_env)["goal"]
    assert above["radius"] == 0.1 and (above["left"], above["top"]) == (-2.5, 2.5)
    assert json.dumps(above["walls"]).count("true") == sum(
        cell == 1 for row in maze_env.unwrapped.maze.maze_map for cell in row
    )


def test_memory_is_given_back(in_page):
    code = """
      const mujoco = await dmm.startMujoco(data.wasm), sizes = [];
      for (let i = 0; i < 50; i++) {
        const world = dmm.makeWorld(data.world, mujoco);
        world.reset({ seed: i });
        world.step([0, 0, 0]);
        sizes.push(world.data.qpos.buffer.byteLength);
        world.free();
      }
      return sizes;
    """
    sizes = in_page(code, {"world": describe_world(robot("Hopper-v5"), 1000)})
    assert sizes[-1] == sizes[0] > 0
