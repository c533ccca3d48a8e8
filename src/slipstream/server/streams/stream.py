"""One live stream: connects a connection and its dialect to sessions of the engine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from slipstream.connections.access import Client
from slipstream.connections.fairness import TURN_SECONDS
from slipstream.connections.limits import Limits, Pace
from slipstream.dialects.models import Models
from slipstream.dialects.protocol import (
    Action,
    Audio,
    Close,
    CloseCode,
    Command,
    Dialect,
    Flush,
    Forward,
    HandOver,
    Marker,
    Message,
    Open,
    ProtocolError,
    Publish,
    Restart,
    ResumableDialect,
    Send,
    SetHints,
    SetTurns,
    Subscribe,
)
from slipstream.engine.live import AnyEngine, LiveSession
from slipstream.errors import AudioError, ConfigError, Overloaded, SessionClosed, SlipstreamError
from slipstream.events import Event, Final, Flushed, MarkerReached, Ready
from slipstream.server.metrics import Metrics
from slipstream.server.streams.account import Account
from slipstream.server.streams.outbox import Outbox, Socket
from slipstream.server.streams.phases import Connection, Phase, Signal
from slipstream.server.streams.registry import StreamRegistry

if TYPE_CHECKING:
    from slipstream.dialects.speech.protocol import SpeechDialect
    from slipstream.server.tracing import Trace

INTERNAL_ERROR = "the server failed; try again"
PING_SECONDS = 10.0
"""How often a client is pinged, as in the reference, so that proxies do not close an idle connection. The server does
not wait for the pong, which may wait behind audio. The kernel finds dead peers (`listen` in `server/run.py`), and the
idle limit silent ones."""

logger = logging.getLogger(__name__)


class LiveStream:
    """Runs one accepted connection from its first message to its close. The socket and the registry call it.

    A message is decoded lazily, as far as the session has room for its audio. What fits in one turn is decoded
    immediately; the rest takes turns with other connections, and the socket is paused until then.

    Args:
        engines: The engine of each model.
        queue_seconds: How long to wait for a slot; 0 does not wait.
        client: For the log.
        over: Called once, when the connection has ended.
        flush_after_silence: Seconds without voice, or without audio, after which the text is flushed; 0 disables it.
        trace: Of this stream, on a server that writes traces.
        speak: Continues the connection in a dialect of text to speech; None if no dialect needs it.
    """

    def __init__(
        self,
        dialect: Dialect,
        socket: Socket,
        *,
        engines: Models[AnyEngine],
        registry: StreamRegistry,
        limits: Limits,
        metrics: Metrics,
        queue_seconds: float,
        client: Client,
        over: Callable[[], None],
        flush_after_silence: float = 0.0,
        trace: Trace | None = None,
        speak: Callable[[SpeechDialect], None] | None = None,
    ) -> None:
        self._dialect = dialect
        self._socket = socket
        self._engines = engines
        self._registry = registry
        self._limits = limits
        self._metrics = metrics
        self._account = Account(client, dialect.name, metrics, trace)
        self._trace, self._speak = trace, speak
        self._queue_seconds = queue_seconds
        self._client = client
        self._over = over
        self._flush_after_silence = flush_after_silence
        self._last_audio = math.inf  # infinite once flushed
        self._connection = Connection()
        self._outbox = Outbox(socket, limits)
        self._close = Close(CloseCode.NORMAL)
        self._began = self._last_message = self._last_ping = time.monotonic()
        self._restart_pace = Pace(limits.restarts_per_second, self._began, _RESTARTS_AT_ONCE)
        self._actions: Iterator[Action] | None = None  # of the current message
        self._unfinished: Command | None = None
        self._full = self._too_fast = False
        self._pending_markers = 0
        self._place_sent = 0
        self._sessions: dict[int, LiveSession] = {}
        self._unfinished_sessions: set[int] = set()

    # ------------------------------------------------------------------------------------------ called by the socket

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response to the request that opened the connection."""
        return self._dialect.headers

    @property
    def long_text(self) -> bool:
        """Whether text messages may be as long as binary ones."""
        return self._dialect.long_text

    def opened(self) -> None:
        """Run the first actions of the dialect: most request a slot."""
        try:
            for action in self._dialect.open():
                self._do(action)
        except Exception as error:
            self._fail(error)
        else:
            self._registry.join(self)

    def receive(self, message: Message) -> None:
        """Process a message. Pause the socket if it takes more than a turn, or the session has no room for it."""
        if self._connection.ended:
            return
        self._last_message = time.monotonic()
        self._actions = self._dialect.receive(message)
        if self.work(time.perf_counter() + TURN_SECONDS):
            self._registry.turns.add(self)
        if self._actions is not None or self._too_fast:
            self._last_message = math.inf  # the client waits for the server
            self._socket.pause()

    def writable(self) -> None:
        """Send queued messages."""
        self._outbox.send_on()

    def closed(self, code: int | None) -> None:
        """Free everything: the connection has ended."""
        self._stop()
        if code is not None:
            self._metrics.closes.labels(code).inc()
        self._registry.leave(self)
        self._over()
        self._record(code)

    # ------------------------------------------------------------------------------------------ called by the registry

    def deliver(self) -> None:
        """Take the new events of the sessions."""
        if self._connection.over:
            return
        try:
            for channel, session in list(self._sessions.items()):
                for event in session.take():
                    self._pass_on(event, channel)
                    if self._connection.over:
                        return
        except Exception as error:
            self._fail(error)
            return
        if self._full:
            self._full = False
            self._registry.turns.add(self)

    def sweep(self, now: float) -> None:
        """Apply the time limits, report the place in the queue, ping, and notice a client that has left."""
        if self._actions is not None and self._socket.gone:
            self._socket.abort()
            return
        if self._socket.behind:
            self._last_message = max(self._last_message, now)
        if self._connection.phase is Phase.WAITING and self._place:
            self._report_place()
        elif now - self._last_message > (seconds := min(self._limits.idle_seconds, self._dialect.idle_seconds)):
            close = Close(CloseCode.TIMED_OUT, f"nothing was received for {seconds:g} s")
            self._finish_and_close(self._dialect.idle_close or close)
        elif now - self._began > self._limits.session_seconds:
            self.end(Close(CloseCode.TIMED_OUT, f"a stream lasts at most {self._limits.session_seconds:g} s"))
        if self._flush_after_silence and now - self._last_audio > self._flush_after_silence and self._actions is None:
            self._last_audio = math.inf
            self._flush()
        if now - self._last_ping > PING_SECONDS and not self._socket.congested:
            self._last_ping = now
            self._socket.ping()

    def notify(self, message: str, droppable: bool) -> None:
        """Send a message of a topic to which the dialect has subscribed."""
        if not self._connection.over:
            self._last_message = time.monotonic()
            self._put(message, droppable)

    def end(self, close: Close) -> None:
        """Transcribe the audio received so far, then close. For a client that continues elsewhere, only close.

        The end of its audio so far may be in the middle of a word.
        """
        if isinstance(self._dialect, ResumableDialect) and self._dialect.continues_elsewhere:
            if self._live:
                self._outbox.close(close)
                self._give_up()
        else:
            self._finish_and_close(close)

    # -------------------------------------------------------------------------------------------------- in detail

    @property
    def _live(self) -> bool:
        """Whether it is not ending yet."""
        return self._connection.phase in (Phase.WAITING, Phase.LIVE)

    def _finish_and_close(self, close: Close) -> None:
        """Transcribe the audio received so far, then close."""
        if not self._live:
            return
        self._connection.signal(Signal.DRAIN)
        self._close = close
        self._drop_message()
        self._read_on()
        try:
            self._finish()
        except Exception as error:
            self._fail(error)

    def work(self, until: float) -> bool:
        """Process the actions of the last message, up to one for which there is no room yet."""
        try:
            while self._actions is not None and not self._connection.over:
                action = self._unfinished or next(self._actions, None)
                self._unfinished = None
                if action is None:
                    self._actions = None
                    break
                self._unfinished = self._do(action)
                self._full = self._unfinished is not None
                if self._full:
                    return False
                if time.perf_counter() > until:
                    return True
        except SessionClosed:
            self._drop_message()  # the session has ended meanwhile: `deliver` gets its error
        except Exception as error:
            self._fail(error)
        self._read_on()
        return False

    def _do(self, action: Action) -> Command | None:
        """Run the actions of the dialect. Returns the rest of a command for which there is no room."""
        if isinstance(action, Send):
            self._put(action.message, action.droppable)
        elif isinstance(action, Close):
            self._outbox.close(action)
            self._give_up()
        elif isinstance(action, (Publish, Subscribe, Forward)):
            self._registry.topics.do(action, self, self._client.key.name if self._client.key else "")
        elif isinstance(action, HandOver):
            self._hand_over(action.dialect)
        elif self._connection.command(action):
            return self._act(action)
        return None

    def _act(self, command: Command) -> Command | None:
        if isinstance(command, Audio):
            pcm_S = command.pcm_S
            taken = self._sessions[command.channel].offer(pcm_S)
            self._last_audio = time.monotonic()
            if self._trace is not None:
                self._trace.audio(taken, command.channel)
            return Audio(pcm_S[taken:], command.channel) if taken < len(pcm_S) else None
        if isinstance(command, (Marker, Flush)):
            if self._pending_markers >= self._limits.pending_markers:
                return command
            self._pending_markers += 1
            session = self._sessions[command.channel]
            if isinstance(command, Marker):
                session.mark(command.id)
            elif command.buffered:
                session.flush()
            else:
                with suppress(SessionClosed):  # its last events are on their way
                    session.flush(buffered=False)
        elif isinstance(command, SetHints):
            self._sessions[command.channel].set_hints(command.hints)
        elif isinstance(command, SetTurns):
            self._sessions[command.channel].set_turns(command.turns, command.low_latency)
        elif isinstance(command, Restart):
            self._pending_markers = 0
            self._sessions[command.channel].restart()
            self._slow_down()
        elif isinstance(command, Open):
            if previous := self._sessions.get(command.channel):
                previous.cancel()
                self._account.free_slot(command.channel)
                self._slow_down()
            engine = self._engines[command.model]
            options = replace(
                command.options,
                hints=command.options.hints.with_at_most(min(self._limits.alternatives, engine.width_for(1))),
                max_buffered_seconds=self._limits.buffered_seconds,
                flush_after_silence=command.options.flush_after_silence or self._flush_after_silence or None,
            )
            self._account.ask(command.channel, engine.format.sample_rate)
            self._sessions[command.channel] = engine.open(
                options, wait=self._queue_seconds, wake=self._registry.waker(self)
            )
            self._unfinished_sessions.add(command.channel)
        else:
            self._finish()
        return None

    def _finish(self) -> None:
        for session in self._sessions.values():
            session.finish()
        if not self._sessions:
            self._outbox.close(self._close)
            self._give_up()

    def _flush(self) -> None:
        if self._connection.phase is Phase.LIVE:
            with suppress(SessionClosed):  # it has ended meanwhile: `deliver` gets its error
                for session in self._sessions.values():
                    session.flush()

    def _slow_down(self) -> None:
        if delay := self._restart_pace.delay(time.monotonic()):
            self._too_fast = True
            asyncio.get_running_loop().call_later(delay, self._slowed_down)

    def _slowed_down(self) -> None:
        self._too_fast = False
        self._read_on()

    def _read_on(self) -> None:
        if self._last_message == math.inf:
            self._last_message = time.monotonic()
        if not self._too_fast and self._actions is None and not self._connection.over:
            self._socket.resume()

    def _drop_message(self) -> None:
        self._actions = self._unfinished = None
        self._full = False
        self._registry.turns.remove(self)

    def _pass_on(self, event: Event, channel: int) -> None:
        """Count an event, and do the actions that the dialect returns."""
        self._account.add(event, channel)
        if isinstance(event, Ready):
            self._connection.event(event)
        elif isinstance(event, Flushed):
            self._pending_markers = max(0, self._pending_markers - 1)
        elif isinstance(event, MarkerReached):
            self._pending_markers -= 1
        elif isinstance(event, Final):
            self._unfinished_sessions.discard(channel)
        for action in self._dialect.handle(event, channel):
            self._do(action)
        if isinstance(event, Final) and not self._unfinished_sessions:
            self._connection.event(event)
            self._outbox.close(self._close)

    def _put(self, message: Message, droppable: bool = False) -> None:
        self._outbox.put(message, droppable)
        if self._outbox.overflowed:
            self._give_up()

    @property
    def _place(self) -> int:
        """The last place of its sessions in the queue for a slot; 0 if none waits."""
        return max((session.queue_position for session in self._sessions.values()), default=0)

    def _report_place(self) -> None:
        place = self._place
        if place != self._place_sent:
            self._place_sent = place
            if (message := self._dialect.queued(place)) is not None:
                self._put(message)

    def _fail(self, error: Exception) -> None:
        """Send the error and close, without the remaining text."""
        code = error.code if isinstance(error, ProtocolError) else _CODES.get(type(error), CloseCode.INTERNAL_ERROR)
        message = str(error)
        if code is CloseCode.INTERNAL_ERROR:  # its text is only for the operator
            message = INTERNAL_ERROR
            if not isinstance(error, SlipstreamError):
                logger.error("stream failed", extra=self._client.log_fields, exc_info=error)
        if (reply := self._dialect.error(message, code)) is not None:
            self._outbox.put(reply)
        self._outbox.close(Close(code, message.encode()[:_REASON_BYTES].decode("utf-8", "ignore")))
        self._give_up()

    def _give_up(self) -> None:
        """End the stream. The client has a short time to read the reason."""
        self._stop()
        self._socket.cut_off_later()

    def _stop(self) -> None:
        """Free the slots and process no more messages."""
        self._connection.signal(Signal.END)
        self._drop_message()
        for session in self._sessions.values():
            session.cancel()

    def _hand_over(self, dialect: SpeechDialect) -> None:
        """Leave the connection to a stream of text to speech."""
        assert self._speak is not None, "only listeners on TCP hand over"
        self._stop()
        self._registry.leave(self)
        self._account.close(CloseCode.NORMAL, "continues as text to speech", ended_by="client", dropped=0)
        self._speak(dialect)

    def _record(self, code: int | None) -> None:
        ended_by, reason = "server", self._socket.sent_reason
        if code is None and (close := self._outbox.ending):  # the client was disconnected before it could read it
            code, reason = close.code, close.reason
        elif code is None:
            ended_by, code, reason = "client", self._socket.client_code, ""
        self._account.close(int(code), reason, ended_by=ended_by, dropped=self._outbox.dropped)


_CODES: dict[type[Exception], CloseCode] = {
    AudioError: CloseCode.INVALID_PAYLOAD,
    ConfigError: CloseCode.INVALID_PAYLOAD,  # of hints or a history that the model does not have
    Overloaded: CloseCode.TRY_LATER,
}
_REASON_BYTES = 123
_RESTARTS_AT_ONCE = 5.0
