"""The physics for the page: what is fetched is what is meant, and what is packed is code and nothing else."""

from __future__ import annotations

import base64
import gzip
import io
import os
import tarfile
import urllib.error
import urllib.request

import pytest

from dmm.errors import RunError
from dmm.experiments.node import run_node
from dmm.widgets import mujoco

MODULE = "var loadMujoco = (() => { var here = import.meta.url; return here; })();\nexport default loadMujoco;\n"
HEADER = b"\0asm\x01\0\0\0"
TYPES = b"\x01\x04\x01\x60\0\0"  # one function type, no arguments and no result


def custom(name: bytes, size: int) -> bytes:
    """A custom section, its length in two bytes."""
    body = bytes([len(name)]) + name + b"x" * size
    return bytes([0, len(body) & 127 | 128, len(body) >> 7]) + body


def tarball(loader: str = MODULE, wasm: bytes = HEADER + custom(b"name", 300) + TYPES) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in (("mujoco.js", loader.encode()), ("mujoco.wasm", wasm), ("README.md", b"")):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry that has one tarball, which is the one that is meant; what it was asked for; an empty cache."""
    content, asked = tarball(), []

    def answer(address, timeout):
        asked.append(address)
        return io.BytesIO(content)

    monkeypatch.setenv("DMM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setattr(mujoco, "INTEGRITY", mujoco._integrity(content))
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return asked


def test_it_is_fetched_once(registry, tmp_path):
    assert mujoco.fetch() == mujoco.fetch() == tarball()
    assert registry == [f"https://registry.npmjs.org/@mujoco/mujoco/-/mujoco-{mujoco.VERSION}.tgz"]


def test_a_mirror_may_be_named(registry, monkeypatch):
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://localhost:4873/")
    mujoco.fetch()
    assert registry[0].startswith("http://localhost:4873/@mujoco/mujoco/-/")


def test_another_content_is_refused_and_not_kept(registry, monkeypatch, tmp_path):
    monkeypatch.setattr(mujoco, "INTEGRITY", "sha512-something else")
    with pytest.raises(
        RunError, match=r"^mujoco: @mujoco/mujoco .* has the hash sha512-.*, not sha512-something else$"
    ):
        mujoco.fetch()
    assert not list(tmp_path.rglob("*.tgz"))


def test_a_damaged_cache_is_fetched_anew(registry, tmp_path):
    mujoco.fetch()
    (kept,) = tmp_path.rglob("*.tgz")
    kept.write_bytes(b"half of it")
    assert mujoco.fetch() == tarball() and kept.read_bytes() == tarball() and len(registry) == 2


def test_without_a_network_there_is_one_sentence(registry, monkeypatch):
    def fail(address, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(RunError, match=r"^mujoco: .* cannot be fetched from https://.* \(.*no route to host.*\)$"):
        mujoco.mujoco_script()


def test_custom_sections_are_left_out_and_nothing_else():
    whole = HEADER + custom(b"name", 300) + TYPES + custom(b"producers", 5)
    assert mujoco.strip(whole) == HEADER + TYPES
    assert mujoco.strip(HEADER + TYPES) == HEADER + TYPES


def test_the_loader_becomes_a_plain_script():
    script = mujoco.classic(MODULE)
    assert "globalThis.loadMujoco = loadMujoco;" in script and "import.meta" not in script and "export" not in script
    for other in (
        MODULE.replace("export default", "// "),
        'import fs from "fs";\n' + MODULE,
        MODULE + "export default a;",
    ):
        with pytest.raises(RunError, match="no module that can be made a plain script"):
            mujoco.classic(other)


def test_the_script_hands_over_text_and_runs_nothing(registry):
    script = mujoco.mujoco_script()
    found = run_node(f"{script}\nreturn [globalThis.dmmFiles, typeof globalThis.loadMujoco];")
    made, kind = found
    assert kind == "undefined" and made["mujoco"] == mujoco.mujoco_file()
    assert gzip.decompress(base64.b64decode(made["mujoco"]["wasm"])) == HEADER + TYPES
    assert "Apache License" in script.partition("*/")[0] and "mujoco-LICENSE.txt" in script.partition("*/")[0]


def test_what_is_missing_says_why():
    assert run_node(f"{mujoco.missing_script('no network')}\nreturn globalThis.dmmFiles;") == {
        "mujoco": {"missing": "no network"}
    }


def test_the_licences_are_shipped():
    texts = mujoco.licenses()
    assert set(texts) == {"mujoco-LICENSE.txt", "mujoco-LICENSES_THIRD_PARTY.md"}
    assert "Apache License" in texts["mujoco-LICENSE.txt"] and len(texts["mujoco-LICENSES_THIRD_PARTY.md"]) > 1000


def test_the_package_itself():
    """Where it is built for readers, it must be had."""
    try:
        made, script = mujoco.mujoco_file(), mujoco.mujoco_script()
    except RunError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    assert len(gzip.compress(script.encode(), 9)) < 1.6e6
    code = """
      const wasm = require("node:zlib").gunzipSync(Buffer.from(data, "base64"));
      const module = new WebAssembly.Module(wasm);
      const names = ["name", "producers", "sourceMappingURL"];
      return names.map(name => WebAssembly.Module.customSections(module, name).length);
    """
    assert run_node(code, made["wasm"]) == [0, 0, 0]
