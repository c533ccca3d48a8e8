"""LiveKit's and Pipecat's services for OpenAI's transcription of recordings, unchanged, on our server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.fakes import silence, sound_of
from tests.server.harness import Running, chunks, serving

from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients' own imports
FOX, DOG = (np.concatenate([silence(8), sound_of(word, 15), silence(15)]) for word in ("fox", "dog"))


def pcm16(pcm_S: FloatArray) -> bytes:
    return (pcm_S * 32767).round().astype("<i2").tobytes()


@pytest.mark.parametrize(
    ("model", "key", "status"), [("script", "secret", 0), ("script", "wrong", 401), ("x", "secret", 404)]
)
def test_livekit(model: str, key: str, status: int) -> None:
    rtc = pytest.importorskip("livekit.rtc")
    agents = pytest.importorskip("livekit.agents")
    openai = pytest.importorskip("livekit.plugins.openai")
    http_context = pytest.importorskip("livekit.agents.utils.http_context")

    async def recognise(running: Running) -> list[str]:
        options = agents.APIConnectOptions(max_retry=0)
        async with http_context.open():
            service = openai.STT(model=model, base_url=f"{running.http}/v1", api_key=key, language="en")
            try:
                events = [
                    await service.recognize(
                        rtc.AudioFrame(pcm16(audio_S), 24_000, 1, len(audio_S)), conn_options=options
                    )
                    for audio_S in (FOX, DOG)
                ]
            finally:
                await service.aclose()
                await service._client.close()  # which it leaves open
            return [event.alternatives[0].text for event in events]

    with serving(keys=KeyRing.of(["secret"])) as running:
        if status:
            with pytest.raises(agents.APIStatusError) as refused:
                asyncio.run(recognise(running))
            assert refused.value.status_code == status
        else:
            assert asyncio.run(recognise(running)) == ["fox", "dog"]


@pytest.mark.parametrize("key", ["secret", "wrong"])
def test_pipecat(key: str) -> None:
    pytest.importorskip("pipecat")
    frames = pytest.importorskip("pipecat.frames.frames")
    stt = pytest.importorskip("pipecat.services.openai.stt")
    utils = pytest.importorskip("pipecat.tests.utils")

    async def talk(running: Running) -> tuple[list[Any], list[Any]]:
        settings = stt.OpenAISTTService.Settings(model="script", keywords=["Marsh"], prompt="Dear")
        service = stt.OpenAISTTService(api_key=key, base_url=f"{running.http}/v1", settings=settings)
        to_send: list[Any] = []
        for words_S in (FOX, DOG):
            to_send.append(frames.VADUserStartedSpeakingFrame())
            to_send += [frames.InputAudioRawFrame(pcm16(piece_S), 24_000, 1) for piece_S in chunks(words_S, 1920)]
            to_send += [frames.VADUserStoppedSpeakingFrame(), utils.SleepFrame(sleep=1.0)]
        params = utils.PipelineParams(audio_in_sample_rate=24_000)
        down, up = await utils.run_test(service, frames_to_send=to_send, pipeline_params=params)
        await service._client.close()  # which it leaves open
        return list(down), list(up)

    with serving(keys=KeyRing.of(["secret"])) as running:
        down, up = asyncio.run(talk(running))
    texts = [frame.text for frame in down if isinstance(frame, frames.TranscriptionFrame)]
    errors = [frame.error for frame in up if isinstance(frame, frames.ErrorFrame)]
    if key == "secret":
        assert (texts, errors) == (["fox", "dog"], [])
    else:
        assert texts == []
        assert "no valid key" in errors[0]
