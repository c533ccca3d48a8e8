from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.fakes import ScriptRunner, drive, new_session, silence, sound_of, speech, tiny_tokenizer, words_of

from slipstream.aio import AsyncSession
from slipstream.engine.options import SessionOptions
from slipstream.errors import AudioError, EngineError, Overloaded, SessionClosed
from slipstream.events import Event, Final, Flushed, MarkerReached, Ready, Word
from slipstream.transcriber import Transcriber

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
async def test_requests_are_passed_to_the_session() -> None:
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
async def test_leaving_the_context_or_dropping_the_session_frees_the_slot() -> None:
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
async def test_the_place_in_the_queue_is_reported() -> None:
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


# ------------------------------------------------------------------------------------------------------ failing senders

BAD = {
    "not a number": (np.array([0.0, np.nan]), "0.080 s is nan"),
    "text": (np.array(["a"]), "expected floats"),
    "two channels": (np.zeros((2, 100)), "one channel"),
    "16 bits as floats": (np.array([3000.0]), "divide 16-bit values"),
}


@in_loop
async def test_int16_samples_are_scaled() -> None:
    audio_S = np.round(speech(1, words=5) * 32767).astype(np.int16)
    async with hearing(ScriptRunner()) as transcriber, transcriber.async_session(QUIET) as session:
        _, events = await asyncio.gather(session.feed(np.array_split(audio_S, 5)), read(session))
    words = words_of(events)
    assert words == solo((audio_S / 32768).astype(np.float32))
    assert words


@pytest.mark.parametrize("kind", BAD)
def test_a_reader_gets_the_error_of_a_sender_in_another_task(kind: str) -> None:
    @in_loop
    async def run() -> None:
        chunk, message = BAD[kind]

        async def send(session: AsyncSession) -> None:
            await session.send(silence(1))
            await session.send(chunk)

        async with hearing(ScriptRunner()) as transcriber:
            async with transcriber.async_session(QUIET) as session:
                sending = asyncio.create_task(send(session))
                with pytest.raises(AudioError, match=message):
                    await read(session)
                with pytest.raises(AudioError, match=message):
                    await sending
            assert transcriber.engine.active == 0

    run()


@in_loop
async def test_a_reader_gets_the_error_of_the_chunks() -> None:
    async def chunks() -> AsyncIterator[np.ndarray]:
        yield silence(1)
        raise OSError("the socket is gone")

    async with hearing(ScriptRunner()) as transcriber, transcriber.async_session(QUIET) as session:
        feeding = asyncio.create_task(session.feed(chunks()))
        with pytest.raises(OSError, match="the socket is gone"):
            await read(session)
        with pytest.raises(OSError, match="the socket is gone"):
            await feeding


@in_loop
async def test_a_cancelled_sender_ends_its_reader() -> None:
    started = asyncio.Event()

    async def chunks() -> AsyncIterator[np.ndarray]:
        yield silence(1)
        started.set()
        await asyncio.sleep(60)

    async with hearing(ScriptRunner()) as transcriber, transcriber.async_session(QUIET) as session:
        feeding = asyncio.create_task(session.feed(chunks()))
        await started.wait()
        feeding.cancel()
        assert await read(session) == [Ready()]
