"""What the engine itself costs, the model left out: `python -m benchmarks.engine --sessions 1,100,1000`.

All sessions get their audio as fast as the engine takes it; the model is a stand-in that costs nothing and writes a
word about every half second. The cost is processor time of the whole process, so sending, stepping and reading
together, for each frame of each session: the least of several rounds, since a busy machine makes the same work cost
more. A live session needs 12.5 frames a second.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np
from tests.fakes import FRAME_RATE, FRAME_SAMPLES, LEXICON, tiny_tokenizer

from slipstream.arrays import BoolArray, FloatArray
from slipstream.engine.engine import Engine
from slipstream.engine.live import LiveSession
from slipstream.engine.session import SessionOptions
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import State, StepOutput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=lambda text: [int(n) for n in text.split(",")], default=[1, 100, 1000])
    parser.add_argument("--chunk-ms", type=float, default=80.0, help="audio in each send")
    parser.add_argument("--frames", type=int, default=20, help="for each session in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{'sessions':>8} {'us a frame':>10} {'live sessions on one core':>26}")
    for sessions in arguments.sessions:
        rounds = [cost(sessions, arguments.frames, round(arguments.chunk_ms * 24)) for _ in range(arguments.rounds)]
        seconds = min(rounds)
        print(f"{sessions:8} {1e6 * seconds:10.1f} {1 / (seconds * FRAME_RATE):26.0f}")


def cost(sessions: int, frames: int, chunk_samples: int) -> float:
    """Processor seconds for each frame of each session."""
    options = SessionOptions(steps=True)
    audio_S = np.random.default_rng(0).normal(0, 0.05, frames * FRAME_SAMPLES).astype(np.float32)
    chunks = np.split(audio_S, range(chunk_samples, len(audio_S), chunk_samples))
    with Engine(FreeRunner(sessions), tiny_tokenizer()) as engine:
        live = [engine.open(options) for _ in range(sessions)]
        began = time.process_time()
        for number, chunk in enumerate(chunks, start=1):
            for session in live:
                session.send(chunk)
            wait_until_heard(live, number * chunk_samples // FRAME_SAMPLES)
        return (time.process_time() - began) / (sessions * frames)


def wait_until_heard(live: Sequence[LiveSession], frames: int) -> None:
    """Read what there is, and let the engine come up with the senders, as it does in real time."""
    for session in live:
        while round(session.clock * FRAME_RATE) < frames:
            time.sleep(0.001)
        session.take()


class FreeRunner:
    """A Runner that costs next to nothing and writes words with pauses between them, for ever the same few."""

    frame_samples = FRAME_SAMPLES
    frame_rate = FRAME_RATE
    delay_frames = 6

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._frames_B = np.zeros(slots, np.int64)
        words = [[PAD_ID, PAD_ID, PAD_ID, WORD_ID, *tiny_tokenizer().encode(word)] for word in LEXICON]
        self._text = np.concatenate(words)
        self._logprob_B = np.full(slots, -0.1, np.float32)
        self._pause_BH = np.full((slots, 4), 0.25, np.float32)

    def reset(self, slots: Sequence[int]) -> None:
        self._frames_B[list(slots)] = 0

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        self._frames_B += active_B
        return StepOutput(self._text[self._frames_B % len(self._text)], self._logprob_B, self._pause_BH)

    def snapshot(self, slot: int) -> State:
        return int(self._frames_B[slot])

    def restore(self, slot: int, state: State) -> None:
        self._frames_B[slot] = state


if __name__ == "__main__":
    main()
