"""Engines and their sessions in one process: the host in a thread, and a thread that receives for the sessions."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.fakes import ScriptRunner, tiny_tokenizer

from slipstream.engine.options import StreamFormat
from slipstream.engine.remote.channel import Channel
from slipstream.engine.remote.host import EngineHost
from slipstream.engine.remote.memory import Shape, SharedMemory, create_file
from slipstream.engine.remote.proxy import Device, RemoteEngine


@dataclass
class Hosted:
    """Hosts in threads. `failures`: what their threads raised."""

    runners: Sequence[ScriptRunner]
    max_waiting: int = 64
    failures: list[BaseException] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._files = [create_file() for _ in self.runners]
        self.hosts = [
            EngineHost(runner, file, max_waiting=self.max_waiting)
            for runner, file in zip(self.runners, self._files, strict=True)
        ]
        self._threads = [threading.Thread(target=self._run, args=(host,)) for host in self.hosts]
        for thread in self._threads:
            thread.start()

    def _run(self, host: EngineHost) -> None:
        try:
            host.run()
        except Exception as error:
            self.failures.append(error)

    @contextlib.contextmanager
    def worker(self) -> Iterator[RemoteEngine]:
        """The engines as one worker has them, until it closes its channels."""
        devices = []
        for runner, file, host in zip(self.runners, self._files, self.hosts, strict=True):
            ours, theirs = socket.socketpair()
            host.attach(theirs)
            shape = Shape(runner.slots, runner.frame_samples)
            devices.append(Device(Channel(ours), SharedMemory(file, shape), runner.slots))
        engine = RemoteEngine(StreamFormat.of(self.runners[0], tiny_tokenizer()), devices)
        stop = threading.Event()

        def receive() -> None:
            while not stop.is_set():
                open_channels = [device.channel for device in devices if not device.channel.closed]
                select.select(open_channels, [], [], 0.005)
                engine.receive()
                engine.tick(time.monotonic())

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield engine
        finally:
            stop.set()
            thread.join()
            engine.close()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        for host, thread in zip(self.hosts, self._threads, strict=True):
            host.stop()
            thread.join()
        for file in self._files:
            os.close(file)


@contextlib.contextmanager
def hosting(*runners: ScriptRunner, max_waiting: int = 64) -> Iterator[Hosted]:
    """Hosts of these runners until the block ends."""
    hosted = Hosted(runners, max_waiting)
    try:
        yield hosted
    finally:
        hosted.close()


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)
