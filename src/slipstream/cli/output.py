"""Write transcripts to files or to standard output."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.cli.streams import OutputError

if TYPE_CHECKING:
    from slipstream.subtitles import SubtitleLayout
    from slipstream.transcript import Format, Transcript


def render(transcript: Transcript, format: Format, words: bool, layout: SubtitleLayout | None) -> str:
    """Format a transcript; with `words`, one line per word: start, end, confidence, text."""
    if not words:
        return transcript.render(format, layout)
    return "".join(
        f"{word.start:8.2f} {word.end:8.2f}  {word.confidence:4.2f}  {word.text}\n" for word in transcript.words
    )


def has_text(path: Path, format: Format) -> bool:
    """Return whether `path` is a complete transcript with words; an earlier run may have left an empty one."""
    from slipstream.transcript import Transcript

    empty = Transcript((), (), 0.0, "", 0.0).render(format)
    try:
        text = path.read_text("utf-8")
        return bool(json.loads(text)["text"]) if format == "json" else text.strip() not in ("", empty.strip())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make_folder(path: Path) -> None:
    """Create a folder for results before the work starts. Raises `OutputError` if no file can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OutputError(f"{path}: no file can be written to this folder: {error.strerror}") from error


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Raises `OutputError` when the disk is full or read-only.

    A device or a named pipe is written to, not replaced.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def write_stdout(text: str) -> None:
    """Write to standard output and flush it. Raises `OutputError`, or `BrokenPipeError` when its reader has exited."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        close_stdout()
        raise OutputError(f"standard output: cannot be written: {error.strerror}") from error


def close_stdout() -> None:
    """Discard buffered output: otherwise the interpreter tries to write it at exit, and fails again."""
    with suppress(OSError, ValueError):  # ValueError: it is not a file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
