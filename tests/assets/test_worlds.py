"""The grid worlds in the page are those of the package, step for step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dmm.data.observations import build_flat_env
from dmm.data.worlds import describe_world
from dmm.experiments.node import run_node

PLAY = """
const world = dmm.makeWorld(data.world);
return data.episodes.map(({ start, actions }) => {
  const rows = [{ observation: world.reset({ state: start }) }];
  for (const action of actions) rows.push(world.step(action));
  return rows;
});
"""


def flat(name: str, sizes: tuple[int, int], **options: Any) -> Any:
    return build_flat_env(name, (), *sizes, **options)


def played(env: Any, options: dict[str, Any], actions: list[int]) -> list[dict[str, Any]]:
    """An episode in Python as the page tells it, up to its end."""
    observation, _ = env.reset(seed=0, options=options)
    rows: list[dict[str, Any]] = [{"observation": observation.tolist()}]
    for action in actions:
        scores = np.eye(env.action_space.shape[0], dtype=np.float32)[action]
        observation, reward, terminated, truncated, _ = env.step(scores)
        rows.append({"observation": observation.tolist(), "reward": reward, "terminated": terminated})
        rows[-1]["truncated"] = truncated
        if terminated or truncated:
            break
    return rows


@pytest.mark.parametrize("length", [1, 5, 20])
def test_t_mazes(length):
    env = flat("dmm/TMaze-v0", (3, 4), length=length)
    rng, episodes, here = np.random.default_rng(0), [], []
    right = [3] * length
    for cue in (-1, 1):
        walks = [[*right, 0], [*right, 1], rng.integers(4, size=length + 1).tolist()]
        walks += [
            np.where(rng.random(length + 1) < 0.8, 3, rng.integers(4, size=length + 1)).tolist() for _ in range(9)
        ]
        for walk in walks:
            here.append(played(env, {"cue": cue}, walk))
            episodes.append({"start": {"cue": cue}, "actions": walk[: len(here[-1]) - 1]})
    assert run_node(PLAY, {"world": describe_world(env, None), "episodes": episodes}) == here
    assert {rows[-1]["reward"] for rows in here} == {0.0, 1.0} and all(rows[-1]["terminated"] for rows in here)


@pytest.mark.parametrize(("name", "size"), [("Darkroom", 9), ("Darkroom", 2), ("LargeDarkroom", 40)])
def test_dark_rooms(name, size):
    env = flat(f"dmm/{name}-v0", (2, 5), size=size)
    limit, rng, episodes, here = env.spec.max_episode_steps, np.random.default_rng(size), [], []
    for _ in range(20):
        goal = rng.integers(size, size=2)
        cells = {"goal": goal.tolist(), "start": np.clip(goal + rng.integers(-2, 3, 2), 0, size - 1).tolist()}
        walk = rng.integers(5, size=limit).tolist()
        here.append(played(env, cells, walk))
        start = {"goal": cells["goal"], "x": cells["start"][0], "y": cells["start"][1]}
        episodes.append({"start": start, "actions": walk})
    assert run_node(PLAY, {"world": describe_world(env, limit), "episodes": episodes}) == here
    assert all(rows[-1]["truncated"] for rows in here)
    assert any(row.get("reward") for rows in here for row in rows)


def test_a_room_begins_in_its_centre_and_a_maze_at_its_left():
    env = flat("dmm/Darkroom-v0", (2, 5))
    code = "return dmm.makeWorld(data).reset({ state: { goal: [1, 2] } });"
    assert run_node(code, describe_world(env, 20)) == env.reset(seed=0)[0].tolist()


def test_seeds_draw_every_start_and_the_same_one_again():
    code = """
      const world = dmm.makeWorld(data);
      const starts = () => Array.from({ length: 400 }, (_, seed) => { world.reset({ seed }); return world.state(); });
      return [starts(), starts()];
    """
    rooms, again = run_node(code, describe_world(flat("dmm/Darkroom-v0", (2, 5)), 20))
    goals = [tuple(state["goal"]) for state in rooms]
    assert rooms == again and len(set(goals)) > 75  # of 81 cells
    cues = [state["cue"] for state in run_node(code, describe_world(flat("dmm/TMaze-v0", (3, 4)), None))[0]]
    assert 150 < sum(cue == 1 for cue in cues) < 250


def test_a_world_goes_on_from_its_state():
    code = """
      const [one, other] = [0, 1].map(() => dmm.makeWorld(data));
      one.reset({ seed: 3 });
      for (let i = 0; i < 7; i++) one.step(3);
      const before = other.reset({ state: JSON.parse(JSON.stringify(one.state())) });
      const rest = world => Array.from({ length: world.stepLimit - 7 }, (_, i) => world.step(i % 4));
      return [one.observation(), rest(one), before, rest(other)];
    """
    for name, sizes, limit in (("dmm/Darkroom-v0", (2, 5), 20), ("dmm/TMaze-v0", (3, 4), 21)):
        before, rest, seen, after = run_node(code, describe_world(flat(name, sizes), limit))
        assert (before, rest) == (seen, after)


def test_what_is_wrong_is_said_in_one_sentence():
    code = """
      const said = action => { try { action(); } catch (error) { return error.message; } };
      const world = dmm.makeWorld(data);
      world.reset({ seed: 0 });
      const wrong = said(() => world.step(5));
      for (let i = 0; i < 20; i++) world.step(0);
      return [said(() => dmm.makeWorld({ kind: "sea" })),
        said(() => dmm.makeWorld({ kind: "hopper", needs: "mujoco" })),
        wrong, said(() => world.step(0))];
    """
    found = run_node(code, describe_world(flat("dmm/Darkroom-v0", (2, 5)), 20))
    assert found == [
        "world: got sea, allowed are tmaze, darkroom, hopper, walker2d, point_maze",
        "world: hopper needs MuJoCo, which is not here",
        "action: got 5, allowed is 0 to 4",
        "world: its episode is over, allowed is reset",
    ]


def test_only_what_the_page_can_play_is_a_world():
    assert describe_world(flat("dmm/KeyToDoor-v0", (2, 5)), 50) is None
    assert describe_world(flat("dmm/DarkroomDynamic-v0", (2, 5)), 20) is None
