"""Memory and speed on a long recording: `python -m benchmarks.long --hours 1 [--model REF]`.

A recording of noise with pauses is written to a temporary Opus file and transcribed. Memory is the resident set of the
whole process after each minute of audio. Without `--model` the model is a fake that costs nothing: the rest is
decoding, resampling, engine and words.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from benchmarks.common import FreeRunner, resident_bytes

import slipstream
from slipstream.audio import decode
from slipstream.engine.options import SessionOptions
from slipstream.events import Final, Step, Word
from slipstream.testing import tiny_tokenizer
from slipstream.transcriber import Transcriber

SAMPLE_RATE = 24_000
STEPS_A_MINUTE = 750


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--model", help="a folder, repository or built-in name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, transcriber(arguments.model) as model:
        path = Path(folder) / "long.opus"
        write_recording(path, round(60 * arguments.hours))
        memory, words, seconds, began = [], 0, 0.0, time.perf_counter()
        options = SessionOptions(partials=False, steps=True)
        chunks = (audio_CS[0] for audio_CS in decode(path))
        for event in model.stream(chunks, SAMPLE_RATE, options=options):
            if isinstance(event, Step) and event.index % STEPS_A_MINUTE == 0:
                memory.append(resident_bytes() / 2**20)
            elif isinstance(event, Word):
                words += 1
            elif isinstance(event, Final):
                seconds = event.duration
        taken = time.perf_counter() - began
    print(f"{seconds:.0f} s of audio, {words} words, in {taken:.1f} s: {seconds / taken:.0f}x real time")
    print(
        f"resident: {memory[0]:.0f} MiB after a minute, at most {max(memory):.0f} MiB, {memory[-1]:.0f} MiB at the end"
    )


def transcriber(model: str | None) -> Transcriber:
    if model is not None:
        return slipstream.load(model, beam=1)
    return Transcriber(FreeRunner(1), tiny_tokenizer(), model="none")


def write_recording(path: Path, minutes: int) -> None:
    """Write the same minute of noise with pauses, `minutes` times."""
    random = np.random.default_rng(0)
    loudness_T = np.repeat(random.uniform(0, 0.3, 150) * (random.random(150) < 0.7), 60 * SAMPLE_RATE // 150)
    minute_S = (loudness_T * random.normal(0, 1, len(loudness_T)) * 8000).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        for _ in range(minutes):
            frame = av.AudioFrame.from_ndarray(minute_S[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
