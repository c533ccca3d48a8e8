"""Wyoming's own client, unchanged, against a live server."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator
from functools import partial

import numpy as np
import pytest
from tests.dialects.wyoming_reading import until
from tests.fakes import ScriptRunner, silence, speech
from tests.server.harness import Running, chunks, serving, solo, wait_for

from slipstream.arrays import FloatArray
from slipstream.connections.limits import Limits
from slipstream.dialects.wyoming import WyomingOptions, open_wyoming

pytest.importorskip("wyoming", reason="needs the extra clients-test")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports audioop
    from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncTcpClient
    from wyoming.error import Error
    from wyoming.event import Event
    from wyoming.info import Describe, Info
    from wyoming.ping import Ping, Pong
    from wyoming.vad import VoiceStarted, VoiceStopped

RATE = 24_000
NO_VAD = {"wyoming": partial(open_wyoming, WyomingOptions(own_vad=False))}
VAD = {"wyoming": partial(open_wyoming, WyomingOptions(("en", "fr"), own_vad=True))}


@contextlib.asynccontextmanager
async def client(running: Running) -> AsyncIterator[AsyncTcpClient]:
    async with AsyncTcpClient(
        "127.0.0.1", running.tcp_ports["wyoming"], connect_timeout=10, read_timeout=20
    ) as connected:
        yield connected


def pcm16(audio_S: FloatArray) -> bytes:
    return (audio_S * 32768).round().clip(-32768, 32767).astype("<i2").tobytes()


def text_of(audio_S: FloatArray) -> str:
    return " ".join(word.text for word in solo(np.frombuffer(pcm16(audio_S), "<i2").astype(np.float32) / 32768))


async def send(connected: AsyncTcpClient, audio_S: FloatArray, pause: float = 0.0, size: int = 1920) -> None:
    for piece_S in chunks(audio_S, size):
        await connected.write_event(AudioChunk(RATE, 2, 1, pcm16(piece_S)).event())
        await asyncio.sleep(pause)


@pytest.mark.parametrize("pause", [0.0, 0.02])
def test_a_transcript_after_the_audio(pause: float) -> None:
    audio_S = speech(seed=1, words=6)

    async def talk(running: Running) -> list[Event]:
        async with client(running) as connected:
            await connected.write_event(Transcribe(language="en").event())
            await connected.write_event(AudioStart(RATE, 2, 1).event())
            await send(connected, audio_S, pause)
            await connected.write_event(AudioStop().event())
            events = await until(connected, "transcript-stop")
            assert await connected.read_event() is None  # as the reference server does
            return events

    with serving(tcp=NO_VAD) as running:
        events = asyncio.run(talk(running))
        again = asyncio.run(talk(running))
    assert [event.type for event in events[:1]] == ["transcript-start"]
    assert TranscriptStart.is_type(events[0].type)
    assert TranscriptStop.is_type(events[-1].type)
    text = Transcript.from_event(events[-2]).text
    assert text == text_of(audio_S) != ""
    assert "".join(TranscriptChunk.from_event(event).text for event in events[1:-2]) == text
    assert [event.data for event in again] == [event.data for event in events]


def test_our_own_voice_activity_detection_ends_a_command_while_the_client_sends() -> None:
    first_S, second_S = speech(seed=1, words=4), speech(seed=2, words=3)

    async def talk(running: Running) -> tuple[list[Event], list[Event], list[Event]]:
        async with client(running) as connected:
            await connected.write_event(Transcribe(vad_sensitivity="default").event())
            await connected.write_event(AudioStart(RATE, 2, 1, timestamp=1000).event())
            await send(connected, first_S)
            await send(connected, silence(15))
            turn = await until(connected, "transcript-stop")
            await send(connected, second_S)
            await send(connected, silence(15))
            second = await until(connected, "transcript-stop")
            await connected.write_event(AudioStop().event())
            return turn, second, await until(connected, "transcript")

    with serving(tcp=VAD) as running:
        first, second, last = asyncio.run(talk(running))
    alone = solo(np.concatenate([first_S, silence(15), second_S, silence(15)]))
    for events, count in ((first, 4), (second, 3)):
        kinds = [event.type for event in events]
        assert kinds == [
            "voice-started",
            "transcript-start",
            *["transcript-chunk"] * count,
            "voice-stopped",
            "transcript",
            "transcript-stop",
        ]
    assert Transcript.from_event(first[-2]).text == " ".join(word.text for word in alone[:4])
    assert Transcript.from_event(second[-2]).text == " ".join(word.text for word in alone[4:])
    assert VoiceStarted.from_event(first[0]).timestamp == 1000 + round(1000 * alone[0].start)
    stopped = VoiceStopped.from_event(first[-3]).timestamp
    assert stopped is not None
    assert 1000 * alone[3].start <= stopped - 1000 <= 1000 * alone[4].start
    assert [event.type for event in last] == ["transcript"]
    assert Transcript.from_event(last[0]).text == ""


def test_audio_stop_without_audio_has_an_empty_transcript() -> None:
    async def talk(running: Running) -> list[Event]:
        async with client(running) as connected:
            await connected.write_event(AudioStop().event())
            events = await until(connected, "transcript")
            assert await connected.read_event() is None
            return events

    with serving(tcp=VAD) as running:
        assert Transcript.from_event(asyncio.run(talk(running))[0]).text == ""


@pytest.mark.parametrize(("dialects", "external"), [(VAD, False), (NO_VAD, True)])
def test_the_description_and_pings_need_no_slot(dialects: dict[str, object], external: bool) -> None:
    async def talk(running: Running) -> tuple[Info, Pong]:
        async with client(running) as connected:
            await connected.write_event(Describe().event())
            info = Info.from_event((await until(connected, "info"))[0])
            await connected.write_event(Ping("é").event())
            assert running.engine.active == 0
            return info, Pong.from_event((await until(connected, "pong"))[0])

    with serving(tcp=dialects) as running:  # type: ignore[arg-type]
        info, pong = asyncio.run(talk(running))
    assert pong.text == "é"
    program = info.asr[0]
    assert (program.requires_external_vad, program.supports_transcript_streaming) == (external, True)
    assert [model.name for model in program.models] == ["script"]
    assert program.models[0].languages == (["en"] if external else ["en", "fr"])
    assert program.installed
    assert not info.tts


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([Transcribe(name="whisper").event()], "unknown model 'whisper': this server has script"),
        ([AudioStart(16_000, 4, 1).event()], "width=4: expected 2 or 3 bytes"),
        ([AudioStart(100, 2, 1).event()], "expected at least 4000 Hz"),
        ([AudioStart(RATE, 2, 1).event(), AudioChunk(16_000, 2, 1, b"").event()], "format of the audio changed"),
        ([AudioStart(RATE, 2, 1).event(), AudioStart(RATE, 2, 1).event()], "'audio-start' in the state 'audio'"),
    ],
)
def test_an_error_states_what_would_be_valid_and_the_next_connection_works(events: list[Event], says: str) -> None:
    async def talk(running: Running) -> str:
        async with client(running) as connected:
            for event in events:
                await connected.write_event(event)
            error = Error.from_event((await until(connected, "error"))[-1])
            assert error.code == "invalid-payload"
            assert await connected.read_event() is None
        async with client(running) as connected:
            await connected.write_event(Ping().event())
            await until(connected, "pong")
        return error.text

    with serving(tcp=VAD) as running:
        assert says in asyncio.run(talk(running))


def test_a_client_that_leaves_frees_its_slot() -> None:
    async def leave(running: Running) -> None:
        async with client(running) as connected:
            await connected.write_event(AudioStart(RATE, 2, 1).event())
            await send(connected, speech(seed=1, words=3))
            wait_for(lambda: running.engine.active == 1)

    with serving(tcp=VAD) as running:
        asyncio.run(leave(running))
        wait_for(lambda: running.engine.active == 0)


def test_a_full_server_sends_an_error() -> None:
    async def talk(running: Running) -> Error:
        async with client(running) as first, client(running) as second:
            for connected in (first, second):
                await connected.write_event(AudioStart(RATE, 2, 1).event())
                await asyncio.sleep(0.1)
            return Error.from_event((await until(second, "error"))[-1])

    with serving(ScriptRunner(slots=1), tcp=VAD) as running:
        error = asyncio.run(talk(running))
    assert error.code == "try-later"
    assert "slot" in error.text


def test_a_silent_connection_is_closed() -> None:
    async def talk(running: Running) -> str:
        async with client(running) as connected:
            assert await connected.read_event() is None
        return "closed"

    with serving(tcp=VAD, limits=Limits(idle_seconds=0.5)) as running:
        assert asyncio.run(talk(running)) == "closed"


def test_the_drain_sends_the_transcript_of_the_audio_so_far() -> None:
    audio_S = speech(seed=3, words=4)

    async def talk(running: Running) -> list[Event]:
        async with client(running) as connected:
            await connected.write_event(AudioStart(RATE, 2, 1).event())
            await send(connected, audio_S)
            await until(connected, "transcript-chunk")
            running.server._stopping = True
            return await until(connected, "transcript-stop")

    with serving(tcp=NO_VAD) as running:
        events = asyncio.run(talk(running))
    assert Transcript.from_event(events[-2]).text == text_of(audio_S)
