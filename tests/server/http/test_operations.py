"""Health, readiness, metrics, request IDs, log lines, limits per key, reload, and the end of a model that fails."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import ScriptRunner, speech, tiny_tokenizer
from tests.server.harness import Running, get, metric_samples, serving, wait_for

from slipstream.arrays import BoolArray, FloatArray
from slipstream.client import ServerError, open_stream, transcribe
from slipstream.connections.access import Access
from slipstream.connections.keys import KeyRing, new_key
from slipstream.connections.limits import Limits
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.errors import EngineError
from slipstream.events import Final
from slipstream.model.runner import StepOutput
from slipstream.server import run
from slipstream.server.http.app import Service
from slipstream.server.run import Tls, listen, serve

AUDIO = speech(seed=1, words=3)


class HangingRunner(ScriptRunner):
    """Waits in its fifth step until it is released."""

    def __init__(self) -> None:
        super().__init__(slots=1)
        self.go_on = threading.Event()

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        if self.steps == 5:
            self.go_on.wait(20)
        return super().step(pcm_BS, active_B)


def test_a_step_that_hangs_is_unhealthy_while_it_does() -> None:
    runner = HangingRunner()
    with serving(runner, limits=Limits(step_seconds=0.2)) as running, open_stream(running.http) as stream:
        assert get(f"{running.http}/healthz")[:2] == (200, b"ok")
        stream.send(AUDIO)
        stream.finish()
        wait_for(lambda: get(f"{running.http}/healthz")[0] == 503)
        assert b"the model's step has taken" in get(f"{running.http}/healthz")[1]
        assert get(f"{running.http}/readyz")[0] == 503
        assert metric_samples(get(f"{running.http}/metrics")[1].decode())["slipstream_step_running_seconds"] > 0.2
        runner.go_on.set()
        assert any(isinstance(event, Final) for event in stream)
        assert get(f"{running.http}/healthz")[:2] == (200, b"ok")


def test_a_model_that_fails_ends_the_process_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.gc, "freeze", lambda: None)
    said: list[str] = []

    def client(port: int) -> None:
        try:
            transcribe(f"http://127.0.0.1:{port}", [speech(seed=1, words=5)])
        except ServerError as error:
            said.append(str(error))

    with Engine(ScriptRunner(crash_after=5), tiny_tokenizer()) as engine, listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=client, args=(listener.getsockname()[1],))
        thread.start()
        with pytest.raises(EngineError, match="the model has stopped") as failed:
            serve(Service(Models({"script": engine}), Access("127.0.0.1")), listener)
        thread.join()
    assert "the device is on fire" in str(failed.value.__cause__)
    # The reason comes with a message, or, while the client sends, with the close.
    assert said[0].removeprefix("the server closed the stream: ") == "the server failed; try again"


def test_stopping_does_not_wait_for_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HUNG_SECONDS", 0.2)
    runner = HangingRunner()
    with serving(runner) as running, open_stream(running.http) as stream:
        stream.send(AUDIO)
        wait_for(lambda: runner.steps == 5)
        running.server.handle_exit(15, None)
        wait_for(lambda: running.server.should_exit)
        runner.go_on.set()


def test_a_full_server_may_report_that_it_is_not_ready() -> None:
    for ready_when_free, status in ((True, 503), (False, 200)):
        with serving(ScriptRunner(slots=1), ready_when_free=ready_when_free) as running:
            assert get(f"{running.http}/readyz")[0] == 200
            with open_stream(running.http) as stream:
                wait_for(lambda: running.engine.active == 1)
                assert get(f"{running.http}/readyz")[0] == status
                stream.close()
            wait_for(lambda: running.engine.active == 0)
            assert get(f"{running.http}/readyz")[0] == 200


def sampled(running: Running) -> dict[str, float]:
    return metric_samples(get(f"{running.http}/metrics")[1].decode())


def test_queued_streams_count_apart_from_open_ones() -> None:
    with (
        serving(ScriptRunner(slots=1), queue_seconds=20) as running,
        open_stream(running.http) as first,
        open_stream(running.http) as second,
    ):
        wait_for(lambda: sampled(running)['asr_open_channels{handler="all"}'] == 1)  # it has got its `Ready`
        wait_for(lambda: running.engine.waiting == 1)
        samples = sampled(running)
        first.close()
        second.close()
    assert samples['asr_open_channels{handler="all"}'] == 1
    assert samples["slipstream_queued"] == 1
    assert (samples["slipstream_slots"], samples["slipstream_slots_used"]) == (1, 1)
    assert samples["process_open_fds"] > 0


@pytest.mark.parametrize("path", ["/metrics", "/v1/info", "/api/build_info", "/api/modules_info"])
def test_metrics_and_information_need_the_key_and_the_host(path: str) -> None:
    with serving(keys=KeyRing.of(["right"])) as running:
        assert get(f"{running.http}{path}")[0] == 401
        assert get(f"{running.http}{path}", authorization="Bearer right")[0] == 200
    with serving() as running:
        assert get(f"{running.http}{path}")[0] == 200
        assert get(f"{running.http}{path}", host="evil.example")[0] == 421


def test_a_second_port_has_the_metrics() -> None:
    with (
        listen("127.0.0.1", 0) as second,
        serving(keys=KeyRing.of(["right"]), operations=(second, Access("127.0.0.1"))) as running,
    ):
        address = f"http://127.0.0.1:{second.getsockname()[1]}"
        assert get(f"{running.http}/metrics", authorization="Bearer right")[0] == 404
        for path in ("/metrics", "/v1/info", "/healthz", "/readyz"):
            assert get(f"{address}{path}")[0] == 200
        assert get(f"{address}/metrics", host="evil.example")[0] == 421
        assert get(f"{address}/")[0] == 404
        assert get(f"{address}/api/asr-streaming", b"x")[0] == 404
        with pytest.raises(ServerError), open_stream(address, key="right"):
            pass


# ------------------------------------------------------------------------------------------------- who, and what of it


def closed_streams(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == "stream closed"]


def test_a_log_line_names_the_client_and_the_reason_of_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key, line = new_key("desk")
    (tmp_path / "keys").write_text(line)
    with serving(keys=KeyRing.read(tmp_path / "keys"), limits=Limits(idle_seconds=1.0)) as running:
        with open_stream(running.http, key=key) as finished:
            finished.finish()
            list(finished)
        with open_stream(running.http, key=key) as idle, contextlib.suppress(ServerError):
            list(idle)
        with open_stream(running.http, key=key) as left:
            next(iter(left))
            left.close()
        wait_for(lambda: len(closed_streams(caplog)) == 3)
    lines = closed_streams(caplog)
    assert [line["ended_by"] for line in lines] == ["server", "server", "client"]
    assert [line["code"] for line in lines] == [1000, 4408, 1000]
    assert [line["reason"] for line in lines] == ["", "nothing was received for 1 s", ""]
    assert {(line["client"], line["address"]) for line in lines} == {("desk", "127.0.0.1")}
    assert [line["id"] for line in lines] == [finished.request_id, idle.request_id, left.request_id]
    assert key not in caplog.text


def test_a_refusal_is_logged_with_the_id_that_the_client_got(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(keys=KeyRing.of(["right"])) as running:
        _, _, headers = get(f"{running.http}/v1/info")
        for _ in range(30):
            get(f"{running.http}/v1/info")
        samples = metric_samples(get(f"{running.http}/metrics", kyutai_api_key="right")[1].decode())
    refused = [vars(record) for record in caplog.records if record.message == "request refused"]
    assert (refused[0]["id"], refused[0]["status"]) == (headers["x-request-id"], 401)
    assert samples['slipstream_refusals_total{status="401"}'] == 31
    assert len(refused) <= 30  # a flood does not fill the log


def test_limits_of_a_key_hold_for_streams_and_uploads(tmp_path: Path) -> None:
    key, line = new_key("desk", streams=1)
    (tmp_path / "keys").write_text(line)
    with serving(keys=KeyRing.read(tmp_path / "keys")) as running:
        with open_stream(running.http, key=key) as stream:
            with pytest.raises(ServerError, match="429"), open_stream(running.http, key=key):
                pass
            assert get(f"{running.http}/api/asr-streaming", b"x", kyutai_api_key=key)[0] == 429
            stream.finish()
            list(stream)
        wait_for(lambda: get(f"{running.http}/api/asr-streaming", b"x", kyutai_api_key=key)[0] == 422)


# --------------------------------------------------------------------------------------------------------------- reload


def certificate(folder: Path, name: str, *options: str) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    files = ["-subj", f"/CN={name}", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command.split(), *files, *options], check=True, capture_output=True)


def served_certificate(address: str) -> bytes:
    host, _, port = address.partition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True) or b""


def test_a_reload_takes_the_new_certificate_or_keeps_the_old(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate(tmp_path, "first")
    with serving(tls=Tls(tmp_path / "cert.pem", tmp_path / "key.pem")) as running:
        assert b"first" in served_certificate(running.address)
        certificate(tmp_path, "second")
        running.server.reload()
        assert b"second" in served_certificate(running.address)
        (tmp_path / "key.pem").write_text("no key")
        running.server.reload()
        assert b"second" in served_certificate(running.address)
    (message,) = [record.message for record in caplog.records]
    assert re.fullmatch(r"reload failed: .*PEM lib.*: the old keys or certificate stay", message)


def test_a_tls_handshake_that_stops_is_closed(tmp_path: Path) -> None:
    certificate(tmp_path, "first")
    limits, tls = Limits(handshake_seconds=1.0), Tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving(tls=tls, limits=limits) as running:
        host, _, port = running.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(b"\x16\x03\x01")
            wait_for(lambda: len(running.server._gate) == 1)
            assert client.recv(100) == b""
        wait_for(lambda: len(running.server._gate) == 0)


def test_the_server_notifies_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000")
        with serving() as running:
            assert manager.recv(1000) == b"READY=1"
            assert manager.recv(1000) == b"WATCHDOG=1\nSTATUS=0 of 4 slots in use"
            running.server.handle_exit(15, None)
            while (said := manager.recv(1000)) != b"STOPPING=1":
                assert said.startswith(b"WATCHDOG=1")


def test_a_hang_stops_the_notifications_of_the_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = HangingRunner()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(1.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000")
        with serving(runner, limits=Limits(step_seconds=0.2)) as running, open_stream(running.http) as stream:
            stream.send(AUDIO)
            with contextlib.suppress(TimeoutError):
                while manager.recv(1000):
                    pass
            runner.go_on.set()
            manager.settimeout(10)
            assert manager.recv(1000).startswith(b"WATCHDOG=1")


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/v1/info", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/openapi.yaml", "GET, HEAD"),
        ("/v1/stream", "GET, HEAD"),
        ("/", "GET, HEAD"),
    ],
)
def test_another_method_on_a_known_path_is_not_allowed(path: str, allow: str) -> None:
    with serving() as server:
        status, _, headers = get(f"{server.http}{path}", data=b"x")
        assert (status, headers["allow"]) == (405, allow)
        for data in (b"x", None):  # such as OpenAI's client without /v1 in its address
            status, body, _ = get(f"{server.http}/audio/transcriptions", data=data)
            assert (status, b"nothing is at /audio/transcriptions: /openapi.yaml" in body) == (404, True)


def test_a_malformed_request_has_an_id() -> None:
    with (
        serving() as server,
        socket.create_connection((server.address.split(":")[0], int(server.address.split(":")[1]))) as client,
    ):
        client.sendall(b"GET / HTTP/9 nonsense\r\n\r\n")
        head = client.makefile("rb").read().decode()
    assert head.startswith("HTTP/1.1 400 Bad Request\r\n")
    id = re.search(r"x-request-id: (\w{16})\r\n", head)
    assert id is not None
