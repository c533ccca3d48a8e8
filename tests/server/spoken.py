"""Servers with text to speech, on a small model with random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.server.harness import Running, serving
from tests.speaking import make_runner, tiny_tokenizer

from slipstream.server.speaking import ServedSpeaker
from slipstream.speaker import Speaker


@contextlib.contextmanager
def speaking(folder: Path, default: str | None = None, slots: int = 2, **options: object) -> Iterator[Running]:
    """A server with the voices of a folder."""
    speaker = Speaker(make_runner(slots=slots), tiny_tokenizer(), model="small", voices=folder)
    with speaker, serving(speaker=ServedSpeaker(speaker, default), **options) as running:  # type: ignore[arg-type]
        yield running


def speaker_of(server: Running) -> Speaker:
    """The model of a server."""
    assert server.service.speaker is not None
    return server.service.speaker.speaker
