"""What the commands share of the terminal: notices and errors go to standard error, results to standard output."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

INTERRUPTED = 130
"""The exit code of a command ended by Ctrl-C: 128 + SIGINT."""

console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Standard error. One for all, so that a progress bar and the lines above it do not overwrite each other."""


def notice(message: str) -> None:
    console.print(message, style="dim")


def fail(message: str) -> None:
    console.print("error: ", style="bold red", end="")
    console.print(message)


class WarningHandler(logging.Handler):
    """Shows the library's log on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(f"{record.levelname.lower()}: ", style="yellow", end="")
        console.print(record.getMessage())


class Stop(threading.Event):
    """Set when a command is asked to end; `signal` is what asked."""

    signal: signal.Signals = signal.SIGINT

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


@contextmanager
def first_signal_stops() -> Iterator[Stop]:
    """Within it, the first Ctrl-C or SIGTERM sets the event, for an orderly end; the second ends the process."""
    stop = Stop()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            console.show_cursor()  # which a progress bar hides
            os._exit(128 + number)  # not sys.exit, which waits for threads, and these may hang
        stop.signal = signal.Signals(number)
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
