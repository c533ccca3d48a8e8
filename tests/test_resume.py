"""A stream over lost connections: its words and times are those of one connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cuts import CuttingProxy
from tests.fakes import LEXICON, ScriptRunner, silence, sound_of, tiny_tokenizer, words_of
from tests.models import noise_and_tones, random_model, stt_config
from tests.server.harness import FRAME, RATE, chunks, serving, solo, wait_for

from slipstream.arrays import FloatArray
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.client import Resumption, ServerError, StreamEvent, open_async_stream
from slipstream.connections.keys import KeyRing, new_key
from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import CloseCode
from slipstream.engine.engine import Engine
from slipstream.errors import AudioError, ConfigError
from slipstream.events import EndOfTurn, Final, MarkerReached, PartialWord, Step, Turn, Word
from slipstream.resume import ResumableStream
from slipstream.resume.blocking import listen
from slipstream.resume.tape import Tape
from slipstream.resume.text import FinalText

WORDS = [word for word in LEXICON if len(word) < 9]


def recording(seed: int, words: int) -> FloatArray:
    """Words that are longer than their tokens, between pauses."""
    random = np.random.default_rng(seed)
    pieces = [silence(random.integers(0, 5))]
    last = ""
    for _ in range(words):
        last = str(random.choice([word for word in WORDS if word != last]))
        pieces += [sound_of(last, int(random.integers(7, 10)))]
        if random.random() < 0.5:
            pieces.append(silence(random.uniform(1, 30)))
    return np.concatenate([*pieces, silence(8)])


async def collect(stream: ResumableStream) -> list[StreamEvent]:
    """All events, with a new connection whenever one is lost."""
    events: list[StreamEvent] = []
    for _ in range(200):
        try:
            await stream.connect()
            async for event in stream:
                events.append(event)
            return events
        except ServerError:
            await asyncio.sleep(0.02)
        finally:
            await stream.disconnect()
    raise AssertionError("200 connections were lost")


def texts(events: list[StreamEvent]) -> list[tuple[str, float, float]]:
    return [(event.text, round(event.start, 3), round(event.end, 3)) for event in events if isinstance(event, Word)]


def expected(audio_S: FloatArray) -> list[tuple[str, float, float]]:
    return [(word.text, round(word.start, 3), round(word.end, 3)) for word in solo(audio_S)]


@pytest.fixture(scope="module")
def server():
    with serving(ScriptRunner(slots=8)) as running:
        yield running


@pytest.fixture(scope="module")
def holding():
    with serving(ScriptRunner(slots=8), resume_seconds=5) as running:
        yield running


def solo_with_flush(audio_S: FloatArray, position: int) -> list[Word]:
    """The words of a recording that is flushed once."""
    with Engine(ScriptRunner(), tiny_tokenizer()) as engine, engine.open(wait=1) as session:
        session.send(audio_S[:position])
        session.flush()
        session.send(audio_S[position:])
        session.finish()
        return words_of(list(session))


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(1, 40_000), max_size=5),
    size=st.sampled_from([480, 1920, 5000]),
    context=st.sampled_from([1.0, 2.0, 4.0]),
)
def test_words_over_random_cuts_equal_those_of_one_connection(server, seed, cuts, size, context) -> None:
    audio_S = recording(seed, words=12)

    async def talk() -> tuple[ResumableStream, list[StreamEvent]]:
        async with CuttingProxy(server.address, cuts) as proxy:
            stream = ResumableStream(proxy.address, sample_rate=RATE, context_seconds=context)

            async def feed() -> None:
                for chunk in chunks(audio_S, size):
                    stream.send(chunk)
                    await asyncio.sleep(0)
                stream.finish()

            feeding = asyncio.create_task(feed())
            events = await collect(stream)
            await feeding
            return stream, events

    stream, events = asyncio.run(talk())
    assert texts(events) == expected(audio_S)
    assert events[-1] == Final(stream.duration, events[-1].flush_seconds)
    assert stream.duration == pytest.approx(len(audio_S) / RATE)
    steps = [event.index for event in events if isinstance(event, Step)]
    assert steps == sorted(set(steps))
    assert len(steps) <= np.ceil(len(audio_S) / FRAME)
    turns = [event for event in events if isinstance(event, Turn)]
    assert all(before.end < after.start < after.end for before, after in itertools.pairwise(turns))
    ends = [event.time for event in events if isinstance(event, EndOfTurn)]
    assert ends == sorted(set(ends))


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(500, 20_000), min_size=1, max_size=4))
def test_a_server_that_holds_the_slot_continues_exactly(holding, seed, cuts) -> None:
    audio_S = recording(seed, words=8)

    async def talk() -> tuple[list[StreamEvent], int, int]:
        async with CuttingProxy(holding.address, cuts) as proxy:
            stream = ResumableStream(proxy.address, sample_rate=RATE, context_seconds=0)
            stream.send(audio_S[: 20 * FRAME])
            stream.flush(id=3)
            stream.send(audio_S[20 * FRAME :])
            stream.finish()
            events: list[StreamEvent] = []
            connections = resumed = 0
            while not stream.done:
                with contextlib.suppress(ServerError):
                    await stream.connect()
                    connections, resumed = connections + 1, resumed + stream.resumed
                    async for event in stream:
                        events.append(event)
            return events, connections, resumed

    before = holding.engine.active
    events, connections, resumed = asyncio.run(talk())
    assert resumed == connections - 1  # every connection but the first continues it
    words = [(event.text, event.start, event.end) for event in events if isinstance(event, Word)]
    with_flush = solo_with_flush(audio_S, 20 * FRAME)
    assert words == [(word.text, word.start, word.end) for word in with_flush]
    assert [event.id for event in events if isinstance(event, MarkerReached)] == [3]
    wait_for(lambda: holding.engine.active == before)


@pytest.fixture(scope="module")
def model():
    """A server with a model whose text depends on the text before, and on the number of each frame."""
    config = stt_config(codec="whisper", text_vocab=tiny_tokenizer().vocab_size)
    with serving(OnnxRunner(config, *random_model(config), slots=4, threads=1)) as running:
        yield running


async def with_one_loss(stream: ResumableStream, audio_S: FloatArray, seconds: float) -> list[StreamEvent]:
    """All events, with a loss of the connection where this much audio is processed."""
    stream.send(audio_S)
    stream.finish()
    events: list[StreamEvent] = []
    lost = False
    while not stream.done:
        await stream.connect()
        async for event in stream:
            events.append(event)
            if isinstance(event, Step) and event.index * 0.08 > seconds and not lost:
                lost = True
                break
    return events


def test_a_fresh_slot_continues_the_text_of_the_lost_one(model) -> None:
    audio_S = noise_and_tones(12.0, seed=9)

    def words(context: float, history: bool) -> list[tuple[str, float, float]]:
        stream = ResumableStream(model.http, context_seconds=context, history=history)
        return texts(asyncio.run(with_one_loss(stream, audio_S, 7)))

    whole, found, without = words(12.0, True), words(3.0, True), words(3.0, False)
    assert found == whole
    assert without != whole


def test_a_server_refuses_a_text_that_it_did_not_write(model) -> None:
    async def connect(pieces: tuple[str, ...]) -> None:
        async with open_async_stream(model.http, resumption=Resumption(first_frame=0, pieces=pieces)) as stream:
            async for _ in stream:
                pass

    for pieces, problem in {
        ("AAAA",): "expected a text of this server",
        ("A" * 101,): "not URL-safe base64",
        ("AQ",): "expected a text",
    }.items():
        with pytest.raises(ServerError, match=problem) as refused:
            asyncio.run(connect(pieces))
        assert refused.value.code == 1007
    wait_for(lambda: model.engine.active == 0)


def test_it_continues_when_the_server_stops_and_starts_again() -> None:
    before_S, after_S = recording(3, words=4), recording(4, words=4)
    audio_S = np.concatenate([before_S, after_S])

    async def talk() -> list[StreamEvent]:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            server = first.enter_context(serving())
            stream = ResumableStream(server.http, sample_rate=RATE)
            stream.send(before_S)
            reading = asyncio.create_task(collect(stream))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(first.close)
            stream.send(after_S)  # while there is no server
            stream.finish()
            with pytest.raises(ServerError, match="cannot be reached"):
                await ResumableStream(server.http).connect()
            second.enter_context(serving(port=int(server.address.rpartition(":")[2])))
            return await reading

    assert texts(asyncio.run(talk())) == expected(audio_S)


HALF_OF_A_WORD = 9 * FRAME
CUT_S = np.concatenate([silence(3), sound_of("hôpital", 10), silence(10)])


def test_a_word_that_a_stopping_server_has_half_of_is_whole() -> None:
    async def talk() -> list[StreamEvent]:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            server = first.enter_context(serving())
            stream = ResumableStream(server.http, sample_rate=RATE)
            stream.send(CUT_S[:HALF_OF_A_WORD])
            reading = asyncio.create_task(collect(stream))
            while stream.lag > 0.01:
                await asyncio.sleep(0.01)
            server.server.finish()
            await asyncio.to_thread(wait_for, lambda: not server.engine.active)
            await asyncio.to_thread(first.close)
            second.enter_context(serving(port=int(server.address.rpartition(":")[2])))
            stream.send(CUT_S[HALF_OF_A_WORD:])
            stream.finish()
            return await reading

    assert texts(asyncio.run(talk())) == expected(CUT_S)


def test_a_word_that_a_server_has_half_of_at_its_time_limit_is_whole() -> None:
    async def talk() -> list[StreamEvent]:
        with serving(limits=Limits(session_seconds=0.1)) as server:
            stream = ResumableStream(server.http, sample_rate=RATE)
            stream.send(CUT_S[:HALF_OF_A_WORD])
            reading = asyncio.create_task(collect(stream))
            closes = server.service.metrics.closes.labels(int(CloseCode.TIMED_OUT))
            await asyncio.to_thread(wait_for, closes._value.get)
            stream.send(CUT_S[HALF_OF_A_WORD:])
            stream.finish()
            return await reading

    assert texts(asyncio.run(talk())) == expected(CUT_S)


def test_a_flush_is_confirmed_after_a_lost_connection() -> None:
    audio_S = np.concatenate([sound_of("fox", 8), silence(2)])

    async def talk() -> list[StreamEvent]:
        with serving() as server:
            stream = ResumableStream(server.http, sample_rate=RATE)
            stream.send(audio_S)
            stream.flush(7)
            await stream.connect()
            await stream.disconnect()
            stream.send(sound_of("dog", 8))
            stream.finish()
            return await collect(stream)

    events = asyncio.run(talk())
    kinds = [event for event in events if isinstance(event, (Word, MarkerReached))]
    assert [getattr(event, "text", event) for event in kinds] == ["fox", MarkerReached(7), "dog"]


def test_a_flush_comes_before_the_delay_while_audio_continues() -> None:
    async def talk() -> list[StreamEvent]:
        with serving(ScriptRunner(slots=1, delay_frames=100)) as server:
            stream = ResumableStream(server.http, sample_rate=RATE)
            stream.send(sound_of("fox", 8))
            stream.flush(1)
            stream.send(silence(2))
            await stream.connect()
            events: list[StreamEvent] = []
            async for event in stream:
                events.append(event)
                if isinstance(event, MarkerReached):
                    await stream.disconnect()
                    return events
            raise AssertionError

    events = asyncio.run(talk())
    assert [event.text for event in events if isinstance(event, Word)] == ["fox"]
    assert max(event.index for event in events if isinstance(event, Step)) <= 8


def test_the_server_may_end_an_idle_stream_and_later_audio_continues_it() -> None:
    async def talk() -> list[StreamEvent]:
        with serving(limits=Limits(idle_seconds=0.3)) as server:
            stream = ResumableStream(server.http, sample_rate=RATE)
            stream.send(np.concatenate([sound_of("fox", 8), silence(10)]))
            reading = asyncio.create_task(collect(stream))
            await asyncio.sleep(1.0)
            stream.send(np.concatenate([sound_of("dog", 8), silence(10)]))
            stream.finish()
            return await reading

    events = asyncio.run(talk())
    assert texts(events) == expected(np.concatenate([sound_of("fox", 8), silence(10), sound_of("dog", 8), silence(10)]))


def test_without_asyncio(holding) -> None:
    audio_S = recording(5, words=8)
    events = list(listen(holding.http, chunks(audio_S, 5000), sample_rate=RATE))
    assert texts(events) == expected(audio_S)
    assert isinstance(events[-1], Final)


def test_without_asyncio_errors_are_raised_in_the_reader(holding) -> None:
    def broken() -> Iterator[FloatArray]:
        yield silence(5)
        raise OSError("the microphone is gone")

    with pytest.raises(OSError, match="the microphone is gone"):
        list(listen(holding.http, broken(), sample_rate=RATE))
    with pytest.raises(ServerError, match="unknown model 'x'"):
        list(listen(holding.http, [silence(5)], sample_rate=RATE, model="x"))
    with pytest.raises(ServerError, match="cannot be reached"):
        list(listen("http://127.0.0.1:9", [silence(5)], retry_seconds=0))
    with pytest.raises(AudioError, match="iterable"):
        listen(holding.http, silence(5))


def test_memory_does_not_grow_in_silence(server) -> None:
    async def talk() -> None:
        stream = ResumableStream(server.http, sample_rate=RATE, context_seconds=4, max_pending_seconds=20)
        reading = asyncio.create_task(collect(stream))
        for _ in range(60):
            stream.send(silence(12.5))
            with anyio.fail_after(60):
                while stream._tape.end - stream._tape.begin > 5 * RATE:
                    await asyncio.sleep(0.001)
        stream.finish()
        await reading

    asyncio.run(talk())


def test_too_much_audio_without_text_is_an_error() -> None:
    stream = ResumableStream("http://127.0.0.1:9", context_seconds=1, max_pending_seconds=3)
    stream.send(silence(25))
    with pytest.raises(ServerError, match="has not transcribed the last 3 s"):
        stream.send(silence(25))


def test_invalid_calls_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_pending_seconds=1"):
        ResumableStream("http://127.0.0.1:9", max_pending_seconds=1)
    with pytest.raises(AudioError, match="one channel"):
        ResumableStream("http://127.0.0.1:9").send(np.zeros((2, 5), np.float32))
    with pytest.raises(AudioError):
        ResumableStream("http://127.0.0.1:9").send([float("nan")])


def test_a_missing_key_is_named_and_a_right_one_is_accepted(tmp_path) -> None:
    key, line = new_key("desk")
    (tmp_path / "keys").write_text(line + "\n")

    async def talk() -> list[StreamEvent]:
        with serving(keys=KeyRing.read(tmp_path / "keys")) as server:
            with pytest.raises(ServerError, match="401") as refused:
                await ResumableStream(server.http).connect()
            assert refused.value.code == 401
            stream = ResumableStream(server.http, key=key)
            stream.finish()
            return await collect(stream)

    assert isinstance(asyncio.run(talk())[-1], Final)


def test_partial_words_are_not_repeated(server) -> None:
    audio_S = np.concatenate([sound_of("fox", 8), silence(6), sound_of("dog", 8), silence(12)])

    async def talk() -> list[StreamEvent]:
        stream = ResumableStream(server.http, sample_rate=RATE)
        stream.send(audio_S)
        await stream.connect()
        async for event in stream:
            if isinstance(event, Word) and event.text == "fox":
                break
        await stream.disconnect()
        stream.finish()
        return await collect(stream)

    events = asyncio.run(talk())
    assert [event.text for event in events if isinstance(event, Word)] == ["dog"]
    assert all(event.start > 0.5 for event in events if isinstance(event, PartialWord))


def test_a_turn_keeps_its_language() -> None:
    text = FinalText(context_seconds=5.0)
    text.word(Word("salut", 1.0, 1.5))
    assert text.turn(Turn(0.5, 2.0, "fr", 0.9)) == Turn(1.0, 2.0, "fr", 0.9)
    assert text.turn(Turn(0.5, 2.0, "fr", 0.9)) is None


def test_a_tape_returns_the_appended_audio() -> None:
    tape = Tape()
    for start in range(0, 100, 10):
        tape.append(np.arange(start, start + 10, dtype=np.float32))
    tape.drop_before(25)
    assert (tape.begin, tape.end) == (20, 100)
    np.testing.assert_array_equal(tape.read(27, 63), np.arange(27, 63))
