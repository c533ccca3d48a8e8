"""Where transcripts go: a file for each, whole or not at all, or standard output."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slipstream.cli.streams import OutputError

if TYPE_CHECKING:
    from slipstream.subtitles import SubtitleLayout
    from slipstream.transcript import Format, Transcript


def render(transcript: Transcript, format: Format, words: bool, layout: SubtitleLayout | None) -> str:
    """A transcript in a format, subtitles in a layout; with `words`, a line a word: start, end, confidence, text."""
    if not words:
        return transcript.render(format, layout)
    return "".join(
        f"{word.start:8.2f} {word.end:8.2f}  {word.confidence:4.2f}  {word.text}\n" for word in transcript.words
    )


def has_text(path: Path, format: Format) -> bool:
    """Whether `path` holds a whole transcript with words: an empty one may be all that an earlier run left."""
    from slipstream.transcript import Transcript

    empty = Transcript((), (), 0.0, "", 0.0).render(format)
    try:
        text = path.read_text("utf-8")
        return bool(json.loads(text)["text"]) if format == "json" else text.strip() not in ("", empty.strip())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_file(path: Path, text: str) -> None:
    """Write a file that is either whole or not there. Raises `OutputError` when the disk is full or read-only."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def write_stdout(text: str) -> None:
    """Write to standard output now. Raises `OutputError` when that fails, `BrokenPipeError` when nobody reads it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        close_stdout()
        raise OutputError(f"standard output: cannot be written: {error.strerror}") from error


def close_stdout() -> None:
    """Send what is still buffered nowhere: the interpreter would fail to write it once more at its end."""
    with suppress(OSError, ValueError):  # ValueError: it is no file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
