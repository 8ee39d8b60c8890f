"""A scripted expert for the kitchen: each task is a short list of moves of the hand, made by inverse kinematics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.errors import InputError

OPEN, CLOSED = 1.0, -1.0
JOINTS = 7


@dataclass(frozen=True)
class Move:
    """Bring the hand to a point near an object, and follow the object if it moves."""

    site: str  # named point of the model that belongs to the object
    offset: tuple[float, float, float]  # metres from there: right, away from the robot, up
    gripper: float = CLOSED
    until: float | None = 0.03  # distance at which the hand has arrived, metres; None: until the task is complete
    turn: float = 0.0  # of the hand about the axis that points away from the robot, radians
    steps: int = 40  # given up after so many, at full pace


MOVES: dict[str, tuple[Move, ...]] = {
    "microwave": (
        Move("microhandle_site", (0, -0.15, 0), OPEN, until=0.06),
        Move("microhandle_site", (0, 0.01, 0), OPEN, until=0.02),
        Move("microhandle_site", (0, 0.01, 0), CLOSED, until=0, steps=4),  # grasp
        Move("microhandle_site", (-0.05, -0.20, 0), CLOSED, until=None),  # pull: the door moves, and so does the aim
        Move("microhandle_site", (0.02, -0.14, 0), OPEN, until=0.06, steps=12),
    ),
    "kettle": (
        Move("kettle_site", (0, -0.30, -0.17), OPEN, until=0.06),  # the site is the handle; the body is below
        Move("kettle_site", (0, 0, -0.17), OPEN, until=None),  # push with both fingers, or it spins
        Move("kettle_site", (0, -0.25, 0.05), until=0.05, steps=12),
    ),
    "bottom burner": (
        Move("knob2_site", (0, -0.15, 0), OPEN, until=0.05),
        Move("knob2_site", (0, -0.03, 0), OPEN, until=0.015),
        Move("knob2_site", (0, -0.03, 0), CLOSED, until=0, steps=3),  # grasp
        Move("knob2_site", (0, -0.03, 0), CLOSED, until=None, turn=1.2),
        Move("knob2_site", (0, -0.15, 0), OPEN, until=0.05, steps=12),
    ),
    "light switch": (
        Move("light_site", (0.12, -0.15, 0), until=0.05),
        Move("light_site", (0.10, -0.03, 0), until=0.02),
        Move("light_site", (-0.20, -0.03, 0), until=None),  # sweep left
        Move("light_site", (0, -0.15, 0), until=0.05, steps=12),
    ),
    "slide cabinet": (
        Move("slide_site", (-0.12, -0.15, -0.05), until=0.05),
        Move("slide_site", (-0.10, -0.03, -0.05), until=0.03),
        Move("slide_site", (0.20, -0.03, -0.05), until=None),  # sweep right
        Move("slide_site", (0, -0.15, -0.05), until=0.05, steps=12),
    ),
}
"""How each task is done. In between, the arm returns to its first posture, so that any order of tasks works."""


class Arm:
    """Joint velocities that lead the hand of a kitchen's robot to a point, or the arm to its first posture.

    Damped least squares on the hand's position and orientation; what freedom is left draws the arm to its first
    posture. A joint at its limit is left out, and what gravity costs is added, so that the arm does not sag.
    """

    APPROACH = 0.5  # share of the remaining way that a step aims to cover
    STRIDE = 0.06  # of the hand per step at most, metres
    TURNING = 0.3  # weight of a radian of orientation against a metre
    POSTURE = 0.1  # pull towards the first posture
    DAMPING = 1e-3
    LAG = 2.0  # a joint covers about half of the way to its set point within a step

    def __init__(self, kitchen: Any):
        from mujoco import mj_jacSite  # slow to import; recipes are listed without it

        self.site_jacobian = mj_jacSite
        self.model, self.data = kitchen.model, kitchen.data
        self.hand = self.model.site("end_effector").id
        self.posture = self.data.qpos[:JOINTS].copy()
        self.rotation = self.data.site_xmat[self.hand].reshape(3, 3).copy()
        self.step_angle = kitchen.step_angle
        self.low, self.high = self.model.jnt_range[:JOINTS].T
        self.gains = self.model.actuator_gainprm[:JOINTS, 0]
        self.jacobian = np.zeros((6, self.model.nv))

    def distance(self, point: np.ndarray) -> float:
        """From the hand to a point, metres."""
        return float(np.linalg.norm(point - self.data.site_xpos[self.hand]))

    def away_from_posture(self) -> float:
        """The largest angle between a joint and its place in the first posture, radians."""
        return float(np.abs(self.posture - self.data.qpos[:JOINTS]).max())

    def rest(self, pace: float) -> np.ndarray:
        """Actions `(7,)` towards the first posture."""
        return self._actions(self.APPROACH * (self.posture - self.data.qpos[:JOINTS]), pace)

    def reach(self, point: np.ndarray, turn: float, pace: float) -> np.ndarray:
        """Actions `(7,)` that lead the hand to a point, turned by `turn`; before gravity, none exceeds `pace`."""
        self.site_jacobian(self.model, self.data, self.jacobian[:3], self.jacobian[3:], self.hand)
        jacobian = self.jacobian[:, :JOINTS].copy()  # (6, 7)
        jacobian[3:] *= self.TURNING
        return self._actions(self._solve(jacobian, self._error(point, turn)), pace)

    def _error(self, point: np.ndarray, turn: float) -> np.ndarray:
        """What a step should change in the hand's position and, weighted, in its orientation `(6,)`."""
        error = np.empty(6)
        error[:3] = self.APPROACH * (point - self.data.site_xpos[self.hand])
        error[:3] *= min(1.0, self.STRIDE / (float(np.linalg.norm(error[:3])) + 1e-9))
        c, s = np.cos(turn), np.sin(turn)
        wanted = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ self.rotation
        r = wanted @ self.data.site_xmat[self.hand].reshape(3, 3).T
        error[3:] = (r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1])  # 2 sin(angle) axis
        error[3:] *= self.APPROACH * self.TURNING / 2
        return error

    def _solve(self, jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Changes of the joints `(7,)` that make `error` vanish as nearly as their limits allow."""
        q = self.data.qpos[:JOINTS]
        rest = self.POSTURE * (self.posture - q)
        change = np.zeros(JOINTS)
        free = np.ones(JOINTS, dtype=bool)
        for _ in range(3):
            square = jacobian @ jacobian.T + self.DAMPING * np.eye(6)
            change = rest + jacobian.T @ np.linalg.solve(square, error - jacobian @ rest)
            stuck = free & (((q < self.low + 0.02) & (change < 0)) | ((q > self.high - 0.02) & (change > 0)))
            if not stuck.any():
                break
            free &= ~stuck
            jacobian, rest = jacobian * free, rest * free
        return change

    def _actions(self, change: np.ndarray, pace: float) -> np.ndarray:
        action = self.LAG * change / self.step_angle
        action *= min(1.0, pace / (float(np.abs(action).max()) + 1e-9))
        sag = self.data.qfrc_bias[:JOINTS] / self.gains  # angle by which gravity (and motion) would pull a joint away
        total: np.ndarray = action + sag / self.step_angle
        return total


class KitchenExpert:
    """Does tasks one after another, reading where things are from the simulation.

    Each episode draws one of `orders`, a pace, and for each task whether it is given up: then the hand gets ready,
    skips the move that would complete the task, and goes on to the next. A task that fails by itself is tried again.
    After the last task the arm rests in its first posture until the episode ends. Four tasks at full pace take about
    170 steps.

    Args:
        orders: names out of `MOVES`, in the order in which to do them; each order is equally likely.
        noise: standard deviation of the Gaussian noise on each action; actions lie in [-1, 1].
        pace: smallest and largest share of the joints' top speed; one value per episode.
        gives_up: probability that a task is given up.

    Raises:
        InputError: no order, an unknown task, a negative noise, a pace outside (0, 1], a probability outside [0, 1].
    """

    TRIES = 3
    """Per task; one is nearly always enough."""
    NEAR_POSTURE = 0.4
    """Angle to the first posture, radians, at which the next task begins."""

    def __init__(
        self,
        orders: Sequence[Sequence[str]],
        noise: float = 0.0,
        pace: tuple[float, float] = (1.0, 1.0),
        gives_up: float = 0.0,
    ):
        unknown = sorted({str(task) for order in orders for task in order if task not in MOVES})
        if unknown or not orders:
            raise InputError(f"orders: got {unknown or orders!r}; allowed: sequences of {', '.join(MOVES)}")
        if not 0 <= noise < np.inf:
            raise InputError(f"noise: got {noise!r}; allowed: a number from 0 on")
        if not 0 < pace[0] <= pace[1] <= 1:
            raise InputError(f"pace: got {pace!r}; allowed: 0 < smallest <= largest <= 1")
        if not 0 <= gives_up <= 1:
            raise InputError(f"gives_up: got {gives_up!r}; allowed: a probability, 0 to 1")
        self.orders = tuple(tuple(order) for order in orders)
        self.noise, self.pace_range, self.gives_up = noise, pace, gives_up

    def begin(self, env: gym.Env, observation: Any, rng: np.random.Generator) -> None:
        self.kitchen: Any = env.unwrapped
        self.arm = Arm(self.kitchen)
        self.order = self.orders[rng.integers(len(self.orders))]
        self.pace = float(rng.uniform(*self.pace_range))
        self.given_up = {task for task in self.order if rng.random() < self.gives_up}
        self.script = self._script()

    def act(self, observation: Any, rng: np.random.Generator) -> np.ndarray:
        action = next(self.script) + self.noise * rng.standard_normal(JOINTS + 2)
        clipped: np.ndarray = np.clip(action, -1.0, 1.0).astype(np.float32)
        return clipped

    def _script(self) -> Iterator[np.ndarray]:
        """The actions `(9,)` of one episode, without noise and without end; each is computed when it is asked for."""
        for task in self.order:
            for _ in range(self.TRIES):
                yield from self._try(task)
                if task in self.given_up or self.kitchen.is_complete(task):
                    break
        while True:
            yield self._rest()

    def _try(self, task: str) -> Iterator[np.ndarray]:
        for move in MOVES[task]:
            if move.until is not None or task not in self.given_up:
                yield from self._make(move, task)
        while self.arm.away_from_posture() > self.NEAR_POSTURE:
            yield self._rest()

    def _make(self, move: Move, task: str) -> Iterator[np.ndarray]:
        site = self.kitchen.model.site(move.site).id
        for _ in range(round(move.steps / self.pace)):
            point = self.kitchen.data.site_xpos[site] + move.offset
            if move.until is None and self.kitchen.is_complete(task):
                return
            if move.until is not None and self.arm.distance(point) < move.until:
                return
            yield _with_gripper(self.arm.reach(point, move.turn, self.pace), move.gripper)

    def _rest(self) -> np.ndarray:
        return _with_gripper(self.arm.rest(self.pace), CLOSED)


def _with_gripper(arm: np.ndarray, gripper: float) -> np.ndarray:
    return np.concatenate((arm, (gripper, gripper)))
