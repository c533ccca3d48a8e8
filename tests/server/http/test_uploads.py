"""Whole files: limits, the pool, clients that leave in every phase, and the graceful shutdown."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import signal
import socket
import struct
import threading
import time
import wave
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from benchmarks.scripted_server import server_process
from tests.fakes import ScriptRunner, speech
from tests.server.harness import RATE, Running, expected, get, metric_samples, serving, solo, wait_for, words_received

from slipstream import audio
from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close
from slipstream.server.http import transcription
from slipstream.server.http import upload as one_upload
from slipstream.server.uploads.kyutai import INCOMPLETE_HEADER
from slipstream.server.uploads.protocol import BUFFERED_SECONDS

PATH = "/api/asr-streaming"


def exact(audio_S: FloatArray) -> FloatArray:
    """Samples that 16 bits hold exactly."""
    return np.round(audio_S * 32768).astype(np.float32) / 32768


def wav(audio_S: FloatArray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((audio_S * 32768).astype("<i2").tobytes())
    return file.getvalue()


def encoded(codec: str, format: str, seconds: float, pts: Any = lambda position: position, **options: str) -> bytes:
    """A tone of 8 kHz in packets of 20 ms; `pts` maps a packet's position to its timestamp, in samples."""
    file = io.BytesIO()
    with av.open(file, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=8_000, layout="mono")
        for position in range(0, round(seconds * 8_000), 160):
            frame = av.AudioFrame.from_ndarray(np.full((1, 160), 3_000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8_000, pts(position)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def post(
    running: Running, body: bytes, announced: int | None = None, path: str = PATH, content_type: str = "audio/wav"
) -> socket.socket:
    """A connection that has sent a POST request, and as its body `body` of the `announced` bytes."""
    host, _, port = running.address.partition(":")
    client = socket.create_connection((host, int(port)), timeout=20)
    length = len(body) if announced is None else announced
    head = [f"POST {path} HTTP/1.1", f"Host: {running.address}", f"Content-Length: {length}"]
    client.sendall("\r\n".join([*head, f"Content-Type: {content_type}", "", ""]).encode() + body)
    return client


def answer(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response on a connection."""
    from http.client import HTTPResponse

    with HTTPResponse(client) as response:
        response.begin()
        return response.status, {name.lower(): value for name, value in response.headers.items()}, response.read()


def upload(running: Running, body: bytes) -> tuple[int, bytes]:
    return get(f"{running.http}{PATH}", body)[:2]


def test_the_words_of_a_file() -> None:
    audio_S = exact(speech(seed=1, words=6))
    with serving(keys=KeyRing.of(["open"])) as running:
        address = f"{running.http}{PATH}"
        status, body, headers = get(address, wav(audio_S), kyutai_api_key="open")
        assert status == 200
        assert words_received(json.loads(body)) == expected(solo(audio_S))
        assert INCOMPLETE_HEADER not in headers
        assert get(address, wav(audio_S))[0] == 401
        status, body, _ = get(address, b"not audio", kyutai_api_key="open")
        assert status == 422
        assert body.startswith(b"the upload: not audio that FFmpeg can read")
        assert get(address, b"", kyutai_api_key="open")[0] == 422


def test_a_refused_client_that_still_sends_gets_the_response() -> None:
    """Its body is larger than all socket buffers; were the connection closed, the client would be reset."""
    with serving(keys=KeyRing.of(["open"])) as running:
        for _ in range(3):
            status, _, _ = get(f"{running.http}{PATH}", bytes(16 << 20), connection="close")
            assert status == 401


# -------------------------------------------------------------------------------------------------------------- limits


def chunked(size: int) -> Iterator[bytes]:
    yield from (bytes(100) for _ in range(size // 100))


@pytest.mark.parametrize("body", [bytes(1100), chunked(1100)])
def test_a_limit_on_bytes(body: Any) -> None:
    with serving(limits=Limits(upload_bytes=1000)) as running:
        assert upload(running, body) == (413, b"the upload is larger than 1000 bytes")


def test_a_limit_on_seconds_by_the_header() -> None:
    with serving(ScriptRunner(slots=1, step_seconds=10.0), limits=Limits(upload_seconds=2)) as running:
        assert upload(running, wav(np.zeros(3 * RATE, np.float32))) == (413, TOO_LONG)


def test_a_limit_on_seconds_that_only_decoding_finds() -> None:
    """Two Ogg streams in a row: the container reports only the length of the first one."""
    file = encoded("libopus", "ogg", 1.9) * 2
    with serving(limits=Limits(upload_seconds=3)) as running:
        assert upload(running, file) == (413, b"the upload is longer than 3 s of audio")
        wait_for(lambda: running.engine.active == 0)


def test_a_header_that_overstates_the_length() -> None:
    """As of a WAV that was written to a pipe: its size is not known when the header is written."""
    audio_S = exact(speech(seed=1, words=3))
    piped = wav(audio_S).replace(struct.pack("<I", 2 * len(audio_S)), b"\xff\xff\xff\xff", 1)
    limit = len(audio_S) / RATE + 1
    with serving(limits=Limits(upload_seconds=limit)) as running:
        status, body = upload(running, piped)
    assert (status, words_received(json.loads(body))) == (200, expected(solo(audio_S)))


TOO_LONG = b"the upload is longer than 2 s of audio"


@pytest.mark.parametrize("gap", [600, 3590])
def test_a_limit_on_gaps(gap: int) -> None:
    """37 kB whose timestamps make up days of silence must not occupy a slot."""
    file = encoded("pcm_s16le", "matroska", 2.0, lambda position: position * gap * 50, live="1")
    assert len(file) < 40_000
    runner = ScriptRunner(slots=1)
    with serving(runner) as running:
        status, body = upload(running, file)
        assert (status, body) == (422, b"the upload: the gaps between its timestamps add up to more than 600 s")
        wait_for(lambda: running.engine.active == 0)
    assert runner.steps < 1.1 * 600 * 12.5


def test_a_body_that_arrives_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_upload, "BODY_GRACE_SECONDS", 0.2)
    with serving(limits=Limits(uploads=1)) as running, post(running, b"RIFF", announced=1000) as client:
        status, _, body = answer(client)
        assert (status, body) == (408, b"the body arrived too slowly: at least 16384 bytes per second are expected")
        assert upload(running, wav(exact(speech(seed=1, words=2))))[0] == 200


def test_decoding_waits_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    def counting(*args: Any, **options: Any) -> Iterator[FloatArray]:
        nonlocal decoded
        for piece_CS in audio.decode(*args, **options):
            decoded += piece_CS.shape[1]
            yield piece_CS

    monkeypatch.setattr(transcription, "decode", counting)
    runner = ScriptRunner(slots=1, step_seconds=0.02)
    with serving(runner) as running, post(running, wav(np.zeros(600 * RATE, np.float32))):
        wait_for(lambda: runner.steps > 50)
        processed = runner.steps * 1920
        assert decoded < processed + (BUFFERED_SECONDS + 3) * RATE


# ---------------------------------------------------------------------------------------------------------- the pool


def test_a_full_pool_is_refused_and_serves_everything_else() -> None:
    with serving(ScriptRunner(slots=4, step_seconds=0.02), limits=Limits(uploads=2)) as running:
        busy = [post(running, wav(np.zeros(60 * RATE, np.float32))) for _ in range(2)]
        wait_for(lambda: running.engine.active == 2)
        status, body, headers = get(f"{running.http}{PATH}", b"x")
        assert (status, body) == (503, b"2 uploads are in progress, the limit of this server")
        assert headers["retry-after"] == "5"
        for path in ("/", "/app.js", "/healthz", "/metrics"):
            assert get(f"{running.http}{path}")[0] == 200
        for client in busy:
            client.close()
        wait_for(lambda: running.engine.active == 0)
        wait_for(lambda: upload(running, wav(exact(speech(seed=1, words=2))))[0] == 200)


def test_an_upload_that_gets_no_slot_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription, "UPLOAD_WAIT_SECONDS", 0.1)
    long = wav(np.zeros(60 * RATE, np.float32))
    with serving(ScriptRunner(slots=1, step_seconds=0.02)) as running, post(running, long):
        wait_for(lambda: running.engine.active == 1)
        status, _, headers = get(f"{running.http}{PATH}", long)
        assert (status, headers["retry-after"]) == (503, "5")


# ------------------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("phase", ["uploading", "decoding", "queued", "waiting for results"])
def test_a_client_that_leaves_frees_its_slot(
    phase: str, reset: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    reading = threading.Event()
    if phase == "decoding":
        monkeypatch.setattr(transcription, "decode", lambda body, **_: endless(body, reading))
    runner = ScriptRunner(slots=1, step_seconds=0.02)
    long = wav(np.zeros((3 if phase == "waiting for results" else 60) * RATE, np.float32))
    with serving(runner, limits=Limits(uploads=2)) as running:
        engine = running.engine
        other = post(running, long) if phase == "queued" else None
        if other:
            wait_for(lambda: engine.active == 1)
        client = post(running, long, announced=2 * len(long) if phase == "uploading" else None)
        if phase == "decoding":
            wait_for(reading.is_set)
        elif phase == "queued":
            wait_for(lambda: engine.waiting == 1)
        elif phase == "waiting for results":
            wait_for(lambda: runner.steps > 2)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (b"\1" if reset else b"\0") + bytes(7))
        client.close()
        wait_for(lambda: [record for record in caplog.records if record.message == "upload closed"])
        assert (engine.active, engine.waiting) == (1 if other else 0, 0)
        assert caplog.records[-1].__dict__["reason"] == "the client disconnected"
        if other:
            other.close()
            wait_for(lambda: engine.active == 0)
        monkeypatch.undo()
        assert upload(running, wav(exact(speech(seed=1, words=2))))[0] == 200


def endless(body: Any, reading: threading.Event) -> Iterator[FloatArray]:
    """A decoder that reads and never yields, as with a long file of damaged packets."""
    while True:
        body.seek(0)
        body.read(100)
        reading.set()
        time.sleep(0.001)
        if body is None:
            yield np.zeros((1, 1), np.float32)


# ----------------------------------------------------------------------------------------------------- metrics and logs


def test_uploads_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    audio_S = exact(speech(seed=1, words=6))
    file = wav(audio_S)
    with serving() as running:
        upload(running, file)
        upload(running, b"not audio")
        samples = metric_samples(get(f"{running.http}/metrics")[1].decode())
    good, bad = (record.__dict__ for record in caplog.records if record.message == "upload closed")
    assert (good["status"], good["reason"], good["bytes"], good["words"]) == (200, "", len(file), 6)
    assert good["audio_seconds"] == round(len(audio_S) / RATE, 3)
    assert good["frames"] == len(audio_S) // 1920
    assert (bad["status"], bad["words"]) == (422, 0)
    assert bad["reason"].startswith("the upload: not audio")
    assert samples['slipstream_uploads_total{status="200"}'] == 1
    assert samples['slipstream_uploads_total{status="422"}'] == 1
    assert samples['asr_connect{handler="all"}'] == 2
    assert samples['asr_open_channels{handler="all"}'] == 0
    assert samples["slipstream_words_total"] == 6


# -------------------------------------------------------------------------------------------------------------- drain


def test_a_drain_returns_the_text_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    end = one_upload.Upload.end

    def end_slowly(upload: one_upload.Upload, close: Close) -> None:
        end(upload, close)  # the engine may give its slot to the next upload before the drain reaches that one
        if upload._transcription is not None:
            wait_for(lambda: all(channel.session.ended for channel in upload._transcription._channels))

    monkeypatch.setattr(one_upload.Upload, "end", end_slowly)
    audio_S = exact(speech(seed=1, words=400))
    with (
        serving(ScriptRunner(slots=1, step_seconds=0.002)) as running,
        post(running, wav(audio_S)) as client,
        contextlib.ExitStack() as others,
    ):
        wait_for(lambda: running.engine.active == 1)  # of two concurrent uploads, either could have the slot
        queued = others.enter_context(post(running, wav(audio_S)))
        unfinished = others.enter_context(post(running, b"RIFF", announced=1000))
        metrics = running.service.metrics
        wait_for(lambda: metrics.words._value.get() > 10 and metrics.connects._value.get() == 3)
        wait_for(lambda: running.engine.waiting == 1)
        running.server.handle_exit(signal.SIGTERM, None)
        status, headers, body = answer(client)
        assert answer(queued)[0] == answer(unfinished)[0] == 503
    assert status == 200
    reason, _, seconds = headers[INCOMPLETE_HEADER].partition("; ")
    assert reason == "the server is about to stop"
    transcribed = float(seconds.removesuffix(" s are transcribed"))
    assert 0 < transcribed < len(audio_S) / RATE
    words = words_received(json.loads(body))
    assert len(words) > 10
    # A word that the end cuts ends exactly there; the header has only two decimals.
    end = words[-1][2] if abs(words[-1][2] - transcribed) < 0.006 else transcribed
    assert words == expected(solo(audio_S[: round(end * RATE)]))


def test_a_time_limit_returns_the_text_so_far() -> None:
    audio_S = exact(speech(seed=1, words=400))
    with serving(ScriptRunner(slots=1, step_seconds=0.01), limits=Limits(session_seconds=0.5)) as running:
        status, body, headers = get(f"{running.http}{PATH}", wav(audio_S))
    assert (status, len(json.loads(body)) > 0) == (200, True)
    assert headers[INCOMPLETE_HEADER].startswith("an upload lasts at most 0.5 s; ")


def test_sigterm_ends_uploads_without_a_traceback() -> None:
    """`server_process` checks the exit code and that nothing is written to standard error."""
    long = wav(np.zeros(60 * RATE, np.float32))
    with server_process(2, step_seconds=0.01) as (process, address):
        running: Any = type("", (), {"address": address})
        clients = [post(running, long), post(running, long), post(running, long), post(running, b"", announced=10)]
        clients[0].close()

        def used_slots() -> int:
            (module,) = json.loads(get(f"http://{address}/api/modules_info")[1])
            return int(module["used_slots"])

        wait_for(lambda: used_slots() == 2)
        process.send_signal(signal.SIGTERM)
        statuses = sorted(answer(client)[0] for client in clients[1:])
        for client in clients:
            client.close()
        assert process.wait(20) == 0
    assert statuses == [200, 200, 503]


def test_uploads_are_converted_to_the_models_sample_rate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    runner = ScriptRunner()
    runner.frame_samples = 1280  # at 12.5 frames per second: 16 kHz
    with serving(runner) as running:
        assert running.service.models[None].sample_rate == 16_000
        assert upload(running, wav(np.zeros(2 * RATE, np.float32)))[0] == 200
    record = next(record.__dict__ for record in caplog.records if record.message == "upload closed")
    assert (record["audio_seconds"], record["frames"]) == (2.0, 25)
