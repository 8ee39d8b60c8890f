"""Runs a command of strangers where it can neither touch other files nor outlive its time. What this stops, and what
not, is said in book/classroom.md.

A supervisor, this file run as a program, starts the command in a session of its own, watches its time and memory, and
ends everything that came of it. Where Linux lets an ordinary user have namespaces, the command also sees no network, no
process but its own, and every folder but its own read-only; some folders it does not see at all.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

NAMESPACES = ("--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
GRACE = 20
"""Seconds that the supervisor has for itself, before and after the command."""
LARGEST_FILE = 256 * 2**20
"""Bytes of any file that the command writes."""
ADDRESSES = 32 * 2**30
"""Bytes of address space of a process: far above its memory, as libraries only reserve it."""

_MOUNT = {"bind": 4096, "remount": 32, "readonly": 1, "private": 1 << 18, "recursive": 16384}
_KEPT = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
_SUBREAPER, _NO_NEW_PRIVILEGES, _DROP_CAPABILITY = 36, 38, 24
_UP = 1  # of a network interface


@dataclass(frozen=True)
class Ended:
    """How a command came to its end."""

    reason: str
    """`exit`, `time`, `memory`, or `supervisor`, where that was killed by what it ran."""
    code: int
    output: str
    """The last lines of what it printed."""


@dataclass(frozen=True)
class _Order:
    command: Sequence[str]
    folder: str
    seconds: float
    memory: int
    hidden: Sequence[str]
    isolated: bool


@cache
def isolation() -> bool:
    """Whether this machine lets a user have namespaces. Without them there are limits, but no walls."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return False
    probe = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, timeout=60, check=False)
    return probe.returncode == 0


def run(
    command: Sequence[str],
    folder: Path,
    *,
    seconds: float,
    memory: int,
    environment: Mapping[str, str],
    hidden: Sequence[Path] = (),
    isolated: bool | None = None,
) -> Ended:
    """Runs `command` in `folder`, the only one that it may write to.

    Args:
        seconds: after which it is ended.
        memory: bytes that all its processes may have together.
        environment: its variables, all of them.
        hidden: folders that it does not see, where there are namespaces.
        isolated: whether to use namespaces; as `isolation` says, if not given.
    """
    isolated = isolation() if isolated is None else isolated
    order = _Order(list(command), str(folder), seconds, memory, [str(path) for path in hidden], isolated)
    prefix = ["unshare", *NAMESPACES] if isolated else []
    supervisor = [*prefix, sys.executable, "-I", __file__, json.dumps(asdict(order))]
    with subprocess.Popen(
        supervisor,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environment),
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = b""
    lines = said.decode("utf8", "replace").splitlines()
    try:
        reason, code = json.loads(lines[-1])
    except (IndexError, ValueError, TypeError):
        reason, code = "supervisor", process.returncode
    return Ended(str(reason), int(code), _tail(folder / "output.txt"))


def _tail(path: Path, size: int = 20_000) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read(size).decode("utf8", "replace")
    except OSError:
        return ""


# What follows runs in the supervisor.


def _supervise(order: _Order) -> tuple[str, int]:
    libc = ctypes.CDLL(None, use_errno=True)
    if order.isolated:
        _wall_in(libc, order)
    elif sys.platform.startswith("linux"):
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with open(os.path.join(order.folder, "output.txt"), "wb") as output:
        process = subprocess.Popen(
            order.command,
            cwd=order.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_limit,
        )
        try:
            return _watch(process, order)
        finally:
            _end_all(process)


def _limit() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for which, most in (
        (resource.RLIMIT_FSIZE, LARGEST_FILE),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, ADDRESSES),
    ):
        hard = resource.getrlimit(which)[1]
        resource.setrlimit(which, (most, most) if hard == resource.RLIM_INFINITY else (min(most, hard), hard))


def _watch(process: subprocess.Popen[bytes], order: _Order) -> tuple[str, int]:
    until = time.monotonic() + order.seconds
    while process.poll() is None:
        if time.monotonic() > until:
            return "time", -1
        if sum(map(_resident, _descendants())) > order.memory:
            return "memory", -1
        time.sleep(0.1)
    return "exit", process.returncode


def _parents() -> dict[int, int]:
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    return found


def _descendants() -> Iterator[int]:
    """Processes that came of this one, also those that their parents have left."""
    parents, seen = _parents(), {os.getpid()}
    added = True
    while added:
        new = {child for child, parent in parents.items() if parent in seen} - seen
        seen |= new
        added = bool(new)
    return iter(seen - {os.getpid()})


def _resident(process: int) -> int:
    try:
        with open(f"/proc/{process}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _end_all(process: subprocess.Popen[bytes]) -> None:
    for _ in range(50):
        left = [*_descendants()] or ([process.pid] if process.poll() is None else [])
        for each in left:
            try:
                os.kill(each, signal.SIGKILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.05)


def _wall_in(libc: ctypes.CDLL, order: _Order) -> None:
    """Makes every mount read-only but the folder's own, hides the hidden, and gives up the right to undo it."""

    def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        arguments = [text.encode() for text in (source, target, kind)]
        if libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()):
            raise OSError(ctypes.get_errno(), f"mount {target}")

    mount("none", "/", "none", _MOUNT["private"] | _MOUNT["recursive"])
    mount(order.folder, order.folder, "none", _MOUNT["bind"])
    for place in order.hidden:
        mount("none", place, "tmpfs", _MOUNT["readonly"], "size=4k")
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    for fields in mounts:
        place = fields[4].encode().decode("unicode_escape")
        if place == order.folder or place == "/proc" or place.startswith(("/proc/", "/dev/")) or place == "/dev":
            continue
        kept = sum(flag for name, flag in _KEPT.items() if name in fields[5].split(","))
        try:
            mount("none", place, "none", _MOUNT["remount"] | _MOUNT["bind"] | _MOUNT["readonly"] | kept)
        except OSError:
            if place == "/":
                raise
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as loop:  # a kernel talks to its client over this one
        fcntl.ioctl(loop, 0x8914, struct.pack("16sh14x", b"lo", _UP))
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for capability in range(64):
        libc.prctl(_DROP_CAPABILITY, capability, 0, 0, 0)


if __name__ == "__main__":
    print(json.dumps(_supervise(_Order(**json.loads(sys.argv[1])))), flush=True)
