"""Terminal output with the names of `moshi.client_utils`."""

from __future__ import annotations

import sys
from typing import TextIO, TypeAlias

_COLORS = {"info": "1;34", "warning": "1;31", "error": "1;31"}


def colorize(text: str, color: str) -> str:
    """Return text in a colour.

    Args:
        text: The text.
        color: Parameters of the ANSI escape sequence, such as "1;34".
    """
    return f"\033[{color}m{text}\033[0m"


def make_log(level: str, msg: str) -> str:
    """Return a log line.

    Args:
        level: info, warning or error.
        msg: The message.

    Raises:
        ValueError: The level is unknown.
    """
    if level not in _COLORS:
        raise ValueError(f"unknown level {level!r}: expected {', '.join(_COLORS)}")
    return f"{colorize(f'[{level.capitalize()}]', _COLORS[level])} {msg}"


def log(level: str, msg: str) -> None:
    """Print a log line to standard output.

    Args:
        level: info, warning or error.
        msg: The message.

    Raises:
        ValueError: The level is unknown.
    """
    print(make_log(level, msg))


class RawPrinter:
    """Writes tokens as they arrive, and log lines to standard error. For pipes and files."""

    def __init__(self, stream: TextIO | None = None, err_stream: TextIO | None = None) -> None:
        self.stream, self.err_stream = stream or sys.stdout, err_stream or sys.stderr

    def print_header(self) -> None:
        """Write nothing: raw output has no header."""

    def print_token(self, token: str) -> None:
        """Write a piece of text.

        Args:
            token: The text.
        """
        self.stream.write(token)
        self.stream.flush()

    def print_lag(self) -> None:
        """Write a mark for lost audio."""
        self.err_stream.write(colorize(" [LAG]", "31"))
        self.err_stream.flush()

    def print_pending(self) -> None:
        """Write nothing: raw output shows no progress."""

    def log(self, level: str, msg: str) -> None:
        """Write a log line.

        Args:
            level: info, warning or error.
            msg: The message.
        """
        print(f"{level.capitalize()}: {msg}", file=self.err_stream)


class Printer(RawPrinter):
    """Writes tokens into lines of at most `max_cols` columns, for a terminal."""

    def __init__(self, max_cols: int = 80, stream: TextIO | None = None, err_stream: TextIO | None = None) -> None:
        super().__init__(stream, err_stream)
        self.max_cols = max_cols
        self._column = 0

    def print_header(self) -> None:
        """Write a line of dashes."""
        self.stream.write("-" * self.max_cols + "\n")

    def print_token(self, token: str, color: str | None = None) -> None:
        """Write a piece of text, on a new line where this one is full.

        Args:
            token: The text.
            color: Parameters of an ANSI escape sequence, such as "1;34".
        """
        if self._column + len(token) > self.max_cols:
            self.stream.write("\n")
            self._column = 0
            token = token.lstrip()
        self._column += len(token)
        self.stream.write(colorize(token, color) if color else token)
        self.stream.flush()

    def log(self, level: str, msg: str) -> None:
        """Write a log line, after the end of the current one.

        Args:
            level: info, warning or error.
            msg: The message.

        Raises:
            ValueError: The level is unknown.
        """
        if self._column:
            self.stream.write("\n")
            self._column = 0
        print(make_log(level, msg), file=self.err_stream, flush=True)


AnyPrinter: TypeAlias = Printer | RawPrinter
