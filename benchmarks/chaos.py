"""Abuse of a live server during honest use: `python -m benchmarks.chaos --sessions 2000 --minutes 3`.

Clients connect to a server in a separate process, and vanish, stop sending, send garbage, send messages out of order or
after the end, send giants, bombs or waste, never read, flood, or hang up in mid-word. At the same time honest clients
transcribe recordings again and again, and must get, word for word, what a solo run gets. In the end every slot must be
free, the server's memory flat, and its error log empty. The model is the tests' ScriptRunner, whose words follow from
all audio of a slot.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import numpy as np
from benchmarks.attacks.opus import SILK_60_MS, opus_bomb
from benchmarks.attacks.uploads import encoded
from benchmarks.scripted_server import server_process

from slipstream.arrays import FloatArray
from slipstream.client import open_async_stream
from slipstream.events import Word
from slipstream.testing import ScriptRunner, speech, tiny_tokenizer
from slipstream.transcriber import Transcriber

SLOTS = 128
ABUSERS_AT_ONCE = 64
HONEST_AT_ONCE = 6
IDLE_SECONDS = 2.0
STEP_SECONDS = 0.002


@dataclass
class Report:
    """What happened. Memory in MiB: `memory_before` once the server is warm, `memory_after` when all are gone."""

    abuses: Counter[str] = field(default_factory=Counter)
    honest_streams: int = 0
    wrong_transcripts: int = 0
    leaked_slots: int = 0
    memory_before: float = 0.0
    memory_after: float = 0.0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=2000, help="of abuse")
    parser.add_argument("--minutes", type=float, default=3.0, help="over which they are spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the server")
    parser.add_argument("--speech", action="store_true", help="text to speech instead: see benchmarks.chaos_speech")
    arguments = parser.parse_args()
    chosen = run
    if arguments.speech:
        from benchmarks.chaos_speech import run as chosen
    report = chosen(arguments.sessions, arguments.minutes * 60, arguments.seed, arguments.workers)
    print(f"{report.seconds:.0f} s; abuse: {dict(sorted(report.abuses.items()))}")
    print(f"honest streams: {report.honest_streams}, with a wrong result: {report.wrong_transcripts}")
    print(f"slots leaked: {report.leaked_slots}; memory: {report.memory_before:.0f} -> {report.memory_after:.0f} MiB")


def run(sessions: int, seconds: float, seed: int, workers: int = 0) -> Report:
    """Run the whole of it. Raises when the server dies or logs an error."""
    _uploads()  # encoding them later would make the honest clients wait
    with server_process(SLOTS, STEP_SECONDS, IDLE_SECONDS, workers) as (process, address):
        report = asyncio.run(_run(address, process.pid, sessions, seconds, seed))
        assert process.poll() is None, "the server died"
    return report


async def _run(address: str, process: int, sessions: int, seconds: float, seed: int) -> Report:
    report = Report()
    began = time.monotonic()
    await _honest(address, 0, report)
    await _abuse_all(address, min(100, sessions // 4), 0.0, seed - 1, Report())  # what it ever allocates, it has now
    await _until_free(address)
    report.memory_before = _resident_mib(process)
    abusing = asyncio.create_task(_abuse_all(address, sessions, seconds, seed, report))
    await asyncio.gather(*(_honest_until(abusing, address, number, report) for number in range(HONEST_AT_ONCE)))
    await abusing
    report.leaked_slots = await _until_free(address)
    report.memory_after = _resident_mib(process)
    report.seconds = time.monotonic() - began
    return report


# ------------------------------------------------------------------------------------------------------- honest streams


async def _honest_until(over: asyncio.Task[None], address: str, number: int, report: Report) -> None:
    while not over.done():
        await _honest(address, number, report)
        number += HONEST_AT_ONCE


async def _honest(address: str, number: int, report: Report) -> None:
    audio_S = speech(seed=number % 50, words=6)
    async with open_async_stream(address) as stream:

        async def send() -> None:
            size = 500 + 331 * (number % 17)
            for chunk in np.split(audio_S, range(size, len(audio_S), size)):
                await stream.send(chunk)
                await asyncio.sleep(0.005)
            await stream.finish()

        sending = asyncio.create_task(send())
        words = [event async for event in stream if isinstance(event, Word)]
        await sending
    report.honest_streams += 1
    report.wrong_transcripts += words != _transcribed(audio_S)


def _transcribed(audio_S: FloatArray) -> list[Word]:
    """The words of a recording that is alone on its runner."""
    with Transcriber(ScriptRunner(), tiny_tokenizer(), model="script") as transcriber:
        return list(transcriber.transcribe(audio_S, sample_rate=24_000).words)


# ---------------------------------------------------------------------------------------------------------------- abuse


async def _abuse_all(address: str, sessions: int, seconds: float, seed: int, report: Report) -> None:
    """Run a number of abuses, spread evenly over the time, at most `ABUSERS_AT_ONCE` in parallel."""
    drawn = random.Random(seed)
    room = asyncio.Semaphore(ABUSERS_AT_ONCE)
    tasks = []
    for _ in range(sessions):
        await room.acquire()
        abuse = drawn.choice(ABUSES)
        report.abuses[abuse.__name__] += 1
        tasks.append(asyncio.create_task(_abuse(abuse, address, random.Random(drawn.random()), room)))
        await asyncio.sleep(seconds / sessions)
    await asyncio.gather(*tasks)


async def _abuse(abuse: Abuse, address: str, drawn: random.Random, room: asyncio.Semaphore) -> None:
    host, _, port = address.partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
        with suppress(OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            await abuse(reader, writer, drawn)
        writer.transport.abort()
    finally:
        room.release()


Abuse = Callable[[asyncio.StreamReader, asyncio.StreamWriter, random.Random], Awaitable[None]]


async def vanishes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Hangs up in mid-word, with or without a goodbye."""
    await _upgrade(reader, writer)
    for _ in range(drawn.randrange(20)):
        _send(writer, _audio(drawn.randrange(4000)))
        await asyncio.sleep(drawn.uniform(0, 0.05))
    if drawn.random() < 0.5:
        _send(writer, b"\x03\xe8", opcode=8)
        await writer.drain()


async def falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """A half-open socket: speaks, then neither speaks nor reads until the server gives it up."""
    await _upgrade(reader, writer)
    _send(writer, _audio(20_000))
    writer.transport.pause_reading()
    await asyncio.sleep(drawn.uniform(0, 2 * IDLE_SECONDS))


async def half_a_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Breaks off somewhere in the handshake."""
    writer.write(HANDSHAKE[: drawn.randrange(len(HANDSHAKE))])
    await asyncio.sleep(drawn.uniform(0, 1))


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Bytes of no protocol: as messages, as frames, or before the handshake."""
    kind = drawn.randrange(3)
    if kind == 0:
        writer.write(drawn.randbytes(drawn.randrange(1, 5000)))
    else:
        await _upgrade(reader, writer)
        noise = drawn.randbytes(drawn.randrange(200))
        if kind == 1:
            writer.write(noise)
        else:
            _send(writer, noise)
    await asyncio.wait_for(reader.read(), 2)


async def out_of_turn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Valid messages in any order: restarts, markers and Ogg before and after audio, controls in fragments."""
    await _upgrade(reader, writer, drawn.choice(["/api/asr-streaming", "/v1/stream?encoding=mulaw&sample_rate=8000"]))
    for _ in range(30):
        kind = drawn.randrange(6)
        if kind == 0:
            _send(writer, msgpack.packb({"type": "Init"}))
        elif kind == 1:
            _send(writer, msgpack.packb({"type": "Marker", "id": drawn.randrange(1 << 40)}))
        elif kind == 2:
            _send(writer, _audio(drawn.randrange(9000)))
        elif kind == 3:
            _send(writer, msgpack.packb({"type": "OggOpus", "data": b"OggS\0\2" + drawn.randbytes(300)}))
        elif kind == 4:
            _send(writer, drawn.choice([b'{"type":"flush"}', b'{"type":"close"}', b"{}"]), opcode=1)
        else:
            _send(writer, b"", opcode=0)  # a continuation of nothing
        await asyncio.sleep(0.002)


async def giant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """A message too large, announced or sent."""
    await _upgrade(reader, writer)
    size = drawn.choice([5 << 20, 1 << 40])
    writer.write(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4))
    if size < 1 << 30:
        writer.write(bytes(size))
    await asyncio.wait_for(reader.read(), 2)


async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Sends words by the thousand and does not read the answers."""
    await _upgrade(reader, writer)
    writer.transport.pause_reading()
    words = _audio_of(speech(seed=drawn.randrange(20), words=200))
    with suppress(asyncio.TimeoutError):
        for _ in range(5):
            _send(writer, words)
            await asyncio.wait_for(writer.drain(), 2)
    await asyncio.sleep(drawn.uniform(0, 1))


async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Thousands of tiny messages, as fast as they are taken."""
    await _upgrade(reader, writer)
    message = drawn.choice([msgpack.packb({"type": "Marker", "id": 1}), _audio(1), _audio(0)])
    for _ in range(1500):
        _send(writer, message)
    await asyncio.wait_for(writer.drain(), 3)
    await asyncio.sleep(drawn.uniform(0, 1))


async def upload_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Posts a file, whole, cut short, with hours in its timestamps or with hours of audio, and leaves at any time."""
    short, gaps, hours = _uploads()
    body = drawn.choice([short, short[: drawn.randrange(len(short))], gaps, hours])
    announced = len(body) + drawn.choice([0, 0, 10_000])
    writer.write(f"POST /api/asr-streaming HTTP/1.1\r\nHost: localhost\r\nContent-Length: {announced}\r\n\r\n".encode())
    writer.write(body)
    await asyncio.sleep(drawn.uniform(0, 1))


@functools.cache
def _uploads() -> tuple[bytes, bytes, bytes]:
    """A short file, one with hours in its timestamps, and one with hours of audio."""
    short = encoded("wav", "pcm_s16le", seconds=20)
    gaps = encoded("matroska", "pcm_s16le", seconds=2, gap=3590)
    return short, gaps, encoded("ogg", "libopus", seconds=20) * 900


async def bombs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Small messages that hold hours: Opus packets of a few bytes, telephone audio at the lowest rate."""
    if drawn.random() < 0.7:
        await _upgrade(reader, writer)
        _send(writer, drawn.choice(OPUS_BOMBS))
    else:
        await _upgrade(reader, writer, "/v1/stream?encoding=mulaw&sample_rate=4000")
        _send(writer, bytes(1 << 20))
    with suppress(asyncio.TimeoutError):  # a message that is still being decoded is not taken whole
        await asyncio.wait_for(writer.drain(), 2)
    await asyncio.sleep(drawn.uniform(0, 1))


async def wastes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Messages that cost more than they hold: lists that nobody reads, integers as audio, audio that is forgotten."""
    kind = drawn.randrange(len(WASTE) + 1)
    if kind == len(WASTE):
        await _upgrade(reader, writer, "/v1/stream")
        _send(writer, b'{"type":"restart","x":[' + b"[]," * 100_000 + b"0]}", opcode=1)
    else:
        await _upgrade(reader, writer)
        for _ in range(3):
            for message in WASTE[kind]:
                _send(writer, message)
    await asyncio.wait_for(reader.read(), 2)


async def floods_with_frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random) -> None:
    """Pings, pongs or fragments by the thousand, with or without a payload."""
    await _upgrade(reader, writer)
    opcode, payload = drawn.choice([9, 10, 0]), bytes(drawn.choice([0, 1, 125]))
    if opcode == 0:
        writer.write(b"\x02\x81" + bytes(5))  # begins a message
    frame = bytes((0x80 * (opcode > 0) | opcode, 0x80 | len(payload))) + bytes(4) + payload
    writer.write(frame * 5000)
    await asyncio.wait_for(writer.drain(), 2)


async def speaks_after_the_end(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drawn: random.Random
) -> None:
    """Audio and controls after `close`."""
    await _upgrade(reader, writer, "/v1/stream?encoding=pcm_f32le")
    _send(writer, speech(seed=drawn.randrange(20), words=3).tobytes())
    _send(writer, b'{"type":"close"}', opcode=1)
    for _ in range(20):
        _send(writer, drawn.choice([bytes(7680), b"\1"]))
        _send(writer, drawn.choice([b'{"type":"flush"}', b'{"type":"close"}', b"["]), opcode=1)
        await asyncio.sleep(0.005)
    await asyncio.wait_for(reader.read(), 2)


OPUS_BOMBS = [
    msgpack.packb({"type": "OggOpus", "data": opus_bomb(packet, size)})
    for packet in (SILK_60_MS, b"\xe0\xff\xfe", b"\xff\x06" + b"\xff\xfe" * 6)
    for size in (1 << 14, 1 << 18)
]
WASTE = [
    [msgpack.packb({"type": "Marker", "id": 1, "x": [[0] * 60_000] * 8})],
    [msgpack.packb({"type": "Audio", "pcm": [0] * 100_000}), msgpack.packb({"type": "Init"})],
    [msgpack.packb({"type": "Audio", "pcm": [0, 0.5] * 50_000})],
    [b"\x91" * 100_000 + b"\0"],
]
ABUSES: list[Abuse] = [
    vanishes,
    falls_silent,
    half_a_request,
    garbage,
    out_of_turn,
    giant,
    never_reads,
    floods,
    upload_and_leave,
    bombs,
    wastes,
    floods_with_frames,
    speaks_after_the_end,
]

HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def _upgrade(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str = "/api/asr-streaming"
) -> None:
    writer.write(HANDSHAKE % path.encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)


def _send(writer: asyncio.StreamWriter, payload: bytes, opcode: int = 2) -> None:
    """A whole message, or a control frame (RFC 6455, section 5.2), masked with zeros."""
    if writer.transport.is_closing():
        raise ConnectionResetError
    length = bytes((0x80 | len(payload),)) if len(payload) < 126 else b"\xff" + len(payload).to_bytes(8, "big")
    writer.write(bytes((0x80 | opcode,)) + length + bytes(4) + payload)


def _audio(samples: int) -> bytes:
    return _audio_of(np.full(samples, 0.05, np.float32))


def _audio_of(pcm_S: np.ndarray) -> bytes:  # type: ignore[type-arg]
    packed: bytes = msgpack.packb({"type": "Audio", "pcm": pcm_S.tobytes()})
    return packed


# ------------------------------------------------------------------------------------------------------------ the state


async def _until_free(address: str, patience: float = 12 * IDLE_SECONDS) -> int:
    """Wait until no slot is in use; gives how many still are when patience ends."""
    deadline = time.monotonic() + patience
    while (used := await _used_slots(address)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return used


async def _used_slots(address: str) -> int:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    body = (await reader.read()).decode()
    writer.close()
    (line,) = [line for line in body.splitlines() if line.startswith("asr_open_channels{")]
    return int(float(line.split()[-1]))


def _resident_mib(process: int) -> float:
    """Memory of a process and its children. Pages that they share count once for each."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    pages = [int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (process, *children)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


if __name__ == "__main__":
    main()
