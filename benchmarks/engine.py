"""The cost of the engine without a model: `python -m benchmarks.engine --sessions 1,100,1000`.

All sessions get their audio as fast as the engine takes it. The model costs nothing and writes a word about every half
second. The cost is processor time of the whole process (sending, stepping and reading) per frame and session: the
minimum of several rounds, because other load on the machine adds to it. A live session needs 12.5 frames per second.

`--parts` runs the engine's code in one thread and times its parts, in microseconds per frame: the step before the
model (`launch`), all that follows the model for a frame of pads or of text, and of that the session's own share.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from benchmarks.common import FreeRunner, numbers

from slipstream.engine.engine import Engine
from slipstream.engine.live import LiveSession
from slipstream.engine.options import SessionOptions
from slipstream.model.config import PAD_ID
from slipstream.testing import FRAME_RATE, FRAME_SAMPLES, tiny_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=numbers, default=[1, 100, 1000])
    parser.add_argument("--chunk-ms", type=float, default=80.0, help="audio in each send")
    parser.add_argument("--frames", type=int, default=20, help="per session and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", action="store_true", help="time the parts of a frame")
    arguments = parser.parse_args()
    if arguments.parts:
        for sessions in arguments.sessions:
            for steps in (False, True):
                print(f"{sessions} sessions, {'with' if steps else 'without'} an event for every frame")
                for part, seconds in parts(sessions, steps).items():
                    print(f"{1e6 * seconds:10.1f}  {part}")
        return
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


class StillEngine(Engine):
    """An engine without its thread."""

    def _run(self) -> None:
        pass


def parts(sessions: int, steps: bool) -> dict[str, float]:
    """Seconds per frame and session of the parts of the engine's work: medians over steps."""
    engine = StillEngine(FreeRunner(sessions), tiny_tokenizer())
    live = [engine.open(SessionOptions(steps=steps)) for _ in range(sessions)]
    frame_S = np.random.default_rng(0).normal(0, 0.05, FRAME_SAMPLES).astype(np.float32)
    times = defaultdict[str, list[float]](list)

    def note(part: str, began: float) -> None:
        times[part].append((time.perf_counter() - began) / sessions)

    for number in range(2 * len(engine._runner._text)):  # type: ignore[attr-defined]
        for session in live:
            session.send(frame_S)
        began = time.perf_counter()
        step = engine._launch(wait=False)
        assert step is not None
        note("launch", began)
        step.wait()
        token, logprob = int(step.output.token_B[0]), float(step.output.logprob_B[0])
        kind = "pad" if token == PAD_ID else "text"
        if number % 2:
            began = time.perf_counter()
            engine._advance(step, step.rows)
            note(f"output, {kind}", began)
        else:
            pause_H = step.output.pause_BH[0].tolist()
            began = time.perf_counter()
            for _, one in step.rows:
                one.advance(token, logprob, pause_H, 0.0)
            note(f"output, {kind}: the session's share", began)
            with engine._sessions:
                for _, one in step.rows:
                    engine._sessions.update(one)
        for session in live:
            session.take()
    return {part: float(np.median(seconds)) for part, seconds in sorted(times.items())}


def wait_until_processed(live: Sequence[LiveSession], frames: int) -> None:
    """Read all events, and let the engine catch up with the senders, as it does in real time."""
    for session in live:
        while round(session.clock * FRAME_RATE) < frames:
            time.sleep(0.001)
        session.take()


if __name__ == "__main__":
    main()
