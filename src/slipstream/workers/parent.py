"""The parent of a server's processes: it starts them, restarts workers, and passes on signals, metrics and topics."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from slipstream.connections.tally import SharedTally
from slipstream.dialects import OpenDialect
from slipstream.engine.remote.memory import Shape, SharedMemory, Stat, create_file
from slipstream.errors import BackendError, CheckpointError, ConfigError, EngineError, SlipstreamError
from slipstream.server import systemd
from slipstream.server.run import HUNG_SECONDS, TcpListener, naming_files, reload_on_sighup, share
from slipstream.workers.certificate import Certificate
from slipstream.workers.engine import EngineJob, OpenModel
from slipstream.workers.link import Link, Message, start
from slipstream.workers.page import Family, counts_of, joined, text_of
from slipstream.workers.speech import OpenSpeaker, SpeechJob
from slipstream.workers.topics import TopicHub
from slipstream.workers.worker import EngineAddress, Settings, WorkerJob

PING_SECONDS = 2.0
SILENT_SECONDS = 20.0
"""A worker whose event loop has not answered for this long is killed, and restarted."""
PAGE_SECONDS = 2.0
"""How long the metrics of one process may take; then its last ones count."""
STOP_SECONDS = 10.0
"""How long processes may take to stop, beyond the drain of their streams."""
STEADY_SECONDS = 10.0
RESTART_SECONDS = (0.0, 0.2, 1.0, 5.0)
"""How long to wait before a worker is restarted: longer for each one that did not last `STEADY_SECONDS`."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of a server: for HTTP and WebSockets, for metrics, and of dialects that are not WebSockets."""

    main: socket.socket | None
    operations: socket.socket | None = None
    tcp: Sequence[TcpListener] = ()


@dataclass(eq=False)
class _Process:
    """A process: its link, and the metrics that it reported last."""

    name: str
    process: subprocess.Popen[bytes]
    link: Link
    end: socket.socket
    began: float = field(default_factory=time.monotonic)
    families: list[Family] = field(default_factory=list)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    heard: float = field(default_factory=time.monotonic)
    failure: SlipstreamError | None = None

    def close(self) -> None:
        """Close the connection to it."""
        self.link.close()
        self.end.close()

    async def ended(self) -> int:
        """Wait for the end of the process, and return its exit code."""
        self.close()
        return await asyncio.to_thread(self.process.wait)


@dataclass(eq=False)
class _Engine(_Process):
    """The process of an engine, and what it has reported once it is ready."""

    model: str = ""
    format: str = ""
    speech: str = ""
    memory: int = -1
    shape: Shape = field(default_factory=lambda: Shape(0, 0))


class Parent:
    """Runs engines and workers until a signal, or until an engine fails.

    Args:
        open_models: Each opens one model on one device. Those that report the same name serve it together.
        workers: Number of workers.
        settings: Of the server.
        listeners: Its sockets, which the workers share.
        max_waiting: Sessions that may wait for a slot of one engine.
        started: Called with the names of the models, once all processes work.
        open_speaker: Opens the model of text to speech, in a separate process; None for no text to speech.
    """

    def __init__(
        self,
        open_models: Sequence[OpenModel],
        workers: int,
        settings: Settings,
        listeners: Listeners,
        max_waiting: int = 64,
        started: Callable[[list[str]], None] = lambda names: None,
        open_speaker: OpenSpeaker | None = None,
    ) -> None:
        self._open_models, self._rows, self._settings = open_models, workers, settings
        self._max_waiting, self._started, self._open_speaker = max_waiting, started, open_speaker
        self._main = share(listeners.main, workers) if listeners.main else None
        self._operations = share(listeners.operations, workers) if listeners.operations else None
        self._tcp: list[tuple[list[socket.socket], OpenDialect]] = [
            (share(one.socket, workers), one.open_dialect) for one in listeners.tcp
        ]
        self._tally_file = create_file()
        os.ftruncate(self._tally_file, SharedTally.size(workers, settings.names))
        self._tally = SharedTally(self._tally_file, workers, 0, settings.names)
        self._topics = TopicHub(settings.webhooks)
        self._certificate: Certificate | None = None  # the last valid one
        self._engines: list[_Engine] = []
        self._speech: list[_Engine] = []  # one, or none
        self._memories: list[SharedMemory] = []
        self._workers: dict[int, _Process] = {}
        self._left: list[Family] = []  # the counts of workers that have ended
        self._asked = 0
        self._answers: dict[int, asyncio.Event] = {}
        self._running = False
        self._restarts = 0
        self._stopping = asyncio.Event()
        self._failure: SlipstreamError | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run. Raises what kept a process from starting, and `EngineError` when an engine failed or hung."""
        if (tls := self._settings.tls) is not None:
            with naming_files(tls):
                self._certificate = Certificate.read(tls)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        reload_on_sighup(self._reload)
        try:
            await self._start()
            if not self._stopping.is_set():
                self._running = True
                self._started(list(dict.fromkeys(engine.model for engine in self._engines)))
                systemd.notify("READY=1")
                self._do(self._watch())
            await self._stopping.wait()
            await self._finish()
        finally:
            for process in self._processes:
                process.process.kill()
            for process in self._processes:
                process.process.wait()
                process.close()
            for task in self._tasks:
                task.cancel()
        if self._failure is not None:
            raise self._failure

    # ----------------------------------------------------------------------------------------------- start and stop

    async def _start(self) -> None:
        for number, open_model in enumerate(self._open_models):
            memory = create_file()
            job = EngineJob(open_model, memory, self._max_waiting, number, self._settings.log_level)
            process, end = start(job, [memory])
            engine = _Engine(f"engine-{number}", process, await Link.open(end.dup()), end, memory=memory)
            self._engines.append(engine)
            self._do(self._follow_engine(engine))
        if self._open_speaker is not None:
            process, end = start(SpeechJob(self._open_speaker, self._settings.log_level))
            self._speech.append(_Engine("speech", process, await Link.open(end.dup()), end))
            self._do(self._follow_engine(self._speech[0]))
        await self._all_ready([*self._engines, *self._speech])
        for row in range(self._rows):
            if not self._stopping.is_set():
                await self._start_worker(row)
        await self._all_ready(list(self._workers.values()))

    async def _all_ready(self, processes: Sequence[_Process]) -> None:
        for process in processes:
            waiting = [asyncio.create_task(event.wait()) for event in (process.ready, self._stopping)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

    async def _start_worker(self, row: int) -> None:
        """Start a worker, with its own channel to every engine."""
        models: dict[str, tuple[str, list[EngineAddress]]] = {}
        channels = [_attach(engine) for engine in (*self._engines, *self._speech)]
        for engine, ours in zip(self._engines, channels, strict=False):
            address = EngineAddress(ours.fileno(), engine.memory, engine.shape)
            models.setdefault(engine.model, (engine.format, []))[1].append(address)
        main = self._main[row].fileno() if self._main else None
        operations = self._operations[row].fileno() if self._operations else None
        tcp = [(sockets[row].fileno(), opened) for sockets, opened in self._tcp]
        speech = (channels[-1].fileno(), self._speech[0].speech) if self._speech else None
        job = WorkerJob(
            self._settings,
            row,
            self._rows,
            self._tally_file,
            models,
            main,
            operations,
            tcp,
            speech,
            self._certificate,
        )
        passed = [self._tally_file, *(channel.fileno() for channel in channels), *(one.memory for one in self._engines)]
        passed += [number for number in (main, operations, *(number for number, _ in tcp)) if number is not None]
        process, end = start(job, passed)
        for channel in channels:
            channel.close()  # only the worker has it: when the worker ends, the engine sees that it is closed
        worker = _Process(f"worker-{row}", process, await Link.open(end), end)
        self._workers[row] = worker
        self._do(self._follow_worker(row, worker))
        if self._stopping.is_set():  # meanwhile, so that `_finish` did not know it
            process.kill()

    def _stop(self, number: int) -> None:
        if self._stopping.is_set():  # the second signal does not wait
            for process in self._processes:
                process.process.kill()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._stopping.set()

    def _fail(self, failure: SlipstreamError) -> None:
        self._failure = self._failure or failure
        self._stopping.set()

    async def _finish(self) -> None:
        """Finish the streams of all workers, then stop the engines."""
        systemd.notify("STOPPING=1")
        logger.info("draining", extra={"workers": len(self._workers)})
        for worker in self._workers.values():
            worker.link.send({"drain": True})
        for process in self._processes:
            if not process.ready.is_set():  # it would load its model first
                process.process.kill()
        deadline = time.monotonic() + self._settings.limits.drain_seconds + STOP_SECONDS
        while (self._workers or self._topics.busy) and time.monotonic() < deadline:
            self._close_unserved()
            if self._hung and self._failure is None:
                self._failure = EngineError(f"a step of the model has taken more than {HUNG_SECONDS:g} s")
            await asyncio.sleep(0.02)
        for engine in (*self._engines, *self._speech):
            engine.link.send({"stop": True})
        deadline = time.monotonic() + STOP_SECONDS
        while any(one.process.poll() is None for one in self._engines) and time.monotonic() < deadline:
            if self._failure is not None and self._hung:
                break
            await asyncio.sleep(0.02)

    def _close_unserved(self) -> None:
        """Close the listening sockets of workers that have ended: connections in their queues would get no answer."""
        for sockets in (self._main, self._operations, *(sockets for sockets, _ in self._tcp)):
            for row, listener in enumerate(sockets or ()):
                if row not in self._workers:
                    listener.close()

    @property
    def _processes(self) -> list[_Process]:
        return [*self._workers.values(), *self._engines, *self._speech]

    @property
    def _hung(self) -> bool:
        return any(seconds > HUNG_SECONDS for seconds in self._step_seconds)

    @property
    def _step_seconds(self) -> list[float]:
        began = [float(memory.stats[Stat.STEP_BEGAN]) for memory in self._memories]
        return [time.monotonic() - one if one else 0.0 for one in began]

    def _reload(self) -> None:
        """Read the keys and the certificate again; what is valid is passed on."""
        systemd.notify_reloading()
        try:
            if self._settings.keys is not None:
                self._settings.keys.reload()
            if (tls := self._settings.tls) is not None:
                self._certificate = Certificate.read(tls)
        except (ConfigError, OSError) as error:  # TLS errors are OSErrors
            logger.error("reload failed: %s: the old keys or certificate stay", error)
        else:
            for worker in self._workers.values():
                worker.link.send({"reload": True})
        systemd.notify("READY=1")

    # ----------------------------------------------------------------------------------------------------- processes

    async def _follow_engine(self, engine: _Engine) -> None:
        async for message in engine.link:
            if "speech" in message:
                engine.speech = message["speech"]
                engine.ready.set()
            elif "ready" in message:
                engine.model, engine.format = message["ready"], message["format"]
                engine.shape = Shape(message["slots"], message["frame_samples"])
                self._memories.append(SharedMemory(engine.memory, engine.shape))
                engine.ready.set()
            elif "failed" in message:
                engine.failure = _KINDS.get(message["kind"], EngineError)(message["failed"])
            else:
                self._take_metrics(engine, message)
        code = await engine.ended()
        if not self._stopping.is_set():
            logger.critical("the model failed: the server stops", extra={"engine": engine.name, "code": code})
        stopped = self._stopping.is_set() and (code == 0 or not engine.ready.is_set())
        if not stopped or engine.failure is not None:
            self._fail(engine.failure or EngineError(f"the process of {engine.name} has ended with code {code}"))

    async def _follow_worker(self, row: int, worker: _Process) -> None:
        async for message in worker.link:
            worker.heard = time.monotonic()
            if "ready" in message:
                worker.ready.set()
            elif "topic" in message:
                self._topics.take(row, message, worker.link.send)
            elif "claim" in message:
                for other in self._workers.values():
                    if other is not worker:
                        other.link.send(message)
            elif "page" in message:
                self._do(self._send_page(worker, message["page"], message["accept"]))
            elif "metrics" in message:
                self._take_metrics(worker, message)
        code = await worker.ended()
        del self._workers[row]
        self._tally.clear(row)
        self._topics.lose(row)
        self._left = joined([self._left, counts_of(worker.families)])
        if self._stopping.is_set():
            return
        if not self._running:
            self._fail(EngineError(f"{worker.name} could not start: it ended with code {code}"))
            return
        logger.error("a worker has ended and is restarted", extra={"worker": worker.name, "code": code})
        steady = time.monotonic() - worker.began > STEADY_SECONDS
        self._restarts = 0 if steady else min(self._restarts + 1, len(RESTART_SECONDS) - 1)
        await asyncio.sleep(RESTART_SECONDS[self._restarts])
        if not self._stopping.is_set():
            await self._start_worker(row)

    async def _watch(self) -> None:
        """Kill workers that hang, and report to systemd that the server works, unless the model hangs."""
        every = systemd.watchdog_seconds()
        while True:
            await asyncio.sleep(min(every or PING_SECONDS, PING_SECONDS))
            now = time.monotonic()
            for worker in self._workers.values():
                worker.link.send({"ping": True})
                if worker.ready.is_set() and now - worker.heard > SILENT_SECONDS:
                    logger.error("a worker hangs", extra={"worker": worker.name})
                    worker.process.kill()
            if every is not None and all(one <= self._settings.limits.step_seconds for one in self._step_seconds):
                active = sum(int(memory.stats[Stat.ACTIVE]) for memory in self._memories)
                slots = sum(engine.shape.slots for engine in self._engines)
                systemd.notify("WATCHDOG=1", f"STATUS={active} of {slots} slots in use")

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._did)

    def _did(self, task: asyncio.Task[None]) -> None:
        """Stop the server when a task has failed: its process would not be followed any more."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("the parent failed: the server stops", exc_info=error)
            self._fail(EngineError(f"the parent of the workers failed: {type(error).__name__}: {error}"))

    # ------------------------------------------------------------------------------------------------------- metrics

    async def _send_page(self, worker: _Process, id: int, accept: str) -> None:
        """Collect the metrics of all processes, and send the page to the worker that requested it."""
        processes = [*self._workers.values(), *self._engines]
        asked, waiting = self._asked, []
        for process in processes:
            self._asked += 1
            self._answers[self._asked] = asyncio.Event()
            waiting.append(asyncio.create_task(self._answers[self._asked].wait()))
            process.link.send({"metrics": self._asked})
        _, late = await asyncio.wait(waiting, timeout=PAGE_SECONDS)
        for task in late:
            task.cancel()
        for number in range(asked + 1, asked + 1 + len(processes)):
            self._answers.pop(number, None)
        page, media_type = text_of(joined([*(process.families for process in processes), self._left]), accept)
        worker.link.send({"id": id, "page": base64.b64encode(page).decode(), "media_type": media_type})

    def _take_metrics(self, process: _Process, message: Message) -> None:
        process.families = message["families"]
        if (answered := self._answers.pop(message["metrics"], None)) is not None:
            answered.set()


def _attach(engine: _Engine) -> socket.socket:
    """Give the process of a model one end of a socket pair, and return the other one, for a worker."""
    theirs, ours = socket.socketpair()
    with theirs, suppress(OSError):  # an engine that has ended ends the service
        socket.send_fds(engine.end, [b'{"attach":true}\n'], [theirs.fileno()])
    return ours


_KINDS: dict[str, type[SlipstreamError]] = {
    kind.__name__: kind for kind in (BackendError, CheckpointError, ConfigError, EngineError)
}
