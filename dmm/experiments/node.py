"""The page's own scripts, run by node: what a reader's browser would compute, without a browser.

node is the one that `$DMM_NODE` names, else playwright's (`pip install playwright` brings one along), else the `node`
on the path.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmm.errors import InputError, RunError
from dmm.files import strict_json

ASSETS = Path(__file__).resolve().parents[1] / "_assets"
SCRIPTS = ("policy.js", "worlds.js", "physics.js")
"""Of `ASSETS`, in the order in which they are loaded."""
MAIN = """
const vm = require("node:vm"), fs = require("node:fs");
const [input, output, ...scripts] = process.argv.slice(2);
const importModuleDynamically = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER; // MuJoCo's loader imports node's modules
for (const filename of scripts)
  vm.runInThisContext(fs.readFileSync(filename, "utf8"), { filename, importModuleDynamically });
const data = JSON.parse(fs.readFileSync(input, "utf8"));
const run = async () => { CODE };
run().then(result => fs.writeFileSync(output, JSON.stringify(result ?? null)), error => {
  console.error(error.stack);
  process.exit(1);
});
"""


def node() -> str:
    """The program.

    Raises:
        InputError: there is none.
    """
    named = os.environ.get("DMM_NODE")
    found = named or _playwrights() or shutil.which("node")
    if not found or not shutil.which(found):
        raise InputError(f"node: got {named or 'none'}, allowed is $DMM_NODE, playwright's or one on the path")
    return found


def run_node(code: str, data: Any = None, *, before: Sequence[str | Path] = (), seconds: float = 600.0) -> Any:
    """What `code`, the body of an async function of `data`, returns; both are plain values.

    Args:
        code: JavaScript; `dmm` is there, and node's `require`.
        data: what it is given.
        before: files with classic scripts that are loaded in front of `SCRIPTS`.
        seconds: that it may take.

    Raises:
        InputError: there is no node.
        RunError: it failed, or took longer.
    """
    program = node()
    with tempfile.TemporaryDirectory() as folder:
        main, given, made = (Path(folder) / name for name in ("main.js", "given.json", "made.json"))
        main.write_text(MAIN.replace("CODE", code))
        given.write_text(strict_json(data))
        scripts = [*before, *(ASSETS / name for name in SCRIPTS)]
        command = [program, str(main), str(given), str(made), *map(str, scripts)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"node: no answer within {seconds:g} s") from error
        if done.returncode:
            raise RunError(f"node: {done.stderr.strip()[-2000:]}")
        return json.loads(made.read_text())


def _playwrights() -> str | None:
    """The node that playwright's package brings along."""
    try:
        import playwright
    except ImportError:
        return None
    folder = Path(playwright.__file__).parent / "driver"
    return next((str(file) for file in (folder / "node", folder / "node.exe") if file.exists()), None)
