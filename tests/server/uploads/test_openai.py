"""OpenAI's transcriptions with the official client, unchanged: formats, events, models, errors and keys."""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, speech
from tests.server.harness import RATE, Running, get, serving, solo, wait_for
from tests.server.http.test_uploads import answer, encoded, exact, post, wav
from tests.server.uploads.forms import CONTENT_TYPE, END, form, part

from slipstream.connections import http as connections
from slipstream.connections.keys import KeyRing, new_key
from slipstream.connections.limits import Limits
from slipstream.language.identify import Identifier
from slipstream.server.uploads.openai import PATH

openai = pytest.importorskip("openai", reason="needs the extra clients-test")


def client_of(running: Running, key: str = "unused", **options: Any) -> Any:
    return openai.OpenAI(base_url=f"{running.http}/v1", api_key=key, max_retries=0, timeout=20, **options)


AUDIO = exact(speech(seed=1, words=12))
WORDS = solo(AUDIO)
TEXT = " ".join(word.text for word in WORDS)
SECONDS = round(len(AUDIO) / RATE, 3)
LONG = exact(speech(seed=1, words=30))


def compact(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


@pytest.fixture
def running() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    """It checks each response against the client's types."""
    with client_of(running, _strict_response_validation=True) as client:
        yield client


def transcribe(client: Any, file: bytes = b"", **fields: Any) -> Any:
    return client.audio.transcriptions.create(file=("talk.wav", file or wav(AUDIO)), model="script", **fields)


# ------------------------------------------------------------------------------------------------------------- formats


def test_json(client: Any) -> None:
    result = transcribe(client)
    assert (result.text, result.logprobs) == (TEXT, None)
    assert (result.usage.type, result.usage.seconds) == ("duration", SECONDS)


def test_json_with_log_probabilities(client: Any) -> None:
    result = transcribe(client, include=["logprobs"])
    assert "".join(entry.token for entry in result.logprobs) == TEXT
    assert [bytes(map(int, entry.bytes)).decode() for entry in result.logprobs] == [e.token for e in result.logprobs]
    assert np.allclose(np.exp([entry.logprob for entry in result.logprobs]), [w.confidence for w in WORDS], atol=1e-3)


def test_text_and_subtitles(client: Any) -> None:
    assert transcribe(client, response_format="text") == f"{TEXT}\n"
    srt, vtt = (transcribe(client, response_format=format) for format in ("srt", "vtt"))
    assert srt.startswith("1\n00:00:0")
    assert vtt.startswith("WEBVTT\n\n00:00:0")
    for subtitles in (srt, vtt):
        lines = [line for line in subtitles.splitlines() if line and not line[0].isdigit() and line != "WEBVTT"]
        assert " ".join(lines).split() == TEXT.split()


def test_verbose_json(client: Any) -> None:
    result = transcribe(client, response_format="verbose_json", language="fr", temperature=0.2)
    assert (result.text, result.duration, result.language, result.words) == (TEXT, SECONDS, "fr", None)
    assert result.usage.seconds == SECONDS
    assert " ".join(segment.text for segment in result.segments) == TEXT
    for number, segment in enumerate(result.segments):
        assert (segment.id, segment.temperature, segment.seek) == (number, 0.2, round(segment.start * 100))
        assert 0 <= segment.start <= segment.end <= SECONDS
        assert segment.avg_logprob <= 0 < segment.compression_ratio


def test_languages_are_identified_where_a_response_has_them(client: Any) -> None:
    found = Identifier(["auto"])
    assert transcribe(client, response_format="verbose_json").language in found.languages
    codes = [one.code for one in transcribe(client, languages=["en", "fr"]).languages]
    assert codes
    assert set(codes) <= {"en", "fr"}
    # German cannot be distinguished from others: the first language that was given stays.
    assert transcribe(client, response_format="verbose_json", languages=["de", "fr"]).language == "de"


def test_verbose_json_with_words(client: Any) -> None:
    result = transcribe(client, response_format="verbose_json", timestamp_granularities=["word"])
    assert result.segments is None
    assert [(word.word, word.start, word.end) for word in result.words] == [
        (word.text, round(word.start, 3), round(word.end, 3)) for word in WORDS
    ]
    both = transcribe(client, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert both.words
    assert both.segments


def test_silence_has_a_transcript_in_every_format(client: Any) -> None:
    silence = wav(np.zeros(RATE, np.float32))
    assert transcribe(client, silence).text == ""
    assert transcribe(client, silence, response_format="verbose_json").segments == []
    assert transcribe(client, silence, response_format="vtt") == "WEBVTT\n"


# -------------------------------------------------------------------------------------------------------------- events


def deltas(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "transcript.text.delta")


@pytest.mark.parametrize("format", ["json", "text"])
def test_events(client: Any, format: str) -> None:
    *spoken, done = transcribe(client, stream=True, response_format=format)
    assert len(spoken) == len(WORDS)
    assert (done.type, done.text, deltas(spoken)) == ("transcript.text.done", TEXT, TEXT)


def test_events_with_log_probabilities(client: Any) -> None:
    *spoken, done = transcribe(client, stream=True, include=["logprobs"])
    assert [entry.token for event in spoken for entry in event.logprobs] == [event.delta for event in spoken]
    assert "".join(entry.token for entry in done.logprobs) == TEXT


@pytest.mark.parametrize(
    ("codec", "format"),
    [("libopus", "ogg"), ("libopus", "webm"), ("libmp3lame", "mp3"), ("flac", "flac"), ("aac", "adts"), ("aac", "mp4")],
)
def test_events_for_every_container(client: Any, codec: str, format: str) -> None:
    """MP4 has its index at the end, so it is decoded when it is complete."""
    file = encoded(codec, format, 3.0)
    *_, done = transcribe(client, file, stream=True)
    assert done.type == "transcript.text.done"
    assert done.text == transcribe(client, file).text


def test_the_async_client(running: Running) -> None:
    import asyncio

    async def conversation() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{running.http}/v1", api_key="unused") as client:
            create = client.audio.transcriptions.create
            result = await create(file=("talk.wav", wav(AUDIO)), model="script")
            stream = await create(file=("talk.wav", wav(AUDIO)), model="script", stream=True)
            return result.text, deltas([event async for event in stream])

    assert asyncio.run(conversation()) == (TEXT, TEXT)


def read_until(client: socket.socket, text: bytes, read: bytearray) -> None:
    while text not in read:
        data = client.recv(4096)
        assert data, read
        read += data


def test_deltas_come_before_the_upload_ends(running: Running) -> None:
    """FFmpeg reads about 4 s of a WAV file to find out its format."""
    body, words = form([("model", "script"), ("stream", "true")], wav(LONG)), solo(LONG)
    with post(running, b"", announced=len(body), path=PATH, content_type=CONTENT_TYPE) as client:
        read = bytearray()
        client.sendall(body[:-100_000])
        read_until(client, b'"delta":' + compact(words[0].text), read)
        read_until(client, b'"delta":' + compact(f" {words[1].text}"), read)
        client.sendall(body[-100_000:])
        read_until(client, b'.done","text":' + compact(" ".join(word.text for word in words)), read)


def test_a_client_that_reads_only_after_its_body_is_not_cut(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """As httpx: the deltas fill all buffers while the body, sent at the pace of speech, is still arriving."""
    unread = connections.WRITE_SECONDS
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.1)
    paused = threading.Event()
    made, pause = connections.HttpConnection.connection_made, connections.HttpConnection.pause_writing

    def connection_made(connection: Any, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(4096)
        made(connection, transport)

    def pause_writing(connection: Any) -> None:
        paused.set()
        pause(connection)

    monkeypatch.setattr(connections.HttpConnection, "connection_made", connection_made)
    monkeypatch.setattr(connections.HttpConnection, "pause_writing", pause_writing)
    body = form([("include[]", "logprobs"), ("stream", "true")], wav(exact(speech(seed=2, words=200))))
    host, _, port = running.address.partition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect((host, int(port)))
        head = [f"POST {PATH} HTTP/1.1", f"Host: {host}", f"Content-Type: {CONTENT_TYPE}"]
        client.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body[:-10])
        assert paused.wait(30)
        time.sleep(1.2)  # longer than the server sweeps
        monkeypatch.setattr(connections, "WRITE_SECONDS", unread)
        client.sendall(body[-10:])
        assert b"transcript.text.done" in answer(client)[2]


def test_fields_after_the_file(running: Running) -> None:
    """The job of a stream is known with the file's first bytes; later fields may not change it."""
    file = part("file", wav(AUDIO), "talk.wav")
    early, late = part("stream", "true") + part("model", "script"), part("language", "fr")
    for body in (file + early + END, early + file + late + END):
        status, answered, _ = send(running, body)
        assert (status, answered.splitlines()[-2][:35]) == (200, b'data: {"type":"transcript.text.done')
    _, answered, _ = send(running, early + file + part("include[]", "logprobs") + END)
    assert b"fields that follow the file change the request: send the file last" in answered


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stream", ["true", "false"])
def test_random_cuts_of_the_body(running: Running, stream: str, seed: int) -> None:
    drawn = random.Random(seed)
    body = form([("model", "script"), ("stream", stream), ("prompt", "x" * 300)], wav(AUDIO))
    cuts = sorted(drawn.sample(range(500), 20) + drawn.sample(range(len(body)), 20))
    with post(running, b"", announced=len(body), path=PATH, content_type=CONTENT_TYPE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            client.sendall(body[start:end])
        status, _, answered = answer(client)
    assert (status, TEXT.encode() in answered) == (200, True)


# -------------------------------------------------------------------------------------------------------------- models


def test_models(client: Any) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("script", "model", "slipstream")
    assert client.models.retrieve("script") == model
    with pytest.raises(openai.NotFoundError, match="unknown model 'kyutai/other': this server has script") as raised:
        client.models.retrieve("kyutai/other")
    assert (raised.value.param, raised.value.code) == ("model", "model_not_found")


def test_any_model(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="unknown model 'whisper-1'"):
        client.audio.transcriptions.create(file=("talk.wav", wav(AUDIO)), model="whisper-1")
    with serving(accept_any=True) as running, client_of(running) as accepted:
        result = accepted.audio.transcriptions.create(file=("talk.wav", wav(AUDIO)), model="whisper-1")
    assert result.text == TEXT


# -------------------------------------------------------------------------------------------------------------- errors


def test_requests_that_are_refused(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="not audio that FFmpeg can read") as raised:
        transcribe(client, b"not audio")
    assert (raised.value.param, raised.value.type) == ("file", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="not audio that FFmpeg can read"):
        list(transcribe(client, b"not audio", stream=True))
    with pytest.raises(openai.BadRequestError, match="no model of this server distinguishes speakers"):
        transcribe(client, response_format="diarized_json")
    with pytest.raises(openai.APIStatusError, match="this address takes POST") as refused:
        client.get("/audio/transcriptions", cast_to=object)
    assert refused.value.status_code == 405


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translations(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="do not translate: transcribe at /v1/audio/transcriptions"):
        client.audio.translations.create(file=("talk.wav", wav(AUDIO)), model="script")


def test_an_error_ends_the_events() -> None:
    with serving(limits=Limits(upload_seconds=2)) as running, client_of(running) as client:
        with pytest.raises(openai.APIError, match="the upload is longer than 2 s of audio"):
            list(transcribe(client, stream=True))
        with pytest.raises(openai.APIStatusError, match="longer than 2 s") as raised:
            transcribe(client)
        assert raised.value.status_code == 413


def test_keys_and_their_limits(tmp_path: Path) -> None:
    key, line = new_key("desk", per_minute=1)
    (tmp_path / "keys").write_text(line)
    with serving(keys=KeyRing.read(tmp_path / "keys")) as running:
        with client_of(running, "wrong") as client:
            for call in (client.models.list, lambda: transcribe(client)):
                with pytest.raises(openai.AuthenticationError, match="no valid key") as raised:
                    call()
                assert raised.value.code == "invalid_api_key"
        with client_of(running, key) as client:
            assert client.models.list().data
            assert transcribe(client).text == TEXT
            with pytest.raises(openai.RateLimitError, match="starts at most 1 streams per minute") as limit:
                transcribe(client)
            assert limit.value.response.headers["retry-after"]


def test_a_full_server() -> None:
    with serving(limits=Limits(uploads=1)) as running, client_of(running) as client:
        with post(running, b"", announced=100, path=PATH, content_type=CONTENT_TYPE):
            wait_for(lambda: running.service.metrics.connects._value.get() == 1)
            with pytest.raises(openai.InternalServerError, match="1 uploads are in progress") as raised:
                transcribe(client)
        assert raised.value.status_code == 503
        assert raised.value.response.headers["retry-after"] == "5"


# ------------------------------------------------------------------------------------------------------------- attacks


def send(running: Running, body: bytes) -> tuple[int, bytes, Any]:
    return get(f"{running.http}{PATH}", body, content_type=CONTENT_TYPE)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (part("prompt", "x" * (5 << 20)) + END, 413),
        (form([("keywords[]", "x")] * 2_000, b"RIFF"), 413),
        (part("a", "b").replace(b"\r\n\r\n", b"\r\nX: y" * 100_000), 400),
        (b"\r\n--" * 200_000, 400),
        (b"", 400),
        (form([("model", "script")]), 400),
        (form([], b"RIFF", "../../etc/passwd"), 400),
        (form([], b"RIFF", "a\0b\r\n"), 400),
        (form([("model", "script")], b""), 400),
    ],
)
def test_hostile_forms_are_refused_with_the_reason(running: Running, body: bytes, status: int) -> None:
    got, answered, _ = send(running, body)
    assert (got, json.loads(answered)["error"]["type"]) == (status, "invalid_request_error")
    assert get(f"{running.http}/healthz")[0] == 200


def test_a_form_that_arrives_slowly_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its file by the rate of uploads; after that, as a stream, by the rate of any body."""
    limits = Limits(uploads=1, body_seconds=0.3, body_bytes_per_second=1e9)
    with serving(limits=limits) as running:
        begun = part("stream", "true") + part("file", wav(AUDIO), "x")[:300_000]
        for body in (b"--", begun):
            with post(running, body, announced=10_000_000, path=PATH, content_type=CONTENT_TYPE) as client:
                while client.recv(4096):
                    pass
            wait_for(lambda: running.engine.active == 0)
        # The first answer comes just before its place among the uploads is free.
        wait_for(lambda: send(running, form([("model", "script")], wav(AUDIO)))[0] == 200)


def test_a_client_that_leaves_frees_its_slot(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "slipstream")
    with serving(ScriptRunner(slots=1), limits=Limits(uploads=1)) as running:
        body = form([("model", "script"), ("stream", "true")], wav(LONG))
        with post(running, body[:-50_000], announced=len(body), path=PATH, content_type=CONTENT_TYPE):
            wait_for(lambda: running.engine.active == 1)
        wait_for(lambda: running.engine.active == 0)
        wait_for(lambda: [record for record in caplog.records if record.message == "upload closed"])
        fields = caplog.records[-1].__dict__
        assert (fields["dialect"], fields["reason"]) == ("openai", "the client disconnected")
        wait_for(lambda: send(running, body)[0] == 200)
