"""This project's Gymnasium environments; importing this module registers them under `dmm/`.

`gymnasium.make("dmm.envs:dmm/Darkroom-v0")` imports it by itself.
"""

from __future__ import annotations

import gymnasium as gym

_ENVIRONMENTS = {
    "dmm/Darkroom-v0": ("dmm.envs.grid:Darkroom", 20),
    "dmm/DarkroomHard-v0": ("dmm.envs.grid:DarkroomHard", 20),
    "dmm/LargeDarkroom-v0": ("dmm.envs.grid:LargeDarkroom", 200),
    "dmm/LargeDarkroomHard-v0": ("dmm.envs.grid:LargeDarkroomHard", 200),
    "dmm/KeyToDoor-v0": ("dmm.envs.grid:KeyToDoor", 50),
    "dmm/LargeKeyToDoor-v0": ("dmm.envs.grid:LargeKeyToDoor", 500),
    "dmm/DarkroomDynamic-v0": ("dmm.envs.grid:DarkroomDynamic", 20),
    "dmm/LargeDarkroomDynamic-v0": ("dmm.envs.grid:LargeDarkroomDynamic", 200),
    "dmm/TMaze-v0": ("dmm.envs.tmaze:TMaze", None),  # its corridor sets the length
    "dmm/AntMaze-v0": ("dmm.envs.ant:AntMaze", 700),
    "dmm/WalkingAnt-v0": ("dmm.envs.ant:WalkingAnt", 400),
    "dmm/Kitchen-v0": ("dmm.envs.kitchen:Kitchen", 280),
}

_VECTOR_ENVIRONMENTS = {
    "dmm/Darkroom-v0": "dmm.envs.vector:VectorDarkroom",
    "dmm/DarkroomHard-v0": "dmm.envs.vector:VectorDarkroomHard",
    "dmm/LargeDarkroom-v0": "dmm.envs.vector:VectorLargeDarkroom",
    "dmm/LargeDarkroomHard-v0": "dmm.envs.vector:VectorLargeDarkroomHard",
    "dmm/KeyToDoor-v0": "dmm.envs.vector:VectorKeyToDoor",
    "dmm/LargeKeyToDoor-v0": "dmm.envs.vector:VectorLargeKeyToDoor",
    "dmm/DarkroomDynamic-v0": "dmm.envs.vector:VectorDarkroomDynamic",
    "dmm/LargeDarkroomDynamic-v0": "dmm.envs.vector:VectorLargeDarkroomDynamic",
    "dmm/TMaze-v0": "dmm.envs.vector:VectorTMaze",
}

for _name, (_entry_point, _steps) in _ENVIRONMENTS.items():
    if _name not in gym.registry:
        _vector = _VECTOR_ENVIRONMENTS.get(_name)
        gym.register(_name, entry_point=_entry_point, max_episode_steps=_steps, vector_entry_point=_vector)
