"""A server in a process: `python -m benchmarks.scripted_server SLOTS STEP_SECONDS IDLE_SECONDS`.

It prints its port. With `--workers N` it has N worker processes and an engine process for each of `--engines`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from slipstream.connections.access import Access
from slipstream.connections.limits import Limits
from slipstream.dialects.models import Models
from slipstream.dialects.wyoming import WyomingOptions, open_wyoming
from slipstream.engine.engine import Engine
from slipstream.engine.options import StreamFormat
from slipstream.server.http.app import Service
from slipstream.server.run import TcpListener, listen, log_to_stderr, serve
from slipstream.server.served import OpenedModel
from slipstream.testing import ScriptRunner, tiny_tokenizer
from slipstream.workers.parent import Listeners, Parent
from slipstream.workers.worker import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slots", type=int)
    parser.add_argument("step_seconds", type=float)
    parser.add_argument("idle_seconds", type=float)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--queue-seconds", type=float, default=0.0)
    parser.add_argument(
        "--speech", action="store_true", help="with text to speech, and Wyoming on a port that it prints"
    )
    arguments = parser.parse_args()
    limits = Limits(idle_seconds=arguments.idle_seconds)
    log_to_stderr("error")
    listener = listen("127.0.0.1", arguments.port)
    port = listener.getsockname()[1]
    tcp, ports, open_speaker = [], [port], None
    if arguments.speech:
        from benchmarks.chaos_speech import open_echo

        tcp = [TcpListener(listen("127.0.0.1", 0), partial(open_wyoming, WyomingOptions()))]
        ports.append(tcp[0].socket.getsockname()[1])
        open_speaker = partial(open_echo, arguments.slots, arguments.step_seconds)
    if arguments.workers:
        from benchmarks import scripted_server  # under its own name: other processes import it

        open_model = partial(scripted_server.open_script, arguments.slots, arguments.step_seconds)
        queue_seconds = arguments.queue_seconds
        settings = Settings("127.0.0.1", limits=limits, queue_seconds=queue_seconds, log_level="error")
        parent = Parent(
            [open_model] * arguments.engines,
            arguments.workers,
            settings,
            Listeners(listener, tcp=tcp),
            started=lambda _: print(*ports, sep="\n", flush=True),
            open_speaker=open_speaker,
        )
        asyncio.run(parent.run())
        return
    runner = ScriptRunner(slots=arguments.slots, step_seconds=arguments.step_seconds)
    with Engine(runner, tiny_tokenizer()) as engine, listener:
        print(*ports, sep="\n", flush=True)
        service = Service(
            Models({"script": engine}),
            Access("127.0.0.1"),
            limits,
            queue_seconds=arguments.queue_seconds,
            speaker=open_speaker() if open_speaker else None,
        )
        serve(service, listener, tcp=tcp)


def open_script(slots: int, step_seconds: float) -> OpenedModel:
    """Open the model of an engine's process."""
    runner = ScriptRunner(slots=slots, step_seconds=step_seconds)
    return OpenedModel("script", runner, StreamFormat.of(runner, tiny_tokenizer()))


@contextlib.contextmanager
def server_process(
    slots: int,
    step_seconds: float = 0.0,
    idle_seconds: float = 120.0,
    workers: int = 0,
    engines: int = 1,
    speech: bool = False,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Such a process and its address; it gets SIGTERM when the block ends, and must then exit with code 0."""
    command = [sys.executable, "-m", "benchmarks.scripted_server", str(slots), str(step_seconds), str(idle_seconds)]
    command += ["--workers", str(workers), "--engines", str(engines), *(["--speech"] if speech else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=60)
    # -SIGTERM: it was stopping already, and a second signal does not wait.
    assert process.returncode in (0, -signal.SIGTERM)
    assert not errors, errors


if __name__ == "__main__":
    main()
