"""WebSockets on uvicorn's connections, without its ASGI: no task, queue or dictionary stands between wire and stream.

The protocol itself (RFC 6455) is the websockets library's; here it meets the transport and one listener.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

from starlette.requests import HTTPConnection
from websockets.frames import CloseCode as StandardCode
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from slipstream.server.access import ID_HEADER, Refused
from slipstream.server.protocol import Close, CloseCode, Message

CLOSE_SECONDS = 5.0
"""How long a client has to read the last messages and answer the close, before the connection is cut."""


class Listener(Protocol):
    """Whom a WebSocket tells what happens. All is called in the event loop."""

    def opened(self) -> None:
        """The client may be spoken to."""
        ...

    def receive(self, message: Message) -> None:
        """A message came. Not called while the socket is paused."""
        ...

    def writable(self) -> None:
        """A client that was slow reads again: the socket is no longer congested."""
        ...

    def closed(self, code: int | None) -> None:
        """Nothing follows. `code`: what the server closed with, None where the client or the network ended it."""
        ...


Accept: TypeAlias = Callable[[HTTPConnection, "WebSocket"], Listener]
"""Gives the listener of a new connection, or raises `Refused`."""


class WebSocket(asyncio.Protocol):
    """One connection, which uvicorn hands over at its upgrade request.

    Args:
        accept: Makes the listener.
        max_size: Of a message, in bytes.
        scope: The upgrade request as ASGI has it, with the request's ID as `id`.
        connections: Where uvicorn keeps those it must see closed before it stops; it calls `shutdown` on each.
        lost: Called when the connection is over.
    """

    def __init__(
        self,
        accept: Accept,
        max_size: int,
        scope: dict[str, Any],
        connections: set[Any],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._accept = accept
        self._scope = scope
        self._connections = connections
        self._lost = lost
        self._protocol = ServerProtocol(max_size=max_size)
        self._transport: asyncio.Transport
        self._listener: Listener | None = None
        self._fragments: list[bytes] = []
        self._fragments_are_text = False
        self._messages: deque[Message] = deque()
        self._paused = False
        self._last_call: asyncio.TimerHandle | None = None
        self.congested = False
        """Whether the client reads too slowly: what is sent now would pile up here."""

    # --------------------------------------------------------------------------------------- what the listener calls

    def send(self, message: Message) -> None:
        """Send a message. Harmless after the end."""
        if self._protocol.state is not State.OPEN:
            return
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._write()

    def ping(self) -> None:
        """Show proxies that the connection is alive."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._write()

    def close(self, close: Close) -> None:
        """Send the end, and give the client time to answer it."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(int(close.code), close.reason)
            self._write()
        self._end(int(close.code))

    def cut_off_later(self) -> None:
        """Cut the connection after `CLOSE_SECONDS`, whatever it still owes."""
        if self._last_call is None:
            self._last_call = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    def pause(self) -> None:
        """Read no more, so that the client has to wait."""
        self._paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        self._hand_over()
        if not self._paused:
            self._transport.resume_reading()

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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            self._take(event)
        self._write()
        self._hand_over()
        if self._protocol.state is not State.OPEN:
            close = None if self._protocol.close_rcvd else self._protocol.close_sent
            self._end(close.code if close else None)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._lost()
        if self._last_call is not None:
            self._last_call.cancel()
        self._end(None)

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self._listener is not None:
            self._listener.writable()

    def shutdown(self) -> None:
        """uvicorn stops. A connection that is closing already has `CLOSE_SECONDS` to see what it was sent last."""
        self.close(Close(CloseCode.RESTARTING))

    # ------------------------------------------------------------------------------------------------------ in detail

    def _take(self, event: Request | Response | Frame) -> None:
        if isinstance(event, Request):
            self._open(event)
        elif isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if event.opcode is not Opcode.CONT:
                self._fragments_are_text = event.opcode is Opcode.TEXT
            self._fragments.append(bytes(event.data))
            if event.fin:
                self._complete()

    def _complete(self) -> None:
        data = self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments)
        self._fragments.clear()
        try:
            self._messages.append(data.decode() if self._fragments_are_text else data)
        except UnicodeDecodeError as error:
            self._protocol.fail(StandardCode.INVALID_DATA, f"{error.reason} at position {error.start}")

    def _open(self, request: Request) -> None:
        response = self._protocol.accept(request)
        if response.status_code == 101:
            try:
                self._listener = self._accept(HTTPConnection(self._scope), self)
            except Refused as refused:
                response = self._protocol.reject(refused.status, refused.reason)
                response.headers.update(refused.headers)
        response.headers[ID_HEADER] = self._scope["id"]
        self._protocol.send_response(response)
        self._write()
        if self._listener is not None:
            self._listener.opened()

    def _hand_over(self) -> None:
        while self._messages and self._listener is not None and not self._paused:
            self._listener.receive(self._messages.popleft())
        if self._listener is None:
            self._messages.clear()  # of a client that sends on after the end

    def _write(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                # Not closed: what the client is still sending would be answered by a reset, and it would lose
                # what it has not read yet.
                self._transport.write_eof()
            else:
                self._transport.close()
        if self._protocol.close_expected():
            self.cut_off_later()

    def _end(self, code: int | None) -> None:
        listener, self._listener = self._listener, None
        self._messages.clear()
        if self._paused and not self._transport.is_closing():
            self.resume()  # the client's answer to the close comes after what it was kept waiting with
        if listener is not None:
            listener.closed(code)
