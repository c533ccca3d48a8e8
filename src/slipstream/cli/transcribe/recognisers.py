"""What transcribes for `slipstream transcribe`: a model in this process, or a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from slipstream.cli.extras import needs_extra
from slipstream.cli.options import SERVER_KEY

if TYPE_CHECKING:
    from slipstream.arrays import FloatArray
    from slipstream.client import Stream
    from slipstream.events import Event
    from slipstream.hints import Hints
    from slipstream.transcriber import Transcriber


class Recogniser(Protocol):
    """Transcribes streams of `sample_rate` Hz, several at a time, each in its own thread.

    A server reports `model` and `delay` with its first event.
    """

    sample_rate: int
    frame_rate: float

    @property
    def model(self) -> str: ...

    @property
    def delay(self) -> float: ...

    def stream(self, chunks: Iterable[FloatArray]) -> Iterator[Event]:
        """Transcribe mono chunks `[S]`; the events include every `Step`, and end with `Final`."""
        ...


class LocalRecogniser:
    """A model in this process."""

    def __init__(
        self, transcriber: Transcriber, hints: Hints | None = None, min_confidence: float | None = None
    ) -> None:
        from slipstream.engine.options import SessionOptions
        from slipstream.hints import Hints

        self.sample_rate, self.frame_rate = transcriber.sample_rate, transcriber.frame_rate
        self.model, self.delay = transcriber.model, transcriber.delay
        self._transcriber = transcriber
        # A short buffer keeps the progress bar accurate, and lets an interrupt end soon.
        self._options = SessionOptions(
            steps=True, max_buffered_seconds=2.0, min_confidence=min_confidence, hints=hints or Hints()
        )

    def stream(self, chunks: Iterable[FloatArray]) -> Iterator[Event]:
        return self._transcriber.stream(chunks, self.sample_rate, options=self._options)


class ServerRecogniser:
    """A model on a Slipstream server; its default one without a `name`.

    Raises `BackendError` without the extra `client`.
    """

    def __init__(self, url: str, name: str | None = None, hints: Hints | None = None) -> None:
        with needs_extra("client", "--server"):
            from slipstream.client import open_stream
        from slipstream.audio import SAMPLE_RATE
        from slipstream.model.text import FRAME_RATE

        self.sample_rate, self.frame_rate = SAMPLE_RATE, FRAME_RATE
        self.model, self.delay = url, 0.0
        self._url, self._name, self._hints, self._open_stream = url, name, hints, open_stream

    def stream(self, chunks: Iterable[FloatArray]) -> Iterator[Event]:
        """See `Recogniser.stream`. Raises `ServerError` when the server cannot be reached, refuses, or closes early."""
        from slipstream.events import Event

        key = os.environ.get(SERVER_KEY)
        with (
            self._open_stream(
                self._url, sample_rate=self.sample_rate, key=key, model=self._name, hints=self._hints
            ) as stream,
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
        # Also after an error in the audio: otherwise the server waits for the rest.
        stream.finish()
