"""A live stream that continues over lost connections.

A server with `--resume-seconds` continues exactly where the connection was lost. From another one, or later, the audio
without final text is sent again, after some seconds of context.

    stream = ResumableStream("http://127.0.0.1:8080", sample_rate=16_000)
    stream.send(samples)  # from any task of the event loop, connected or not
    stream.finish()
    while not stream.done:
        await stream.connect()
        try:
            async for event in stream:
                print(event)
        except ServerError:
            await asyncio.sleep(1)  # connect again

Needs the extra `client` (for websockets).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import numpy.typing as npt

from slipstream.audio.arrays import SampleConverter, check_range
from slipstream.client import AsyncStream, Resumption, ServerError, StreamEvent, find_replica, open_async_stream
from slipstream.errors import ConfigError
from slipstream.events import EndOfTurn, Final, History, MarkerReached, PartialWord, Recovered, Step, Turn, Word
from slipstream.hints import Hints
from slipstream.resume.tape import Tape
from slipstream.resume.text import FinalText

SEND_SECONDS = 1.0
"""Longest piece of audio in one message."""


class ResumableStream:
    """One session with one clock, over any number of connections.

    `send`, `flush` and `finish` only record what to do. `connect` opens a connection. If the server still holds the
    stream of the last one, it continues there. Otherwise the connection starts a few seconds before the audio without
    final text, so that the model has context. The words of these seconds that were final before are not repeated. All
    times count from the first sample of the session.

    Args:
        url: Address of the server: http, https, ws or wss.
        sample_rate: Of the audio that you send, in Hz.
        key: API key.
        model: One of the server's models; None is its default.
        context_seconds: Audio before the first word without final text that is sent again.
        max_pending_seconds: Most audio without final text.
        hints: What is known about the speech.
        sessions: Ask the server for the address of a replica before each connection: see `find_replica`.
        history: Receive the model's text, too. A server that does not hold the stream then continues with this text.

    Attributes:
        hints: What is known about the speech. A change holds from the next new stream.
        done: Whether the session has ended with `Final`.
        resumed: Whether the server held the stream, so that the current connection continues it.
        request_id: Identifies the current connection in the server's log.
    """

    def __init__(
        self,
        url: str,
        *,
        sample_rate: int = 24_000,
        key: str | None = None,
        model: str | None = None,
        context_seconds: float = 30.0,
        max_pending_seconds: float = 120.0,
        hints: Hints | None = None,
        sessions: bool = False,
        history: bool = True,
    ) -> None:
        if context_seconds < 0 or max_pending_seconds <= context_seconds:
            raise ConfigError(
                f"context_seconds={context_seconds}, max_pending_seconds={max_pending_seconds}: "
                "the first must be at least 0, the second more than the first"
            )
        self._url, self._rate, self._key, self._model = url, sample_rate, key, model
        self._context, self._most = context_seconds, max_pending_seconds
        self.hints = hints
        self._sessions, self._replica, self._history = sessions, "", history
        self._convert = SampleConverter().convert_mono
        self._tape = Tape()
        self._flushes: deque[_Flush] = deque()  # those not confirmed
        self._finished = False
        self._changed = asyncio.Event()
        self._text = FinalText(context_seconds)
        self._connection: _Connection | None = None
        self._last: _Connection | None = None  # which the server may still hold
        self._flush_number = 0
        self._next_step = 0
        self._processed = 0.0
        self._turn_ended = -1.0
        self.done = self.resumed = False
        self.request_id = ""

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as is known without reading from it."""
        return self._connection is not None

    @property
    def duration(self) -> float:
        """Of the audio so far, in seconds."""
        return self._tape.end / self._rate

    @property
    def lag(self) -> float:
        """How far the server is behind the audio, in seconds."""
        return self.duration - self._processed

    def send(self, samples: npt.ArrayLike) -> None:
        """Add audio. Does not wait.

        Args:
            samples: Mono audio `[S]` at the stream's rate: floats within [-1, 1], int8, int16, int32 or uint8.

        Raises:
            AudioError: The samples are invalid, or not mono.
            ServerError: The server has not transcribed the last `max_pending_seconds`.
        """
        audio_S = self._convert(samples)
        check_range(audio_S)
        self._tape.append(audio_S)
        if self._tape.end - self._tape.begin > self._most * self._rate:
            raise ServerError(f"{self._url}: has not transcribed the last {self._most:g} s of audio")
        self._changed.set()

    def flush(self, id: int = 0) -> None:
        """Get the text of all audio so far; `MarkerReached` with `id` follows it.

        Later audio is held back until then: a server flushes as soon as no more audio comes, which is sooner than the
        delay of most models.

        Args:
            id: Number that the event repeats.
        """
        self._flush_number += 1
        self._flushes.append(_Flush(self._tape.end, id, self._flush_number))
        self._changed.set()

    def finish(self) -> None:
        """End the audio."""
        self._finished = True
        self._changed.set()

    async def connect(self) -> None:
        """Open a connection and wait until the server is ready, or has put the stream in its queue.

        Raises:
            ServerError: The server cannot be reached, or refuses.
        """
        await self.disconnect()
        exits = contextlib.AsyncExitStack()
        last = self._last
        stream = await self._open(exits, self._resumption(last))
        events = aiter(stream)
        try:
            first = await anext(events)
        except BaseException:
            stream.close()
            await exits.aclose()
            raise
        self.request_id, self.resumed = stream.request_id, stream.resumed
        start = last.start if last and stream.resumed else self._text.cut
        self._connection = self._last = _Connection(stream, events, first, exits, start)
        self._connection.position = self._samples(start) + stream.position
        if not stream.resumed:
            self._tape.drop_before(self._samples(start))
            self._processed = start
            self._text.begin()
        self._connection.sender = asyncio.create_task(self._send_all(self._connection))

    def _resumption(self, last: _Connection | None) -> Resumption:
        held = last and last.stream.resumption
        resumption = held if held else Resumption()
        if self._history:
            resumption = replace(resumption, first_frame=self._text.first_frame, pieces=self._text.history)
        return resumption

    async def _open(self, exits: contextlib.AsyncExitStack, resumption: Resumption) -> AsyncStream:
        def opened(url: str) -> contextlib.AbstractAsyncContextManager[AsyncStream]:
            return open_async_stream(
                url, sample_rate=self._rate, key=self._key, model=self._model, resumption=resumption, hints=self.hints
            )

        if self._replica and resumption.session:  # only this replica may hold the stream
            with contextlib.suppress(ServerError):
                return await exits.enter_async_context(opened(self._replica))
        if self._sessions:
            self._replica = await asyncio.to_thread(find_replica, self._url, self._key)
        return await exits.enter_async_context(opened(self._replica or self._url))

    async def disconnect(self) -> None:
        """Close the connection, if there is one. The session can `connect` again."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Iterate over the events of the connection, up to `Final`. Where the server ends it in order, connect again.

        Yields:
            The events, with times on the session's clock.

        Raises:
            ServerError: The connection is lost, or a new one cannot be opened.
        """
        while (connection := self._connection) is not None:
            async for event in connection:
                if isinstance(event, Final):
                    break
                if (placed := self._place(event, connection)) is not None:
                    yield placed
            if connection.finish_sent:
                self.done = True
                await self.disconnect()
                yield replace(event, duration=self.duration) if isinstance(event, Final) else event
                return
            # The server has ended the stream in order: it stops, or a limit is reached. Everything sent is transcribed.
            sent = connection.position
            await self.disconnect()
            self._last = None
            while self._tape.end <= sent and not self._finished and not self._flushes:
                await self._change()
            await self.connect()

    # ------------------------------------------------------------------------------------------------------- sending

    async def _send_all(self, connection: _Connection) -> None:
        with contextlib.suppress(ServerError):  # the reader gets it, too
            while True:
                flush = self._flushes[0] if self._flushes else None
                until = self._tape.end if flush is None else flush.position
                if connection.position < until:
                    piece = self._tape.read(connection.position, min(until, connection.position + self._piece))
                    connection.position += len(piece)
                    await connection.stream.send(piece)
                elif flush is not None:
                    await connection.stream.flush(flush.number)
                    while flush in self._flushes:
                        await self._change()
                elif self._finished:
                    await connection.stream.finish()
                    connection.finish_sent = True
                    return
                else:
                    await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    @property
    def _piece(self) -> int:
        return round(SEND_SECONDS * self._rate)

    def _samples(self, seconds: float) -> int:
        return round(seconds * self._rate)

    # ----------------------------------------------------------------------------------------------------- receiving

    def _place(self, event: StreamEvent, connection: _Connection) -> StreamEvent | None:
        """Return an event of a connection on the session's clock; None for one that it has reported before."""
        start, frame = connection.start, connection.stream.frame_seconds
        placed: StreamEvent | None = event
        if isinstance(event, Word):
            placed = self._text.word(replace(event, start=event.start + start, end=event.end + start))
        elif isinstance(event, PartialWord):
            placed = self._text.partial(replace(event, start=event.start + start))
        elif isinstance(event, Step):
            index = event.index + round(start / frame)
            self._processed = index * frame
            self._text.settle((index - 2) * frame - connection.stream.delay_seconds)
            placed = replace(event, index=index) if index >= self._next_step else None
            self._next_step = max(self._next_step, index + 1)
        elif isinstance(event, EndOfTurn):
            time = event.time + start
            placed = EndOfTurn(time) if time > self._turn_ended else None
            self._turn_ended = max(self._turn_ended, time)
        elif isinstance(event, Turn):
            placed = self._text.turn(replace(event, end=event.end + start))
        elif isinstance(event, History):
            self._text.keep(event)
            placed = None
        elif isinstance(event, Recovered):
            self._text.forget()
            placed = replace(event, time=event.time + start)
        elif isinstance(event, MarkerReached):
            placed = self._confirm(event.id)
        self._text.frame_seconds = frame
        # At most once per second of audio: dropping costs a little each time.
        if (begin := self._samples(self._text.cut)) - self._tape.begin >= self._rate:
            self._tape.drop_before(begin)
        return placed

    def _confirm(self, number: int) -> MarkerReached | None:
        """Return the event of a flush; None if it is not the next one, since a held stream may answer one twice."""
        if not self._flushes or self._flushes[0].number != number:
            return None
        self._changed.set()
        return MarkerReached(self._flushes.popleft().id)


@dataclass(frozen=True, slots=True, eq=False)
class _Flush:
    position: int
    id: int
    number: int  # what the server calls it


class _Connection:
    """One connection: its events, and how far the audio is sent."""

    def __init__(
        self,
        stream: AsyncStream,
        events: AsyncIterator[StreamEvent],
        first: StreamEvent,
        exits: contextlib.AsyncExitStack,
        start: float,
    ) -> None:
        self.stream, self.start = stream, start
        self.position = 0
        self.finish_sent = False
        self.sender: asyncio.Task[None] | None = None
        self._events, self._first, self._exits = events, first, exits
        self._over = False

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        yield self._first
        async for event in self._events:
            self._over = isinstance(event, Final)
            yield event

    async def close(self) -> None:
        if not self._over:  # a closing handshake would wait for the messages that nobody reads
            self.stream.close()
        if self.sender is not None:
            self.sender.cancel()
            await asyncio.wait([self.sender])
        await self._exits.aclose()
