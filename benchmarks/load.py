"""How many live streams a server holds: `python -m benchmarks.load --sessions 100,500,1000`.

A server in one process, the clients in another, loopback between them. Each client sends 80 ms of audio every 80 ms in
Kyutai's protocol, as the published clients write it. Added latency is the time from the write of a frame's audio to
the arrival of that frame's `Step`: what the server adds to the delay of the model. The model is a stand-in whose step
costs `--step-ms`, plus `--slot-ms` for each active slot, with a word about every half second; or, by `--model tiny`, a
real one, which processes the clients' noise.

`--lockstep 60` measures no latency but the server's processor time a frame, over 60 frames of each session, which also
a busy machine can show: a hundred clients send at the same time, and the next hundred when these have their `Step`s.

`--workers 0,1,2` compares a server of one process with servers of an engine process and one or two workers. The
processor time of each is shown apart: `server` is all of it, `engine` and `workers` are its parts.

`--pin 1,1,0` keeps the clients, the engine's process and each worker on one core each, here the only worker on core 0
and the rest on core 1. Without workers, `--pin 1,0` is for the clients and the server.

`--dialect all`, or names of dialects, measures what each dialect costs alone, without sockets, the engine and the
model: the processor time per frame of `receive` for the messages of a stream, and of `handle` for its events. Next to
it is that of the plain dialect for the same samples, rate, encoding and pieces. The least of `--rounds` counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgpack
import numpy as np
from benchmarks.common import numbers
from benchmarks.dialects import CLIENTS, DialectClient, Message, mulaw, pcm16

from slipstream.arrays import BoolArray, FloatArray
from slipstream.bundle import ModelBundle
from slipstream.connections.access import Access
from slipstream.dialects import DIALECTS, TCP_DIALECTS
from slipstream.dialects.models import Models, StreamInfo, StreamRequest
from slipstream.dialects.plain import open_dialect as open_plain
from slipstream.dialects.protocol import Dialect, Open
from slipstream.engine.engine import Engine
from slipstream.engine.options import StreamFormat
from slipstream.loading import load_runner
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import CANDIDATES, Candidates, Runner, State, Steering, StepOutput, StepwiseRunner
from slipstream.server.http.app import Service
from slipstream.server.run import listen, log_to_stderr, serve
from slipstream.server.served import OpenedModel
from slipstream.testing import tiny_tokenizer
from slipstream.workers.parent import Listeners, Parent
from slipstream.workers.worker import Settings

FRAME_SAMPLES = 1920
FRAME_SECONDS = 0.08
WARM_UP_SECONDS = 4.0
LOCKSTEP_CLIENTS = 100
LOCKSTEP_WARM_UP = 12


def main() -> None:
    arguments = parse_arguments()
    if arguments.serve:
        run_server(arguments)
        return
    if arguments.dialect:
        print_dialect_costs(arguments)
        return
    cost = arguments.model or f"step {arguments.step_ms:g} ms + {arguments.slot_ms:g} ms a slot"
    print(f"{cost}, {arguments.seconds:g} s each", end="; ")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    costs = "".join(f" {name:>9}" for name in ("server us", "engine", "workers"))
    if arguments.lockstep:
        print(f"{'sessions':>8} {'workers':>7}{costs} {'client us':>9}")
    else:
        latencies = "".join(f" {name:>7}" for name in ("p50 ms", "p99 ms", "p99.9", "max", "lost", "server", "client"))
        print(f"{'sessions':>8} {'workers':>7}{latencies}{costs} {'client us':>9}")
    for sessions in arguments.sessions:
        for workers in arguments.workers:
            line = (measure_cost if arguments.lockstep else measure)(sessions, workers, arguments)
            print(f"{sessions:8} {workers:7}{line}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=numbers, default=[100, 500, 1000])
    parser.add_argument("--workers", type=numbers, default=[0])
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--slot-ms", type=float, default=0.0)
    parser.add_argument("--model", help="a model instead of the stand-in")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measurement, after a warm-up")
    parser.add_argument("--lockstep", type=int, metavar="FRAMES", help="measure only the processor time a frame")
    parser.add_argument("--pin", type=numbers, metavar="CORES", help="of the clients, the engine and each worker")
    parser.add_argument(
        "--dialect", type=known_dialects, metavar="NAMES", help="measure what these, or all, cost alone"
    )
    parser.add_argument("--frames", type=int, default=100, help="of audio in each round, with --dialect")
    parser.add_argument("--rounds", type=int, default=15, help="with --dialect")
    parser.add_argument("--serve", type=int, metavar="SLOTS", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------------- the server


class CostRunner(StepwiseRunner):
    """A Runner with a given cost, and writes a word every six frames."""

    frame_samples = FRAME_SAMPLES
    frame_rate = 1 / FRAME_SECONDS
    delay_frames = 6

    def __init__(self, slots: int, step_seconds: float, slot_seconds: float) -> None:
        self.slots = slots
        self._step_seconds, self._slot_seconds = step_seconds, slot_seconds
        self._frames_B = np.zeros(slots, np.int64)
        self._text = np.array([PAD_ID, PAD_ID, PAD_ID, PAD_ID, WORD_ID, 300])
        self._logprob_B = np.zeros(slots, np.float32)
        self._pause_BH = np.full((slots, 4), 0.25, np.float32)

    def reset(self, slots: Sequence[int], first_frame: int = 0) -> None:
        self._frames_B[list(slots)] = first_frame

    def step(self, pcm_BS: FloatArray, active_B: BoolArray, steering: Steering | None = None) -> StepOutput:
        busy_until = time.perf_counter() + self._step_seconds + self._slot_seconds * int(active_B.sum())
        self._frames_B += active_B
        token_B, candidates = self._text[self._frames_B % 6], None
        if steering is not None:  # which changes nothing: all candidates are equally likely
            token_BK = (token_B[:, None] + np.arange(CANDIDATES)) % 400
            logprob_BK = np.zeros(token_BK.shape, np.float32)
            candidates = Candidates(token_BK, logprob_BK, token_B, self._logprob_B)
        output = StepOutput(token_B, self._logprob_B, self._pause_BH, candidates)
        # Sleeping leaves the core and Python's lock free, as a GPU or native code does.
        time.sleep(max(0.0, busy_until - time.perf_counter()))
        return output

    def force(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Do nothing: no word depends on the last token."""

    def snapshot(self, slot: int) -> State:
        return int(self._frames_B[slot])

    def restore(self, slot: int, state: State) -> None:
        self._frames_B[slot] = state


def run_server(arguments: argparse.Namespace) -> None:
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    opening = arguments.model, arguments.serve, arguments.step_ms, arguments.slot_ms
    if workers := arguments.workers[0]:
        from benchmarks import load  # under its own name: other processes import it

        log_to_stderr("error")
        parent = Parent(
            [partial(load.open_model, *opening)],
            workers,
            Settings("127.0.0.1", log_level="error"),
            Listeners(listener),
            started=lambda _: print(port, flush=True),
        )
        asyncio.run(parent.run())
        return
    opened = open_model(*opening)
    with Engine(opened.runner, opened.format.tokenizer) as engine, listener:
        print(port, flush=True)
        serve(Service(Models({"cost": engine}), Access("127.0.0.1")), listener)


def open_model(model: str | None, slots: int, step_ms: float, slot_ms: float) -> OpenedModel:
    """The model of the server: a real one by its name, or the stand-in."""
    if model:
        runner: Runner = load_runner(model, backend="auto", slots=slots)
        tokenizer = ModelBundle.resolve(model).tokenizer
    else:
        runner, tokenizer = CostRunner(slots, step_ms / 1000, slot_ms / 1000), tiny_tokenizer()
    return OpenedModel("cost", runner, StreamFormat.of(runner, tokenizer))


# --------------------------------------------------------------------------------------------------------- the clients


def measure(sessions: int, workers: int, arguments: argparse.Namespace) -> str:
    """The rest of a line of the table: a fresh server, `sessions` clients."""
    with server_process(sessions, workers, arguments) as (port, server):
        clients, seconds, busy = asyncio.run(drive(port, sessions, arguments.seconds, server))
    latencies = np.concatenate([client.latencies for client in clients]) * 1000
    lost = sum(client.lost for client in clients)
    measured = (*np.percentile(latencies, [50, 99, 99.9]), latencies.max())
    shares = (f"{100 * part / seconds:.0f} %" for part in (busy.server, busy.client))
    shown = "".join(f" {value:7.1f}" for value in measured) + f" {lost:7}" + "".join(f" {share:>7}" for share in shares)
    return shown + busy.each(len(latencies))


def measure_cost(sessions: int, workers: int, arguments: argparse.Namespace) -> str:
    """The rest of a line of the table in lockstep: processor time alone."""
    with server_process(sessions, workers, arguments) as (port, server):
        busy = asyncio.run(drive_in_lockstep(port, sessions, arguments.lockstep, server))
    return busy.each(sessions * arguments.lockstep)


@dataclass
class Busy:
    """Processor seconds: of the server's process or processes, of its parts, and of the clients."""

    server: float
    engine: float
    workers: float
    client: float

    @classmethod
    def now(cls, server: int) -> Busy:
        """The processor time of all so far. The first child of a parent is the engine, the others are workers."""
        engine, *workers = [cpu_seconds(child) for child in children(server)] or [0.0]
        return cls(cpu_seconds(server) + engine + sum(workers), engine, sum(workers), time.process_time())

    def since(self, began: Busy) -> Busy:
        """The processor time since an earlier moment."""
        return Busy(*(getattr(self, one.name) - getattr(began, one.name) for one in fields(self)))

    def each(self, frames: int) -> str:
        """Microseconds for each frame."""
        return "".join(f" {1e6 * part / frames:9.1f}" for part in (self.server, self.engine, self.workers, self.client))


@contextlib.contextmanager
def server_process(sessions: int, workers: int, arguments: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """A fresh server with a slot for each session: its port, and its process."""
    command = [sys.executable, "-m", "benchmarks.load", "--serve", str(sessions), "--workers", str(workers)]
    costs = ["--step-ms", str(arguments.step_ms), "--slot-ms", str(arguments.slot_ms)]
    if arguments.model:
        costs += ["--model", arguments.model]
    with subprocess.Popen(command + costs, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            if arguments.pin:
                pin([os.getpid(), *(children(server.pid) or [server.pid])], arguments.pin)
            yield port, server.pid
        finally:
            server.terminate()


async def connect(port: int, sessions: int) -> list[Client]:
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for _ in range(sessions):
        _, client = await loop.create_connection(Client, "127.0.0.1", port)
        clients.append(client)
        await client.opened
    return clients


async def drive(port: int, sessions: int, seconds: float, server: int) -> tuple[list[Client], float, Busy]:
    """Run the clients; returns them, the time measured, and the processor time in it."""
    clients = await connect(port, sessions)
    sending = asyncio.create_task(send_in_real_time(clients))
    await asyncio.sleep(WARM_UP_SECONDS)
    for client in clients:
        client.measuring = True
    began, busy_before = time.perf_counter(), Busy.now(server)
    await asyncio.sleep(seconds)
    busy = Busy.now(server).since(busy_before)
    elapsed = time.perf_counter() - began
    for client in clients:
        client.lost = max(0, len(client.sent) - client.heard - 2)  # the last two may be under way
    sending.cancel()
    for client in clients:
        client.transport.abort()
    return clients, elapsed, busy


async def drive_in_lockstep(port: int, sessions: int, frames: int, server: int) -> Busy:
    """Processor time for `frames` frames of each session, the first second of audio left out."""
    clients = await connect(port, sessions)
    groups = [clients[first : first + LOCKSTEP_CLIENTS] for first in range(0, sessions, LOCKSTEP_CLIENTS)]
    for number in range(1, LOCKSTEP_WARM_UP + frames + 1):
        for group in groups:
            for client in group:
                client.send_frame()
            while any(client.heard < number for client in group):
                await asyncio.sleep(0.001)
        if number == LOCKSTEP_WARM_UP:
            began = Busy.now(server)
    return Busy.now(server).since(began)


async def send_in_real_time(clients: Sequence[Client]) -> None:
    """Send a frame to every client every 80 ms, each at a different phase."""
    phases = random.Random(0)
    order = sorted((phases.uniform(0, FRAME_SECONDS), number) for number in range(len(clients)))
    began = time.perf_counter()
    for round_began in (began + FRAME_SECONDS * number for number in range(1 << 30)):
        for phase, number in order:
            wait = round_began + phase - time.perf_counter()
            if wait > 0.0005:
                await asyncio.sleep(wait)
            clients[number].send_frame()
        await asyncio.sleep(0)


class Client(asyncio.Protocol):
    """A WebSocket client that costs little enough to run a thousand times in one process."""

    def __init__(self) -> None:
        self.opened = asyncio.get_running_loop().create_future()
        self.measuring = False
        self.latencies: list[float] = []
        self.sent: list[float] = []
        self.heard = self.lost = 0
        self._bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(HANDSHAKE)

    def send_frame(self) -> None:
        self.sent.append(time.perf_counter())
        self.transport.write(AUDIO_FRAME)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            head, _, data = (self._bytes + data).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101"), head
            self.opened.set_result(None)
        now = time.perf_counter()
        data, position = self._bytes + data, 0
        while len(data) >= position + 2 and len(data) >= position + 2 + data[position + 1]:
            start, end = position + 2, position + 2 + data[position + 1]
            assert data[position] in (BINARY, PING), f"not a whole message: {data[position:end]!r}"
            if data.startswith(STEP, start):
                self._heard_step(now)
            position = end
        self._bytes = data[position:]

    def _heard_step(self, now: float) -> None:
        if self.measuring:
            self.latencies.append(now - self.sent[self.heard])
        self.heard += 1  # steps come one by one, in order


HANDSHAKE = (
    b"GET /api/asr-streaming HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
BINARY, PING = 0x82, 0x89  # a server expects no pong in time
STEP = b"\x84\xa4type\xa4Step"


def websocket_frame(payload: bytes) -> bytes:
    """A client's binary message (RFC 6455, section 5.2), masked with zeros, which leaves it as it is."""
    return b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload


AUDIO_FRAME = websocket_frame(msgpack.packb({"type": "Audio", "pcm": [0.01] * FRAME_SAMPLES}, use_single_float=True))


# -------------------------------------------------------------------------------------------------- a dialect alone


def known_dialects(text: str) -> list[str]:
    """Return the dialects that an option names, or all. Raises `argparse.ArgumentTypeError`."""
    names = list(CLIENTS) if text == "all" else text.split(",")
    if unknown := sorted(set(names) - set(CLIENTS)):
        raise argparse.ArgumentTypeError(f"unknown dialect {', '.join(unknown)}: choose from all, {', '.join(CLIENTS)}")
    return names


def print_dialect_costs(arguments: argparse.Namespace) -> None:
    """Print the table of what the dialects cost alone."""
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| dialect | µs per frame | plain, same audio | more |\n|---|---|---|---|")
    for name in arguments.dialect:
        rounds = [dialect_costs(CLIENTS[name], arguments.frames) for _ in range(arguments.rounds)]
        own, plain = (min(costs) for costs in zip(*rounds, strict=True))
        print(f"| {name} | {own:.1f} | {plain:.1f} | {own - plain:+.1f} |", flush=True)


def dialect_costs(make: type[DialectClient], frames: int) -> tuple[float, float]:
    """Return microseconds per frame of the dialect, and of the plain one for the same audio."""
    frame_S = np.full(round(make.rate * FRAME_SECONDS), 0.01, np.float32)
    client, url = make(), urlsplit(make.path)
    models = Models({"cost": StreamInfo("cost", 0.5, FRAME_SECONDS)}, accept_any=True)
    messages = list(client.audio(frame_S))
    headers = {name.lower(): value for name, value in client.headers.items()}
    request = StreamRequest(models, parse_qsl(url.query), headers)
    dialect = (TCP_DIALECTS[client.tcp] if client.tcp else DIALECTS[url.path])(request)
    own = alone(dialect, client.begin(), messages, frames)
    pieces = [encoded(piece_S, make.encoding) for piece_S in np.split(frame_S, len(messages))]
    format = [("encoding", make.encoding), ("sample_rate", str(make.rate))]
    return own, alone(open_plain(StreamRequest(models, format)), (), pieces, frames)


def encoded(pcm_S: FloatArray, encoding: str) -> bytes:
    """Return samples in an encoding of the plain dialect."""
    if encoding == "pcm_f32le":
        return pcm_S.astype("<f4").tobytes()
    return mulaw(pcm_S) if encoding == "mulaw" else pcm16(pcm_S)


def alone(dialect: Dialect, begin: Iterable[Message], messages: Sequence[Message], frames: int) -> float:
    """Microseconds of processor time per frame of a dialect without a server, for these messages in each frame."""
    first = [*begin, *messages]  # some open their session with the first audio
    begun = [*dialect.open(), *(action for message in first for action in dialect.receive(message))]
    options = next(action.options for action in begun if isinstance(action, Open))
    with Engine(CostRunner(1, 0.0, 0.0), tiny_tokenizer()) as engine, engine.open(options) as session:
        session.feed(np.full(FRAME_SAMPLES, 0.01, np.float32) for _ in range(frames))
        events = list(session)
    began = time.thread_time()
    for message in messages * frames:
        for _ in dialect.receive(message):
            pass
    for event in events:
        for _ in dialect.handle(event, 0):
            pass
    return 1e6 * (time.thread_time() - began) / frames


def children(process: int) -> list[int]:
    """The processes that a process has started, oldest first (proc(5))."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def pin(processes: Sequence[int], cores: Sequence[int]) -> None:
    """Keep each process, with all its threads, on one core (Linux)."""
    if len(processes) != len(cores):
        raise SystemExit(f"--pin: expected {len(processes)} cores, for the clients and the processes of the server")
    for process, core in zip(processes, cores, strict=True):
        for thread in os.listdir(f"/proc/{process}/task"):
            os.sched_setaffinity(int(thread), {core})


def cpu_seconds(process: int) -> float:
    """Processor time of a process so far (proc(5): fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
