"""Installs torch for the interpreter that runs this: its CPU build where there is no NVIDIA GPU.

    python .ci/install_torch.py "torch==2.13.0"

The CUDA build, which is what PyPI has for Linux, brings 4 GB of libraries that such a machine cannot use. The CPU build
comes from what pip is told to look through anyway, else from PyTorch's own package index; where neither has it, the
CUDA build is left to the next `pip install`. Only torch itself is taken from that index, never what it depends on.

Environment: TORCH is `auto` (the default), `cpu` or `cuda`; TORCH_INDEX, another index for the CPU build, say a mirror.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/cpu"
CHOICES = ("auto", "cpu", "cuda")
ANSWER, PROBE = 5, 20  # seconds that the index may take for a connection, and for all of its addresses together


def main(requirement: str, choice: str, index: str) -> str:
    """What was done, in one line; an empty one where torch is there already.

    Raises:
        SystemExit: not a choice, or the build asked for cannot be had.
    """
    if choice not in CHOICES:
        raise SystemExit(f"TORCH: got {choice!r}; allowed: {', '.join(CHOICES)}")
    linux = platform.system() == "Linux"
    if choice == "cuda" and not linux:
        raise SystemExit(
            f"TORCH: got 'cuda', but on {platform.system()} pip installs torch without CUDA; allowed: auto"
        )
    there = installed_build() if is_satisfied(requirement) else ""
    if there:
        if choice not in ("auto", there):
            raise SystemExit(
                f"TORCH: got {choice!r}, but .venv holds torch's {there} build; remove .venv to change that"
            )
        return ""
    if choice == "cuda":
        install(requirement.replace("==", "==="))  # as 2.13.0, never as 2.13.0+cpu
        return require("cuda", "torch: its CUDA build, as asked for")
    if not linux or (choice == "auto" and has_nvidia_gpu()):
        return ""
    return install_cpu_build(requirement, choice, index)


def install_cpu_build(requirement: str, choice: str, index: str) -> str:
    """Tries pip's own folders, then the index; with `auto`, having neither is no error."""
    if install("--no-deps", "--no-index", requirement, quiet=True):
        return f"torch: {importlib.metadata.version('torch')}, found where pip is told to look"
    if not answers(index):
        reason = f"{index} cannot be reached"
    elif install("--no-deps", "--index-url", index, requirement, quiet=True):
        return require("cpu", f"torch: its CPU build, from {index}")
    else:
        reason = f"{index} has no {requirement} that can be installed here"
    if choice == "cpu":
        raise SystemExit(f"TORCH: got 'cpu', but {reason}")
    return f"torch: {reason}, so PyPI's build is taken, with CUDA, about 4 GB more"


def has_nvidia_gpu() -> bool:
    """Whether a driver of NVIDIA's shows a device."""
    if any(Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia/version")):
        return True
    tool = shutil.which("nvidia-smi", path=os.environ.get("PATH", "") + ":/usr/lib/wsl/lib")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, timeout=PROBE)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def is_satisfied(requirement: str) -> bool:
    """Whether a version of torch is installed that `requirement` allows."""
    from pip._vendor.packaging.requirements import Requirement  # no other package is there yet

    try:
        return Requirement(requirement).specifier.contains(importlib.metadata.version("torch"), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def installed_build() -> str:
    """`cpu` or `cuda`, whichever is installed; empty where torch is not."""
    importlib.invalidate_caches()
    try:
        needs = importlib.metadata.requires("torch") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    return "cuda" if any(name.startswith(("nvidia-", "cuda-")) for name in needs) else "cpu"


def require(build: str, done: str) -> str:
    """`done`, if that build is what is installed now."""
    if installed_build() != build:
        raise SystemExit(f"TORCH: pip finds no {build} build of this version of torch here")
    return done


def answers(index: str) -> bool:
    """Whether the index can be reached, asked by pip itself, which knows of proxies and certificates."""
    impatient = ("--retries", "0", "--timeout", str(ANSWER))
    try:
        return pip("index", "versions", "torch", "--index-url", index, *impatient, quiet=True, limit=PROBE)
    except subprocess.TimeoutExpired:
        return False


def install(*words: str, quiet: bool = False) -> bool:
    return pip("install", "--no-compile", *words, quiet=quiet)


def pip(*words: str, quiet: bool = False, limit: float | None = None) -> bool:
    """Whether `pip` did it; its errors are shown unless `quiet`."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *words]
    return subprocess.run(command, capture_output=quiet, timeout=limit).returncode == 0


if __name__ == "__main__":
    line = main(sys.argv[1], os.environ.get("TORCH") or "auto", os.environ.get("TORCH_INDEX") or INDEX)
    if line:
        print(line)
