"""Progress bars; only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from slipstream.cli.console import console

Report = Callable[[str, float], None]
"""Called with a job's name and the seconds of its audio heard so far, from any thread."""


@contextmanager
def progress_bar(durations: Iterable[float | None]) -> Iterator[Report]:
    """Show how much of `durations` (seconds; None where unknown) is heard, how fast, and the time left.

    Where standard error is not a terminal nothing is shown, nor are `durations` asked for.
    """
    if not console.is_terminal:
        yield lambda name, heard: None
        return
    seconds = list(durations)
    total = None if None in seconds else sum(filter(None, seconds))
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        _SpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Redirected text joins the bar's own stream, so only text that goes to the terminal anyway may be.
        redirect_stdout=sys.stdout.isatty(),
    )
    heard: dict[str, float] = {}
    lock = threading.Lock()
    with bar:
        task = bar.add_task("", total=total, started=time.perf_counter())

        def report(name: str, seconds: float) -> None:
            with lock:
                heard[name] = seconds
                bar.update(task, completed=sum(heard.values()), description=name)

        yield report


@contextmanager
def counting_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told how many things are done, and of how many. Shown as `progress_bar` is."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _SpeedColumn(ProgressColumn):
    """Seconds of audio for each second of time."""

    def render(self, task: Task) -> Text:
        elapsed = time.perf_counter() - task.fields["started"]
        return Text(f"{task.completed / elapsed:.1f}x real time" if task.completed else "")
