"""What each dialect costs the server, and how soon its final text comes.

`python -m benchmarks.dialect_load cost`: the server's processor time per frame, for the same audio in each dialect, on
a model without cost. All clients of a dialect send at `--pace` times real time, then end the audio and wait for the
last word. The last column is the difference from the plain dialect of the same run.

`python -m benchmarks.dialect_load latency`: the time from the end of speech to the last final word, by the client's own
clock, with audio in real time and the built-in model. `flush` ends the audio with the last word, `wait` sends two more
seconds of silence first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from benchmarks.dialect_connection import connected
from benchmarks.dialects import CLIENTS, DialectClient
from benchmarks.load import CostRunner, cpu_seconds

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.bundle import ModelBundle
from slipstream.connections.access import Access
from slipstream.dialects import TCP_DIALECTS
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.server.http.app import Service
from slipstream.server.run import TcpListener, listen, serve

Ports: TypeAlias = dict[str, int]
"""Of the dialects on TCP by their names, and of the WebSockets by an empty one."""
FRAME_SECONDS = 0.08
WAIT_SECONDS = 2.0
SPEECH = Path(__file__).parents[1] / "examples" / "sample.opus"
SPEECH_ABOVE = 0.02
"""Amplitude of the recording's speech; what follows the last louder sample is cut off."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "latency"))
    parser.add_argument("--dialects", type=lambda text: text.split(","), default=list(CLIENTS))
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--frames", type=int, default=150, help="of audio in each session, to measure the cost")
    parser.add_argument("--pace", type=float, default=4.0, help="times real time, to measure the cost")
    parser.add_argument("--together", type=int, default=4, help="sessions at the same time, to measure the latency")
    parser.add_argument("--serve", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        run_server(arguments.serve, arguments.sessions)
        return
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    if arguments.what == "cost":
        costs: dict[str, float] = {}
        print(f"{'dialect':>16} {'us a frame':>10} {'over plain':>10}")
        for name in dict.fromkeys(["plain", *arguments.dialects]):
            costs[name] = cost(CLIENTS[name], arguments)
            print(f"{name:>16} {costs[name]:10.1f} {costs[name] - costs['plain']:10.1f}", flush=True)
        return
    print(f"{'dialect':>16} {'end':>6} {'p50 ms':>7} {'p95 ms':>7} {'p99 ms':>7} {'streams':>8}")
    for name in arguments.dialects:
        for end, wait in (("flush", 0.0), ("wait", WAIT_SECONDS)):
            latencies = latency(CLIENTS[name], wait, arguments)
            p50, p95, p99 = 1000 * np.percentile(latencies, [50, 95, 99])
            print(f"{name:>16} {end:>6} {p50:7.0f} {p95:7.0f} {p99:7.0f} {len(latencies):8}", flush=True)


# ----------------------------------------------------------------------------------------------------------- the server


def run_server(model: str, slots: int) -> None:
    from slipstream.testing import tiny_tokenizer

    if model == "cost":
        engine = Engine(CostRunner(slots, 0.0, 0.0), tiny_tokenizer())
    else:
        bundle = ModelBundle.resolve(model)
        engine = bundle.engine(bundle.open(slots=slots))
    with engine, contextlib.ExitStack() as stack:
        listeners = {name: stack.enter_context(listen("127.0.0.1", 0)) for name in ("", *TCP_DIALECTS)}
        print(json.dumps({name: listener.getsockname()[1] for name, listener in listeners.items()}), flush=True)
        service = Service(Models({model: engine}, accept_any=True), Access("127.0.0.1"))
        serve(service, listeners[""], tcp=[TcpListener(listeners[name], TCP_DIALECTS[name]) for name in TCP_DIALECTS])


@contextlib.contextmanager
def server(what: str, model: str, sessions: int) -> Iterator[tuple[Ports, int]]:
    """A server with a slot for each session: its ports, and its process."""
    command = [sys.executable, "-m", "benchmarks.dialect_load", what, "--serve", model, "--sessions", str(sessions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline()), process.pid
        finally:
            process.terminate()


# ---------------------------------------------------------------------------------------------------------- the clients


def cost(make: type[DialectClient], arguments: argparse.Namespace) -> float:
    """Microseconds of the server's processor time per frame."""
    frame_S = np.full(round(make.rate * FRAME_SECONDS), 0.01, np.float32)
    pieces = [frame_S] * arguments.frames

    async def run(ports: Ports) -> None:
        sessions = (stream(ports, make(), pieces, arguments.pace) for _ in range(arguments.sessions))
        await asyncio.gather(*sessions)

    with server("cost", "cost", arguments.sessions) as (ports, process):
        asyncio.run(run(ports))  # the first sessions warm the server up
        began = cpu_seconds(process)
        asyncio.run(run(ports))
        return 1e6 * (cpu_seconds(process) - began) / (arguments.sessions * arguments.frames)


def latency(make: type[DialectClient], wait: float, arguments: argparse.Namespace) -> list[float]:
    """Seconds from the end of speech to the last final word, of each session."""
    speech_S = load(SPEECH, make.rate)
    speech_S = speech_S[: np.flatnonzero(np.abs(speech_S) > SPEECH_ABOVE)[-1] + 1]
    silence_S = np.zeros(round(wait * make.rate), np.float32)
    frame = round(make.rate * FRAME_SECONDS)

    async def session(ports: Ports, number: int) -> float:
        await asyncio.sleep(number * FRAME_SECONDS / arguments.together)
        pieces = [
            np.concatenate([speech_S, silence_S])[start : start + frame]
            for start in range(0, len(speech_S) + len(silence_S), frame)
        ]
        began, last_word = await stream(ports, make(), pieces, 1.0)
        return last_word - began - len(speech_S) / make.rate

    async def run(ports: Ports) -> list[float]:
        latencies: list[float] = []
        for _ in range(0, arguments.sessions, arguments.together):
            latencies += await asyncio.gather(*(session(ports, number) for number in range(arguments.together)))
        return latencies

    with server("latency", "tiny", arguments.together) as (ports, _):
        asyncio.run(run_once(ports, make, speech_S))
        return asyncio.run(run(ports))


async def run_once(ports: Ports, make: type[DialectClient], speech_S: FloatArray) -> None:
    """Transcribe once without pauses: the first step of a model is slower."""
    await stream(ports, make(), [speech_S], 1000.0)


async def stream(ports: Ports, client: DialectClient, pieces: list[FloatArray], pace: float) -> tuple[float, float]:
    """Send pieces at `pace` times real time. Returns when the first one was sent, and when the last word came."""
    last_word = 0.0
    async with connected(client, f"ws://127.0.0.1:{ports['']}", ports) as socket:

        async def read() -> None:
            nonlocal last_word
            while not client.done:
                if await socket.words():
                    last_word = time.perf_counter()

        reading = asyncio.create_task(read())
        for message in client.begin():
            await socket.send(message)
        began, seconds = time.perf_counter(), 0.0
        for piece_S in pieces:
            seconds += len(piece_S) / client.rate
            await asyncio.sleep(max(0.0, began + seconds / pace - time.perf_counter()))  # a piece is sent at its end
            for message in client.audio(piece_S):
                await socket.send(message)
        for message in client.finish():
            await socket.send(message)
        await asyncio.wait_for(reading, 60)
    return began, last_word


if __name__ == "__main__":
    main()
