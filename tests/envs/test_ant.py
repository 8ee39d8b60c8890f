from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.utils.env_checker import check_env
from gymnasium_robotics.envs.maze.ant_maze_v5 import AntMazeEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import dmm.envs  # noqa: F401
from dmm.data.observations import FlatObservation
from dmm.envs.ant import MAZES, AntMaze, WalkingAnt, egocentric, write_model
from dmm.errors import InputError
from tests.own_process import render

WARNINGS = pytest.mark.filterwarnings("ignore:.*(infinity|not within the observation space):UserWarning")


@pytest.fixture(scope="module")
def maze() -> AntMaze:
    return AntMaze()


def place(env: AntMaze, x: float, y: float) -> None:
    """Puts the ant there, at rest."""
    qpos, qvel = env.ant_env.init_qpos.copy(), env.ant_env.init_qvel.copy()
    qpos[:2] = x, y
    env.ant_env.set_state(qpos, qvel)


@WARNINGS
@pytest.mark.parametrize("env_id", ["dmm/AntMaze-v0", "dmm/WalkingAnt-v0"])
def test_gymnasiums_checks_pass(env_id: str) -> None:
    env = gym.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_the_compiled_model_has_d4rls_physics(maze: AntMaze) -> None:
    model = maze.model
    assert model.opt.timestep == 0.02 and maze.ant_env.frame_skip == 5
    np.testing.assert_array_equal(model.actuator_gear[:, 0], np.full(8, 30.0))
    np.testing.assert_array_equal(model.geom_solref, np.tile([0.02, 1.0], (model.ngeom, 1)))
    np.testing.assert_allclose(model.geom_solimp[:, :3], np.tile([0.8, 0.8, 0.01], (model.ngeom, 1)))
    walls = [name for i in range(model.ngeom) if (name := model.geom(i).name).startswith("block")]
    assert len(walls) == 18
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4


def test_the_rest_of_the_ant_is_gymnasiums(maze: AntMaze) -> None:
    original = AntEnv().model
    assert original.opt.timestep == 0.01 and original.actuator_gear[0, 0] == 150
    np.testing.assert_allclose(maze.model.body_mass, original.body_mass)
    np.testing.assert_array_equal(maze.model.jnt_range, original.jnt_range)


def test_egocentric_by_hand() -> None:
    half = np.sqrt(0.5)
    qpos = np.array([7.0, 8.0, 0.6, half, 0, 0, half, *np.arange(8)])  # looks along +y
    qvel = np.array([1.0, 2.0, 3.0, 0.1, 0.2, 0.3, *np.arange(10, 18)])
    expected = [0.6, 0, 0, 1, 2, -1, 3, 0.1, 0.2, 0.3, *range(8), *range(10, 18), 0, -1]
    np.testing.assert_allclose(egocentric(qpos, qvel, np.array([1.0, 0.0])), expected, atol=1e-7)
    rolled = np.array([0, 0, 0.6, half, half, 0, 0, *np.zeros(8)])  # on its left or right side
    np.testing.assert_allclose(egocentric(rolled, np.zeros(14), np.ones(2))[1:4], [0, 1, 0], atol=1e-7)


number = st.floats(-3, 3)


@settings(max_examples=60)
@given(turn=number, shift=st.tuples(number, number), seed=st.integers(0, 1000))
def test_egocentric_ignores_place_and_heading(turn: float, shift: tuple[float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    qpos, qvel, direction = rng.standard_normal(15), rng.standard_normal(14), rng.standard_normal(2)
    qpos[3:7] /= np.linalg.norm(qpos[3:7])
    c, s = np.cos(turn), np.sin(turn)
    rotation = np.array([[c, -s], [s, c]])
    moved, velocity = qpos.copy(), qvel.copy()
    moved[:2] = rotation @ qpos[:2] + shift
    mujoco.mju_mulQuat(moved[3:7], np.array([np.cos(turn / 2), 0, 0, np.sin(turn / 2)]), qpos[3:7])
    velocity[:2] = rotation @ qvel[:2]  # MuJoCo keeps a free body's angular velocity in its own frame
    expected, seen = egocentric(qpos, qvel, direction), egocentric(moved, velocity, rotation @ direction)
    np.testing.assert_allclose(seen, expected, atol=2e-4)
    assert seen.shape == (28,) and seen.dtype == np.float32


def test_walking_ant_pays_for_speed_standing_and_torque() -> None:
    env = WalkingAnt()
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(20):
        direction, before = env.direction, env.ant.data.qpos[:2].copy()
        action = env.action_space.sample()
        observation, reward, fallen, truncated, info = env.step(action)
        speed = (env.ant.data.qpos[:2] - before) @ direction / 0.1
        assert info["speed"] == pytest.approx(speed) and not truncated
        assert reward == pytest.approx(speed + 0.5 * (not fallen) - 0.02 * (action.astype(float) ** 2).sum())
    np.testing.assert_array_equal(observation, egocentric(env.ant.data.qpos, env.ant.data.qvel, env.direction))
    env.close()


def test_walking_ant_on_its_back_has_fallen() -> None:
    env = WalkingAnt()
    env.reset(seed=0)
    qpos = env.ant.data.qpos.copy()
    qpos[3:7] = 0, 1, 0, 0
    env.ant.set_state(qpos, np.zeros(14))
    assert env.step(np.zeros(8, dtype=np.float32))[2]
    env.close()


def test_walking_ant_takes_a_model_of_the_callers(tmp_path: Path) -> None:
    write_model(tmp_path / "ant.xml")
    (given, _), (own, _) = WalkingAnt(tmp_path / "ant.xml").reset(seed=3), WalkingAnt().reset(seed=3)
    np.testing.assert_array_equal(given, own)


def test_maze_dynamics_are_those_of_gymnasium_robotics(tmp_path: Path) -> None:
    write_model(tmp_path / "ant.xml")
    reference = AntMazeEnv(
        xml_file=str(tmp_path / "ant.xml"), include_cfrc_ext_in_observation=False, continuing_task=False
    )
    Path(reference.tmp_xml_file_path).unlink()
    ours = AntMaze()
    reference.reset(seed=0)
    ours.reset(seed=1)
    reference.goal = ours.goal
    reference.ant_env.set_state(ours.data.qpos, ours.data.qvel)
    rng = np.random.default_rng(0)
    for _ in range(60):
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        expected, *rest, _ = reference.step(action)
        seen, *outcome, _ = ours.step(action)
        for key in expected:
            np.testing.assert_array_equal(seen[key], expected[key])
        assert outcome == rest
    assert reference.compute_reward(ours.goal, ours.goal, {}) == ours.compute_reward(ours.goal, ours.goal, {}) == 1


@pytest.mark.parametrize(("distance", "reward"), [(0.40, 1.0), (0.50, 0.0)])
def test_arriving_pays_one_and_ends_the_episode(maze: AntMaze, distance: float, reward: float) -> None:
    maze.reset(seed=0)
    place(maze, maze.goal[0] + distance, maze.goal[1])
    observation, *outcome, info = maze.step(np.zeros(8, dtype=np.float32))
    assert outcome == [reward, bool(reward), False] and info == {"success": bool(reward)}
    moved = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]) - distance
    assert abs(moved) < 0.02


def test_an_episode_is_cut_after_700_steps() -> None:
    env = gym.make("dmm/AntMaze-v0")
    env.reset(seed=0)
    rest = np.zeros(8, dtype=np.float32)
    for _ in range(699):
        assert env.step(rest)[1:4] == (0.0, False, False)
    assert env.step(rest)[1:4] == (0.0, False, True)
    env.close()


def test_starts_and_goals_of_umaze(maze: AntMaze) -> None:
    pairs = [maze.reset(seed=seed)[0] for seed in range(80)]
    starts, goals = (np.array([pair[key] for pair in pairs]) for key in ("achieved_goal", "desired_goal"))
    assert 0.09 < np.abs(starts - [-4, 4]).max() <= 0.1
    offsets = (goals - [-4, -4]) * [1, -1]
    assert offsets.min() >= 0 and offsets.max() <= 1.5 and np.abs(offsets.mean(axis=0) - 0.75).max() < 0.12
    for i in range(2):
        for j in range(2):
            assert abs(np.corrcoef(starts[:, i], goals[:, j])[0, 1]) < 0.4  # the start does not tell where the goal is


def test_diverse_starts_and_goals_cover_the_maze() -> None:
    env = AntMaze("umaze-diverse")
    pairs = [env.reset(seed=seed)[0] for seed in range(150)]
    for key in ("achieved_goal", "desired_goal"):
        xy = np.array([pair[key] for pair in pairs])
        cells = {tuple(env.maze.cell_xy_to_rowcol(point)) for point in xy}
        assert cells == {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}
        assert len(np.unique(xy.round(3), axis=0)) == 150
    apart = [np.linalg.norm(pair["achieved_goal"] - pair["desired_goal"]) for pair in pairs]
    assert min(apart) > 0.45
    env.close()


def test_cells_asked_for_are_taken_at_their_centres(maze: AntMaze) -> None:
    observation, info = maze.reset(seed=0, options={"reset_cell": np.array([3, 3]), "goal_cell": np.array([3, 2])})
    np.testing.assert_allclose(observation["achieved_goal"], [4, -4], atol=0.1)
    np.testing.assert_array_equal(observation["desired_goal"], [0, -4])
    assert info == {"success": False}


@pytest.mark.parametrize("maze", MAZES)
def test_the_same_seed_gives_the_same_bytes(maze: str) -> None:
    runs = []
    for _ in range(2):
        env = FlatObservation(gym.make("dmm/AntMaze-v0", maze=maze), ("achieved_goal", "observation"))
        assert env.observation_space.shape == (29,)
        env.action_space.seed(0)
        states = [env.reset(seed=5)[0], *(env.step(env.action_space.sample())[0] for _ in range(20))]
        states.append(env.reset()[0])  # goes on from the first seed
        runs.append(np.array(states).tobytes())
        env.close()
    assert runs[0] == runs[1]


def test_no_file_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    AntMaze("umaze-diverse").close()
    WalkingAnt().close()
    assert list(tmp_path.iterdir()) == []
    assert tempfile.gettempdir() == str(tmp_path)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_are_of_the_same_maze(duplicate) -> None:  # type: ignore[no-untyped-def]
    env = duplicate(AntMaze("umaze-diverse"))
    assert env.maze.maze_map == MAZES["umaze-diverse"]
    assert env.reset(seed=0)[0]["observation"].shape == (27,)


def test_renders_the_maze_from_above() -> None:
    red_goal = render(
        "import gymnasium, numpy, dmm.envs\n"
        "env = gymnasium.make('dmm/AntMaze-v0', render_mode='rgb_array')\n"
        "env.reset(seed=0)\n"
        "frame = env.render()\n"
        "env.close()\n"
        "assert isinstance(frame, numpy.ndarray) and frame.shape == (480, 480, 3) and frame.dtype == numpy.uint8\n"
        "red = (frame[..., 0] > 150) & (frame[..., 1] < 60) & (frame[..., 2] < 60)\n"
        "rows, columns = numpy.nonzero(red)\n"
        "print(len(rows), rows.mean(), columns.mean())\n"
    )
    pixels, row, column = map(float, red_goal.split())
    assert pixels > 100 and row > 240 and column < 240  # the goal is in the lower arm of the U


def test_an_action_of_the_wrong_size_is_refused(maze: AntMaze) -> None:
    maze.reset(seed=0)
    with pytest.raises(ValueError, match="Action dimension mismatch"):
        maze.step(np.zeros(1, dtype=np.float32))


@pytest.mark.parametrize("name", ["medium", "UMaze", ""])
def test_unknown_mazes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"maze: got .*; allowed: umaze, umaze-diverse"):
        AntMaze(name)
