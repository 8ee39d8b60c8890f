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


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A log file in the place of stderr."""
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    return file


def test_a_log_gets_a_line_a_minute(clock: list[float], log: io.StringIO) -> None:
    with progress_bar(total=6000, desc="train", unit="step") as bar:
        for step in range(6000):
            clock[0] += 0.1  # ten minutes in all
            bar.update()
            bar.set_postfix(loss=f"{step}")
    lines = log.getvalue().splitlines()
    assert len(lines) == 11 and "\r" not in log.getvalue()
    assert lines[0].startswith("train:   0% 0/6000 [00:00<") and lines[1].startswith(
        "train:  10% 600/6000 [01:00<09:00"
    )
    assert lines[-1].startswith("train: 100% 6000/6000 [10:00<00:00") and lines[-1].endswith("loss=5998]")


def test_the_last_line_is_written_once(clock: list[float], log: io.StringIO) -> None:
    bar = progress_bar(total=2)
    bar.update(2)
    bar.close()
    bar.close()
    assert len(log.getvalue().splitlines()) == 2


def test_iterates_and_counts(clock: list[float], log: io.StringIO) -> None:
    assert list(progress_bar(["a", "b"], desc="bench")) == ["a", "b"]
    assert "bench: 100% 2/2" in log.getvalue()


@pytest.mark.parametrize(("seconds", "lines"), [(0.1, 0), (2.0, 1)])
def test_short_work_may_show_nothing(clock: list[float], log: io.StringIO, seconds: float, lines: int) -> None:
    with progress_bar(total=1, delay=0.5) as bar:
        clock[0] += seconds
        bar.update()
    assert len(log.getvalue().splitlines()) == lines


def test_nothing_is_shown_when_it_is_not_wanted(log: io.StringIO) -> None:
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2] and log.getvalue() == ""


def test_a_terminal_has_a_bar(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "isatty", lambda: True)
    with progress_bar(total=3) as bar:
        bar.update(3)
    assert isinstance(bar, tqdm) and "\r" in log.getvalue()


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
