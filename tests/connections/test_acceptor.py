"""Limits on connections and request heads, deadlines, and malformed requests."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from tests.fakes import ScriptRunner
from tests.server.harness import Running, get, metric_samples, serving, wait_for

from slipstream.connections import acceptor, http
from slipstream.connections.acceptor import Gate, connections_that_fit
from slipstream.connections.limits import Limits

UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@contextlib.contextmanager
def client(running: Running) -> Iterator[socket.socket]:
    host, _, port = running.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def answer(running: Running, request: str) -> bytes:
    """Send a request and return everything up to the end of the connection."""
    with client(running) as connection:
        connection.sendall(request.encode("latin-1"))
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65_536):
            received += data
    return received


def test_a_gate_counts_in_total_and_per_address() -> None:
    gate = Gate(total=4, per_address=2)
    assert [gate.enter("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert gate.enter("2001:db8::1")
    assert gate.enter("10.0.0.2")
    assert not gate.enter("10.0.0.3")  # the total
    gate.leave("10.0.0.1")
    assert gate.enter("10.0.0.3")
    assert len(gate) == 4


def test_an_ipv6_network_and_a_mapped_address_count_as_one() -> None:
    gate = Gate(total=9, per_address=1)
    assert gate.enter("2001:db8::1")
    assert not gate.enter("2001:db8::ffff:2")
    assert gate.enter("2001:db8:0:1::1")
    assert gate.enter("::ffff:10.0.0.1")
    assert not gate.enter("10.0.0.1")


def test_connections_leave_file_descriptors_free(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = [256, 1024]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: limit.__setitem__(slice(None), new))
    assert connections_that_fit(500) == 500
    assert limit == [500 + acceptor.RESERVED_DESCRIPTORS, 1024]
    assert connections_that_fit(4096) == 1024 - acceptor.RESERVED_DESCRIPTORS


def test_one_address_gets_its_share_of_connections() -> None:
    with serving(limits=Limits(connections_per_address=3)) as running, contextlib.ExitStack() as stack:
        wait_for(lambda: len(running.server._gate) == 0)
        held = [stack.enter_context(client(running)) for _ in range(3)]
        wait_for(lambda: len(running.server._gate) == 3)
        assert answer(running, "").startswith(b"HTTP/1.1 503 ")
        held[0].close()
        wait_for(lambda: len(running.server._gate) == 2)
        samples = metric_samples(get(f"{running.http}/metrics")[1].decode())
    assert samples["slipstream_connections"] == 3
    assert samples['slipstream_refusals_total{status="503"}'] == 1


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("", b""),
        ("GET / HTTP/1.1\r\nHost: loc", b"HTTP/1.1 408 "),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHo", b"HTTP/1.1 408 "),
        ("POST /api/asr-streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nab", b"HTTP/1.1 408 "),
        ("POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nab", b"HTTP/1.1 405 "),
    ],
)
def test_half_requests_are_closed(begun: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CLOSE_SECONDS", 0.5)
    limits = Limits(header_seconds=0.3, body_seconds=0.3)
    with serving(limits=limits) as running:
        assert expected in answer(running, begun)
        wait_for(lambda: len(running.server._gate) == 0)


@pytest.mark.parametrize(
    ("host", "extra", "status"),
    [
        ("[", "", 400),
        ("localhost:x", "", 400),
        ("local host", "", 400),
        ("user@localhost", "", 400),
        ("localhost", "Host: evil.example\r\n", 400),
        ("localhost", "Origin: http://[\r\n", 400),
        ("localhost", "Origin: http://localhost@evil.example\r\n", 400),
        ("localhost", "Origin: http://\xff\xfe\r\n", 400),
        ("localhost", "Origin: null\r\n", 403),
        ("localhost", "X-Long: " + "a" * 9000 + "\r\n", 431),
        ("localhost", "".join(f"X-{number}: y\r\n" for number in range(200)), 431),
        ("localhost", "X-Long: " + "a" * 100_000 + "\r\n", 400),
        ("evil.example", "", 421),
    ],
)
@pytest.mark.parametrize(
    "request_line",
    [
        "GET /api/asr-streaming HTTP/1.1\r\n" + UPGRADE,
        "POST /api/asr-streaming HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n",
    ],
)
def test_malformed_heads_are_refused_and_leak_nothing(
    request_line: str, host: str, extra: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(ScriptRunner(slots=1)) as running:
        reply = answer(running, f"{request_line}Host: {host}\r\n{extra}\r\n")
        assert int(reply.split()[1]) in (status, 431 if len(extra) > 1000 else status)
        wait_for(lambda: not running.server.server_state.connections and not len(running.server._gate))
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert not [record for record in caplog.records if record.exc_info]


def test_a_failed_handshake_leaks_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with serving() as running:
        monkeypatch.setattr(running.service.access, "check", lambda request, **options: 1 / 0)
        reply = answer(running, f"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n")
        assert reply.startswith(b"HTTP/1.1 500 ")
        assert b"division" not in reply
        wait_for(lambda: not running.server.server_state.connections)
    assert sum("division" in str(record.exc_info) for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/../app.py", 404),
        ("GET", "/%2e%2e/app.py", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/app.js%00.html", 404),
        ("POST", "/app.js", 405),
        ("GET", "/v1/stream", 426),
        ("GET", "/api/asr-streaming", 426),
    ],
)
def test_unknown_paths(method: str, path: str, status: int) -> None:
    with serving() as running:
        reply = answer(running, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
