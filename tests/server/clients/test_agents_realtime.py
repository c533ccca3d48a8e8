"""LiveKit's and Pipecat's services for OpenAI's Realtime API, unchanged, on our server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.fakes import silence, sound_of
from tests.server.harness import Running, chunks, serving

from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing

AUDIO = np.concatenate([silence(5), sound_of("fox", 15), silence(20), sound_of("dog", 15), silence(20)])


def pcm16(pcm_S: FloatArray) -> bytes:
    return (pcm_S * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize("seconds_between", [0.0, 0.02])
@pytest.mark.filterwarnings("ignore")
def test_livekit(seconds_between: float) -> None:
    rtc = pytest.importorskip("livekit.rtc")
    stt = pytest.importorskip("livekit.agents.stt")
    openai = pytest.importorskip("livekit.plugins.openai")
    http_context = pytest.importorskip("livekit.agents.utils.http_context")

    async def talk(running: Running) -> list[tuple[Any, str]]:
        async with http_context.open():
            service = openai.STT(
                model="script", use_realtime=True, base_url=f"{running.http}/v1", api_key="any", language="en"
            )
            stream = service.stream()
            events: list[tuple[Any, str]] = []
            try:
                for piece_S in chunks(AUDIO, 1920):
                    stream.push_frame(rtc.AudioFrame(pcm16(piece_S), 24_000, 1, len(piece_S)))
                    await asyncio.sleep(seconds_between)
                while [kind for kind, _ in events].count(stt.SpeechEventType.FINAL_TRANSCRIPT) < 2:
                    event = await asyncio.wait_for(stream.__anext__(), 20)
                    events.append((event.type, event.alternatives[0].text if event.alternatives else ""))
            finally:
                await stream.aclose()
                await service.aclose()
            return events

    with serving() as running:
        events = asyncio.run(talk(running))
    kinds = stt.SpeechEventType
    assert [text for kind, text in events if kind == kinds.FINAL_TRANSCRIPT] == ["fox", "dog"]
    assert [kind for kind, _ in events if kind in (kinds.START_OF_SPEECH, kinds.END_OF_SPEECH)] == [
        kinds.START_OF_SPEECH,
        kinds.END_OF_SPEECH,
    ] * 2


@pytest.mark.parametrize("detection", [False, {"type": "server_vad"}])
@pytest.mark.filterwarnings("ignore")
def test_pipecat(detection: Any) -> None:
    pytest.importorskip("pipecat")
    frames = pytest.importorskip("pipecat.frames.frames")
    stt = pytest.importorskip("pipecat.services.openai.stt")
    utils = pytest.importorskip("pipecat.tests.utils")

    async def talk(running: Running) -> list[Any]:
        service = stt.OpenAIRealtimeSTTService(
            api_key="secret",
            base_url=f"{running.ws}/v1/realtime",
            turn_detection=detection,
            settings=stt.OpenAIRealtimeSTTService.Settings(model="script"),
        )
        to_send: list[Any] = [utils.SleepFrame(sleep=0.5)]
        for words_S in (AUDIO[: 40 * 1920], AUDIO[40 * 1920 :]):
            for piece_S in chunks(words_S, 1920):
                to_send.append(frames.InputAudioRawFrame(pcm16(piece_S), 24_000, 1))
            to_send += [utils.SleepFrame(sleep=1.0), frames.VADUserStoppedSpeakingFrame(), utils.SleepFrame(sleep=1.0)]
        params = utils.PipelineParams(audio_in_sample_rate=24_000)
        down, _ = await utils.run_test(service, frames_to_send=to_send, pipeline_params=params)
        return list(down)

    with serving(keys=KeyRing.of(["secret"])) as running:
        down = asyncio.run(talk(running))
    assert [frame.text for frame in down if isinstance(frame, frames.TranscriptionFrame)] == ["fox", "dog"]
    assert [frame.text for frame in down if isinstance(frame, frames.InterimTranscriptionFrame)] == ["fox", "dog"]
    proposed = [frame for frame in down if isinstance(frame, frames.ProposedUserStartedSpeakingFrame)]
    assert len(proposed) == (2 if detection else 0)


@pytest.mark.filterwarnings("ignore")
def test_pipecat_with_a_wrong_key() -> None:
    pytest.importorskip("pipecat")
    frames = pytest.importorskip("pipecat.frames.frames")
    stt = pytest.importorskip("pipecat.services.openai.stt")
    utils = pytest.importorskip("pipecat.tests.utils")

    async def talk(running: Running) -> list[Any]:
        settings = stt.OpenAIRealtimeSTTService.Settings(model="script")
        service = stt.OpenAIRealtimeSTTService(api_key="wrong", base_url=f"{running.ws}/v1/realtime", settings=settings)
        _, up = await utils.run_test(service, frames_to_send=[utils.SleepFrame(sleep=0.5)])
        return list(up)

    with serving(keys=KeyRing.of(["secret"])) as running:
        up = asyncio.run(talk(running))
    errors = [frame.error for frame in up if isinstance(frame, frames.ErrorFrame)]
    assert "401" in errors[0]


@pytest.mark.parametrize(
    ("model", "key", "status"),
    [("script", "wrong", 401), ("gpt-4o-transcribe", "secret", 400), ("script", "secret", 0)],
)
@pytest.mark.filterwarnings("ignore")
def test_livekit_with_keys_and_an_unknown_model(model: str, key: str, status: int) -> None:
    rtc = pytest.importorskip("livekit.rtc")
    agents = pytest.importorskip("livekit.agents")
    openai = pytest.importorskip("livekit.plugins.openai")
    http_context = pytest.importorskip("livekit.agents.utils.http_context")

    async def talk(running: Running) -> Any:
        async with http_context.open():
            service = openai.STT(model=model, use_realtime=True, base_url=f"{running.http}/v1", api_key=key)
            stream = service.stream(conn_options=agents.APIConnectOptions(max_retry=0))
            try:
                for piece_S in chunks(AUDIO, 1920):
                    stream.push_frame(rtc.AudioFrame(pcm16(piece_S), 24_000, 1, len(piece_S)))
                return await asyncio.wait_for(stream.__anext__(), 20)
            finally:
                await stream.aclose()
                await service.aclose()

    with serving(keys=KeyRing.of(["secret"])) as running:
        if status:
            with pytest.raises(Exception, match=str(status)):
                asyncio.run(talk(running))
        else:
            assert asyncio.run(talk(running)).type == agents.stt.SpeechEventType.START_OF_SPEECH
