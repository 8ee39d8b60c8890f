from __future__ import annotations

import ctypes
import platform
from types import SimpleNamespace
from typing import Any

import pytest

from dmm.training import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_can_be_told() -> None:
    assert memory.keep_freed_memory() and memory.keep_freed_memory()


def test_asks_for_no_trimming_and_for_blocks_from_the_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    library = SimpleNamespace(mallopt=lambda name, value: asked.append((name, value)) or 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert memory.keep_freed_memory() and asked == [(-1, 2**31 - 1), (-3, 2**25)]  # M_TRIM_, M_MMAP_THRESHOLD


def test_says_when_the_c_library_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(name: Any) -> Any:
        raise OSError("none")

    for missing in (library, lambda name: object(), lambda name: SimpleNamespace(mallopt=lambda *_: 0)):
        monkeypatch.setattr(ctypes, "CDLL", missing)
        assert memory.keep_freed_memory() is False
