"""SIGTERM in the middle of many streams loses no word of the audio that was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from tests.fakes import speech
from tests.server.harness import RATE, chunks, solo
from tests.server.scripted import server_process

from slipstream.client import ServerError, StreamEvent, open_async_stream
from slipstream.types import Final, Step, Word

SESSIONS = 50
HEARD_BEFORE = 10


def test_fifty_streams_get_all_their_words() -> None:
    recordings = [speech(seed=seed, words=12) for seed in range(SESSIONS)]

    async def client(address: str, number: int, heard: Callable[[int], None]) -> list[StreamEvent]:
        async with open_async_stream(address) as stream:

            async def send() -> None:
                with contextlib.suppress(ServerError):
                    for chunk in chunks(recordings[number], 1000 + 97 * number):
                        await stream.send(chunk)
                        await asyncio.sleep(0.02)

            sending = asyncio.create_task(send())
            events = []
            async for event in stream:
                events.append(event)
                if isinstance(event, Step) and event.index == HEARD_BEFORE:
                    heard(number)
            await sending
            return events

    async def all_clients(address: str, stop: Callable[[], None]) -> list[list[StreamEvent]]:
        waiting = set(range(SESSIONS))

        def heard(number: int) -> None:
            waiting.discard(number)
            if not waiting:
                stop()

        return await asyncio.gather(*(client(address, number, heard) for number in range(SESSIONS)))

    with server_process(SESSIONS, step_seconds=0.002) as (process, address):
        streams = asyncio.run(all_clients(address, lambda: process.send_signal(signal.SIGTERM)))

    cut_short = 0
    for recording_S, events in zip(recordings, streams, strict=True):
        final = events[-1]
        assert isinstance(final, Final)
        accepted = round(final.duration * RATE)
        assert [event for event in events if isinstance(event, Word)] == solo(recording_S[:accepted])
        cut_short += accepted < len(recording_S)
    assert cut_short > SESSIONS // 2, "the signal came when most streams were over"
