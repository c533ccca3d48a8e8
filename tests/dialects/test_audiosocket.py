"""Asterisk's AudioSocket: a log of frames against the dialect and against a live server."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.sequences import messages, sequences, state_after
from tests.dialects.test_twilio import follow, words
from tests.fakes import ScriptRunner, speech
from tests.server.harness import Running, serving, solo
from websockets.asyncio.client import connect

from slipstream.arrays import FloatArray
from slipstream.dialects import TCP_DIALECTS
from slipstream.dialects.audiosocket import HANG_UP, ORDER, RATES, AudioSocketDialect
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.protocol import Action, Audio, Finish, Open, ProtocolError, Publish

ID = uuid.UUID("40325ec2-5efd-4bd3-805f-53576e581d13")


def frame(kind: int, payload: bytes = b"") -> bytes:
    return bytes([kind]) + len(payload).to_bytes(2, "big") + payload


SAMPLES = {
    "uuid": frame(0x01, ID.bytes),
    "audio": frame(0x10, b"\0\1" * 160),
    "dtmf": frame(0x03, b"5"),
    "error": frame(0xFF, b"\1"),
    "hangup": HANG_UP,
}


def log(audio_S: FloatArray, kind: int = 0x13) -> list[bytes]:
    """The frames of a call: UUID, 20 ms of audio each, a DTMF digit, hang-up."""
    data = (audio_S * 32767).round().astype("<i2").tobytes()
    size = RATES[kind] // 50 * 2
    audio = [frame(kind, data[position : position + size]) for position in range(0, len(data), size)]
    return [SAMPLES["uuid"], *audio[:10], SAMPLES["dtmf"], *audio[10:], HANG_UP]


def dialect() -> AudioSocketDialect:
    return AudioSocketDialect(StreamRequest(Models({"tiny": StreamInfo("tiny", 0.5, 0.08)})))


@given(st.data())
def test_the_table_of_legal_frames(data: st.DataObject) -> None:
    assert messages(ORDER) == sorted(SAMPLES)
    sequence = data.draw(sequences(ORDER))
    stream = dialect()
    for kind in sequence:
        list(stream.receive(SAMPLES[kind]))
    state = state_after(ORDER, sequence)
    for kind in set(SAMPLES) - set(ORDER[state]):
        with pytest.raises(ProtocolError, match=f"'{kind}' in the state '{state}'"):
            list(stream.receive(SAMPLES[kind]))


@given(st.lists(st.integers(0, 7000), max_size=20))
def test_actions_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    data = b"".join(log(speech(seed=1, words=1)[:4000]))

    def run(pieces: list[bytes]) -> tuple[list[Action], bytes]:
        stream = dialect()
        actions = [action for piece in pieces for action in stream.receive(piece)]
        audio = b"".join(action.pcm_S.tobytes() for action in actions if isinstance(action, Audio))
        return [action for action in actions if not isinstance(action, Audio)], audio

    borders = sorted(cuts)
    pieces = [data[a:b] for a, b in zip([0, *borders], [*borders, len(data)], strict=True)]
    others, audio = run(pieces)
    assert (others, audio) == run([data])
    assert [type(action) for action in others] == [Publish, Open, Publish, Finish]
    assert len(audio) == 4 * 4000


@pytest.mark.parametrize(("kind", "rate"), RATES.items())
def test_every_rate(kind: int, rate: int) -> None:
    stream = dialect()
    actions = [*stream.receive(SAMPLES["uuid"] + frame(kind, bytes(2 * (rate // 50))) * 50), *stream.receive(HANG_UP)]
    assert sum(len(action.pcm_S) for action in actions if isinstance(action, Audio)) == 24_000


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\n", "unknown kind of frame 0x47"),
        (frame(0x01, b"short"), "a UUID has 16 bytes, got 5"),
        (frame(0x10, b""), "'audio' in the state 'new': expected uuid"),
    ],
)
def test_errors_name_the_problem(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        list(dialect().receive(data))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from(list(SAMPLES.values())), max_size=6))
def test_any_bytes_are_actions_or_a_clean_error(pieces: list[bytes]) -> None:
    stream = dialect()
    try:
        for piece in pieces:
            list(stream.receive(piece))
    except ProtocolError:
        pass


# --------------------------------------------------------------------------------------------------------------- live


async def call(running: Running, frames: list[bytes], pause: float) -> tuple[list[dict[str, Any]], bytes]:
    """Play a log. Returns what comes by the second socket, and what Asterisk gets."""
    async with connect(f"{running.ws}/v1/calls?id={ID}", max_queue=None) as calls:
        following = asyncio.create_task(follow(calls))
        reader, writer = await asyncio.open_connection("127.0.0.1", running.tcp_ports["audiosocket"])
        for data in frames:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(pause)
        returned = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return await following, returned


@pytest.mark.parametrize("pause", [0.0, 0.002])
@pytest.mark.parametrize("hang_up", [True, False])
def test_a_log_of_frames(pause: float, hang_up: bool) -> None:
    audio_S = np.concatenate([speech(seed=5, words=5), np.zeros(4800, np.float32)])

    async def run(running: Running) -> tuple[list[dict[str, Any]], bytes]:
        if hang_up:
            return await call(running, log(audio_S), pause)
        async with connect(f"{running.ws}/v1/calls?id={ID}", max_queue=None) as calls:  # the connection breaks
            following = asyncio.create_task(follow(calls))
            _, writer = await asyncio.open_connection("127.0.0.1", running.tcp_ports["audiosocket"])
            writer.writelines(log(audio_S)[:-1])
            writer.close()
            await writer.wait_closed()
            return await following, HANG_UP

    with serving(ScriptRunner(slots=1), tcp=TCP_DIALECTS) as running:
        for _ in range(2):
            received, returned = asyncio.run(run(running))
            assert words(received, "inbound") == [word.text for word in solo(audio_S)]
            assert received[0] == {"type": "start", "call": str(ID), "tracks": ["inbound"], "model": "script"}
            assert [message["digit"] for message in received if message["type"] == "dtmf"] == ["5"]
            assert returned == HANG_UP


def test_an_error_hangs_up() -> None:
    with serving(ScriptRunner(slots=1), tcp=TCP_DIALECTS) as running:

        async def run() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.tcp_ports["audiosocket"])
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            returned = await asyncio.wait_for(reader.read(), 20)
            writer.close()
            return returned

        assert asyncio.run(run()) == HANG_UP
