"""A server of several processes on ScriptRunners: `python -m tests.workers.serving FILE`, a pickled `Case`."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.scripted_server import open_script

from slipstream.server.run import listen, log_to_stderr
from slipstream.workers.parent import Listeners, Parent
from slipstream.workers.speech import OpenSpeaker
from slipstream.workers.worker import Settings


@dataclass
class Case:
    settings: Settings
    workers: int = 2
    engines: int = 1
    slots: int = 4
    step_seconds: float = 0.0
    max_waiting: int = 64
    open_speaker: OpenSpeaker | None = None


@dataclass
class Serving:
    """The parent's process, the server's address, and what it has logged once it has ended."""

    process: subprocess.Popen[str]
    address: str
    errors: list[str] = field(default_factory=list)

    def children(self, kind: str) -> list[int]:
        """The processes of the parent: `engine` or `worker`, by the order of their start."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = [int(number) for number in path.read_text().split()]
        return [number for number in found if _kind(number) == kind]


def _kind(process: int) -> str:
    """An engine listens to nothing; a worker has a listening socket. A process that is ending is neither."""
    try:
        targets = {link.readlink().name for link in Path(f"/proc/{process}/fd").iterdir()}
    except OSError:
        return ""
    inodes = {target[8:-1] for target in targets if target.startswith("socket:")}
    listening = {
        line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    }
    return "worker" if inodes & listening else "engine"


@contextlib.contextmanager
def serving(case: Case) -> Iterator[Serving]:
    """Start the server; it is killed when the block ends, if it still runs."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickle.dumps(case))
        file.flush()
        command = [sys.executable, "-m", "tests.workers.serving", file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            running = Serving(process, f"127.0.0.1:{process.stdout.readline().strip()}")
            try:
                yield running
            finally:
                process.kill()
                running.errors += process.communicate()[1].splitlines()


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        case: Case = pickle.load(file)
    log_to_stderr(case.settings.log_level)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    parent = Parent(
        [partial(open_script, case.slots, case.step_seconds)] * case.engines,
        case.workers,
        case.settings,
        Listeners(listener),
        case.max_waiting,
        lambda names: print(port, flush=True),
        case.open_speaker,
    )
    asyncio.run(parent.run())


if __name__ == "__main__":
    from tests.workers import serving as this

    globals()["Case"] = this.Case
    main()
