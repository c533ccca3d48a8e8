"""What hears for `transcribe`: a model in this process, or one behind a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from slipstream.cli.extras import needs_extra

if TYPE_CHECKING:
    from slipstream.arrays import FloatArray
    from slipstream.client import Stream
    from slipstream.events import Event
    from slipstream.transcriber import Transcriber

SERVER_KEY = "SLIPSTREAM_API_KEY"
"""The variable of the environment that holds the key for a server that asks for one."""


class Ear(Protocol):
    """Hears streams of `sample_rate` Hz, several at once from as many threads. What it is called may be known late."""

    sample_rate: int
    frame_rate: float

    @property
    def model(self) -> str: ...

    @property
    def delay(self) -> float: ...

    def stream(self, chunks: Iterable[FloatArray]) -> Iterator[Event]:
        """Hear mono chunks `[S]`; the events include every `Step`, and end with `Final`."""
        ...


class LocalEar:
    """A model in this process."""

    def __init__(self, transcriber: Transcriber) -> None:
        from slipstream.engine.session import SessionOptions

        self.sample_rate, self.frame_rate = transcriber.sample_rate, transcriber.frame_rate
        self.model, self.delay = transcriber.model, transcriber.delay
        self._transcriber = transcriber
        # Little audio waits in the session, so that progress is true and an interrupt ends soon.
        self._options = SessionOptions(steps=True, max_buffered_seconds=2.0)

    def stream(self, chunks: Iterable[FloatArray]) -> Iterator[Event]:
        return self._transcriber.stream(chunks, self.sample_rate, options=self._options)


class ServerEar:
    """A model behind a Slipstream server."""

    def __init__(self, url: str) -> None:
        """Raises `BackendError` without the extra `client`."""
        with needs_extra("client", "--server"):
            from slipstream.client import open_stream
        from slipstream.audio import SAMPLE_RATE
        from slipstream.model.text import FRAME_RATE

        self.sample_rate, self.frame_rate = SAMPLE_RATE, FRAME_RATE
        self.model, self.delay = url, 0.0
        self._url, self._open_stream = url, open_stream

    def stream(self, chunks: Iterable[FloatArray]) -> Iterator[Event]:
        """As of `Ear`. Raises `ServerError` when the server cannot be reached, refuses, or closes too early."""
        from slipstream.events import Event

        key = os.environ.get(SERVER_KEY)
        with (
            self._open_stream(self._url, sample_rate=self.sample_rate, key=key) as stream,
            ThreadPoolExecutor(1) as sender,
        ):
            sending = sender.submit(_send, stream, chunks)
            for event in stream:
                self.model, self.delay = stream.model or self.model, stream.delay_seconds
                if isinstance(event, Event):
                    yield event
            sending.result()


def _send(stream: Stream, chunks: Iterable[FloatArray]) -> None:
    try:
        for chunk in chunks:
            stream.send(chunk)
    finally:
        # Audio that ends in an error ends all the same: the server would wait for the rest.
        stream.finish()
