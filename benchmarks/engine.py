"""The cost of the engine without a model: `python -m benchmarks.engine --sessions 1,100,1000`.

All sessions get their audio as fast as the engine takes it. The model costs nothing and writes a word about every half
second. The cost is processor time of the whole process (sending, stepping and reading) per frame and session: the
minimum of several rounds, because other load on the machine adds to it. A live session needs 12.5 frames per second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from benchmarks.common import FreeRunner, numbers

from slipstream.engine.engine import Engine
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.testing import FRAME_RATE, FRAME_SAMPLES, tiny_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=numbers, default=[1, 100, 1000])
    parser.add_argument("--chunk-ms", type=float, default=80.0, help="audio in each send")
    parser.add_argument("--frames", type=int, default=20, help="per session and round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{'sessions':>8} {'us/frame':>10} {'of the engine thread':>21} {'live sessions on one core':>26}")
    for sessions in arguments.sessions:
        rounds = [cost(sessions, arguments.frames, round(arguments.chunk_ms * 24)) for _ in range(arguments.rounds)]
        seconds, thread = (min(parts) for parts in zip(*rounds, strict=True))
        print(f"{sessions:8} {1e6 * seconds:10.1f} {1e6 * thread:21.1f} {1 / (seconds * FRAME_RATE):26.0f}")


class TimedEngine(Engine):
    """An engine that measures the processor time of its thread."""

    thread_seconds = 0.0

    def _run(self) -> None:
        began = time.thread_time()
        super()._run()
        self.thread_seconds = time.thread_time() - began


def cost(sessions: int, frames: int, chunk_samples: int) -> tuple[float, float]:
    """Processor seconds per frame and session: of the process, and of the engine's thread."""
    options = SessionOptions(steps=True)
    audio_S = np.random.default_rng(0).normal(0, 0.05, frames * FRAME_SAMPLES).astype(np.float32)
    chunks = np.split(audio_S, range(chunk_samples, len(audio_S), chunk_samples))
    with TimedEngine(FreeRunner(sessions), tiny_tokenizer()) as engine:
        live = [engine.open(options) for _ in range(sessions)]
        began = time.process_time()
        for number, chunk in enumerate(chunks, start=1):
            for session in live:
                session.send(chunk)
            wait_until_processed(live, number * chunk_samples // FRAME_SAMPLES)
        seconds = time.process_time() - began
    return seconds / (sessions * frames), engine.thread_seconds / (sessions * frames)


def wait_until_processed(live: Sequence[LiveSession], frames: int) -> None:
    """Read all events, and let the engine catch up with the senders, as it does in real time."""
    for session in live:
        while round(session.clock * FRAME_RATE) < frames:
            time.sleep(0.001)
        session.take()


if __name__ == "__main__":
    main()
