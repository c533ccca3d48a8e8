"""A server in a thread of the test, its engine on a ScriptRunner, and a client made from the public protocol only."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from tests.fakes import ScriptRunner, drive, new_session, tiny_tokenizer, words_of
from websockets.asyncio.client import ClientConnection, connect

from slipstream.arrays import BoolArray, FloatArray
from slipstream.connections.access import Access
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.dialects import OpenDialect
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.engine.turns import TurnOptions
from slipstream.events import Word
from slipstream.model.runner import StepOutput
from slipstream.server.http.app import Service
from slipstream.server.run import Server, TcpListener, Tls, listen
from slipstream.server.speaking import ServedSpeaker
from slipstream.server.streams.held import Claim

if TYPE_CHECKING:
    from slipstream.server.tracing import Tracer

RATE = 24_000
FRAME = 1920


@dataclass
class Running:
    """A server that runs: its address without a scheme, what it is made of, and the ports of its TCP dialects."""

    address: str
    service: Service
    server: Server
    tcp_ports: dict[str, int] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def ws(self) -> str:
        return f"ws://{self.address}"

    @property
    def http(self) -> str:
        return f"http://{self.address}"


@contextlib.contextmanager
def serving(
    runner: ScriptRunner | None = None,
    *,
    limits: Limits | None = None,
    keys: KeyRing | None = None,
    queue_seconds: float = 0.0,
    flush_after_silence: float = 0.0,
    resume_seconds: float = 0.0,
    max_waiting: int = 64,
    port: int = 0,
    tls: Tls | None = None,
    operations: tuple[socket.socket, Access | None] | None = None,
    ready_when_free: bool = False,
    tcp: Mapping[str, OpenDialect] | None = None,
    accept_any: bool = False,
    webhooks: Sequence[str] = (),
    speaker: ServedSpeaker | None = None,
    tracer: Tracer | None = None,
    turns: TurnOptions | None = None,
    elsewhere: Callable[[Claim], None] = lambda claim: None,
) -> Iterator[Running]:
    """Serve on loopback until the block ends, on a free port unless `port` names one; `tcp` on others."""
    runner = runner or ScriptRunner(slots=4)
    with Engine(runner, tiny_tokenizer(), turns=turns, max_waiting=max_waiting) as engine:
        service = Service(
            engines=Models({"script": engine}, accept_any),
            access=Access("127.0.0.1", keys),
            limits=limits or Limits(),
            queue_seconds=queue_seconds,
            flush_after_silence=flush_after_silence,
            resume_seconds=resume_seconds,
            ready_when_free=ready_when_free,
            metrics_elsewhere=operations is not None,
            webhooks=webhooks,
            speaker=speaker,
            tracer=tracer,
            elsewhere=elsewhere,
        )
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(listen("127.0.0.1", port))
            sockets = {name: stack.enter_context(listen("127.0.0.1", 0)) for name in tcp or {}}
            listeners = [TcpListener(sockets[name], opened) for name, opened in (tcp or {}).items()]
            server = Server(service, tls, operations, listeners)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                wait_for(lambda: server.started)
                ports = {name: one.getsockname()[1] for name, one in sockets.items()}
                yield Running(f"127.0.0.1:{listener.getsockname()[1]}", service, server, ports)
            finally:
                server.should_exit = True
                thread.join()


def hold_after(runner: ScriptRunner, steps: int) -> threading.Event:
    """Pause a runner after this number of steps until the event is set."""
    released, step, taken = threading.Event(), runner.step, itertools.count()

    def held(pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        if next(taken) >= steps:
            assert released.wait(60)
        return step(pcm_BS, active_B)

    runner.step = held  # type: ignore[method-assign]
    return released


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def solo(audio_S: FloatArray, delay_frames: int = 6) -> list[Word]:
    """The words of a recording that is alone on its runner."""
    runner = ScriptRunner(delay_frames=delay_frames)
    return words_of(drive(new_session(runner), runner, [audio_S]))


def get(address: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data, named), timeout=20) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def metric_samples(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


# ------------------------------------------------------------ Kyutai's protocol, as its clients speak it: msgpack only


def pack(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True, use_single_float=True)
    return packed


def audio_message(pcm_S: FloatArray) -> bytes:
    return pack(type="Audio", pcm=pcm_S.tolist())


@contextlib.asynccontextmanager
async def kyutai(address: str, key: str | None = None) -> AsyncIterator[ClientConnection]:
    headers = {"kyutai-api-key": key} if key else {}
    # With its default queue of 16 messages, a client that reads no further waits 10 s for the server's close frame.
    async with connect(f"ws://{address}/api/asr-streaming", additional_headers=headers, max_queue=None) as socket:
        yield socket


async def receive(socket: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = msgpack.unpackb(await asyncio.wait_for(socket.recv(), 20))
    return message


async def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """All messages up to the first of a type, itself included."""
    messages = [await receive(socket)]
    while messages[-1]["type"] != kind:
        messages.append(await receive(socket))
    return messages


def words_received(messages: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Text, start and end of each word, put together as Kyutai's script does."""
    words: list[tuple[str, float, float]] = []
    for message in messages:
        if message["type"] == "Word":
            words.append((message["text"], message["start_time"], message["start_time"]))
        elif message["type"] == "EndWord":
            text, start, _ = words.pop()
            words.append((text, start, message["stop_time"]))
    return words


def expected(words: list[Word]) -> list[tuple[str, float, float]]:
    return [(word.text, word.start, word.end) for word in words]


def chunks(audio_S: FloatArray, size: int) -> list[FloatArray]:
    return [audio_S[start : start + size] for start in range(0, len(audio_S), size)]


SILENCE = np.zeros(RATE, np.float32)
