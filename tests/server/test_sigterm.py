"""SIGTERM in the middle of many streams loses no word of the audio that was accepted."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

import numpy as np
from benchmarks.scripted_server import server_process
from tests.fakes import FRAME_SAMPLES, speech
from tests.server.harness import RATE, solo

from slipstream.arrays import FloatArray
from slipstream.client import AsyncStream, ServerError, StreamEvent, open_async_stream
from slipstream.events import Final, Step, Word

SESSIONS = 50
HEARD_BEFORE = 20
UNHEARD = 4 * FRAME_SAMPLES


def test_fifty_streams_get_all_their_words() -> None:
    """No stream ends on its own, and none runs ahead of its messages: only the signal sets how much is transcribed."""
    recordings = [speech(seed=seed, words=12) for seed in range(SESSIONS)]
    with server_process(SESSIONS, step_seconds=0.002) as (process, address):
        streams = asyncio.run(all_streams(address, recordings, lambda: process.send_signal(signal.SIGTERM)))

    for recording_S, events in zip(recordings, streams, strict=True):
        final = events[-1]
        assert isinstance(final, Final)
        accepted_S = np.resize(recording_S, round(final.duration * RATE))
        assert len(accepted_S) >= HEARD_BEFORE * FRAME_SAMPLES
        assert [event for event in events if isinstance(event, Word)] == solo(accepted_S)


async def all_streams(address: str, recordings: list[FloatArray], stop: Callable[[], None]) -> list[list[StreamEvent]]:
    """Open a stream for each recording, one after another; stop the server when each has some words."""
    waiting = set(range(len(recordings)))

    def transcribed(number: int) -> None:
        waiting.discard(number)
        if not waiting:
            stop()

    async with contextlib.AsyncExitStack() as streams:
        running = []
        for number, recording_S in enumerate(recordings):
            stream = await streams.enter_async_context(open_async_stream(address))
            running.append(asyncio.create_task(listen(stream, number, recording_S, transcribed)))
        return await asyncio.gather(*running)


async def listen(
    stream: AsyncStream, number: int, recording_S: FloatArray, transcribed: Callable[[int], None]
) -> list[StreamEvent]:
    """Send the recording repeatedly, slightly ahead of its transcription. Returns all events."""
    events: list[StreamEvent] = []
    sent = 0

    async def send(until: int) -> None:
        nonlocal sent
        with contextlib.suppress(ServerError):
            while sent < until:
                chunk_S = np.take(recording_S, range(sent, sent + 1000 + 97 * number), mode="wrap")
                sent += len(chunk_S)
                await stream.send(chunk_S)

    await send(UNHEARD)
    async for event in stream:
        events.append(event)
        if isinstance(event, Step):
            if event.index == HEARD_BEFORE:
                transcribed(number)
            await send(event.index * FRAME_SAMPLES + UNHEARD)
    return events
