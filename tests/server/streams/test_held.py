"""A stream whose connection is lost waits for its client, who continues it on another connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import RATE, Running, get, serving, solo, wait_for
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from slipstream.connections.keys import KeyRing, new_key
from slipstream.server.streams.held import Claim

AUDIO = np.concatenate([sound_of("fox", 8), silence(10), sound_of("dog", 8), silence(12)]).astype("<f4")
HALF = len(AUDIO) // 2
WORDS = [word.text for word in solo(AUDIO)]


@pytest.fixture
def server():
    with serving(ScriptRunner(slots=1), resume_seconds=20) as running:
        yield running


@asynccontextmanager
async def stream(server: Running, query: str = "", key: str = "") -> AsyncIterator[ClientConnection]:
    headers = {"kyutai-api-key": key} if key else {}
    rate = "" if "sample_rate=" in query else f"&sample_rate={RATE}"
    address = f"{server.ws}/v1/stream?encoding=pcm_f32le{rate}{query}"
    async with connect(address, additional_headers=headers) as socket:
        yield socket


async def begin(server: Running, key: str = "") -> tuple[ClientConnection, str, list[dict[str, Any]]]:
    """Send half of the audio, and read up to its last step. Returns the messages that are kept."""
    async with stream(server, key=key) as socket:
        messages = [json.loads(await socket.recv())]
        await socket.send(AUDIO[:HALF].tobytes())
        while messages[-1].get("index", 0) < HALF // 1920:
            messages.append(json.loads(await socket.recv()))
        session = messages[0]["session"]
        assert messages[0]["resumed"] is False
        socket.transport.abort()
    return socket, session, [message for message in messages if message["type"] not in ("step", "partial")]


async def rest(socket: ClientConnection, position: int) -> list[dict[str, Any]]:
    await socket.send(AUDIO[position:].tobytes())
    await socket.send(json.dumps({"type": "close"}))
    return [json.loads(message) async for message in socket]


def words(messages: list[dict[str, Any]]) -> list[str]:
    return [message["text"] for message in messages if message["type"] == "word"]


def release(server: Running, claim: Claim) -> None:
    """Release a stream in the server's event loop."""

    async def work() -> None:
        server.server.release(claim)

    loop = server.server.servers[0]._accepting.get_loop()
    asyncio.run_coroutine_threadsafe(work(), loop).result(20)


def run(talk: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(talk(), 20))  # type: ignore[arg-type]


def test_a_client_gets_what_it_has_not_received(server) -> None:
    async def talk() -> None:
        _, session, first = await begin(server)
        wait_for(lambda: "slipstream_held 1.0" in get(f"{server.http}/metrics")[1].decode())
        async with stream(server, f"&resume={session}&received=1") as socket:  # it pretends to have only `ready`
            ready = json.loads(await socket.recv())
            assert (ready["session"], ready["resumed"], ready["position"]) == (session, True, HALF)
            messages = await rest(socket, ready["position"])
        assert messages[: len(first) - 1] == first[1:]
        assert words(messages) == WORDS
        assert messages[-1]["type"] == "done"

    run(talk)


def test_a_client_that_lost_the_end_gets_it_again(server) -> None:
    async def talk() -> None:
        async with stream(server) as socket:
            session = json.loads(await socket.recv())["session"]
            first = await rest(socket, 0)
        wait_for(lambda: server.engine.active == 0)  # the slot is free
        async with stream(server, f"&resume={session}&received=1") as socket:
            again = [json.loads(message) async for message in socket]
        assert again[0]["resumed"] is True
        assert again[1:] == [message for message in first if message["type"] not in ("step", "partial")]

    run(talk)


def test_a_client_that_notices_the_loss_first_takes_over(server) -> None:
    async def talk() -> None:
        async with stream(server) as stale:
            ready = json.loads(await stale.recv())
            await stale.send(AUDIO[:HALF].tobytes())
            while json.loads(await stale.recv()).get("index", 0) < HALF // 1920:
                pass
            async with stream(server, f"&resume={ready['session']}&received=1") as socket:
                position = json.loads(await socket.recv())["position"]
                assert words(await rest(socket, position)) == WORDS
            stale.transport.abort()

    run(talk)


def test_a_stream_does_not_continue_within_a_sample(server) -> None:
    async def talk() -> None:
        async with stream(server) as stale:
            ready = json.loads(await stale.recv())
            await stale.send(AUDIO[:HALF].tobytes() + b"\0")
            while json.loads(await stale.recv()).get("index", 0) < HALF // 1920:
                pass
            async with stream(server, f"&resume={ready['session']}&received=1") as socket:  # the server has not lost it
                assert json.loads(await socket.recv())["resumed"] is False
                assert words(await rest(socket, 0)) == WORDS

    run(talk)


@pytest.mark.parametrize(
    "change", ["&sample_rate=16000", "&channels=2", "&keyword=a", "&received=2000", "&received=x", ""]
)
def test_another_request_begins_a_new_stream(change) -> None:
    async def talk(server: Running) -> None:
        _, session, _ = await begin(server)
        query = f"&resume={session}{change}" if change else "&resume=guess&received=1"
        async with stream(server, query) as socket:
            ready = json.loads(await socket.recv())
            assert (ready["resumed"], ready["position"]) == (False, 0)
            assert ready["session"] != session

    with serving(ScriptRunner(slots=2), resume_seconds=20) as server:
        run(lambda: talk(server))


def test_a_request_with_repeated_parameters_is_refused_and_ends_no_stream(server) -> None:
    async def talk() -> None:
        _, session, _ = await begin(server)
        for more, name in (("&received=2", "received"), (f"&resume={session}", "resume")):
            with pytest.raises(InvalidStatus) as refused:
                async with stream(server, f"&resume={session}&received=1{more}"):
                    pass
            body = f"{name}: expected one value, got 2".encode()
            assert (refused.value.response.status_code, refused.value.response.body) == (400, body)
        async with stream(server, f"&resume={session}&received=1") as socket:
            assert json.loads(await socket.recv())["resumed"] is True

    run(talk)


def test_another_key_does_not_continue_a_stream(tmp_path) -> None:
    (mine, line), (other, second) = new_key("mine"), new_key("other")
    (tmp_path / "keys").write_text(f"{line}\n{second}\n")

    async def talk(server: Running) -> None:
        _, session, _ = await begin(server, mine)
        for key, resumed in ((other, False), (mine, True)):
            async with stream(server, f"&resume={session}&received=1", key) as socket:
                assert json.loads(await socket.recv())["resumed"] is resumed

    with serving(ScriptRunner(slots=2), keys=KeyRing.read(tmp_path / "keys"), resume_seconds=20) as server:
        run(lambda: talk(server))


def test_a_stream_that_continues_in_another_process_frees_its_slot_here() -> None:
    claims: list[Claim] = []

    async def talk(server: Running, other: Running) -> None:
        _, session, _ = await begin(server)
        async with stream(other, f"&resume={session}&received=1") as socket:
            assert json.loads(await socket.recv())["resumed"] is False
        async with stream(other, f"&resume={session}&received=1&keyword=a") as socket:
            await socket.recv()
        same, changed = claims
        release(server, Claim(session, "other", same.query))
        release(server, changed)
        assert server.engine.active == 1
        release(server, same)
        await asyncio.to_thread(wait_for, lambda: server.engine.active == 0)

    with serving(resume_seconds=60) as server, serving(resume_seconds=60, elsewhere=claims.append) as other:
        run(lambda: talk(server, other))


def test_the_slot_is_free_after_the_time() -> None:
    async def talk(server: Running) -> None:
        await begin(server)
        await asyncio.to_thread(wait_for, lambda: server.engine.active == 0)

    with serving(ScriptRunner(slots=1), resume_seconds=0.05) as server:
        run(lambda: talk(server))


def test_a_client_that_closes_in_order_frees_its_slot(server) -> None:
    async def talk() -> None:
        async with stream(server) as socket:
            await socket.recv()
            await socket.send(AUDIO[:HALF].tobytes())
            await socket.recv()
        await asyncio.to_thread(wait_for, lambda: server.engine.active == 0)

    run(talk)


def test_a_server_that_stops_does_not_wait_for_clients() -> None:
    async def talk(server: Running) -> None:
        await begin(server)
        wait_for(lambda: "slipstream_held 1.0" in get(f"{server.http}/metrics")[1].decode())

    with serving(ScriptRunner(slots=1), resume_seconds=60) as server:
        run(lambda: talk(server))
        server.server._stopping = True
        wait_for(lambda: server.server._drain is not None and server.server._drain.done())
        assert server.server._drain is not None
        assert server.server._drain.result() is True
