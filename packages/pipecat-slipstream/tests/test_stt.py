"""The service in a pipeline, against a live server."""

from __future__ import annotations

import asyncio
import contextlib
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

pytest.importorskip("pipecat", reason="run `make clients` for the tests of the Pipecat service")
from pipecat.frames.frames import (
    EagerTranscriptionFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    STTMetadataFrame,
    STTUpdateSettingsFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.tests.utils import SleepFrame, run_test
from pipecat.turns.user_turn_strategies import EagerUserTurnStrategies, ExternalUserTurnStrategies
from pipecat.utils.errors import ErrorCategory
from pipecat_slipstream import SlipstreamSTTService

PACED = 0.02  # a frame of 0.08 s
FOX_DOG = np.concatenate([sound_of("fox", 8), silence(2), sound_of("dog", 8), silence(40)])


def spoken(audio_S: FloatArray, pause: float = 0.0, size: int = FRAME) -> list[Frame]:
    """The frames of a recording, with a pause after each."""
    frames: list[Frame] = []
    for chunk in chunks(audio_S, size):
        pcm = np.clip(np.round(chunk * 32767), -32768, 32767).astype(np.int16).tobytes()
        frames += [InputAudioRawFrame(pcm, RATE, 1), SleepFrame(pause)]
    return frames


async def transcribe(service: SlipstreamSTTService, frames: Iterable[Frame]) -> tuple[list[Frame], list[Frame]]:
    """The frames that come out of the pipeline, down and up, without the audio."""
    down, up = await run_test(service, frames_to_send=list(frames), ignore_start=False, expected_down_frames=None)
    return [frame for frame in down if not isinstance(frame, InputAudioRawFrame)], up


def service(address: str, **options: object) -> SlipstreamSTTService:
    return SlipstreamSTTService(
        base_url=address, sample_rate=RATE, reconnect_backoff_min_wait=0.05, reconnect_backoff_max_wait=0.2, **options
    )


def finals(frames: list[Frame]) -> list[TranscriptionFrame]:
    return [frame for frame in frames if isinstance(frame, TranscriptionFrame)]


def final_words(frames: list[Frame]) -> list[tuple[str, float, float]]:
    return [
        (word["text"], round(word["start"], 3), round(word["end"], 3))
        for frame in finals(frames)
        for word in frame.result["words"]
    ]


def expected(audio_S: FloatArray) -> list[tuple[str, float, float]]:
    return [(word.text, round(word.start, 3), round(word.end, 3)) for word in solo(audio_S)]


@pytest.fixture(scope="module")
def server():
    with serving(ScriptRunner(slots=8)) as running:
        yield running


def test_the_end_of_speech_flushes_and_the_confirmed_text_is_finalized(server) -> None:
    speech = [
        VADUserStartedSpeakingFrame(),
        *spoken(sound_of("fox", 8), PACED),
        *spoken(silence(2), PACED),
        VADUserStoppedSpeakingFrame(stop_secs=0.2),
        SleepFrame(0.6),
    ]
    down, up = asyncio.run(transcribe(service(server.http), [*speech, *speech]))
    assert [(frame.text, frame.finalized) for frame in finals(down)] == [("fox", True), ("fox", True)]
    interims = [frame.text for frame in down if isinstance(frame, InterimTranscriptionFrame)]
    assert interims[-1] == "fox"
    (first, _) = finals(down)
    assert 0 < first.result["confidence"] <= 1
    assert first.language == "en"
    assert not [frame for frame in up if isinstance(frame, ErrorFrame)]
    (metadata,) = [frame for frame in down if isinstance(frame, STTMetadataFrame)]
    assert metadata.user_turn_strategies is None
    assert metadata.ttfs_p99_latency > 0


def test_without_a_detector_complete_turns_are_written(server) -> None:
    down, _ = asyncio.run(transcribe(service(server.http), spoken(FOX_DOG)))
    assert final_words(down) == expected(FOX_DOG)
    assert not any(frame.finalized for frame in finals(down))


def test_the_server_ends_turns_with_the_strategies_that_follow_it(server) -> None:
    engine = service(server.http, enable_turn_detection=True, should_interrupt=False)
    down, up = asyncio.run(transcribe(engine, spoken(FOX_DOG, PACED)))
    kinds = [type(frame) for frame in down]
    started = kinds.index(ProposedUserStartedSpeakingFrame)
    final = kinds.index(TranscriptionFrame)
    stopped = kinds.index(ProposedUserStoppedSpeakingFrame)
    assert started < kinds.index(InterimTranscriptionFrame) < final < stopped
    assert [type(frame) for frame in up].count(ProposedUserStoppedSpeakingFrame) == 1
    assert [(frame.text, frame.finalized) for frame in finals(down)] == [("fox dog", True)]
    (metadata,) = [frame for frame in down if isinstance(frame, STTMetadataFrame)]
    assert type(metadata.user_turn_strategies) is ExternalUserTurnStrategies
    assert not metadata.user_turn_strategies.enable_interruptions
    assert metadata.ttfs_p99_latency == 0


def test_an_eager_end_of_turn_has_the_text_of_the_turn(server) -> None:
    engine = service(server.http, enable_turn_detection=True, enable_eager_end_of_turn=True, eager_eot_threshold=0.3)
    down, _ = asyncio.run(transcribe(engine, spoken(FOX_DOG, PACED)))
    eager = [frame.text for frame in down if isinstance(frame, EagerTranscriptionFrame)]
    assert eager[-1] == "fox dog"
    assert [frame.text for frame in finals(down)] == ["fox dog"]
    (metadata,) = [frame for frame in down if isinstance(frame, STTMetadataFrame)]
    assert type(metadata.user_turn_strategies) is EagerUserTurnStrategies


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(200, 40_000), min_size=1, max_size=2))
def test_words_over_lost_connections_equal_those_of_one(server, seed, cuts) -> None:
    audio_S = recording(seed, words=10)

    async def talk() -> list[Frame]:
        async with CuttingProxy(server.address, cuts) as proxy:
            down, _ = await transcribe(service(f"http://{proxy.address}"), spoken(audio_S, size=5000))
            return down

    assert final_words(asyncio.run(talk())) == expected(audio_S)


def test_a_server_that_is_stopped_and_started_again_loses_no_word() -> None:
    before_S, after_S = recording(3, words=4), recording(4, words=4)

    async def talk() -> list[Frame]:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            server = first.enter_context(serving())

            async def restart() -> None:
                await asyncio.sleep(1.0)
                await asyncio.to_thread(first.close)
                second.enter_context(serving(port=int(server.address.rpartition(":")[2])))

            frames = [*spoken(before_S), SleepFrame(1.0), *spoken(after_S), SleepFrame(1.0)]
            restarting = asyncio.create_task(restart())
            down, _ = await transcribe(service(server.http), frames)
            await restarting
            return down

    assert final_words(asyncio.run(talk())) == expected(np.concatenate([before_S, after_S]))


def test_keywords_and_the_prompt_reach_the_server(server, monkeypatch) -> None:
    opened: list[Hints] = []
    open_session = server.engine.open
    monkeypatch.setattr(
        server.engine, "open", lambda options, **rest: opened.append(options.hints) or open_session(options, **rest)
    )
    asyncio.run(transcribe(service(server.http, keywords=["Kyutai"], prompt="Dear"), spoken(FOX_DOG)))
    (hints,) = opened
    assert (hints.phrases, hints.prompt) == ((Keyword("Kyutai"),), "Dear")


def test_the_language_reaches_the_server_and_marks_transcripts(server, monkeypatch) -> None:
    opened: list[tuple[str, ...]] = []
    open_session = server.engine.open
    monkeypatch.setattr(
        server.engine,
        "open",
        lambda options, **rest: opened.append(options.hints.languages) or open_session(options, **rest),
    )

    def languages(*frames: Frame, **options: object) -> list[str | None]:
        speech = [*frames, *spoken(FOX_DOG), SleepFrame(0.5)]
        down, _ = asyncio.run(transcribe(service(server.http, **options), speech))
        return [frame.language for frame in finals(down)]

    french = SlipstreamSTTService.Settings(language="fr")
    assert set(languages()) == {"en"}
    assert set(languages(settings=french)) == {"fr"}
    assert set(languages(STTUpdateSettingsFrame(delta=french))) == {"fr"}
    assert set(languages(settings=SlipstreamSTTService.Settings(language="auto"))) <= {"en", "fr"}
    assert opened == [(), ("fr",), (), ("fr",), ("auto",)]


@pytest.mark.parametrize("address", ["ftp://127.0.0.1:9", "http://127.0.0.1:99999"])
def test_what_is_no_address_is_a_permanent_error(address: str) -> None:
    _, up = asyncio.run(transcribe(service(address), [SleepFrame(0.1)]))
    assert [frame.category for frame in up if isinstance(frame, ErrorFrame)] == [ErrorCategory.INVALID_REQUEST]


def test_a_wrong_key_is_a_permanent_error(monkeypatch) -> None:
    monkeypatch.setenv("SLIPSTREAM_API_KEY", "wrong")
    with serving(keys=KeyRing.of(["right"])) as server:
        down, _ = asyncio.run(transcribe(service(server.http, api_key="right"), spoken(FOX_DOG)))
        assert final_words(down)
        _, up = asyncio.run(transcribe(service(server.http), spoken(FOX_DOG)))
    errors = [frame for frame in up if isinstance(frame, ErrorFrame)]
    assert errors[0].category is ErrorCategory.AUTHENTICATION
    assert "401" in errors[0].error


def test_a_missing_server_is_a_connectivity_error() -> None:
    _, up = asyncio.run(transcribe(service("http://127.0.0.1:9"), [SleepFrame(0.1)]))
    errors = [frame for frame in up if isinstance(frame, ErrorFrame)]
    assert errors[0].category is ErrorCategory.CONNECTIVITY


def test_invalid_options_are_refused() -> None:
    with pytest.raises(ValueError, match="needs enable_turn_detection"):
        SlipstreamSTTService(enable_eager_end_of_turn=True)
    with pytest.raises(ValueError, match="eager_eot_threshold=2"):
        SlipstreamSTTService(eager_eot_threshold=2)
    with pytest.raises(ValueError, match="pause_head=-1"):
        SlipstreamSTTService(pause_head=-1)
    with pytest.raises(ConfigError, match="language 'no language': expected an ISO 639-1 code"):
        SlipstreamSTTService(settings=SlipstreamSTTService.Settings(language="no language"))
