"""Standard input and output that may be closed, and pipes that may stall."""

from __future__ import annotations

import io
import os
import select
import sys
from threading import Event as StopEvent
from typing import Any, BinaryIO

from slipstream.errors import AudioError, SlipstreamError


class OutputError(SlipstreamError):
    """A transcript cannot be written."""


def guard_streams() -> None:
    """Make writing to a closed standard output an error, and occupy the file descriptors of closed streams.

    Python represents a stream that the shell closed (`>&-`) as None. The system gives its descriptor to the next file
    opened, and a library that prints would write into that file.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None and (descriptor := os.open(os.devnull, os.O_RDWR)) > 2:
            os.close(descriptor)  # the three descriptors are in use
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()


def check_stdout() -> None:
    """Raise `OutputError` if standard output is closed."""
    if isinstance(sys.stdout, _ClosedOutput):
        sys.stdout.write("")


def standard_input(stop: StopEvent) -> BinaryIO:
    """Return standard input as bytes; a pipe ends when `stop` is set. Raises `AudioError` if it is closed."""
    if sys.stdin is None:
        raise AudioError("standard input is closed: pipe or redirect audio into it")
    return until_stopped(sys.stdin.buffer, stop)


def until_stopped(file: BinaryIO, stop: StopEvent) -> BinaryIO:
    """Return a pipe that ends when `stop` is set, also while it waits for data; return any other file unchanged."""
    if os.name != "posix" or file.seekable():
        return file
    return io.BufferedReader(_Pipe(file, stop))


class _Pipe(io.RawIOBase):
    def __init__(self, file: BinaryIO, stop: StopEvent) -> None:
        self._file, self._stop = file, stop
        self.name = file.name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._stop.is_set():
            if select.select([self._file], [], [], 0.1)[0]:
                data = os.read(self._file.fileno(), len(buffer))
                buffer[: len(data)] = data
                return len(data)
        return 0


class _ClosedOutput(io.TextIOBase):
    def write(self, text: str) -> int:
        raise OutputError("standard output is closed: redirect it to a file or a pipe")
