from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.fakes import ScriptRunner, drive, new_session, silence, sound_of, speech, tiny_tokenizer, words_of

from slipstream.aio import AsyncSession
from slipstream.engine.session import SessionOptions
from slipstream.errors import EngineError, Overloaded, SessionClosed
from slipstream.transcriber import Transcriber
from slipstream.types import Event, Final, Flushed, MarkerReached, Ready, Word

QUIET = SessionOptions(partials=False)
Coroutine = Callable[[], Awaitable[None]]


def in_loop(test: Coroutine) -> Callable[[], None]:
    """Run a coroutine as a test, bounded in time."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 30))

    return run


@asynccontextmanager
async def hearing(runner: ScriptRunner) -> AsyncIterator[Transcriber]:
    transcriber = Transcriber(runner, tiny_tokenizer(), model="levels")
    try:
        yield transcriber
    finally:
        await asyncio.to_thread(transcriber.close)


def solo(audio_S: np.ndarray) -> list[Word]:
    runner = ScriptRunner()
    return words_of(drive(new_session(runner), runner, [audio_S]))


async def read(session: AsyncSession) -> list[Event]:
    return [event async for event in session]


@in_loop
async def test_many_sessions_send_and_read_in_one_loop() -> None:
    async def live(transcriber: Transcriber, number: int) -> list[Word]:
        options = SessionOptions(partials=False, max_buffered_seconds=1.0)
        async with transcriber.async_session(options, wait=20) as session:
            reader = asyncio.create_task(read(session))
            for chunk in np.array_split(speech(number, words=6), 7):
                await session.send(chunk)
                await asyncio.sleep(0)
            session.finish()
            events = await reader
        assert (type(events[0]), type(events[-1])) == (Ready, Final)
        return words_of(events)

    async with hearing(ScriptRunner(slots=4)) as transcriber:
        found = await asyncio.gather(*(live(transcriber, number) for number in range(12)))
        assert transcriber.engine.active == 0
    assert found == [solo(speech(number, words=6)) for number in range(12)]


@in_loop
async def test_sending_waits_for_room_and_leaves_the_loop_free() -> None:
    async with hearing(ScriptRunner(step_seconds=0.002)) as transcriber:
        options = SessionOptions(partials=False, max_buffered_seconds=1.0)
        async with transcriber.async_session(options) as session:
            sending = asyncio.create_task(session.send(silence(50)))
            turns = 0
            while not sending.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert turns > 10
            assert session.clock > 2


@in_loop
async def test_wishes_are_answered() -> None:
    async with hearing(ScriptRunner()) as transcriber, transcriber.async_session(QUIET) as session:
        await session.send(sound_of("fox", 5))
        session.flush()
        session.mark(3)
        events = []
        while not isinstance((event := await anext(session)), Flushed):
            events.append(event)
        assert [word.text for word in words_of(events)] == ["fox"]
        assert MarkerReached(3) in events
        session.restart()
        assert await anext(session) == Ready()
        await session.send(sound_of("dog", 5))
        session.finish()
        assert [word.text for word in words_of(await read(session))] == ["dog"]
        with pytest.raises(SessionClosed):
            await session.send(silence(1))


@in_loop
async def test_leaving_early_frees_the_slot_and_so_does_forgetting() -> None:
    async with hearing(ScriptRunner(slots=1)) as transcriber:
        async with transcriber.async_session(QUIET) as session:
            await session.send(speech(1, words=3))
            with pytest.raises(Overloaded):
                transcriber.async_session(QUIET)
        assert transcriber.engine.active == 0
        forgotten = transcriber.async_session(QUIET)
        del forgotten
        gc.collect()
        transcriber.async_session(QUIET).cancel()


@in_loop
async def test_a_place_in_the_queue_is_told() -> None:
    async with hearing(ScriptRunner(slots=1)) as transcriber:
        holder = transcriber.async_session(QUIET)
        waiting = transcriber.async_session(QUIET, wait=20)
        assert (holder.queue_position, waiting.queue_position) == (0, 1)
        holder.cancel()
        assert await anext(waiting) == Ready()
        waiting.cancel()
        assert await read(waiting) == []


@in_loop
async def test_a_failing_engine_reaches_the_reader() -> None:
    async with hearing(ScriptRunner(crash_after=3)) as transcriber, transcriber.async_session(QUIET) as session:
        await session.send(silence(10))
        with pytest.raises(EngineError, match="on fire"):
            await read(session)
