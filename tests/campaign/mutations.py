"""The changes: each takes a random generator and a case's folder, makes one change, and says which."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.campaign.base import DATA

Mutation = Callable[[random.Random, Path], str]
RUN_FILES = ("run/run.json", "run/checkpoint.safetensors", "run/log.csv")
DATA_FILES = (str(DATA / "metadata.json"), str(DATA / "main_data.hdf5"))
ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations")
RAW = "@raw@"
"""Begins a text that goes into a JSON file without its quotes."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 4097, 10**9, 10**12, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e9, 1e308, 3.0),
    *("", "x", "1", "\ud800", "\0", "a\nb", "../../etc/passwd", "mine/base-v0", "~", "é" * 300, "x" * 10**5),
    *([], {}, [0], [None], [1, 2, 3], [[[[]]]], {"a": 1}, [1e9, 1e9], [5, 5], ["observation"], [10**12]),
    *(f"{RAW}NaN", f"{RAW}Infinity", f"{RAW}-Infinity", f"{RAW}1e999", f"{RAW}{'9' * 10**4}", f"{RAW}{'[' * 10**5}"),
)
CANARY_SPECS = (
    {"id": "dmm/TMaze-v0", "entry_point": "campaign_canary:call"},
    {"id": "dmm/TMaze-v0", "entry_point": "os:mkdir", "kwargs": {"path": "called"}},
    {"id": "Foreign-v0", "entry_point": "campaign_canary:call"},
    {"id": "campaign_canary:Foreign-v0", "entry_point": None},
    {"id": "campaign_canary:dmm/TMaze-v0"},
    {"id": "dmm/TMaze-v0", "vector_entry_point": "campaign_canary:call", "entry_point": "campaign_canary:call"},
    {
        "id": "dmm/TMaze-v0",
        "entry_point": "dmm.envs.tmaze:TMaze",
        "additional_wrappers": [{"name": "W", "entry_point": "campaign_canary:call", "kwargs": {}}],
    },
    {
        "id": "dmm/TMaze-v0",
        "entry_point": "dmm.envs.tmaze:TMaze",
        "kwargs": {"length": 5, "render_mode": "campaign_canary:call"},
    },
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers and keys in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _write(file: Path, value: Any) -> None:
    text = json.dumps(value)
    while f'"{RAW}' in text:
        before, after = text.split(f'"{RAW}', 1)
        raw, after = after.split('"', 1)
        text = before + raw + after
    file.write_text(text)


def _change(rng: random.Random, value: Any) -> str:
    """Replace, remove or add one entry somewhere."""
    holder, key = rng.choice(list(_places(value)))
    what = rng.choice(("replace", "replace", "replace", "replace", "remove", "add"))
    if what == "replace":
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif what == "remove":
        del holder[key]
    elif isinstance(holder, dict):
        holder[rng.choice(("new", "", "__class__", "\ud800"))] = rng.choice(VALUES)
    else:
        holder.append(rng.choice(VALUES))
    return f"{what} {key!r}: {ascii(holder[key])[:60] if what == 'replace' else ''}"


def run_field(rng: random.Random, case: Path) -> str:
    """One field of `run.json`; every part as often as any other."""
    file = case / RUN_FILES[0]
    info = json.loads(file.read_text())
    part = rng.choice(("all", "config", "config", "training", "dataset", "dataset"))
    said = _change(rng, info if part == "all" else info[part])
    _write(file, info)
    return f"run.json {part}: {said}"


def run_size(rng: random.Random, case: Path) -> str:
    """A size that would take more memory or time than there is."""
    file = case / RUN_FILES[0]
    info = json.loads(file.read_text())
    part = rng.choice(("config", "config", "training"))
    name = rng.choice([key for key, value in info[part].items() if type(value) is int])
    info[part][name] = value = rng.choice((10**6, 10**9, 10**12, 2**62, 2**63 - 1, 50_000))
    if name == "context" and rng.random() < 0.5:
        info[part]["window"] = 3 * value
    _write(file, info)
    return f"run.json {part}.{name} = {value}"


def run_spec(rng: random.Random, case: Path) -> str:
    """An environment that is code to call."""
    file = case / RUN_FILES[0]
    info, spec = json.loads(file.read_text()), rng.choice(CANARY_SPECS)
    info["dataset"]["env_spec"] = rng.choice((None, json.dumps({"kwargs": {}, "additional_wrappers": [], **spec})))
    info["dataset"]["env_id"] = rng.choice((info["dataset"]["env_id"], spec["id"]))
    info["dataset"]["environment"] = None
    _write(file, info)
    return f"run.json: specification {spec}"


def data_field(rng: random.Random, case: Path) -> str:
    """One field of `metadata.json`, of a space or of a specification in it."""
    file = case / DATA_FILES[0]
    info = json.loads(file.read_text())
    inner = rng.choice((None, None, "observation_space", "action_space", "env_spec", "dmm"))
    if inner is None or inner == "dmm":
        said = _change(rng, info if inner is None else info["dmm"])
    else:
        value = json.loads(info[inner])
        said = _change(rng, value)
        info[inner] = json.dumps(value).replace(f'"{RAW}', "")
    _write(file, info)
    return f"metadata.json {inner or ''}: {said}"


def data_spec(rng: random.Random, case: Path) -> str:
    """An environment that is code to call; without spaces, Minari would make it to learn them."""
    file = case / DATA_FILES[0]
    info, spec = json.loads(file.read_text()), rng.choice(CANARY_SPECS)
    text = json.dumps({"kwargs": {}, "additional_wrappers": [], **spec})
    info[rng.choice(("env_spec", "eval_env_spec"))] = text
    for name in rng.choice(((), ("observation_space",), ("observation_space", "action_space"))):
        info["env_spec"] = text
        del info[name]
    _write(file, info)
    return f"metadata.json: specification {spec}, spaces {'observation_space' in info}"


def json_form(rng: random.Random, case: Path) -> str:
    """A JSON file in another form: cut off, encoded otherwise, nested deeply, with a key twice."""
    name = rng.choice((RUN_FILES[0], DATA_FILES[0]))
    text = (case / name).read_text()
    forms: dict[str, bytes] = {
        "cut off": text[: rng.randrange(len(text))].encode(),
        "empty": b"",
        "list": b"[]",
        "null": b"null",
        "number": b"1",
        "utf-16": text.encode("utf-16"),
        "utf-32": text.encode("utf-32"),
        "byte order mark": b"\xef\xbb\xbf" + text.encode(),
        "latin-1": text.replace("{", '{"é": 1, ', 1).encode("latin-1"),
        "key twice": text.replace("{", '{"model": "dt", "dataset_id": "x", ', 1).encode(),
        "nested": b"[" * 10**6,
        "nested objects": b'{"model":' * 10**5,
        "twice": (text + text).encode(),
    }
    form = rng.choice(sorted(forms))
    (case / name).write_bytes(forms[form])
    return f"{name}: {form}"


def place(rng: random.Random, case: Path, name: str) -> str:
    """Something else in a file's place."""
    path = case / name
    kinds = (
        "pipe",
        "zero",
        "null",
        "random",
        "folder",
        "loop",
        "dangling",
        "missing",
        "huge",
        "sparse",
        "empty",
        "other",
    )
    kind = rng.choice(kinds)
    size = path.stat().st_size
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("zero", "null", "random"):
        path.symlink_to({"zero": "/dev/zero", "null": "/dev/null", "random": "/dev/urandom"}[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind in ("huge", "sparse"):
        path.write_bytes(content if kind == "huge" else b"")
        os.truncate(path, 3 * 10**9 if kind == "sparse" else size + 2**31)
    elif kind == "empty":
        path.touch()
    elif kind == "other":
        shutil.copy(case / rng.choice([file for file in (*RUN_FILES, *DATA_FILES) if file != name]), path)
    return f"{name}: {kind}"


def damage(rng: random.Random, case: Path, name: str) -> str:
    """Some bytes changed, cut off, put in or taken out."""
    path = case / name
    content, what = (
        bytearray(path.read_bytes()),
        rng.choice(("flip", "flip", "flip", "cut", "insert", "remove", "zero")),
    )
    where = rng.randrange(min(len(content), rng.choice((64, 4096, 10**9))))
    if what == "flip":
        for _ in range(rng.choice((1, 1, 10, 100))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        content[where] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del content[where:]
    elif what == "insert":
        content[where:where] = rng.randbytes(rng.choice((1, 8, 1000)))
    elif what == "remove":
        del content[where : where + rng.choice((1, 8, 1000))]
    else:
        content[where : where + 64] = bytes(64)
    path.write_bytes(content)
    return f"{name}: {what} at {where}"


def header(rng: random.Random, case: Path) -> str:
    """A checkpoint's header that lies."""
    path = case / RUN_FILES[1]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    said, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice([key for key in said if key != "__metadata__"])
    what = rng.choice(("shape", "dtype", "offsets", "name", "remove", "metadata", "length", "any", "many"))
    if what == "shape":
        said[name]["shape"] = rng.choice(
            ([], [0], [1], [2**31, 2**31], [10**12], [-1], [1] * 100, [said[name]["shape"]])
        )
    elif what == "dtype":
        said[name]["dtype"] = rng.choice(("F64", "F16", "I32", "I64", "U8", "BOOL", "C64", "F8_E4M3", "X", ""))
    elif what == "offsets":
        said[name]["data_offsets"] = rng.choice(([0, 0], [0, 10**15], [10**15, 0], [-1, 4], [0, len(body)]))
    elif what == "name":
        said[rng.choice(("policy.other", "generator.sampler", "generator.x", ""))] = said.pop(name)
    elif what == "remove":
        del said[name]
    elif what == "metadata":
        values = ("", "-1", "²", "9" * 10**4, "1e400", "nan", "inf", "5", "3", "1.5", "x" * 10**6, 4, None)
        said["__metadata__"][rng.choice(("step", "seconds"))] = rng.choice(values)
    elif what == "any":
        _change(rng, said)
    elif what == "many":
        said |= {f"policy.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    text = json.dumps(said).replace(RAW, "").encode()
    size = rng.choice((0, 2**63, 2**64 - 1, 10**8, length + 1)) if what == "length" else len(text)
    path.write_bytes(size.to_bytes(8, "little") + text + body)
    return f"header: {what} of {name}"


def tensors(rng: random.Random, case: Path) -> str:
    """Numbers in a checkpoint that no training leads to."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = case / RUN_FILES[1]
    with safe_open(path, framework="numpy") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    kind = rng.choice(("policy.", "optimizer.exp_avg.", "optimizer.exp_avg_sq.", "optimizer.step", "generator."))
    name = rng.choice([key for key in sorted(arrays) if key.startswith(kind)])
    flat = arrays[name].reshape(-1)
    if kind == "generator.":
        sizes = (0, 1, 16, 5056, 10**5)
        arrays[name] = np.frombuffer(rng.randbytes(rng.choice(sizes)), dtype=np.uint8)
    else:
        flat[rng.randrange(len(flat))] = value = rng.choice((np.nan, np.inf, -np.inf, -1.0, 1e38, 0.0))
    save_file(arrays, path, metadata)
    return f"checkpoint: {name} {'bytes' if kind == 'generator.' else value}"


def log(rng: random.Random, case: Path) -> str:
    """Another log."""
    path = case / RUN_FILES[2]
    lines = path.read_text().splitlines()
    forms = {
        "header alone": lines[:1],
        "no header": lines[1:],
        "one row": lines[:2],
        "backwards": lines[:1] + lines[:0:-1],
        "nan": [*lines[:-1], "4,nan,1,1"],
        "text": [*lines, "a,b,c,d"],
        "short": [*lines, "5,1"],
        "long": [*lines, ",".join("1" * 10**5)],
        "many": lines + lines[1:] * 10**5,
        "null": ["\0" * 100],
        "quote": [*lines, '"' + "x" * 10**6],
    }
    form = rng.choice(sorted(forms))
    path.write_text("\n".join(forms[form]) + "\n")
    return f"log.csv: {form}"


def _put(group: Any, name: str, form: str, case: Path) -> None:
    """One array in another form; the old one is gone."""
    vectors = np.zeros((7, 3))
    plain: dict[str, Any] = {
        "texts": np.array([b"a"] * 6),
        "compound": np.zeros(6, dtype=[("a", float), ("b", int)]),
        "complex": np.zeros(6, dtype=complex),
        "pictures": np.zeros((7, 4, 4, 3), dtype=np.uint8),
        "scalar": np.float64(1),
        "none": np.zeros((0, 3)),
        "short": np.zeros(3),
        "long": np.zeros(10**6),
        "wide": np.zeros((7, 1000)),
        "big-endian": np.zeros((7, 3), dtype=">f8"),
        "nan": np.full(6, np.nan),
        "huge numbers": np.full(6, 1e300),
        "whole": np.full(6, 2**62),
        "deep": np.zeros((1,) * 20),
    }
    if form in plain:
        group.create_dataset(name, data=plain[form])
    elif form == "null":
        group.create_dataset(name, data=h5py.Empty("f8"))
    elif form == "group":
        group.create_group(name)
    elif form == "type":
        group[name] = np.dtype("f8")
    elif form == "references":
        group.create_dataset(name, (6,), dtype=h5py.ref_dtype)
    elif form == "lists":
        group.create_dataset(name, (6,), dtype=h5py.vlen_dtype(float))
    elif form == "terabytes":
        group.create_dataset(name, (10**12, 3), dtype="f8", chunks=(1000, 3))
    elif form == "gigabytes":
        group.create_dataset(name, (3 * 10**8,), dtype="f8", chunks=(10**6,), compression="gzip")
    elif form == "chunks":
        group.create_dataset(name, data=vectors, chunks=(4 * 10**6, 3), maxshape=(None, 3), compression="gzip")
    elif form == "external":
        group.create_dataset(name, (6,), dtype="u1", external=[("/etc/passwd", 0, 6)])
    elif form == "virtual":
        layout = h5py.VirtualLayout((6,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(case / "other.hdf5"), "x", shape=(6,))
        group.create_virtual_dataset(name, layout)
    elif form == "circle":
        group[name] = h5py.SoftLink(f"{group.name}/{name}")
    elif form == "link":
        group[name] = h5py.SoftLink("/episode_1/rewards")
    elif form == "other file":
        group[name] = h5py.ExternalLink(str(case / "other.hdf5"), "/x")
    elif form == "pipe":
        os.mkfifo(case / "pipe")
        group[name] = h5py.ExternalLink(str(case / "pipe"), "/x")


FORMS = (
    *("missing", "texts", "compound", "complex", "pictures", "scalar", "none", "short", "long", "wide", "big-endian"),
    *("nan", "huge numbers", "whole", "deep", "null", "group", "type", "references", "lists", "terabytes", "gigabytes"),
    *("chunks", "external", "virtual", "circle", "link", "other file", "pipe"),
)


def array(rng: random.Random, case: Path) -> str:
    """One array of one episode in another form, or an episode that is a link or not there."""
    name, form, episode = rng.choice((*ARRAYS[:4], "")), rng.choice(FORMS), f"episode_{rng.randrange(4)}"
    with h5py.File(case / "other.hdf5", "w") as file:
        file["x"] = np.arange(6.0)
    with h5py.File(case / DATA_FILES[1], "a") as file:
        group = file[episode] if name else file
        del group[name or episode]
        _put(group, name or episode, form, case)
    return f"{episode}/{name}: {form}"


def neighbour(rng: random.Random, case: Path) -> str:
    """Something beside the data set."""
    sets, kind = (
        case / "sets",
        rng.choice(("copy", "file", "data", "pipe", "loop", "metadata", "deep", "many", "closed")),
    )
    names = (
        "mine/base-v0 copy",
        "mine/base",
        "mine/base-v1",
        "a b",
        ".hidden-v0",
        "é-v0",
        "x" * 200 + "-v0",
        "mine/base-v0.bak",
    )
    place = sets / rng.choice(names)
    if kind == "copy":
        shutil.copytree(case / DATA.parent, place)
    elif kind == "file":
        place.write_text("notes")
    elif kind in ("data", "pipe"):
        place.mkdir()
        (place / "data").touch() if kind == "data" else os.mkfifo(place / "data")
    elif kind == "loop":
        for name in ("one", "two"):
            (sets / name).symlink_to(sets)
    elif kind == "metadata":
        (place / "data").mkdir(parents=True)
        os.mkfifo(place / "data" / "metadata.json")
    elif kind == "deep":
        place.joinpath(*["d"] * 60).mkdir(parents=True)
    elif kind == "many":
        for i in range(300):
            (place / str(i) / "data").mkdir(parents=True)
    else:
        (place / "data").mkdir(parents=True)
        (place / "data").chmod(0)
    return f"neighbour {place.name[:20]!r}: {kind}"


def one_of(mutation: Callable[[random.Random, Path, str], str], names: tuple[str, ...]) -> Mutation:
    return lambda rng, case: mutation(rng, case, rng.choice(names))


MUTATIONS: dict[str, list[Mutation]] = {
    "run": [
        *(run_field, run_field, run_size, run_spec, header, header, tensors, log),
        *(one_of(place, RUN_FILES), one_of(damage, RUN_FILES)),
    ],
    "data": [
        *(data_field, data_field, data_spec, array, array, array, neighbour),
        *(one_of(place, DATA_FILES), one_of(damage, DATA_FILES)),
    ],
    "both": [json_form],
}


def mutate(rng: random.Random, case: Path) -> tuple[str, str]:
    """Change one thing in a case; returns what it is about, `run` or `data`, and which change it was."""
    about = rng.choice(("run", "data", "run", "data", "both"))
    said = rng.choice(MUTATIONS[about])(rng, case)
    return "data" if about == "data" or DATA_FILES[0] in said else "run", said
