"""The OpenAI services of LiveKit Agents and Pipecat, unchanged, against a live server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.fakes import silence, sound_of
from tests.server.harness import RATE, chunks, serving

AUDIO = np.concatenate([silence(4), sound_of("fox", 8), silence(2), sound_of("dog", 8), silence(30)])
PACED = 0.02  # a piece of 0.08 s


def pcm(samples_S) -> bytes:
    return np.round(samples_S * 32767).astype(np.int16).tobytes()


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def test_livekits_openai_service_transcribes_in_real_time(server) -> None:
    pytest.importorskip("livekit.plugins.openai", reason="run `make clients` for the tests of LiveKit's services")
    from livekit import rtc
    from livekit.agents import stt
    from livekit.agents.utils import http_context
    from livekit.plugins import openai

    async def talk() -> list[stt.SpeechEvent]:
        async with http_context.open():
            engine = openai.STT(base_url=f"{server.http}/v1", api_key="any", model="script", use_realtime=True)
            events: list[stt.SpeechEvent] = []
            async with engine, engine.stream() as stream:

                async def read() -> None:
                    async for event in stream:
                        events.append(event)
                        if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                            return

                reading = asyncio.create_task(read())
                for piece in chunks(AUDIO, 1920):
                    stream.push_frame(rtc.AudioFrame(pcm(piece), RATE, 1, len(piece)))
                    await asyncio.sleep(PACED)
                await asyncio.wait_for(reading, 20)
            return events

    events = asyncio.run(talk())
    kinds = [event.type for event in events]
    assert stt.SpeechEventType.INTERIM_TRANSCRIPT in kinds
    assert events[-1].alternatives[0].text == "fox dog"


def test_pipecats_openai_service_transcribes_in_real_time(server) -> None:
    pytest.importorskip("pipecat", reason="run `make clients` for the tests of Pipecat's services")
    from pipecat.frames.frames import (
        InputAudioRawFrame,
        InterimTranscriptionFrame,
        TranscriptionFrame,
        VADUserStartedSpeakingFrame,
        VADUserStoppedSpeakingFrame,
    )
    from pipecat.services.openai.stt import OpenAIRealtimeSTTService
    from pipecat.tests.utils import SleepFrame, run_test

    async def talk() -> list[object]:
        service = OpenAIRealtimeSTTService(
            api_key="any",
            base_url=f"{server.ws}/v1/realtime",
            sample_rate=RATE,
            settings=OpenAIRealtimeSTTService.Settings(model="script"),
        )
        frames: list[object] = [SleepFrame(0.3), VADUserStartedSpeakingFrame()]
        for piece in chunks(AUDIO, 1920):
            frames += [InputAudioRawFrame(pcm(piece), RATE, 1), SleepFrame(PACED)]
        frames += [VADUserStoppedSpeakingFrame(stop_secs=0.2), SleepFrame(1.5)]
        down, _ = await run_test(service, frames_to_send=frames)
        return down

    down = asyncio.run(talk())
    assert [frame.text for frame in down if isinstance(frame, TranscriptionFrame)] == ["fox dog"]
    assert any(isinstance(frame, InterimTranscriptionFrame) for frame in down)
