"""The entry point of the processes that a parent starts."""

from __future__ import annotations

import atexit
import gc
import socket
from dataclasses import dataclass

from slipstream.workers.link import start


@dataclass
class CountsAtExit:
    """Sends how many objects the interpreter does not traverse when it ends."""

    fails: bool

    def run(self, end: socket.socket) -> None:
        atexit.register(lambda: end.sendall(b"%d" % gc.get_freeze_count()))
        if self.fails:
            raise SystemExit(3)


def frozen_objects(job: CountsAtExit) -> tuple[int, int]:
    process, end = start(job)
    with end:
        return int(end.recv(100)), process.wait()


def test_a_process_ends_without_traversing_what_it_has_loaded() -> None:
    for fails, code in ((False, 0), (True, 3)):
        frozen, ended = frozen_objects(CountsAtExit(fails))
        assert ended == code
        assert frozen > 10_000
