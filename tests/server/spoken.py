"""Servers with text to speech, on a small model with random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.server.harness import Running, serving
from tests.speaking import make_runner, tiny_tokenizer

from slipstream.server.speaking import ServedSpeaker
from slipstream.speaker import Speaker


def open_small(folder: Path, default: str | None = None, slots: int = 2, max_waiting: int = 64) -> ServedSpeaker:
    """A small model with the voices of a folder."""
    runner = make_runner(slots=slots)
    return ServedSpeaker(
        Speaker(runner, tiny_tokenizer(), model="small", voices=folder, max_waiting=max_waiting), default
    )


@contextlib.contextmanager
def speaking(folder: Path, default: str | None = None, slots: int = 2, **options: object) -> Iterator[Running]:
    """A server with the voices of a folder."""
    served = open_small(folder, default, slots)
    with served.speaker, serving(speaker=served, **options) as running:  # type: ignore[arg-type]
        yield running


def speaker_of(server: Running) -> Speaker:
    """The model of a server."""
    assert isinstance(server.service.speaker, ServedSpeaker)
    return server.service.speaker.speaker
