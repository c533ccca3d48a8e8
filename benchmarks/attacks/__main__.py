"""What an attack does to everyone else: `python -m benchmarks.attacks` runs them all, `... pings 'upload_*'` some.

Each attack gets a new server in a separate process, whose model costs `--step-ms` a step. Well-behaved clients
stream 80 ms of audio every 80 ms and `/healthz` is polled, first without the attack, then with it. Latencies in ms: of
a stream from the write of a frame to the arrival of its `Step`, of `/healthz` from connect to the end of the answer,
on the attacked port. `--wide` adds the metrics port, which has its own listening socket and connections, medians,
the highest values, and the steps that were lost.
Memory in MiB: before the attack, its peak, and at the end. `leaked`: slots in use when all clients have gone.
`--workers N`: the server has N worker processes; memory is that of all its processes, where shared pages count once for
each.
`SIGTERM`: seconds to the exit. `attacker`: its processor time in seconds, which shows whether a busy machine let it
attack at all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fnmatch
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.attacks import ATTACKS, Target
from benchmarks.load import Client, children, connect, cpu_seconds, open_model, send_in_real_time

from benchmarks import attacks
from slipstream.connections.access import Access
from slipstream.dialects import TCP_DIALECTS
from slipstream.dialects.models import Models
from slipstream.engine.engine import Engine
from slipstream.server.http.app import Service
from slipstream.server.run import TcpListener, listen, log_to_stderr, serve
from slipstream.workers.parent import Listeners, Parent
from slipstream.workers.worker import Settings

WARM_UP_SECONDS = 2.0
POLL_SECONDS = 0.05
METRICS = "metrics"
"""The metrics port among the ports of a server. That of HTTP has an empty name, others those of dialects on TCP."""
PATIENCE_SECONDS = 10.0
"""How long to wait for one answer of `/healthz`."""
FREE_SECONDS = 40.0
"""How long to wait for slots to be freed: connections that wait in the sockets' queues are served first."""


@dataclass
class Latencies:
    """Of one phase, in seconds.

    `metrics`: of `/healthz` on the metrics port. `lost`: steps that had not come when the phase was over.
    """

    stream: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    metrics: list[float] = field(default_factory=list)
    lost: int = 0

    def percentiles(self, kind: str) -> tuple[float, float]:
        """The median and the 99th percentile in ms."""
        p50, p99 = np.percentile(np.array(getattr(self, kind)) * 1000, [50, 99])
        return float(p50), float(p99)


@dataclass
class Outcome:
    """What one attack did."""

    quiet: Latencies
    attacked: Latencies
    memory: tuple[float, float, float]
    leaked: int
    attacker_seconds: float
    sigterm_seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


def main() -> None:
    for module in pkgutil.iter_modules(attacks.__path__):
        if module.name != "__main__":
            importlib.import_module(f"benchmarks.attacks.{module.name}")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "attacks", nargs="*", metavar="NAME", help=f"or a pattern, of {', '.join(sorted(ATTACKS))}; all by default"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--streams", type=int, default=4, help="well-behaved ones")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--slot-ms", type=float, default=0.2)
    parser.add_argument("--model", help="a model instead of the stand-in")
    parser.add_argument("--workers", type=int, default=0, help="worker processes of the server")
    parser.add_argument("--wide", action="store_true", help="print all columns")
    parser.add_argument("--attack-ports", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = {pattern: fnmatch.filter(sorted(ATTACKS), pattern) for pattern in arguments.attacks or ["*"]}
    if unknown := [pattern for pattern, found in names.items() if not found]:
        parser.error(f"unknown attack {', '.join(unknown)}: choose from {', '.join(sorted(ATTACKS))}")
    if arguments.serve:
        run_server(arguments)
        return
    if arguments.attack_ports:
        run_attack(arguments.attacks[0], arguments.attack_ports, arguments.seconds)
        return
    print(f"{arguments.seconds:g} s each; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"| {' | '.join(columns(arguments.wide))} |")
    print("|---" * len(columns(arguments.wide)) + "|")
    for name in dict.fromkeys(name for found in names.values() for name in found):
        outcome = measure(name, arguments)
        print(f"| {' | '.join(cells(name, outcome, arguments.wide))} |", flush=True)
        for line in outcome.errors[:10]:
            print(f"    {line:.300}", file=sys.stderr)


def columns(wide: bool) -> list[str]:
    """The head of the table."""
    names = ["attack"]
    for what in ("stream", "`/healthz`", "metrics port")[: 3 if wide else 2]:
        names += [f"{what} p99", "attacked", "ratio", *(["p50 before", "max"] if wide else [])]
    return [*names, *(["lost"] if wide else []), "memory", "leaked", "SIGTERM", "attacker"]


def cells(name: str, outcome: Outcome, wide: bool) -> list[str]:
    """One line of the table."""
    line = [f"`{name}`"]
    for kind in ("stream", "health", "metrics")[: 3 if wide else 2]:
        p50, before = outcome.quiet.percentiles(kind)
        during = outcome.attacked.percentiles(kind)[1]
        line += [f"{before:.1f}", f"{during:.1f}", f"{during / before:.2f}"]
        if wide:
            line += [f"{p50:.1f}", f"{1000 * max(getattr(outcome.attacked, kind)):.0f}"]
    if wide:
        line.append(str(outcome.attacked.lost))
    line.append(" / ".join(f"{size:.0f}" for size in outcome.memory))
    return [*line, str(outcome.leaked), f"{outcome.sigterm_seconds:.1f}", f"{outcome.attacker_seconds:.2f}"]


def measure(name: str, arguments: argparse.Namespace) -> Outcome:
    """Run one attack on a fresh server."""
    with server(arguments) as (process, ports, log), attacker(name, ports, arguments.seconds) as attacking:
        outcome = asyncio.run(observe(ports, process.pid, attacking, arguments))
        began = time.monotonic()
        process.terminate()
        process.wait(60)
        outcome.sigterm_seconds = time.monotonic() - began
        outcome.errors = log.read_text().splitlines()
    return outcome


async def observe(
    ports: dict[str, int], process: int, attacking: subprocess.Popen[str], arguments: argparse.Namespace
) -> Outcome:
    """Both phases, and what is left when all clients are gone."""
    port = ports[""]
    clients = await connect(port, arguments.streams)
    sending = asyncio.create_task(send_in_real_time(clients))
    await asyncio.sleep(WARM_UP_SECONDS)
    quiet = await phase(clients, ports, arguments.seconds)
    before = resident_mib(process)
    for one in processes(process):
        Path(f"/proc/{one}/clear_refs").write_text("5")  # sets the peak (VmHWM) to the present size: proc(5)
    assert attacking.stdin is not None
    print(file=attacking.stdin, flush=True)
    effort = cpu_seconds(attacking.pid)
    attacked = await phase(clients, ports, arguments.seconds)
    effort = cpu_seconds(attacking.pid) - effort
    attacking.kill()
    sending.cancel()
    for client in clients:
        client.transport.abort()
    leaked = await until_free(port)
    return Outcome(quiet, attacked, (before, resident_mib(process, "VmHWM"), resident_mib(process)), leaked, effort)


@contextlib.contextmanager
def attacker(name: str, ports: dict[str, int], seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that attacks for so long once it is sent a line; it has loaded its code by then."""
    command = [sys.executable, "-m", "benchmarks.attacks", name]
    command += ["--attack-ports", json.dumps(ports), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run_attack(name: str, ports: dict[str, int], seconds: float) -> None:
    """Wait for a line, then attack until the time is up, again when the server closes the connection."""
    sys.stdin.readline()
    target = Target(ports[""], time.monotonic() + seconds, ports)
    while target.running:
        with contextlib.suppress(OSError):
            ATTACKS[name](target)
        time.sleep(0.01)


async def phase(clients: list[Client], ports: dict[str, int], seconds: float) -> Latencies:
    """The latencies of all clients and of `/healthz` for so long."""
    sent_before = [len(client.sent) for client in clients]
    for client in clients:
        client.latencies = []
        client.measuring = True
    health, metrics = await asyncio.gather(*(poll(ports[name], time.monotonic() + seconds) for name in ("", METRICS)))
    result = Latencies(health=health, metrics=metrics)
    now = time.perf_counter()
    for client, before in zip(clients, sent_before, strict=True):
        client.measuring = False
        # What has not come yet counts with the time it has waited so far.
        waiting = [now - sent for sent in client.sent[max(client.heard, before) :]]
        result.stream += client.latencies + waiting
        result.lost += sum(seconds > 1 for seconds in waiting)
    return result


async def poll(port: int, deadline: float) -> list[float]:
    """The latencies of `/healthz` until the deadline."""
    latencies = []
    while (began := time.monotonic()) < deadline:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(get(port, "/healthz"), PATIENCE_SECONDS)
        latencies.append(time.monotonic() - began)
        await asyncio.sleep(POLL_SECONDS)
    return latencies


async def get(port: int, path: str) -> bytes:
    """The body of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read()).partition(b"\r\n\r\n")[2]
    finally:
        writer.close()


async def until_free(port: int) -> int:
    """Wait until no slot is in use; the number that still are when patience ends."""
    deadline = time.monotonic() + FREE_SECONDS
    while True:
        (module,) = json.loads(await get(port, "/api/modules_info"))
        if not (used := int(module["used_slots"])) or time.monotonic() > deadline:
            return used
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def server(arguments: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], dict[str, int], Path]]:
    """A fresh server: its process, its ports, and what it writes to standard error."""
    command = [sys.executable, "-m", "benchmarks.attacks", "--serve", "--slots", str(arguments.slots)]
    command += ["--step-ms", str(arguments.step_ms), "--slot-ms", str(arguments.slot_ms)]
    command += ["--workers", str(arguments.workers)]
    if arguments.model:
        command += ["--model", arguments.model]
    with (
        tempfile.NamedTemporaryFile("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline()), Path(log.name)
        finally:
            process.kill()


def run_server(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM. Prints the ports."""
    open_cost = partial(open_model, arguments.model, arguments.slots, arguments.step_ms, arguments.slot_ms)
    with contextlib.ExitStack() as stack:
        listeners = {name: stack.enter_context(listen("127.0.0.1", 0)) for name in ("", METRICS, *TCP_DIALECTS)}
        ports = json.dumps({name: listener.getsockname()[1] for name, listener in listeners.items()})
        tcp = [TcpListener(listeners[name], opened) for name, opened in TCP_DIALECTS.items()]
        log_to_stderr("error")
        if arguments.workers:
            settings = Settings("127.0.0.1", accept_any=True, operations_host="127.0.0.1", log_level="error")
            main = Listeners(listeners[""], listeners[METRICS], tcp)
            parent = Parent([open_cost], arguments.workers, settings, main, started=lambda _: print(ports, flush=True))
            asyncio.run(parent.run())
            return
        opened = open_cost()
        engine = stack.enter_context(Engine(opened.runner, opened.format.tokenizer))
        print(ports, flush=True)
        access = Access("127.0.0.1")
        service = Service(Models({opened.name: engine}, accept_any=True), access)
        serve(service, listeners[""], operations=(listeners[METRICS], access), tcp=tcp)


def processes(server: int) -> list[int]:
    """A server's process, and those that it has started."""
    return [server, *children(server)]


def resident_mib(server: int, field: str = "VmRSS") -> float:
    """Memory of a server's processes now, or the sum of their peaks (`VmHWM`)."""
    return sum(_status(one, field) for one in processes(server))


def _status(process: int, field: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {process} has ended")


if __name__ == "__main__":
    main()
