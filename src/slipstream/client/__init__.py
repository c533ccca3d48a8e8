"""A client of the Slipstream server, with and without asyncio.

    with open_stream("http://127.0.0.1:8080", sample_rate=16_000) as stream:
        stream.send(samples)
        stream.finish()
        for event in stream:
            print(event)

Samples are mono: floats within [-1, 1], int8, int16, int32 or uint8. Needs the extra `client` (for websockets).
"""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy.typing as npt
from anyio.from_thread import BlockingPortal, start_blocking_portal
from websockets import ConcurrencyError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake, InvalidStatus, InvalidURI

from slipstream import events
from slipstream.audio.arrays import SampleConverter, check_range, refuse_single
from slipstream.client.addresses import Resumption, ServerError, find_replica, key_headers, stream_address
from slipstream.events import Event, Final, PartialWord, Ready, Step, Word
from slipstream.hints import Hints
from slipstream.transcript import Transcript, TranscriptBuilder

__all__ = [
    "AsyncStream",
    "BaseStream",
    "Queued",
    "Resumption",
    "ServerError",
    "Stream",
    "StreamEvent",
    "find_replica",
    "open_async_stream",
    "open_stream",
    "transcribe",
]


@dataclass(frozen=True, slots=True)
class Queued:
    """No slot is free yet. `position`: in the queue; 1 is next."""

    position: int


StreamEvent: TypeAlias = Event | Queued

SILENT_SECONDS = 25.0
"""A server that has sent nothing for this long, neither events nor pings, is gone. TCP alone notices that after many
minutes, if the network is gone, too. Servers ping every 10 s, and answer the pings of this client, every 20 s."""

_Sent = TypeVar("_Sent")
"""What a method that sends returns: None, or a coroutine."""


class BaseStream(ABC, Generic[_Sent]):
    """What `Stream` and `AsyncStream` share. The methods of an `AsyncStream` are coroutines: await them.

    Attributes:
        model: Name of the server's model, from the first event on.
        delay_seconds: How far its text is behind the audio, from the first event on.
        request_id: Identifies the stream in the server's log, from the first event on.
        resumption: What another connection continues, once the stream is `Ready`; None before.
        resumed: Whether this connection continues the stream of an earlier one, from `Ready` on.
        position: Samples of a continued stream that the server has; the next ones follow.
        frame_seconds: Time from one `Step` to the next.
    """

    def __init__(self, resumption: Resumption | None = None) -> None:
        self._resumption = resumption
        self._converter = SampleConverter()
        self.model, self.delay_seconds, self.request_id = "", 0.0, ""
        self.resumed, self.position = False, 0
        self._session, self._received, self.frame_seconds = "", 0, 0.08

    @property
    def resumption(self) -> Resumption | None:
        """What a next connection needs to continue this stream; None before the first event."""
        return Resumption(self._session, self._received) if self._session else None

    def send(self, samples: npt.ArrayLike) -> _Sent:
        """Send audio. Waits while the server is behind.

        Args:
            samples: Mono audio `[S]` at the stream's rate: floats within [-1, 1], int8, int16, int32 or uint8.

        Raises:
            ServerError: The server has closed the stream.
            AudioError: The samples are invalid.
        """
        audio_S = self._converter.convert_mono(samples)
        check_range(audio_S)
        return self._send(audio_S.astype("<f4").tobytes())

    def flush(self, id: int = 0) -> _Sent:
        """Flush the text of all audio sent so far; `MarkerReached` follows it.

        Args:
            id: Number that the event repeats.

        Raises:
            ServerError: The server has closed the stream.
        """
        return self._send(_control("flush", id=id))

    def restart(self) -> _Sent:
        """Reset the stream; `Ready` follows.

        Raises:
            ServerError: The server has closed the stream.
        """
        return self._send(_control("restart"))

    def finish(self) -> _Sent:
        """End the audio; the remaining text and `Final` follow.

        Raises:
            ServerError: The server has closed the stream.
        """
        return self._send(_control("close"))

    @abstractmethod
    def _send(self, message: bytes | str) -> _Sent: ...

    def _parse(self, message: bytes | str) -> StreamEvent:
        fields: dict[str, Any] = json.loads(message)
        kind = fields.pop("type")
        if kind == "error":
            raise ServerError(fields["message"], fields["code"])
        self.request_id = fields.pop("request_id", self.request_id)
        if kind not in ("step", "partial"):  # as the server counts
            self._received += 1
        if kind == "ready":
            self.model, self.delay_seconds = fields["model"], fields["delay"]
            self._begin(fields)
            return Ready()
        if kind == "step":
            self.frame_seconds = fields["time"] / fields["index"]
            return Step(fields["index"], tuple(fields["pause"]), fields["buffered"], fields.get("end_of_turn"))
        if kind not in _EVENTS:
            raise ServerError(f"unknown message {kind!r} from a newer server: update slipstream")
        if "alternatives" in fields:
            fields["alternatives"] = tuple(events.Alternative(**other) for other in fields["alternatives"])
        event: StreamEvent = _EVENTS[kind](**fields)
        return event

    def _begin(self, ready: dict[str, Any]) -> None:
        self._session = ready.get("session", "")
        if ready.get("resumed"):
            assert self._resumption is not None, "only a server that was asked to resumes"
            self.resumed, self.position = True, ready["position"]
            self._received = self._resumption.received


class _Connection(ClientConnection):
    """A connection that knows when it last received anything."""

    received_at = 0.0

    def data_received(self, data: bytes) -> None:
        self.received_at = time.monotonic()
        super().data_received(data)


class AsyncStream(BaseStream[Coroutine[Any, Any, None]]):
    """A live stream from `open_async_stream`. Iterate over it with `async for` for its events, up to `Final`."""

    def __init__(self, socket: _Connection, resumption: Resumption | None = None) -> None:
        super().__init__(resumption)
        self._socket = socket
        self._closing = False

    def close(self) -> None:
        """Close the stream immediately, without its remaining text and without waiting for the server."""
        self._socket.transport.abort()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        while True:
            event = self._parse(await self._receive())
            yield event
            if isinstance(event, Final):
                return

    async def _receive(self) -> bytes | str:
        began = time.monotonic()  # while nobody waits for events, nothing may be read
        try:
            while (left := max(began, self._socket.received_at) + SILENT_SECONDS - time.monotonic()) > 0:
                with suppress(asyncio.TimeoutError):
                    return await asyncio.wait_for(self._socket.recv(), left)
            self.close()
            raise ServerError(f"the server has sent nothing for {SILENT_SECONDS:g} s")
        except ConnectionClosed as closed:
            raise _closed(closed) from closed
        except ConcurrencyError:
            if not self._closing:
                raise
            raise ServerError("the stream was closed") from None

    async def _close(self) -> None:
        """Close the connection; its unread messages would delay the server's part of the close handshake."""
        self._closing = True
        closing = asyncio.create_task(self._socket.close())
        with suppress(ConnectionClosed, ConcurrencyError):  # or another task reads
            while True:
                await self._socket.recv()
        await closing

    async def _send(self, message: bytes | str) -> None:
        try:
            await self._socket.send(message)
        except ConnectionClosed as closed:
            raise _closed(closed) from closed


class Stream(BaseStream[None]):
    """A live stream from `open_stream`. Iterate over it for its events, up to `Final`.

    You can send and iterate in two threads.
    """

    # It runs an `AsyncStream` in the event loop of a separate thread. The websockets library has a client without
    # asyncio, but that reads and writes one TLS connection in two threads, which OpenSSL does not allow: 4 of 1,000
    # connections never sent their request (Python 3.11, TLS 1.3).
    def __init__(self, portal: BlockingPortal, stream: AsyncStream) -> None:
        super().__init__(stream._resumption)
        self._portal = portal
        self._stream = stream

    def close(self) -> None:
        """Close the stream immediately, without its remaining text."""
        self._portal.call(self._stream._close)

    def __iter__(self) -> Iterator[StreamEvent]:
        while True:
            event = self._parse(self._portal.call(self._stream._receive))
            yield event
            if isinstance(event, Final):
                return

    def _send(self, message: bytes | str) -> None:
        self._portal.call(self._stream._send, message)


@asynccontextmanager
async def open_async_stream(
    url: str,
    *,
    sample_rate: int = 24_000,
    key: str | None = None,
    model: str | None = None,
    resumption: Resumption | None = None,
    hints: Hints | None = None,
) -> AsyncIterator[AsyncStream]:
    """Open a stream on a server, as an asynchronous context manager.

    Args:
        url: Address of the server: http, https, ws or wss.
        sample_rate: Of the audio that you send, in Hz.
        key: API key.
        model: One of the server's models; None is its default.
        resumption: The stream to continue, with the same sample rate, key and model. If the server does not hold it,
            this is a new stream (`resumed` is False).
        hints: What is known about the speech: its keywords, prompt and languages.

    Yields:
        The stream; it is closed at the end of the context.

    Raises:
        ServerError: The server cannot be reached, or refuses.

    Example:
        >>> async with open_async_stream("http://127.0.0.1:8080", sample_rate=16_000) as stream:
        ...     await stream.send(samples)
        ...     await stream.finish()
        ...     words = [event.text async for event in stream if isinstance(event, Word)]
    """
    try:
        socket = await connect(
            stream_address(url, sample_rate, model, resumption, hints),
            additional_headers=key_headers(key),
            create_connection=_Connection,
            **_OPTIONS,
        )
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise _refused(url, error) from error
    assert isinstance(socket, _Connection)
    stream = AsyncStream(socket, resumption)
    try:
        yield stream
    finally:
        await stream._close()


@contextmanager
def open_stream(
    url: str,
    *,
    sample_rate: int = 24_000,
    key: str | None = None,
    model: str | None = None,
    resumption: Resumption | None = None,
    hints: Hints | None = None,
) -> Iterator[Stream]:
    """Open a stream, as a context manager, with the `url`, `sample_rate`, `key`, `model`, `resumption` and `hints` of
    `open_async_stream`.

    Yields:
        The stream; it is closed at the end of the context.

    Raises:
        ServerError: The server cannot be reached, or refuses.

    Example:
        >>> with open_stream("http://127.0.0.1:8080", sample_rate=16_000) as stream:
        ...     stream.send(samples)
        ...     stream.finish()
        ...     words = [event.text for event in stream if isinstance(event, Word)]
    """
    opening = open_async_stream(url, sample_rate=sample_rate, key=key, model=model, resumption=resumption, hints=hints)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(opening) as stream:
        yield Stream(portal, stream)


def transcribe(
    url: str,
    pieces: Iterable[npt.ArrayLike],
    *,
    sample_rate: int = 24_000,
    key: str | None = None,
    model: str | None = None,
) -> Transcript:
    """Transcribe a recording on a server.

    Args:
        url: Address of the server.
        pieces: The samples in pieces `[S]`.
        sample_rate: Of the samples, in Hz.
        key: API key.
        model: One of the server's models; None is its default.

    Returns:
        The transcript.

    Raises:
        ServerError: The server cannot be reached, refuses, or closes the stream before its end.

    Example:
        >>> transcribe("http://127.0.0.1:8080", [samples], sample_rate=16_000).text
    """
    refuse_single(pieces, "transcribe takes an iterable of arrays", "pass a list with it")
    builder = TranscriptBuilder()
    with open_stream(url, sample_rate=sample_rate, key=key, model=model) as stream, ThreadPoolExecutor(1) as sender:
        sending = sender.submit(_send_all, stream, pieces)
        try:
            for event in stream:
                builder.add(event)
        except ServerError:
            if (cause := sending.exception()) is not None and not isinstance(cause, ServerError):
                raise cause from None
            raise
        sending.result()
    return builder.build(stream.model, stream.delay_seconds)


# -------------------------------------------------------------------------------------------------------------- details

# No deadline for the pong: a ping waits behind audio that a busy server has not read yet.
_OPTIONS: dict[str, Any] = {"max_size": 1 << 20, "compression": None, "ping_timeout": None}


def _send_all(stream: Stream, pieces: Iterable[npt.ArrayLike]) -> None:
    try:
        for piece in pieces:
            stream.send(piece)
        stream.finish()
    except BaseException:
        stream.close()  # otherwise the reader waits forever
        raise


def _control(type: str, **fields: int) -> str:
    return json.dumps({"type": type, **fields})


_EVENTS: dict[str, Any] = {
    "queued": Queued,
    "partial": PartialWord,
    "word": Word,
    "end_of_turn": events.EndOfTurn,
    "turn": events.Turn,
    "flushed": events.MarkerReached,
    "recovered": events.Recovered,
    "history": events.History,
    "done": Final,
}


def _closed(closed: ConnectionClosed) -> ServerError:
    if (frame := closed.rcvd) is None:
        return ServerError("the connection to the server was lost")
    if isinstance(closed, ConnectionClosedOK):
        return ServerError("the server closed the stream before its end", frame.code)
    return ServerError(f"the server closed the stream: {frame.reason or frame.code}", frame.code)


def _refused(url: str, error: Exception) -> ServerError:
    if isinstance(error, InvalidStatus):
        reason = error.response.body.decode("utf-8", "replace").strip() if error.response.body else ""
        status = error.response.status_code
        return ServerError(f"{url}: the server refused the stream with status {status}: {reason}", status)
    return ServerError(f"{url}: cannot be reached: {error}")
