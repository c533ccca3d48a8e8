"""Connections that end without a word of the server."""

from __future__ import annotations

import asyncio

import pytest
from tests.cuts import CuttingProxy
from tests.fakes import ScriptRunner
from tests.server.harness import RATE, Running, serving
from tests.test_resume import collect, expected, recording, texts

from slipstream import client
from slipstream.client import ServerError, StreamEvent, open_async_stream
from slipstream.resume import ResumableStream


def test_a_server_that_falls_silent_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after the loss of a network, which TCP does not report."""
    monkeypatch.setattr(client, "SILENT_SECONDS", 2.0)
    audio_S = recording(5, words=6)

    async def talk(server: Running) -> list[StreamEvent]:
        async with CuttingProxy(server.address, [500, 3000], stall=True) as proxy:
            async with open_async_stream(proxy.address) as stream:
                await stream.send(audio_S)
                with pytest.raises(ServerError, match="has sent nothing for 2 s"):
                    [event async for event in stream]
            resumable = ResumableStream(proxy.address, sample_rate=RATE)
            resumable.send(audio_S)
            resumable.finish()
            events = await collect(resumable)
            assert proxy.connections == 3
            return events

    with serving(ScriptRunner(slots=2)) as server:
        assert texts(asyncio.run(asyncio.wait_for(talk(server), 60))) == expected(audio_S)
