"""A client of the Slipstream server, with and without asyncio.

    with open_stream("http://127.0.0.1:8080", sample_rate=16_000) as stream:
        stream.send(samples)
        stream.finish()
        for event in stream:
            print(event)

Samples are mono: floats within [-1, 1], int8, int16, int32 or uint8. Needs the extra `client` (for websockets).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit, urlunsplit

import numpy.typing as npt
from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection as SyncConnection
from websockets.sync.client import connect as connect_sync

from slipstream.audio.arrays import SampleConverter, check_range, refuse_single
from slipstream.errors import AudioError, SlipstreamError
from slipstream.events import EndOfTurn, Event, Final, MarkerReached, PartialWord, Ready, Recovered, Step, Turn, Word
from slipstream.transcript import Transcript, TranscriptBuilder


class ServerError(SlipstreamError):
    """The server cannot be reached, refused, or closed the stream. `code`: its HTTP status or close code, if any."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Queued:
    """No slot is free yet. `position`: in the queue; 1 is next."""

    position: int


StreamEvent: TypeAlias = Event | Queued


class AsyncStream:
    """A live stream from `open_async_stream`. Iterate over it for its events, up to `Final`.

    After the first event, `request_id` identifies the stream in the server's log.
    """

    def __init__(self, socket: AsyncConnection) -> None:
        self._socket = socket
        self._converter = SampleConverter()
        self.model, self.delay_seconds, self.request_id = "", 0.0, ""

    async def send(self, samples: npt.ArrayLike) -> None:
        """Send audio `[S]`. Waits while the server is behind.

        Raises `ServerError` once the server has closed the stream, and `AudioError` for invalid samples.
        """
        await self._send(_pcm(self._converter, samples))

    async def flush(self, id: int = 0) -> None:
        """Flush the text of all audio sent so far; `MarkerReached` with `id` follows it."""
        await self._send(_control("flush", id=id))

    async def restart(self) -> None:
        """Reset the stream; `Ready` follows."""
        await self._send(_control("restart"))

    async def finish(self) -> None:
        """End the audio."""
        await self._send(_control("close"))

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        try:
            async for message in self._socket:
                event = _parse(self, message)
                yield event
                if isinstance(event, Final):
                    return
        except ConnectionClosed as closed:
            raise _closed(closed) from closed
        raise ServerError("the server closed the stream before its end", self._socket.close_code)

    async def _send(self, message: bytes | str) -> None:
        try:
            await self._socket.send(message)
        except ConnectionClosed as closed:
            raise _closed(closed) from closed


class Stream:
    """A live stream from `open_stream`. Iterate over it for its events, up to `Final`.

    You can send and iterate in two threads. After the first event, `request_id` identifies the stream in the server's
    log.
    """

    def __init__(self, socket: SyncConnection) -> None:
        self._socket = socket
        self._converter = SampleConverter()
        self.model, self.delay_seconds, self.request_id = "", 0.0, ""

    def send(self, samples: npt.ArrayLike) -> None:
        """Send audio `[S]`. Waits while the server is behind.

        Raises `ServerError` once the server has closed the stream, and `AudioError` for invalid samples.
        """
        self._send(_pcm(self._converter, samples))

    def flush(self, id: int = 0) -> None:
        """Flush the text of all audio sent so far; `MarkerReached` with `id` follows it."""
        self._send(_control("flush", id=id))

    def restart(self) -> None:
        """Reset the stream; `Ready` follows."""
        self._send(_control("restart"))

    def finish(self) -> None:
        """End the audio."""
        self._send(_control("close"))

    def close(self) -> None:
        """Close the stream immediately, without its remaining text."""
        self._socket.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        try:
            for message in self._socket:
                event = _parse(self, message)
                yield event
                if isinstance(event, Final):
                    return
        except ConnectionClosed as closed:
            raise _closed(closed) from closed
        raise ServerError("the server closed the stream before its end", self._socket.close_code)

    def _send(self, message: bytes | str) -> None:
        try:
            self._socket.send(message)
        except ConnectionClosed as closed:
            raise _closed(closed) from closed


@asynccontextmanager
async def open_async_stream(
    url: str, *, sample_rate: int = 24_000, key: str | None = None
) -> AsyncIterator[AsyncStream]:
    """Open a stream on a server.

    Args:
        url: Address of the server: http, https, ws or wss.
        sample_rate: Of the audio that you send, in Hz.
        key: API key.

    Raises:
        ServerError: The server cannot be reached, or refuses.
    """
    try:
        socket = await connect_async(_address(url, sample_rate), additional_headers=_headers(key), **_OPTIONS)
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise _refused(url, error) from error
    async with socket:
        yield AsyncStream(socket)


@contextmanager
def open_stream(url: str, *, sample_rate: int = 24_000, key: str | None = None) -> Iterator[Stream]:
    """Open a stream without asyncio; see `open_async_stream`."""
    try:
        socket = connect_sync(_address(url, sample_rate), additional_headers=_headers(key), **_OPTIONS)
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise _refused(url, error) from error
    with socket:
        yield Stream(socket)


def transcribe(
    url: str, pieces: Iterable[npt.ArrayLike], *, sample_rate: int = 24_000, key: str | None = None
) -> Transcript:
    """Transcribe a recording on a server.

    Args:
        url: Address of the server.
        pieces: The samples in pieces `[S]`.
        sample_rate: Of the samples, in Hz.
        key: API key.

    Returns:
        The transcript.

    Raises:
        ServerError: The server cannot be reached, refuses, or closes the stream before its end.
    """
    from concurrent.futures import ThreadPoolExecutor

    refuse_single(pieces, "transcribe takes an iterable of arrays", "pass a list with it")
    builder = TranscriptBuilder()
    with open_stream(url, sample_rate=sample_rate, key=key) as stream, ThreadPoolExecutor(1) as sender:
        sending = sender.submit(_send_all, stream, pieces)
        try:
            for event in stream:
                builder.add(event)
        except ServerError:
            cause = sending.exception()
            if cause is not None and not isinstance(cause, ServerError):
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


def _address(url: str, sample_rate: int) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    query = urlencode({"encoding": "pcm_f32le", "sample_rate": sample_rate})
    return urlunsplit((scheme, parts.netloc, f"{parts.path.rstrip('/')}/v1/stream", query, ""))


def _headers(key: str | None) -> dict[str, str]:
    return {"kyutai-api-key": key} if key else {}


def _pcm(converter: SampleConverter, samples: npt.ArrayLike) -> bytes:
    audio_CS = converter.convert(samples)
    check_range(audio_CS)
    if len(audio_CS) != 1:
        raise AudioError(f"audio has shape {audio_CS.shape}: a stream takes one channel, [samples]")
    return audio_CS.astype("<f4").tobytes()


def _control(type: str, **fields: int) -> str:
    return json.dumps({"type": type, **fields})


def _parse(stream: AsyncStream | Stream, message: bytes | str) -> StreamEvent:
    fields: dict[str, Any] = json.loads(message)
    kind = fields.pop("type")
    if kind == "error":
        raise ServerError(fields["message"], fields["code"])
    stream.request_id = fields.pop("request_id", stream.request_id)
    if kind == "ready":
        stream.model, stream.delay_seconds = fields["model"], fields["delay"]
        return Ready()
    if kind == "step":
        return Step(fields["index"], tuple(fields["pause"]), fields["buffered"])
    if kind not in _EVENTS:
        raise ServerError(f"unknown message {kind!r} from a newer server: update slipstream")
    event: StreamEvent = _EVENTS[kind](**fields)
    return event


_EVENTS: dict[str, Any] = {
    "queued": Queued,
    "partial": PartialWord,
    "word": Word,
    "end_of_turn": EndOfTurn,
    "turn": Turn,
    "flushed": MarkerReached,
    "recovered": Recovered,
    "done": Final,
}


def _closed(closed: ConnectionClosed) -> ServerError:
    frame = closed.rcvd
    if frame is None:
        return ServerError("the connection to the server was lost")
    return ServerError(f"the server closed the stream: {frame.reason or frame.code}", frame.code)


def _refused(url: str, error: Exception) -> ServerError:
    if isinstance(error, InvalidStatus):
        reason = error.response.body.decode("utf-8", "replace").strip() if error.response.body else ""
        status = error.response.status_code
        return ServerError(f"{url}: the server refused the stream with status {status}: {reason}", status)
    return ServerError(f"{url}: cannot be reached: {error}")
