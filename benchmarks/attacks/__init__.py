"""Attacks on a live server, by name.

An attack is one function in a module of this package:

    @attack
    def pings(target: Target) -> None:
        "Pings as fast as the socket takes them."
        target.flood(frame(b"", PING) * 1000)

It runs in a separate process until `target.running` is false. It may raise `OSError`: an attacker whose connection is
closed starts again, at most a hundred times per second. `python -m benchmarks.attacks NAME` measures it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Thread

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
CONTINUATION = 0


@dataclass(frozen=True, slots=True)
class Target:
    """The server under attack.

    Args:
        port: Of HTTP and the WebSockets.
        until: When the attack ends, in seconds of the monotonic clock.
        tcp_ports: Of the dialects on TCP, by their names.
    """

    port: int
    until: float
    tcp_ports: Mapping[str, int] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether the attack continues."""
        return time.monotonic() < self.until

    def connect(self, tcp: str = "") -> socket.socket:
        """Open a TCP connection whose calls give up when the attack ends. `tcp`: name of a dialect on TCP, if any."""
        port = self.tcp_ports[tcp] if tcp else self.port
        return socket.create_connection(("127.0.0.1", port), timeout=max(0.1, self.until - time.monotonic()))

    def send(self, data: bytes) -> socket.socket:
        """Open a TCP connection and send `data` on it."""
        connection = self.connect()
        try:
            connection.sendall(data)
        except BaseException:
            connection.close()
            raise
        return connection

    def request(self, method: str, path: str, *headers: str, body: bytes = b"", host: str = "localhost") -> bytes:
        """Send a whole HTTP request and return the whole answer."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        with self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body) as connection:
            answer = b""
            while data := connection.recv(1 << 16):
                answer += data
            return answer

    def websocket(self, path: str = "/api/asr-streaming", *headers: str) -> socket.socket:
        """Open a WebSocket; the caller writes its frames (`frame`) and reads what it likes."""
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *_UPGRADE, *headers, "", ""]
        with contextlib.ExitStack() as opened:
            connection = opened.enter_context(self.send("\r\n".join(lines).encode("latin-1")))
            answer = b""
            while b"\r\n\r\n" not in answer:
                if not (data := connection.recv(4096)):
                    raise ConnectionResetError("the server closed the connection in the handshake")
                answer += data
            opened.pop_all()
        return connection

    def flood(self, message: bytes, path: str = "/api/asr-streaming", connections: int = 1) -> None:
        """Send frames over and over as fast as the server takes them, on several WebSockets; answers are discarded."""
        with ThreadPoolExecutor(connections) as senders:
            for result in [senders.submit(self._flood, message, path) for _ in range(connections)]:
                result.result()

    def discard(self, connection: socket.socket) -> None:
        """Read and forget what the server sends, in a thread."""
        Thread(target=_discard, args=(connection,), daemon=True).start()

    def _flood(self, message: bytes, path: str) -> None:
        with self.websocket(path) as connection:
            self.discard(connection)
            while self.running:
                connection.sendall(message)


def _discard(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(1 << 20):
            pass


Attack = Callable[[Target], None]

ATTACKS: dict[str, Attack] = {}
"""All attacks, by the names of their functions."""


def attack(function: Attack) -> Attack:
    """Register a function as an attack."""
    ATTACKS[function.__name__] = function
    return function


def frame(payload: bytes, opcode: int = BINARY, fin: bool = True) -> bytes:
    """Build a client's frame (RFC 6455, section 5.2), masked with zeros, which leaves the payload as it is."""
    head, size = bytes([fin << 7 | opcode]), len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += b"\xfe" + struct.pack(">H", size)
    else:
        head += b"\xff" + struct.pack(">Q", size)
    return head + bytes(4) + payload


_UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
