"""The parent of a server's processes, and what its processes do without it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from slipstream.connections.limits import Limits
from slipstream.connections.tally import SharedTally
from slipstream.engine.remote.memory import create_file
from slipstream.errors import EngineError
from slipstream.workers.link import start
from slipstream.workers.parent import STOP_SECONDS, Listeners, Parent
from slipstream.workers.worker import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no worker processes")
PATIENCE = 60.0


@dataclass(frozen=True)
class Hangs:
    """A job that neither ends nor reads from its parent."""

    def run(self, end: socket.socket) -> None:
        end.sendall(b"runs\n")
        time.sleep(10 * PATIENCE)


def test_a_process_that_hangs_ends_with_its_parent() -> None:
    process, end = start(Hangs())
    try:
        assert end.recv(5) == b"runs\n"
        end.close()
        assert process.wait(PATIENCE) == 1
    finally:
        process.kill()
        process.wait()


def test_a_task_that_fails_ends_the_server() -> None:
    async def fails() -> None:
        raise OSError("no more processes")

    def started(names: list[str]) -> None:
        parent._do(fails())

    parent = Parent([], 0, Settings("127.0.0.1"), Listeners(None), started=started)
    with pytest.raises(EngineError, match="no more processes"):
        asyncio.run(asyncio.wait_for(parent.run(), PATIENCE))


def test_a_signal_while_a_model_is_loaded_does_not_wait_for_it() -> None:
    parent = Parent([partial(time.sleep, 10 * PATIENCE)], 1, Settings("127.0.0.1"), Listeners(None))  # type: ignore[list-item]

    async def run() -> float:
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)
        began = time.monotonic()
        await parent.run()
        return time.monotonic() - began

    assert asyncio.run(run()) < 5


def test_a_worker_that_starts_while_the_server_stops_does_not_delay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[bytes]] = []
    stopped = 0.0

    def starts(job: object, descriptors: Sequence[int] = ()) -> tuple[subprocess.Popen[bytes], socket.socket]:
        nonlocal stopped
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(b'{"ready":true}\n')
            processes.append(subprocess.Popen(["sleep", "600"], pass_fds=[theirs.fileno()]))
        if len(processes) == 3:  # it replaces the first
            parent._stopping.set()
            stopped = time.monotonic()
            asyncio.get_running_loop().call_later(0.3, processes[1].kill)  # its streams have ended
        return processes[-1], ours

    monkeypatch.setattr("slipstream.workers.parent.start", starts)
    settings = Settings("127.0.0.1", limits=Limits(drain_seconds=0))
    parent = Parent([], 2, settings, Listeners(None), started=lambda names: processes[0].kill())
    asyncio.run(asyncio.wait_for(parent.run(), PATIENCE))
    assert time.monotonic() - stopped < STOP_SECONDS / 2


def test_every_connection_may_have_its_own_address_and_its_own_key() -> None:
    settings = Settings("127.0.0.1", limits=Limits(connections=1500))
    file = create_file()
    os.ftruncate(file, SharedTally.size(1, settings.names))
    tally = SharedTally(file, 1, 0, settings.names)
    for number in range(settings.limits.connections):
        assert tally.enter([("connections", settings.limits.connections), (f"address {number}", 1)]) is None
        assert tally.enter([(f"key {number}", 1)]) is None
