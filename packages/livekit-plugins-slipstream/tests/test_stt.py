"""The plugin against a live server, as LiveKit's agents call it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cuts import CuttingProxy
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import FRAME, RATE, chunks, serving, solo
from tests.test_resume import recording

from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing
from slipstream.errors import ConfigError
from slipstream.hints import Hints, Keyword

agents = pytest.importorskip("livekit.agents", reason="run `make clients` for the tests of the LiveKit plugin")
from livekit import rtc  # noqa: E402
from livekit.agents import APIConnectionError, APIConnectOptions, APIStatusError, APITimeoutError, stt  # noqa: E402
from livekit.plugins import slipstream as plugin  # noqa: E402

Kind = stt.SpeechEventType
RETRY = APIConnectOptions(max_retry=100, retry_interval=0.02, timeout=5.0)
PACED = 0.02  # a frame of 0.08 s
FOX_DOG = np.concatenate([sound_of("fox", 8), silence(2), sound_of("dog", 8), silence(40)])


def frame(samples_S: FloatArray) -> rtc.AudioFrame:
    pcm = np.clip(np.round(samples_S * 32767), -32768, 32767).astype(np.int16)
    return rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm))


@pytest.fixture(scope="module")
def server():
    with serving(ScriptRunner(slots=8)) as running:
        yield running


async def transcribe(
    engine: plugin.STT, pieces: Iterable[FloatArray | None], pause: float = 0.0
) -> list[stt.SpeechEvent]:
    """All events for these pieces of audio, with a pause after each; None is a flush."""
    async with engine, engine.stream(conn_options=RETRY) as stream:
        for piece in pieces:
            stream.flush() if piece is None else stream.push_frame(frame(piece))
            await asyncio.sleep(pause)
        stream.end_input()
        return [event async for event in stream]


def of_kind(events: list[stt.SpeechEvent], kind: Kind) -> list[stt.SpeechEvent]:
    return [event for event in events if event.type is kind]


def final_words(events: list[stt.SpeechEvent]) -> list[tuple[str, float, float]]:
    return [
        (str(word), round(word.start_time, 3), round(word.end_time, 3))
        for event in of_kind(events, Kind.FINAL_TRANSCRIPT)
        for word in event.alternatives[0].words
    ]


def expected(audio_S: FloatArray) -> list[tuple[str, float, float]]:
    return [(word.text, round(word.start, 3), round(word.end, 3)) for word in solo(audio_S)]


def test_a_turn_starts_grows_and_ends(server) -> None:
    events = asyncio.run(transcribe(plugin.STT(base_url=server.http), chunks(FOX_DOG, FRAME), PACED))
    kinds = [event.type for event in events]
    assert kinds[0] is Kind.START_OF_SPEECH
    first = kinds.index(Kind.FINAL_TRANSCRIPT)
    assert set(kinds[1:first]) == {Kind.INTERIM_TRANSCRIPT}
    assert kinds[first + 1] is Kind.END_OF_SPEECH
    assert final_words(events) == expected(FOX_DOG)
    interims = [event.alternatives[0].text for event in of_kind(events, Kind.INTERIM_TRANSCRIPT)]
    assert interims[-1] == " ".join(word.text for word in solo(FOX_DOG))
    final, end = of_kind(events, Kind.FINAL_TRANSCRIPT)
    assert end.alternatives[0].text == ""  # the answer to the flush of `end_input`
    data = final.alternatives[0]
    assert (data.text, data.language) == ("fox dog", "en")
    assert 0 < data.confidence <= 1
    assert all(0 < word.confidence <= 1 for word in data.words)
    assert final.request_id
    usage = of_kind(events, Kind.RECOGNITION_USAGE)
    assert sum(event.recognition_usage.audio_duration for event in usage) == pytest.approx(len(FOX_DOG) / RATE)


def test_a_preflight_transcript_comes_before_the_final_one_and_equals_it(server) -> None:
    engine = plugin.STT(base_url=server.http, eager_eot_threshold=0.3)
    events = asyncio.run(transcribe(engine, chunks(FOX_DOG, FRAME), PACED))
    (preflight, *more) = of_kind(events, Kind.PREFLIGHT_TRANSCRIPT)
    kinds = [event.type for event in events]
    assert kinds.index(Kind.PREFLIGHT_TRANSCRIPT) < kinds.index(Kind.FINAL_TRANSCRIPT)
    texts = [event.alternatives[0].text for event in [preflight, *more]]
    assert texts[-1] == of_kind(events, Kind.FINAL_TRANSCRIPT)[0].alternatives[0].text == "fox dog"


def test_a_flush_is_answered_with_the_final_text_or_an_empty_one(server) -> None:
    engine = plugin.STT(base_url=server.http, server_turns=False)
    pieces = [None, sound_of("fox", 8), None, silence(5), sound_of("dog", 8)]
    finals = of_kind(asyncio.run(transcribe(engine, pieces)), Kind.FINAL_TRANSCRIPT)
    # The last flush is that of `end_input`.
    assert [event.alternatives[0].text for event in finals] == ["", "fox", "dog"]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(200, 40_000), min_size=1, max_size=4))
def test_words_over_lost_connections_equal_those_of_one(server, seed, cuts) -> None:
    audio_S = recording(seed, words=10)

    async def talk() -> list[stt.SpeechEvent]:
        async with CuttingProxy(server.address, cuts) as proxy:
            engine = plugin.STT(base_url=f"http://{proxy.address}", server_turns=False)
            return await transcribe(engine, chunks(audio_S, 5000))

    assert final_words(asyncio.run(talk())) == expected(audio_S)


def test_a_server_that_is_killed_and_started_again_loses_no_word() -> None:
    before_S, after_S = recording(3, words=4), recording(4, words=4)
    audio_S = np.concatenate([before_S, after_S])

    async def talk() -> list[stt.SpeechEvent]:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            server = first.enter_context(serving())
            engine = plugin.STT(base_url=server.http)
            errors: list[stt.STTError] = []
            engine.on("error", errors.append)
            async with engine, engine.stream(conn_options=RETRY) as stream:
                stream.push_frame(frame(before_S))
                await asyncio.sleep(0.3)
                await asyncio.to_thread(first.close)
                stream.push_frame(frame(after_S))
                stream.end_input()
                await asyncio.sleep(0.1)
                second.enter_context(serving(port=int(server.address.rpartition(":")[2])))
                events = [event async for event in stream]
            assert errors
            assert all(error.recoverable for error in errors)
            return events

    assert final_words(asyncio.run(talk())) == expected(audio_S)


def test_times_count_from_the_offset_of_the_session(server) -> None:
    async def talk() -> list[stt.SpeechEvent]:
        async with plugin.STT(base_url=server.http) as engine, engine.stream(conn_options=RETRY) as stream:
            stream.start_time_offset = 100.0
            stream.push_frame(frame(FOX_DOG))
            stream.end_input()
            return [event async for event in stream]

    words = final_words(asyncio.run(talk()))
    assert words == [(text, round(start + 100, 3), round(end + 100, 3)) for text, start, end in expected(FOX_DOG)]


def test_a_whole_recording_is_recognised(server) -> None:
    async def talk() -> stt.SpeechEvent:
        stereo = np.repeat(np.round(FOX_DOG * 32767).astype(np.int16), 2)
        async with plugin.STT(base_url=server.http) as engine:
            return await engine.recognize([rtc.AudioFrame(stereo.tobytes(), RATE, 2, len(FOX_DOG))])

    data = asyncio.run(talk()).alternatives[0]
    assert [(str(word), word.start_time) for word in data.words] == [(t, s) for t, s, _ in expected(FOX_DOG)]


def test_keyterms_and_the_prompt_reach_the_server(server, monkeypatch) -> None:
    opened: list[Hints] = []
    open_session = server.engine.open
    monkeypatch.setattr(
        server.engine, "open", lambda options, **rest: opened.append(options.hints) or open_session(options, **rest)
    )
    engine = plugin.STT(base_url=server.http, keyterms=["Kyutai", Keyword("Poirot", 2.0)], prompt="Dear")
    assert engine.capabilities.keyterms

    async def talk() -> None:
        await transcribe(engine, [FOX_DOG])
        engine._update_session_keyterms(["Mimi"])
        await transcribe(engine, [FOX_DOG])
        engine._update_session_keyterms([])
        await engine.recognize(frame(FOX_DOG))

    asyncio.run(talk())
    own = (Keyword("Kyutai"), Keyword("Poirot", 2.0))
    assert [hints.phrases for hints in opened] == [own, (*own, Keyword("Mimi")), own]
    assert {hints.prompt for hints in opened} == {"Dear"}
    with pytest.raises(ConfigError, match="expected 1 to 200 characters"):
        plugin.STT(keyterms=[" "])


def test_the_language_reaches_the_server_and_marks_transcripts(server, monkeypatch) -> None:
    opened: list[tuple[str, ...]] = []
    open_session = server.engine.open
    monkeypatch.setattr(
        server.engine,
        "open",
        lambda options, **rest: opened.append(options.hints.languages) or open_session(options, **rest),
    )

    async def talk(engine: plugin.STT, **options: str) -> list[str]:
        async with engine, engine.stream(**options) as stream:
            stream.push_frame(frame(FOX_DOG))
            stream.end_input()
            engine._update_session_keyterms(["Mimi"])
            events = [event async for event in stream]
        recognised = await engine.recognize(frame(FOX_DOG), **options)
        finals = of_kind(events, Kind.FINAL_TRANSCRIPT)
        return [str(event.alternatives[0].language) for event in [*finals, recognised]]

    assert set(asyncio.run(talk(plugin.STT(base_url=server.http)))) == {"en"}
    assert set(asyncio.run(talk(plugin.STT(base_url=server.http, language="french")))) == {"fr"}
    assert set(asyncio.run(talk(plugin.STT(base_url=server.http, language="fr"), language="de-AT"))) == {"de-AT"}
    assert set(asyncio.run(talk(plugin.STT(base_url=server.http, language="auto")))) <= {"en", "fr"}
    assert opened == [(), (), ("fr",), ("fr",), ("de-AT",), ("de-AT",), ("auto",), ("auto",)]


def test_a_key_is_sent_and_a_wrong_one_is_a_permanent_error(monkeypatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "wrong")

    async def talk(engine: plugin.STT) -> list[stt.SpeechEvent]:
        return await transcribe(engine, [FOX_DOG])

    with serving(keys=KeyRing.of(["right"])) as server:
        assert final_words(asyncio.run(talk(plugin.STT(base_url=server.http, api_key="right"))))
        with pytest.raises(APIStatusError) as refused:
            asyncio.run(talk(plugin.STT(base_url=server.http)))
    assert refused.value.status_code == 401
    assert not refused.value.retryable


def test_a_missing_server_is_a_connection_error() -> None:
    async def talk() -> None:
        options = APIConnectOptions(max_retry=1, retry_interval=0.01, timeout=1.0)
        async with plugin.STT(base_url="http://127.0.0.1:9") as engine:
            with pytest.raises(APIConnectionError):
                await engine.recognize(frame(FOX_DOG), conn_options=options)
            async with engine.stream(conn_options=options) as stream:
                with pytest.raises(APIConnectionError, match="failed to recognize"):
                    [event async for event in stream]

    asyncio.run(talk())


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:9", "", "http://127.0.0.1:99999"])
def test_what_is_no_address_is_a_permanent_error(address: str) -> None:
    async def talk() -> None:
        async with plugin.STT(base_url=address) as engine:
            for attempt in (engine.recognize(frame(FOX_DOG)), transcribe(engine, [FOX_DOG])):
                with pytest.raises(APIStatusError) as refused:
                    await attempt
                assert (refused.value.status_code, refused.value.retryable) == (400, False)

    asyncio.run(talk())


def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    async def talk(address: str) -> None:
        options = APIConnectOptions(max_retry=0, timeout=0.2)
        async with plugin.STT(base_url=address) as engine:
            with pytest.raises(APITimeoutError):
                await engine.recognize(frame(FOX_DOG), conn_options=options)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(asyncio.wait_for(talk(f"http://127.0.0.1:{silent.getsockname()[1]}"), 8))


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="eager_eot_threshold=2"):
        plugin.STT(eager_eot_threshold=2)
    with pytest.raises(ConfigError, match="pause_head=-1"):
        plugin.STT(pause_head=-1)
    with pytest.raises(ConfigError, match="language 'no language': expected an ISO 639-1 code"):
        plugin.STT(language="no language")


def test_the_plugin_is_registered() -> None:
    assert "livekit.plugins.slipstream" in [item.package for item in agents.Plugin.registered_plugins]
    assert plugin.STT().capabilities.aligned_transcript == "word"
    assert (plugin.STT(model="tiny").model, plugin.STT().provider) == ("tiny", "Slipstream")
