"""Terminal output that commands share: notices and errors go to standard error, results to standard output."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT."""

console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
"""Standard error. One instance, so that a progress bar and other messages do not overwrite each other."""


_temporary_folders: set[Path] = set()


def notice(message: str) -> None:
    with suppress(OSError):  # a full disk behind standard error ends nothing
        console.print(message, style="dim")


def fail(message: str) -> None:
    with suppress(OSError):
        console.print("error: ", style="bold red", end="")
        console.print(message)


def counted(count: int, noun: str) -> str:
    """Return a number of things, such as "1 recording" or "2 recordings"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class WarningHandler(logging.Handler):
    """Prints the library's log records to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            console.print(f"{record.levelname.lower()}: ", style="yellow", end="")
            console.print(record.getMessage())


class Stop(threading.Event):
    """Set when a signal asks the command to end."""

    signal: signal.Signals = signal.SIGINT


@contextmanager
def first_signal_stops() -> Iterator[Stop]:
    """Set an event at the first Ctrl-C or SIGTERM, for an orderly end; the second ends the process."""
    stop = Stop()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            console.show_cursor()  # a progress bar hides it
            for folder in _temporary_folders:
                shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + number)  # not sys.exit, which waits for threads that may hang
        stop.signal = signal.Signals(number)
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder, which is removed however the command ends, also by SIGTERM."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    # Not NamedTemporaryFile, which Windows cannot open a second time.
    with tempfile.TemporaryDirectory(prefix="slipstream-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _temporary_folders.add(folder)
        previous = signal.signal(signal.SIGTERM, end)
        try:
            yield folder
        finally:
            signal.signal(signal.SIGTERM, previous)
            _temporary_folders.discard(folder)
