"""What a page needs to play an environment by itself: its kind, its numbers, and the text of its MuJoCo model.

A *world* is a plain description of one environment that `dmm/_assets/worlds.js` and `physics.js` can play: T-mazes,
dark rooms, Hopper, Walker2d and point mazes. Every number in it is read off the environment.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers

from dmm.data.actions import UnitAction
from dmm.data.observations import FlatObservation, LargestScore, private_tempdir

REACH = 0.45
"""Distance in metres at which a point maze counts its goal as reached; gymnasium-robotics writes it into its code."""
ENTRIES = {
    "observation": ("x", "y", "velocity x", "velocity y"),
    "achieved_goal": ("x", "y"),
    "desired_goal": ("goal x", "goal y"),
}
"""What a point maze's observations have, by key."""
_HARMLESS = (FlatObservation, LargestScore, wrappers.OrderEnforcing, wrappers.PassiveEnvChecker, wrappers.TimeLimit)
DRAWN_ONLY = ("asset", "visual", "light", "camera")
"""Elements of a MuJoCo model that no body's movement depends on."""


def describe_world(env: FlatObservation, step_limit: int | None) -> dict[str, Any] | None:
    """The world of an environment, None where a page cannot play it: it is of another class, or has wrappers around it
    that change what is seen or earned.

    Args:
        env: as policies are played in it.
        step_limit: steps after which an episode is over.
    """
    base = env.unwrapped
    make = _MAKERS.get(f"{type(base).__module__}.{type(base).__qualname__}")
    made = None if make is None or not _bare(env) else make(base)
    if made is None:
        return None
    offset = None if env.offset is None else env.offset.tolist()
    if env.keys:
        made["names"] = [name for key in env.keys for name in ENTRIES[key]]
    return {**made, "keys": list(env.keys), "offset": offset, "step_limit": step_limit}


def world_start(env: gym.Env) -> dict[str, Any]:
    """Where an environment stands that was just reset, as a world's `reset({state})` takes it."""
    base: Any = env.unwrapped
    found = {name: getattr(base, name) for name in ("cue", "x", "y", "goal") if hasattr(base, name)}
    found |= getattr(base, "task", {})  # the hidden cells of a dark room
    if hasattr(base, "data"):
        found |= {"qpos": base.data.qpos, "qvel": base.data.qvel}
    return {name: np.asarray(value).tolist() for name, value in found.items()}


def _bare(env: gym.Env) -> bool:
    """Whether nothing but the known wrappers is around an environment."""
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, _HARMLESS) and not (isinstance(env, UnitAction) and env.bounds is not None):
            return False
        env = env.env
    return True


def plain_model(text: str) -> str:
    """A MuJoCo model (MJCF) without what is only drawn: textures, materials, lights and cameras."""
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in DRAWN_ONLY:
                parent.remove(child)
        parent.attrib.pop("material", None)
    return ET.tostring(root, "unicode")


def _tmaze(env: Any) -> dict[str, Any]:
    return {"kind": "tmaze", "length": env.length}


def _darkroom(env: Any) -> dict[str, Any]:
    return {"kind": "darkroom", "size": env.size}


def _walker(kind: str) -> Callable[[Any], dict[str, Any] | None]:
    """Of a robot that is rewarded for its speed and for not falling."""

    def make(env: Any) -> dict[str, Any] | None:
        if not env._exclude_current_positions_from_observation or not env._terminate_when_unhealthy:
            return None
        return {
            "kind": kind,
            "needs": "mujoco",
            "xml": plain_model(Path(env.fullpath).read_text()),
            "names": _walker_names(env.model),
            "torso": env.model.body("torso").id,
            "frame_skip": env.frame_skip,
            "noise": env._reset_noise_scale,
            "weights": {
                "forward": env._forward_reward_weight,
                "control": env._ctrl_cost_weight,
                "healthy": env._healthy_reward,
            },
            "healthy": {
                "z": _range(env._healthy_z_range),
                "angle": _range(env._healthy_angle_range),
                "state": _range(getattr(env, "_healthy_state_range", (-np.inf, np.inf))),
            },
        }

    return make


def _walker_names(model: Any) -> list[str]:
    """Of an observation: all positions but the first, then all velocities."""
    joints = [model.joint(i).name for i in range(model.njnt)]
    return [*joints[1:], *(f"velocity of {name}" for name in joints)]


def _point_maze(env: Any) -> dict[str, Any] | None:
    maze = env.maze
    if env.reset_target and env.continuing_task:  # a goal that moves within an episode
        return None
    return {
        "kind": "point_maze",
        "needs": "mujoco",
        "xml": plain_model(_maze_text(env)),
        "ball": env.point_env.model.body("particle").id,
        "frame_skip": env.point_env.frame_skip,
        "noise": env.position_noise_range * maze.maze_size_scaling,
        "walls": [[cell == 1 for cell in row] for row in maze.maze_map],
        "cell": maze.maze_size_scaling,
        "goals": [place.tolist() for place in maze.unique_goal_locations],
        "starts": [place.tolist() for place in maze.unique_reset_locations],
        "reach": REACH,
        "dense": env.reward_type == "dense",
        "ends": not env.continuing_task,
    }


def _maze_text(env: Any) -> str:
    """The maze's model, written once more: the file that the environment was made from is gone."""
    from gymnasium_robotics.envs.maze import maze_v4, point_maze

    agent = Path(point_maze.__file__).parents[1] / "assets" / "point" / "point.xml"
    maze = env.maze
    with private_tempdir():
        _, path = maze_v4.Maze.make_maze(str(agent), maze.maze_map, maze.maze_size_scaling, maze.maze_height)
        return Path(path).read_text()


def _range(pair: tuple[float, float]) -> list[float | None]:
    """A range as JSON has it: null for no bound."""
    return [None if np.isinf(side) else float(side) for side in pair]


_MAKERS: dict[str, Callable[[Any], dict[str, Any] | None]] = {
    "dmm.envs.tmaze.TMaze": _tmaze,
    "dmm.envs.grid.Darkroom": _darkroom,
    "dmm.envs.grid.LargeDarkroom": _darkroom,
    "gymnasium.envs.mujoco.hopper_v5.HopperEnv": _walker("hopper"),
    "gymnasium.envs.mujoco.walker2d_v5.Walker2dEnv": _walker("walker2d"),
    "gymnasium_robotics.envs.maze.point_maze.PointMazeEnv": _point_maze,
}
"""By the class's full name, so that nothing is imported to know it."""
