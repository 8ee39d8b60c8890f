from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmm import cpp

pytestmark = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no such owners and permissions here")

STRANGER = 12345
"""The number of some other user."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file that compiles in no time."""
    path = tmp_path / "two.cpp"
    path.write_text('extern "C" int two() { return 2; }\n')
    return path


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty folder for what is built; the private folder of the process is another one for each test."""
    monkeypatch.setenv("DMM_CACHE_DIR", str(tmp_path / "a" / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    cpp._made_private_folder.cache_clear()
    yield tmp_path / "a" / "cache"
    cpp._made_private_folder.cache_clear()


def build(source: Path) -> str:
    """Builds or finds the library, sees that it works, and says how it came about."""
    status = cpp.build(source, ("two",))
    assert status.library is not None and status.library.two() == 2, status.reason
    return status.reason


def library_of(reason: str) -> Path:
    return Path(reason.split(", ")[1])


def script(folder: Path, body: str) -> str:
    """A compiler that is a shell script."""
    path = folder / "odd-c++"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return shlex.quote(str(path))


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or folder that of another user; where only root could, let it look so."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER)
        return
    seen, number = os.fstat, path.stat().st_ino

    def as_the_stranger(status: os.stat_result) -> os.stat_result:
        return os.stat_result([*status[:4], STRANGER, *status[5:]]) if status.st_ino == number else status

    look = Path.lstat
    monkeypatch.setattr(os, "fstat", lambda handle: as_the_stranger(seen(handle)))
    monkeypatch.setattr(Path, "lstat", lambda self: as_the_stranger(look(self)))


class TestKeeping:
    def test_the_first_use_builds_and_the_next_finds(self, cache: Path, source: Path) -> None:
        assert build(source).startswith("built with ")
        assert sorted(path.suffix for path in cache.iterdir()) == [".sha256", ".so"]
        assert build(source) == f"found, {next(cache.glob('*.so'))}" and len(list(cache.iterdir())) == 2

    def test_another_text_or_an_included_one_is_another_library(self, cache: Path, source: Path) -> None:
        source.write_text('#include "number.h"\nextern "C" int two() { return NUMBER; }\n')
        header = source.with_name("number.h")
        header.write_text("#pragma once\n#define NUMBER 2\n")
        assert build(source).startswith("built") and build(source).startswith("found")
        header.write_text("#pragma once\n#define NUMBER (1 + 1)\n")
        assert build(source).startswith("built")

    @pytest.mark.parametrize("damage", ["empty", "half", "checksum is no text", "checksum is gone"])
    def test_what_is_damaged_is_built_again(self, cache: Path, source: Path, damage: str) -> None:
        library = library_of(build(source))
        checksum = library.with_suffix(".sha256")
        content = library.read_bytes()
        library.unlink()  # it is loaded in this process, which must not see it change
        library.write_bytes({"empty": b"", "half": content[: len(content) // 2]}.get(damage, content))
        library.chmod(0o700)
        if damage == "checksum is no text":
            checksum.write_bytes(b"\xff\xfe\x00" * 20)
        elif damage == "checksum is gone":
            checksum.unlink()
        assert build(source).startswith("built") and build(source).startswith("found")

    @posix
    @pytest.mark.parametrize("suffix", [".so", ".sha256"])
    @pytest.mark.parametrize("kind", ["pipe", "folder", "link to nowhere", "device"])
    def test_something_else_in_a_files_place_neither_hangs_nor_stops(
        self, cache: Path, source: Path, suffix: str, kind: str
    ) -> None:
        place = library_of(build(source)).with_suffix(suffix)
        place.unlink()
        make = {"pipe": os.mkfifo, "folder": os.mkdir, "link to nowhere": lambda path: path.symlink_to("/nowhere/x")}
        make.get(kind, lambda path: path.symlink_to("/dev/zero"))(place)
        assert build(source).startswith("built with ")

    def test_a_home_folder_in_the_name_is_found(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        monkeypatch.setenv("DMM_CACHE_DIR", "~/mine")
        assert library_of(build(source)).parent == (tmp_path / "mine").resolve()

    def test_a_relative_name_is_below_the_working_directory(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DMM_CACHE_DIR", "mine")
        assert library_of(build(source)).parent == (tmp_path / "mine").resolve()


class TestFoldersOfTheProcess:
    @pytest.mark.parametrize("where", ["below a file", "~nobody-of-this-name/x", "no home"])
    def test_where_no_folder_can_be_made(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
    ) -> None:
        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DMM_CACHE_DIR", str(tmp_path / "file" / "x") if where == "below a file" else where)
        if where == "no home":
            monkeypatch.setattr(Path, "home", homeless)
            monkeypatch.delenv("DMM_CACHE_DIR")
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        reason = build(source)
        assert reason.startswith("built with ") and "not kept" in reason and "\n" not in reason

    @posix
    def test_is_gone_with_the_process(self, cache: Path, source: Path, tmp_path: Path) -> None:
        cache.parent.mkdir()
        cache.parent.chmod(0o777)
        program = "import sys, pathlib; from dmm import cpp; print(cpp.build(pathlib.Path(sys.argv[1])).reason)"
        done = subprocess.run(
            [sys.executable, "-c", program, str(source)], capture_output=True, text=True, check=True, timeout=300
        )
        assert done.stdout.startswith("built with ") and not library_of(done.stdout).parent.exists()

    @posix
    def test_where_others_could_exchange_that_too_nothing_is_loaded(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        open_to_all = tmp_path / "open"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        monkeypatch.setenv("DMM_CACHE_DIR", str(open_to_all / "cache"))
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(open_to_all))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(open_to_all))
        looked = cpp._doubt
        monkeypatch.setattr(cpp, "_doubt", lambda folder: looked(folder) or ("/var" in str(folder) and "taken out"))
        status = cpp.build(source)
        assert status.library is None and "other users" in status.reason
        assert not list(open_to_all.glob("dmm-*"))


@posix
class TestTrust:
    @pytest.mark.parametrize("which", [".so", ".sha256"])
    def test_a_file_of_another_user_is_not_loaded(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, which: str
    ) -> None:
        give_away(library_of(build(source)).with_suffix(which), monkeypatch)
        assert build(source).startswith("built with ")

    @pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
    def test_a_file_that_others_may_write_is_not_loaded(self, cache: Path, source: Path, mode: int) -> None:
        library_of(build(source)).chmod(mode)
        assert build(source).startswith("built with ")

    def test_a_link_is_not_followed(self, cache: Path, source: Path, tmp_path: Path) -> None:
        library = library_of(build(source))
        library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(tmp_path / "elsewhere.so")
        assert build(source).startswith("built with ") and not library.is_symlink()

    @pytest.mark.parametrize("level", ["the folder", "the one above"])
    def test_a_folder_of_another_user_is_not_used(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, level: str
    ) -> None:
        build(source)
        give_away(cache if level == "the folder" else cache.parent, monkeypatch)
        before = sorted(cache.iterdir())
        reason = build(source)
        assert library_of(reason).parent != cache and "belongs to another user" in reason
        assert sorted(cache.iterdir()) == before

    @pytest.mark.parametrize("mode", [0o1777, 0o777, 0o703])
    def test_a_folder_that_others_may_write_is_not_used(self, cache: Path, source: Path, mode: int) -> None:
        build(source)
        cache.chmod(mode)
        reason = build(source)
        assert library_of(reason).parent != cache and f"{cache.resolve()} can be written by other users" in reason

    def test_nor_one_that_others_may_rename(self, cache: Path, source: Path) -> None:
        build(source)
        cache.parent.chmod(0o777)
        assert library_of(build(source)).parent != cache
        cache.parent.chmod(0o1777)  # as /tmp is: there, others may rename only what is theirs
        assert build(source).startswith("found, ")


class TestCompiler:
    def test_may_have_a_prefix_options_and_quotes(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = cpp.compiler()
        assert real is not None
        monkeypatch.setenv("CXX", f"env LC_ALL=C {shlex.quote(real[0])} -O1 '-DA=\"b c\"'")
        assert build(source).startswith("built with env")

    @pytest.mark.parametrize("asked", ["'g++", "/nowhere/g++", "/", "", " ", "-O2"])
    def test_what_is_no_program_gives_way_to_the_usual_ones(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, asked: str
    ) -> None:
        usual = cpp.compiler()
        monkeypatch.setenv("CXX", asked)
        assert cpp.compiler() == usual

    @posix
    @pytest.mark.parametrize(
        ("body", "quoted"),
        [
            ("printf 'out of order' >&2; exit 1", "out of order"),
            ("exit 1", "exit status 1"),
            ("printf '\\377 kaputt\\nand more' >&2; exit 1", "\ufffd kaputt"),
            ("kill -9 $$", "exit status -9"),
            ("head -c 3000000 /dev/zero | tr '\\0' x; exit 1", 200 * "x"),
        ],
        ids=["message", "silent", "binary", "killed", "long"],
    )
    def test_one_that_fails_is_quoted_in_a_line(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, quoted: str
    ) -> None:
        monkeypatch.setenv("CXX", script(tmp_path, body))
        library, reason = cpp.build(source)
        assert library is None and reason.endswith(quoted) and "\n" not in reason
        assert list(cache.iterdir()) == []

    @posix
    @pytest.mark.parametrize("output", ["", "printf 'no library' > \"$out\""], ids=["nothing", "text"])
    def test_one_that_makes_no_library_is_not_believed(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
    ) -> None:
        find = 'for word; do [ "$last" = -o ] && out="$word"; last="$word"; done'
        monkeypatch.setenv("CXX", script(tmp_path, f'{find}\n[ -n "$out" ] || exit 0\n{output}'))
        for _ in range(2):
            library, reason = cpp.build(source)
            assert library is None and "could not build it" in reason

    @posix
    @pytest.mark.parametrize("when", ["asked for its version", "compiling"])
    def test_one_that_hangs_is_ended_with_all_that_it_started(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
    ) -> None:
        monkeypatch.setattr(cpp, "VERSION_SECONDS", 1.0 if when != "compiling" else 60.0)
        monkeypatch.setattr(cpp, "COMPILE_SECONDS", 1.0)
        sleeping = f"sleep 1000 & echo $! > {tmp_path / 'child'}; wait"
        body = sleeping if when != "compiling" else f'[ "$1" = --version ] && exit 0; {sleeping}'
        monkeypatch.setenv("CXX", script(tmp_path, body))
        library, reason = cpp.build(source)
        assert library is None and "timed out" in reason
        assert_ends(int((tmp_path / "child").read_text()))

    @posix
    def test_one_that_reads_its_input_gets_none(
        self, cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        real = cpp.compiler()
        assert real is not None
        monkeypatch.setenv("CXX", script(tmp_path, f'cat; exec {shlex.quote(real[0])} "$@"'))
        build(source)


def assert_ends(number: int) -> None:
    """Passes once the process is gone, or a zombie that nobody has asked about yet."""
    for _ in range(500):
        state = Path(f"/proc/{number}/stat")
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {number} goes on")


def test_a_missing_function_is_named(cache: Path, source: Path) -> None:
    library, reason = cpp.build(source, ("two", "three", "four"))
    assert library is None and reason.endswith("left out three, four")
    assert isinstance(cpp.build(source, ("two",)).library, ctypes.CDLL)
