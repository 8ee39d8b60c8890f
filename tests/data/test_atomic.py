from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dmm.data.atomic import replacement_of
from dmm.errors import InputError


def fill(folder: Path, text: str, *, overwrite: bool = False) -> None:
    with replacement_of(folder, overwrite=overwrite) as new:
        new.mkdir()
        (new / "file").write_text(text)


def test_appears_only_at_the_end_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with replacement_of(folder, overwrite=False) as new:
        new.mkdir()
        (new / "file").write_text("x")
        assert not folder.exists()
        assert all(path.name.startswith(".") for path in folder.parent.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert (folder / "file").read_text() == "x"


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacement_of(tmp_path / "folder", overwrite=False) as new:
        new.mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_and_otherwise_the_first_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    fill(folder, "first")
    fill(folder, "second")
    assert (folder / "file").read_text() == "first"
    fill(folder, "third", overwrite=True)
    assert (folder / "file").read_text() == "third"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    fill(folder, "old")
    with pytest.raises(OSError), replacement_of(folder, overwrite=True) as new:
        new.mkdir()
        raise OSError("disk full")
    assert (folder / "file").read_text() == "old"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from dmm.data.atomic import replacement_of\n"
        "with replacement_of(pathlib.Path(sys.argv[1]), overwrite=False) as new:\n"
        "    new.mkdir()\n"
        "    os._exit(9)\n"
    )
    folder = tmp_path / "folder"
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == 9
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    fill(folder, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_work_in_progress_elsewhere_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with replacement_of(folder, overwrite=False) as slow:
        slow.mkdir()
        (slow / "file").write_text("slow")
        fill(folder, "fast")
        assert (slow / "file").read_text() == "slow"
    assert (folder / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "folder"
    with pytest.raises(InputError) as caught:
        fill(folder, "x")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        fill(tmp_path / "folder", "x")
