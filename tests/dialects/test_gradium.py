"""The successor of Kyutai's protocol."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.sequences import messages, sequences, state_after
from tests.fakes import ScriptRunner, speech
from tests.server.harness import Running, chunks, serving, solo
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedOK

from slipstream.dialects.gradium import ORDER, GradiumDialect
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, Audio, Finish, Flush, Marker, Open, ProtocolError, Send
from slipstream.events import OpenWord, Step

SAMPLES = {
    "setup": '{"type": "setup", "model_name": "default", "input_format": "pcm", "json_config": {"language": "fr"}}',
    "audio": '{"type": "audio", "audio": "AAD/fwCA"}',
    "flush": '{"type": "flush", "flush_id": "1"}',
    "end_of_stream": '{"type": "end_of_stream"}',
}


def dialect() -> GradiumDialect:
    return GradiumDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.48, 0.08)}), id="7f"))


@given(st.data())
def test_the_table_of_legal_messages(data: st.DataObject) -> None:
    assert messages(ORDER) == sorted(SAMPLES)
    sequence = data.draw(sequences(ORDER))
    stream = dialect()
    for kind in sequence:
        list(stream.receive(SAMPLES[kind]))
    state = state_after(ORDER, sequence)
    for kind in set(SAMPLES) - set(ORDER[state]):
        with pytest.raises(ProtocolError, match=f"'{kind}' in the state '{state}'"):
            list(stream.receive(SAMPLES[kind]))


def test_actions() -> None:
    stream = dialect()
    actions: list[Action] = [action for kind in SAMPLES for action in stream.receive(SAMPLES[kind])]
    assert [type(action) for action in actions if not isinstance(action, Audio)] == [Open, Marker, Flush, Finish]
    decoded = [value for action in actions if isinstance(action, Audio) for value in action.pcm_S.tolist()]
    assert decoded == [0.0, 32767 / 32768, -1.0]


def test_the_model_adds_confidence_and_language_to_a_word() -> None:
    stream = dialect()
    sent = [
        action.message
        for event in (OpenWord("hel", 1.0, 0.9), OpenWord("hello", 1.0, 0.9), OpenWord("you", 2.0, 0.9))
        for action in stream.handle(event, 0)
        if isinstance(action, Send)
    ]
    assert [json.loads(message)["text"] for message in sent] == ["hel", "lo", "you"]


@given(st.integers(1, 10**9), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_step_has_the_rounded_probability_of_each_horizon(index: int, pause: list[float]) -> None:
    (action,) = dialect().handle(Step(index, tuple(pause), 0), 0)
    assert isinstance(action, Send)
    assert action.droppable
    vad = [
        {"horizon_s": horizon, "inactivity_prob": round(p, 4)}
        for horizon, p in zip((0.5, 1.0, 2.0, 3.0), pause, strict=False)
    ]
    message = json.loads(action.message)
    assert message.pop("total_duration_s") == pytest.approx(0.08 * index)
    assert message == {"type": "step", "step_idx": index, "step_duration_s": 0.08, "vad": vad}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ([b"\0"], "expected text messages"),
        (['{"type": ["a"]}'], "in the state 'new': expected setup"),
        (['{"type": "setup", "model_name": "large"}'], "unknown model 'large'"),
        (['{"type": "setup", "input_format": "mp3"}'], "input_format='mp3': expected one of pcm, pcm_8000"),
        (['{"type": "setup", "input_format": ["pcm"]}'], "input_format="),
        ([SAMPLES["setup"], '{"type": "audio", "audio": "A"}'], "audio: not base64"),
        ([SAMPLES["setup"], '{"type": "audio", "audio": 1}'], "audio: expected base64"),
        ([SAMPLES["setup"], '{"type": "flush"}'], "flush_id=None"),
        ([SAMPLES["setup"], json.dumps({"type": "flush", "flush_id": "x" * 65})], "at most 64 characters"),
    ],
)
def test_errors_name_the_problem(sent: list[bytes | str], says: str) -> None:
    stream = dialect()
    for message in sent[:-1]:
        list(stream.receive(message))
    with pytest.raises(ProtocolError, match=says):
        list(stream.receive(sent[-1]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=9) | st.text(max_size=30) | st.sampled_from(list(SAMPLES.values())), max_size=6))
def test_any_messages_are_actions_or_a_clean_error(given_messages: list[bytes | str]) -> None:
    stream = dialect()
    try:
        for message in given_messages:
            list(stream.receive(message))
    except ProtocolError:
        pass


# --------------------------------------------------------------------------------------------------------------- live


async def converse(running: Running, pause: float) -> tuple[list[Any], list[Any]]:
    """Set up, send speech, flush in its middle and at its end, send more, end. Returns two lists of messages."""
    audio_S = speech(seed=4, words=6)
    async with connect(f"{running.ws}/api/speech/asr", max_queue=None) as socket:

        async def until(kind: str) -> list[Any]:
            received: list[Any] = []
            while not received or received[-1]["type"] != kind:
                received.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
            return received

        await socket.send(SAMPLES["setup"])
        ready = (await until("ready"))[-1]
        assert (ready["sample_rate"], ready["frame_size"], ready["delay_in_tokens"]) == (24_000, 1920, 6)
        for piece_S in chunks(audio_S, 1920):
            pcm = (piece_S * 32767).round().astype("<i2").tobytes()
            await socket.send(json.dumps({"type": "audio", "audio": base64.b64encode(pcm).decode()}))
            await asyncio.sleep(pause)
        await socket.send(json.dumps({"type": "flush", "flush_id": "last"}))
        flushed = await until("flushed")
        await socket.send(SAMPLES["end_of_stream"])
        ended = await until("end_of_stream")
        with pytest.raises(ConnectionClosedOK):
            await asyncio.wait_for(socket.recv(), 20)
    return flushed, ended


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_flush_brings_all_words_and_a_second_connection_the_same(pause: float) -> None:
    alone = solo(speech(seed=4, words=6))
    with serving(ScriptRunner(slots=1)) as running:
        for _ in range(2):
            flushed, ended = asyncio.run(converse(running, pause))
            texts = [message for message in flushed if message["type"] == "text"]
            assert [(message["text"], message["start_s"]) for message in texts] == [(w.text, w.start) for w in alone]
            assert len([message for message in flushed if message["type"] == "end_text"]) == len(alone)
            assert flushed[-1] == {"type": "flushed", "flush_id": "last"}
            steps = [message for message in flushed if message["type"] == "step"]
            assert [entry["horizon_s"] for entry in steps[0]["vad"]] == [0.5, 1.0, 2.0, 3.0]
            assert all(0 <= entry["inactivity_prob"] <= 1 for step in steps for entry in step["vad"])
            assert not [message for message in ended if message["type"] == "text"]


def test_the_key_of_gradiums_clients() -> None:
    from slipstream.connections.keys import KeyRing, new_key

    key, _ = new_key("desk")
    with serving(ScriptRunner(slots=1), keys=KeyRing.of([key])) as running:

        async def ready() -> str:
            address = f"{running.ws}/api/speech/asr"
            async with connect(address, additional_headers={"x-api-key": key}) as socket:
                await socket.send(SAMPLES["setup"])
                return str(json.loads(await socket.recv())["type"])

        assert asyncio.run(ready()) == "ready"
