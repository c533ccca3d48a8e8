"""JSON of clients: what no client may send ends its connection by the rules of its protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import ScriptRunner, sound_of
from tests.server.harness import serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from slipstream.dialects import DIALECTS
from slipstream.dialects.models import Models, SpeechInfo, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Dialect, ProtocolError
from slipstream.dialects.speech import find_speech_dialect
from slipstream.dialects.speech.protocol import SpeechDialect
from slipstream.dialects.texts import PARSED_CHARACTERS, b64decode, parse_json, parse_object

HALF = r"\uD800"
RAW = "encoding=linear16&sample_rate=24000"
AUDIO = (sound_of("fox", frames=10) * 32767).astype("<i2").tobytes()
MESSAGES: dict[str, list[str | bytes]] = {
    "/v1/stream": [f'{{"type":"{HALF}"}}'],
    "/vosk": [f'{{"config":{{"sample_rate":24000,"phrase_list":["{HALF}"]}}}}', AUDIO],
    "/api/speech/asr": ['{"type":"setup","input_format":"pcm"}', f'{{"type":"flush","flush_id":"{HALF}"}}'],
    f"/v1/listen?{RAW}": [AUDIO, f'{{"type":"Configure","keyterms":["{HALF}"]}}', '{"type":"CloseStream"}'],
    f"/v2/listen?{RAW}": [AUDIO, f'{{"type":"Configure","keyterms":["{HALF}"]}}'],
    "/v1/realtime?intent=transcription": [f'{{"type":"session.update","event_id":"{HALF}"}}'],
}


@pytest.mark.parametrize("text", [r'"\ud83d\ude00"', '"\U0001f600 í"', '"í \U0001f600"'.encode(), r'["\\ud800"]'])
def test_whole_characters_are_parsed(text: str | bytes) -> None:
    assert parse_json(text) == json.loads(text)


def outcome(read: Callable[[str], object], text: str) -> str:
    """Return the value that a function reads, or its error, as text: NaN is not equal to itself."""
    try:
        return repr(read(text))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists),
    st.text('"\\{}[],:eu0 -+.N', max_size=2),
    st.data(),
)
def test_json_is_parsed_as_by_the_standard_library(value: object, change: str, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=False)
    start = data.draw(st.integers(0, len(text)))
    text = text[:start] + change + text[start + data.draw(st.integers(0, 1)) :]
    assert outcome(parse_json, text) == outcome(json.loads, text)


@pytest.mark.parametrize(
    "text", ['{"a": "í"}'.encode("utf-16"), '["í"]'.encode("utf-8-sig"), "[" * 300 + "]" * 300, "1" * 4000]
)
def test_other_encodings_and_deep_lists_are_parsed(text: str | bytes) -> None:
    assert parse_json(text) == json.loads(text)


@given(st.binary(max_size=60), st.text("A+/=-_ é\n", max_size=3), st.data())
def test_base64_is_decoded_as_by_the_standard_library(given_bytes: bytes, change: str, data: st.DataObject) -> None:
    text = base64.b64encode(given_bytes).decode()
    start = data.draw(st.integers(0, len(text)))
    text = text[:start] + change + text[start + data.draw(st.integers(0, 2)) :]
    assert outcome(b64decode, text) == outcome(partial(base64.b64decode, validate=True), text)


@pytest.mark.parametrize("text", [r'{"a":["\ud800"]}', rf'{{"{HALF}":1}}', '"\ud800"'.encode("utf-8", "surrogatepass")])
def test_half_a_surrogate_pair_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_json(text)


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" ,\n", " : ")])
def test_a_long_string_is_cut_out_of_a_message(separators: tuple[str, str]) -> None:
    audio = base64.b64encode(bytes(1 << 20)).decode()
    messages = [
        ({"type": "audio", "audio": audio, "x": [1, "é"]}, "audio"),
        ({"event": "media", "media": {"track": "a", "payload": audio}, "payload": 1}, "payload"),
        ({"text": "a " * 50_000, "flush": True}, "text"),
    ]
    for message, long in messages:
        assert parse_object(json.dumps(message, separators=separators), long) == message


@pytest.mark.parametrize(
    "start",
    [
        '{"audio": "',
        '{"audio": "AAAA\\n',
        '{"audio": "AAAA", "x": "',
        '{"audio": ["',
        '{"x": {"audio": "AAAA"}, "y": "',
    ],
)
def test_a_long_message_without_a_long_string_is_not_parsed(start: str) -> None:
    with pytest.raises(ProtocolError, match="at most 65536 characters in addition to its audio"):
        parse_object(start + "A" * PARSED_CHARACTERS)


LISTS = '"x": [' + "[]," * 1_300_000 + "0]}"
BEFORE = {
    "/api/speech/asr": ['{"type": "setup", "input_format": "pcm"}', '{"type": "audio", "audio": "", '],
    "/v1/twilio": ['{"event": "media", "media": {"payload": ""}, '],
    "/v1/realtime?intent=transcription": ['{"type": "input_audio_buffer.append", "audio": "", '],
    "/v1/realtime": ['{"type": "session.update", "model": "a", "audio": "", '],
    "/v1/text-to-speech/a/stream-input": ['{"text": "a", '],
}


@pytest.mark.parametrize("address", BEFORE)
def test_no_dialect_parses_a_million_lists(address: str) -> None:
    """It would take 1.5 s, in which no other stream is served."""
    *first, last = BEFORE[address]
    path, _, query = address.partition("?")
    if (speech := find_speech_dialect(path)) is not None:
        dialect: Dialect | SpeechDialect = speech([], SpeechInfo("a"))
    else:
        models = Models({"a": StreamInfo("a", 0.5, 0.08)})
        dialect = DIALECTS[path](StreamRequest(models, parse_qsl(query)))
    said = ""
    try:
        for message in [*first, last + LISTS]:
            said += str(list(dialect.receive(message)))
    except ProtocolError as error:
        said += str(error)
    assert "at most 65536 characters" in said


def test_half_a_surrogate_pair_is_an_error_of_each_protocol(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(address: str, messages: list[str | bytes]) -> list[str]:
        received = []
        async with asyncio.timeout(20), connect(address) as socket:
            try:
                for message in messages:
                    await socket.send(message)
                while not received or "surrogate" not in received[-1]:
                    received.append(str(await socket.recv()))
            except ConnectionClosed as closed:
                received.append(closed.reason)
        return received

    with caplog.at_level(logging.ERROR, "slipstream"), serving(ScriptRunner(slots=6)) as running:
        for path, messages in MESSAGES.items():
            assert "half of a surrogate pair" in asyncio.run(talk(running.ws + path, messages))[-1], path
    assert not caplog.records
