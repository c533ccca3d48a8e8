"""Crashes of a server of several processes: `python -m benchmarks.crashes --crashes 50 --streams 200`.

Streams send recordings through `ResumableStream`, which connects again after a lost connection. At random moments a
worker, an engine or the parent is killed. A worker is restarted by its parent; when the engine or the parent dies, all
processes must end, and the benchmark starts the server again on the same port, as a service manager would. Every
stream must get all its words with their times. After each crash no process of the dead server may be left, and in the
end no slot may be in use and nothing may have appeared in /dev/shm.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.client import ServerError
from slipstream.events import Word
from slipstream.resume import ResumableStream
from slipstream.testing import FRAME_SAMPLES, LEXICON, ScriptRunner, silence, sound_of, tiny_tokenizer
from slipstream.transcriber import Transcriber

SHARED = Path("/dev/shm")
RATE = 24_000
START_SECONDS = 120.0
EXIT_SECONDS = 30.0
PIECE_SECONDS = 0.4
"""Of audio in each piece that a stream sends."""

_Words = list[tuple[str, float, float]]


@dataclass
class Report:
    """What happened. `left`: processes of a dead server that had not ended after `EXIT_SECONDS`."""

    crashes: Counter[str] = field(default_factory=Counter)
    streams: int = 0
    connections: int = 0
    wrong_transcripts: int = 0
    left: int = 0
    leaked_slots: int = 0
    leaked_files: int = 0
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crashes", type=int, default=50)
    parser.add_argument("--streams", type=int, default=200, help="at the same time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--between", type=float, default=4.0, help="most seconds between two crashes")
    parser.add_argument("--pace", type=float, default=1.0, help="audio seconds that each stream sends per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="kill nothing after this time")
    arguments = parser.parse_args()
    report = asyncio.run(
        run(
            arguments.crashes,
            arguments.streams,
            arguments.workers,
            arguments.between,
            arguments.pace,
            arguments.seed,
            arguments.seconds,
        )
    )
    print(f"{report.seconds:.0f} s; killed: {dict(sorted(report.crashes.items()))}")
    print(f"streams: {report.streams}, over {report.connections} connections", end="; ")
    print(f"with a wrong transcript: {report.wrong_transcripts}")
    leaks = f"slots leaked: {report.leaked_slots}; files in /dev/shm: {report.leaked_files}"
    print(f"processes left: {report.left}; {leaks}")


async def run(
    crashes: int, streams: int, workers: int, between: float, pace: float, seed: int, seconds: float = math.inf
) -> Report:
    """Run the whole of it."""
    report, drawn = Report(), random.Random(seed)
    files = set(SHARED.iterdir())
    began = time.monotonic()
    server = Server(streams, workers)
    over = asyncio.Event()
    talking: list[asyncio.Task[None]] = []
    transcripts: list[tuple[int, _Words]] = []
    try:
        await server.start()
        for number in range(streams):
            talk = _talk(server.address, number, pace, over, report, transcripts)
            talking.append(asyncio.create_task(talk))
        for _ in range(crashes):
            await asyncio.sleep(drawn.uniform(0.2, between))
            if time.monotonic() - began > seconds:
                break
            await server.crash(drawn, report)
        over.set()
        await asyncio.gather(*talking)
        report.leaked_slots = await server.slots_in_use()
        report.left += await server.stop()
    finally:
        for task in talking:
            task.cancel()
        server.kill()
    report.leaked_files = len(set(SHARED.iterdir()) - files)
    report.seconds = time.monotonic() - began
    # At the end: it takes the time of many streams, which end together.
    report.wrong_transcripts = sum(words != _expected(_recording(number)) for number, words in transcripts)
    return report


class Server:
    """The server, which is started again on the same port."""

    def __init__(self, slots: int, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._command = [sys.executable, "-m", "benchmarks.scripted_server", str(slots), "0.002", "120"]
        self._command += ["--workers", str(workers), "--port", str(self._port), "--queue-seconds", "60"]
        self._process: subprocess.Popen[str] | None = None

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None, "it is started"
        return self._process

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        # Its log names the processes that were killed; a defect shows in the transcripts.
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(self._process.stdout.readline), START_SECONDS)
        assert line, "the server did not start"
        self._process.stdout.close()  # it prints nothing more

    async def crash(self, drawn: random.Random, report: Report) -> None:
        """Kill a process; start the server again unless it was a worker."""
        engine, *workers = children = self._children()
        kind = drawn.choice(["worker", "worker", "engine", "parent"])
        if kind == "worker" and not workers:  # it is being restarted
            kind = "parent"
        report.crashes[kind] += 1
        victim = {"engine": engine, "parent": self._running.pid}.get(kind) or drawn.choice(workers)
        os.kill(victim, signal.SIGKILL)
        if kind == "worker":
            return
        code = await asyncio.wait_for(asyncio.to_thread(self._running.wait), EXIT_SECONDS)
        assert code == (-signal.SIGKILL if kind == "parent" else 1), f"the exit code is {code}"
        report.left += await _left(children)
        await self.start()

    async def slots_in_use(self) -> int:
        """Wait until no slot is in use; returns how many still are when the patience ends."""
        for _ in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            body = (await reader.read()).decode()
            writer.close()
            (line,) = [line for line in body.splitlines() if line.startswith("slipstream_slots_used ")]
            if (used := int(float(line.split()[-1]))) == 0:
                break
            await asyncio.sleep(0.1)
        return used

    async def stop(self) -> int:
        """End it by SIGTERM. Returns how many of its processes remain."""
        children = self._children()
        self._running.terminate()
        assert await asyncio.wait_for(asyncio.to_thread(self._running.wait), 2 * EXIT_SECONDS) == 0
        return await _left(children)

    def kill(self) -> None:
        """Kill it if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _children(self) -> list[int]:
        process = self._running.pid
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


async def _left(processes: list[int]) -> int:
    """Wait for the end of processes that nobody can wait for; returns how many remain."""
    deadline = time.monotonic() + EXIT_SECONDS
    while remaining := [process for process in processes if _runs(process)]:
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    return len(remaining)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _talk(
    address: str,
    number: int,
    pace: float,
    over: asyncio.Event,
    report: Report,
    transcripts: list[tuple[int, _Words]],
) -> None:
    """Send one recording after another until `over`, and keep the number and the words of each."""
    await asyncio.sleep(number * 0.01)
    while not over.is_set():
        words, connections = await _transcribe(address, _recording(number), pace)
        transcripts.append((number, words))
        number += 1000
        report.streams += 1
        report.connections += connections


async def _transcribe(address: str, audio_S: FloatArray, pace: float) -> tuple[_Words, int]:
    stream = ResumableStream(address, context_seconds=2.0)
    words: _Words = []
    connections = 0

    async def send() -> None:
        size = round(PIECE_SECONDS * RATE)
        for start in range(0, len(audio_S), size):
            stream.send(audio_S[start : start + size])
            await asyncio.sleep(PIECE_SECONDS / pace)
        stream.finish()

    sending = asyncio.create_task(send())
    while not stream.done:
        try:
            await stream.connect()
            connections += 1
            async for event in stream:
                if isinstance(event, Word):
                    words.append((event.text, round(event.start, 3), round(event.end, 3)))
        except ServerError:
            await stream.disconnect()
            await asyncio.sleep(0.3)
    await sending
    return words, connections


def _recording(seed: int) -> FloatArray:
    """Words that are longer than their tokens, with a pause after each."""
    random = np.random.default_rng(seed)
    pieces = [silence(random.integers(1, 9))]
    for _ in range(8):
        word = str(random.choice([word for word in LEXICON if len(word) < 9]))
        pieces += [sound_of(word, int(random.integers(7, 10))), silence(int(random.integers(7, 14)))]
    return np.concatenate(pieces)


def _expected(audio_S: FloatArray) -> _Words:
    assert len(audio_S) % FRAME_SAMPLES == 0
    with Transcriber(ScriptRunner(), tiny_tokenizer(), model="script") as transcriber:
        words = transcriber.transcribe(audio_S, sample_rate=RATE).words
    return [(word.text, round(word.start, 3), round(word.end, 3)) for word in words]


if __name__ == "__main__":
    main()
