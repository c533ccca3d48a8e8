"""One live stream: a WebSocket on one side, a session of the engine on the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import Any

from starlette.types import Receive, Send

from slipstream.engine.engine import Engine, LiveSession
from slipstream.engine.session import SessionOptions
from slipstream.errors import AudioError, Overloaded, SessionClosed, SlipstreamError
from slipstream.server.connection import Connection, Phase, Signal
from slipstream.server.hub import Hub
from slipstream.server.limits import Limits, Pace
from slipstream.server.metrics import Metrics
from slipstream.server.outbox import Outbox
from slipstream.server.protocol import (
    Audio,
    Close,
    CloseCode,
    Command,
    Finish,
    Marker,
    Message,
    ProtocolError,
    Restart,
    Wire,
)
from slipstream.types import Event, Final, FloatArray, Flushed, Recovered, Step, Word

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""How long a client has to take the last messages of a stream that has failed."""


class LiveStream:
    """Runs one accepted WebSocket from its first message to its close.

    The reader takes messages, decodes them and feeds the session; `deliver` encodes what the session tells into the
    outbox; the writer empties that into the socket. `queue_seconds`: how long to wait for a slot, 0 for not at all.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        engine: Engine,
        hub: Hub,
        limits: Limits,
        metrics: Metrics,
        queue_seconds: float,
        receive: Receive,
        send: Send,
    ) -> None:
        self._wire = wire
        self._engine = engine
        self._hub = hub
        self._limits = limits
        self._metrics = metrics
        self._queue_seconds = queue_seconds
        self._receive = receive
        self._send = send
        self._connection = Connection()
        self._outbox = Outbox(limits)
        self._close = Close(CloseCode.NORMAL)
        self._room = asyncio.Event()
        self._began = self._last_message = time.monotonic()
        self._place_told = 0
        self._frames_heard = 0
        self._words = 0
        self._session: LiveSession | None = None
        self._reader: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the stream. Returns when the socket is closed, or has been told to be."""
        self._metrics.connects.inc()
        writer = asyncio.create_task(self._write())
        try:
            self._session = self._open_session()
        except SlipstreamError as error:
            self._fail(error)
            await _finished(writer)
            return
        self._hub.join(self)
        self._metrics.open_channels.inc()
        self._reader = asyncio.create_task(self._read(self._session))
        try:
            await asyncio.wait({self._reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if self._reader.cancelled():  # by `_stop`: there is something left to say
                await _finished(writer)
            elif self._reader.done():
                self._reader.result()
        finally:
            self._stop()
            writer.cancel()
            self._hub.leave(self)
            self._record()

    # ------------------------------------------------------------------------------------------ what the hub calls

    def deliver(self) -> None:
        """Take what the session has told."""
        if self._session is None or self._connection.phase is Phase.CLOSED:
            return
        try:
            events = self._session.take()
        except SlipstreamError as error:
            self._fail(error)
            return
        for event in events:
            self._tell(event)
        self._room.set()

    def sweep(self, now: float) -> None:
        """Look at the clock: time limits, and the place in the queue."""
        if self._connection.phase is Phase.WAITING:
            self._tell_place()
        elif now - self._last_message > self._limits.idle_seconds:
            self.end(Close(CloseCode.TIMED_OUT, f"nothing was received for {self._limits.idle_seconds:g} s"))
        elif now - self._began > self._limits.session_seconds:
            self.end(Close(CloseCode.TIMED_OUT, f"a stream lasts at most {self._limits.session_seconds:g} s"))

    def end(self, close: Close) -> None:
        """Finish what was heard, then close."""
        if self._session is None or self._connection.phase not in (Phase.WAITING, Phase.LIVE):
            return  # it ends already
        self._connection.signal(Signal.DRAIN)
        self._close = close
        self._room.set()
        try:
            self._session.finish()
        except SlipstreamError as error:
            self._fail(error)

    # -------------------------------------------------------------------------------------------------- in detail

    def _open_session(self) -> LiveSession:
        options = SessionOptions(steps=True, max_buffered_seconds=self._limits.buffered_seconds)
        return self._engine.open(options, wait=self._queue_seconds, wake=self._hub.waker(self))

    async def _read(self, session: LiveSession) -> None:
        pace = Pace(self._limits.messages_per_second, time.monotonic())
        while True:
            packet = await self._receive()
            if packet["type"] == "websocket.disconnect":
                return
            self._last_message = time.monotonic()
            try:
                for command in self._wire.decode(_content(packet)):
                    if self._connection.command(command):
                        await self._act(session, command)
            except SessionClosed:
                pass  # it has ended in the meantime: `deliver` says why
            except SlipstreamError as error:
                self._fail(error)
            if delay := pace.delay(time.monotonic()):
                await asyncio.sleep(delay)

    async def _act(self, session: LiveSession, command: Command) -> None:
        if isinstance(command, Audio):
            await self._feed(session, command.pcm_S)
        elif isinstance(command, Marker):
            session.mark(command.id)
        elif isinstance(command, Restart):
            session.restart()
        elif isinstance(command, Finish):
            session.finish()

    async def _feed(self, session: LiveSession, pcm_S: FloatArray) -> None:
        """Give audio to the session, waiting while it has no room: the client's own sending then waits too."""
        while True:
            self._room.clear()
            pcm_S = pcm_S[session.offer(pcm_S) :]
            if not len(pcm_S) or self._connection.phase is Phase.DRAINING:
                return
            self._last_message = math.inf  # it is the server that keeps the client waiting
            await self._room.wait()
            self._last_message = time.monotonic()

    async def _write(self) -> None:
        with contextlib.suppress(OSError):  # how ASGI says that the client is gone
            while not isinstance(item := await self._outbox.get(), Close):
                await self._send({"type": "websocket.send", "text" if isinstance(item, str) else "bytes": item})
            self._metrics.closes.labels(int(item.code)).inc()
            await self._send({"type": "websocket.close", "code": int(item.code), "reason": item.reason})

    def _tell(self, event: Event) -> None:
        self._connection.event(event)
        if isinstance(event, Step):
            self._frames_heard = event.index
        elif isinstance(event, Word):
            self._words += 1
            self._metrics.words.inc()
        elif isinstance(event, Flushed):
            self._metrics.flush_seconds.observe(event.seconds)
        elif isinstance(event, Recovered):
            self._metrics.recoveries.inc()
        message = self._wire.encode(event)
        if message is not None:
            self._outbox.put(message, isinstance(event, self._wire.droppable))
        if isinstance(event, Final):
            self._outbox.close(self._close)
        if self._outbox.overflowed:
            self._stop()

    def _tell_place(self) -> None:
        place = self._session.queue_position if self._session else 0
        if place and place != self._place_told:
            self._place_told = place
            self._outbox.put(self._wire.queued(place))

    def _fail(self, error: SlipstreamError) -> None:
        """Say what is wrong and close, without what the stream still owes."""
        code = error.code if isinstance(error, ProtocolError) else _CODES.get(type(error), CloseCode.INTERNAL_ERROR)
        self._outbox.put(self._wire.error(str(error), code))
        self._outbox.close(Close(code, str(error).encode()[:_REASON_BYTES].decode("utf-8", "ignore")))
        self._stop()

    def _stop(self) -> None:
        """Free the slot and read no more."""
        self._connection.signal(Signal.END)
        if self._session is not None:
            self._session.cancel()
        if self._reader is not None:
            self._reader.cancel()

    def _record(self) -> None:
        self._metrics.open_channels.dec()
        self._metrics.connection_steps.observe(self._frames_heard)
        self._metrics.dropped.inc(self._outbox.dropped)
        logger.info(
            "stream closed",
            extra={
                "wire": type(self._wire).__name__,
                "seconds": round(time.monotonic() - self._began, 3),
                "frames": self._frames_heard,
                "words": self._words,
                "dropped": self._outbox.dropped,
            },
        )


_CODES: dict[type[SlipstreamError], CloseCode] = {
    AudioError: CloseCode.INVALID_PAYLOAD,
    Overloaded: CloseCode.TRY_LATER,
}
_REASON_BYTES = 123


async def _finished(writer: asyncio.Task[None]) -> None:
    """Give the writer time to say why, and no more than that: the reader may not be reading."""
    await asyncio.wait({writer}, timeout=CLOSE_SECONDS)
    writer.cancel()


def _content(packet: Any) -> Message:
    text: str | None = packet.get("text")
    content: Message = packet["bytes"] if text is None else text
    return content
