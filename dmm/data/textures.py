"""MuJoCo's models without the pictures on their surfaces, for environments that nobody looks at.

The sky of a point maze is 800 x 800 pixels on six sides: 11 of its 12 MiB, and nearly all of the time it takes to make.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

_left_out = ContextVar("textures left out", default=False)  # of this thread: others may want theirs meanwhile
_lock, _inside = threading.Lock(), 0  # how many blocks, over all threads
_plain: dict[str, Any] = {}
_READERS = {"from_xml_path": "from_file", "from_xml_string": "from_string"}
"""How `mujoco.MjModel` compiles a model, and how `mujoco.MjSpec` reads the same without compiling it."""


def textures_to_render(spec: str | EnvSpec, kwargs: dict[str, Any]) -> AbstractContextManager[None]:
    """`without_textures` around `gymnasium.make(spec, **kwargs)`, unless that asks for a `render_mode`."""
    registered = gym.registry.get(spec) if isinstance(spec, str) else spec
    asked = {**(registered.kwargs if registered else {}), **kwargs}
    return nullcontext() if asked.get("render_mode") else without_textures()


@contextmanager
def without_textures() -> Iterator[None]:
    """MuJoCo models that this thread loads inside the block have textures of one pixel in one colour.

    Nothing else of a model changes, not its textures' names either, so that the physics stays the same bit for bit. A
    model that cannot be edited (`mujoco.MjSpec` came with version 3.2) is loaded as it is.
    """
    try:
        import mujoco
    except Exception:  # without a MuJoCo that works there are no models; what needs one says so better
        yield
        return
    token = _left_out.set(True)
    _replace_loaders(mujoco)
    try:
        yield
    finally:
        _restore_loaders(mujoco)
        _left_out.reset(token)


def _replace_loaders(mujoco: Any) -> None:
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            for name in _READERS:
                _plain[name] = mujoco.MjModel.__dict__[name]
                setattr(mujoco.MjModel, name, staticmethod(_loader(mujoco, name, getattr(mujoco.MjModel, name))))


def _restore_loaders(mujoco: Any) -> None:
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            for name, loader in _plain.items():
                setattr(mujoco.MjModel, name, loader)


def _loader(mujoco: Any, name: str, plain: Any) -> Any:
    def load(*args: Any, **kwargs: Any) -> Any:
        if not _left_out.get() or len(args) != 1 or kwargs:  # MuJoCo's versions disagree on what comes after the source
            return plain(*args, **kwargs)
        try:
            spec = getattr(mujoco.MjSpec, _READERS[name])(*args)
            for texture in spec.textures:
                _flatten(mujoco, texture)
            return spec.compile()
        except Exception:  # whatever an older version cannot do; the plain loader judges the model
            return plain(*args)

    return load


def _flatten(mujoco: Any, texture: Any) -> None:
    texture.builtin, texture.mark = mujoco.mjtBuiltin.mjBUILTIN_FLAT, mujoco.mjtMark.mjMARK_NONE
    texture.file = ""
    for i in range(len(texture.cubefiles)):
        texture.cubefiles[i] = ""
    texture.width = texture.height = 1
    texture.gridsize = [1, 1]
