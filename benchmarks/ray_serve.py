"""Streams on a local Ray while a replica is killed: `python -m benchmarks.ray_serve FILE [--streams 100]`.

Two replicas of the built-in model serve streams of one recording. Half of the streams pass the proxy, half go to a
replica's own address. In the middle, one replica is killed (SIGKILL). Every stream continues by resumption; the report
counts those that have the words that the recording has without the loss.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ray
import slipstream.ray
from ray import serve
from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.client import ServerError
from slipstream.events import Step, Word
from slipstream.resume import ResumableStream

RATE = 24_000
PORT = 8765
RETRY_SECONDS = 0.5


@dataclass
class Outcome:
    """One stream: its words, its connections, and how many of them continued a held slot."""

    words: list[str] = field(default_factory=list)
    connections: int = 0
    resumed: int = 0
    done: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--slots", type=int, default=32, help="of each replica")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the recording")
    parser.add_argument("--kill-at", type=float, default=0.4, help="share of all frames")
    parser.add_argument("--context", type=float, default=30.0, help="most seconds that a stream sends again")
    arguments = parser.parse_args()
    audio_S = load(arguments.file, RATE)[: round(arguments.seconds * RATE)]
    with local_cluster(), replicas(arguments.slots) as address:
        [whole] = asyncio.run(transcribe_all(address, audio_S, 1, None))
        began = time.perf_counter()
        streams, kill_at = arguments.streams, arguments.kill_at
        outcomes = asyncio.run(transcribe_all(address, audio_S, streams, kill_at, arguments.context))
        seconds = time.perf_counter() - began
    lost = [outcome for outcome in outcomes if outcome.connections > 1]
    exact = sum(outcome.words == whole.words for outcome in outcomes)
    exact_lost = sum(outcome.words == whole.words for outcome in lost)
    print(f"{streams} streams of {len(audio_S) / RATE:.0f} s in {seconds:.0f} s")
    print(f"{sum(outcome.done for outcome in outcomes)} ended with all text; {exact} have the same words")
    print(f"{len(lost)} lost their connection; {exact_lost} of them have the same words")


@contextlib.contextmanager
def local_cluster(cpus: int = 4) -> Iterator[None]:
    """Run Ray on this machine."""
    ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def replicas(slots: int, port: int = PORT) -> Iterator[str]:
    """Start two replicas on the cluster. Yields the address of the proxy."""
    serve.start(http_options={"port": port})
    try:
        application = slipstream.ray.app(slots=slots, backend="onnx", replicas=2, actor_options={"num_cpus": 1})
        serve.run(application, name="asr")
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


async def transcribe_all(
    address: str, audio_S: FloatArray, streams: int, kill_at: float | None, context_seconds: float = 30.0
) -> list[Outcome]:
    """Transcribe the same audio in parallel streams, and kill a replica after a share of all frames."""
    outcomes = [Outcome() for _ in range(streams)]
    frames = 0
    killed = kill_at is None

    async def one(number: int, outcome: Outcome) -> None:
        nonlocal frames, killed
        stream = ResumableStream(address, sample_rate=RATE, context_seconds=context_seconds, sessions=number % 2 == 1)
        stream.send(audio_S)
        stream.finish()
        while not stream.done:
            try:
                await stream.connect()
                outcome.connections += 1
                outcome.resumed += stream.resumed
                async for event in stream:
                    if isinstance(event, Word):
                        outcome.words.append(event.text)
                    elif isinstance(event, Step):
                        frames += 1
                        if not killed and frames > (kill_at or 0) * streams * len(audio_S) / 1920:
                            killed = True
                            kill_one_replica()
            except ServerError:
                await asyncio.sleep(RETRY_SECONDS)
        outcome.done = True

    await asyncio.gather(*(one(number, outcome) for number, outcome in enumerate(outcomes)))
    return outcomes


def kill_one_replica() -> int:
    """Kill the process of one replica on this machine. Returns its ID."""
    pids = ray_processes("ray::ServeReplica:asr")
    os.kill(pids[0], signal.SIGKILL)
    return pids[0]


def ray_processes(title: str) -> list[int]:
    """Return the processes of Ray whose title begins like this, and that are descendants of this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(title.encode()) and _is_ours(int(folder.name)):
                    found.append(int(folder.name))
    return sorted(found)


def _is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])  # the parent
    return pid == os.getpid()


if __name__ == "__main__":
    main()
