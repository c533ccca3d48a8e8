"""WebSockets on uvicorn's connections, without ASGI: a message passes no task, queue or dictionary on its way.

The websockets library implements the protocol (RFC 6455); this module connects it to the transport and to one listener.
"""

from __future__ import annotations

import asyncio
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

from starlette.requests import HTTPConnection
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from slipstream.server.access import ID_HEADER, SUBPROTOCOLS, Refused
from slipstream.server.connections.fairness import TURN_SECONDS, RoundRobin
from slipstream.server.connections.frames import FrameCutter, FrameHead, FramePart
from slipstream.server.limits import Limits, Pace
from slipstream.server.protocol import Close, CloseCode, Message

DIRECT_SHARE = 0.02
"""Share of the event loop's time that a connection may take directly when its data arrive; beyond it, it takes turns. A
stream in real time needs a tenth of that."""
PACE_SECONDS = 0.02
"""Least time that a client which is too fast waits, so that it does not need a timer per frame."""
CLOSE_SECONDS = 5.0
"""How long a client may take to read the last messages and answer the close, before the connection is aborted."""


class Listener(Protocol):
    """Receives the events of a WebSocket, in the event loop."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response to the upgrade request."""
        ...

    @property
    def long_text(self) -> bool:
        """Whether text messages may be as long as binary ones."""
        ...

    def opened(self) -> None:
        """The connection is open."""
        ...

    def receive(self, message: Message) -> None:
        """A message came. Not called while the socket is paused."""
        ...

    def writable(self) -> None:
        """The socket is no longer congested."""
        ...

    def closed(self, code: int | None) -> None:
        """The connection has ended. `code`: the server's close code; None if the client or the network ended it."""
        ...


Accept: TypeAlias = Callable[[HTTPConnection, "WebSocket"], Listener]
"""Makes the listener of a new connection, or raises `Refused`."""


class WebSocket(asyncio.Protocol):
    """One connection, which uvicorn hands over at its upgrade request.

    It counts bytes and frames as they arrive, and parses frames one at a time, as far as the limits and the other
    connections allow. Until then it reads no more, so that the client waits.

    Args:
        accept: Makes the listener.
        limits: The limits of the connection.
        turns: Schedules connections that have more work than fits in one turn.
        scope: The upgrade request as ASGI has it, with the request's ID as `id`.
        connections: The connections that uvicorn waits for before it stops; it calls `shutdown` on each.
        lost: Called when the connection is over.
    """

    def __init__(
        self,
        accept: Accept,
        limits: Limits,
        turns: RoundRobin,
        scope: dict[str, Any],
        connections: set[Any],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._accept = accept
        self._limits = limits
        self._turns = turns
        self._scope = scope
        self._connections = connections
        self._lost = lost
        self._protocol = ServerProtocol(select_subprotocol=_select_subprotocol, max_size=limits.message_bytes)
        self._transport: asyncio.Transport
        self._listener: Listener | None = None
        self._frames = FrameCutter()
        self._fragments: list[bytes] = []
        self._fragments_are_text = False
        self._pong: list[bytes] = []
        now = time.monotonic()
        self._byte_pace, self._frame_pace = Pace(limits.bytes_per_second, now), Pace(limits.messages_per_second, now)
        self._direct_pace, self._direct_from = Pace(DIRECT_SHARE, now, burst=DIRECT_SHARE), now
        self._paused = self._reading_paused = False
        self._pace_timer: asyncio.TimerHandle | None = None
        self._last_call: asyncio.TimerHandle | None = None
        self.congested = False
        """Whether the client reads too slowly, so that messages would accumulate here."""

    # --------------------------------------------------------------------------------------- what the listener calls

    def send(self, message: Message) -> None:
        """Send a message. Does nothing after the end."""
        if self._protocol.state is not State.OPEN:
            return
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._write()

    def ping(self) -> None:
        """Send a ping, so that proxies keep the connection open."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._write()

    def close(self, close: Close) -> None:
        """Send the close, and give the client time to answer it."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(int(close.code), close.reason)
            self._write()
        self._end(int(close.code))

    def cut_off_later(self) -> None:
        """Abort the connection after `CLOSE_SECONDS`, also with unsent messages."""
        if self._last_call is None:
            self._last_call = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    def pause(self) -> None:
        """Pass no more messages to the listener, so that the client waits."""
        self._paused = True

    def resume(self) -> None:
        """Continue reading. Does nothing if the socket is not paused."""
        if self._paused:
            self._paused = False
            self._turns.add(self)

    @property
    def behind(self) -> bool:
        """Whether the server has data of the client that it has not read yet."""
        return self._held or self in self._turns

    @property
    def gone(self) -> bool:
        """Whether the client has closed the connection, which is not noticed otherwise while the socket is not read.

        Only Linux reports this before all data of the client are read.
        """
        if sys.platform != "linux" or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def abort(self) -> None:
        """Close the connection immediately."""
        self._transport.abort()

    @property
    def client_code(self) -> int:
        """The close code that the client sent, or 1006 if it sent none (RFC 6455, section 7.1.5)."""
        received = self._protocol.close_rcvd
        return received.code if received else int(StandardCode.ABNORMAL_CLOSURE)

    @property
    def sent_reason(self) -> str:
        """The reason in the close frame that the server sent."""
        sent = self._protocol.close_sent
        return sent.reason if sent else ""

    # ------------------------------------------------------------------------------ what uvicorn and its transport call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # not a subclass in uvloop
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._protocol.state is State.CONNECTING:
            self._feed(data)
            return
        now = time.monotonic()
        self._keep_pace(self._byte_pace.delay(now, len(data)))
        if not self._protocol.eof_sent:  # data after a close are not parsed
            self._frames.push(data)
        if self not in self._turns and (now < self._direct_from or self._work_directly(now)):
            self._turns.add(self)
        if (self._held or self in self._turns) and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def work(self, until: float) -> bool:
        """Parse frames, as far as the limits and the listener allow."""
        while not self._held and not self._transport.is_closing():
            frame = None if self._protocol.eof_sent else self._frames.next()
            if frame is None:
                if self._reading_paused:
                    self._reading_paused = False
                    self._transport.resume_reading()
                break
            self._take(frame)
            if time.perf_counter() > until:
                self._send_pong()
                return True
        self._send_pong()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._lost()
        self._turns.remove(self)
        for timer in (self._last_call, self._pace_timer):
            if timer is not None:
                timer.cancel()
        self._end(None)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self._listener is not None:
            self._listener.writable()

    def shutdown(self) -> None:
        """Close for uvicorn's stop. A connection that is closing already keeps its `CLOSE_SECONDS`."""
        self.close(Close(CloseCode.RESTARTING))

    # ------------------------------------------------------------------------------------------------------ in detail

    def _work_directly(self, now: float) -> bool:
        """Take a turn now. Returns whether there is more to do."""
        began = time.perf_counter()
        more = self.work(began + TURN_SECONDS)
        self._direct_from = now + self._direct_pace.delay(now, time.perf_counter() - began)
        return more

    @property
    def _held(self) -> bool:
        """Whether frames wait for the listener, or for the pace."""
        return self._paused or self._pace_timer is not None

    def _keep_pace(self, delay: float) -> None:
        """Stop parsing for `delay` seconds."""
        if delay > 0 and self._pace_timer is None:
            self._pace_timer = asyncio.get_running_loop().call_later(max(delay, PACE_SECONDS), self._go_on)

    def _go_on(self) -> None:
        self._pace_timer = None
        self._turns.add(self)

    def _take(self, frame: FramePart) -> None:
        """Count a frame, or a part of one, and parse it."""
        if frame.head is not None:
            self._keep_pace(self._frame_pace.delay(time.monotonic()))
            if self._protocol.state is State.OPEN and (close := self._refusal(frame.head)) is not None:
                self._protocol.fail(*close)
        pings = frame.head is not None and frame.head.opcode == Opcode.PING and self._protocol.state is State.OPEN
        self._feed(frame.data, pings)

    def _refusal(self, head: FrameHead) -> tuple[StandardCode, str] | None:
        """Return the close code and reason of a frame that is refused. The protocol checks only its size."""
        if head.opcode >= Opcode.CLOSE:
            return None
        if head.opcode != Opcode.CONT:
            self._fragments_are_text = head.opcode == Opcode.TEXT
        most = self._limits.message_fragments
        if len(self._fragments) >= most:
            return StandardCode.POLICY_VIOLATION, f"a message has at most {most} fragments"
        if head.opcode == Opcode.CONT and not head.fin and not head.length:
            return StandardCode.POLICY_VIOLATION, "an empty fragment in the middle of a message"
        size = head.length + (self._protocol.current_size or 0)
        is_short = self._fragments_are_text and self._listener is not None and not self._listener.long_text
        if is_short and size > self._limits.text_bytes:
            return StandardCode.MESSAGE_TOO_BIG, f"a text message has at most {self._limits.text_bytes} bytes"
        return None

    def _feed(self, data: bytes, ping: bool = False) -> None:
        """Parse bytes, which end at most one frame, and process it."""
        self._protocol.receive_data(data)
        if ping and self._protocol.state is State.OPEN:
            # Only the latest of the pings that arrive together is answered (RFC 6455, section 5.5.3).
            self._pong = self._protocol.data_to_send() or self._pong
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                self._open(event)
            elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._fragments.append(bytes(event.data))
                if event.fin:
                    self._complete()
        self._write()
        if self._protocol.state not in (State.OPEN, State.CONNECTING):
            close = None if self._protocol.close_rcvd else self._protocol.close_sent
            self._end(close.code if close else None)

    def _send_pong(self) -> None:
        pong, self._pong = self._pong, []
        if pong and not self.congested and self._protocol.state is State.OPEN:
            self._transport.write(b"".join(pong))

    def _complete(self) -> None:
        data = self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments)
        self._fragments.clear()
        try:
            message = data.decode() if self._fragments_are_text else data
        except UnicodeDecodeError as error:
            self._protocol.fail(StandardCode.INVALID_DATA, f"{error.reason} at position {error.start}")
        else:
            if self._listener is not None:  # None: the client still sends after the end
                self._listener.receive(message)

    def _open(self, request: Request) -> None:
        response = self._protocol.accept(request)
        if response.status_code == 101:
            try:
                self._listener = self._accept(HTTPConnection(self._scope), self)
            except Refused as refused:
                response = self._protocol.reject(refused.status, refused.reason)
                response.headers.update(refused.headers)
        response.headers[ID_HEADER] = self._scope["id"]
        if self._listener is not None:
            response.headers.update(self._listener.headers)
        self._protocol.send_response(response)
        self._write()
        if self._listener is not None:
            self._listener.opened()

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                # Not closed: data that the client still sends would cause a reset, and it would lose what it has not
                # read yet.
                self._transport.write_eof()
            else:
                self._transport.close()
        if self._protocol.close_expected():
            self.cut_off_later()

    def _end(self, code: int | None) -> None:
        listener, self._listener = self._listener, None
        if self._paused and not self._transport.is_closing():
            self.resume()  # the client's answer to the close follows its unread data
        if listener is not None:
            listener.closed(code)


def _select_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Return the protocol that the server confirms; browsers send a key as another one, which is not repeated."""
    return next((name for name in offered if name in SUBPROTOCOLS), None)
