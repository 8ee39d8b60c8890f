"""Python in a process of its own, for what can kill a process (a renderer) or changes it for good (a compiler)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CANNOT = 77  # the exit code that test harnesses use for "this cannot be tested here"
RENDERER = f"""
import sys
try:
    import mujoco
    context = mujoco.GLContext(16, 16)
    context.make_current()
    context.free()
except Exception as error:
    print(f"this machine cannot render without a screen ({{type(error).__name__}}: {{error}})", file=sys.stderr)
    sys.exit({CANNOT})
"""


def run_python(code: str, *, seconds: float = 120, python: str = sys.executable, **environment: str) -> str:
    """What the code prints. The test fails if the process dies, fails or takes longer, and is skipped if it exits with
    `CANNOT`, for the reason that is its last line on standard error."""
    known = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | environment
    command = [python, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=known, check=False)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the process did not end within {seconds:g} s")
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    if done.returncode < 0:
        pytest.fail(f"the process died of {signal.Signals(-done.returncode).name}\n{done.stderr}")
    if done.returncode:
        pytest.fail(f"the process ended with exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def render(code: str, seconds: float = 120) -> str:
    """`run_python` for code that draws with MuJoCo; skipped where a renderer cannot be made at all."""
    gl = {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")} if sys.platform == "linux" else {}
    return run_python(RENDERER + code, seconds=seconds, **gl)
