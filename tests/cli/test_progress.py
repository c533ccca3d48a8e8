"""Progress bars: progress, speed and the time left on a terminal; nothing in a pipe."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from slipstream.cli import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """A terminal."""
    screen = StringIO()
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100))
    return screen


def test_shows_the_progress_and_the_speed(screen: StringIO) -> None:
    with progress.progress_bar([10.0, 30.0]) as report:
        report("a.mp3", 10.0)
        report("b.mp3", 5.0)
        report("b.mp3", 10.0)
    shown = screen.getvalue()
    assert "b.mp3" in shown
    assert " 50%" in shown
    assert "x real time" in shown


def test_without_a_known_length_no_percentage_is_shown(screen: StringIO) -> None:
    with progress.progress_bar([10.0, None]) as report:
        report("standard input", 5.0)
    assert "50%" not in screen.getvalue()
    assert "x real time" in screen.getvalue()


def test_counts(screen: StringIO) -> None:
    with progress.counting_bar("Converting") as count:
        count(1, 4)
    assert "Converting" in screen.getvalue()
    assert " 25%" in screen.getvalue()


def test_no_progress_is_shown_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = StringIO()
    monkeypatch.setattr(progress, "console", Console(file=pipe, force_terminal=False))
    with progress.progress_bar([10.0]) as report, progress.counting_bar("Converting") as count:
        report("a.mp3", 5.0)
        count(1, 4)
    assert pipe.getvalue() == ""
