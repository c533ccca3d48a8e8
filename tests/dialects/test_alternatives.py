"""Clients that request alternatives of doubtful words, on a server that allows them and on one that does not."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.models import noise_and_tones, random_model, stt_config
from tests.server.harness import Running, serving
from websockets.asyncio.client import connect

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.client import open_stream
from slipstream.connections.limits import Limits
from slipstream.dialects.deepgram.v1 import open_dialect
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import ProtocolError, Send
from slipstream.events import Alternative, Final, Word
from slipstream.hints import Hints
from slipstream.testing import tiny_tokenizer

RATE = 24_000
AUDIO_S = noise_and_tones(2.0, seed=4)
PCM = (np.clip(AUDIO_S, -1, 1) * 32767).astype("<i2").tobytes()


@pytest.fixture(scope="module")
def runner() -> OnnxRunner:
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size)
    lm, codec = random_model(config)
    return OnnxRunner(config, lm, codec, slots=3, threads=1)


@pytest.fixture(scope="module")
def allowing(runner: OnnxRunner) -> Iterator[Running]:
    with serving(runner, limits=Limits(alternatives=3)) as running:  # type: ignore[arg-type]
        yield running


def words(running: Running, hints: Hints) -> list[Word]:
    with open_stream(running.http, sample_rate=RATE, hints=hints) as stream:
        stream.send(AUDIO_S)
        stream.finish()
        return [event for event in stream if isinstance(event, Word)]


def conversation(address: str, *sent: str | bytes) -> list[Any]:
    async def talk() -> list[Any]:
        async with connect(address) as socket:
            for message in sent:
                await socket.send(message)
            return [json.loads(message) async for message in socket]

    return asyncio.run(asyncio.wait_for(talk(), 60))


def deepgram_texts(channel: Any) -> list[str]:
    return [alternative["transcript"] for alternative in channel["alternatives"]]


def test_plain(allowing: Running) -> None:
    found = words(allowing, Hints(alternatives=2))
    doubtful = [word for word in found if word.alternatives]
    assert doubtful
    assert all(len(word.alternatives) == 1 and isinstance(word.alternatives[0], Alternative) for word in doubtful)
    assert all(word.text != word.alternatives[0].text for word in doubtful)
    assert {word.alternatives for word in words(allowing, Hints())} == {()}


def test_deepgram_live(allowing: Running) -> None:
    address = f"{allowing.ws}/v1/listen?encoding=linear16&sample_rate={RATE}&punctuate=true&alternatives="
    results = conversation(f"{address}3", PCM, json.dumps({"type": "CloseStream"}))
    written = [deepgram_texts(result["channel"]) for result in results if result["type"] == "Results"]
    assert max(map(len, written)) in (2, 3)
    assert all(len(set(texts)) == len(texts) for texts in written)
    for result in results:
        if result["type"] == "Results":
            confidences = [one["confidence"] for one in result["channel"]["alternatives"]]
            assert max(confidences) == confidences[0]
    (single,) = {
        len(result["channel"]["alternatives"])
        for result in conversation(f"{address}1", PCM, json.dumps({"type": "CloseStream"}))
        if result["type"] == "Results"
    }
    assert single == 1


def test_deepgram_upload(allowing: Running) -> None:
    address = f"{allowing.http}/v1/listen?encoding=linear16&sample_rate={RATE}&alternatives="
    for most, counts in ((3, {2, 3}), (1, {1})):
        with urllib.request.urlopen(urllib.request.Request(f"{address}{most}", PCM), timeout=60) as response:
            (channel,) = json.load(response)["results"]["channels"]
        assert len(deepgram_texts(channel)) in counts


def test_vosk(allowing: Running) -> None:
    config = json.dumps({"config": {"sample_rate": RATE, "max_alternatives": 3}})
    *_, last = conversation(f"{allowing.ws}/vosk", config, PCM, '{"eof": 1}')
    texts = [alternative["text"] for alternative in last["alternatives"]]
    assert len(texts) == len(set(texts)) > 1
    assert [word["word"] for word in last["alternatives"][1]["result"]] == texts[1].split()


def test_a_server_allows_no_alternatives_by_default(runner: OnnxRunner) -> None:
    with serving(runner) as running:  # type: ignore[arg-type]
        assert {word.alternatives for word in words(running, Hints(alternatives=3))} == {()}


def test_a_server_gives_no_more_alternatives_than_it_allows(runner: OnnxRunner) -> None:
    with serving(runner, limits=Limits(alternatives=8)) as running:  # type: ignore[arg-type]
        found = words(running, Hints(alternatives=8))  # the model has three slots
    assert max(len(word.alternatives) for word in found) == 2


def test_deepgram_transcripts_that_read_the_same_come_once() -> None:
    query = (("encoding", "linear16"), ("sample_rate", "16000"), ("alternatives", "3"))
    models = Models({"script": StreamInfo("script", 0.5, 0.08)})
    dialect = open_dialect(StreamRequest(models, query, id="3f2a"))
    list(dialect.open())
    list(
        dialect.handle(
            Word("Bear,", 0.5, 0.9, 0.5, alternatives=(Alternative("bear", 0.3), Alternative("pear", 0.2))), 0
        )
    )
    messages = [json.loads(one.message) for one in dialect.handle(Final(2.0, 0.1), 0) if isinstance(one, Send)]
    assert deepgram_texts(messages[0]["channel"]) == ["bear", "pear"]
    with pytest.raises(ProtocolError, match="alternatives='0': expected a whole number from 1 to 100"):
        open_dialect(StreamRequest(models, (*query[:2], ("alternatives", "0")), id="3f2a"))
