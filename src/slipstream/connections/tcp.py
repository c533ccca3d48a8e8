"""TCP connections of dialects that are not WebSockets: bytes in, bytes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from slipstream.connections import paced
from slipstream.connections.access import Refused
from slipstream.connections.fairness import RoundRobin
from slipstream.connections.limits import Limits
from slipstream.connections.paced import LOST, PacedConnection
from slipstream.dialects.protocol import Close, CloseCode, Message

PIECE_BYTES = 4096
"""How many bytes the listener gets at a time, so that it parses for at most about 0.5 ms."""


class Listener(paced.Listener, Protocol):
    """Receives the events of a TCP connection, in the event loop."""

    def end(self, close: Close) -> None:
        """The client sends no more: finish, then close."""
        ...


Accept: TypeAlias = Callable[["TcpConnection", str], Listener]
"""Makes the listener of a new connection, of which it gets the address, or raises `Refused`."""


class TcpConnection(PacedConnection):
    """One TCP connection. When the client closes its side, the listener finishes its stream.

    Args:
        accept: Makes the listener.
        limits: The limits of the connection.
        turns: Schedules connections that have more work than fits in one turn.
        connections: The connections that uvicorn waits for before it stops; it calls `shutdown` on each.
        lost: Called when the connection is over.
    """

    _listener: Listener | None
    _gone_events = 0  # a client that sends no more may still read

    def __init__(
        self,
        accept: Accept,
        limits: Limits,
        turns: RoundRobin,
        connections: set[Any],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(limits, turns, connections, lost)
        self._accept = accept
        self._unread = bytearray()
        self._input_ended = False
        self._sent_close: Close | None = None

    # --------------------------------------------------------------------------------------- what the listener calls

    def send(self, message: Message) -> None:
        """Send bytes. Does nothing after the end."""
        if self._sent_close is None:
            self._transport.write(message.encode() if isinstance(message, str) else message)

    def become(self, listener: Listener) -> None:
        """Let another listener continue. The present one gets no `closed`."""
        self._listener = listener
        listener.opened()

    def ping(self) -> None:
        """Do nothing: TCP has no ping. The kernel finds dead peers."""

    def close(self, close: Close) -> None:
        """Send the end, and give the client time to read the last bytes."""
        if self._sent_close is None:
            self._sent_close = close
            if self._input_ended:
                self._transport.close()
            else:
                # Not closed: data that the client still sends would cause a reset, and it would lose what it has not
                # read yet.
                self._transport.write_eof()
            self.cut_off_later()
        self._end(int(close.code))

    @property
    def client_code(self) -> int:
        """1000 if the client ended the connection in order, else 1006: TCP has no close codes."""
        return CloseCode.NORMAL if self._input_ended else LOST

    @property
    def sent_reason(self) -> str:
        """The reason for which the server closed the connection."""
        return self._sent_close.reason if self._sent_close else ""

    # ------------------------------------------------------------------------------------- what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        try:
            self._listener = self._accept(self, transport.get_extra_info("peername")[0])
        except Refused as refused:
            self.close(Close(CloseCode.TRY_LATER, refused.reason))
        else:
            self._listener.opened()

    def eof_received(self) -> bool:
        """Finish once all bytes are processed. Returns whether the connection stays open to write."""
        self._input_ended = True
        if self._listener is None:
            return False
        self._turns.add(self)
        return True

    # ------------------------------------------------------------------------------------------------------ in detail

    def _keep(self, data: bytes) -> None:
        if self._listener is not None:  # data after a close are not parsed
            self._unread += data

    def _process_part(self) -> bool:
        if self._listener is None:
            self._unread.clear()
            return False
        if not self._unread:
            if self._input_ended:
                self._listener.end(Close(CloseCode.NORMAL))
            return False
        piece = bytes(self._unread[:PIECE_BYTES])
        del self._unread[:PIECE_BYTES]
        self._listener.receive(piece)
        return True
