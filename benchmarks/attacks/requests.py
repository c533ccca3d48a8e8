"""Attacks with HTTP requests and connections: malformed heads, half-finished requests, too many connections."""

from __future__ import annotations

import contextlib
import socket
import time

from benchmarks.attacks import Target, attack

MALFORMED = [
    ("[", ()),
    ("user@localhost", ()),
    ("localhost", ("Origin: http://[",)),
    ("localhost", ("Origin: http://localhost@evil.example",)),
    ("localhost", ("X-Long: " + "a" * 60_000,)),
    ("localhost", tuple(f"X-{number}: y" for number in range(2000))),
]


@attack
def malformed_headers(target: Target) -> None:
    """Requests whose Host, Origin or size is invalid, as uploads and as WebSockets, one after another."""
    while target.running:
        for host, headers in MALFORMED:
            with contextlib.suppress(OSError):
                target.request("POST", "/api/asr-streaming", *headers, host=host)
            with contextlib.suppress(OSError):
                target.request("GET", "/v1/stream", "Upgrade: websocket", *headers, host=host)


@attack
def slow_headers(target: Target) -> None:
    """500 connections whose request heads never end; closed ones are opened again."""
    _hold(target, b"GET / HTTP/1.1\r\nHost: loc", 500)


@attack
def slow_bodies(target: Target) -> None:
    """500 uploads that announce a megabyte and send two bytes; closed ones are opened again."""
    _hold(target, b"POST /api/asr-streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nab", 500)


@attack
def damaged_offers(target: Target) -> None:
    """WebRTC offers that are none: the server opens a stream for each before it reads the offer."""
    while target.running:
        for path in ("/v1/whip", "/v1/realtime/calls"):
            with contextlib.suppress(OSError):
                target.request("POST", path, "Content-Type: application/sdp", body=b"v=0\r\n" * 1000)


@attack
def too_many_connections(target: Target) -> None:
    """Connections without a byte, as many as the server accepts, and more every 10 ms."""
    _hold(target, b"", 5000)


def _hold(target: Target, begun: bytes, count: int) -> None:
    """Hold connections from a separate address, so that the limit per address is the attacker's alone."""
    held: list[socket.socket] = []
    try:
        while target.running:
            for connection in held[:]:
                with contextlib.suppress(BlockingIOError):
                    if not connection.recv(4096):
                        connection.close()
                        held.remove(connection)
            for _ in range(min(50, count - len(held))):
                connection = socket.create_connection(("127.0.0.1", target.port), 1, source_address=("127.0.0.2", 0))
                connection.setblocking(False)
                held.append(connection)
                connection.send(begun)
            time.sleep(0.01)
    finally:
        for connection in held:
            connection.close()
