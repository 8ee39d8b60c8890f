"""D4RL's ant: Gymnasium's model with D4RL's physics, on a plane where it learns to walk, and in a maze."""

from __future__ import annotations

import io
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import ant_v5
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.utils import EzPickle

from dmm.errors import InputError

with redirect_stderr(io.StringIO()):  # the news about other environments that it prints
    from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv

TIMESTEP, GEAR = "0.02", "30"
SOLREF, SOLIMP = ".02 1", ".8 .8 .01"
"""D4RL's ant: twice the time step and a fifth of the force of Gymnasium's, and an older MuJoCo's softer contacts."""


def write_model(path: str | Path) -> None:
    """Writes Gymnasium's `ant.xml` with D4RL's time step, motors and contacts to `path`."""
    tree = ET.parse(Path(ant_v5.__file__).parent / "assets" / "ant.xml")
    root = tree.getroot()
    option, geom = root.find("option"), root.find("default/geom")
    assert option is not None and geom is not None
    option.set("timestep", TIMESTEP)
    geom.set("solref", SOLREF)
    geom.set("solimp", SOLIMP)
    for motor in root.iter("motor"):
        motor.set("gear", GEAR)
    tree.write(path)


@contextmanager
def model_file() -> Iterator[Path]:
    """A file with the adapted model, alone in a folder that is the default for temporary files and then goes away."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ant.xml"
        write_model(path)
        tempfile.tempdir = folder  # gymnasium-robotics writes its maze there, under a name made from the clock
        try:
            yield path
        finally:
            tempfile.tempdir = before


def egocentric(qpos: np.ndarray, qvel: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """What the walking policy sees `(28,)` float32, the same whichever way the ant looks and wherever it is.

    Height (1), the world's vertical in the torso's frame (3), velocity along heading, across and up (3), angular
    velocity in the torso's frame (3), joint angles (8) and their velocities (8), the wanted direction along the
    heading and across (2).

    Args:
        qpos: `(15,)` positions of MuJoCo's ant: xyz, quaternion, eight joints.
        qvel: `(14,)` velocities.
        direction: `(2,)` unit vector in the plane.
    """
    w, x, y, z = qpos[3:7]
    vertical = (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))
    heading = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    c, s = np.cos(heading), np.sin(heading)
    result = np.empty(28, dtype=np.float32)
    result[0] = qpos[2]
    result[1:4] = vertical
    result[4:7] = c * qvel[0] + s * qvel[1], c * qvel[1] - s * qvel[0], qvel[2]
    result[7:10] = qvel[3:6]
    result[10:18] = qpos[7:]
    result[18:26] = qvel[6:]
    result[26:] = c * direction[0] + s * direction[1], c * direction[1] - s * direction[0]
    return result


class WalkingAnt(gym.Env):
    """Walk where told: D4RL's ant on an open plane, rewarded for velocity along a direction that changes now and then.

    Observation: `egocentric`, `Box(28,)`. Action: eight torques, `Box(-1, 1, (8,))`. Reward: metres per second along
    the direction, plus 0.5 for standing, less 0.02 times the sum of squared torques. Ends when the ant has turned over
    or jumped; cut after 400 steps by the registered time limit. Ours: D4RL's own training was never released.

    Args:
        model: the ant's MuJoCo file, as `write_model` writes it; made for the occasion by default.
    """

    CHANGE = 0.02  # probability per step of a new direction

    def __init__(self, model: str | Path | None = None):
        with model_file() as own:  # MuJoCo reads it once
            path = str(own if model is None else model)
            self.ant: Any = AntEnv(xml_file=path, include_cfrc_ext_in_observation=False, reset_noise_scale=0.1)
        self.action_space = self.ant.action_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (28,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.ant.reset(seed=int(self.np_random.integers(2**31)))
        qpos, qvel = self.ant.data.qpos.copy(), self.ant.data.qvel.copy()
        turn = self.np_random.uniform(-np.pi, np.pi)
        qpos[3:7] = np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)
        self.ant.set_state(qpos, qvel)
        self.direction = self._draw()
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        data = self.ant.data
        before = data.qpos[:2].copy()
        self.ant.do_simulation(action, self.ant.frame_skip)
        speed = (data.qpos[:2] - before) @ self.direction / self.ant.dt
        _, x, y, _ = data.qpos[3:7]
        fallen = bool(1 - 2 * (x * x + y * y) < 0.2 or not 0.2 < data.qpos[2] < 1.2)
        reward = float(speed + 0.5 * (not fallen) - 0.02 * np.square(action).sum())
        if self.np_random.random() < self.CHANGE:
            self.direction = self._draw()
        return self._observation(), reward, fallen, False, {"speed": speed}

    def close(self) -> None:
        self.ant.close()

    def _draw(self) -> np.ndarray:
        angle = self.np_random.uniform(-np.pi, np.pi)
        return np.array([np.cos(angle), np.sin(angle)])

    def _observation(self) -> np.ndarray:
        return egocentric(self.ant.data.qpos, self.ant.data.qvel, self.direction)


MAZES: dict[str, list[list[int | str]]] = {
    "umaze": [[1, 1, 1, 1, 1], [1, "r", 0, 0, 1], [1, 1, 1, 0, 1], [1, "g", 0, 0, 1], [1, 1, 1, 1, 1]],
    "umaze-diverse": [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]],
}
"""1: wall, r: the only start, g: the only goal; where neither is marked, every free cell may be both."""

FREE_CAMERA = -1
FROM_ABOVE = {"distance": 24.0, "azimuth": 90.0, "elevation": -80.0, "lookat": np.zeros(3)}
"""Renders the whole maze, +y upwards, where Gymnasium-Robotics follows the ant closely."""


class AntMaze(AntMazeEnv):  # type: ignore[misc]
    """D4RL's AntMaze: Gymnasium-Robotics' `AntMaze_UMaze-v5` with D4RL's ant, starts and goals.

    Observation: a dictionary with `achieved_goal` (2: where the torso is, metres), `observation` (27: height,
    quaternion, joint angles, velocities) and `desired_goal` (2); the first two in this order are D4RL's 29 numbers, in
    which the goal does not appear. Action: eight torques, `Box(-1, 1, (8,))`, each for 0.1 s. Reward: 1 on arriving at
    the goal, which ends the episode, else 0; cut after 700 steps by the registered time limit.

    `umaze` starts in one arm of the U and has its goal in the other; `umaze-diverse` draws both cells. D4RL records its
    diverse set with drawn cells and evaluates on the fixed ones, so evaluation of either set belongs in `umaze`.

    As in D4RL: time step, gear, contacts, start noise (uniform +-0.1 on every position, normal 0.1 on every velocity),
    goals away from the centre of their cell, for drawn starts likewise. As in Gymnasium-Robotics: the origin in the
    middle of the maze, y upwards, and 0.45 m to the goal as arrival (D4RL: 0.5).

    Args:
        maze: `umaze` or `umaze-diverse`.
        render_mode: None, `human`, `rgb_array` or `depth_array`.

    Raises:
        InputError: no such maze.
    """

    metadata = {**AntMazeEnv.metadata, "render_fps": 10}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, maze: str = "umaze", render_mode: str | None = None):
        if maze not in MAZES:
            raise InputError(f"maze: got {maze!r}; allowed: {', '.join(MAZES)}")
        with model_file() as path:
            super().__init__(
                render_mode=render_mode,
                maze_map=MAZES[maze],
                continuing_task=False,
                xml_file=str(path),
                include_cfrc_ext_in_observation=False,
                camera_id=FREE_CAMERA,
                default_camera_config=FROM_ABOVE,
            )
        self.ant_env._reset_noise_scale = 0.1  # the parent always takes 0
        self.drawn_starts = len(self.maze.unique_reset_locations) > 1
        EzPickle.__init__(self, maze=maze, render_mode=render_mode)

    def generate_target_goal(self) -> np.ndarray:
        """A goal 0 to 1.5 m right of and below the centre of its cell, as in D4RL."""
        right, down = self.np_random.uniform(0, 1, 2) + self.np_random.uniform(0, 0.5, 2)
        goal: np.ndarray = super().generate_target_goal() + np.array([right, -down])
        return goal

    def generate_reset_pos(self) -> np.ndarray:
        """The one start, or one 0 to 1 m right of and below the centre of a drawn cell that is not the goal's."""
        right, down = self.np_random.uniform(0, 1, 2) * self.drawn_starts
        start: np.ndarray = super().generate_reset_pos() + np.array([right, -down])
        return start

    def add_xy_position_noise(self, xy_pos: np.ndarray) -> np.ndarray:
        """None beyond that; cells asked for in `reset(options=...)` mean their centres."""
        return xy_pos

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Options: `reset_cell` and `goal_cell`, each `(row, column)`, place start and goal at centres of cells."""
        super(AntMazeEnv, self).reset(seed=seed, options=options)
        self.ant_env.init_qpos[:2] = self.reset_pos
        # the parent seeds the ant like the maze, which here would make the start's noise tell where the goal is
        self.ant_env.np_random = self.np_random
        self.ant_env.reset()
        observation = self._observation()
        return observation, {"success": self.compute_terminated(observation["achieved_goal"], self.goal, {})}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """The parent's step without the ant's own reward, which has no use here and takes a fifth of the time."""
        self.ant_env.do_simulation(action, self.ant_env.frame_skip)
        observation = self._observation()
        arrived = self.compute_terminated(observation["achieved_goal"], self.goal, {})
        if self.render_mode == "human":
            self.render()
        return observation, float(arrived), arrived, False, {"success": arrived}

    def _observation(self) -> dict[str, np.ndarray]:
        data = self.data
        return {
            "observation": np.concatenate((data.qpos[2:], data.qvel)),
            "achieved_goal": data.qpos[:2].copy(),
            "desired_goal": self.goal.copy(),
        }
