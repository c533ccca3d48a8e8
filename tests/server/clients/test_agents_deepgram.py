"""LiveKit's and Pipecat's services for Deepgram, unchanged, on our server: `/v1/listen` and Flux."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.fakes import silence, sound_of
from tests.server.harness import Running, chunks, serving

from slipstream.arrays import FloatArray

AUDIO = np.concatenate([silence(5), sound_of("fox", 15), silence(20), sound_of("dog", 15), silence(20)])
SECONDS_BETWEEN = 0.02


def pcm16(pcm_S: FloatArray) -> bytes:
    return (pcm_S * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize("flux", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_livekit(flux: bool) -> None:
    rtc = pytest.importorskip("livekit.rtc", reason="run `make clients` for the tests of LiveKit's services")
    stt = pytest.importorskip("livekit.agents.stt")
    deepgram = pytest.importorskip("livekit.plugins.deepgram")
    http_context = pytest.importorskip("livekit.agents.utils.http_context")

    def service(running: Running) -> Any:
        if flux:
            return deepgram.STTv2(model="script", sample_rate=24_000, base_url=f"{running.ws}/v2/listen", api_key="any")
        return deepgram.STT(model="script", sample_rate=24_000, base_url=f"{running.http}/v1/listen", api_key="any")

    async def talk(running: Running) -> list[str]:
        finals: list[str] = []
        async with http_context.open():
            engine = service(running)
            stream = engine.stream()
            try:
                for piece_S in chunks(AUDIO, 1920):
                    stream.push_frame(rtc.AudioFrame(pcm16(piece_S), 24_000, 1, len(piece_S)))
                    await asyncio.sleep(SECONDS_BETWEEN)
                while len(finals) < 2:
                    event = await asyncio.wait_for(stream.__anext__(), 20)
                    if event.type is stt.SpeechEventType.FINAL_TRANSCRIPT:
                        finals.append(event.alternatives[0].text)
            finally:
                await stream.aclose()
                await engine.aclose()
        return finals

    with serving() as running:
        assert asyncio.run(talk(running)) == ["fox", "dog"]


@pytest.mark.parametrize("flux", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_pipecat(flux: bool) -> None:
    pytest.importorskip("pipecat", reason="run `make clients` for the tests of Pipecat's services")
    frames = pytest.importorskip("pipecat.frames.frames")
    from pipecat.tests.utils import SleepFrame, run_test

    def service(running: Running) -> Any:
        if flux:
            from pipecat.services.deepgram.flux.stt import DeepgramFluxSTTService

            return DeepgramFluxSTTService(
                api_key="any",
                url=f"{running.ws}/v2/listen",
                sample_rate=24_000,
                settings=DeepgramFluxSTTService.Settings(model="script"),
            )
        from pipecat.services.deepgram.stt import DeepgramSTTService

        return DeepgramSTTService(
            api_key="any",
            base_url=running.ws,
            sample_rate=24_000,
            settings=DeepgramSTTService.Settings(model="script"),
        )

    async def talk(running: Running) -> list[str]:
        speech: list[Any] = [SleepFrame(0.5)]
        for piece_S in chunks(AUDIO, 1920):
            speech += [frames.InputAudioRawFrame(pcm16(piece_S), 24_000, 1), SleepFrame(SECONDS_BETWEEN)]
        down, _ = await run_test(service(running), frames_to_send=[*speech, SleepFrame(1.5)])
        return [frame.text for frame in down if isinstance(frame, frames.TranscriptionFrame)]

    with serving() as running:
        assert asyncio.run(talk(running)) == ["fox", "dog"]
