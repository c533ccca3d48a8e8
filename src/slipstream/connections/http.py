"""HTTP connections of uvicorn with a deadline for each phase of a request, and limits on its head."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeAlias

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from slipstream.connections.access import ID_HEADER
from slipstream.connections.limits import Limits
from slipstream.connections.paced import CLOSE_SECONDS

WRITE_SECONDS = 30.0
"""How long a client may leave a response unread."""
MAX_HEADERS = 100
MAX_LINE_BYTES = 8000
"""Of a header, and of the request target; the websockets library accepts 128 headers of 8192 bytes."""


class HttpConnection(H11Protocol):
    """uvicorn's HTTP connection, with a deadline for each phase of a request, and limits on its head.

    Args:
        config, state: As uvicorn's own.
        app_state: As uvicorn's own.
        limits: The deadlines and sizes.
        new_websocket: Makes the protocol of a connection that is upgraded, from its ASGI scope.
        refused: Called with the status, the reason, the address and the ID for a request that no application sees.
        lost: Called when the connection is over, unless a WebSocket has taken it over.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        app_state: dict[str, Any],
        *,
        limits: Limits,
        new_websocket: NewWebSocket,
        refused: Callable[[int, str, str, str], None],
        lost: Callable[[], None],
    ) -> None:
        super().__init__(config, state, app_state)
        self._limits, self._new_websocket, self._refused, self._lost = limits, new_websocket, refused, lost
        self._phase = ""
        self._since = 0.0
        self._received = 0

    def serve_only(self, app: Any) -> None:
        """Answer with another ASGI application, and accept no WebSockets."""
        self.app, self.ws_protocol_class = app, None

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost()

    def on_response_complete(self) -> None:
        self._phase = ""  # the next request has its own deadline
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close the connection: immediately if the request is incomplete, else after the response."""
        if self._waits_for() == "body":
            self.transport.abort()
        else:
            super().shutdown()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Pass the connection to a WebSocket, and then the request: the WebSocket closes it if that fails."""
        if not head_fits(self.scope, self._limits.header_bytes):
            self._end(431, "request headers too large")
            return
        self.connections.discard(self)
        socket = self._new_websocket(self.scope | {"type": "websocket", "id": new_id()}, self._lost)
        self.transport.set_protocol(socket)
        socket.connection_made(self.transport)
        head = [event.method, b" ", event.target, b" HTTP/1.1\r\n"]
        head += [part for name, value in self.headers for part in (name, b": ", value, b"\r\n")]
        socket.data_received(b"".join([*head, b"\r\n"]))

    def send_400_response(self, msg: str) -> None:
        self._end(400, msg)

    def sweep(self, now: float) -> None:
        """Close the connection if its client has kept the server waiting for too long."""
        phase = self._waits_for()
        if phase != self._phase:
            self._phase, self._since, self._received = phase, now, 0
        elif phase:
            allowed = {
                "head": self._limits.header_seconds,
                "body": self._limits.body_seconds + self._received / self._limits.body_bytes_per_second,
                "reader": WRITE_SECONDS,
                "end": CLOSE_SECONDS,
            }[phase]
            if now - self._since > allowed:
                self._give_up()

    def _waits_for(self) -> str:
        """Return what the server waits for: `head` or `body` of a request, its `reader`, the `end`, or nothing."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing() or (answered and self.conn.their_state is h11.SEND_BODY):
            return "end"
        if answered:
            return "head"
        if self.flow.write_paused and self.conn.their_state is not h11.SEND_BODY:  # it may send everything, then read
            return "reader"
        return "body" if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused else ""

    def _give_up(self) -> None:
        if self._phase in ("reader", "end"):
            self.transport.abort()
            return
        begun = bool(self.conn.trailing_data[0]) if self._phase == "head" else not self.cycle.response_started
        if begun:
            self._end(408, "the request is too slow")
        else:
            self.transport.close()

    def _end(self, status: int, reason: str) -> None:
        """Answer a request that no application sees, and close the connection."""
        id = new_id()
        self._refused(status, reason, self.client[0] if self.client else "", id)
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "connection: close",
            "content-type: text/plain; charset=utf-8",
            f"content-length: {len(reason.encode())}",
            f"{ID_HEADER}: {id}",
        ]
        self.transport.write("\r\n".join([*lines, "", reason]).encode())
        self.transport.close()


NewWebSocket: TypeAlias = Callable[[dict[str, Any], Callable[[], None]], asyncio.Protocol]


def new_id() -> str:
    """Make the ID of a request."""
    return secrets.token_hex(8)


def head_fits(scope: Any, limit: int) -> bool:
    """Return whether a request's target and headers have at most `limit` bytes, and are few and short enough."""
    lines = [len(scope["raw_path"]) + len(scope["query_string"])]
    lines += [len(name) + len(value) for name, value in scope["headers"]]
    return sum(lines) <= limit and max(lines) <= MAX_LINE_BYTES and len(lines) - 1 <= MAX_HEADERS
