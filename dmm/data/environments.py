"""What exactly an environment was, so that a score is never taken in a slightly different one."""

from __future__ import annotations

import hashlib
import importlib.metadata
from typing import Any

import gymnasium as gym
import numpy as np

from dmm.data.faults import shown
from dmm.errors import InputError

PACKAGES = ("decision-metamamba", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy")
"""Their versions are written into the data set: other versions may give other bytes."""
_OPTIONS = ("timestep", "gravity", "wind", "density", "viscosity", "integrator", "cone", "solver", "iterations")
_ARRAYS = (
    *("body_mass", "body_inertia", "body_pos", "body_quat", "body_parentid", "qpos0"),
    *("jnt_type", "jnt_range", "jnt_stiffness", "dof_damping", "dof_armature", "dof_frictionloss"),
    *("geom_type", "geom_size", "geom_pos", "geom_quat", "geom_friction", "geom_solref", "geom_solimp", "geom_condim"),
    *("actuator_gear", "actuator_ctrlrange", "actuator_gainprm", "actuator_biasprm"),
)
"""Fields of MuJoCo's `mjModel` that decide how bodies move."""


def environment_record(env: gym.Env) -> dict[str, Any]:
    """What decides an environment's behaviour, as plain values for a data set's metadata.

    The id with its version, the time limit, both spaces, and for MuJoCo the frame skip, every physical option, the
    simulator's major and minor version and a digest of each physical array of the model.
    """
    spec, base = env.spec, env.unwrapped
    record = {
        "id": spec.id if spec else "",
        "max_episode_steps": spec.max_episode_steps if spec else None,
        "observation_space": repr(env.observation_space),
        "action_space": repr(env.action_space),
    }
    model = getattr(base, "model", None)
    if model is not None and hasattr(model, "opt"):
        record["mujoco"] = _minor_version("mujoco")
        record["frame_skip"] = _frame_skip(base)
        record |= {f"option.{name}": np.asarray(getattr(model.opt, name)).tolist() for name in _OPTIONS}
        record |= {f"model.{name}": _digest(getattr(model, name)) for name in _ARRAYS}
    return record


def require_same_environment(env: gym.Env, record: dict[str, Any]) -> None:
    """Passes when `env` is the environment that `record` (of `environment_record`) describes.

    Raises:
        InputError: anything that decides its behaviour differs; the message names what.
    """
    if not isinstance(record, dict):
        raise InputError(f"environment: its record is {shown(record)}, allowed is an object")
    here = environment_record(env)
    different = [key for key, value in record.items() if here.get(key) != value]
    if different:
        values = [f"{key} {shown(record[key])} there, {shown(here.get(key))} here" for key in different[:3]]
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        name = shown(record.get("id") or "the data set")
        raise InputError(
            f"environment: {name} cannot be rebuilt exactly; {'; '.join(values)}{more}"
            "; install the versions that the data set's metadata name, or make it again"
        )


def package_versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """The installed version of each of `PACKAGES`, and of more distributions."""
    return {name: _version(name) for name in (*PACKAGES, *more)}


def require_packages(recipe: str, packages: tuple[str, ...]) -> None:
    """Passes when the distributions that a recipe needs are installed.

    Raises:
        InputError: one of them is not.
    """
    missing = [name for name in packages if _version(name) == "unknown"]
    if missing:
        raise InputError(f"recipe: {recipe!r} needs {', '.join(missing)}; `pip install {' '.join(missing)}`")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _minor_version(package: str) -> str:
    return ".".join(_version(package).split(".")[:2])


def _frame_skip(base: Any) -> int | None:
    """Simulator steps per step; mazes keep it one level down, in their robot."""
    for holder in (base, getattr(base, "ant_env", None), getattr(base, "point_env", None)):
        skip: int | None = getattr(getattr(holder, "unwrapped", holder), "frame_skip", None)
        if skip is not None:
            return int(skip)
    return None


def _digest(values: Any) -> str:
    """12 hexadecimal digits of an array, rounded so that another compiler's last bit does not count."""
    array = np.round(np.asarray(values, dtype=np.float64), 9) + 0.0  # + 0.0: no negative zeros
    return hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()[:12]
