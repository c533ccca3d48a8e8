"""A worker: the server of one process, with its engines in other processes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from slipstream.connections.access import Access
from slipstream.connections.keys import KeyRing
from slipstream.connections.limits import Limits
from slipstream.connections.tally import SharedTally
from slipstream.dialects import OpenDialect
from slipstream.dialects.kyutai import PATH as KYUTAI_PATH
from slipstream.dialects.models import Models
from slipstream.engine.remote.channel import Channel
from slipstream.engine.remote.memory import Shape, SharedMemory
from slipstream.engine.remote.proxy import Device, RemoteEngine
from slipstream.server.http.app import Service
from slipstream.server.run import Server, TcpListener, Tls, log_to_stderr
from slipstream.server.streams.held import Claim
from slipstream.workers.certificate import Certificate
from slipstream.workers.link import Link, Message
from slipstream.workers.page import snapshot
from slipstream.workers.speech import RemoteSpeaker
from slipstream.workers.topics import RemoteTopics

if TYPE_CHECKING:
    from slipstream.server.tracing import Tracer

TICK_SECONDS = 0.02
"""How often the engines' sessions do what is due."""
MORE_NAMES = 1024
"""Names with a count beyond the address and the key of each connection: of uploads, and of held streams."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a server of several processes. All can be pickled.

    Args:
        host: Address that the server listens on.
        accept_any: Whether an unknown name of a model means the default one.
        operations_host: Loopback address of the second listener, which then checks the Host; None checks nothing.
        traces: Whether each worker writes OpenTelemetry traces.
    """

    host: str
    keys: KeyRing | None = None
    origins: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None
    queue_seconds: float = 0.0
    flush_after_silence: float = 0.0
    resume_seconds: float = 0.0
    kyutai_path: str = KYUTAI_PATH
    ready_when_free: bool = False
    webhooks: Sequence[str] = ()
    accept_any: bool = False
    operations_host: str | None = None
    traces: bool = False
    log_level: str = "info"

    @property
    def names(self) -> int:
        """Names that the processes count under."""
        return 2 * self.limits.connections + MORE_NAMES


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """One engine: descriptors of a channel to it and of its memory, and the memory's shape."""

    channel: int
    memory: int
    shape: Shape


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """The job of a worker.

    Args:
        settings: Of the server.
        row, rows: Number of this worker, and of all.
        tally: Descriptor of the memory in which they count.
        models: The format (pickled, base64) and the engines of each model.
        listener: Descriptor of the listening socket; None serves only `tcp`.
        operations: Descriptor of the second one, for metrics and health.
        tcp: Descriptors of listeners of dialects that are not WebSockets.
        speech: Descriptor of a connection to the process of text to speech, and its `SpeechInfo` (pickled, base64).
        certificate: What the server starts with, whatever the files have meanwhile; they are read at a reload.
    """

    settings: Settings
    row: int
    rows: int
    tally: int
    models: Mapping[str, tuple[str, Sequence[EngineAddress]]]
    listener: int | None
    operations: int | None = None
    tcp: Sequence[tuple[int, OpenDialect]] = ()
    speech: tuple[int, str] | None = None
    certificate: Certificate | None = None

    def run(self, end: socket.socket) -> None:
        """Serve until the parent ends it or is gone."""
        log_to_stderr(self.settings.log_level, {"process": f"worker-{self.row}"})
        tracer = None
        if self.settings.traces:
            from slipstream.server.tracing import Tracer

            tracer = Tracer.from_environment()
        gc.freeze()
        sockets = [] if self.listener is None else [socket.socket(fileno=self.listener)]
        WorkerServer(self, end, tracer).run(sockets=sockets)
        if tracer is not None:
            tracer.close()


class WorkerServer(Server):
    """A server that its parent controls."""

    def __init__(self, job: WorkerJob, end: socket.socket, tracer: Tracer | None = None) -> None:
        self._end = end
        self._link: Link | None = None
        self._pages: dict[int, asyncio.Future[tuple[bytes, str]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        settings = job.settings
        tally = SharedTally(job.tally, job.rows, job.row, settings.names)
        self._remote_engines = {name: _engine(*opened, self._later) for name, opened in job.models.items()}
        self._topics = RemoteTopics(settings.webhooks, self._send)
        operations = None
        if job.operations is not None:
            access = Access(settings.operations_host) if settings.operations_host else None
            operations = socket.socket(fileno=job.operations), access
        service = Service(
            engines=Models(self._remote_engines, settings.accept_any),
            access=Access(settings.host, settings.keys, settings.origins, tally),
            limits=settings.limits,
            queue_seconds=settings.queue_seconds,
            flush_after_silence=settings.flush_after_silence,
            resume_seconds=settings.resume_seconds,
            kyutai_path=settings.kyutai_path,
            ready_when_free=settings.ready_when_free,
            metrics_elsewhere=operations is not None,
            webhooks=settings.webhooks,
            tracer=tracer,
            page=self._page,
            speaker=_speaker(*job.speech) if job.speech else None,
            elsewhere=lambda claim: self._send({"claim": asdict(claim)}),
        )
        tcp = [TcpListener(socket.socket(fileno=number), opened) for number, opened in job.tcp]
        super().__init__(service, settings.tls, operations, tcp, topics=self._topics)
        if job.certificate is not None:
            with job.certificate.files() as held:
                self.config.ssl_certfile, self.config.ssl_keyfile = held.certificate, held.key
                self.config.load()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave all signals to the parent."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop_thread = threading.get_ident()
        self._loop = asyncio.get_running_loop()
        self._link = await Link.open(self._end)
        for engine in self._remote_engines.values():
            for device in engine.devices:
                self._loop.add_reader(device.channel.fileno(), self._receive, engine, device)
        await super().startup(sockets)
        for task in (self._tick(), self._obey(self._link)):
            self._tasks.add(asyncio.create_task(task))
        self._send({"ready": True})

    def begin(self) -> None:
        """Leave SIGHUP to the parent."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._send({"metrics": None, "families": self._snapshot()})
        if self._link is not None:
            await self._link.drain()

    # ------------------------------------------------------------------------------------------------------ in detail

    def _receive(self, engine: RemoteEngine, device: Device) -> None:
        engine.receive()
        if device.channel.closed:
            self._loop.remove_reader(device.channel.fileno())

    def _later(self, call: Callable[[], None]) -> None:
        if threading.get_ident() == self._loop_thread:
            self._loop.call_soon(call)
        else:
            self._loop.call_soon_threadsafe(call)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            for engine in self._remote_engines.values():
                engine.tick(now)

    async def _obey(self, link: Link) -> None:
        async for message in link:
            if "drain" in message:
                self.finish()
            elif "reload" in message:
                self.reload()
            elif "ping" in message:
                self._send({"pong": message["ping"]})
            elif "topic" in message:
                self._topics.take(message)
            elif "claim" in message:
                session, key, query = message["claim"].values()
                self.release(Claim(session, key, [(name, value) for name, value in query]))
            elif "page" in message:
                if not (waiting := self._pages.pop(message["id"])).done():
                    waiting.set_result((base64.b64decode(message["page"]), message["media_type"]))
            elif "metrics" in message:
                self._send({"metrics": message["metrics"], "families": self._snapshot()})
        os._exit(1)  # the parent is gone

    def _snapshot(self) -> list[list[object]]:
        self._service.metrics.observe_engines(self._service.engines.values())
        return snapshot(self._service.metrics.registry)

    async def _page(self, accept: str) -> tuple[bytes, str]:
        """Get the metrics of all processes from the parent."""
        id = len(self._pages) + 1 + max(self._pages, default=0)
        self._pages[id] = asyncio.get_running_loop().create_future()
        self._send({"page": id, "accept": accept})
        return await self._pages[id]

    def _send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)


def _engine(
    format: str, addresses: Sequence[EngineAddress], later: Callable[[Callable[[], None]], None]
) -> RemoteEngine:
    devices = [
        Device(Channel(socket.socket(fileno=one.channel)), SharedMemory(one.memory, one.shape), one.shape.slots)
        for one in addresses
    ]
    return RemoteEngine(pickle.loads(base64.b64decode(format)), devices, later)


def _speaker(connection: int, info: str) -> RemoteSpeaker:
    return RemoteSpeaker(Connection(connection), pickle.loads(base64.b64decode(info)))
