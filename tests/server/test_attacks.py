"""What hostile clients do is bounded, and clients that only look unusual are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

import msgpack
import numpy as np
import pytest
from benchmarks.attacks.opus import SILK_60_MS, opus_bomb
from tests.fakes import ScriptRunner, speech
from tests.server.harness import audio_message, kyutai, pack, receive, serving, solo, until, wait_for
from tests.server.http.test_app import raw_websocket, websocket_frame
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from slipstream.client import transcribe
from slipstream.connections.limits import Limits

BUFFERED = 2.0
MULAW = "/v1/stream?encoding=mulaw&sample_rate=4000"
BOMBS = {
    "/api/asr-streaming": msgpack.packb({"type": "OggOpus", "data": opus_bomb(SILK_60_MS, 1 << 16)}),
    MULAW: b"\xff" * (4 << 20),
}


@pytest.mark.parametrize("path", BOMBS)
def test_a_message_of_many_minutes_waits_for_room_and_delays_no_other_stream(path: str) -> None:
    """Decoded in one go, all of it would be in the buffer at the first step."""
    audio_S = speech(seed=1, words=6)

    async def client(address: str) -> None:
        async with connect(f"ws://{address}{path}", max_queue=None) as socket:
            await socket.send(BOMBS[path])
            for _ in range(20):
                message = await socket.recv()
                fields = msgpack.unpackb(message) if isinstance(message, bytes) else json.loads(message)
                if fields["type"].lower() == "step":
                    waiting = fields.get("buffered_pcm", fields.get("buffered"))
                    assert waiting <= BUFFERED * 24_000
            transcript = await asyncio.to_thread(transcribe, f"http://{address}", [audio_S])
            assert list(transcript.words) == solo(audio_S)
            socket.transport.abort()

    with serving(ScriptRunner(slots=2, step_seconds=0.001), limits=Limits(buffered_seconds=BUFFERED)) as running:
        asyncio.run(client(running.address))
        wait_for(lambda: running.engine.active == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells this before all data is read")
def test_a_client_that_leaves_while_its_message_waits_frees_its_slot() -> None:
    with serving(ScriptRunner(slots=1, step_seconds=0.05)) as running:
        client = raw_websocket(running.address)
        client.sendall(websocket_frame(BOMBS["/api/asr-streaming"]))
        wait_for(lambda: running.engine.active == 1)
        client.close()
        wait_for(lambda: running.engine.active == 0)


def test_pings_are_answered_and_floods_of_them_only_now_and_then() -> None:
    async def client(address: str) -> None:
        async with kyutai(address) as socket:
            await asyncio.wait_for(await socket.ping(), 10)
            last = [await socket.ping() for _ in range(3000)][-1]
            await socket.send(audio_message(np.zeros(1920, np.float32)))
            await until(socket, "Step")
            await asyncio.wait_for(last, 10)

    with serving(limits=Limits(messages_per_second=3000)) as running:
        asyncio.run(client(running.address))


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_a_message_may_come_in_fragments(pieces: int) -> None:
    message = audio_message(np.zeros(1920, np.float32))
    size = -(-len(message) // pieces)

    async def client(address: str) -> None:
        async with kyutai(address) as socket:
            await socket.send([message[start : start + size] for start in range(0, len(message), size)])
            await until(socket, "Step")

    with serving() as running:
        asyncio.run(client(running.address))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b"\x02\x81\0\0\0\0x", *[b"\0\x81\0\0\0\0x"] * 2000], 1008),
        ([b"\x02\x80\0\0\0\0", b"\0\x80\0\0\0\0"], 1008),
        ([b"\x81\xfe\x10\x01\0\0\0\0" + b" " * 4097], 1009),
        ([b"\x01\xfe\x10\0\0\0\0\0" + b" " * 4096, b"\x80\x81\0\0\0\0x"], 1009),
        ([b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)], 1009),
        ([b"\x81\x81\0\0\0\0\xff"], 1007),
        ([b"\x82\x01x"], 1002),
        ([b"\xc2\x81\0\0\0\0x"], 1002),
        ([b"\x02\x81\0\0\0\0x", b"\x82\x81\0\0\0\0x"], 1002),
    ],
    ids=[
        "many fragments",
        "an empty fragment",
        "a long text",
        "a long text in fragments",
        "a terabyte",
        "no UTF-8",
        "no mask",
        "an extension",
        "a message between fragments",
    ],
)
def test_useless_frames_close_the_connection(frames: list[bytes], code: int) -> None:
    with serving() as running:
        client = raw_websocket(running.address)
        client.settimeout(10)
        client.sendall(b"".join(frames))
        told = b""
        while piece := client.recv(65_536):
            told += piece
        client.close()
    assert code.to_bytes(2, "big") in told[-125:]


def test_restarts_are_paced() -> None:
    async def client(address: str) -> int:
        async with kyutai(address) as socket:
            for _ in range(20):
                await socket.send(pack(type="Init"))
            ready = 0
            with contextlib.suppress(asyncio.TimeoutError):
                while True:
                    ready += (await asyncio.wait_for(socket.recv(), 0.5)) == msgpack.packb({"type": "Ready"})
            socket.transport.abort()
            return ready

    with serving(limits=Limits(restarts_per_second=0.01)) as running:
        assert (
            asyncio.run(client(running.address)) == 1 + 5 + 1
        )  # at the start, the burst, and the one that has to wait


def test_markers_wait_for_those_before_them() -> None:
    async def client(address: str) -> list[int]:
        async with kyutai(address) as socket:
            await receive(socket)
            for id in range(30):
                await socket.send(pack(type="Marker", id=id))
            return [(await receive(socket))["id"] for _ in range(30)]

    with serving(limits=Limits(pending_markers=4)) as running:
        assert asyncio.run(client(running.address)) == list(range(30))


def test_a_client_that_sends_too_many_bytes_waits_and_loses_nothing() -> None:
    audio_S = speech(seed=7, words=5)
    with serving(limits=Limits(bytes_per_second=1_000_000)) as running:
        transcript = transcribe(running.http, [audio_S])
    assert list(transcript.words) == solo(audio_S)


def test_a_connection_that_breaks_in_the_middle_of_a_frame() -> None:
    async def client(address: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            async with kyutai(address) as socket:
                socket.transport.write(b"\x82\xfe")
                await asyncio.sleep(0.05)
                socket.transport.abort()

    with serving(ScriptRunner(slots=1)) as running:
        asyncio.run(client(running.address))
        wait_for(lambda: running.engine.active == 0)
