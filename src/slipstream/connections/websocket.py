"""WebSockets on uvicorn's connections, without ASGI: a message passes no task, queue or dictionary on its way.

The websockets library implements the protocol (RFC 6455); this module connects it to the transport and to one listener.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from starlette.requests import HTTPConnection
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from slipstream.connections import paced
from slipstream.connections.access import ID_HEADER, SUBPROTOCOLS, Refused
from slipstream.connections.fairness import RoundRobin
from slipstream.connections.frames import FrameCutter, FrameHead, FramePart, message_frame
from slipstream.connections.limits import Limits, Pace
from slipstream.connections.paced import LOST, PacedConnection
from slipstream.dialects.protocol import Close, Message


class Listener(paced.Listener, Protocol):
    """Receives the events of a WebSocket, in the event loop."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response to the upgrade request."""
        ...

    @property
    def long_text(self) -> bool:
        """Whether text messages may be as long as binary ones."""
        ...


Accept: TypeAlias = Callable[[HTTPConnection, Any], Listener]
"""Makes the listener of a new connection, or raises `Refused`."""


class WebSocket(PacedConnection):
    """One connection, which uvicorn hands over at its upgrade request.

    It counts bytes and frames as they arrive, and parses frames one at a time, as far as the limits and the other
    connections allow. Until then it reads no more, so that the client waits.

    Args:
        accept: Makes the listener.
        limits: The limits of the connection.
        turns: Schedules connections that have more work than fits in one turn.
        scope: The upgrade request as an ASGI scope, with the request's ID as `id`.
        connections: The connections that uvicorn waits for before it stops; it calls `shutdown` on each.
        lost: Called when the connection is over.
    """

    _listener: Listener | None

    def __init__(
        self,
        accept: Accept,
        limits: Limits,
        turns: RoundRobin,
        scope: dict[str, Any],
        connections: set[Any],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(limits, turns, connections, lost)
        self._accept = accept
        self._scope = scope
        self._protocol = ServerProtocol(select_subprotocol=_select_subprotocol, max_size=limits.message_bytes)
        self._frames = FrameCutter()
        self._fragments: list[bytes] = []
        self._fragments_are_text = False
        self._pong: list[bytes] = []
        self._frame_pace = Pace(limits.messages_per_second, time.monotonic())

    # --------------------------------------------------------------------------------------- what the listener calls

    def send(self, message: Message) -> None:
        """Send a message. Does nothing after the end."""
        if self._protocol.state is State.OPEN:
            # Nothing of the protocol waits to be written, and it keeps no state of whole messages.
            self._transport.write(message_frame(message))

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

    @property
    def client_code(self) -> int:
        """The close code that the client sent, or 1006 if it sent none (RFC 6455, section 7.1.5)."""
        received = self._protocol.close_rcvd
        return received.code if received else LOST

    @property
    def sent_reason(self) -> str:
        """The reason in the close frame that the server sent."""
        sent = self._protocol.close_sent
        return sent.reason if sent else ""

    # ------------------------------------------------------------------------------ what uvicorn and its transport call

    def data_received(self, data: bytes) -> None:
        if self._protocol.state is State.CONNECTING:
            self._feed(data)
        else:
            super().data_received(data)

    def work(self, until: float) -> bool:
        """Parse frames, as far as the limits and the listener allow."""
        more = super().work(until)
        self._send_pong()
        return more

    # ------------------------------------------------------------------------------------------------------ in detail

    def _keep(self, data: bytes) -> None:
        if not self._protocol.eof_sent:  # data after a close are not parsed
            self._frames.push(data)

    def _process_part(self) -> bool:
        frame = None if self._protocol.eof_sent else self._frames.next()
        if frame is not None:
            self._take(frame)
        return frame is not None

    def _take(self, frame: FramePart) -> None:
        """Count a frame, or a part of one, and parse it."""
        head, ping = frame.head, False
        if head is not None:
            self._keep_pace(self._frame_pace.delay(time.monotonic()))
        if head is not None and self._protocol.state is State.OPEN:
            if (close := self._refusal(head)) is not None:
                self._protocol.fail(*close)
            elif (
                self._protocol.current_size is None
                and head.length <= self._limits.message_bytes
                and (message := frame.message) is not None
            ):
                # The protocol would only pass it on, which takes it twice as long.
                self._complete(message)
                if self._protocol.state is not State.OPEN:
                    self._follow()
                return
            ping = head.opcode == Opcode.PING and self._protocol.state is State.OPEN
        self._feed(frame.data, ping)

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
                    data = self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments)
                    self._fragments.clear()
                    self._complete(data)
        self._follow()

    def _follow(self) -> None:
        """Send what the protocol answers, and end with it."""
        self._write()
        if self._protocol.state not in (State.OPEN, State.CONNECTING):
            close = None if self._protocol.close_rcvd else self._protocol.close_sent
            self._end(close.code if close else None)

    def _send_pong(self) -> None:
        pong, self._pong = self._pong, []
        if pong and not self.congested and self._protocol.state is State.OPEN:
            self._transport.write(b"".join(pong))

    def _complete(self, data: bytes) -> None:
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


def _select_subprotocol(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Return the protocol that the server confirms; browsers send a key as another one, which is not repeated."""
    return next((name for name in offered if name in SUBPROTOCOLS), None)
