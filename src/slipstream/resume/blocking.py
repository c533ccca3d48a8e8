"""A stream over lost connections without asyncio."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt
from anyio.from_thread import start_blocking_portal

from slipstream.audio.arrays import refuse_single
from slipstream.client import ServerError, StreamEvent
from slipstream.resume import ResumableStream

AHEAD_SECONDS = 20.0
"""Audio that may wait for the server before the next piece is read."""
PAUSE_SECONDS = 0.5
PERMANENT = frozenset({400, 401, 403, 404, 421, 431, 1007, 1008, 1009})
"""HTTP statuses and close codes after which another connection would fail, too."""


def listen(
    url: str,
    pieces: Iterable[npt.ArrayLike],
    *,
    sample_rate: int = 24_000,
    retry_seconds: float = 30.0,
    **options: Any,
) -> Iterator[StreamEvent]:
    """Transcribe a live source on a server, over lost connections: see `ResumableStream`.

    Args:
        url: Address of the server.
        pieces: Mono audio in pieces `[S]`. Another thread reads them, and waits while 20 s are not transcribed.
        sample_rate: Of the pieces, in Hz.
        retry_seconds: How long to try to connect again without any event.
        **options: Of `ResumableStream`: `key`, `model`, `context_seconds`, `max_pending_seconds`, `sessions`.

    Yields:
        The events, up to `Final`.

    Raises:
        ServerError: The server refuses the stream, or cannot be reached for `retry_seconds`.
        AudioError: A piece is invalid.

    Example:
        >>> words = [event.text for event in listen(url, [samples], sample_rate=16_000) if isinstance(event, Word)]
    """
    refuse_single(pieces, "listen takes an iterable of arrays", "pass a list with it")
    return _listen(ResumableStream(url, sample_rate=sample_rate, **options), pieces, retry_seconds)


def _listen(stream: ResumableStream, pieces: Iterable[npt.ArrayLike], retry_seconds: float) -> Iterator[StreamEvent]:
    events: queue.SimpleQueue[StreamEvent | BaseException | None] = queue.SimpleQueue()
    over = False

    async def send(piece: npt.ArrayLike) -> None:
        stream.send(piece)
        while stream.lag > AHEAD_SECONDS and not over:
            await asyncio.sleep(0.05)

    async def finish() -> None:
        stream.finish()

    async def read() -> None:
        last = time.monotonic()
        while not stream.done:
            try:
                await stream.connect()
                async for event in stream:
                    last = time.monotonic()
                    events.put(event)
            except ServerError as error:
                if error.code in PERMANENT or time.monotonic() - last > retry_seconds:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)

    def feed() -> None:
        try:
            for piece in pieces:
                if over:
                    return
                portal.call(send, piece)
            portal.call(finish)
        except BaseException as error:
            events.put(error)

    with start_blocking_portal() as portal, ThreadPoolExecutor(1, "slipstream-listen") as pool:
        reading = portal.start_task_soon(read)
        reading.add_done_callback(lambda done: events.put(None if done.cancelled() else done.exception()))
        feeding = pool.submit(feed)
        try:
            while (item := events.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            over = True
            reading.cancel()
            portal.call(stream.disconnect)
            feeding.cancel()
