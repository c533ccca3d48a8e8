"""What the commands share of the terminal: notices and errors go to standard error, results to standard output."""

from __future__ import annotations

import logging
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


@contextmanager
def first_interrupt_stops() -> Iterator[threading.Event]:
    """Within it, the first Ctrl-C sets the event, for an orderly end; the second raises `KeyboardInterrupt`."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
