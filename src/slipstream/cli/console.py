"""Terminal output that commands share: notices and errors go to standard error, results to standard output."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Standard error. One instance, so that a progress bar and other messages do not overwrite each other."""


def notice(message: str) -> None:
    console.print(message, style="dim")


def fail(message: str) -> None:
    console.print("error: ", style="bold red", end="")
    console.print(message)


class WarningHandler(logging.Handler):
    """Prints the library's log records to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(f"{record.levelname.lower()}: ", style="yellow", end="")
        console.print(record.getMessage())


class Stop(threading.Event):
    """Set when a signal asks the command to end."""

    signal: signal.Signals = signal.SIGINT

    @property
    def exit_code(self) -> int:
        return 128 + self.signal


@contextmanager
def first_signal_stops() -> Iterator[Stop]:
    """Set an event at the first Ctrl-C or SIGTERM, for an orderly end; the second ends the process."""
    stop = Stop()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            console.show_cursor()  # a progress bar hides it
            os._exit(128 + number)  # not sys.exit, which waits for threads that may hang
        stop.signal = signal.Signals(number)
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
