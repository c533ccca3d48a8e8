"""Gradium's client, and LiveKit's and Pipecat's services for it, unchanged, on our server."""

from __future__ import annotations

import asyncio
import io
import wave
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import Running, chunks, serving

from slipstream.connections.keys import KeyRing

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients' own imports
AUDIO = np.concatenate([silence(15), sound_of("fox", 8), silence(40), sound_of("dog", 8), silence(40)])
PCM = (AUDIO * 32767).round().astype("<i2")
KEYS = KeyRing.of(["secret"])


def client(running: Running, key: str = "secret") -> Any:
    return pytest.importorskip("gradium.client").GradiumClient(base_url=f"{running.http}/api", api_key=key)


def wav() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(24_000)
        writer.writeframes(PCM.tobytes())
    return file.getvalue()


@pytest.mark.parametrize("format", ["wav", "pcm"])
def test_a_recording(format: str) -> None:
    async def recognise(running: Running) -> Any:
        setup = {"model_name": "default", "input_format": format, "json_config": {"language": "any"}}
        audio = (wav(), None) if format == "wav" else (PCM, 24_000)
        return await client(running).stt(setup, *audio)

    with serving(ScriptRunner(slots=1), keys=KEYS) as running:
        for _ in range(2):  # the second connects again
            result = asyncio.run(asyncio.wait_for(recognise(running), 60))
            assert result.text == "fox dog"
            assert [round(text.start_s, 1) for text in result.text_with_timestamps] == [1.2, 5.0]


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_live_stream_with_a_flush(pause: float) -> None:
    """As in the example of the client: the flush brings the text without the audio of a delay."""
    received: list[Any] = []

    async def talk(running: Running) -> Any:
        async with client(running).stt_realtime(model_name="default", input_format="pcm_24000") as stt:

            async def until(kind: str) -> None:
                while not received or received[-1]["type"] != kind:
                    received.append(await asyncio.wait_for(anext(stt), 20))

            await until("ready")
            for piece in chunks(PCM[: 24 * 1920], 1920):
                await stt.send_audio(piece)
                await asyncio.sleep(pause)
            await stt.send_flush(7)
            await until("flushed")
            assert [message["text"] for message in received if message["type"] == "text"] == ["fox"]
            await stt.send_audio(PCM[24 * 1920 :])
            await stt.send_eos()
            await until("end_of_stream")

    with serving(ScriptRunner(slots=1), keys=KEYS) as running:
        asyncio.run(talk(running))
    assert received[0]["delay_in_frames"] == 6
    assert [message["text"] for message in received if message["type"] == "text"] == ["fox", "dog"]
    steps = [message for message in received if message["type"] == "step"]
    assert steps[-1]["total_duration_s"] == pytest.approx(steps[-1]["step_idx"] * steps[-1]["step_duration_s"])


def test_errors() -> None:
    async def recognise(running: Running, key: str = "secret", **setup: Any) -> Any:
        return await client(running, key).stt({"input_format": "pcm", **setup}, PCM, 24_000)

    with serving(ScriptRunner(slots=1), keys=KEYS) as running:
        with pytest.raises(Exception, match="401"):
            asyncio.run(asyncio.wait_for(recognise(running, "wrong"), 60))
        with pytest.raises(Exception, match="unknown model 'unknown'"):
            asyncio.run(asyncio.wait_for(recognise(running, model_name="unknown"), 60))


def test_livekit() -> None:
    rtc = pytest.importorskip("livekit.rtc")
    kinds = pytest.importorskip("livekit.agents.stt").SpeechEventType
    http_context = pytest.importorskip("livekit.agents.utils.http_context")
    gradium = pytest.importorskip("livekit.plugins.gradium")
    finals: list[str] = []

    async def talk(running: Running) -> None:
        async with http_context.open():
            address = f"{running.ws}/api/speech/asr"
            service = gradium.STT(model_endpoint=address, api_key="secret", vad_threshold=0.6, vad_flush=False)
            stream = service.stream()
            try:
                for piece in chunks(PCM, 1920):
                    stream.push_frame(rtc.AudioFrame(piece.tobytes(), 24_000, 1, len(piece)))
                    await asyncio.sleep(0.01)
                async for event in stream:
                    if event.type == kinds.FINAL_TRANSCRIPT:
                        finals.append(event.alternatives[0].text)
                    if len(finals) == 2:
                        break
            finally:
                await stream.aclose()
                await service.aclose()

    with serving(ScriptRunner(slots=1), keys=KEYS) as running:
        asyncio.run(asyncio.wait_for(talk(running), 60))
    assert finals == ["fox", "dog"]


@pytest.mark.parametrize("server_turns", [False, True])
def test_pipecat(server_turns: bool) -> None:
    frames = pytest.importorskip("pipecat.frames.frames")
    utils = pytest.importorskip("pipecat.tests.utils")
    gradium = pytest.importorskip("pipecat.services.gradium.stt").GradiumSTTService

    async def talk(running: Running) -> list[Any]:
        address = f"{running.ws}/api/speech/asr"
        service = gradium(
            api_key="secret", api_endpoint_base_url=address, enable_turn_detection=server_turns, sample_rate=24_000
        )
        to_send: list[Any] = [utils.SleepFrame(sleep=0.5)]
        for words in (PCM[: 50 * 1920], PCM[50 * 1920 :]):
            for piece in chunks(words, 1920):
                to_send += [frames.InputAudioRawFrame(piece.tobytes(), 24_000, 1), utils.SleepFrame(sleep=0.01)]
            to_send += [frames.VADUserStoppedSpeakingFrame(), utils.SleepFrame(sleep=1.0)]
        params = utils.PipelineParams(audio_in_sample_rate=24_000)
        down, _ = await utils.run_test(service, frames_to_send=to_send, pipeline_params=params)
        return list(down)

    with serving(ScriptRunner(slots=1), keys=KEYS) as running:
        down = asyncio.run(talk(running))
    assert [frame.text for frame in down if isinstance(frame, frames.TranscriptionFrame)] == ["fox", "dog"]
    turns = [frame for frame in down if isinstance(frame, frames.ProposedUserStoppedSpeakingFrame)]
    assert len(turns) == (2 if server_turns else 0)
