"""LiveKit's and Pipecat's services for Deepgram, unchanged, on our server: `/v1/listen` and Flux."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.harness import Running, chunks, serving

from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients' own imports
AUDIO = np.concatenate([silence(15), sound_of("fox", 8), silence(25), sound_of("dog", 8), silence(25)])


def pcm16(pcm_S: FloatArray) -> bytes:
    return (pcm_S * 32767).round().astype("<i2").tobytes()


def livekit_service(name: str, running: Running, key: str = "any", **options: Any) -> Any:
    deepgram = pytest.importorskip("livekit.plugins.deepgram")
    if name == "v1":
        address = f"{running.http}/v1/listen"
        return deepgram.STT(model="script", base_url=address, api_key=key, sample_rate=24_000, language="en", **options)
    address = f"{running.ws}/v2/listen"
    return deepgram.STTv2(model="script", base_url=address, api_key=key, sample_rate=24_000, **options)


async def livekit_events(running: Running, name: str, seconds_between: float, **options: Any) -> list[tuple[Any, str]]:
    rtc = pytest.importorskip("livekit.rtc")
    agents = pytest.importorskip("livekit.agents")
    http_context = pytest.importorskip("livekit.agents.utils.http_context")
    events: list[tuple[Any, str]] = []
    async with http_context.open():
        service = livekit_service(name, running, **options)
        stream = service.stream(conn_options=agents.APIConnectOptions(max_retry=0))
        try:
            for piece_S in chunks(AUDIO, 1920):
                stream.push_frame(rtc.AudioFrame(pcm16(piece_S), 24_000, 1, len(piece_S)))
                await asyncio.sleep(seconds_between)
            stream.end_input()
            async for event in stream:
                events.append((event.type, event.alternatives[0].text if event.alternatives else ""))
        finally:
            await stream.aclose()
            await service.aclose()
    return events


@pytest.mark.parametrize("seconds_between", [0.0, 0.02])
@pytest.mark.parametrize(("name", "options"), [("v1", {}), ("flux", {}), ("flux", {"eager_eot_threshold": 0.4})])
def test_livekit(name: str, options: dict[str, Any], seconds_between: float) -> None:
    kinds = pytest.importorskip("livekit.agents.stt").SpeechEventType
    with serving(ScriptRunner(slots=2)) as running:
        events = asyncio.run(asyncio.wait_for(livekit_events(running, name, seconds_between, **options), 60))
    finals = [text for kind, text in events if kind == kinds.FINAL_TRANSCRIPT]
    assert " ".join(finals) == "fox dog"
    if seconds_between:
        assert finals == ["fox", "dog"]
        bounds = [kind for kind, _ in events if kind in (kinds.START_OF_SPEECH, kinds.END_OF_SPEECH)]
        assert bounds == [kinds.START_OF_SPEECH, kinds.END_OF_SPEECH] * 2
        assert [text for kind, text in events if kind == kinds.PREFLIGHT_TRANSCRIPT] == (finals if options else [])


def test_livekit_recognises_a_recording() -> None:
    rtc = pytest.importorskip("livekit.rtc")
    http_context = pytest.importorskip("livekit.agents.utils.http_context")

    async def recognise(running: Running) -> Any:
        async with http_context.open():
            service = livekit_service("v1", running)
            return await service.recognize(rtc.AudioFrame(pcm16(AUDIO), 24_000, 1, len(AUDIO)))

    with serving() as running:
        assert asyncio.run(recognise(running)).alternatives[0].text == "fox dog"


@pytest.mark.parametrize("name", ["v1", "flux"])
def test_livekit_needs_the_key(name: str) -> None:
    pytest.importorskip("livekit.agents")
    with serving(keys=KeyRing.of(["secret"])) as running:
        with pytest.raises(Exception, match=r"401|connect|is closed"):
            asyncio.run(asyncio.wait_for(livekit_events(running, name, 0.0, key="wrong"), 60))
        assert asyncio.run(asyncio.wait_for(livekit_events(running, name, 0.0, key="secret"), 60))


def pipecat_service(name: str, running: Running, key: str) -> Any:
    if name == "v1":
        stt = pytest.importorskip("pipecat.services.deepgram.stt").DeepgramSTTService
        return stt(api_key=key, base_url=running.ws, settings=stt.Settings(model="script"))
    stt = pytest.importorskip("pipecat.services.deepgram.flux.stt").DeepgramFluxSTTService
    return stt(api_key=key, url=f"{running.ws}/v2/listen", settings=stt.Settings(model="script"))


@pytest.mark.parametrize("name", ["v1", "flux"])
def test_pipecat(name: str) -> None:
    pytest.importorskip("pipecat")
    frames = pytest.importorskip("pipecat.frames.frames")
    utils = pytest.importorskip("pipecat.tests.utils")

    async def talk(running: Running) -> list[Any]:
        service = pipecat_service(name, running, "secret")
        to_send: list[Any] = [utils.SleepFrame(sleep=0.5)]
        for words_S in (AUDIO[: 40 * 1920], AUDIO[40 * 1920 :]):
            for piece_S in chunks(words_S, 1920):
                to_send.append(frames.InputAudioRawFrame(pcm16(piece_S), 24_000, 1))
            to_send += [utils.SleepFrame(sleep=1.0), frames.VADUserStoppedSpeakingFrame(), utils.SleepFrame(sleep=1.0)]
        params = utils.PipelineParams(audio_in_sample_rate=24_000)
        down, _ = await utils.run_test(service, frames_to_send=to_send, pipeline_params=params)
        return list(down)

    with serving(ScriptRunner(slots=2), keys=KeyRing.of(["secret"])) as running:
        down = asyncio.run(talk(running))
    assert [frame.text for frame in down if isinstance(frame, frames.TranscriptionFrame)] == ["fox", "dog"]
    proposed = [frame for frame in down if isinstance(frame, frames.ProposedUserStartedSpeakingFrame)]
    assert len(proposed) == (2 if name == "flux" else 0)


@pytest.mark.parametrize("name", ["v1", "flux"])
def test_pipecat_with_a_wrong_key(name: str) -> None:
    pytest.importorskip("pipecat")
    frames = pytest.importorskip("pipecat.frames.frames")
    utils = pytest.importorskip("pipecat.tests.utils")

    async def talk(running: Running) -> list[Any]:
        service = pipecat_service(name, running, "wrong")
        _, up = await utils.run_test(service, frames_to_send=[utils.SleepFrame(sleep=0.5)])
        return list(up)

    with serving(keys=KeyRing.of(["secret"])) as running:
        up = asyncio.run(talk(running))
    errors = [frame.error for frame in up if isinstance(frame, frames.ErrorFrame)]
    assert "401" in errors[0]
