"""One live stream of text to speech: connects a connection and its dialect to a session of the model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property

from starlette.requests import HTTPConnection

from slipstream.connections.access import Access, Client, Refused
from slipstream.connections.fairness import TURN_SECONDS
from slipstream.connections.limits import Limits
from slipstream.connections.tcp import TcpConnection
from slipstream.dialects.models import SpeechInfo
from slipstream.dialects.protocol import Close, CloseCode, Message, ProtocolError, Send
from slipstream.dialects.speech import OpenSpeechDialect
from slipstream.dialects.speech.protocol import (
    Begin,
    EndText,
    FlushText,
    SpeechAction,
    SpeechDialect,
    Spoken,
    Text,
)
from slipstream.engine.reading import Audio, SpeechEvent
from slipstream.errors import EngineError, Overloaded, SessionClosed, SlipstreamError
from slipstream.model.speech import Voice
from slipstream.server.speaking import AnySession, AnySpeaker
from slipstream.server.streams.outbox import Socket
from slipstream.server.streams.registry import StreamRegistry

MAX_CHARACTERS = 200_000
"""Of the text of a session: about four hours of speech."""
PIECE_CHARACTERS = 200
"""Of the text that a session gets in one call."""

logger = logging.getLogger(__name__)


class SpeechStreams:
    """Makes the streams of a server.

    Args:
        speaker: The model.
        registry: Of the server.
        limits: The limits of each connection.
    """

    def __init__(self, speaker: AnySpeaker, registry: StreamRegistry, limits: Limits) -> None:
        self._speaker, self._registry, self._limits = speaker, registry, limits

    @cached_property
    def info(self) -> SpeechInfo:
        """What clients see of the model."""
        return self._speaker.info

    def accept(
        self, opened: OpenSpeechDialect, request: HTTPConnection, socket: Socket, access: Access
    ) -> SpeechStream:
        """Make the stream of a new WebSocket. Raises `Refused`."""
        client = request.scope["sender"] = access.check(request)
        try:
            dialect = opened(request.query_params.multi_items(), self.info)
        except ProtocolError as error:
            raise Refused(400, str(error)) from error
        access.enter(client)
        return self._stream(dialect, socket, client, lambda: access.leave(client))

    def follow(self, socket: TcpConnection, client: Client, dialect: SpeechDialect) -> None:
        """Continue a TCP connection."""
        socket.become(self._stream(dialect, socket, client, lambda: None))

    def _stream(self, dialect: SpeechDialect, socket: Socket, client: Client, over: Callable[[], None]) -> SpeechStream:
        return SpeechStream(
            dialect, socket, self._speaker, registry=self._registry, limits=self._limits, client=client, over=over
        )


class SpeechStream:
    """One connection.

    Args:
        dialect: The dialect of the connection.
        socket: The connection.
        speaker: The model.
        registry: Wakes this object when the session has events.
        limits: The limits of the connection.
        client: For the log.
        over: Called when the connection has ended.
    """

    headers: Mapping[str, str] = {}
    long_text = True

    def __init__(
        self,
        dialect: SpeechDialect,
        socket: Socket,
        speaker: AnySpeaker,
        *,
        registry: StreamRegistry,
        limits: Limits,
        client: Client,
        over: Callable[[], None],
    ) -> None:
        self._dialect, self._socket, self._speaker = dialect, socket, speaker
        self._registry, self._limits, self._client, self._over = registry, limits, client, over
        self._actions: Iterator[SpeechAction] | None = None  # of the current message
        self._session: AnySession | None = None
        self._events: deque[SpeechEvent] = deque()
        self._opening = self._complete = self._closed = False
        self._ending: Close | None = None
        self._characters = 0
        self._seconds = 0.0
        self._began = self._last = time.monotonic()

    # --------------------------------------------------------------------------------- what the connection calls

    def opened(self) -> None:
        """Begin as the dialect does, and join the server's streams."""
        self._registry.join(self)
        self._take(self._dialect.open())

    def receive(self, message: Message) -> None:
        """Process a message."""
        self._last = time.monotonic()
        if self._ending is None and not self._closed:
            self._take(self._dialect.receive(message))

    def writable(self) -> None:
        """Send the events that waited while the client did not read."""
        self.deliver()

    def closed(self, code: int | None) -> None:
        """Stop the session: nobody listens."""
        self._closed = True
        session, self._session, self._actions = self._session, None, None  # they refer to this object
        self._events.clear()
        if session is not None:
            session.cancel()
        self._registry.turns.remove(self)
        self._registry.leave(self)
        self._over()
        fields = {
            **self._client.log_fields,
            "dialect": self._dialect.name,
            "code": self._socket.client_code if code is None else code,
            "reason": self._socket.sent_reason,
            "seconds": round(time.monotonic() - self._began, 3),
            "characters": self._characters,
            "speech_seconds": round(self._seconds, 2),
        }
        logger.info("speech closed", extra=fields)

    # ----------------------------------------------------------------------------------- what the registry calls

    def deliver(self) -> None:
        """Send what the session has, a little at a time: the model is faster than speech, and encoding takes time.

        While the client reads too slowly, the session waits.
        """
        if not self._closed:
            self._registry.turns.add(self)

    def work(self, until: float) -> bool:
        """Do the actions of the last message, then send events, until this time. Returns whether there is more."""
        try:
            return self._act(until) or self._send_on(until)
        except Exception as error:
            self._fail(error)
            return False

    def sweep(self, now: float) -> None:
        """Close a connection that has been silent for too long, or open for too long."""
        if self._socket.behind or self._actions is not None:
            self._last = now  # the client waits for the server
        if not self._complete and now - self._last > self._limits.idle_seconds:
            self._close(Close(CloseCode.TIMED_OUT, f"no text for {self._limits.idle_seconds:g} s"))
        elif now - self._began > self._limits.session_seconds:
            self._close(Close(CloseCode.TIMED_OUT, f"the stream has lasted {self._limits.session_seconds:g} s"))

    def end(self, close: Close) -> None:
        """The server stops, or the client sends no more: finish the text so far."""
        if self._ending is None:
            self._ending = close
            if self._actions is None:
                self._finish()

    # ---------------------------------------------------------------------------------------------------- in detail

    def _take(self, actions: Iterable[SpeechAction]) -> None:
        self._actions = _cut(actions)
        if self.work(time.perf_counter() + TURN_SECONDS):
            self._registry.turns.add(self)
        if self._actions is not None and not self._closed:
            self._socket.pause()

    def _act(self, until: float) -> bool:
        """Do actions, up to one that must wait for a voice."""
        while self._actions is not None and not self._opening and not self._closed:
            if (action := next(self._actions, None)) is not None:
                self._do(action)
                if time.perf_counter() > until:
                    return True
                continue
            self._actions = None
            self._socket.resume()
            if self._ending is not None:
                self._finish()
        return False

    def _send_on(self, until: float) -> bool:
        """Send events as far as the client reads."""
        while (session := self._session) is not None and not self._closed and not self._socket.congested:
            if not self._events:
                self._events.extend(session.poll())
            if self._events:
                self._pass_on(self._events.popleft())
                if time.perf_counter() > until:
                    return True
            elif session.ended:
                self._session, self._complete = None, False
                self._last = time.monotonic()
                self._do_all(self._dialect.handle(Spoken()))
                if self._ending is not None:
                    self._close(self._ending)
            else:
                break
        return False

    def _pass_on(self, event: SpeechEvent) -> None:
        if isinstance(event, Audio):
            self._seconds += len(event.samples) / self._speaker.sample_rate
        self._do_all(self._dialect.handle(event))

    def _do_all(self, actions: Iterable[SpeechAction]) -> None:
        for action in actions:
            if not self._closed:
                self._do(action)

    def _do(self, action: SpeechAction) -> None:
        if isinstance(action, Send):
            self._socket.send(action.message)
        elif isinstance(action, Close):
            self._close(action)
        elif isinstance(action, Begin):
            self._begin(action.voice)
        elif isinstance(action, Text):
            self._characters += len(action.text)
            if self._characters > MAX_CHARACTERS:
                raise ProtocolError(f"a text has at most {MAX_CHARACTERS} characters")
            self._open_session.feed(action.text)
        elif isinstance(action, FlushText):
            self._open_session.flush()
        elif isinstance(action, EndText):
            self._complete = True
            self._open_session.end()

    def _begin(self, voice: str | Voice | None) -> None:
        if isinstance(voice, Voice):
            self._session = self._speaker.open(voice, self._registry.waker(self))
            return
        self._opening = True  # reading a voice may take a step of the codec, or a download
        reading = asyncio.get_running_loop().run_in_executor(None, self._speaker.voice, voice)
        reading.add_done_callback(self._continue)

    def _continue(self, reading: asyncio.Future[Voice | None]) -> None:
        """Open the session with the voice that has been read, and do the other actions of the message."""
        self._opening = False
        if self._closed:
            reading.exception()  # which nobody needs
            return
        try:
            self._session = self._speaker.open(reading.result(), self._registry.waker(self))
        except Exception as error:
            self._fail(error)
        else:
            self._registry.turns.add(self)

    @property
    def _open_session(self) -> AnySession:
        assert self._session is not None, "a dialect begins a session before its text"
        return self._session

    def _finish(self) -> None:
        if self._session is not None:
            self._complete = True
            self._session.end()
        elif self._ending is not None:
            self._close(self._ending)

    def _fail(self, error: Exception) -> None:
        """Send the error and close, without the remaining audio."""
        code, message = CloseCode.INTERNAL_ERROR, "internal error"
        if isinstance(error, ProtocolError):
            code, message = error.code, str(error)
        elif isinstance(error, Overloaded):
            code, message = CloseCode.TRY_LATER, str(error)
        elif isinstance(error, SlipstreamError | ValueError) and not isinstance(error, EngineError | SessionClosed):
            code, message = CloseCode.INVALID_PAYLOAD, str(error)
        elif not isinstance(error, SlipstreamError):
            logger.error("speech failed", extra=self._client.log_fields, exc_info=error)
        self._close(Close(code, message))

    def _close(self, close: Close) -> None:
        if self._closed:
            return
        if close.reason and (message := self._dialect.error(close.reason, close.code)) is not None:
            self._socket.send(message)
        self._socket.close(Close(close.code, close.reason.encode()[:120].decode(errors="ignore")))


def _cut(actions: Iterable[SpeechAction]) -> Iterator[SpeechAction]:
    """The actions, with long texts in pieces whose words do not take long to tokenise."""
    for action in actions:
        if isinstance(action, Text) and len(action.text) > PIECE_CHARACTERS:
            for start in range(0, len(action.text), PIECE_CHARACTERS):
                yield Text(action.text[start : start + PIECE_CHARACTERS])
        else:
            yield action
