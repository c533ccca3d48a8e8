"""Abuse of text to speech: `python -m benchmarks.chaos --speech --sessions 500 --minutes 1`, as `benchmarks.chaos`.

Clients of OpenAI's route, Kyutai's and ElevenLabs' sockets and Wyoming vanish, send garbage, flood, never read, or stop
in the middle of a text. Honest clients of all four must get, sample for sample, the audio of a solo run. The model is
an `EchoRunner`, whose audio is the text that its slot has read.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from benchmarks.scripted_server import server_process
from websockets.asyncio.client import connect

from benchmarks import chaos
from slipstream.arrays import BoolArray
from slipstream.model.runner import State
from slipstream.model.speech import Decide, SpeechOutput, Voice
from slipstream.model.tts_config import TTSConfig
from slipstream.speaker import Speaker, to_pcm16
from slipstream.testing import small_tts_config, tiny_tokenizer

SLOTS = 16
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
LONG = " ".join(WORDS) + " "
PATIENCE = 60.0
KYUTAI, ELEVENLABS, OPENAI = (
    "/api/tts_streaming?format=Pcm",
    "/v1/text-to-speech/default/stream-input",
    "/v1/audio/speech",
)


@dataclass
class EchoRunner:
    """A model of text to speech that costs nothing: a frame of audio is the text that was read before it."""

    slots: int
    step_seconds: float = 0.0
    codebooks: int = 4
    latency_steps: int = 7
    config: TTSConfig = field(default_factory=small_tts_config)

    def __post_init__(self) -> None:
        self._read: list[list[int]] = [[] for _ in range(self.slots)]

    def reset(self, slot: int, voice: Voice | None, seed: int) -> None:
        self._read[slot] = []

    def step(self, decide: Decide, active_B: BoolArray) -> SpeechOutput:
        time.sleep(self.step_seconds)
        text_B, _ = decide(np.zeros(self.slots, np.int64))
        pcm_BS, audio_B = np.zeros((self.slots, 1920), np.float32), np.zeros(self.slots, np.bool_)
        for slot in np.flatnonzero(active_B).tolist():
            read = self._read[slot]
            read.append(int(text_B[slot]))
            audio_B[slot] = len(read) > self.latency_steps
            if audio_B[slot]:
                pcm_BS[slot] = (read[-1 - self.latency_steps] % 30_000) / 32_767
        return SpeechOutput(pcm_BS, audio_B)

    def snapshot(self, slot: int) -> State:
        raise ValueError("the server takes no snapshots of speech")

    restore = encode = snapshot


def open_echo(slots: int, step_seconds: float) -> Any:
    """A speaker for the server of a benchmark."""
    from slipstream.server.speaking import ServedSpeaker

    return ServedSpeaker(Speaker(EchoRunner(slots, step_seconds), tiny_tokenizer(), model="echo", voices="."))  # type: ignore[arg-type]


def run(sessions: int, seconds: float, seed: int, workers: int = 0) -> chaos.Report:
    """Run the whole of it. Raises when the server dies or logs an error."""
    with server_process(SLOTS, 0.001, chaos.IDLE_SECONDS, workers, speech=True) as (process, address):
        assert process.stdout is not None
        wyoming = f"127.0.0.1:{int(process.stdout.readline())}"
        report = asyncio.run(_run(address, wyoming, process.pid, sessions, seconds, seed))
        assert process.poll() is None, "the server died"
    return report


async def _run(address: str, wyoming: str, process: int, sessions: int, seconds: float, seed: int) -> chaos.Report:
    report = chaos.Report()
    began = time.monotonic()
    for number in range(4):
        await _honest(address, wyoming, number, report)
    await _abuse_all(address, wyoming, min(40, sessions // 4), 0.0, seed - 1, chaos.Report())
    report.memory_before = chaos._resident_mib(process)
    abusing = asyncio.create_task(_abuse_all(address, wyoming, sessions, seconds, seed, report))

    async def honest(number: int) -> None:
        while not abusing.done():
            await _honest(address, wyoming, number, report)
            number += 4

    await asyncio.gather(*(honest(number) for number in range(4)))
    await abusing
    await asyncio.sleep(2 * chaos.IDLE_SECONDS)  # those that are silent are closed
    report.leaked_slots = SLOTS - await _free_slots(address)
    report.memory_after = chaos._resident_mib(process)
    report.seconds = time.monotonic() - began
    return report


# ------------------------------------------------------------------------------------------------------- honest clients


async def _honest(address: str, wyoming: str, number: int, report: chaos.Report) -> None:
    text = " ".join(random.Random(number).choices(WORDS, k=8))
    clients = (_openai, _kyutai, _elevenlabs, _wyoming)
    spoken = await asyncio.wait_for(clients[number % 4](wyoming if number % 4 == 3 else address, text), PATIENCE)
    report.honest_streams += 1
    report.wrong_transcripts += spoken != _alone(text)


def _alone(text: str) -> bytes:
    with Speaker(EchoRunner(1), tiny_tokenizer()) as speaker:  # type: ignore[arg-type]
        return to_pcm16(speaker.say(text).samples)  # style: allow


async def _openai(address: str, text: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(_post(json.dumps({"input": text, "response_format": "pcm"}).encode()))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    body = b""
    while size := int(await reader.readline(), 16):  # chunked
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    writer.close()
    return body


async def _kyutai(address: str, text: str) -> bytes:
    async with connect(f"ws://{address}{KYUTAI}") as socket:
        for word in text.split():
            await socket.send(word)
            await asyncio.sleep(0.003)
        await socket.send(b"\0")
        samples = np.frombuffer(b"".join([data async for data in socket if isinstance(data, bytes)]), "<f4")
        return to_pcm16(samples)


async def _elevenlabs(address: str, text: str) -> bytes:
    async with connect(f"ws://{address}/v1/text-to-speech/default/stream-input?output_format=pcm_24000") as socket:
        for start in range(0, len(text), 5):
            await socket.send(json.dumps({"text": text[start : start + 5]}))
        await socket.send(json.dumps({"text": ""}))
        return b"".join([base64.b64decode(json.loads(data)["audio"] or "") async for data in socket])


async def _wyoming(address: str, text: str) -> bytes:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(_event("synthesize-start"))
    for start in range(0, len(text), 3):
        writer.write(_event("synthesize-chunk", text=text[start : start + 3]))
        await asyncio.sleep(0.001)
    writer.write(_event("synthesize-stop"))
    audio = b"".join([payload async for payload in _payloads(reader)])
    writer.close()
    return audio


async def _payloads(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while (head := json.loads(await reader.readline()))["type"] != "synthesize-stopped":
        assert head["type"] != "error", await reader.readexactly(head["data_length"])
        await reader.readexactly(head.get("data_length", 0))
        yield await reader.readexactly(head.get("payload_length", 0))


async def _free_slots(address: str) -> int:
    """How many sessions speak at the same time: each keeps its slot until all have begun."""
    sockets = [await connect(f"ws://{address}{KYUTAI}") for _ in range(SLOTS)]
    for socket in sockets:
        await socket.send(LONG)
    begun = await asyncio.gather(*(asyncio.wait_for(socket.recv(), 10) for socket in sockets), return_exceptions=True)
    for socket in sockets:
        await socket.close()
    return sum(isinstance(data, bytes) for data in begun)


# --------------------------------------------------------------------------------------------------------------- abuse


async def _abuse_all(
    address: str, wyoming: str, sessions: int, seconds: float, seed: int, report: chaos.Report
) -> None:
    drawn, room, tasks = random.Random(seed), asyncio.Semaphore(chaos.ABUSERS_AT_ONCE), []
    for _ in range(sessions):
        await room.acquire()
        abuse = drawn.choice(ABUSES)
        report.abuses[abuse.__name__] += 1
        where = wyoming if abuse in OF_WYOMING else address
        tasks.append(asyncio.create_task(chaos._abuse(abuse, where, random.Random(drawn.random()), room)))
        await asyncio.sleep(seconds / sessions)
    await asyncio.gather(*tasks)


async def vanishes_in_a_text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Leaves in the middle of a text or of its audio."""
    path = drawn.choice([KYUTAI, ELEVENLABS])
    await chaos._upgrade(reader, writer, path)
    for _ in range(drawn.randrange(1, 8)):
        chaos._send(writer, LONG.encode() if path == KYUTAI else json.dumps({"text": LONG}).encode(), opcode=1)
    if drawn.random() < 0.5:
        chaos._send(writer, *((b"\0", 2) if path == KYUTAI else (b'{"text":""}', 1)))
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(reader.readexactly(drawn.randrange(1, 20_000)), 2)


async def never_reads_speech(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Asks for minutes of speech and reads nothing."""
    kind = drawn.randrange(3)
    writer.transport.pause_reading()
    if kind == 0:
        writer.write(_post(json.dumps({"input": LONG * 60, "response_format": "wav"}).encode()))
    else:
        writer.transport.resume_reading()
        await chaos._upgrade(reader, writer, [KYUTAI, ELEVENLABS][kind - 1])
        writer.transport.pause_reading()
        for _ in range(40):
            chaos._send(writer, LONG.encode() if kind == 1 else json.dumps({"text": LONG}).encode(), opcode=1)
    await writer.drain()
    await asyncio.sleep(drawn.uniform(0, 3))


async def sends_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Messages that are none, of the wrong type, or too long."""
    path = drawn.choice([KYUTAI, ELEVENLABS])
    await chaos._upgrade(reader, writer, path)
    noise = [
        drawn.randbytes(drawn.randrange(200)),
        msgpack.packb({"type": drawn.choice(["Text", "Voice", "Sing"]), "text": drawn.choice([1, None, "la"])}),
        msgpack.packb({"type": "Voice", "embeddings": [0.5] * 1000, "shape": drawn.choice([[1, 10, 100], [2], ["x"]])}),
        b"x" * 300_000,
        b"[" * 50_000,
        json.dumps({"text": drawn.choice([[], 1, "x" * 250_000]), "flush": True}).encode(),
    ]
    for _ in range(drawn.randrange(1, 5)):
        chaos._send(writer, drawn.choice(noise), opcode=drawn.choice([1, 2]))
    await asyncio.wait_for(reader.read(), 2)


async def floods_with_text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Texts of a letter, flushes and ends by the thousand."""
    path = drawn.choice([KYUTAI, ELEVENLABS])
    await chaos._upgrade(reader, writer, path)
    messages = ["a", " ", "<break", ""] if path == KYUTAI else ['{"text":"a","flush":true}', '{"text":" "}']
    for _ in range(1500):
        chaos._send(writer, drawn.choice(messages).encode(), opcode=1)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(writer.drain(), 3)
    await asyncio.sleep(drawn.uniform(0, 1))


async def falls_silent_in_a_text(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random
) -> None:
    """Sends the beginning of a text, and then nothing until the server closes."""
    await chaos._upgrade(reader, writer, KYUTAI)
    chaos._send(writer, b"the quick", opcode=1)
    await asyncio.wait_for(reader.read(), 3 * chaos.IDLE_SECONDS)


async def posts_and_leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Requests that are cut, invalid, too large, or whose audio nobody waits for."""
    bodies = [
        json.dumps({"input": LONG * 20, "response_format": drawn.choice(["mp3", "opus", "flac", "pcm"])}).encode(),
        json.dumps({"input": LONG, "voice": drawn.choice(["carl", "../x", 3, [1]])}).encode(),
        b'{"input": ' + b"[" * 20_000,
        b"x" * 80_000,
    ]
    request = _post(drawn.choice(bodies))
    writer.write(request[: drawn.randrange(1, len(request))] if drawn.random() < 0.3 else request)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(reader.readexactly(drawn.randrange(1, 5000)), 2)


async def wyoming_vanishes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Leaves a Wyoming connection in the middle of a text or of its audio, or reads none of it."""
    if drawn.random() < 0.3:
        writer.transport.pause_reading()
    if drawn.random() < 0.5:
        writer.write(_event("synthesize", text=LONG * 30))
    else:
        writer.write(_event("synthesize-start"))
        for _ in range(drawn.randrange(5)):
            writer.write(_event("synthesize-chunk", text=LONG * 10))
    await writer.drain()
    await asyncio.sleep(drawn.uniform(0, 3))


async def wyoming_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Events in the wrong order, of the wrong type, and bytes that are none."""
    events = [
        _event("synthesize", text="fox"),
        _event("synthesize-start"),
        _event("synthesize-chunk", text="fox "),
        _event("synthesize-stop"),
        _event("audio-start", rate=16_000, width=2, channels=1),
        _event("describe"),
        _event("synthesize", text=[1]),
        _event("synthesize", text="fox", voice={"name": "carl"}),
        drawn.randbytes(100),
        b'{"type": "synthesize", "data_length": 60000}\n',
    ]
    for _ in range(drawn.randrange(1, 12)):
        writer.write(drawn.choice(events))
    await asyncio.wait_for(reader.read(), 2)


OF_WYOMING: list[chaos.Abuse] = [wyoming_vanishes, wyoming_garbage]
ABUSES: list[chaos.Abuse] = [
    vanishes_in_a_text,
    never_reads_speech,
    sends_garbage,
    floods_with_text,
    falls_silent_in_a_text,
    posts_and_leaves,
    *OF_WYOMING,
]


def _post(body: bytes) -> bytes:
    head = f"POST {OPENAI} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _event(type: str, **data: Any) -> bytes:
    packed = json.dumps(data).encode()
    return json.dumps({"type": type, "data_length": len(packed)}).encode() + b"\n" + packed
