"""ElevenLabs' streaming input: messages as their reference describes them, against a live server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.harness import Running, wait_for
from tests.server.spoken import speaker_of, speaking
from tests.speaking import save_model
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from slipstream.audio import load
from slipstream.connections.keys import KeyRing
from slipstream.dialects.models import SpeechInfo
from slipstream.dialects.speech.elevenlabs import ElevenLabsSpeech
from slipstream.dialects.speech.protocol import Begin, EndText, FlushText, Text
from slipstream.speaker import to_pcm16

pytest.importorskip("torch")

TEXT = "the quick fox"
FIRST = {"text": " ", "voice_settings": {"stability": 0.5, "similarity_boost": 0.8}, "xi_api_key": "any"}
MESSAGES = [FIRST, {"text": "the qu"}, {"text": "ick fox ", "try_trigger_generation": True}, {"text": ""}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with speaking(folder) as running:
        yield running


async def talk(
    server: Running, messages: list[Any], format: str = "pcm_24000", voice: str = "ann", **headers: str
) -> tuple[list[dict[str, Any]], int | None]:
    """All messages of the server, and its close code."""
    address = f"{server.ws}/v1/text-to-speech/{voice}/stream-input?model_id=any&output_format={format}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    received: list[dict[str, Any]] = []
    async with connect(address, additional_headers=named) as socket:
        for message in messages:
            await socket.send(message if isinstance(message, bytes | str) else json.dumps(message))
        try:
            async for data in socket:
                received.append(json.loads(data))
        except ConnectionClosed:
            pass
        return received, socket.close_code


def audio_of(messages: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(message["audio"]) for message in messages if message["audio"])


def test_a_text_with_the_times_of_its_characters(server: Running) -> None:
    messages, code = asyncio.run(talk(server, MESSAGES))
    alone = speaker_of(server).say(TEXT, "ann")  # style: allow
    assert code == 1000
    assert messages[-1] == {"audio": None, "isFinal": True, "normalizedAlignment": None, "alignment": None}
    assert not any(message["isFinal"] for message in messages[:-1])
    found, expected = np.frombuffer(audio_of(messages), "<i2"), np.frombuffer(to_pcm16(alone.samples), "<i2")
    assert len(found) == len(expected)
    np.testing.assert_allclose(found, expected, atol=4)
    text, starts, seconds = "", [], 0.0
    for message in messages:
        if (alignment := message["alignment"]) is not None:
            assert alignment == message["normalizedAlignment"]
            assert alignment["charDurationsMs"] == alignment["charsDurationsMs"]
            assert len(alignment["chars"]) == len(alignment["charDurationsMs"])
            text += "".join(alignment["chars"])
            starts += [seconds + ms / 1000 for ms in alignment["charStartTimesMs"]]
        seconds += len(base64.b64decode(message["audio"] or "")) / 48_000
    assert text == f"{TEXT} "
    for word, at in zip(alone.words, (0, 4, 10), strict=True):
        assert starts[at] == pytest.approx(word.start, abs=0.002)
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("format", "rate"), [("mp3_44100_128", 44_100), ("mp3_22050_32", 22_050), ("opus_48000_64", 0)]
)
def test_compressed_formats(server: Running, format: str, rate: int) -> None:
    messages, code = asyncio.run(talk(server, MESSAGES, format))
    expected = speaker_of(server).say(TEXT, "ann").samples  # style: allow
    assert code == 1000
    assert abs(len(load(io.BytesIO(audio_of(messages)), 24_000)) - len(expected)) < 3500


@pytest.mark.parametrize(
    ("format", "bytes_per_second"), [("pcm_16000", 32_000), ("ulaw_8000", 8000), ("alaw_8000", 8000)]
)
def test_formats_of_telephony(server: Running, format: str, bytes_per_second: int) -> None:
    messages, _ = asyncio.run(talk(server, MESSAGES, format))
    seconds = len(speaker_of(server).say(TEXT, "ann").samples) / 24_000  # style: allow
    assert len(audio_of(messages)) / bytes_per_second == pytest.approx(seconds, abs=0.001)


def test_a_flush_speaks_before_the_end(server: Running) -> None:
    async def session() -> tuple[bytes, str]:
        address = f"{server.ws}/v1/text-to-speech/bob/stream-input?output_format=pcm_24000"
        async with connect(address) as socket:
            await socket.send(json.dumps({"text": "the quick ", "flush": True}))
            text = ""
            while "quick" not in text:  # without more text, and without its end
                message = json.loads(await asyncio.wait_for(socket.recv(), 30))
                text += "".join((message["alignment"] or {"chars": []})["chars"])
            await socket.send(json.dumps({"text": "fox "}))
            await socket.send(json.dumps({"text": ""}))
            rest = [json.loads(data) async for data in socket]
            return audio_of(rest), text + "".join(
                "".join(message["alignment"]["chars"]) for message in rest if message["alignment"]
            )

    audio, text = asyncio.run(session())
    assert len(audio) > 1920
    assert text == f"{TEXT} "


def test_a_connection_without_text_ends_immediately(server: Running) -> None:
    messages, code = asyncio.run(talk(server, [FIRST, {"text": ""}]))
    assert (messages, code) == ([], 1000)


@pytest.mark.parametrize(
    ("messages", "voice", "says"),
    [
        ([{"text": 3}], "ann", "text=3: expected a string"),
        (["[]"], "ann", "expected a JSON object"),
        (["{"], "ann", "not a JSON message"),
        ([b"fox"], "ann", "a binary message: expected JSON"),
        ([{"text": "fox "}], "carl", "unknown voice 'carl'"),
        ([{"text": "fox "}], "..%2Fann", "unknown voice '../ann'"),
        ([{"text": "x" * 300_000}], "ann", "at most 200000 characters"),
    ],
)
def test_invalid_requests_are_refused(server: Running, messages: list[Any], voice: str, says: str) -> None:
    received, code = asyncio.run(talk(server, messages, voice=voice))
    assert code == 1007
    assert received[-1]["error"] == "invalid_payload"
    assert received[-1]["code"] == 1007
    assert says in received[-1]["message"]
    wait_for(lambda: speaker_of(server).engine.active == 0)


@pytest.mark.parametrize("format", ["wav", "pcm_11000", "mp3_44100", "pcm_8000_3", "ulaw_16000", "opus_44100_64"])
def test_unknown_formats_are_refused(server: Running, format: str) -> None:
    with pytest.raises(InvalidStatus, match="400"):
        asyncio.run(talk(server, MESSAGES, format))


def test_keys(folder: Path) -> None:
    with speaking(folder, keys=KeyRing.of(["secret"])) as running:
        with pytest.raises(InvalidStatus, match="401"):
            asyncio.run(talk(running, MESSAGES))
        assert asyncio.run(talk(running, MESSAGES, xi_api_key="secret"))[1] == 1000


def test_a_session_begins_with_the_first_word() -> None:
    dialect = ElevenLabsSpeech({"voice": "expresso/ann.wav"}, SpeechInfo("small"))
    assert list(dialect.receive(json.dumps(FIRST))) == []
    first = list(dialect.receive(json.dumps({"text": "fox ", "flush": True})))
    assert first == [Begin("expresso/ann.wav"), Text("fox "), FlushText()]
    assert list(dialect.receive(json.dumps({"text": "dog "}))) == [Text("dog ")]
    assert list(dialect.receive(json.dumps({"text": ""}))) == [EndText()]
