"""FrankaKitchen-v1 as D4RL saw it: one 60-dim state vector, a reward for each task, four tasks to an episode."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from dmm.errors import InputError

with redirect_stderr(io.StringIO()):  # gymnasium-robotics prints news about other environments
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env
    from gymnasium_robotics.envs.franka_kitchen.kitchen_env import KitchenEnv

TASKS = tuple(kitchen_env.OBS_ELEMENT_GOALS)
"""Names of the tasks of FrankaKitchen-v1; each concerns one object."""
ROBOT, OBJECTS = 9, 21
"""Sizes of the two parts of `qpos`: seven joints and two fingers; burners, switch, cabinets, microwave, kettle."""
MAX_SPEED = 2.0
"""Joint velocity in rad/s (fingers: m/s) that an action of 1 asks for."""


def goal_vector(tasks: Sequence[str]) -> np.ndarray:
    """Goal positions `(30,)` of the objects of `tasks`, laid out as `qpos`; zero wherever no task sets a goal."""
    goal = np.zeros(ROBOT + OBJECTS)
    for task in tasks:
        goal[kitchen_env.OBS_ELEMENT_INDICES[task]] = kitchen_env.OBS_ELEMENT_GOALS[task]
    return goal


class Kitchen(gym.Env):
    """A Franka arm in a kitchen: FrankaKitchen-v1's physics, noise and tasks, the observations of D4RL's kitchen-v0.

    Observation: `Box(60,)` float32, robot positions (9), object positions (21), goal (30), as in `KitchenV0._get_obs`
    of D4RL; both positions are noisy, the goal is the constant `goal_vector(tasks)`. No velocities, also as in D4RL.
    Action: `Box(-1, 1, (9,))`, joint velocities in units of 2 rad/s. One step is 40 time steps of 2 ms.
    Reward: number of tasks completed at this step; each counts once. Ends when all tasks are complete; the registered
    time limit cuts an episode after 280 steps.

    The same actions after the same seed lead to the positions of FrankaKitchen-v1, bit for bit. So the noise is drawn
    as there, because the controller adds the action to the noisy joint positions. Left out is what nobody reads:
    velocities, the goal dictionary and contact forces.

    As in FrankaKitchen-v1 and unlike D4RL, completion is judged without noise, and the noise is 1 % (robot) and 0.05 %
    (objects) of its nominal range, not 10 %.

    Args:
        tasks: names out of `TASKS`, in any order.
        robot_noise_ratio, object_noise_ratio: scale of the uniform noise on observed positions.
        render_mode: None, "rgb_array", "depth_array" or "human".

    Raises:
        InputError: an empty, repeated or unknown task, or a negative noise ratio.
    """

    metadata = KitchenEnv.metadata

    def __init__(
        self,
        tasks: Sequence[str] = ("microwave", "kettle", "light switch", "slide cabinet"),
        robot_noise_ratio: float = 0.01,
        object_noise_ratio: float = 0.0005,
        render_mode: str | None = None,
    ):
        _require_tasks(tasks)
        _require_ratio("robot_noise_ratio", robot_noise_ratio)
        _require_ratio("object_noise_ratio", object_noise_ratio)
        self.tasks, self.render_mode = tuple(tasks), render_mode
        self.franka: Any = KitchenEnv(tasks_to_complete=list(tasks), render_mode=render_mode)
        self.model, self.data = self.franka.model, self.franka.data
        robot = self.franka.robot_env
        self.frame_skip = robot.frame_skip
        self.step_angle = MAX_SPEED * robot.dt  # by which an action of 1 shifts a joint's set point, radians
        self.position_range = robot.robot_pos_bound[:ROBOT].T  # (2, 9)
        # object noise starts at entry 8, the second finger's: an off-by-one of FrankaKitchen-v1 (D4RL's starts at 9)
        self.noise = np.concatenate(
            (
                robot_noise_ratio * robot.robot_pos_noise_amp[:ROBOT],
                object_noise_ratio * robot.robot_pos_noise_amp[ROBOT - 1 :],
            )
        )
        self.goal = goal_vector(tasks)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ROBOT,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self.franka.robot_env.init_qpos
        mujoco.mj_forward(self.model, self.data)
        self.completed: list[str] = []
        self._observe()
        if self.render_mode == "human":
            self.render()
        return self.observation, {"episode_task_completions": []}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        target = self.robot_positions + self.step_angle * np.clip(action, -1.0, 1.0)
        self.data.ctrl[:] = np.clip(target, *self.position_range)
        mujoco.mj_step(self.model, self.data, nstep=self.frame_skip)
        self._observe()
        new = [task for task in self.tasks if task not in self.completed and self.is_complete(task)]
        self.completed += new
        if self.render_mode == "human":
            self.render()
        info = {"step_task_completions": new, "episode_task_completions": list(self.completed)}
        return self.observation, float(len(new)), len(self.completed) == len(self.tasks), False, info

    def is_complete(self, task: str) -> bool:
        """Whether the object of any of `TASKS` is now within 0.3 of its goal configuration, noise left out."""
        difference = self.data.qpos[kitchen_env.OBS_ELEMENT_INDICES[task]] - kitchen_env.OBS_ELEMENT_GOALS[task]
        return bool(np.sqrt(difference @ difference) < kitchen_env.BONUS_THRESH)

    def render(self) -> Any:
        return self.franka.render()

    def close(self) -> None:
        self.franka.close()

    def _observe(self) -> None:
        """Sets the observation and the noisy joint positions `(9,)` to which the next action adds."""
        draws = self.np_random.uniform(-1.0, 1.0, 59)  # FrankaKitchen-v1's: positions and velocities of robot, objects
        robot = self.data.qpos[:ROBOT] + self.noise[:ROBOT] * draws[:ROBOT]
        objects = self.data.qpos[ROBOT:] + self.noise[ROBOT:] * draws[2 * ROBOT : 2 * ROBOT + OBJECTS]
        self.robot_positions = robot
        self.observation = np.concatenate((robot, objects, self.goal), dtype=np.float32, casting="same_kind")


def _require_tasks(tasks: Sequence[str]) -> None:
    unknown = [task for task in tasks if task not in TASKS]
    if isinstance(tasks, str) or not tasks or unknown or len(set(tasks)) < len(tasks):
        raise InputError(f"tasks: got {tasks!r}; allowed: some of {', '.join(TASKS)}, each once")


def _require_ratio(name: str, ratio: float) -> None:
    if not 0 <= ratio < np.inf:
        raise InputError(f"{name}: got {ratio!r}; allowed: a number from 0 on")
