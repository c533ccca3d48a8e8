"""Streams that outlive their connection: a client that lost it continues on another one, exactly where it stopped."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slipstream.connections.access import Client
from slipstream.connections.paced import LOST
from slipstream.connections.websocket import Listener
from slipstream.dialects.models import KEY_PARAMETER, Query
from slipstream.dialects.plain import CONNECTION_PARAMETERS
from slipstream.dialects.protocol import Close, CloseCode, Message, ResumableDialect
from slipstream.server.metrics import Metrics
from slipstream.server.streams.outbox import Socket
from slipstream.server.streams.registry import StreamRegistry
from slipstream.server.streams.stream import LiveStream

KEPT_MESSAGES = 2000
"""Messages of a stream that are kept for a client that has not received them."""
logger = logging.getLogger(__name__)


class HeldStreams:
    """The streams that can continue on another connection, by the session ID of their dialect.

    A stream whose connection is lost keeps its slot for `seconds`. Its messages are kept, too, also those after its
    end: the client sends how many it has received, and gets the others. Of a request that continues a stream, the key
    and the parameters must be those of the first one.

    Args:
        seconds: How long a stream waits.
        registry: Of the server.
        metrics: Of the server.
        elsewhere: Called with a request for a stream that is not held here; other processes then `release` it.
    """

    def __init__(
        self,
        seconds: float,
        registry: StreamRegistry,
        metrics: Metrics,
        elsewhere: Callable[[Claim], None] = lambda claim: None,
    ) -> None:
        self.seconds = seconds
        self._registry, self._metrics, self._elsewhere = registry, metrics, elsewhere
        self._streams: dict[str, HeldStream] = {}

    def open(
        self,
        dialect: ResumableDialect,
        client: Client,
        query: Query,
        socket: Socket,
        new_stream: Callable[[Socket], LiveStream],
    ) -> Listener:
        """Open a stream that can continue. Returns the listener of its first connection."""
        self._metrics.held.set_function(lambda: sum(stream.waits for stream in self._streams.values()))
        held = HeldStream(dialect, client, _shared(query), self)
        held.stream = new_stream(held)
        self._streams[dialect.session] = held
        return held.attach(socket)

    def resume(self, query: Query, client: Client, socket: Socket) -> Listener | None:
        """Continue the stream that a request names. Returns None if it is not held, or not for this client."""
        values = dict(query)
        session, received = values.get("resume", ""), values.get("received", "")
        if (held := self._streams.get(session)) is None:
            if session:
                self._elsewhere(Claim.of(client, session, _shared(query)))
            return None
        if held.client.key != client.key or held.query != _shared(query):
            return None
        has_messages = received.isascii() and received.isdecimal() and len(received) < 10 and held.has(int(received))
        if not (has_messages and held.dialect.position):
            held.end()  # the client will begin again elsewhere in its audio
            return None
        self._metrics.resumed.inc()
        logger.info("stream resumed", extra=client.log_fields)
        return held.attach(socket, int(received))

    def release(self, claim: Claim) -> None:
        """End a stream whose client has begun a new one in another process."""
        held = self._streams.get(claim.session)
        if held is not None and claim == Claim.of(held.client, claim.session, held.query):
            held.end()

    def may_wait(self) -> bool:
        """Whether a stream may wait for its client: not while the server stops."""
        return not self._registry.draining

    def forget(self, held: HeldStream) -> None:
        """Remove a stream that nobody can continue any more."""
        self._streams.pop(held.dialect.session, None)


@dataclass(frozen=True, slots=True)
class Claim:
    """A request to continue a stream: its session ID, the name of the client's key, and the shared parameters."""

    session: str
    key: str | None
    query: Query

    @classmethod
    def of(cls, client: Client, session: str, query: Query) -> Claim:
        """Return the claim of a client."""
        return cls(session, client.key.name if client.key else None, query)


class HeldStream(Socket):
    """A stream's socket, over any number of connections. Without one, it keeps what the stream sends."""

    stream: LiveStream

    def __init__(self, dialect: ResumableDialect, client: Client, query: Query, streams: HeldStreams) -> None:
        self.dialect, self.client, self.query = dialect, client, query
        self._streams = streams
        self._leg: _Leg | None = None
        self._log: deque[Message] = deque(maxlen=KEPT_MESSAGES)
        self._sent = 0  # messages so far, of those that are kept
        self._paused = self._over = False
        self._ending: Close | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._client_code, self._sent_reason = LOST, ""

    @property
    def waits(self) -> bool:
        """Whether it has a slot and no connection."""
        return self._leg is None and not self._over

    def has(self, received: int) -> bool:
        """Whether it has all messages after the first `received` ones."""
        return self._sent - len(self._log) <= received <= self._sent

    def attach(self, socket: Socket, received: int | None = None) -> Listener:
        """Continue on a connection, whose client has `received` messages; None for the first connection."""
        previous, self._leg = self._leg, _Leg(self, socket, received)
        if self._timer is not None:
            self._timer.cancel()
        if previous is not None:  # the client has noticed the loss first
            previous.socket.abort()
        return self._leg

    def end(self) -> None:
        """End the stream, and its connection if it has one."""
        self._streams.forget(self)
        leg, self._leg = self._leg, None
        if leg is not None:
            leg.socket.abort()
        self._close(None)

    # ------------------------------------------------------------------------------------- what a connection calls

    def opened(self, leg: _Leg) -> None:
        if leg.received is None:
            self.stream.opened()
            return
        leg.socket.send(self.dialect.resumed())
        for message in list(self._log)[leg.received - self._sent + len(self._log) :]:
            leg.socket.send(message)
        if self._ending is not None:
            leg.socket.close(self._ending)
            return
        if self._paused:
            leg.socket.pause()
        self.stream.writable()

    def lost(self, leg: _Leg, code: int | None) -> None:
        """A connection has ended. `code`: the server's close code, if any."""
        if leg is not self._leg:
            return
        self._leg, self._client_code, self._sent_reason = None, leg.socket.client_code, leg.socket.sent_reason
        finished = code == CloseCode.NORMAL
        if code is None and self._client_code == LOST and self.dialect.position and self._streams.may_wait():
            if not self._over:
                logger.info("stream held", extra=self.client.log_fields)
            self.stream.writable()  # what the client was too slow for
            self._wait()
        elif finished:  # the client may have lost the connection before it got the last words
            self._close(code)
            self._wait()
        else:
            self._streams.forget(self)
            self._close(code)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._streams.seconds, self.end)

    def _close(self, code: int | None) -> None:
        if not self._over:
            self._over = True
            self.stream.closed(code)

    # --------------------------------------------------------------------------------------- what the stream calls

    @property
    def congested(self) -> bool:
        return self._leg is not None and self._leg.socket.congested

    @property
    def behind(self) -> bool:
        return self._leg is not None and self._leg.socket.behind

    @property
    def gone(self) -> bool:
        return self._leg is not None and self._leg.socket.gone

    @property
    def client_code(self) -> int:
        return self._client_code

    @property
    def sent_reason(self) -> str:
        return self._sent_reason

    def send(self, message: Message) -> None:
        if self.dialect.is_kept(message):
            self._log.append(message)
            self._sent += 1
        if self._leg is not None:
            self._leg.socket.send(message)

    def ping(self) -> None:
        if self._leg is not None:
            self._leg.socket.ping()

    def pause(self) -> None:
        self._paused = True
        if self._leg is not None:
            self._leg.socket.pause()

    def resume(self) -> None:
        self._paused = False
        if self._leg is not None:
            self._leg.socket.resume()

    def close(self, close: Close) -> None:
        self._ending = close
        if self._leg is not None:
            self._leg.socket.close(close)
            return
        if close.code != CloseCode.NORMAL:
            self._streams.forget(self)
        self._close(int(close.code))

    def cut_off_later(self) -> None:
        if self._leg is not None:
            self._leg.socket.cut_off_later()

    def abort(self) -> None:
        if self._leg is not None:
            self._leg.socket.abort()


class _Leg(Listener):
    """One connection of a stream. `received`: the messages that its client has; None for the first connection."""

    def __init__(self, held: HeldStream, socket: Socket, received: int | None) -> None:
        self._held, self.socket, self.received = held, socket, received

    @property
    def headers(self) -> Mapping[str, str]:
        return self._held.stream.headers

    @property
    def long_text(self) -> bool:
        return self._held.stream.long_text

    def opened(self) -> None:
        self._held.opened(self)

    def receive(self, message: Message) -> None:
        self._held.stream.receive(message)

    def writable(self) -> None:
        self._held.stream.writable()

    def closed(self, code: int | None) -> None:
        self._held.lost(self, code)


def _shared(query: Query) -> Query:
    """Return the parameters that all connections of a stream share."""
    return sorted((name, value) for name, value in query if name not in (*CONNECTION_PARAMETERS, KEY_PARAMETER))
