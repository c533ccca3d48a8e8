"""What each dialect costs the server, and how soon its final text comes.

`python -m benchmarks.dialect_load cost`: the server's processor time per frame, for the same audio in each dialect, on
a model without cost. All clients of a dialect send at `--pace` times real time, then end the audio and wait for the
last word. The dialects take turns on one server, `--rounds` times; the table has the medians of the rounds, and the
differences from the plain dialect.

`python -m benchmarks.dialect_load latency`: the time from the end of speech to the last final word, in ms, by the
client's own clock, with audio in real time and the built-in model. With flush, the audio ends with the last word;
without, two more seconds of silence come first.

What a dialect costs without sockets and the engine: `python -m benchmarks.load --dialect all`. Calls on WebRTC:
`python -m benchmarks.calls`.
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
from benchmarks.load import FRAME_SECONDS, CostRunner, cpu_seconds, known_dialects
from websockets.exceptions import ConnectionClosed

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.bundle import ModelBundle
from slipstream.connections.access import Access
from slipstream.dialects import TCP_DIALECTS
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.server.http.app import Service
from slipstream.server.run import TcpListener, listen, serve
from slipstream.testing import tiny_tokenizer

Ports: TypeAlias = dict[str, int]
"""Of the dialects on TCP by their names, and of the WebSockets by an empty one."""
WAIT_SECONDS = 2.0
QUEUE_SECONDS = 10.0
"""How long a session waits for the slot of the round before."""
PAUSE_SECONDS = 0.15
"""A pause at which the recording may be cut."""
SPEECH = Path(__file__).parents[1] / "examples" / "sample.opus"
SPEECH_ABOVE = 0.02
"""Amplitude of the recording's speech; what follows the last louder sample is cut off."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("cost", "latency"))
    parser.add_argument("--dialects", type=known_dialects, default=list(CLIENTS))
    parser.add_argument("--sessions", type=int, default=40, help="of each dialect")
    parser.add_argument("--frames", type=int, default=150, help="of audio in each session, to measure the cost")
    parser.add_argument("--pace", type=float, default=4.0, help="times real time, to measure the cost")
    parser.add_argument("--rounds", type=int, default=3, help="to measure the cost")
    parser.add_argument("--together", type=int, default=5, help="sessions at the same time, to measure the latency")
    parser.add_argument("--seconds", type=float, default=4.0, help="of speech at most, to measure the latency")
    parser.add_argument("--serve", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        run_server(arguments.serve, arguments.sessions)
        return
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    if arguments.what == "cost":
        print_costs(arguments)
    else:
        print_latencies(arguments)


def print_costs(arguments: argparse.Namespace) -> None:
    """Print the table of costs."""
    names = list(dict.fromkeys(["plain", *arguments.dialects]))
    rounds: dict[str, list[float]] = {name: [] for name in names}
    with server("cost", "cost", arguments.sessions) as (ports, process):
        for name in names:
            asyncio.run(at_once(ports, CLIENTS[name], arguments))  # the first sessions warm the server up
        for _ in range(arguments.rounds):
            for name in names:
                rounds[name].append(cost(ports, process, CLIENTS[name], arguments))
    costs = {name: float(np.median(found)) for name, found in rounds.items()}
    print("| dialect | µs per frame | more than plain | in all rounds |")
    print("|---|---|---|---|")
    for name, found in rounds.items():
        more = "" if name == "plain" else f"{costs[name] - costs['plain']:+.0f}"
        print(f"| {name} | {costs[name]:.0f} | {more} | {min(found):.0f} to {max(found):.0f} |")


def print_latencies(arguments: argparse.Namespace) -> None:
    """Print the table of latencies."""
    print("| dialect | with flush: median | P95 | P99 | without: median | P95 | P99 |")
    print("|---|---|---|---|---|---|---|")
    with server("latency", "tiny", arguments.together) as (ports, _):
        for name in arguments.dialects:
            cells = [name]
            try:
                for wait in (0.0, WAIT_SECONDS):
                    latencies = latency(ports, CLIENTS[name], wait, arguments)
                    cells += [f"{1000 * seconds:.0f}" for seconds in np.percentile(latencies, [50, 95, 99])]
            except (AssertionError, OSError, asyncio.TimeoutError, ConnectionClosed) as error:
                cells.append(f"failed: {error!r}")
            print(f"| {' | '.join(cells)} |", flush=True)


# ----------------------------------------------------------------------------------------------------------- the server


def run_server(model: str, slots: int) -> None:
    if model == "cost":
        engine = Engine(CostRunner(slots, 0.0, 0.0), tiny_tokenizer())
    else:
        bundle = ModelBundle.resolve(model)
        engine = bundle.engine(bundle.open(slots=slots))
    with engine, contextlib.ExitStack() as stack:
        listeners = {name: stack.enter_context(listen("127.0.0.1", 0)) for name in ("", *TCP_DIALECTS)}
        print(json.dumps({name: listener.getsockname()[1] for name, listener in listeners.items()}), flush=True)
        access, models = Access("127.0.0.1"), Models({model: engine}, accept_any=True)
        service = Service(models, access, queue_seconds=QUEUE_SECONDS)
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


def cost(ports: Ports, process: int, make: type[DialectClient], arguments: argparse.Namespace) -> float:
    """Microseconds of the server's processor time per frame."""
    began = cpu_seconds(process)
    asyncio.run(at_once(ports, make, arguments))
    return 1e6 * (cpu_seconds(process) - began) / (arguments.sessions * arguments.frames)


async def at_once(ports: Ports, make: type[DialectClient], arguments: argparse.Namespace) -> None:
    """All sessions of a dialect at the same time."""
    pieces = [np.full(round(make.rate * FRAME_SECONDS), 0.01, np.float32)] * arguments.frames
    await asyncio.gather(*(stream(ports, make(), pieces, arguments.pace) for _ in range(arguments.sessions)))


def spoken(rate: int, seconds: float) -> FloatArray:
    """The recording up to its last pause before this many seconds, without that pause."""
    speech_S = load(SPEECH, rate)
    loud = np.flatnonzero(np.abs(speech_S) > SPEECH_ABOVE)
    ends = np.append(loud[:-1][np.diff(loud) > PAUSE_SECONDS * rate], loud[-1]) + 1
    return speech_S[: max(ends[ends <= seconds * rate], default=ends[0])]


def latency(ports: Ports, make: type[DialectClient], wait: float, arguments: argparse.Namespace) -> list[float]:
    """Seconds from the end of speech to the last final word, of each session."""
    speech_S = spoken(make.rate, arguments.seconds)
    audio_S = np.concatenate([speech_S, np.zeros(round(wait * make.rate), np.float32)])
    frame = round(make.rate * FRAME_SECONDS)
    pieces = [audio_S[start : start + frame] for start in range(0, len(audio_S), frame)]

    async def session(number: int) -> float:
        await asyncio.sleep(number * FRAME_SECONDS / arguments.together)
        began, last_word = await stream(ports, make(), pieces, 1.0)
        assert last_word, f"{make.__name__}: no word came"
        return last_word - began - len(speech_S) / make.rate

    async def run() -> list[float]:
        await run_once(ports, make, speech_S)
        latencies: list[float] = []
        for first in range(0, arguments.sessions, arguments.together):
            numbers = range(min(arguments.together, arguments.sessions - first))
            latencies += await asyncio.gather(*(session(number) for number in numbers))
        return latencies

    return asyncio.run(run())


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
