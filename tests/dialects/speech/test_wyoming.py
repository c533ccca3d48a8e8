"""Text to speech with Wyoming's own client, unchanged, against a live server."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.dialects.wyoming_reading import until
from tests.fakes import speech
from tests.server.harness import Running, chunks, serving, wait_for
from tests.server.spoken import speaker_of, speaking
from tests.speaking import save_model

from slipstream.connections.limits import Limits
from slipstream.dialects.protocol import Close, CloseCode
from slipstream.dialects.wyoming import WyomingOptions, open_wyoming
from slipstream.speaker import to_pcm16

pytest.importorskip("torch")
pytest.importorskip("wyoming", reason="needs the extra clients-test")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports audioop
    from wyoming.asr import Transcript
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncTcpClient
    from wyoming.error import Error
    from wyoming.event import Event
    from wyoming.info import Describe, Info
    from wyoming.ping import Ping, Pong
    from wyoming.tts import (
        Synthesize,
        SynthesizeChunk,
        SynthesizeStart,
        SynthesizeStop,
        SynthesizeStopped,
        SynthesizeTextFormat,
        SynthesizeVoice,
    )

TEXT = "the quick fox"
TCP = {"wyoming": partial(open_wyoming, WyomingOptions())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with speaking(folder, tcp=TCP) as running:
        yield running


@contextlib.asynccontextmanager
async def client(running: Running) -> AsyncIterator[AsyncTcpClient]:
    port = running.tcp_ports["wyoming"]
    async with AsyncTcpClient("127.0.0.1", port, connect_timeout=10, read_timeout=30) as connected:
        yield connected


def say(running: Running, *events: Event, last: str = "audio-stop") -> list[Event]:
    """What a client of one connection gets for these events."""

    async def talk() -> list[Event]:
        async with client(running) as connected:
            for event in events:
                await connected.write_event(event)
            return await until(connected, last)

    return asyncio.run(talk())


def audio_of(events: list[Event]) -> bytes:
    """The audio of a whole response, whose order and format are checked."""
    start, *pieces, stop = events
    assert AudioStop.is_type(stop.type)
    format = AudioStart.from_event(start)
    assert (format.rate, format.width, format.channels) == (24_000, 2, 1)
    frames = [AudioChunk.from_event(piece) for piece in pieces]
    assert [frame.timestamp for frame in frames] == [80 * number for number in range(len(frames))]
    assert {(frame.rate, frame.width, frame.channels) for frame in frames} <= {(24_000, 2, 1)}
    return b"".join(frame.audio for frame in frames)


def expected(running: Running, text: str = TEXT, voice: str | None = "ann") -> bytes:
    return to_pcm16(speaker_of(running).say(text, voice).samples)  # style: allow


def close_to(pcm: bytes, other: bytes) -> bool:
    """Whether two pieces of audio are the same, up to the rounding of batches of other sizes."""
    return len(pcm) == len(other) and bool(np.abs(np.frombuffer(pcm, "<i2") - np.frombuffer(other, "<i2")).max() <= 4)


@pytest.mark.parametrize("voice", ["ann", "bob"])
def test_a_text_is_spoken(server: Running, voice: str) -> None:
    pcm = audio_of(say(server, Synthesize(TEXT, voice=SynthesizeVoice(name=voice)).event()))
    assert close_to(pcm, expected(server, voice=voice))
    assert len(pcm) > 2 * 1920 * 5


def test_the_default_voice_has_a_name_and_a_language(server: Running) -> None:
    alone = expected(server, voice=None)
    for voice in (None, SynthesizeVoice(name="default"), SynthesizeVoice(language="en")):
        assert close_to(audio_of(say(server, Synthesize(TEXT, voice=voice).event())), alone)


def test_a_text_that_is_still_being_written(server: Running) -> None:
    events = say(
        server,
        SynthesizeStart(voice=SynthesizeVoice(name="bob")).event(),
        *(SynthesizeChunk(piece).event() for piece in ("th", "e qui", "ck ", "fox")),
        Synthesize(TEXT, voice=SynthesizeVoice(name="bob")).event(),  # as Home Assistant sends it, for older servers
        SynthesizeStop().event(),
        last="synthesize-stopped",
    )
    assert SynthesizeStopped.is_type(events[-1].type)
    assert close_to(audio_of(events[:-1]), expected(server, voice="bob"))


def test_speech_begins_before_the_text_has_ended(server: Running) -> None:
    async def talk() -> list[Event]:
        async with client(server) as connected:
            await connected.write_event(SynthesizeStart().event())
            await connected.write_event(SynthesizeChunk("the quick brown fox jumps over the lazy dog " * 2).event())
            first = await until(connected, "audio-chunk")
            await connected.write_event(SynthesizeStop().event())
            return [*first, *await until(connected, "synthesize-stopped")]

    events = asyncio.run(talk())
    assert close_to(
        audio_of(events[:-1]), expected(server, "the quick brown fox jumps over the lazy dog " * 2, voice=None)
    )


def test_one_connection_speaks_several_texts_and_answers_in_between(server: Running) -> None:
    async def talk() -> list[bytes]:
        async with client(server) as connected:
            await connected.write_event(Describe().event())
            await connected.write_event(Synthesize("fox", voice=SynthesizeVoice(name="ann")).event())
            first = await until(connected, "audio-stop")
            assert Info.is_type(first[0].type)
            await connected.write_event(Ping("still there").event())
            assert Pong.from_event((await until(connected, "pong"))[0]).text == "still there"
            await connected.write_event(SynthesizeStart(voice=SynthesizeVoice(name="bob")).event())
            await connected.write_event(Describe().event())
            assert Info.from_event((await until(connected, "info"))[0]).tts
            await connected.write_event(SynthesizeStop().event())
            nothing = await until(connected, "synthesize-stopped")
            await connected.write_event(Synthesize("dog", voice=SynthesizeVoice(name="bob")).event())
            return [audio_of(first[1:]), audio_of(nothing[:-1]), audio_of(await until(connected, "audio-stop"))]

    first, nothing, second = asyncio.run(talk())
    assert nothing == b""
    assert close_to(first, expected(server, "fox", "ann"))
    assert close_to(second, expected(server, "dog", "bob"))


def test_the_description_lists_the_voices(server: Running, folder: Path) -> None:
    info = Info.from_event(say(server, Describe().event(), last="info")[0])
    program = info.tts[0]
    assert (program.name, program.installed, program.supports_synthesize_streaming) == ("slipstream", True, True)
    assert [voice.name for voice in program.voices] == ["ann", "bob"]
    assert {tuple(voice.languages) for voice in program.voices} == {("en",)}
    assert [model.name for model in info.asr[0].models] == ["script"]
    with speaking(folder.parent / "elsewhere", tcp=TCP) as running:  # as a repository, whose voices are not listed
        found = Info.from_event(say(running, Describe().event(), last="info")[0]).tts[0]
    assert [voice.name for voice in found.voices] == ["default"]


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([Synthesize(TEXT, voice=SynthesizeVoice(name="carl")).event()], "unknown voice 'carl'"),
        ([Synthesize(TEXT, voice=SynthesizeVoice(name="../ann")).event()], "unknown voice '../ann'"),
        ([Synthesize(TEXT, text_format=SynthesizeTextFormat.SSML).event()], "text_format='ssml': expected text"),
        ([Event("synthesize", {"text": 3})], "text=3: expected a string"),
        ([Event("synthesize", {"text": "fox", "voice": 3})], "voice=3: expected an object"),
        ([Event("synthesize", {"text": "fox", "voice": {"name": [1]}})], "expected an object with the name of a voice"),
        ([SynthesizeChunk("fox").event()], "'synthesize-chunk' in the state 'idle'"),
        ([SynthesizeStart().event(), SynthesizeStart().event()], "'synthesize-start' in the state 'writing'"),
        ([SynthesizeStart().event(), AudioStart(24_000, 2, 1).event()], "'audio-start' in the state 'writing'"),
        ([AudioStart(24_000, 2, 1).event(), Synthesize(TEXT).event()], "'synthesize' after audio"),
        ([SynthesizeStart().event(), *[SynthesizeChunk("x" * 60_000).event()] * 4], "at most 200000 characters"),
    ],
)
def test_an_error_states_what_would_be_valid(server: Running, events: list[Event], says: str) -> None:
    error = Error.from_event(say(server, *events, last="error")[-1])
    assert error.code == "invalid-payload"
    assert says in error.text
    wait_for(lambda: speaker_of(server).engine.active == 0)


def test_a_server_without_a_speaker_reports_it() -> None:
    with serving(tcp=TCP) as running:
        error = Error.from_event(say(running, Synthesize(TEXT).event(), last="error")[-1])
        assert not Info.from_event(say(running, Describe().event(), last="info")[0]).tts
    assert "start it with --speech" in error.text


def test_a_client_that_leaves_frees_its_slot(server: Running) -> None:
    async def leave() -> None:
        async with client(server) as connected:
            await connected.write_event(Synthesize("the quick brown fox jumps over the lazy dog " * 20).event())
            await until(connected, "audio-chunk")

    asyncio.run(leave())
    wait_for(lambda: speaker_of(server).engine.active == 0, 30)


def test_transcription_continues_at_the_same_time(server: Running) -> None:
    audio_S = speech(seed=1, words=4)

    async def transcribe() -> str:
        async with client(server) as connected:
            await connected.write_event(AudioStart(24_000, 2, 1).event())
            for piece_S in chunks(audio_S, 1920):
                await connected.write_event(AudioChunk(24_000, 2, 1, to_pcm16(piece_S)).event())
            await connected.write_event(AudioStop().event())
            return Transcript.from_event((await until(connected, "transcript"))[-1]).text

    async def both() -> tuple[str, list[Event]]:
        async def speak() -> list[Event]:
            async with client(server) as connected:
                await connected.write_event(Synthesize(TEXT, voice=SynthesizeVoice(name="ann")).event())
                return await until(connected, "audio-stop")

        text, events = await asyncio.gather(transcribe(), speak())
        return text, events

    text, events = asyncio.run(both())
    assert len(text.split()) == 4
    assert close_to(audio_of(events), expected(server))


def test_a_silent_connection_is_closed(folder: Path) -> None:
    with speaking(folder, tcp=TCP, limits=Limits(idle_seconds=0.3)) as running:
        error = Error.from_event(say(running, SynthesizeStart().event(), last="error")[-1])
    assert error.code == "timed-out"


def test_the_stop_of_the_server_finishes_the_text(folder: Path) -> None:
    async def talk(running: Running) -> bytes:
        async with client(running) as connected:
            await connected.write_event(SynthesizeStart(voice=SynthesizeVoice(name="ann")).event())
            await connected.write_event(SynthesizeChunk(f"{TEXT} ").event())
            while not speaker_of(running).engine.active:
                await asyncio.sleep(0.01)
            running.server._stopping = True
            return audio_of((await until(connected, "synthesize-stopped"))[:-1])

    with speaking(folder, tcp=TCP) as running:
        pcm = asyncio.run(talk(running))
        assert close_to(pcm, expected(running))


def test_the_end_of_the_connection_finishes_the_text(server: Running) -> None:
    async def talk() -> bytes:
        async with client(server) as connected:
            await connected.write_event(Synthesize(TEXT, voice=SynthesizeVoice(name="ann")).event())
            assert connected._writer is not None
            connected._writer.write_eof()
            pcm = audio_of(await until(connected, "audio-stop"))
            assert await connected.read_event() is None
            return pcm

    assert close_to(asyncio.run(talk()), expected(server))
    assert Close(CloseCode.NORMAL).reason == ""
