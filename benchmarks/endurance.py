"""The built-in model on long audio: `python -m benchmarks.endurance speech MANIFEST` and `... sounds MANIFEST`.

`speech` joins the recordings of a manifest, in random order and with pauses between them, into one stream, and gives
the word error rate of each tenth of it. The same recordings are also transcribed one by one, which shows how much
of a difference between the tenths comes from their recordings and not from the length of the stream.
`sounds` repeats sounds without words for a time and counts the words that the model writes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

import slipstream
from slipstream.arrays import FloatArray
from slipstream.audio import load as load_audio
from slipstream.data.manifest import Recording, read_manifest
from slipstream.evaluate.scores import error_rates
from slipstream.evaluate.transcribe import Hypothesis, transcribe_recordings
from slipstream.events import Word
from slipstream.transcriber import Transcriber

SAMPLE_RATE = 24_000
PAUSE = 1.5  # seconds between two recordings
PARTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speech", "sounds"))
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the stream, at most")
    parser.add_argument("--model", default="tiny", help="a folder, repository or built-in name")
    arguments = parser.parse_args()
    recordings = list(read_manifest(arguments.manifest))
    if not recordings:
        parser.error(f"{arguments.manifest} has no recordings")
    with slipstream.load(arguments.model, mode="live", beam=1) as model:
        if arguments.what == "speech":
            speech(model, recordings, 60 * arguments.minutes)
        else:
            sounds(model, recordings, 60 * arguments.minutes)


def speech(model: Transcriber, recordings: Sequence[Recording], seconds: float) -> None:
    chosen: list[Recording] = []
    chunks: list[FloatArray] = []
    starts = [0.0]
    for i in np.random.default_rng(0).permutation(len(recordings)):
        chunk = np.append(audio(recordings[i]), np.zeros(round(PAUSE * SAMPLE_RATE), np.float32))
        if starts[-1] + len(chunk) / SAMPLE_RATE > seconds:
            break
        chosen.append(recordings[i])
        chunks.append(chunk)
        starts.append(starts[-1] + len(chunk) / SAMPLE_RATE)
    words, taken = transcribe(model, chunks)
    print(f"{starts[-1] / 60:.1f} minutes, {len(chosen)} recordings, {starts[-1] / taken:.1f}x real time")
    # The start of a word can be too early by up to a third of the pause.
    place = np.searchsorted(starts[1:-1], [word.start + PAUSE / 3 for word in words], side="right")
    joined = [
        Hypothesis(recording, 0.0, 0.0, words=[word for word, n in zip(words, place, strict=True) if n == i])
        for i, recording in enumerate(chosen)
    ]
    alone, _ = transcribe_recordings(model, chosen)
    print("tenth, WER in the stream, WER one by one")
    numbers = np.arange(len(chosen))
    parts = [*enumerate(np.array_split(numbers, PARTS), start=1), ("all", numbers)]
    for name, part in parts:
        rates = [error_rates([each[n] for n in part]).words for each in (joined, alone)]
        print(f"{name}, " + ", ".join(f"{r.rate:.1%} ({r.low:.1%} to {r.high:.1%})" for r in rates))


def sounds(model: Transcriber, recordings: Sequence[Recording], seconds: float) -> None:
    words, taken = transcribe(model, repeated(recordings, round(seconds * SAMPLE_RATE)))
    print(f"{len(words)} words in {seconds / 60:.0f} minutes, {seconds / taken:.1f}x real time")
    print(" ".join(f"{word.text}@{word.start:.1f}" for word in words))


def transcribe(model: Transcriber, chunks: Iterable[FloatArray]) -> tuple[list[Word], float]:
    """The words of one stream and the seconds that it took."""
    began = time.perf_counter()
    words = [event for event in model.stream(chunks, SAMPLE_RATE) if isinstance(event, Word)]
    return words, time.perf_counter() - began


def repeated(recordings: Sequence[Recording], samples: int) -> Iterator[FloatArray]:
    """All recordings, again and again, until there are `samples`."""
    while True:
        for recording in recordings:
            chunk = audio(recording)[:samples]
            yield chunk
            samples -= len(chunk)
            if not samples:
                return


def audio(recording: Recording) -> FloatArray:
    return load_audio(recording.audio, SAMPLE_RATE)


if __name__ == "__main__":
    main()
