"""TLS on a server of two workers: sessions, requests, reloads of the certificate, and handshakes that stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import speech
from tests.server.harness import get, solo, wait_for
from tests.server.http.test_operations import certificate, served_certificate
from tests.server.http.test_uploads import wav
from tests.workers.serving import Case, Serving, serving

from slipstream.client import transcribe
from slipstream.connections.limits import Limits
from slipstream.errors import ConfigError
from slipstream.server.run import Tls
from slipstream.workers.certificate import Certificate
from slipstream.workers.parent import Listeners, Parent
from slipstream.workers.worker import Settings

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
PATIENCE = 60.0
CONNECTIONS = 16
"""Enough that both workers get some: the kernel spreads them by their ports."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    certificate(path, "first", "-addext", "subjectAltName=IP:127.0.0.1")
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    tls, limits = Tls(folder / "cert.pem", folder / "key.pem"), Limits(handshake_seconds=2.0)
    settings = Settings("127.0.0.1", tls=tls, limits=limits, log_level="error")
    with serving(Case(settings)) as running:
        yield running


def test_a_handshake_that_never_finishes_is_cut_and_delays_no_other(server: Serving) -> None:
    host, _, port = server.address.partition(":")
    stopped = [socket.create_connection((host, int(port)), timeout=PATIENCE) for _ in range(CONNECTIONS)]
    for client in stopped:
        client.sendall(b"\x16\x03\x01")
    assert b"first" in served_certificate(server.address)
    for client in stopped:
        assert client.recv(100) == b""
        client.close()


def test_sessions_and_requests_over_tls(server: Serving, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    address, audio_S = f"https://{server.address}", speech(seed=4, words=6)
    for _ in range(4):  # by any worker
        assert list(transcribe(address, [audio_S]).words) == solo(audio_S)
        assert get(f"{address}/healthz")[0] == 200
    status, body, _ = get(f"{address}/api/asr-streaming", wav(audio_S))
    assert status == 200
    assert all(word.text in body.decode() for word in solo(audio_S)[:3])


def test_sighup_gives_the_new_certificate_to_every_worker(server: Serving, folder: Path) -> None:
    def all_serve(name: bytes) -> bool:
        return all(name in served_certificate(server.address) for _ in range(CONNECTIONS))

    certificate(folder, "second")
    assert all_serve(b"first")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: all_serve(b"second"), PATIENCE)
    (folder / "key.pem").write_text("no key")
    server.process.send_signal(signal.SIGHUP)
    assert server.process.stderr is not None
    assert "reload failed" in server.process.stderr.readline()
    assert all_serve(b"second")
    lost, kept = server.children("worker")
    os.kill(lost, signal.SIGKILL)  # the files are still invalid
    wait_for(lambda: len(server.children("worker")) == 2 and lost not in server.children("worker"), PATIENCE)
    assert kept in server.children("worker")
    assert all_serve(b"second")
    assert "a worker has ended and is restarted" in server.process.stderr.readline()
    certificate(folder, "third")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: all_serve(b"third"), PATIENCE)


def test_a_certificate_is_read_whole_or_refused(tmp_path: Path) -> None:
    files = Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    with pytest.raises(FileNotFoundError):
        Certificate.read(files)
    certificate(tmp_path, "first")
    read = Certificate.read(files)
    assert "PRIVATE" not in repr(read)
    with read.files() as held:
        assert held.certificate.read_bytes() == files.certificate.read_bytes()
        assert held.key.read_bytes() == files.key.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    certificate(other, "second")
    with pytest.raises(ssl.SSLError):
        Certificate.read(Tls(files.certificate, other / "key.pem"))


def test_a_server_with_an_invalid_certificate_does_not_start(tmp_path: Path) -> None:
    certificate(tmp_path, "first")
    (tmp_path / "key.pem").write_text("no key")
    settings = Settings("127.0.0.1", tls=Tls(tmp_path / "cert.pem", tmp_path / "key.pem"))
    with pytest.raises(ConfigError, match=r"cannot use .*cert\.pem with the key .*key\.pem"):
        asyncio.run(Parent([], 1, settings, Listeners(None)).run())
