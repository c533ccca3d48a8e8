"""LiveKit's and Pipecat's services for OpenAI and Deepgram, unchanged, when the connection to our server is lost.

They connect again and transcribe what follows. They do not send again what the server had received.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.cuts import CuttingProxy
from tests.fakes import ScriptRunner, silence, sound_of
from tests.server.clients.test_agents_deepgram import livekit_service, pcm16, pipecat_service
from tests.server.harness import Running, chunks, serving

from slipstream.arrays import FloatArray
from slipstream.connections.keys import KeyRing

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients' own imports
PATIENCE = 60.0
KEYS = KeyRing.of(["secret"])


def spoken(word: str) -> list[FloatArray]:
    """A word between silences, in frames."""
    return chunks(np.concatenate([silence(15), sound_of(word, 12), silence(25)]), 1920)


def livekit_realtime(running: Running) -> Any:
    openai = pytest.importorskip("livekit.plugins.openai")
    return openai.STT(model="script", use_realtime=True, base_url=f"{running.http}/v1", api_key="secret", language="en")


def pipecat_realtime(running: Running) -> Any:
    stt = pytest.importorskip("pipecat.services.openai.stt").OpenAIRealtimeSTTService
    return stt(api_key="secret", base_url=f"{running.ws}/v1/realtime", settings=stt.Settings(model="script"))


LIVEKIT: dict[str, Callable[[Running], Any]] = {
    "realtime": livekit_realtime,
    "v1": lambda running: livekit_service("v1", running, "secret"),
    "flux": lambda running: livekit_service("flux", running, "secret"),
}
PIPECAT: dict[str, Callable[[Running], Any]] = {
    "realtime": pipecat_realtime,
    "v1": lambda running: pipecat_service("v1", running, "secret"),
    "flux": lambda running: pipecat_service("flux", running, "secret"),
}


@asynccontextmanager
async def through_a_proxy(running: Running) -> AsyncIterator[tuple[Running, CuttingProxy]]:
    async with CuttingProxy(running.address, []) as proxy:
        yield replace(running, address=proxy.address), proxy


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", LIVEKIT)
def test_livekit(name: str) -> None:
    rtc = pytest.importorskip("livekit.rtc")
    kinds = pytest.importorskip("livekit.agents.stt").SpeechEventType
    http_context = pytest.importorskip("livekit.agents.utils.http_context")
    finals: list[str] = []

    async def read(stream: Any) -> None:
        async for event in stream:
            if event.type == kinds.FINAL_TRANSCRIPT:
                finals.append(event.alternatives[0].text)

    async def talk(running: Running) -> None:
        async with through_a_proxy(running) as (reached, proxy), http_context.open():
            service = LIVEKIT[name](reached)
            stream = service.stream()
            reading = asyncio.create_task(read(stream))

            async def say(pieces: list[FloatArray]) -> None:
                for piece_S in pieces:
                    stream.push_frame(rtc.AudioFrame(pcm16(piece_S), 24_000, 1, len(piece_S)))
                    await asyncio.sleep(0.01)

            try:
                await say(spoken("fox"))
                await until(lambda: finals == ["fox"])
                await say(spoken("sea")[:20])  # in the middle of a word, which is lost
                before = proxy.connections
                proxy.cut()
                await until(lambda: proxy.connections > before)
                await say(spoken("dog"))
                await until(lambda: "dog" in finals)
            finally:
                reading.cancel()
                await stream.aclose()
                await service.aclose()

    with serving(ScriptRunner(slots=2), keys=KEYS) as running:
        asyncio.run(talk(running))
    assert finals[0] == "fox"
    assert finals[-1] == "dog"


@pytest.mark.parametrize("name", PIPECAT)
def test_pipecat(name: str) -> None:
    pytest.importorskip("pipecat")
    frames = pytest.importorskip("pipecat.frames.frames")
    utils = pytest.importorskip("pipecat.tests.utils")

    def say(pieces: list[FloatArray]) -> Iterator[Any]:
        for piece_S in pieces:
            yield frames.InputAudioRawFrame(pcm16(piece_S), 24_000, 1)
            yield utils.SleepFrame(sleep=0.01)

    def turn(word: str) -> Iterator[Any]:
        yield from say(spoken(word))
        yield utils.SleepFrame(sleep=1.0)
        yield frames.VADUserStoppedSpeakingFrame()
        yield utils.SleepFrame(sleep=1.0)

    def script(proxy: CuttingProxy) -> Iterator[Any]:
        yield utils.SleepFrame(sleep=0.5)
        yield from turn("fox")
        yield from say(spoken("sea")[:20])
        before = proxy.connections
        proxy.cut()
        while proxy.connections == before:
            yield utils.SleepFrame(sleep=0.05)
        yield utils.SleepFrame(sleep=0.5)
        yield from turn("dog")

    async def talk(running: Running) -> list[Any]:
        async with through_a_proxy(running) as (reached, proxy), asyncio.timeout(PATIENCE):
            params = utils.PipelineParams(audio_in_sample_rate=24_000)
            service = PIPECAT[name](reached)
            down, _ = await utils.run_test(service, frames_to_send=script(proxy), pipeline_params=params)
            return list(down)

    with serving(ScriptRunner(slots=2), keys=KEYS) as running:
        down = asyncio.run(talk(running))
    texts = [frame.text for frame in down if isinstance(frame, frames.TranscriptionFrame)]
    assert texts[0] == "fox"
    assert texts[-1] == "dog"
