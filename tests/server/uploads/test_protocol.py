"""What a dialect of uploads may ask of the server, with a dialect made for it."""

from __future__ import annotations

import http.client
import io
import json
import logging
import signal
import time
import wave
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from starlette.responses import JSONResponse, Response
from tests.fakes import ScriptRunner, speech
from tests.models import stt_config
from tests.server.harness import RATE, Running, get, hold_after, metric_samples, serving, solo, wait_for
from tests.server.http.test_uploads import answer, exact, post, wav

from slipstream.audio import RawFormat
from slipstream.connections.access import Refused
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.dialects.models import StreamRequest, UnknownModel
from slipstream.events import Event, Word
from slipstream.hints import Hints
from slipstream.model.config import ConditionerConfig
from slipstream.server.uploads import UPLOADS
from slipstream.server.uploads.protocol import OPTIONS, Job, UploadDialect, UploadError
from slipstream.transcript import Transcript

PATH = "/test"


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Plain(UploadDialect):
    """The job is in the address, the response a list of words per channel."""

    name = "test"

    def __init__(self, request: StreamRequest) -> None:
        super().__init__(request)
        try:
            model = request.models.name(request.get("model"))
        except UnknownModel as error:
            raise UploadError(404, str(error), "model") from error
        delay = request.get("delay")
        hints = Hints(delay=float(delay) if delay else None, beam=int(request.get("beam") or 1))
        self.job = Job(
            model,
            replace(OPTIONS, hints=hints),
            raw=RawFormat("pcm_s16le", RATE) if request.get("raw") else None,
            channels="separate" if request.get("separate") else "mix",
            live=bool(request.get("live")),
        )

    def handle(self, event: Event, channel: int) -> Iterable[bytes]:
        if isinstance(event, Word):
            yield compact([channel, event.text])

    def respond(
        self, transcripts: Sequence[Transcript], warnings: Sequence[str], incomplete: UploadError | None
    ) -> Response:
        if incomplete:
            raise incomplete
        return JSONResponse([[word.text for word in transcript.words] for transcript in transcripts])

    @staticmethod
    def refuse(error: Refused) -> Response:
        field = error.field if isinstance(error, UploadError) else None
        return JSONResponse({"wrong": error.reason, "field": field}, error.status, error.headers)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(UPLOADS, PATH, Plain)
    yield
    while Paced.opened:
        Paced.opened.pop().socket.close()


def texts(audio_S: np.ndarray) -> list[str]:
    return [word.text for word in solo(audio_S)]


def events(body: bytes) -> list[object]:
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_a_job_with_a_session_per_channel() -> None:
    channels = [exact(speech(seed=seed, words=5)) for seed in (1, 2)]
    samples_CS = np.stack([audio_S[: min(map(len, channels))] for audio_S in channels])
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((2, 2, RATE, 0, "NONE", ""))
        out.writeframes((samples_CS.T * 32768).astype("<i2").tobytes())
    with serving(ScriptRunner(slots=2)) as running:
        status, body, _ = get(f"{running.http}{PATH}?separate=1", file.getvalue())
        assert (status, json.loads(body)) == (200, [texts(audio_S) for audio_S in samples_CS])
        assert metric_samples(get(f"{running.http}/metrics")[1].decode())['asr_open_channels{handler="all"}'] == 0
    with serving(ScriptRunner(slots=1)) as running:
        status, body, _ = get(f"{running.http}{PATH}?separate=1", file.getvalue())
        assert status == 422
        reason = "the upload has 2 channels, but the server transcribes at most 1 at a time"
        assert json.loads(body)["wrong"] == reason


@pytest.mark.parametrize("live", ["", "&live=1"])
def test_a_job_of_audio_without_a_header(live: str) -> None:
    audio_S = exact(speech(seed=1, words=5))
    with serving() as running:
        status, body, _ = get(f"{running.http}{PATH}?raw=1{live}", (audio_S * 32768).astype("<i2").tobytes())
    assert status == 200
    assert (events(body)[-1] if live else json.loads(body)) == [texts(audio_S)]


def test_errors_of_every_stage_have_the_form_of_the_dialect() -> None:
    with serving(keys=KeyRing.of(["right"]), limits=Limits(uploads=1, upload_bytes=1000)) as running:
        address = f"{running.http}{PATH}"
        for query, body, key, status, wrong in [
            ("", b"x", "", 401, "no valid key"),
            ("?model=nova", b"x", "right", 404, "unknown model 'nova': this server has script"),
            ("", b"x", "right", 422, "the upload: not audio that FFmpeg can read"),
            ("?live=1", b"x", "right", 422, "the upload: not audio that FFmpeg can read"),
            ("", bytes(1001), "right", 413, "the upload is larger than 1000 bytes"),
        ]:
            got, answered, _ = get(address + query, body, kyutai_api_key=key)
            assert (got, json.loads(answered)["wrong"][: len(wrong)]) == (status, wrong)


@pytest.mark.parametrize("live", ["", "&live=1"])
@pytest.mark.parametrize(
    ("delays", "query", "wrong"),
    [
        (False, "delay=1", "delay=1: this model has one delay, 0.48 s"),
        (True, "delay=0.01", "delay=0.01: expected at least 0.08 seconds"),
        (False, "beam=5", "a beam of 5 needs 5 slots of one device: expected 1 to 4"),
        (False, "separate=1&beam=3", "a beam of 3 for each of 2 channels: expected at most 2"),
    ],
)
def test_options_that_the_model_does_not_have(delays: bool, query: str, wrong: str, live: str) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((2, 2, RATE, 0, "NONE", ""))
        out.writeframes(bytes(4 * RATE))
    with serving(ScriptRunner(slots=4)) as running:
        if delays:
            delay = ConditionerConfig(name="delay", kind="continuous", dim=8)
            running.engine.format = replace(running.engine.format, config=stt_config(conditioners=(delay,)))
        status, body, _ = get(f"{running.http}{PATH}?{query}{live}", file.getvalue())
        assert (status, json.loads(body)["wrong"]) == (400, wrong)
        assert running.engine.active == running.engine.waiting == 0


# ---------------------------------------------------------------------------------------------------------------- live


class Paced:
    """A live upload of a paced body: sends it in pieces, and reads the events between them."""

    opened: ClassVar[list[Paced]] = []

    def __init__(self, running: Running, size: int, path: str = f"{PATH}?live=1") -> None:
        self.socket = post(running, b"", announced=size, path=path)
        self.read = b""
        self.opened.append(self)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def until(self, text: bytes) -> None:
        """Read until the response contains `text`."""
        while text not in self.read:
            data = self.socket.recv(4096)
            assert data, self.read
            self.read += data


def test_events_come_while_the_file_arrives() -> None:
    """FFmpeg reads about 4 s of a WAV file to find out its format."""
    audio_S = exact(speech(seed=1, words=30))
    file, words = wav(audio_S), solo(audio_S)
    with serving() as running:
        client = Paced(running, len(file))
        cut = round((words[3].end + 6) * RATE) * 2
        client.send(file[:cut])
        for word in words[:3]:
            client.until(compact([0, word.text]))
        assert client.read.count(b"data:") < len(words)
        client.send(file[cut:])
        client.until(compact([texts(audio_S)]))


def test_a_live_upload_ends_with_an_error_as_its_last_event() -> None:
    with serving(limits=Limits(upload_seconds=2)) as running:
        status, body, headers = get(f"{running.http}{PATH}?live=1", wav(exact(speech(seed=1, words=8))))
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert events(body)[-1] == {"wrong": "the upload is longer than 2 s of audio", "field": None}


@pytest.mark.parametrize("has_slot", [True, False])
def test_a_drain_ends_a_live_upload(has_slot: bool) -> None:
    file = wav(exact(speech(seed=1, words=30)))
    runner = ScriptRunner(slots=1)
    with serving(runner) as running:
        other = Paced(running, len(file))
        other.send(file[: len(file) // 2])
        wait_for(lambda: running.engine.active == 1 and runner.steps > 3)
        client = Paced(running, len(file)) if not has_slot else other
        if not has_slot:
            client.send(file[: len(file) // 2])
            wait_for(lambda: running.engine.waiting == 1)
        running.server.handle_exit(signal.SIGTERM, None)
        if has_slot:  # the rest of its body is not read, so the response has no last chunk
            client.until(b'data: {"wrong":"the server is about to stop; ')
        else:
            status, _, body = answer(client.socket)
            assert (status, json.loads(body)["wrong"]) == (503, "the server is about to stop")
            other.socket.close()


def test_a_client_that_leaves_a_live_upload_frees_its_slot(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    file = wav(exact(speech(seed=1, words=30)))
    with serving(ScriptRunner(slots=1), limits=Limits(uploads=1)) as running:
        client = Paced(running, len(file))
        client.send(file[: len(file) // 2])
        wait_for(lambda: running.engine.active == 1)
        client.socket.close()
        wait_for(lambda: running.engine.active == 0)
        wait_for(lambda: [record for record in caplog.records if record.message == "upload closed"])
        assert caplog.records[-1].__dict__["reason"] == "the client disconnected"
        wait_for(lambda: get(f"{running.http}{PATH}", file)[0] == 200)


def test_as_many_live_uploads_as_places_do_not_wait_for_each_other() -> None:
    """Each occupies a thread that waits for its file; the files still arrive."""
    audio_S = exact(speech(seed=1, words=6))
    file = wav(audio_S)
    with serving(ScriptRunner(slots=2), limits=Limits(uploads=2)) as running:
        clients = [Paced(running, len(file)) for _ in range(2)]
        for start in range(0, len(file), 20_000):
            for client in clients:
                client.send(file[start : start + 20_000])
        for client in clients:
            client.until(compact([texts(audio_S)]))


def test_a_client_that_reads_only_after_its_body_gets_all_events() -> None:
    audio_S = exact(speech(seed=1, words=60))
    file = wav(audio_S)
    runner = ScriptRunner(slots=1)
    released = hold_after(runner, 100)
    with serving(runner) as running:
        client = Paced(running, len(file))
        client.send(file)
        released.set()
        status, _, body = answer(client.socket)
    assert (status, events(body)[-1]) == (200, [texts(audio_S)])


def chunked(file: bytes) -> Iterator[bytes]:
    for start in range(0, len(file), 50_000):
        yield file[start : start + 50_000]
        time.sleep(0.001)


def test_a_body_without_a_length() -> None:
    audio_S = exact(speech(seed=1, words=6))
    with serving() as running:
        host, _, port = running.address.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("POST", f"{PATH}?live=1", chunked(wav(audio_S)), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, events(response.read())[-1]) == (200, [texts(audio_S)])
        connection.close()
