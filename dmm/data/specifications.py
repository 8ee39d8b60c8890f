"""What a file says of its environment, and how much of it is believed: names and plain data, never code.

A specification of Gymnasium names callables (the environment's, those of its wrappers) and their arguments. One that
comes from a file is looked up by its **id** instead: what is called is what an installed package, or the running
program, has registered under that id. Of the file's own words the time limit, the arguments (JSON, so plain data) and
wrappers of a fixed list are taken. An id that is not registered yet may be so by a module that the file names. That
module is imported only if its source registers this very id, which is read before anything of it runs; so a file can
make a module that is installed here, and that registers environments, be imported, but nothing else.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.machinery
import importlib.util
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from dmm.data.faults import FAULTS, reason, say_once, shown
from dmm.errors import InputError, whole_number
from dmm.files import read_file

SPEC_LIMIT = 2**16
"""Bytes of one specification; the largest public ones, of mazes, have 2 KB."""
SOURCE_LIMIT = 2**20
"""Bytes of a module that is looked through for what it registers."""
REBUILT = (
    *("ClipAction", "ClipReward", "DelayObservation", "DiscretizeAction", "DtypeObservation", "FilterObservation"),
    *("FlattenObservation", "FrameStackObservation", "OrderEnforcing", "PassiveEnvChecker", "RepeatAction"),
    *("RescaleAction", "RescaleObservation", "ReshapeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit"),
)
"""Wrappers of Gymnasium that plain arguments describe in full; normalising ones depend on what they saw before."""
RECORDING = (
    *("Monitor", "RecordVideo", "RecordEpisodeStatistics", "RenderCollection", "HumanRendering", "AddWhiteNoise"),
    *("ObstructView", "DataCollector", "DataCollectorV0", "StepDataCallback", "VideoRecorder"),
)
"""Wrappers that change nothing of what a policy sees, does or earns."""
RELATED = ("gym", "gymnasium", "gymnasium_robotics")
"""Packages that hand environments to each other from version to version."""
RECORDERS = (*RELATED, "minari", "rl_zoo3", "sb3_contrib", "stable_baselines", "stable_baselines3", "sbx")
TRUST = "--trust-environment (trust_environment=True) calls it"


def parse_env_spec(text: Any) -> EnvSpec:
    """The environment specification a data set stores, also one of an earlier version of Gymnasium.

    Fields that Gymnasium 1.0 has dropped are ignored, and a time limit such as 1e6 becomes a whole number.
    Nothing is imported or called; `registered_spec` says what may be.

    Raises:
        InputError: it is no specification.
    """
    try:
        if len(text) > SPEC_LIMIT:
            raise ValueError(f"{len(text):,} characters, allowed are {SPEC_LIMIT:,}")
        stored = json.loads(text)
        known = {field.name for field in dataclasses.fields(EnvSpec) if field.init}
        kept = {name: value for name, value in stored.items() if name in known}
        # some data sets of Minari have null where nothing was given
        kept |= {name: kept.get(name) or empty for name, empty in (("kwargs", {}), ("additional_wrappers", []))}
        if kept.get("max_episode_steps") is not None:
            kept["max_episode_steps"] = whole_number("max_episode_steps", kept["max_episode_steps"], 1)
        spec = EnvSpec.from_json(json.dumps(kept))
        _require_types(spec)
        return spec
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, gym.error.Error) as error:
        raise InputError(f"environment: the stored specification cannot be read ({error})") from error


def _require_types(spec: EnvSpec) -> None:
    callables = [spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)]
    if not all(isinstance(each, str | None) for each in callables) or not isinstance(spec.order_enforce, bool):
        raise ValueError("entry points are text, order_enforce is true or false")
    for kwargs in (spec.kwargs, *(wrapper.kwargs for wrapper in spec.additional_wrappers)):
        if not isinstance(kwargs, dict | None):
            raise ValueError(f"arguments are {shown(kwargs)}, allowed is an object")


def require_storable(spec: EnvSpec) -> None:
    """Passes when the specification can be written into a data set and read back.

    Raises:
        InputError: a class object in it, so that the environment could never be rebuilt.
    """
    try:
        spec.to_json()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"env_id: {spec.id!r} cannot be stored ({error}); allowed: plain values as arguments, and an environment "
            'registered by name, as in gymnasium.register("My-v0", entry_point="my_module:MyEnv")'
        ) from error


def find_registered(env_id: str, entry_point: Any = None) -> EnvSpec:
    """What is registered under an id that a file names, as `My-v0` or `my_module:My-v0`.

    Where it is not registered yet, the module in front of the id or that of the `entry_point` may be imported to do
    so, if its source does.

    Raises:
        InputError: nothing registers that id here.
    """
    module, _, name = env_id.rpartition(":")
    if name not in gym.registry:
        for candidate in (module, entry_point.partition(":")[0] if isinstance(entry_point, str) else ""):
            if _import_if_it_registers(candidate, name):
                break
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        if not (module or entry_point):
            raise InputError(f"environment: {env_id!r} cannot be made here ({error})") from error
        raise InputError(
            f"environment: {env_id!r} is not registered here, and the file's {entry_point or module!r} is not called: "
            f"no module of that name registers the id. Register it before; {TRUST}"
        ) from error


def registered_spec(stored: EnvSpec) -> EnvSpec:
    """What `gymnasium.make` may be given in place of a stored specification, wrappers aside (see `rewrap`).

    The id's registered entry point, with the stored time limit, order and arguments. A stored `render_mode` is left
    out: whoever wants pictures asks for them.

    Raises:
        InputError: the id is not registered here, the file names an entry point of another package than the
            registered one's, or an argument names a device or pipe.
    """
    registered = find_registered(stored.id, stored.entry_point)
    there, here = _package(stored.entry_point), _package(registered.entry_point)
    if there and there != here and not {there, here} <= set(RELATED):
        raise InputError(
            f"environment: the file would call {shown(stored.entry_point)} for {stored.id!r}, which is registered as "
            f"{shown(registered.entry_point)}; nothing was called. {TRUST}"
        )
    for value in _texts(stored.kwargs):
        _require_no_device(value)
    kwargs = {name: value for name, value in stored.kwargs.items() if name != "render_mode"}
    return dataclasses.replace(
        registered,
        max_episode_steps=stored.max_episode_steps,
        order_enforce=stored.order_enforce,
        kwargs={**registered.kwargs, **kwargs},
    )


def rewrap(env: gym.Env, wrappers: tuple[WrapperSpec, ...]) -> gym.Env:
    """`env` in the stored wrappers that it does not have yet, those of `REBUILT`; those of `RECORDING` are left out.

    Raises:
        InputError: another wrapper, of which nothing was called, or one without stored arguments.
    """
    there = list(env.spec.additional_wrappers) if wrappers and env.spec else []
    for wrapper in wrappers:
        if there and (_package(there[0].entry_point), _class(there[0])) == (
            _package(wrapper.entry_point),
            _class(wrapper),
        ):
            there.pop(0)  # of the environment's own making
        elif not recording(wrapper):
            env = _wrapped(env, wrapper)
    return env


def _wrapped(env: gym.Env, wrapper: WrapperSpec) -> gym.Env:
    try:
        wrapped: gym.Env = _rebuilt(wrapper)(env, **(wrapper.kwargs or {}))
        return wrapped
    except FAULTS as error:
        env.close()
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"environment: it cannot be wrapped in {_class(wrapper)} as stored ({reason(error)})"
        ) from error


def without_recorders(spec: EnvSpec) -> EnvSpec:
    """The specification without its wrappers that only record; everything else is as it was."""
    return dataclasses.replace(
        spec, additional_wrappers=tuple(each for each in spec.additional_wrappers if not recording(each))
    )


def recording(wrapper: WrapperSpec) -> bool:
    """Whether a wrapper only records; the first time, a line on stderr says that it is left out."""
    left_out = _class(wrapper) in RECORDING and _package(wrapper.entry_point) in RECORDERS
    if left_out:
        say_once(f"dmm: environment: the wrapper {wrapper.entry_point}, which only records, is left out")
    return left_out


def _rebuilt(wrapper: WrapperSpec) -> Any:
    name = _class(wrapper)
    if _package(wrapper.entry_point) not in RELATED or name not in REBUILT:
        raise InputError(
            f"environment: the file would wrap it in {shown(wrapper.entry_point)}, which may change what a policy sees "
            f"or earns and cannot be rebuilt from plain data; it was not called. {TRUST}"
        )
    if wrapper.kwargs is None:
        raise InputError(f"environment: the file wraps it in {name} without saying how (no arguments are stored)")
    return getattr(gym.wrappers, name)


def _class(wrapper: WrapperSpec) -> str:
    return wrapper.entry_point.rpartition(":")[2]


def _package(entry_point: Any) -> str:
    """The top-level package of a callable or of the text that names one; empty for none."""
    name = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "") or ""
    return str(name).partition(":")[0].partition(".")[0]


def _import_if_it_registers(module: str, env_id: str) -> bool:
    """Imports the first of a module's packages, or itself, whose source registers the id; whether there was one."""
    parts = module.split(".")
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        return False
    if parts[0] in sys.stdlib_module_names:
        return False
    for name, file in _sources(parts):
        if _registers(file, env_id):
            try:
                importlib.import_module(name)
            except FAULTS as error:
                raise InputError(
                    f"environment: {name!r}, which registers {env_id!r}, cannot be imported ({reason(error)})"
                ) from error
            return True
    return False


def _sources(parts: list[str]) -> Iterator[tuple[str, Path]]:
    """The modules `a`, `a.b`, `a.b.c` with their source files, found without importing any of them."""
    try:
        found = importlib.util.find_spec(parts[0])
    except (ValueError, ImportError):  # such as `__main__`
        return
    for depth in range(1, len(parts) + 1):
        if found is None:
            return
        if found.origin and found.origin.endswith(".py"):
            yield found.name, Path(found.origin)
        if depth < len(parts):
            places = found.submodule_search_locations
            found = importlib.machinery.PathFinder.find_spec(f"{found.name}.{parts[depth]}", places) if places else None


def _registers(file: Path, env_id: str) -> bool:
    """Whether a source file calls something named `register` and holds the id as a text."""
    try:
        tree = ast.parse(read_file(file, SOURCE_LIMIT))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    calls = texts = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            calls |= getattr(node.func, "attr", getattr(node.func, "id", "")) == "register"
        elif isinstance(node, ast.Constant):
            texts |= node.value == env_id
    return calls and texts


def _texts(value: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


def _require_no_device(path: str) -> None:
    """A model read from a pipe or from `/dev/zero` would never end."""
    try:
        mode = os.stat(os.path.expanduser(path)).st_mode
    except (OSError, ValueError):  # no path at all, as most texts
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"environment: its stored argument {shown(path)} is no ordinary file")
