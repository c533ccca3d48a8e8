"""Accept TCP connections within limits: how many in total, and how many from one address."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from slipstream.connections.tally import LocalTally, Tally

RESERVED_DESCRIPTORS = 128
"""File descriptors that connections leave free: for files, spooled uploads, and accepting sockets to refuse them."""

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 20\r\n\r\ntoo many connections"
"""The response to a connection beyond the limits of a listener for HTTP."""

logger = logging.getLogger(__name__)


class Gate:
    """Counts the open connections, and refuses those beyond a total or a limit per address.

    IPv6 addresses count by their /64 network, which is what one customer gets.

    Args:
        total: Connections of all processes that share the tally.
        per_address: Of them, from one address.
        fit: Connections of this process; None for `total`.
        tally: Counts them.
    """

    def __init__(self, total: int, per_address: int, fit: int | None = None, tally: Tally | None = None) -> None:
        self.total, self._per_address = total, per_address
        self._fit = total if fit is None else fit
        self._tally = tally or LocalTally()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str) -> bool:
        """Count a connection; False when it is over a limit."""
        if self._count >= self._fit:
            return False
        limits = [(_CONNECTIONS, self.total), (_network(address), self._per_address)]
        if self._tally.enter(limits) is not None:
            return False
        self._count += 1
        return True

    def leave(self, address: str) -> None:
        """Count the end of a connection that entered."""
        self._count -= 1
        self._tally.leave(_CONNECTIONS, _network(address))


class Acceptor:
    """Accepts the connections of one listening socket, within the limits of its gate.

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
        refusal: bytes = TOO_MANY,
        handshake_seconds: float | None = None,
    ) -> None:
        self._refusal, self._handshake_seconds = refusal, handshake_seconds
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
                        connection.send(self._refusal)
                connection.close()

    async def _connect(self, connection: socket.socket, address: str) -> None:
        left = _once(lambda: self._gate.leave(address))
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._new_connection(left),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_seconds if self._tls else None,
            )
        except BaseException as error:
            connection.close()
            left()
            if not isinstance(error, OSError):  # TLS errors and timeouts are OSErrors
                raise


def connections_that_fit(wanted: int) -> int:
    """Raise this process's limit on file descriptors for `wanted` connections. Returns how many fit."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are not file descriptors
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


_CONNECTIONS = "connections"
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
