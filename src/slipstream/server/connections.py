"""TCP connections within limits: how many, from whom, and how long a client may keep the server waiting."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from slipstream.server.limits import Limits
from slipstream.server.websocket import CLOSE_SECONDS

RESERVED_DESCRIPTORS = 128
"""File descriptors that connections leave free: for files, spooled uploads, and accepting sockets to refuse them."""
HANDSHAKE_SECONDS = 10.0
"""How long a TLS handshake may take."""
WRITE_SECONDS = 30.0
"""How long a client may leave a response unread."""
MAX_HEADERS = 100
MAX_LINE_BYTES = 8000
"""Of a header, and of the request target; the websockets library accepts 128 headers of 8192 bytes."""

logger = logging.getLogger(__name__)


class Gate:
    """Counts the open connections, and refuses those beyond a total or a limit per address.

    IPv6 addresses count by their /64 network, which is what one customer gets.
    """

    def __init__(self, total: int, per_address: int) -> None:
        self.total, self._per_address = total, per_address
        self._open: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str) -> bool:
        """Count a connection; False when it is over a limit."""
        network = _network(address)
        if self._count >= self.total or self._open[network] >= self._per_address:
            return False
        self._open[network] += 1
        self._count += 1
        return True

    def leave(self, address: str) -> None:
        """Count the end of a connection that entered."""
        network = _network(address)
        self._open[network] -= 1
        self._count -= 1
        if not self._open[network]:
            del self._open[network]


class Acceptor:
    """Accepts the connections of one listening socket, as far as the gate has room.

    `close` and `wait_closed` make it one of uvicorn's `servers`. uvloop's own server would count a connection only
    after it has a transport, and after its TLS handshake: too late for a limit on file descriptors.
    """

    def __init__(
        self,
        listener: socket.socket,
        gate: Gate,
        new_connection: Callable[[Callable[[], None]], asyncio.Protocol],
        refused: Callable[[str], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener, self._gate, self._tls = listener, gate, tls
        self._new_connection, self._refused = new_connection, refused
        self._connecting: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections, and drop those whose TLS handshake is not over."""
        for task in (self._accepting, *self._connecting):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self._accepting, *self._connecting, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno in _SHORTAGES:
                    logger.warning("cannot accept connections", extra={"error": str(error)})
                    await asyncio.sleep(0.1)
                continue
            if self._gate.enter(peer[0]):
                task = loop.create_task(self._connect(connection, peer[0]))
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)
            else:
                self._refused(peer[0])
                if self._tls is None:
                    with suppress(OSError):
                        connection.send(_TOO_MANY)
                connection.close()

    async def _connect(self, connection: socket.socket, address: str) -> None:
        left = _once(lambda: self._gate.leave(address))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._new_connection(left),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls else None,
            )
        except BaseException as error:
            connection.close()
            left()
            if not isinstance(error, OSError):  # TLS errors and timeouts are OSErrors
                raise


class HttpConnection(H11Protocol):
    """uvicorn's HTTP connection, with a deadline for each phase of a request, and limits on its head.

    Args:
        config, state: As uvicorn's own.
        app_state: As uvicorn's own.
        limits: The deadlines and sizes.
        new_websocket: Makes the protocol of a connection that is upgraded, from its ASGI scope.
        refused: Called with the status, the reason and the address for a request that no application sees.
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
        refused: Callable[[int, str, str], None],
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
        self._phase = ""  # the next request has its own time
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close the connection, after the response unless the client still owes a part of its request."""
        if self._waits_for() == "body":
            self.transport.abort()
        else:
            super().shutdown()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Give the connection to a WebSocket, before that sees the request: if it fails, it is closed as its own."""
        if not head_fits(self.scope, self._limits.header_bytes):
            self._refused(431, "request headers too large", self.client[0] if self.client else "")
            self.transport.write(_TOO_LARGE)
            self.transport.close()
            return
        self.connections.discard(self)
        socket = self._new_websocket(self.scope | {"type": "websocket", "id": new_id()}, self._lost)
        self.transport.set_protocol(socket)
        socket.connection_made(self.transport)
        head = [event.method, b" ", event.target, b" HTTP/1.1\r\n"]
        head += [part for name, value in self.headers for part in (name, b": ", value, b"\r\n")]
        socket.data_received(b"".join([*head, b"\r\n"]))

    def send_400_response(self, msg: str) -> None:
        self._refused(400, msg, self.client[0] if self.client else "")
        super().send_400_response(msg)

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
        """What the client still owes: the head or the body of a request, reading the response, or the end."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing() or (answered and self.conn.their_state is h11.SEND_BODY):
            return "end"
        if answered:
            return "head"
        if self.flow.write_paused:
            return "reader"
        return "body" if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused else ""

    def _give_up(self) -> None:
        if self._phase in ("reader", "end"):
            self.transport.abort()
            return
        begun = bool(self.conn.trailing_data[0]) if self._phase == "head" else not self.cycle.response_started
        if begun:
            self.transport.write(_TOO_SLOW)
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


def connections_that_fit(wanted: int) -> int:
    """Raise this process's limit on file descriptors for `wanted` connections. Returns how many fit."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no file descriptors
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    fit = max(1, soft - RESERVED_DESCRIPTORS)
    logger.warning("the limit on file descriptors allows fewer connections", extra={"wanted": wanted, "fit": fit})
    return fit


def _once(call: Callable[[], None]) -> Callable[[], None]:
    calls = [call]
    return lambda: calls.pop()() if calls else None


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 20\r\n\r\ntoo many connections"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
