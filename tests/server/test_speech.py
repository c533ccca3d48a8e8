"""Text to speech on the server: OpenAI's route and Kyutai's socket, with transcription at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

pytest.importorskip("torch")

from tests.fakes import ScriptRunner, speech
from tests.server.harness import (
    Running,
    audio_message,
    chunks,
    get,
    kyutai,
    pack,
    serving,
    until,
    wait_for,
    words_received,
)
from tests.server.spoken import speaker_of, speaking
from tests.speaking import continuing_config, make_runner, save_model, tiny_tokenizer, voice
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from slipstream.audio import load
from slipstream.audio.encode import ENCODINGS, StreamEncoder
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.errors import AudioError
from slipstream.server.speaking import ServedSpeaker
from slipstream.server.streams.speech import SpeechStream
from slipstream.speaker import Speaker

TEXT = "the fox"
SPEECH = "/v1/audio/speech"
SOCKET = "/api/tts_streaming"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with speaking(folder) as running:
        yield running


def post(server: Running, **fields: object) -> tuple[int, bytes, object]:
    return get(server.http + SPEECH, json.dumps(fields).encode(), content_type="application/json")


def spoken(server: Running, who: str = "ann") -> np.ndarray:
    return speaker_of(server).say(TEXT, who).samples  # style: allow


# ------------------------------------------------------------------------------------------------------- OpenAI


@pytest.mark.parametrize("format", ENCODINGS)
def test_formats_of_openai(server: Running, format: str) -> None:
    status, body, headers = post(server, model="any", input=TEXT, voice="ann", response_format=format)
    assert (status, headers["content-type"]) == (200, ENCODINGS[format].media_type)
    expected = spoken(server)
    if format == "pcm":
        np.testing.assert_allclose(np.frombuffer(body, "<i2") / 32767, expected, atol=1e-4)
        return
    samples = load(io.BytesIO(body), 24_000)
    assert abs(len(samples) - len(expected)) < 3000
    if format in ("wav", "flac"):
        np.testing.assert_allclose(samples, expected, atol=2e-4)


def test_events_of_openai(server: Running) -> None:
    status, body, headers = post(
        server, input=TEXT, voice={"id": "ann"}, response_format="pcm", stream_format="sse", model="tts-1"
    )
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = [json.loads(line.removeprefix("data: ")) for line in body.decode().split("\n\n") if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert events[-1] == {"type": "speech.audio.done"}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": ""}, None, "input"),
        ({"input": "x" * 5000}, None, "input"),
        ({}, None, "lacks input"),
        ({"input": " ( : )\n", "voice": "ann"}, "input", "input has no word to speak"),
        ({"input": TEXT, "voice": "carl"}, "voice", "unknown voice 'carl'"),
        ({"input": TEXT, "voice": "../ann"}, "voice", "unknown voice"),
        ({"input": TEXT, "voice": "/etc/passwd"}, "voice", "unknown voice"),
        ({"input": TEXT, "voice": "a" * 300}, "voice", "unknown voice"),
        ({"input": TEXT, "voice": "<break>"}, "voice", "unknown voice '<break>'"),
        ({"input": TEXT, "speed": 2}, None, "speed"),
        ({"input": 'one <break time="61s"/> two', "voice": "ann"}, "input", "a <break> is at most 60 s long"),
        ({"input": f'<break time="{"9" * 400}s"/>', "voice": "ann"}, "input", "a <break> is at most 60 s long"),
        ({"input": TEXT, "response_format": "midi"}, None, "response_format"),
    ],
)
def test_requests_that_are_refused(server: Running, fields: dict[str, object], param: str | None, message: str) -> None:
    status, body, _ = post(server, **fields)
    error = json.loads(body)["error"]
    assert (status, error.get("param")) == (400, param)
    assert message in error["message"]


def test_a_recording_of_a_voice_that_cannot_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "ann.wav").write_bytes(b"no audio")
    speaker = Speaker(make_runner(continuing_config()), tiny_tokenizer(), voices=tmp_path)
    with speaker, serving(speaker=ServedSpeaker(speaker)) as server:
        status, body, _ = post(server, input=TEXT, voice="ann.wav")
        error = json.loads(body)["error"]
        assert (status, error["param"]) == (400, "voice")
        assert error["message"] == "the recording of the voice 'ann.wav' is damaged or too short"


def test_a_body_that_is_not_json_or_too_long(server: Running) -> None:
    assert get(server.http + SPEECH, b"[1]")[0] == 400
    assert get(server.http + SPEECH, b"{")[0] == 400
    assert get(server.http + SPEECH, b'{"input": ' + b"[" * 20_000)[0] == 400
    assert get(server.http + SPEECH, b"x" * 70_000)[0] == 413


def test_a_default_voice_replaces_unknown_ones(folder: Path) -> None:
    with speaking(folder, default="bob") as server:
        _, body, _ = post(server, input=TEXT, voice="alloy", response_format="pcm")
        np.testing.assert_allclose(np.frombuffer(body, "<i2") / 32767, spoken(server, "bob"), atol=1e-4)


def test_keys_are_required(folder: Path) -> None:
    with speaking(folder, keys=KeyRing.of(["secret"])) as server:
        assert post(server, input=TEXT)[0] == 401
        with pytest.raises(Exception, match="401"):
            asyncio.run(socket_session(server, "PcmMessagePack"))


def test_a_server_without_a_speaker() -> None:
    with serving() as server:
        status, body, _ = post(server, input=TEXT)
        assert (status, "start it with --speech" in json.loads(body)["error"]["message"]) == (404, True)
        with pytest.raises(Exception, match="404"):
            asyncio.run(socket_session(server, "Pcm"))


# ------------------------------------------------------------------------------------------- Kyutai's socket


async def socket_session(
    server: Running, format: str, messages: list[bytes | str] | None = None, query: str = "&voice=ann"
) -> tuple[list[object], int | None]:
    received: list[object] = []
    async with connect(f"{server.ws}{SOCKET}?format={format}{query}") as socket:
        for message in messages or [pack(type="Text", text="the"), pack(type="Text", text="fox"), pack(type="Eos")]:
            await socket.send(message)
        with contextlib.suppress(ConnectionClosed):
            async for data in socket:
                assert isinstance(data, bytes)
                received.append(msgpack.unpackb(data) if format.endswith("MessagePack") else data)
        return received, socket.close_code


def test_messages_of_kyutai(server: Running) -> None:
    received, code = asyncio.run(socket_session(server, "PcmMessagePack"))
    kinds = [message["type"] for message in received]
    assert code == 1000
    assert kinds[0] == "Ready"
    words = [message for message in received if message["type"] == "Text"]
    assert [word["text"] for word in words] == ["the", "fox"]
    assert words[0]["stop_s"] == words[1]["start_s"]
    pcm = np.concatenate([message["pcm"] for message in received if message["type"] == "Audio"])
    np.testing.assert_allclose(pcm, spoken(server), atol=1e-4)


@pytest.mark.parametrize("format", ["Pcm", "OggOpus", "OggOpusMessagePack"])
def test_formats_of_kyutai(server: Running, format: str) -> None:
    messages: list[bytes | str] = ["the fox", b"\0"]
    received, code = asyncio.run(socket_session(server, format, messages))
    assert code == 1000
    if format == "Pcm":
        np.testing.assert_allclose(np.frombuffer(b"".join(received), "<f4"), spoken(server), atol=1e-4)
        return
    data = [one if isinstance(one, bytes) else one.get("data", b"") for one in received]
    assert abs(len(load(io.BytesIO(b"".join(data)), 24_000)) - len(spoken(server))) < 2000


def test_a_voice_of_the_client(server: Running) -> None:
    embedding = voice(1).embeddings[0][None]
    sent = pack(type="Voice", embeddings=embedding.ravel().tolist(), shape=list(embedding.shape))
    messages: list[bytes | str] = [sent, pack(type="Text", text=TEXT), pack(type="Eos")]
    received, _ = asyncio.run(socket_session(server, "Pcm", messages))
    np.testing.assert_allclose(np.frombuffer(b"".join(received), "<f4"), spoken(server, "bob"), atol=1e-4)


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        b"[]",
        pack(type="Text"),
        pack(type="Sing", text="la"),
        pack(type="Voice", embeddings=[1.0], shape=[1, 2, 3]),
        pack(type="Voice", embeddings=[1.0], shape=[1, 1.0, 1.0]),
        pack(type="Voice", embeddings=[1.0], shape=[1, -1, -1]),
        pack(type="Voice", embeddings=[], shape=[1, 32, 0]),
        pack(type="Voice", embeddings=[{}], shape=[1, 1, 1]),
        pack(type="Voice", embeddings=[[1.0]], shape=[1, 1, 1]),
        msgpack.packb({"type": "Voice", "embeddings": [1e300], "shape": [1, 1, 1]}),
        pack(type="Voice", embeddings=[float("nan")] * 48, shape=[1, 8, 6]),
        pack(type="Text", text="x" * 300_000),
        b"\x81" * 1_100_000,
    ],
)
def test_messages_that_are_refused(server: Running, message: bytes, caplog: pytest.LogCaptureFixture) -> None:
    received, code = asyncio.run(socket_session(server, "PcmMessagePack", [message]))
    assert code == 1007
    assert "speech failed" not in caplog.text
    assert received[-1]["type"] == "Error"


def test_queries_that_are_refused(server: Running) -> None:
    with pytest.raises(Exception, match="400"):
        asyncio.run(socket_session(server, "Mp3"))
    _, code = asyncio.run(socket_session(server, "Pcm", query="&voice=../../etc/passwd"))
    assert code == 1007


# --------------------------------------------------------------------------------------------- many, and gone


def test_clients_that_vanish_free_their_slots(server: Running) -> None:
    async def vanish(number: int) -> None:
        socket = await connect(f"{server.ws}{SOCKET}?format=Pcm&voice=ann")
        await socket.send("the quick brown fox jumps over the lazy dog " * 20)
        if number % 2:
            await asyncio.wait_for(socket.recv(), 60)
        socket.transport.abort()

    async def all_vanish() -> None:
        await asyncio.gather(*(vanish(number) for number in range(6)))

    asyncio.run(all_vanish())
    wait_for(lambda: speaker_of(server).engine.active == 0, 30)
    assert post(server, input="fox", voice="ann", response_format="pcm")[0] == 200


def test_a_long_text_and_a_long_backlog_leave_turns_to_others(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of 40,000 words, and the frames that accumulate for a slow reader, are processed a little at a time."""
    worst, work = [0.0], SpeechStream.work

    def timed(stream: SpeechStream, until: float) -> bool:
        began = time.thread_time()
        more = work(stream, until)
        worst[0] = max(worst[0], time.thread_time() - began)
        return more

    async def slow() -> int:
        async with connect(f"{server.ws}{SOCKET}?format=OggOpus&voice=ann", max_queue=1) as socket:
            await socket.send("a fox " * 20_000)
            await asyncio.sleep(1)
            return sum([len(await socket.recv()) for _ in range(40)])

    monkeypatch.setattr(SpeechStream, "work", timed)
    gc.disable()  # a full collection of the test's own objects takes as long
    try:
        assert asyncio.run(slow()) > 1000
    finally:
        gc.enable()
    assert worst[0] < 0.1
    wait_for(lambda: speaker_of(server).engine.active == 0, 30)


def test_a_stream_is_freed_with_its_connection(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[weakref.ref[SpeechStream]] = []
    opened = SpeechStream.opened

    def open_(stream: SpeechStream) -> None:
        streams.append(weakref.ref(stream))
        opened(stream)

    async def leave() -> None:
        socket = await connect(f"{server.ws}{SOCKET}?format=OggOpus&voice=ann")
        await socket.send("the quick brown fox " * 20)
        await asyncio.wait_for(socket.recv(), 60)
        socket.transport.abort()

    monkeypatch.setattr(SpeechStream, "opened", open_)
    gc.disable()
    try:
        asyncio.run(leave())
        asyncio.run(socket_session(server, "Pcm"))
        assert len(streams) == 2
        wait_for(lambda: not any(ref() for ref in streams), 60)
    finally:
        gc.enable()


def test_a_socket_without_text_is_closed(folder: Path) -> None:
    with speaking(folder, limits=Limits(idle_seconds=0.2)) as server:
        _, code = asyncio.run(socket_session(server, "PcmMessagePack", [pack(type="Text", text="the fox runs")]))
        assert code == 4408
        wait_for(lambda: speaker_of(server).engine.active == 0)


def test_stopping_finishes_the_text_so_far(folder: Path) -> None:
    with speaking(folder) as server:

        async def session() -> int | None:
            async with connect(f"{server.ws}{SOCKET}?format=Pcm&voice=ann") as socket:
                await socket.send("the fox")
                while not speaker_of(server).engine.active:
                    await asyncio.sleep(0.01)
                server.server.handle_exit(15, None)
                frames = [data async for data in socket]
                assert frames
                return socket.close_code

        assert asyncio.run(session()) == 1000


def test_twenty_texts_and_twenty_streams(folder: Path) -> None:
    audio = speech(3, words=4)
    with speaking(folder, slots=20, runner=ScriptRunner(slots=20)) as server:

        async def transcribe() -> list[tuple[str, float, float]]:
            async with kyutai(server.address) as socket:
                for piece in chunks(audio, 4800):
                    await socket.send(audio_message(piece))
                await socket.send(pack(type="Marker", id=7))
                messages = await until(socket, "Marker")
                return words_received(messages)

        async def read_aloud() -> bytes:
            received, code = await socket_session(server, "Pcm", ["fox", b"\0"])
            assert code == 1000
            return b"".join(one for one in received if isinstance(one, bytes))

        async def everything() -> tuple[list[bytes], list[list[tuple[str, float, float]]]]:
            texts = asyncio.gather(*(read_aloud() for _ in range(20)))
            streams = asyncio.gather(*(transcribe() for _ in range(20)))
            return await texts, await streams

        speeches, transcripts = asyncio.run(everything())
    expected = np.frombuffer(speeches[0], "<f4")
    assert len(expected) > 20_000
    for pcm in speeches:
        np.testing.assert_allclose(np.frombuffer(pcm, "<f4"), expected, atol=1e-4)
    assert transcripts == [transcripts[0]] * 20
    assert len(transcripts[0]) >= 3


def test_unknown_encodings_are_refused() -> None:
    with pytest.raises(AudioError, match="expected mp3, opus"):
        StreamEncoder("midi", 24_000)
