"""Streams over the WebSockets of another ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from tests.fakes import ScriptRunner, silence, sound_of, tiny_tokenizer
from tests.server.harness import RATE, solo, wait_for

from slipstream.client import ServerError, open_stream, transcribe
from slipstream.connections.access import Access
from slipstream.connections.asgi import AsgiWebSocket
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.events import Ready
from slipstream.resume import ResumableStream
from slipstream.server.http.app import Service
from slipstream.server.run import Server, listen

AUDIO = np.concatenate([sound_of("fox", 8), silence(10), sound_of("dog", 8), silence(12)])


@contextlib.contextmanager
def behind_asgi(limits: Limits | None = None, **options: Any) -> Iterator[tuple[str, Service]]:
    """A server whose WebSockets uvicorn alone accepts, in the same event loop."""
    listener, own = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    servers: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await AsgiWebSocket(servers[0].accept, service.limits, scope, receive, send).run()

    async def run() -> None:
        servers.append(Server(service))
        outer = uvicorn.Config(
            app, lifespan="off", log_config=None, ws="websockets-sansio", timeout_graceful_shutdown=1
        )
        servers.append(uvicorn.Server(outer))
        await asyncio.gather(servers[0].serve([own]), servers[1].serve([listener]))

    with Engine(ScriptRunner(slots=2), tiny_tokenizer()) as engine:
        access = options.pop("access", None) or Access("127.0.0.1")
        service = Service(engines=Models({"script": engine}), access=access, limits=limits or Limits(), **options)
        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            wait_for(lambda: len(servers) == 2 and all(server.started for server in servers))
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
        finally:
            for server in servers:
                server.should_exit = True
            thread.join()


def test_words_are_those_of_the_recording() -> None:
    with behind_asgi(Limits(buffered_seconds=1)) as (url, service):
        pieces = np.array_split(AUDIO, 7)
        assert [word.text for word in transcribe(url, pieces).words] == [word.text for word in solo(AUDIO)]
        wait_for(lambda: service.engine.active == 0)


def test_a_client_that_leaves_frees_its_slot() -> None:
    with behind_asgi() as (url, service):
        with open_stream(url, sample_rate=RATE) as stream:
            assert isinstance(next(iter(stream)), Ready)
            stream.send(AUDIO)
            assert service.engine.active == 1
        wait_for(lambda: service.engine.active == 0)


def test_a_lost_connection_is_held() -> None:
    async def talk(url: str) -> list[bool]:
        stream = ResumableStream(url, sample_rate=RATE)
        stream.send(AUDIO)
        await stream.connect()
        resumed = [stream.resumed]
        async for event in stream:
            if getattr(event, "index", 0) >= 10:
                break
        await stream.connect()
        await stream.disconnect()
        return [*resumed, stream.resumed]

    with behind_asgi(resume_seconds=10) as (url, _):
        assert asyncio.run(asyncio.wait_for(talk(url), 60)) == [False, True]


@pytest.mark.parametrize(("limits", "message"), [(Limits(message_bytes=1000), "message is too large")])
def test_a_message_that_is_too_large_closes_the_stream(limits, message) -> None:
    with behind_asgi(limits) as (url, _), pytest.raises(ServerError, match=message):
        transcribe(url, [AUDIO])


def test_a_refusal_has_its_status() -> None:
    access = Access("127.0.0.1", KeyRing.of(["secret"]))
    with behind_asgi(access=access) as (url, _):
        with pytest.raises(ServerError) as caught, open_stream(url, sample_rate=RATE, key="wrong"):
            pass
        assert caught.value.code == 401
        with open_stream(url, sample_rate=RATE, key="secret") as stream:
            assert isinstance(next(iter(stream)), Ready)


def test_a_server_error_is_sent_before_the_close() -> None:
    with behind_asgi() as (url, _), open_stream(url, sample_rate=RATE) as stream:
        stream._send(json.dumps({"type": "nonsense"}))
        with pytest.raises(ServerError, match="unknown type 'nonsense'"):
            list(stream)
