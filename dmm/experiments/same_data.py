"""One data set for all jobs of a queue, wherever they are worked on.

Data sets are made on each machine from their recipes, and other versions of a simulator make others. The first machine
that has one writes its fingerprint beside the outcomes; whoever has other data under that name fails, before it trains.
"""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmm.errors import RunError
from dmm.experiments.grid import Job, slug
from dmm.files import read_file

LIMIT = 1000
"""Bytes of such a file."""


def fingerprint_file(job: Job) -> Path:
    """Where the fingerprint of a job's data is kept, for all jobs whose outcomes lie in that folder."""
    return job.row_file.parent / f"{slug(job.dataset)}.fingerprint"


def known_fingerprint(job: Job) -> str | None:
    """The fingerprint that the job's data must have; None if nobody has had them yet."""
    try:
        return read_file(fingerprint_file(job), LIMIT).decode().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"queue: {fingerprint_file(job)} cannot be read ({error.strerror or error})") from error


def require_fingerprint(job: Job, fingerprint: str) -> None:
    """Passes if the data of a job are those of its queue; the first that asks decides which these are.

    Raises:
        RunError: they are others, or the file cannot be written.
    """
    known = known_fingerprint(job) or _decide(job, fingerprint)
    if fingerprint != known:
        raise RunError(
            f"data: {job.dataset} has the fingerprint {fingerprint} on {platform.node() or 'this machine'}, and "
            f"{known} in this queue ({fingerprint_file(job)}); take the same versions of mujoco, gymnasium and numpy, "
            "and make the data anew"
        )


def require_row(job: Job, row: dict[str, Any]) -> None:
    """`require_fingerprint` of the data that a job's row names, if it names any."""
    data = row.get("data")
    if isinstance(data, dict) and isinstance(data.get("fingerprint"), str):
        require_fingerprint(job, data["fingerprint"])


def _decide(job: Job, fingerprint: str) -> str:
    """Write the file unless another process has done so in the meantime; what it holds then."""
    file = fingerprint_file(job)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(handle, "w") as new:
                new.write(f"{fingerprint}\n")
            with suppress(FileExistsError):
                os.link(name, file)  # all of it or nothing, and only the first one's
        finally:
            os.unlink(name)
    except OSError as error:
        raise RunError(f"queue: {file} cannot be written ({error.strerror or error})") from error
    return known_fingerprint(job) or fingerprint
