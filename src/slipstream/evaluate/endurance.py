"""One long stream, and audio without speech: errors over time, and words written where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slipstream.arrays import FloatArray
from slipstream.audio import load
from slipstream.data.augment import coloured_noise
from slipstream.data.manifest import Recording
from slipstream.evaluate.scores import ErrorRate, error_rates
from slipstream.evaluate.transcribe import Hypothesis, transcribe_samples
from slipstream.transcriber import Transcriber

PAUSE_SECONDS = 1.0
PARTS = 10


@dataclass(frozen=True, slots=True)
class LongStream:
    """Word errors in each tenth of one stream of many recordings, `seconds` long."""

    seconds: float
    parts: list[ErrorRate]


def long_stream(transcriber: Transcriber, recordings: Sequence[Recording]) -> LongStream:
    """Transcribe all recordings as one stream, with a second of silence after each.

    A word belongs to the recording in which it starts.
    """
    rate = transcriber.sample_rate
    pieces: list[FloatArray] = []
    bounds = [0.0]
    for recording in recordings:
        pieces += [load(recording.audio, rate), np.zeros(round(PAUSE_SECONDS * rate), np.float32)]
        bounds.append(bounds[-1] + (len(pieces[-2]) + len(pieces[-1])) / rate)
    words = transcribe_samples(transcriber, np.concatenate(pieces))
    hypotheses = [
        Hypothesis(recording, end - start, end - start, [w for w in words if start <= w.start < end])
        for recording, (start, end) in zip(recordings, pairwise(bounds), strict=True)
    ]
    cuts = np.linspace(0, len(hypotheses), PARTS + 1).astype(int)
    return LongStream(bounds[-1], [error_rates(hypotheses[a:b]).words for a, b in pairwise(cuts)])


def invented_words(transcriber: Transcriber, minutes: float) -> dict[str, float]:
    """Count the words per hour that the model writes in silence, noise and music, from `minutes` of each."""
    rate = transcriber.sample_rate
    length = round(minutes * 60 * rate)
    rng = np.random.default_rng(0)
    sounds = {
        "silence": np.zeros(length, np.float32),
        "white noise": _level(coloured_noise(length, 0, rng), 0.02),
        "brown noise": _level(coloured_noise(length, 2, rng), 0.1),
        "music": np.concatenate(list(_music(length, rate, rng)))[:length],
    }
    return {name: len(transcribe_samples(transcriber, x)) * 60 / minutes for name, x in sounds.items()}


def _level(samples: FloatArray, rms: float) -> FloatArray:
    scaled: FloatArray = samples * np.float32(rms / np.sqrt(np.mean(np.square(samples))))
    return scaled


def _music(length: int, rate: int, rng: np.random.Generator) -> Iterator[FloatArray]:
    """Chords of a major scale, two per second, each note with overtones that decay."""
    beat = rate // 2
    time = np.arange(beat) / rate
    scale = np.array([0, 2, 4, 5, 7, 9, 11])
    for _ in range(length // beat + 1):
        root = int(rng.integers(0, 7))
        notes = 48 + 12 * rng.integers(0, 2) + scale[[(root + step) % 7 for step in (0, 2, 4)]]
        tone = sum(
            np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * overtone * time)
            * np.exp(-3 * overtone * time)
            / overtone
            for note in notes
            for overtone in (1, 2, 3, 4)
        )
        yield (0.08 * np.asarray(tone)).astype(np.float32)
