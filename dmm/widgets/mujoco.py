"""MuJoCo for a web page: the official npm package, fetched once and packed into one classic script.

A page that was opened from a disk may neither fetch nor load a module. So the package's WebAssembly is stripped of its
custom sections (names and debug lines, which are more than half of it and no code), compressed and written as text, and
its loader is turned from a module into a plain script. Nothing else is changed. The result is

    (globalThis.dmmFiles ??= {})["mujoco"] = {version, glue, wasm};

as `dmm/_assets/physics.js` takes it. The package is pinned by version and by the hash that npm publishes for it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.metadata
import io
import json
import os
import re
import tarfile
import urllib.request
from pathlib import Path

from dmm.errors import RunError
from dmm.files import cache_folder, read_file, write_atomically

PACKAGE, VERSION = "@mujoco/mujoco", "3.12.0"
"""Bit for bit the physics of MuJoCo 3.11 in Python for the models of this package; other versions part at contacts."""
INTEGRITY = "sha512-MPBSdhD7XsVkKD2owRlzf2mZzd8Qiz7v3zK9MaPc6X7ZS7LdBpQ5bgmdSrvXy6AsKHGlSocWRP9UmdV/I5+cZA=="
REGISTRY = "https://registry.npmjs.org"
"""Where npm's packages are, unless `NPM_CONFIG_REGISTRY` names a mirror."""
SIZE_LIMIT = 64 * 2**20
"""Bytes of the package that are read; it has about three mebibytes."""
SECONDS = 60.0
"""Without an answer of the registry."""
LICENSES = ("LICENSE", "LICENSES_THIRD_PARTY.md")
"""Of MuJoCo, as its Python wheel ships them; the npm package has none."""
NOTICE = f"""/* MuJoCo {VERSION}, compiled to WebAssembly: the npm package {PACKAGE}.
 * Copyright DeepMind Technologies Limited. Licensed under the Apache License, Version 2.0, see mujoco-LICENSE.txt;
 * the licences of what it contains are in mujoco-LICENSES_THIRD_PARTY.md, both beside this file.
 * Changed for this site: the custom sections of the WebAssembly are left out, the rest of it is compressed and written
 * as text, and the loader is a plain script in place of a module. */
"""


def mujoco_file() -> dict[str, str]:
    """`version`, the loader's text as `glue`, and `wasm`, base64 of gzip.

    Raises:
        RunError: the package cannot be had, or is not the one that is meant; the message is one sentence.
    """
    loader, wasm = _unpacked(fetch())
    packed = base64.b64encode(gzip.compress(strip(wasm), 9, mtime=0)).decode()
    return {"version": VERSION, "glue": classic(loader), "wasm": packed}


def mujoco_script() -> str:
    """`mujoco_file` as a classic script, its notice in front.

    Raises:
        RunError: see there.
    """
    return NOTICE + file_script("mujoco", mujoco_file())


def missing_script(reason: str) -> str:
    """What stands in place of `mujoco_script` where that cannot be made: a page then says so and shows its picture."""
    return file_script("mujoco", {"missing": reason})


def file_script(name: str, content: object) -> str:
    """A file for `globalThis.dmmFiles` as a classic script, which a page may load from a disk."""
    return f"(globalThis.dmmFiles ??= {{}})[{json.dumps(name)}] = {json.dumps(content, separators=(',', ':'))};\n"


def licenses() -> dict[str, str]:
    """The licences that go with the script, name of the file -> text.

    Raises:
        RunError: MuJoCo's Python wheel is not installed, or comes without them.
    """
    try:
        texts = {
            file.name: file.read_text() for file in importlib.metadata.files("mujoco") or () if file.name in LICENSES
        }
        return {f"mujoco-{name if '.' in name else name + '.txt'}": texts[name] for name in LICENSES}
    except (importlib.metadata.PackageNotFoundError, KeyError, OSError) as error:
        raise RunError(f"mujoco: its licences are not among the files of the installed package ({error})") from error


def fetch() -> bytes:
    """The npm package (a tarball): from the cache, else from the registry, and then kept.

    Raises:
        RunError: it cannot be had, or its hash is another.
    """
    kept = cache_folder() / f"mujoco-{VERSION}.tgz"
    try:
        content = read_file(kept, SIZE_LIMIT)
        if _integrity(content) == INTEGRITY:
            return content
    except (OSError, ValueError):  # not there yet, or something else
        pass
    content = _download()
    if _integrity(content) != INTEGRITY:
        raise RunError(
            f"mujoco: {PACKAGE} {VERSION} of the registry has the hash {_integrity(content)}, not {INTEGRITY}"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, content)
    except OSError:  # then it is fetched again the next time
        pass
    return content


def strip(wasm: bytes) -> bytes:
    """A WebAssembly module without its custom sections, whose id is 0."""
    kept, at = [wasm[:8]], 8
    while at < len(wasm):
        size, body = _leb128(wasm, at + 1)
        if wasm[at] != 0:
            kept.append(wasm[at : body + size])
        at = body + size
    return b"".join(kept)


def classic(module: str) -> str:
    """The package's loader, an ES module, as a classic script that sets `globalThis.loadMujoco`.

    Raises:
        RunError: it is written in another way than the version that is pinned.
    """
    script, exports = re.subn(r"\bexport default (\w+);?", r"globalThis.loadMujoco = \1;", module)
    script = script.replace("import.meta.url", '"file:///"')
    if exports != 1 or "import.meta" in script or re.search(r"^\s*(export|import)\b[^(]", script, re.M):
        raise RunError(f"mujoco: the loader of {PACKAGE} {VERSION} is no module that can be made a plain script")
    return script


def _unpacked(content: bytes) -> tuple[str, bytes]:
    """The loader and the WebAssembly of the package."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        files = {Path(each.name).name: each for each in archive if each.isfile()}
        loader, wasm = (archive.extractfile(files[name]) for name in ("mujoco.js", "mujoco.wasm"))
        assert loader is not None and wasm is not None
        return loader.read().decode(), wasm.read()


def _download() -> bytes:
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
    address = f"{registry}/{PACKAGE}/-/{PACKAGE.rpartition('/')[2]}-{VERSION}.tgz"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            content: bytes = answer.read(SIZE_LIMIT)
            return content
    except (OSError, ValueError) as error:
        raise RunError(f"mujoco: {PACKAGE} {VERSION} cannot be fetched from {address} ({error})") from error


def _integrity(content: bytes) -> str:
    """A hash as npm writes it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
