from __future__ import annotations

import io
import sys

import pytest
from tqdm.std import tqdm

from dmm import progress
from dmm.progress import Lines, progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=4800, desc="train", unit="step") as bar:
        for step in range(4800):
            clock[0] += 0.125  # ten minutes in all
            bar.update()
            bar.set_postfix(loss=f"{step}")
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert len(lines) == 11 and "\r" not in said
    assert lines[0].startswith("train:   0% 0/4800 [00:00<")
    assert lines[1] == "train:  10% 480/4800 [01:00<09:00,  8.00step/s, loss=478]"
    assert lines[-1] == "train: 100% 4800/4800 [10:00<00:00,  8.00step/s, loss=4798]"


def test_the_last_line_is_written_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar(total=2)
    bar.update(2)
    bar.close()
    bar.close()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_iterates_and_counts(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(["a", "b"], desc="bench")) == ["a", "b"]
    assert "bench: 100% 2/2" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "lines"), [(0.1, 0), (2.0, 1)])
def test_short_work_may_show_nothing(
    clock: list[float], capsys: pytest.CaptureFixture[str], seconds: float, lines: int
) -> None:
    with progress_bar(total=1, delay=0.5) as bar:
        clock[0] += seconds
        bar.update()
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_nothing_is_shown_when_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2] and capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(total=3) as bar:
        bar.update(3)
    assert isinstance(bar, tqdm) and "\r" in terminal.getvalue()


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stderr", [None, Full()], ids=["closed", "full"])
def test_work_goes_on_where_nothing_can_be_written(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar(total=1) as bar:
        bar.update()
    assert isinstance(bar, Lines) and bar.n == 1
