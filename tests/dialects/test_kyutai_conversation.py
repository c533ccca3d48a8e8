"""Whole conversations in Kyutai's protocol, over a socket, by a client that knows only msgpack and WebSockets."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgpack
import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of, speech
from tests.server.harness import (
    RATE,
    SILENCE,
    audio_message,
    chunks,
    expected,
    kyutai,
    pack,
    receive,
    serving,
    solo,
    until,
    words_received,
)
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits


async def script(address: str, audio_S: Any, pace: float | None) -> list[dict[str, Any]]:
    """What Kyutai's file script does: 1 s of silence, the audio, 5 s, a marker, 35 s; reads until the marker."""
    async with kyutai(address, key="public_token") as socket:

        async def send() -> None:
            await socket.send(audio_message(SILENCE))
            for chunk in chunks(audio_S, 1920):
                await socket.send(audio_message(chunk))
                if pace:
                    await asyncio.sleep(len(chunk) / RATE / pace)
            for _ in range(5):
                await socket.send(audio_message(SILENCE))
            await socket.send(pack(type="Marker", id=0))
            for _ in range(35):
                await socket.send(audio_message(SILENCE))

        sending = asyncio.create_task(send())
        messages = await until(socket, "Marker")
        await sending
        return messages


@pytest.mark.parametrize("pace", [None, 4.0])
def test_kyutais_own_script(pace: float | None) -> None:
    audio_S = speech(seed=1, words=8)
    with serving(keys=KeyRing.of(["public_token"])) as running:
        messages = asyncio.run(script(running.address, audio_S, pace))
    words = solo(np.concatenate([SILENCE, audio_S, *[SILENCE] * 5]))
    assert messages[0] == {"type": "Ready"}
    assert messages[-1] == {"type": "Marker", "id": 0}
    assert words_received(messages) == expected(words)
    assert len(words) >= 8


def test_no_silence_at_all() -> None:
    audio_S = speech(seed=2, words=8)

    async def client(address: str) -> tuple[list[dict[str, Any]], float]:
        async with kyutai(address) as socket:
            await socket.send(audio_message(audio_S))
            await socket.send(pack(type="Marker", id=7))
            began = time.monotonic()
            return await until(socket, "Marker"), time.monotonic() - began

    with serving() as running:
        messages, seconds = asyncio.run(client(running.address))
    assert words_received(messages) == expected(solo(audio_S))
    assert messages[-1]["id"] == 7
    assert seconds < 3.0


@pytest.mark.parametrize("size", [480, 1920, 7001, 24_000])
def test_any_chunk_size_is_drained_immediately(size: int) -> None:
    audio_S = speech(seed=3, words=5)

    async def client(address: str) -> list[dict[str, Any]]:
        async with kyutai(address) as socket:
            for chunk in chunks(audio_S, size):
                await socket.send(audio_message(chunk))
            await socket.send(pack(type="Marker", id=1))
            return await until(socket, "Marker")

    with serving() as running:
        messages = asyncio.run(client(running.address))
    assert words_received(messages) == expected(solo(audio_S))
    steps = [message for message in messages if message["type"] == "Step"]
    assert [step["step_idx"] for step in steps] == list(range(1, len(audio_S) // 1920 + 1))
    assert all(len(step["prs"]) == 4 for step in steps)


def test_a_marker_is_never_early() -> None:
    """Markers between the words of a stream that continues: each comes after its words, before later ones."""
    pieces = [speech(seed=seed, words=3) for seed in range(4)]

    async def client(address: str) -> list[list[dict[str, Any]]]:
        async with kyutai(address) as socket:
            for id, piece in enumerate(pieces):
                await socket.send(audio_message(piece))
                await socket.send(pack(type="Marker", id=id))
            return [await until(socket, "Marker") for _ in pieces]

    with serving() as running:
        parts = asyncio.run(client(running.address))
    assert [part[-1]["id"] for part in parts] == [0, 1, 2, 3]
    transcribed = words_received([message for part in parts for message in part])
    assert transcribed == expected(solo(np.concatenate(pieces)))
    end = 0.0
    for piece, part in zip(pieces, parts, strict=True):
        end += len(piece) / RATE
        texts_before = sum(word.start < end - 0.081 for word in solo(np.concatenate(pieces)))
        told = sum(message["type"] == "Word" for past in parts[: parts.index(part) + 1] for message in past)
        assert told >= texts_before


def test_a_model_without_pause_heads_sends_no_steps() -> None:
    """As their server: Unmute and their microphone script read `prs[2]` of every `Step`."""
    audio_S = speech(seed=1, words=8)

    async def unmute(address: str) -> tuple[list[str], list[float]]:
        texts, pauses = [], []
        async with kyutai(address) as socket:
            await socket.send(audio_message(audio_S))
            await socket.send(pack(type="Marker", id=1))
            async for data in socket:
                message = msgpack.unpackb(data)
                if message["type"] == "Word":
                    texts.append(message["text"])
                elif message["type"] == "Step":
                    pauses.append(message["prs"][2])
                elif message["type"] == "Marker":
                    break
        return texts, pauses

    for heads in (0, 4):
        with serving(ScriptRunner(slots=1, pause_heads=heads)) as running:
            texts, pauses = asyncio.run(unmute(running.address))
        assert texts == [word.text for word in solo(audio_S)]
        assert len(pauses) == (len(audio_S) // 1920 if heads else 0)


@pytest.mark.parametrize("then", ["silent audio", "no audio"])
def test_a_client_that_goes_silent_without_a_marker_gets_its_last_word(then: str) -> None:
    async def client(address: str) -> list[dict[str, Any]]:
        async with kyutai(address) as socket:
            await socket.send(audio_message(sound_of("fox", 3)))
            if then == "silent audio":
                await socket.send(audio_message(silence(13)))  # a second: the model's delay is eight
            return await until(socket, "EndWord")

    runner = ScriptRunner(slots=1, delay_frames=100)
    with serving(runner, flush_after_silence=1.0) as running:
        messages = asyncio.run(client(running.address))
    assert [text for text, _, _ in words_received(messages)] == ["fox"]


def test_init_resets_the_stream_and_drops_its_queue() -> None:
    before, after = speech(seed=4, words=30), speech(seed=5, words=5)

    async def client(address: str) -> list[dict[str, Any]]:
        async with kyutai(address) as socket:
            assert await receive(socket) == {"type": "Ready"}
            await socket.send(audio_message(before))
            await socket.send(pack(type="Init"))
            await socket.send(audio_message(after))
            await socket.send(pack(type="Marker", id=1))
            messages = await until(socket, "Ready")
            assert len(messages) < len(before) // 1920  # most of the first recording was not processed
            return await until(socket, "Marker")

    with serving(ScriptRunner(slots=1, step_seconds=0.005)) as running:
        messages = asyncio.run(client(running.address))
    assert words_received(messages) == expected(solo(after))
    assert next(message for message in messages if message["type"] == "Step")["step_idx"] == 1


def test_a_full_server_sends_the_error_of_the_reference() -> None:
    async def client(address: str) -> tuple[dict[str, Any], int]:
        async with kyutai(address) as first:
            assert await receive(first) == {"type": "Ready"}
            async with kyutai(address) as second:
                error = await receive(second)
                await _closed(second)
                code = second.close_code
        return error, code or 0

    with serving(ScriptRunner(slots=1)) as running:
        error, code = asyncio.run(client(running.address))
    assert error["type"] == "Error"
    assert "slots are in use" in error["message"]
    assert code == 1013


def test_a_full_server_sends_the_place_in_its_queue() -> None:
    async def client(address: str) -> list[dict[str, Any]]:
        async with kyutai(address) as first:
            assert await receive(first) == {"type": "Ready"}
            async with kyutai(address) as second, kyutai(address) as third:
                told = [await receive(second), await receive(third)]
                await first.close()
                told += [await receive(second), await receive(third)]
                return told

    with serving(ScriptRunner(slots=1), queue_seconds=20) as running:
        told = asyncio.run(client(running.address))
    assert told == [
        {"type": "Queued", "position": 1},
        {"type": "Queued", "position": 2},
        {"type": "Ready"},
        {"type": "Queued", "position": 1},
    ]


@pytest.mark.parametrize("key", [None, "wrong"])
def test_no_key_no_socket(key: str | None) -> None:
    async def client(address: str) -> int:
        with pytest.raises(InvalidStatus) as refused:
            async with kyutai(address, key=key):
                pass
        status: int = refused.value.response.status_code
        return status

    with serving(keys=KeyRing.of(["right"])) as running:
        assert asyncio.run(client(running.address)) == 401


def test_invalid_bytes_get_an_error_and_end_the_connection() -> None:
    async def client(address: str) -> tuple[list[dict[str, Any]], int]:
        async with kyutai(address) as socket:
            await socket.send(b"\xc1")
            messages = await until(socket, "Error")
            await _closed(socket)
            return messages, socket.close_code or 0

    with serving() as running:
        messages, code = asyncio.run(client(running.address))
        assert running.engine.active == 0
    assert messages[-1]["message"].startswith("not a msgpack message")
    assert code == 1007


def test_a_giant_message_is_refused() -> None:
    async def client(address: str) -> int:
        async with kyutai(address) as socket:
            await socket.send(bytes(200_000))
            await _closed(socket)
            return socket.close_code or 0

    with serving(limits=Limits(message_bytes=100_000)) as running:
        assert asyncio.run(client(running.address)) == 1009


async def _closed(socket: ClientConnection) -> None:
    await asyncio.wait_for(socket.wait_closed(), 10)
