"""Progress bars; only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from slipstream.cli.console import console

Report = Callable[[str, float], None]
"""Called with a job's name and the seconds of its audio processed so far, from any thread."""


@contextmanager
def progress_bar(durations: Iterable[float | None]) -> Iterator[Report]:
    """Show how much of `durations` (seconds; None where unknown) is processed, the speed, and the time left.

    Without a terminal on standard error it shows nothing and does not iterate over `durations`.
    """
    if not console.is_terminal:
        yield lambda name, seconds: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    seconds = list(durations)
    total = None if None in seconds else sum(filter(None, seconds))
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Redirected text goes to the bar's stream: right only for text that goes to the terminal anyway.
        redirect_stdout=sys.stdout.isatty(),
    )
    done: dict[str, float] = {}
    lock, started = threading.Lock(), time.perf_counter()
    with bar:
        task = bar.add_task("", total=total, speed="")

        def report(name: str, seconds: float) -> None:
            with lock:
                done[name] = seconds
                completed = sum(done.values())
                speed = f"{completed / (time.perf_counter() - started):.1f}x real time"
                bar.update(task, completed=completed, description=name, speed=speed)

        yield report


@contextmanager
def counting_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; call the result with the number of items done, and the total."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
