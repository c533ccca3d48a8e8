"""The protocol of vosk-server: its messages, and the conversation of its test client against a live server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.sequences import messages, sequences, state_after
from tests.fakes import ScriptRunner, silence, speech
from tests.server.harness import Running, chunks, serving, solo
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from slipstream.arrays import FloatArray
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, Audio, Close, CloseCode, ProtocolError, Send
from slipstream.dialects.vosk import ORDER, VoskDialect
from slipstream.events import Alternative, Final, PartialWord, Turn, Word

SAMPLES: dict[str, bytes | str] = {
    "config": '{ "config" : { "sample_rate" : 16000 } }',
    "audio": b"\0\0" * 320,
    "reset": '{"reset" : 1}',
    "eof": '{"eof" : 1}',
}
HELLO, YOU = Word("hello", 0.5, 0.9, 0.75), Word("you", 3.0, 3.25, 0.5)


def dialect() -> VoskDialect:
    return VoskDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.5, 0.08)})))


def answers(actions: list[Action]) -> list[Any]:
    return [json.loads(action.message) for action in actions if isinstance(action, Send)]


@given(st.data())
def test_the_table_of_legal_messages(data: st.DataObject) -> None:
    assert messages(ORDER) == sorted(SAMPLES)
    sequence = data.draw(sequences(ORDER))
    stream, opened = dialect(), False
    for kind in sequence:
        actions = list(stream.receive(SAMPLES[kind]))
        assert len(answers(actions)) == (kind == "audio" or (kind != "config" and not opened))
        opened |= kind == "audio"
    state = state_after(ORDER, sequence)
    for kind in set(SAMPLES) - set(ORDER[state]):
        with pytest.raises(ProtocolError, match=f"'{kind}' in the state '{state}'"):
            list(stream.receive(SAMPLES[kind]))


def test_one_answer_for_each_message() -> None:
    stream = dialect()
    assert answers(list(stream.receive(b"\0\0" * 80))) == [{"partial": ""}]
    list(stream.handle(PartialWord("hel", 0.5), 0))
    assert answers(list(stream.receive(b"\0\0" * 80))) == [{"partial": "hel"}]
    for event in (HELLO, PartialWord("wo", 1.0)):
        list(stream.handle(event, 0))
    assert answers(list(stream.receive(b""))) == [{"partial": "hello wo"}]
    for event in (Turn(0.5, 0.9), YOU):
        list(stream.handle(event, 0))
    timed = {"conf": 0.75, "end": 0.9, "start": 0.5, "word": "hello"}
    assert answers(list(stream.receive(b"\0\0"))) == [{"result": [timed], "text": "hello"}]
    assert answers(list(stream.receive(b"\0\0"))) == [{"partial": "you"}]
    assert answers(list(stream.handle(Final(4.0, 0.1), 0)))[0]["text"] == "you"


@pytest.mark.parametrize(
    ("config", "result"),
    [
        ({"words": 0}, {"text": "hello you"}),
        (
            {"max_alternatives": 3, "words": False, "phrase_list": ["hello"]},
            {
                "alternatives": [
                    {"confidence": 0.625, "text": "hello you"},
                    {"confidence": 0.5, "text": "hallo you"},
                ]
            },
        ),
    ],
)
def test_settings(config: dict[str, Any], result: dict[str, Any]) -> None:
    stream = dialect()
    list(stream.receive(json.dumps({"config": config})))
    doubtful = replace(HELLO, alternatives=(Alternative("hallo", 0.4),))
    for event in (doubtful, YOU):
        list(stream.handle(event, 0))
    assert answers(list(stream.handle(Final(4.0, 0.1), 0))) == [result]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("{}", "expected config, eof or reset"),
        ("[1]", "expected a JSON object"),
        ("eof", "not a JSON message"),
        ('{"config": 1}', "config: expected an object"),
        ('{"config": {"sample_rate": "fast"}}', "sample_rate='fast'"),
        ('{"config": {"sample_rate": 8000.5}}', "sample_rate=8000.5"),
        ('{"config": {"sample_rate": NaN}}', "sample_rate=nan"),
        ('{"config": {"sample_rate": 100}}', "expected at least 4000 Hz"),
        ('{"config": {"max_alternatives": -1}}', "max_alternatives=-1: expected a whole number from 0 to 100"),
        ('{"config": {"max_alternatives": "two"}}', "max_alternatives='two'"),
        ('{"config": {"model": "large"}}', "unknown model 'large': this server has tiny"),
    ],
)
def test_errors_name_the_problem(message: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        list(dialect().receive(message))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=50) | st.text(max_size=30) | st.sampled_from(list(SAMPLES.values())), max_size=6))
def test_any_messages_are_actions_or_a_clean_error(given_messages: list[bytes | str]) -> None:
    stream = dialect()
    try:
        for message in given_messages:
            for action in stream.receive(message):
                assert not isinstance(action, Close)
                assert not isinstance(action, Audio) or len(action.pcm_S) <= 9000
    except ProtocolError:
        pass


# --------------------------------------------------------------------------------------------------------------- live


async def converse(running: Running, audio_S: FloatArray, pause: float = 0.0, reset: bool = False) -> list[Any]:
    """What vosk-server's test client does: send 0.2 s, wait for the answer, and so on; then `eof`."""
    received: list[Any] = []
    async with connect(f"{running.ws}/vosk") as socket:
        await socket.send('{ "config" : { "sample_rate" : 24000 } }')
        for piece_S in chunks(audio_S, 4800):
            await socket.send((piece_S * 32767).round().astype("<i2").tobytes())
            received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
            await asyncio.sleep(pause)
        if reset:
            await socket.send('{"reset" : 1}')
            received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
        await socket.send('{"eof" : 1}')
        received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
        with pytest.raises(ConnectionClosedOK):
            await asyncio.wait_for(socket.recv(), 20)
    return received


@pytest.mark.parametrize("pause", [0.0, 0.05])
@pytest.mark.parametrize("reset", [False, True])
def test_the_test_clients_conversation(pause: float, reset: bool) -> None:
    audio_S = np.concatenate([speech(seed=1, words=4), silence(15), speech(seed=2, words=3)])
    with serving(ScriptRunner(slots=1)) as running:
        received = asyncio.run(converse(running, audio_S, pause, reset))
        again = asyncio.run(converse(running, audio_S, pause, reset))  # a second connection
    assert all(("partial" in answer) != ("text" in answer) for answer in received)
    for answers_ in (received, again):
        words = [word for answer in answers_ for word in answer.get("result", [])]
        assert [word["word"] for word in words] == [word.text for word in solo(audio_S)]
        assert all(0 <= word["start"] <= word["end"] and 0 < word["conf"] <= 1 for word in words)
        starts = [word["start"] for word in words]
        assert starts == sorted(starts)
    if reset:
        assert received[-1] == {"text": ""}


def test_an_error_closes_and_the_next_connection_works() -> None:
    async def fail(running: Running) -> tuple[Any, int]:
        async with connect(f"{running.ws}/vosk") as socket:
            await socket.send("{}")
            message = json.loads(await socket.recv())
            with pytest.raises(ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            return message, closed.value.rcvd.code

    with serving(ScriptRunner(slots=1)) as running:
        message, code = asyncio.run(fail(running))
        assert "expected config, eof or reset" in message["error"]
        assert code == CloseCode.INVALID_PAYLOAD
        assert asyncio.run(converse(running, silence(5)))[-1] == {"text": ""}
