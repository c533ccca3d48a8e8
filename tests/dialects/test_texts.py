"""JSON of clients: what no client may send ends its connection by the rules of its protocol."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from tests.fakes import ScriptRunner, sound_of
from tests.server.harness import serving
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from slipstream.dialects.texts import parse_json

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


@pytest.mark.parametrize("text", [r'{"a":["\ud800"]}', rf'{{"{HALF}":1}}', '"\ud800"'.encode("utf-8", "surrogatepass")])
def test_half_a_surrogate_pair_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_json(text)


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
