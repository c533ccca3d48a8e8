"""A server in a process: `python -m benchmarks.scripted_server SLOTS STEP_SECONDS IDLE_SECONDS` prints its port."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

from slipstream.engine.engine import Engine
from slipstream.server.access import Access
from slipstream.server.http.app import Service
from slipstream.server.limits import Limits
from slipstream.server.models import Models
from slipstream.server.run import listen, log_to_stderr, serve
from slipstream.testing import ScriptRunner, tiny_tokenizer


def main() -> None:
    log_to_stderr("error")
    runner = ScriptRunner(slots=int(sys.argv[1]), step_seconds=float(sys.argv[2]))
    with Engine(runner, tiny_tokenizer()) as engine, listen("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)
        limits = Limits(idle_seconds=float(sys.argv[3]))
        serve(Service(Models({"script": engine}), Access("127.0.0.1"), limits), listener)


@contextlib.contextmanager
def server_process(
    slots: int, step_seconds: float = 0.0, idle_seconds: float = 120.0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Such a process and its address; it gets SIGTERM when the block ends, and must then exit with code 0."""
    command = [sys.executable, "-m", "benchmarks.scripted_server", str(slots), str(step_seconds), str(idle_seconds)]
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
