"""Memory that is asked for again and again should not be given back in between."""

from __future__ import annotations

import contextlib
import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names that glibc's `mallopt` has for its settings (`malloc.h`)."""
LARGEST_BLOCK = 32 * 2**20
"""The most that glibc takes for the second."""


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors on the CPU give back; returns whether it could be told so.

    Every update asks for the same blocks, some of them megabytes. glibc returns large ones to the system when they are
    freed, and each of their pages is cleared and mapped anew when it is next touched. It concerns the whole process,
    which then holds on to the most that it ever used. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # Windows, macOS, musl
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(MMAP_THRESHOLD, LARGEST_BLOCK))
    return False
