"""What clients and a supervisor see of a model that fails or hangs: `python -m benchmarks.model_failures`.

Four streams send 80 ms of audio every 80 ms to a server in a separate process, whose model raises an error, or waits
forever, in its 50th step. Seconds from that step: `closed` until the streams are closed, `exit` to the end of the
process, `503` until `/healthz` reports it. `SIGTERM`: seconds from the signal, sent once `/healthz` reports it.
`--attack NAME` runs one of `benchmarks.attacks` at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from contextlib import nullcontext

from benchmarks.attacks.__main__ import attacker, get
from benchmarks.load import CostRunner, connect, send_in_real_time

from slipstream.arrays import BoolArray, FloatArray
from slipstream.connections.access import Access
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.model.runner import StepOutput
from slipstream.server.http.app import Service
from slipstream.server.run import listen, serve
from slipstream.testing import tiny_tokenizer

STREAMS = 4
SLOTS = 8
"""The others are for the attack."""
GOOD_STEPS = 50
ATTACK_SECONDS = 60.0
LOAD_SECONDS = 3.0
"""How long the attacker loads its code."""


class FaultyRunner(CostRunner):
    """Fails in its 50th step, and reports the time on standard output."""

    def __init__(self, fault: str) -> None:
        super().__init__(SLOTS, 0.01, 0.0)
        self._fault, self._steps = fault, 0

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        self._steps += 1
        if self._steps == GOOD_STEPS:
            print(time.monotonic(), flush=True)
            if self._fault == "fails":
                raise RuntimeError("illegal memory access")
            time.sleep(3600)
        return super().step(pcm_BS, active_B)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", choices=("fails", "hangs"), help=argparse.SUPPRESS)
    parser.add_argument("--attack", metavar="NAME", help="one of `benchmarks.attacks`")
    arguments = parser.parse_args()
    if fault := arguments.serve:
        with Engine(FaultyRunner(fault), tiny_tokenizer()) as engine, listen("127.0.0.1", 0) as listener:
            print(listener.getsockname()[1], flush=True)
            serve(Service(Models({"cost": engine}), Access("127.0.0.1")), listener)
        return
    for fault in ("fails", "hangs"):
        command = [sys.executable, "-m", "benchmarks.model_failures", "--serve", fault]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            attack = attacker(arguments.attack, {"": port}, ATTACK_SECONDS) if arguments.attack else nullcontext()
            try:
                with attack as attacking:
                    print(f"{fault}: {asyncio.run(observe(process, port, fault, attacking))}", flush=True)
            finally:
                process.kill()


async def observe(
    process: subprocess.Popen[str], port: int, fault: str, attacking: subprocess.Popen[str] | None
) -> str:
    """Follow one server to its end."""
    assert process.stdout is not None
    assert process.stderr is not None
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the clients fail at a close frame
    if attacking is not None:
        await asyncio.sleep(LOAD_SECONDS)
    clients = await connect(port, STREAMS)
    if attacking is not None:
        print(file=attacking.stdin, flush=True)
    sending = asyncio.create_task(send_in_real_time(clients))
    began = float(await asyncio.to_thread(process.stdout.readline))
    seen = []
    if fault == "fails":
        while not all(client.transport.is_closing() for client in clients) and process.poll() is None:
            await asyncio.sleep(0.005)
        seen.append(f"closed {time.monotonic() - began:.2f} s")
        stopped = began
    else:
        while (body := await get(port, "/healthz")) == b"ok":
            await asyncio.sleep(0.05)
        seen.append(f"503 {time.monotonic() - began:.2f} s ({body.decode()})")
        process.terminate()
        stopped = time.monotonic()
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    errors = await asyncio.to_thread(process.stderr.read)
    code = process.wait()
    name = "exit" if fault == "fails" else "SIGTERM"
    seen.append(f"{name} {time.monotonic() - stopped:.2f} s with code {code}")
    if fault == "fails":
        seen.append(f"traceback logged: {'illegal memory access' in errors}")
    return ", ".join(seen)


if __name__ == "__main__":
    main()
