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

import numpy as np
import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio.arrays import SampleConverter, check_range
from slipstream.client import AsyncStream, Resumption, ServerError, StreamEvent, find_replica, open_async_stream
from slipstream.errors import AudioError, ConfigError
from slipstream.events import EndOfTurn, Final, MarkerReached, PartialWord, Recovered, Step, Turn, Word
from slipstream.hints import Hints

SEND_SECONDS = 1.0
"""Longest piece of audio in one message."""
WORD_TAIL_SECONDS = 0.5
"""A word may sound this much longer than its end states: audio is never cut there."""
SAME_START_SECONDS = 0.16
"""A word with the same text that starts this close to a final word is that word again."""


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
        context_seconds: float = 4.0,
        max_pending_seconds: float = 120.0,
        hints: Hints | None = None,
        sessions: bool = False,
    ) -> None:
        if context_seconds < 0 or max_pending_seconds <= context_seconds:
            raise ConfigError(
                f"context_seconds={context_seconds}, max_pending_seconds={max_pending_seconds}: "
                "the first must be at least 0, the second more than the first"
            )
        self._url, self._rate, self._key, self._model = url, sample_rate, key, model
        self._context, self._most = context_seconds, max_pending_seconds
        self.hints = hints
        self._sessions, self._replica = sessions, ""
        self._convert = SampleConverter().convert
        self._tape = _Tape()
        self._flushes: deque[_Flush] = deque()  # those not confirmed
        self._finished = False
        self._changed = asyncio.Event()
        self._text = _FinalText(context_seconds)
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
        audio_CS = self._convert(samples)
        check_range(audio_CS)
        if len(audio_CS) != 1:
            raise AudioError(f"audio has shape {audio_CS.shape}: a stream takes one channel, [samples]")
        self._tape.append(audio_CS[0])
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
        stream = await self._open(exits, last.stream.resumption if last else None)
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

    async def _open(self, exits: contextlib.AsyncExitStack, resumption: Resumption | None) -> AsyncStream:
        def opened(url: str) -> contextlib.AbstractAsyncContextManager[AsyncStream]:
            return open_async_stream(
                url, sample_rate=self._rate, key=self._key, model=self._model, resumption=resumption, hints=self.hints
            )

        if self._replica and resumption:  # only this replica may hold the stream
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
            placed = self._text.turn(event.end + start)
        elif isinstance(event, Recovered):
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


class _FinalText:
    """What is final of a session's text, and where the audio of the next connection starts."""

    def __init__(self, context_seconds: float) -> None:
        self.frame_seconds = 0.08
        self._context = context_seconds
        self._words: deque[Word] = deque()  # the last final words
        self._settled = 0.0  # no word without final text starts before this
        self._open = False  # whether a word is being written
        self._repeats: Word | None = None  # the last word that was final when the connection began
        self._turn_start: float | None = None

    @property
    def cut(self) -> float:
        """The start of a word or a frame of silence, at least the context before the text that is not final."""
        cut = max(0.0, self._settled - self._context)
        following = cut + WORD_TAIL_SECONDS
        for word in reversed(self._words):
            if word.start < cut < min(word.end + WORD_TAIL_SECONDS, following):
                cut = word.start
                break
            following = word.start
        return int(cut / self.frame_seconds + 1e-6) * self.frame_seconds

    def begin(self) -> None:
        """Begin a connection that sends audio again."""
        self._open = False
        self._repeats = self._words[-1] if self._words else None

    def settle(self, time: float) -> None:
        """All text of the audio before `time` is written, except for a word that is being written."""
        if not self._open:
            self._settle(time)

    def partial(self, partial: PartialWord) -> PartialWord | None:
        """Return a word that is being written, unless it repeats a final one."""
        self._open = True
        last = self._repeats
        return None if last is not None and partial.start < last.end - self.frame_seconds / 2 else partial

    def word(self, word: Word) -> Word | None:
        """Return a word, unless it repeats a final one."""
        self._open = False
        if (last := self._repeats) is not None:
            same = word.text == last.text and abs(word.start - last.start) <= SAME_START_SECONDS
            if same or (word.start + word.end) / 2 < last.end:
                return None
            self._repeats = None
        self._words.append(word)
        while self._words[0].end + WORD_TAIL_SECONDS < self.cut and len(self._words) > 1:
            self._words.popleft()
        self._settle(word.end)
        if self._turn_start is None:
            self._turn_start = word.start
        return word

    def turn(self, end: float) -> Turn | None:
        """Return the turn that ends at `end`, from its first word; None if it has no word that is new."""
        if self._turn_start is None or end <= self._turn_start:
            return None
        turn, self._turn_start = Turn(self._turn_start, end), None
        return turn

    def _settle(self, time: float) -> None:
        self._settled = max(self._settled, time)


class _Tape:
    """The end of a recording, by sample number: from `begin` up to `end`."""

    def __init__(self) -> None:
        self.begin = self.end = 0
        self._pieces: deque[FloatArray] = deque()

    def append(self, samples_S: FloatArray) -> None:
        """Add samples."""
        self._pieces.append(samples_S)
        self.end += len(samples_S)

    def drop_before(self, position: int) -> None:
        """Forget the pieces that end before a sample."""
        while self._pieces and self.begin + len(self._pieces[0]) <= position:
            self.begin += len(self._pieces.popleft())

    def read(self, start: int, stop: int) -> FloatArray:
        """Return the samples `start` up to `stop`."""
        found: list[FloatArray] = []
        end = self.end
        for piece in reversed(self._pieces):
            begin = end - len(piece)
            if begin < stop:
                found.append(piece[max(0, start - begin) : stop - begin])
            if begin <= start:
                break
            end = begin
        return np.concatenate(found[::-1])


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
